//! How servers that `nbd copy` has started come to their end: whatever went wrong, their clients disconnect, they
//! clean up, and nothing is left of them.

#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use nbd_testkit::peers;
use nbd_testkit::process::{Finished, run, wait_until};
use nbd_testkit::server::nbd_binary;
use rustix::process::{Pid, Signal, kill_process};
use support::{Folder, MIB, SOON, noise};

/// A folder for the private sockets, and one with a server's log.
struct Scene {
    folder: Folder,
    temporary: Folder,
}

impl Scene {
    fn new() -> Self {
        Self { folder: Folder::new(), temporary: Folder::new() }
    }

    /// A server's command, between brackets: of so many bytes, which says when a connection begins, and when it ends
    /// itself, unless it is killed.
    fn server(&self, size: &str, more: &[&str]) -> Vec<String> {
        let log = self.folder.text("log");
        let mut words = vec!["[".to_owned(), "nbdkit".into()];
        words.extend(more.iter().filter(|word| word.starts_with('-')).map(|word| (*word).into()));
        words.extend(["eval".into(), format!("get_size=echo {size}")]);
        words.push("pread=head -c $3 /dev/zero".into());
        words.push("pwrite=cat >/dev/null; echo EIO bad sector >&2; exit 1".into());
        for event in ["open", "unload"] {
            words.push(format!("{event}=echo {event} >>'{log}'"));
        }
        words.extend(more.iter().filter(|word| !word.starts_with('-')).map(|word| (*word).into()));
        words.push("]".into());
        words
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path("log")).unwrap_or_default()
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(nbd_binary());
        command.arg("copy").args(words).env("TMPDIR", self.temporary.path(""));
        command
    }

    /// The server was not killed, and nothing is left.
    #[track_caller]
    fn check(&self, what: &str) {
        assert_eq!(self.log(), "open\nunload\n", "{what}");
        assert!(is_empty(&self.temporary.path("")), "{what}");
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

fn words(list: &[&[String]]) -> Vec<String> {
    list.concat()
}

#[track_caller]
fn failed(finished: &Finished, says: &str) {
    assert_eq!(finished.status.code(), Some(1), "{}", finished.stderr);
    assert!(finished.stderr.contains(says), "{says:?} is not in {}", finished.stderr);
}

#[test]
fn failures_give_the_server_time_to_clean_up() {
    if peers::require("nbdkit").is_none() {
        return;
    }
    let file = |scene: &Scene| scene.folder.file("file", &noise(3 * MIB));
    let scene = Scene::new();
    let too_small = words(&[&[file(&scene)], &scene.server("1M", &[])]);
    failed(&run(&mut scene.command(&too_small), SOON), "too small");
    scene.check("the destination is too small");

    let scene = Scene::new();
    let nowhere = words(&[&scene.server("1M", &[]), &["/nonexistent/x".into()]]);
    failed(&run(&mut scene.command(&nowhere), SOON), "cannot open");
    scene.check("the destination can't be opened");

    let scene = Scene::new();
    let broken = scene.server("4M", &[]);
    failed(&run(&mut scene.command(&words(&[&[file(&scene)], &broken])), SOON), "cannot write");
    scene.check("the destination fails");

    let scene = Scene::new();
    let mut command = scene.command(&words(&[&scene.server("1G", &[]), &["-".into()]]));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the server is connected to", SOON, || !scene.log().is_empty());
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    scene.check("nobody takes the output");
}

#[test]
fn clients_disconnect_as_the_protocol_wants_it_when_a_copy_fails() {
    if peers::require("nbdkit").is_none() {
        return;
    }
    let scene = Scene::new();
    let source = scene.folder.file("source", &noise(3 * MIB));
    let server = ["[", "nbdkit", "-v", "memory", "1M", "]"].map(str::to_owned);
    let from = words(&[&server, &["/nonexistent/x".into()]]);
    for line in [words(&[&[source], &server]), from] {
        let finished = run(&mut scene.command(&line), SOON);
        failed(&finished, "client sent NBD_CMD_DISC");
    }
}

#[test]
fn signals_give_the_server_time_to_clean_up() {
    if peers::require("nbdkit").is_none() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        // One copy is busy, the other one waits for an answer that takes longer than anybody wants to wait.
        for more in [&[][..], &["--filter=delay", "rdelay=1000"]] {
            let scene = Scene::new();
            let mut command =
                scene.command(&words(&[&scene.server("1T", more), &["null:".into()]]));
            let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
            wait_until("the server is connected to", SOON, || !scene.log().is_empty());
            kill_process(Pid::from_child(&child), signal).unwrap();
            let status = child.wait().unwrap();
            assert_eq!(status.code(), Some(128 + signal.as_raw()), "{signal:?} {more:?}");
            scene.check(&format!("{signal:?} {more:?}"));
        }
    }
}

