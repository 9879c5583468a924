//! `--retries`: servers that are killed and started again in the middle of a copy, or not there yet.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use nbd_testkit::process::{Background, run, wait_until};
use nbd_testkit::raw::{Cmd, Mode, Opt, flag};
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::nbd_binary;

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the tests of copies")]
mod support;

use support::{Folder, MIB, SOON, assert_same, copy, noise, read, refused};

const RETRIES: [&str; 3] = ["--retries=100", "--retry-delay=20ms", "--timeout=60"];

/// Few bytes are on their way: what comes out of a pipe, or went into one, is so much at most behind the rest.
const FEW: &str = "--requests=2";

/// A server at a place of its own, where one process after the other listens.
struct Site {
    folder: Folder,
    backend: String,
}

impl Site {
    fn new(backend: impl FnOnce(&Folder) -> String) -> Self {
        let folder = Folder::new();
        let backend = backend(&folder);
        Self { folder, backend }
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.folder.text("nbd.sock"))
    }

    fn serve(&self) -> Background {
        let mut command = Command::new(nbd_binary());
        command.arg("serve").arg("-U").arg(self.folder.path("nbd.sock")).arg(&self.backend);
        let server = Background::spawn(&mut command).unwrap();
        assert!(server.next_line(SOON).is_some(), "{}", server.stderr());
        server
    }
}

/// Kills a server, and waits until it is gone.
fn kill(mut server: Background) {
    server.kill();
    assert!(server.wait_exit(SOON).is_some(), "it is killed");
}

