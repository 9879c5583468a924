//! `[ COMMAND ARGS ]` in place of a URI.

use std::path::Path;

use nbd_testkit::peers;
use nbd_testkit::process::{Background, run, wait_until};

use super::{LIMIT, command, nbd, overlay, told};

fn is_running(process: &str) -> bool {
    Path::new("/proc").join(process.trim()).exists()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn nbdkit_is_started_and_stopped_without_a_trace() {
    if peers::require("nbdkit").is_none() {
        return;
    }
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pid = dir.path().join("pid").display().to_string();
    let mut command = command(["info", "--size", "[", "nbdkit", "-P", &pid, "null", "1M", "]"]);
    let told = run(command.env("TMPDIR", temporary.path()), LIMIT).success();
    assert_eq!(told, "1048576\n");
    assert!(!is_running(&std::fs::read_to_string(pid).unwrap()));
    assert!(is_empty(temporary.path()));
}

#[test]
fn qemu_nbd_answers_every_subcommand_over_its_only_connection() {
    let Some((_, dir)) = overlay() else { return };
    let image = dir.path().join("disk.qcow2").display().to_string();
    let server = ["--", "[", "qemu-nbd", "-r", "-f", "qcow2", &image, "]"];
    let ask = |words: &[&'static str]| told(words.iter().copied().chain(server));
    assert_eq!(ask(&["info", "--size"]), "67108864\n");
    assert!(ask(&["list"]).contains("export-size: 67108864 (64M)\n"));
    assert!(ask(&["map"]).starts_with("         0     1048576    0  data\n"));
    assert!(!ask(&["info", "--json"]).contains("uri"));
}

/// As nbdinfo takes them. The values of options are theirs, and those of the command are its own.
#[test]
fn options_may_stand_behind_a_command() {
    let server = ["[", env!("CARGO_BIN_EXE_nbd"), "serve", "--resize", "memory:1M", "]"];
    let ask =
        |before: &[&'static str], after: &[&'static str]| told([before, &server, after].concat());
    assert_eq!(ask(&["info"], &["--size"]), "1048576\n");
    assert_eq!(
        ask(&["map"], &["--offset", "1M", "--json"]),
        ask(&["map", "--offset", "1M", "--json"], &[])
    );
    assert_eq!(ask(&["resize"], &["2M", "--json"]), ask(&["resize", "--json"], &["2M"]));
    assert_eq!(ask(&["resize"], &["-512k", "--yes"]), ask(&["resize", "--yes"], &["--", "-512k"]));
    let folder = tempfile::tempdir().unwrap();
    let mut copy =
        command([&["copy"], &server[..], &["out", "--verify", "--connections", "2"]].concat());
    assert_eq!(run(copy.current_dir(folder.path()), LIMIT).success(), "");
    let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(Vec::from_iter(names), ["out"]);
}

#[test]
fn what_the_command_prints_is_no_output_of_ours() {
    if peers::require("nbdkit").is_none() {
        return;
    }
    let script = "echo chatter; exec nbdkit null 1M";
    let finished = nbd(["info", "--size", "[", "sh", "-c", script, "]"]);
    assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("1048576\n", "chatter\n"));
}

#[test]
fn a_command_that_ends_too_early_is_to_blame() {
    for (words, says) in [
        (&["no-such-command"][..], "no such command"),
        (&["/"], "permission denied"),
        (&["sh", "-c", "echo because >&2; exit 3"], "exit status: 3"),
        (&["true"], "socket activation"),
        (&["./no/such/command"], "no such command"),
    ] {
        let stderr = nbd(["info", "["].iter().chain(words).chain([&"]"])).failure();
        let quoted = |word: &&str| match word.contains(' ') {
            true => format!("'{word}'"),
            false => (*word).to_owned(),
        };
        let named = format!("[ {} ]", words.iter().map(quoted).collect::<Vec<_>>().join(" "));
        assert!(stderr.contains(&named), "{named} is not in: {stderr}");
        assert!(stderr.contains(says), "{says:?} is not in: {stderr}");
    }
}

#[test]
fn a_failing_command_is_reported_once() {
    let missing = nbd(["info", "[", "no-such-command", "]"]).failure();
    let says = "nbd: [ no-such-command ] can't be started: there is no such command\n";
    assert_eq!(missing, says);
    // It has said why.
    let failed = nbd(["info", "[", "sh", "-c", "echo because >&2; exit 3", "]"]).failure();
    assert!(failed.starts_with("because\nnbd: the server [ sh ") && failed.lines().count() == 2);
    assert!(failed.ends_with("] ended (exit status: 3)\n"), "{failed}");
}

#[test]
fn what_a_command_does_not_have_is_looked_up_by_the_same_command() {
    let server = ["[", env!("CARGO_BIN_EXE_nbd"), "serve", "memory:1M", "]"];
    let stderr = nbd(["map", "--context", "no:such"].into_iter().chain(server)).failure();
    assert!(stderr.ends_with(&format!("with nbd info {}\n", server.join(" "))), "{stderr}");
}

#[test]
fn a_signal_ends_the_command_too() {
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pid = dir.path().join("pid");
    // It listens and never answers.
    let script = format!("echo $$ >'{0}.new'; mv '{0}.new' '{0}'; exec sleep 1000", pid.display());
    let mut command = command(["info", "[", "sh", "-c", &script, "]"]);
    let mut process = Background::spawn(command.env("TMPDIR", temporary.path())).unwrap();
    wait_until("the command runs", LIMIT, || pid.exists());
    process.terminate();
    let status = process.wait_exit(LIMIT).expect("a signal ends it");
    assert_eq!(status.code(), Some(128 + 15));
    assert!(!is_running(&std::fs::read_to_string(pid).unwrap()));
    assert!(is_empty(temporary.path()));
}
