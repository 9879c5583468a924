//! Standard input and output that can't be used: what is lost there is a failure, and reported as one.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbd_testkit::process::{Background, Finished, run};
use nbd_testkit::server::nbd_binary;

const SOON: Duration = Duration::from_secs(60);

/// `nbd` with words of the shell, `$0` among them for the binary, and a redirection.
#[track_caller]
fn nbd(words: &str, redirection: &str) -> Finished {
    let mut shell = Command::new("sh");
    let script = format!("exec \"$0\" {words} {redirection}");
    run(shell.args(["-c", &script]).arg(nbd_binary()), SOON)
}

/// Whatever writes to standard output.
const WRITERS: [&str; 12] = [
    "info [ \"$0\" serve memory:1M ]",
    "info --json [ \"$0\" serve memory:1M ]",
    "info --size [ \"$0\" serve memory:1M ]",
    "info --uri nbd://localhost",
    "list [ \"$0\" serve memory:1M ]",
    "map [ \"$0\" serve memory:1M ]",
    "map --totals --json [ \"$0\" serve memory:1M ]",
    "resize [ \"$0\" serve --resize memory:1M ] 2M",
    "serve --port 0 memory:1M",
    "copy [ \"$0\" serve memory:1M ] -",
    "--version",
    "map --help",
];

#[test]
fn output_that_goes_nowhere_is_a_failure() {
    for words in WRITERS {
        for (redirection, says) in [(">&-", "it is closed"), (">/dev/full", "No space left")] {
            let finished = nbd(words, redirection);
            let stderr = &finished.stderr;
            assert_eq!(finished.status.code(), Some(1), "{words} {redirection}: {stderr}");
            assert!(
                stderr.contains("standard output") && stderr.contains(says),
                "{words}: {stderr}"
            );
        }
    }
}

#[test]
fn input_that_is_closed_is_not_empty() {
    let finished = nbd("copy - null:", "<&-");
    assert!(finished.failure().contains("cannot read standard input: it is closed"));
    nbd("copy - null:", "</dev/null").success();
}

#[test]
fn whoever_writes_nothing_needs_no_output() {
    for words in ["info --can write [ \"$0\" serve memory:1M ]", "copy /dev/null null:"] {
        assert_eq!(nbd(words, ">&-").success(), "");
    }
}

#[test]
fn dev_null_takes_everything() {
    for redirection in [">/dev/null", "<>/dev/null 1>&0"] {
        nbd("map [ \"$0\" serve memory:1M ]", redirection).success();
    }
}

/// Reads standard error until that was said.
#[track_caller]
fn wait_until_said(child: &mut Child, wanted: &str) {
    let (mut said, mut piece) = (String::new(), [0; 4096]);
    let stderr = child.stderr.as_mut().unwrap();
    while !said.contains(wanted) {
        let count = stderr.read(&mut piece).unwrap();
        assert!(count > 0, "{wanted:?} is not in {said}");
        said.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
}

#[test]
fn input_that_does_not_block_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let mut command = Command::new(nbd_binary());
    command.args(["copy", "-v", "-"]).arg(&to).stdin(reader).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(command);
    wait_until_said(&mut child, "standard input: no data for ");
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|number| (number % 251) as u8).collect();
    writer.write_all(&bytes).unwrap();
    drop(writer);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(std::fs::read(&to).unwrap() == bytes, "the bytes differ");
}

#[test]
fn output_that_does_not_block_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(&from, &bytes).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut command = Command::new(nbd_binary());
    command.args(["copy", "-v"]).arg(&from).arg("-").stdout(writer).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(command);
    wait_until_said(&mut child, "standard output: nothing was taken for ");
    let mut taken = Vec::new();
    reader.read_to_end(&mut taken).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(taken == bytes, "{} of {} bytes came", taken.len(), bytes.len());
}

#[test]
fn lines_wait_for_their_reader_as_well() {
    // A disk of which the map is longer than a pipe.
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let file = std::fs::File::create(&disk).unwrap();
    file.set_len(64 << 20).unwrap();
    for number in 0..4096_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", number * 16384).unwrap();
    }
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let mut command = Command::new(nbd_binary());
    command.args(["map", "["]).arg(nbd_binary()).args(["serve", "-r"]).arg(&disk).arg("]");
    let mut child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    // Nothing is read before the pipe is full, or as full as it gets.
    nbd_testkit::process::wait_until("the pipe is full", SOON, || {
        rustix::io::ioctl_fionread(&reader).unwrap() > 60_000 || child.try_wait().unwrap().is_some()
    });
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.lines().count() > 4096, "{} lines", text.lines().count());
}

#[test]
fn a_failure_whose_message_can_not_be_written_is_the_same_failure() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing").display().to_string();
    for (words, code) in [
        (format!("serve {missing}"), 1),
        (format!("info nbd+unix:///?socket={missing}"), 1),
        (format!("list nbd+unix:///?socket={missing}"), 1),
        (format!("map nbd+unix:///?socket={missing}"), 1),
        (format!("copy {missing} null:"), 1),
        (format!("resize nbd+unix:///?socket={missing} 1M"), 1),
        (format!("bitmap {missing} list"), 1),
        ("serve memory:x".into(), 64),
        ("frobnicate".into(), 64),
        ("serve --port x".into(), 64),
    ] {
        for redirection in ["2>&-", "2>/dev/full", "2>&9"] {
            // The other end of descriptor 9 is closed.
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let script = format!("exec 9>&0 0</dev/null; exec \"$0\" {words} {redirection}");
            let mut shell = Command::new("sh");
            let mut child = shell
                .args(["-c", &script])
                .arg(nbd_binary())
                .stdin(Stdio::from(writer))
                .spawn()
                .unwrap();
            let status = child.wait().unwrap();
            assert_eq!(status.code(), Some(code), "{words} {redirection}");
        }
    }
}

#[test]
fn a_failure_whose_message_is_not_read_ends_all_the_same() {
    // A pipe that is full.
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    for words in
        [&["serve", "/nonexistent/file"][..], &["info", "nbd+unix:///?socket=/nonexistent"]]
    {
        let stderr = Stdio::from(writer.try_clone().unwrap());
        let mut command = Command::new(nbd_binary());
        let mut process = Background::spawn_with_stderr(command.args(words), stderr).unwrap();
        assert_eq!(process.wait_exit(SOON).and_then(|status| status.code()), Some(1), "{words:?}");
    }
    drop(reader);
}
