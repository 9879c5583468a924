//! Other implementations of NBD on this machine.
//!
//! With `CI=true` in the environment a missing one fails the test; elsewhere the test says so and is skipped.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process::{Background, run, wait_until};
use crate::raw::Wire;
use crate::{Endpoint, SOON};

/// The peers: program, Debian package, argument that makes it tell its version.
const KNOWN: &[(&str, &str, &str)] = &[
    ("nbdkit", "nbdkit", "--version"),
    ("qemu-nbd", "qemu-utils", "--version"),
    ("qemu-img", "qemu-utils", "--version"),
    ("qemu-io", "qemu-utils", "--version"),
    ("nbdinfo", "libnbd-bin", "--version"),
    ("nbdcopy", "libnbd-bin", "--version"),
    ("fio", "fio", "--version"),
    ("nbd-server", "nbd-server", "-V"),
    // Not of NBD: it shows the system's sockets.
    ("ss", "iproute2", "-V"),
    ("hexdump", "bsdextrautils", "--version"),
    // No peer in NBD, but in TLS.
    ("openssl", "openssl", "version"),
    ("curl", "curl", "--version"),
    // What people type in, and what shows them the manual pages.
    ("zsh", "zsh", "--version"),
    ("fish", "fish", "--version"),
    ("man", "man-db", "--version"),
    ("mandoc", "mandoc", "-?"),
    // They make file systems and swap space.
    ("mke2fs", "e2fsprogs", "-V"),
    ("mkswap", "util-linux", "--version"),
    // It starts services.
    ("systemd-analyze", "systemd", "--version"),
];

/// The system's Python: libnbd's module is installed for that one.
const PYTHON: &str = "/usr/bin/python3";

/// A program that is there.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// First line of what it says of its version.
    pub version: String,
}

impl Peer {
    /// A command that runs it.
    pub fn command(&self) -> Command {
        Command::new(&self.path)
    }

    /// First number of the version, such as 10 of `qemu-nbd 10.0.2`.
    pub fn major(&self) -> Option<u32> {
        let mut words = self.version.split(|c: char| !c.is_ascii_digit());
        words.find(|word| !word.is_empty()).and_then(|word| word.parse().ok())
    }
}

/// Looks for a peer.
#[track_caller]
pub fn find(name: &str) -> Option<Peer> {
    let &(name, _, argument) = known(name);
    let search = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&search).map(|dir| dir.join(name)).find(|path| path.is_file());
    let path = path?;
    let answer = run(Command::new(&path).arg(argument), SOON);
    let text = if answer.stdout.is_empty() { answer.stderr } else { answer.stdout };
    let version = text.lines().next().unwrap_or_default().to_owned();
    Some(Peer { name, path, version })
}

#[track_caller]
fn known(name: &str) -> &'static (&'static str, &'static str, &'static str) {
    KNOWN.iter().find(|(known, ..)| *known == name).expect("a peer that this module knows")
}

/// The peer, or nothing if the test is to return because it is missing.
#[track_caller]
pub fn require(name: &str) -> Option<Peer> {
    let peer = find(name);
    match &peer {
        Some(peer) => eprintln!("peer: {}", peer.version),
        None => missing(name, known(name).1),
    }
    peer
}

/// libnbd's Python module: gives the interpreter.
#[track_caller]
pub fn require_python_libnbd() -> Option<Command> {
    let installed = PathBuf::from(PYTHON).is_file()
        && run(Command::new(PYTHON).args(["-c", "import nbd"]), SOON).status.success();
    if !installed {
        missing("libnbd for Python", "python3-libnbd");
        return None;
    }
    Some(Command::new(PYTHON))
}

/// Reports that the test needs a program that is missing, as [`skip`] does.
#[track_caller]
pub fn missing(what: &str, package: &str) {
    skip(&format!("{what} is not installed (apt-get install {package})"));
}

/// Reports that the test, or a part of it, can't be carried out on this machine. Fails in CI; elsewhere writes it past
/// the capture of a test's output, so that it is seen.
#[track_caller]
pub fn skip(why: &str) {
    let notice = skip_notice(why, std::env::var("CI").as_deref() == Ok("true"));
    let _ = std::io::stderr().write_all(notice.as_bytes());
}

