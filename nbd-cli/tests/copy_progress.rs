//! `nbd copy --progress=FD`.

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use nbd_testkit::peers;
use nbd_testkit::process::{Finished, run};
use nbd_testkit::server::nbd_binary;
use support::{Folder, MIB, SOON, noise, read, refused, try_copy};

/// A copy by a program, its descriptor 3 on a file; gives the lines in there.
#[track_caller]
fn lines(program: &Path, args: &[&str], folder: &Folder) -> (Finished, Vec<String>) {
    let (path, shell) = (folder.path("lines"), r#"exec "$@" 3>"$LINES_FILE""#);
    let mut command = Command::new("sh");
    command.args(["-c", shell, "sh"]).arg(program);
    if program.file_name() == Some(OsStr::new("nbd")) {
        command.arg("copy");
    }
    let finished = run(command.args(args).env("LINES_FILE", &path), SOON);
    let text = std::fs::read_to_string(&path).expect("the shell has made it");
    (finished, text.lines().map(str::to_owned).collect())
}

/// The numbers of lines such as `42/100`.
#[track_caller]
fn percents(lines: &[String]) -> Vec<u32> {
    let number = |line: &String| {
        let number = line.strip_suffix("/100").and_then(|text| text.parse().ok());
        number.unwrap_or_else(|| panic!("{line:?}"))
    };
    lines.iter().map(number).collect()
}

#[test]
fn lines_go_from_nothing_to_all_and_say_nothing_twice() {
    let folder = Folder::new();
    let source = folder.file("source", &noise(8 * MIB));
    let to = folder.text("to");
    for more in [&[][..], &["--verify", "--flush"], &["--synchronous", "-S", "0"]] {
        let args = [&["--progress=3", "--request-size=64k"], more, &[&source, &to]].concat();
        let (finished, lines) = lines(&nbd_binary(), &args, &folder);
        assert_eq!(finished.stderr, "");
        assert_eq!(finished.success(), "");
        let percents = percents(&lines);
        assert_eq!((percents[0], percents[percents.len() - 1]), (0, 100));
        assert!(percents.len() > 3, "{percents:?}");
        assert!(percents.is_sorted_by(|a, b| a < b), "{percents:?}");
    }
}

#[test]
fn what_nbdcopy_writes_means_the_same() {
    let Some(peer) = peers::require("nbdcopy") else { return };
    let folder = Folder::new();
    let to = folder.text("to");
    for size in [0, 1, MIB] {
        let source = folder.file("source", &noise(size));
        let args = ["--progress=3", "--", &source, &to];
        for program in [nbd_binary(), peer.path.clone()] {
            let (finished, lines) = lines(&program, &args, &folder);
            finished.success();
            let percents = percents(&lines);
            assert_eq!((percents[0], percents[percents.len() - 1]), (0, 100), "{program:?}");
        }
    }
}

#[test]
fn a_copy_that_fails_never_says_that_all_is_done() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    let source = folder.file("source", &noise(4 * MIB));
    let args = ["--filter=error", "memory", "4M", "error-pwrite=EIO", "error-pwrite-rate=1"];
    let (_server, uri) = support::nbdkit(&peer, &args);
    let (finished, lines) = lines(&nbd_binary(), &["--progress=3", &source, &uri], &folder);
    finished.failure();
    assert_ne!(percents(&lines).last(), Some(&100));
}

#[test]
fn a_reader_that_closes_early_does_not_end_the_copy() {
    let folder = Folder::new();
    let bytes = noise(4 * MIB);
    let (source, to) = (folder.file("source", &bytes), folder.text("to"));
    // Descriptor 3 is a pipe whose reader is gone.
    let script = r#"mkfifo "$1/pipe"; : <"$1/pipe" & exec 3>"$1/pipe"; wait; shift; exec "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", &folder.text("")]).arg(nbd_binary());
    run(command.args(["copy", "--progress=3", &source, &to]), SOON).success();
    assert!(read(&to) == bytes);
}

#[test]
fn a_descriptor_that_is_of_no_use_is_named() {
    let folder = Folder::new();
    let (source, to) = (folder.file("source", &noise(10)), folder.text("to"));
    for (number, says) in [
        ("77", "descriptor 77 is not open"),
        ("0", "descriptor 0 is not open for writing"),
        ("-1", "descriptor -1 is not open"),
        ("x", "'x'"),
        ("/tmp/x", "a descriptor's number, such as 3 with 3>FILE"),
    ] {
        let finished = try_copy(&[&format!("--progress={number}"), &source, &to]);
        assert_eq!(finished.status.code(), Some(64), "{}", finished.stderr);
        assert!(finished.stderr.contains(says), "{says:?} is not in {}", finished.stderr);
    }
    assert!(!folder.path("to").exists(), "nothing is done");
}

#[test]
fn the_bar_takes_no_number_and_appears_on_terminals_alone() {
    let folder = Folder::new();
    let (source, to) = (folder.file("source", &noise(10)), folder.text("to"));
    for flag in ["-p", "--progress"] {
        let finished = try_copy(&[flag, &source, &to]);
        assert_eq!(finished.stderr, "");
        finished.success();
    }
    assert!(refused(&["-p", &folder.text("missing"), &to]).contains("missing"));
}
