//! What is said of command lines that can't work: the word at fault, and what would do.

use std::process::Command;
use std::time::Duration;

use nbd_testkit::process::run;
use nbd_testkit::server::nbd_binary;

const SOON: Duration = Duration::from_secs(60);

/// A command line that is refused with that exit code and says that.
#[track_caller]
fn refused(words: &[&str], code: i32, says: &str) {
    let finished = run(Command::new(nbd_binary()).args(words), SOON);
    assert_eq!(finished.status.code(), Some(code), "{words:?}: {}", finished.stderr);
    assert_eq!(finished.stdout, "", "{words:?}");
    assert!(finished.stderr.contains(says), "{says:?} is not in: {}", finished.stderr);
}

#[test]
fn numbers_that_are_none_are_named_with_their_flag() {
    for (flag, word, says) in [
        ("--connections", "x", "'--connections <N>': give a number of at least 1"),
        ("--connections", "0", "'--connections <N>': give a number of at least 1"),
        ("--requests", "0", "'--requests <N>': give a number of at least 1"),
        ("--request-size", "0", "'--request-size <N>': give a size of at least 1"),
        ("--threads", "x", "'--threads <N>': give a number"),
    ] {
        refused(&["copy", flag, word, "/dev/null", "null:"], 64, says);
    }
    for port in ["http", "65536"] {
        refused(&["serve", "--port", port], 64, "a port is a number from 0 to 65535");
    }
}

#[test]
fn a_mistyped_uri_is_no_path() {
    let folder = tempfile::tempdir().unwrap();
    for words in [["htp://x", "null:"], ["/dev/null", "ndb+unix:///x"]] {
        let mut command = Command::new(nbd_binary());
        command.arg("copy").args(words).current_dir(folder.path());
        let finished = run(&mut command, SOON);
        assert_eq!(finished.status.code(), Some(64), "{}", finished.stderr);
        assert!(finished.stderr.contains("is not one of nbd, nbds,"), "{}", finished.stderr);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made");
}

#[test]
fn what_is_no_control_socket_is_told_from_one_that_nobody_answers() {
    let says = "Cargo.toml is not a socket: give the path that nbd serve --control has";
    refused(&["bitmap", "Cargo.toml", "list"], 1, says);
    let says = "give the path of the --control socket, not a URI";
    refused(&["bitmap", "nbd://localhost/a", "list"], 64, says);
    refused(&["bitmap", "no/such/socket", "list"], 1, "no answer on the control socket");
}

#[test]
fn what_there_is_not_yet_is_told_with_what_there_is() {
    for (uri, says) in [
        ("nbds://localhost", "there is no TLS yet: use nbd://"),
        ("nbd+vsock://2", "there is no vsock yet: use nbd:// or nbd+unix://"),
    ] {
        for words in [&["info", uri][..], &["copy", uri, "null:"]] {
            refused(words, 1, says);
        }
    }
}

#[test]
fn the_usage_line_shows_how_many_places_there_are() {
    const SERVER: &str = "<URI | [ COMMAND ARGS ]>";
    for (command, words) in [
        ("info", format!("[OPTIONS] {SERVER}")),
        ("list", format!("[OPTIONS] {SERVER}")),
        ("map", format!("[OPTIONS] {SERVER}")),
        ("copy", "[OPTIONS] <SRC> <DST>".into()),
        ("resize", format!("[OPTIONS] {SERVER} <SIZE>")),
    ] {
        let usage = format!("Usage: nbd {command} {words}\n");
        refused(&[command], 64, &usage);
        let help = run(Command::new(nbd_binary()).args([command, "--help"]), SOON).success();
        assert!(help.contains(&usage), "{help}");
    }
}