/// A copy whose other side is this test.
struct Copying {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl Copying {
    fn start(words: &[&str]) -> Self {
        let mut command = Command::new(nbd_binary());
        command.arg("copy").args(RETRIES).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    /// Waits for its end. Gives the exit code, and what it wrote to standard error.
    fn finish(mut self) -> (Option<i32>, String) {
        drop(self.stdin.take());
        let mut status = None;
        wait_until("the copy ends", SOON, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.and_then(|status| status.code()), said)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        // Whatever the test found.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn stdout_of(words: &[&str]) -> Vec<u8> {
    let output = Command::new(nbd_binary()).args(words).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn a_destination_that_lost_everything_is_written_again() {
    let site = Site::new(|_| "memory:8M".into());
    let data = noise(8 * MIB);
    let (first, rest) = data.split_at(5 * MIB);
    let server = site.serve();
    let mut copying = Copying::start(&[FEW, "-", &site.uri()]);
    // When the pipe has taken it, the server has most of it.
    copying.stdin.as_mut().unwrap().write_all(first).unwrap();
    assert!(stdout_of(&["copy", &site.uri(), "-"])[..4 * MIB] == first[..4 * MIB]);
    kill(server);
    let server = site.serve();
    copying.stdin.as_mut().unwrap().write_all(rest).unwrap();
    let (code, said) = copying.finish();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("lost the connection"), "{said}");
    assert!(stdout_of(&["copy", &site.uri(), "-"]) == data, "the copy is complete");
    kill(server);
}

/// It may have lost what it had answered before, and there is no way to know.
#[test]
fn a_destination_that_can_not_be_flushed_must_not_be_lost() {
    let mut export = Export::new(Mode::Extended);
    export.flags &= !(flag::SEND_FLUSH | flag::SEND_FUA);
    let script = || Script::new(export.clone()).enter();
    let server = ScriptedServer::unix([script().header(Cmd::WRITE), script().serve()]);
    let folder = Folder::new();
    let from = folder.file("from", &noise(MIB));
    let uri = server.endpoint().uri("");
    let said = refused(
        &[&RETRIES[..], &["-C", "1", "-S", "0", "--request-size=64k", &from, &uri]].concat(),
    );
    assert!(said.contains("can't be flushed") && said.contains("was lost"), "{said}");
}

#[test]
fn a_source_that_is_restarted_is_read_on() {
    let data = noise(8 * MIB);
    let site = Site::new(|folder| folder.file("disk", &data));
    let server = site.serve();
    let mut copying = Copying::start(&[FEW, &site.uri(), "-"]);
    let mut found = vec![0; data.len()];
    copying.stdout.read_exact(&mut found[..MIB]).unwrap();
    kill(server);
    let server = site.serve();
    copying.stdout.read_exact(&mut found[MIB..]).unwrap();
    let (code, said) = copying.finish();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("lost the connection").count(), 1, "it is logged alone: {said}");
    assert!(said.contains("was lost and replaced during the copy"), "{said}");
    assert!(found == data, "every byte is there");
    kill(server);
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    let site = Site::new(|folder| folder.file("disk", &noise(MIB)));
    let uri = site.uri();
    for words in [&["info", "--size"][..], &["map"], &["info"]] {
        let words = [words, &RETRIES, &[uri.as_str()]].concat();
        let asking = thread::spawn({
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            move || stdout_of(&words.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let server = site.serve();
        assert!(!asking.join().unwrap().is_empty());
        kill(server);
    }
}

#[test]
fn another_disk_is_not_written_to() {
    let site = Site::new(|_| "memory:8M".into());
    let server = site.serve();
    let mut copying = Copying::start(&[FEW, "-", &site.uri()]);
    copying.stdin.as_mut().unwrap().write_all(&noise(2 * MIB)).unwrap();
    assert!(stdout_of(&["copy", &site.uri(), "-"])[..4096] == noise(4096)[..]);
    kill(server);
    let other = Site { folder: site.folder, backend: "memory:9M".into() };
    let server = other.serve();
    // The rest may not get as far as the pipe.
    let _taken = copying.stdin.as_mut().unwrap().write_all(&noise(MIB));
    let (code, said) = copying.finish();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("its size was 8388608 and is 9437184"), "{said}");
    assert!(stdout_of(&["copy", &other.uri(), "-"]).iter().all(|byte| *byte == 0));
    kill(server);
}

#[test]
fn a_server_that_never_comes_is_given_up() {
    let folder = Folder::new();
    let uri = format!("nbd+unix:///?socket={}", folder.text("nbd.sock"));
    let mut command = Command::new(nbd_binary());
    command.args(["info", "--retries=3", "--retry-delay=1ms", &uri]);
    let finished = run(&mut command, SOON);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("cannot connect"), "{}", finished.stderr);
}

/// One connection falls silent in the middle, one is silent from the beginning, and then there are some that answer: on a
/// busy machine they may take too long, too.
#[test]
fn a_server_that_falls_silent_is_left_for_another_one() {
    let mut export = Export::new(Mode::Extended);
    export.size = 4 * MIB as u64;
    let script = || Script::new(export.clone()).enter();
    let silent = [
        script().request(Cmd::READ).obey().request(Cmd::READ).silence(),
        script().request(Cmd::READ).silence(),
    ];
    let answering = core::iter::repeat_n(script().serve(), 50);
    let server = ScriptedServer::unix(silent.into_iter().chain(answering));
    let (folder, uri) = (Folder::new(), server.endpoint().uri(""));
    let to = folder.text("to");
    let words = ["--synchronous", "--request-size=1M", "--no-extents", "--timeout=500ms"];
    let retries = ["--retries=100", "--retry-delay=1ms"];
    copy(&[&words[..], &retries, &[&uri, &to]].concat());
    assert_same(&read(&to), &Export::CONTENT.bytes(0, 4 * MIB));
    server.finish();
}

/// The first connection describes the export, and breaks where it is entered to be looked at.
#[test]
fn the_content_is_looked_at_over_another_connection_if_the_first_one_breaks() {
    let script = || Script::new(Export::new(Mode::Extended));
    let server = ScriptedServer::unix([script().until(Opt::GO), script().enter().serve()]);
    let uri = server.endpoint().uri("");
    let words = ["info", "--retries=3", "--retry-delay=1ms", &uri];
    let told = String::from_utf8(stdout_of(&words)).unwrap();
    assert!(told.contains("content:"), "{told}");
    server.finish();
    // Without another one there is no answer, rather than half of it.
    let server = ScriptedServer::unix([script().until(Opt::GO)]);
    let uri = server.endpoint().uri("");
    let mut command = Command::new(nbd_binary());
    command.args(["info", "--retries=1", "--retry-delay=1ms", &uri]);
    let finished = run(&mut command, SOON);
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stdout);
}
