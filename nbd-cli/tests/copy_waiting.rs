//! `nbd copy` that waits says for what: on a terminal, or with `-v`.

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
fn says(mut child: Child, mut output: impl Read, wanted: &[&str]) {
    let (mut said, mut piece) = (String::new(), [0; 4096]);
    while !wanted.iter().all(|wanted| said.contains(wanted)) {
        let count = output.read(&mut piece).unwrap_or(0);
        assert!(count > 0, "{wanted:?} is not in {said}");
        said.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    child.kill().unwrap();
    child.wait().unwrap();
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
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let stderr = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    let server = ScriptedServer::unix([script().enter().silence()]);
    let mut command = Command::new(nbd_binary());
    command.args(["copy", "--progress", "--no-extents", &server.endpoint().uri(""), "null:"]);
    let child = command.stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
    drop(command);
    says(child, File::from(terminal), &["waiting for", " s to a read of "]);
}

#[test]
fn waits_are_reported_nowhere_else_by_default() {
    let server = ScriptedServer::unix([script().enter().silence()]);
    let uri = server.endpoint().uri("");
    let finished = try_copy(&["--no-extents", "--timeout", "3s", &uri, "null:"]);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("longer than 3s"), "{}", finished.stderr);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
}