#[track_caller]
fn skip_notice(why: &str, in_ci: bool) -> String {
    assert!(!in_ci, "no test is skipped in CI: {why}");
    format!("SKIPPED: {why}\n")
}

/// A peer's server on a Unix socket; killed when dropped.
#[derive(Debug)]
pub struct PeerServer {
    _process: Process,
    endpoint: Endpoint,
    _dir: TempDir,
}

#[derive(Debug)]
#[expect(dead_code, reason = "kept for their drop")]
enum Process {
    Child(Background),
    Daemon(Daemon),
}

/// A process that left its parent, by its number.
#[derive(Debug)]
struct Daemon(Pid);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It ends its children, and keeps nothing that would have to be saved.
        let _gone = kill_process(self.0, Signal::TERM);
    }
}

impl PeerServer {
    /// Starts a peer's server, which `prepare` tells where to listen, and waits until it does.
    #[track_caller]
    pub fn start(peer: &Peer, prepare: impl FnOnce(&mut Command, &str)) -> Self {
        let dir = TempDir::new().expect("a folder for the socket");
        let socket = dir.path().join("peer.sock");
        let mut command = peer.command();
        prepare(&mut command, &socket.to_string_lossy());
        let process =
            Background::spawn(&mut command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let endpoint = Endpoint::Unix(socket);
        wait_until("the peer listens", SOON, || {
            assert!(process.is_running(), "{command:?} ended: {}", process.stderr());
            Wire::try_connect(&endpoint).is_ok()
        });
        Self { _process: Process::Child(process), endpoint, _dir: dir }
    }

    /// nbd-server with a configuration of exports, which it serves as a daemon: without one it serves a single client.
    #[track_caller]
    pub fn nbd_server(peer: &Peer, exports: &str) -> Self {
        let dir = TempDir::new().expect("a folder for the socket");
        let (socket, number) = (dir.path().join("peer.sock"), dir.path().join("pid"));
        let config = dir.path().join("config");
        let generic = format!("[generic]\nunixsock = {}\nallowlist = true\n", socket.display());
        std::fs::write(&config, generic + exports).expect("the folder is ours");
        let mut command = peer.command();
        command.arg("-C").arg(&config).arg("-p").arg(&number);
        run(&mut command, SOON).success();
        let mut process = None;
        wait_until("nbd-server has written its number", SOON, || {
            let text = std::fs::read_to_string(&number).unwrap_or_default();
            process = text.trim().parse().ok().and_then(Pid::from_raw);
            process.is_some()
        });
        let daemon = Daemon(process.expect("it was waited for"));
        let endpoint = Endpoint::Unix(socket);
        wait_until("nbd-server listens", SOON, || Wire::try_connect(&endpoint).is_ok());
        Self { _process: Process::Daemon(daemon), endpoint, _dir: dir }
    }

    /// nbdkit with a plugin and its parameters.
    #[track_caller]
    pub fn nbdkit(peer: &Peer, args: &[&str]) -> Self {
        Self::start(peer, |command, socket| {
            command.args(["--foreground", "--unix", socket]).args(args);
        })
    }

    /// qemu-nbd serving raw files and the like, to any number of clients.
    #[track_caller]
    pub fn qemu_nbd(peer: &Peer, args: &[&str]) -> Self {
        Self::start(peer, |command, socket| {
            command.args(["--socket", socket, "--persistent", "--shared=0"]).args(args);
        })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elsewhere_a_skipped_test_says_why() {
        assert_eq!(skip_notice("there is no disk", false), "SKIPPED: there is no disk\n");
    }

    #[test]
    #[should_panic(expected = "no test is skipped in CI")]
    fn in_ci_what_is_missing_is_a_failure() {
        skip_notice("there is no disk", true);
    }

    #[test]
    fn the_version_is_the_first_number() {
        let peer = |version: &str| Peer {
            name: "qemu-nbd",
            path: PathBuf::new(),
            version: version.to_owned(),
        };
        assert_eq!(peer("qemu-nbd 10.0.2 (Debian 1:10.0.2)").major(), Some(10));
        assert_eq!(peer("no number").major(), None);
    }
}
