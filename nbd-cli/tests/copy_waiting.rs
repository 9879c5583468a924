//! A command that waits says for what: soon on a terminal or with `-v`, later elsewhere.

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};

use nbd_testkit::raw::{Cmd, Mode, Opt};
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::nbd_binary;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::{Folder, MIB, noise, try_copy};

fn script() -> Script {
    Script::new(Export::new(Mode::Extended))
}

/// Reads until all of this was said, and ends the copy.
#[track_caller]
fn says(child: Child, output: impl Read, wanted: &[&str]) {
    reads_until(child, output, |said| wanted.iter().all(|wanted| said.contains(wanted)));
}

/// Reads until what was said is enough, and ends the copy.
#[track_caller]
fn reads_until(mut child: Child, mut output: impl Read, is_enough: impl Fn(&str) -> bool) {
    let (mut said, mut piece) = (String::new(), [0; 4096]);
    while !is_enough(&said) {
        let count = output.read(&mut piece).unwrap_or(0);
        assert!(count > 0, "it ended, and said no more than: {said}");
        said.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Starts a copy whose standard error is a terminal, of which this is the other end.
fn on_a_terminal(words: &[&str]) -> (Child, File) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let stderr = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    let mut command = Command::new(nbd_binary());
    command.arg("copy").args(words).stdin(Stdio::null()).stderr(stderr);
    (command.spawn().unwrap(), File::from(terminal))
}

/// A copy that says all of this with `-v`.
#[track_caller]
fn copy_says(words: &[&str], wanted: &[&str]) {
    let mut command = Command::new(nbd_binary());
    command.args(["copy", "-v"]).args(words).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let _open = child.stdin.take();
    let (_full, output) = (child.stdout.take(), child.stderr.take().unwrap());
    says(child, output, wanted);
}

#[test]
fn whatever_is_waited_for_has_a_name() {
    let folder = Folder::new();
    let source = folder.file("source", &noise(MIB));
    let to = folder.text("to");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let server = ScriptedServer::unix([script().enter().silence()]);
            let uri = server.endpoint().uri("");
            let wait = format!("nbd: waiting for '{uri}': no reply for ");
            copy_says(&["--no-extents", &uri, &to], &[&wait, " s to a read of "]);
        });
        scope.spawn(|| {
            let server = ScriptedServer::unix([script().enter().silence()]);
            let uri = server.endpoint().uri("");
            copy_says(&[&uri, "null:"], &["no reply for ", " s to a question about holes"]);
        });
        scope.spawn(|| {
            let server = ScriptedServer::unix([script().enter().silence()]);
            let uri = server.endpoint().uri("");
            copy_says(&["-S", "0", &source, &uri], &["no reply for ", " s to a write of "]);
        });
        scope.spawn(|| {
            let mut flush = script().enter();
            for _ in 0..4 {
                flush = flush.request(Cmd::WRITE).obey();
            }
            let server = ScriptedServer::unix([flush.silence()]);
            let uri = server.endpoint().uri("");
            let words = ["-C", "1", "-S", "0", "--no-extents", "--flush", &source, &uri];
            copy_says(&words, &["a flush has taken "]);
        });
        scope.spawn(|| {
            let server = ScriptedServer::unix([script().until(Opt::GO).silence()]);
            copy_says(&[&server.endpoint().uri(""), "null:"], &["no session yet after "]);
        });
        scope.spawn(|| copy_says(&["-", "null:"], &["standard input: no data for "]));
        scope.spawn(|| copy_says(&[&source, "-"], &["standard output: nothing was taken for "]));
    });
}

#[test]
fn a_pipe_without_a_reader_is_named() {
    let folder = Folder::new();
    let pipe = folder.text("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &*pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let wait = format!("nbd: waiting for '{pipe}': its other end has not been opened for ");
    std::thread::scope(|scope| {
        scope.spawn(|| copy_says(&["/dev/zero", &pipe], &[&wait]));
    });
    copy_says(&[&pipe, "null:"], &[&wait]);
}

#[test]
fn waits_are_reported_on_a_terminal_by_default() {
    let server = ScriptedServer::unix([script().enter().silence()]);
    let uri = server.endpoint().uri("");
    let (child, terminal) = on_a_terminal(&["--progress", "--no-extents", &uri, "null:"]);
    says(child, terminal, &["waiting for", " s to a read of "]);
}

#[test]
fn short_waits_are_reported_nowhere_else() {
    let server = ScriptedServer::unix([script().enter().silence()]);
    let uri = server.endpoint().uri("");
    let finished = try_copy(&["--no-extents", "--timeout", "3s", &uri, "null:"]);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("longer than 3s"), "{}", finished.stderr);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
}