#[test]
fn a_folder_for_temporary_files_may_have_a_path_of_any_length() {
    let folder = Folder::new();
    let long = folder.path(&"x".repeat(150)).join("y".repeat(100));
    std::fs::create_dir_all(&long).unwrap();
    let nbd = nbd_binary().display().to_string();
    let to = folder.text("to");
    let mut command = Command::new(&nbd);
    command.env("TMPDIR", &long).args(["copy", "[", &nbd, "serve", "memory:1M", "]", &to]);
    run(&mut command, SOON).success();
    assert_eq!(std::fs::metadata(&to).unwrap().len(), 1 << 20);
    assert!(is_empty(&long));
}

/// Servers bind such sockets by a relative path, or as here.
#[test]
fn a_socket_may_have_a_path_of_any_length() {
    use std::os::fd::AsRawFd;
    let folder = Folder::new();
    let long = folder.path(&"x".repeat(150)).join("y".repeat(100));
    std::fs::create_dir_all(&long).unwrap();
    let descriptor = std::fs::File::open(&long).unwrap();
    let short = format!("/proc/self/fd/{}/socket", descriptor.as_raw_fd());
    let listener = std::os::unix::net::UnixListener::bind(short).unwrap();
    let uri = format!("nbd+unix:///?socket={}", long.join("socket").display());
    let accepted = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let finished = run(Command::new(nbd_binary()).args(["info", &uri]), SOON);
    failed(&finished, "no session with");
    accepted.join().unwrap();
    let gone = long.join("socket").display().to_string();
    failed(&run(Command::new(nbd_binary()).args(["info", &uri]), SOON), &gone);
    for (socket, says) in [
        (format!("{}/{}", long.display(), "z".repeat(120)), "at most 107 bytes, and this one has"),
        (format!("%00{}", "z".repeat(120)), "at most 107 bytes, and this one has 120"),
        ("%00no-such-name".into(), "check the name"),
        ("no-such-path".into(), "./no-such-path: No such file"),
        (gone, "no server listens on the socket any more"),
    ] {
        let uri = format!("nbd+unix:///?socket={socket}");
        let finished = run(Command::new(nbd_binary()).args(["info", &uri]), SOON);
        failed(&finished, says);
        assert!(!finished.stderr.contains("port"), "{}", finished.stderr);
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_leaves_nothing_behind() {
    let scene = Scene::new();
    let nbd = nbd_binary().display().to_string();
    let source = scene.folder.file("source", &noise(2 * MIB));
    let to = scene.folder.text("to");
    let mut sizes = vec![("the file is made", to.clone(), false)];
    sizes.push(("a stream is written", "-".into(), true));
    for (what, word, streams) in sizes {
        let script = if streams {
            r#"ulimit -f 1024; exec "$@" >"$TO""#
        } else {
            r#"ulimit -f 1024; exec "$@""#
        };
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", &nbd, "copy", "[", &nbd, "serve", "-r", &source, "]"]);
        command.arg(word).env("TO", &to).env("TMPDIR", scene.temporary.path(""));
        failed(&run(&mut command, SOON), "File too large");
        assert!(is_empty(&scene.temporary.path("")), "{what}");
    }
}

#[test]
fn a_stream_that_takes_no_more_is_named_with_the_offset_where_it_ends() {
    let folder = Folder::new();
    let (source, to) = (folder.file("source", &noise(3 * MIB)), folder.text("to"));
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -f 1024; exec "$@" >"$TO""#, "sh"]).arg(nbd_binary());
    let finished = run(command.args(["copy", &source, "-"]).env("TO", &to), SOON);
    // Whatever the shell's blocks are, so many of them are a multiple of what is written at once.
    let end = std::fs::metadata(&to).unwrap().len();
    assert!(end > 0);
    failed(&finished, &format!("failed at offset {end}: cannot write standard output"));
}
