//! `nbd+ssh://` URIs, with a script in the place of ssh.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_testkit::process::{Finished, run};
use nbd_testkit::raw::RawClient;

use super::{LIMIT, command};

/// A folder with a disk whose name means much to a shell, and a program that is run as ssh.
struct Site {
    folder: tempfile::TempDir,
}

/// What the disk is called.
const DISK: &str = "it's a \\ \"disk\";touch${IFS}hacked;$(touch${IFS}hacked)`touch${IFS}hacked`";

/// The same as a word of a command.
fn word(path: &Path) -> PathBuf {
    let text = path.to_str().unwrap().replace('\\', r"\\").replace('"', "\\\"");
    format!("\"{text}\"").into()
}

/// The same in a URI.
fn encoded(path: &Path) -> String {
    let bytes = path.to_str().unwrap().bytes();
    bytes.map(|byte| format!("%{byte:02X}")).collect()
}

impl Site {
    fn new(ssh: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("ssh");
        std::fs::write(&program, ssh).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(folder.path().join(DISK), vec![7; 1 << 20]).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn nbd(&self, arguments: &[&str]) -> Finished {
        let mut nbd = command(arguments);
        nbd.current_dir(self.folder.path()).env("NBD_SSH", self.path("ssh"));
        run(&mut nbd, LIMIT)
    }

    /// The arguments that the program got, all calls one after the other.
    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn assert_not_hacked(&self) {
        assert!(!self.path("hacked").exists());
    }
}

/// Runs what it is to run as sshd has it done: by a shell.
const RUNS: &str = r#"#!/bin/sh
printf '%s\n' "$@" >>calls
while [ "$1" != -- ]; do shift; done
shift 2
exec sh -c "$*"
"#;

/// Forwards a socket, until its input ends.
const FORWARDS: &str = r#"#!/usr/bin/python3
import os, socket, sys, threading
open("calls", "a").write("\n".join(sys.argv[1:]) + "\n")
# How many bytes each call carries before it ends.
ends = open("ends").read().split() if os.path.exists("ends") else []
open("ends", "w").write(" ".join(ends[1:]))
left = [int(ends[0]) if ends else 1 << 60]
if left[0] == 0:
    sys.exit(255)
here, there = sys.argv[sys.argv.index("-L") + 1].split(":")
listener = socket.socket(socket.AF_UNIX)
listener.bind(here)
listener.listen()
def carry(a, b):
    try:
        while data := a.recv(65536):
            left[0] -= len(data)
            if left[0] < 0:
                os._exit(255)
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        pass
def accept():
    while True:
        client, _ = listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(there)
        for pair in (client, server), (server, client):
            threading.Thread(target=carry, args=pair, daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
sys.stdin.read()
"#;

#[test]
fn a_command_on_the_other_machine_serves_each_connection() {
    let site = Site::new(RUNS);
    let (nbd, disk) = (env!("CARGO_BIN_EXE_nbd"), encoded(&word(&site.path(DISK))));
    let uri = format!(
        "nbd+ssh://alice@example.org:2222/disk?command={}%20serve%20--stdio%20disk={disk}",
        encoded(Path::new(nbd))
    );
    let finished = site.nbd(&["info", "--size", &uri]);
    assert_eq!(finished.stderr, "");
    assert_eq!(finished.success(), "1048576\n");
    let calls = site.calls();
    assert_eq!(calls[..7], ["-T", "-p", "2222", "-l", "alice", "--", "example.org"]);
    assert_eq!(calls.len(), 8, "the command is one argument: {calls:?}");
    site.nbd(&["copy", &uri, "copy"]).success();
    assert_eq!(std::fs::read(site.path("copy")).unwrap(), vec![7; 1 << 20]);
    site.assert_not_hacked();
}

#[test]
fn a_socket_on_the_other_machine_is_forwarded() {
    let site = Site::new(FORWARDS);
    let socket = site.path("a socket;touch hacked");
    let mut serve = command(["serve", "-U"]);
    serve.arg(&socket).arg(format!("disk={}", site.path(DISK).display()));
    let server = nbd_testkit::process::Background::spawn(&mut serve).unwrap();
    assert!(server.next_line(LIMIT).is_some());
    RawClient::go_simple(&nbd_testkit::Endpoint::Unix(socket.clone())).finish();
    let uri = format!("nbd+ssh://example.org/disk?socket={}", encoded(&socket));
    assert_eq!(site.nbd(&["info", "--size", &uri]).success(), "1048576\n");
    let calls = site.calls();
    assert_eq!(calls[..4], ["-T", "-o", "ExitOnForwardFailure=yes", "-L"]);
    assert!(calls[4].ends_with(&format!(":{}", socket.display())), "{calls:?}");
    assert_eq!(calls[5..], ["--", "example.org", "cat"], "it is started once");
    site.nbd(&["copy", &uri, "copy"]).success();
    assert_eq!(std::fs::read(site.path("copy")).unwrap(), vec![7; 1 << 20]);
    let said = site.nbd(&["info", &uri.replace("/disk?", "/other?")]).failure();
    assert!(said.contains("there is no export \"other\" on nbd+ssh://"), "{said}");
    site.assert_not_hacked();
}

/// Wherever in the copy it ends, or before: an attempt to reach the server starts it again.
#[test]
fn an_ssh_that_ends_is_started_again() {
    let site = Site::new(FORWARDS);
    let (socket, size) = (site.path("socket"), 4 << 20);
    let data = nbd_testkit::Pattern(7).bytes(0, size);
    std::fs::write(site.path("disk"), &data).unwrap();
    let mut serve = command(["serve", "-U"]);
    serve.arg(&socket).arg(format!("disk={}", site.path("disk").display()));
    let server = nbd_testkit::process::Background::spawn(&mut serve).unwrap();
    assert!(server.next_line(LIMIT).is_some());
    RawClient::go_simple(&nbd_testkit::Endpoint::Unix(socket.clone())).finish();
    let uri = format!("nbd+ssh://example.org/disk?socket={}", encoded(&socket));
    nbd_testkit::cases(3, |random| {
        let ends: Vec<u64> = (0..1 + random.below(3))
            .map(|_| match random.below(3) {
                0 => 0,
                1 => random.below(400),
                _ => random.below(size as u64),
            })
            .collect();
        let words: Vec<_> = ends.iter().map(u64::to_string).collect();
        std::fs::write(site.path("ends"), words.join(" ")).unwrap();
        std::fs::remove_file(site.path("calls")).ok();
        std::fs::remove_file(site.path("copy")).ok();
        site.nbd(&["copy", "--retries", "4", &uri, "copy"]).success();
        assert!(std::fs::read(site.path("copy")).unwrap() == data, "{ends:?}");
        let calls = site.calls().iter().filter(|word| *word == "cat").count();
        // Of the first one there is always something left; so few bytes get nobody anywhere.
        let in_vain = ends.iter().take_while(|bytes| **bytes < 400).count();
        assert!(calls > in_vain.max(1), "{calls} {ends:?}");
    });
}

#[test]
fn an_ssh_that_fails_is_named_with_the_uri() {
    let site = Site::new("#!/bin/sh\necho 'no route to host' >&2; exit 255\n");
    let said = site.nbd(&["info", "nbd+ssh://example.org/?socket=/run/nbd.sock"]).failure();
    assert!(said.contains("no route to host"), "{said}");
    assert!(
        said.contains("cannot reach nbd+ssh://example.org/?socket=/run/nbd.sock by ssh"),
        "{said}"
    );
    let said = site.nbd(&["info", "nbd+ssh://example.org/?command=nbd"]).failure();
    assert!(said.contains("no route to host") && said.contains("nbd+ssh://example.org/"), "{said}");
    let mut nbd = Command::new(env!("CARGO_BIN_EXE_nbd"));
    nbd.args(["info", "nbd+ssh://example.org/?command=nbd"]).env("NBD_SSH", "/no/such/ssh");
    let said = run(&mut nbd, LIMIT).failure();
    assert!(said.contains("cannot run ssh"), "{said}");
}

#[test]
fn a_uri_that_could_mean_something_else_to_ssh_is_a_usage_error() {
    let site = Site::new("#!/bin/sh\ntouch hacked\n");
    for uri in [
        "nbd+ssh://-oProxyCommand=touch%20hacked/?socket=/a",
        "nbd+ssh://host/?socket=/a:/b",
        "nbd+ssh://host/?command=-v",
        "nbd+ssh://host/?command=nbd%20%27a",
        "nbd+ssh://host/?command=a&socket=/b",
        "nbd+ssh://host/",
    ] {
        let finished = site.nbd(&["info", uri]);
        assert_eq!(finished.status.code(), Some(64), "{uri}: {}", finished.stderr);
        assert!(finished.stderr.contains("nbd+ssh://[USER@]HOST"), "{}", finished.stderr);
    }
    site.assert_not_hacked();
}