/// Whether a line has the number of a later attempt than the first one, such as
/// `nbd: reconnecting to X, attempt 7 of 1000: the connection was lost 2 s ago`.
fn counts_attempts(said: &str, max: u32) -> bool {
    said.lines()
        .filter_map(|line| line.split_once("reconnecting to ")?.1.split_once(", attempt "))
        .any(|(_, numbers)| {
            let (number, rest) = numbers.split_once(" of ").unwrap_or_default();
            let wanted = format!("{max}: the connection was lost ");
            let number = number.parse::<u32>();
            rest.starts_with(&wanted) && number.is_ok_and(|number| (2..=max).contains(&number))
        })
}

/// A server that is gone once it is asked for a second read.
fn gone_in_the_middle(start: impl FnOnce(&str)) {
    let script = script().enter().request(Cmd::READ).obey().header(Cmd::READ);
    let server = ScriptedServer::unix([script]);
    start(&server.endpoint().uri(""));
    server.wait_for_requests(2);
}

#[test]
fn a_lost_connection_is_reported_with_the_number_of_the_attempt() {
    let words = ["--synchronous", "--no-extents", "--request-size=64k", "--retry-delay=10ms"];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut copying = None;
            gone_in_the_middle(|uri| {
                let more = ["--progress", "--retries=1000", uri, "null:"];
                copying = Some(on_a_terminal(&[&words[..], &more].concat()));
            });
            let (child, terminal) = copying.unwrap();
            reads_until(child, terminal, |said| counts_attempts(said, 1000));
        });
        scope.spawn(|| {
            let mut copying = None;
            gone_in_the_middle(|uri| {
                let mut command = Command::new(nbd_binary());
                command.args(["copy", "-v", "--retries=900"]).args(words).args([uri, "null:"]);
                let command = command.stdin(Stdio::null()).stderr(Stdio::piped());
                copying = Some(command.spawn().unwrap());
            });
            let mut child = copying.unwrap();
            let stderr = child.stderr.take().unwrap();
            reads_until(child, stderr, |said| counts_attempts(said, 900));
        });
    });
}

/// Whatever the command, a script's log says what it waits for.
#[test]
fn a_silent_server_is_named_where_there_is_no_terminal() {
    let folder = Folder::new();
    let to = folder.text("to");
    let commands: &[&[&str]] = &[&["info"], &["list"], &["map"], &["dump"], &["copy"]];
    std::thread::scope(|scope| {
        for words in commands {
            let to = &to;
            scope.spawn(move || {
                let server =
                    ScriptedServer::unix([Script::new(Export::new(Mode::Extended)).silence()]);
                let uri = server.endpoint().uri("");
                let mut command = Command::new(nbd_binary());
                command.args(*words).arg(&uri).args((words == &["copy"]).then_some(to));
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
                let mut child = command.spawn().unwrap();
                let output = child.stderr.take().unwrap();
                let wait = format!("nbd: waiting for {uri}: no session yet after ");
                says(child, output, &[&wait]);
            });
        }
    });
}

/// Long enough for a report: the copy gives up after 2.5 to 5.1 seconds.
#[test]
fn attempts_are_reported_nowhere_else() {
    let mut copying = None;
    gone_in_the_middle(|uri| {
        let mut command = Command::new(nbd_binary());
        command.args(["copy", "--synchronous", "--no-extents", "--request-size=64k"]);
        command.args(["--retries=2", "--retry-delay=1700ms", uri, "null:"]);
        copying = Some(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    });
    let output = copying.unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("attempt ") && said.contains("lost"), "{said}");
}
