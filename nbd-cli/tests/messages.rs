//! What is said of command lines that can't work: the word at fault, and what would do.

use std::path::Path;
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
fn the_address_of_a_server_is_no_path_either() {
    let folder = tempfile::tempdir().unwrap();
    let addresses = [
        ("localhost:10809", "give nbd://localhost:10809 for a server, or ./localhost:10809 for"),
        ("[::1]:1/a", "give nbd://[::1]:1/a for a server"),
        ("nbd:localhost:1", "give nbd://localhost:1 for a server, or ./nbd:localhost:1 for"),
        ("nbd:unix:/a", "give 'nbd+unix:///?socket=/a' for a server"),
        ("nbds:a", "give nbd://HOST:PORT/EXPORT for a server, or ./nbds:a for a file"),
        ("nbd+unix:/a", "for a server, or ./nbd+unix:/a for a file"),
    ];
    let copy = |from: &str, to: &str| {
        let mut command = Command::new(nbd_binary());
        command.args(["copy", from, to]).current_dir(folder.path());
        run(&mut command, SOON)
    };
    for (address, says) in addresses {
        for finished in [copy("/dev/null", address), copy(address, "null:")] {
            assert_eq!(finished.status.code(), Some(64), "{address}: {}", finished.stderr);
            assert!(finished.stderr.contains(says), "{says} is not in: {}", finished.stderr);
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made");
    // With the dot it is a file; what is there without it is one as well.
    copy("/dev/null", "./nbd:localhost:1").success();
    copy("/dev/null", "./localhost:10809").success();
    copy("localhost:10809", "./nbd:localhost:1").success();
    for words in [&["info"][..], &["list"], &["map"]] {
        refused(
            &[words, &["localhost:1"]].concat(),
            64,
            "is not an NBD URI: give nbd://localhost:1",
        );
    }
}

#[test]
fn a_device_that_is_not_there_does_not_become_a_file() {
    let name = format!("nbd-cli-no-such-disk-{}", std::process::id());
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(format!("/dev/{name}"), &link).unwrap();
    let path = link.display().to_string();
    for path in
        [&format!("/dev/{name}"), &format!("{}/../dev/{name}", folder.path().display()), &path]
    {
        for words in [["/dev/null", path], [path, "null:"]] {
            let finished = run(Command::new(nbd_binary()).arg("copy").args(words), SOON);
            let left = std::fs::remove_file(Path::new("/dev").join(&name)).is_ok();
            assert!(!left, "{words:?} made a file in /dev");
            assert_eq!(finished.status.code(), Some(1), "{words:?}: {}", finished.stderr);
        }
    }
    let mut command = Command::new(nbd_binary());
    command.args(["copy", "/dev/null", &name]).current_dir("/dev");
    let finished = run(&mut command, SOON);
    assert!(std::fs::remove_file(Path::new("/dev").join(&name)).is_err(), "a file in /dev");
    assert!(finished.failure().contains("no such device; attach it"));
    let shared = format!("/dev/shm/{name}");
    if Path::new("/dev/shm").is_dir() {
        run(Command::new(nbd_binary()).args(["copy", "/dev/null", &shared]), SOON).success();
        std::fs::remove_file(shared).unwrap();
    }
}

#[test]
fn a_file_that_is_no_control_socket_is_distinguished_from_a_socket_without_a_server() {
    let says = "Cargo.toml is not a socket: give the path that nbd serve --control has";
    refused(&["bitmap", "Cargo.toml", "list"], 1, says);
    let says = "give the path of the --control socket, not a URI";
    refused(&["bitmap", "nbd://localhost/a", "list"], 64, says);
    refused(&["bitmap", "no/such/socket", "list"], 1, "no answer on the control socket");
}

#[test]
fn the_usage_line_shows_how_many_arguments_there_are() {
    const SERVER: &str = "<URI | [ COMMAND ARGS ]>";
    for (command, words) in [
        ("info", format!("[OPTIONS] {SERVER}")),
        ("list", format!("[OPTIONS] {SERVER}")),
        ("map", format!("[OPTIONS] {SERVER}")),
        ("copy", "[OPTIONS] <SRC> <DST>".into()),
        ("compare", "[OPTIONS] <A> <B>".into()),
        ("resize", format!("[OPTIONS] {SERVER} <SIZE>")),
        ("attach", format!("[OPTIONS] {SERVER} [DEVICE]")),
        ("detach", "[OPTIONS] <DEVICE>...".into()),
    ] {
        let usage = format!("Usage: nbd {command} {words}\n");
        refused(&[command], 64, &usage);
        let help = run(Command::new(nbd_binary()).args([command, "--help"]), SOON).success();
        assert!(help.contains(&usage), "{help}");
    }
}

/// A file takes the place of what would be served.
#[test]
fn the_usage_of_serve_has_no_line_that_is_refused() {
    let usage = "Usage: nbd serve [OPTIONS] [[NAME=]BACKEND]...\n       nbd serve --config <FILE> [OPTIONS]\n";
    for words in [&["serve", "--config", "x", "--port", "1"][..], &["serve", "--prot"]] {
        refused(words, 64, usage);
    }
    let help = run(Command::new(nbd_binary()).args(["serve", "--help"]), SOON).success();
    assert!(help.contains(usage), "{help}");
}

#[test]
fn flags_and_commands_of_other_programs_get_the_name_of_ours() {
    for (words, says) in [
        (&["serve", "--filter=cow", "memory:1M"][..], "for '--filter': --layer overlay, or"),
        (&["serve", "-k", "/tmp/socket"], "for '-k': --unix PATH"),
        (&["serve", "-f", "disk.img"], "for '-f': nbd serve stays in the foreground"),
        (&["nbdcopy", "a", "b"], "for 'nbdcopy': nbd copy"),
        (&["bench", "--iodepth=4"], "for '--iodepth': --depth N"),
        (&["fio"], "for 'fio': nbd bench"),
        (&["cmp", "a", "b"], "for 'cmp': nbd compare"),
    ] {
        refused(words, 64, says);
    }
}

#[cfg(feature = "tls")]
#[test]
fn a_key_that_this_build_cannot_use_is_made_with_a_note_which_feature_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.psk");
    let finished = run(Command::new(nbd_binary()).arg("psk").arg(&path).arg("alice"), SOON);
    let noted = finished.stderr.contains("built without pre-shared keys")
        && finished.stderr.contains("cargo install --path nbd-cli --features tls-psk");
    assert_eq!(noted, cfg!(not(feature = "tls-psk")), "{}", finished.stderr);
    finished.success();
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("alice:"));
}

#[cfg(not(feature = "volume"))]
#[test]
fn volumes_of_a_build_without_them_name_the_feature() {
    let says = "without volumes and objects: build it, in its source tree, with cargo install --path nbd-cli --features volume";
    refused(&["volume", "list"], 64, says);
    refused(&["serve", "volume:s3://bucket/disk"], 64, says);
}
