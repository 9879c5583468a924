//! Servers see all connections of a command that succeeds end in order, also those that it had no use for any more.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nbd_testkit::process::{Background, run, wait_until};
use nbd_testkit::raw::Mode;
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::nbd_binary;
use nbd_testkit::{Random, cases};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// How long a connection that is of no use any more may take. Then it is cut off.
const GRACE: Duration = Duration::from_secs(1);

/// As many connections as there may be, however few processors there are.
const FOUR: [&str; 2] = ["-C", "4"];

/// A server that logs its clients.
struct Server {
    process: Background,
    /// Commands that took so long that their further connections may have been cut off.
    slow: usize,
}

impl Server {
    #[track_caller]
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(nbd_binary());
        command.args(["serve", "-vv"]).args(arguments);
        let process = Background::spawn(&mut command).unwrap();
        assert!(process.next_line(SOON).is_some(), "{}", process.stderr());
        Self { process, slow: 0 }
    }

    /// Runs a command that uses the server.
    #[track_caller]
    fn run(&mut self, words: &[&str], codes: &[i32]) {
        let began = Instant::now();
        let finished = run(Command::new(nbd_binary()).args(words), SOON);
        let code = finished.status.code();
        assert!(code.is_some_and(|code| codes.contains(&code)), "{words:?}: {}", finished.stderr);
        self.slow += usize::from(began.elapsed() >= GRACE);
    }

    fn count(&self, what: &str) -> usize {
        self.process.stderr().matches(what).count()
    }

    /// All clients have disconnected.
    #[track_caller]
    fn end(mut self) {
        let allowed = 3 * self.slow;
        wait_until("all of them have disconnected", SOON, || {
            self.count("a client connected") <= self.count("the client disconnected") + allowed
        });
        self.process.terminate();
        assert!(self.process.wait_exit(SOON).is_some_and(|status| status.success()));
        let log = self.process.stderr();
        let failures = ["was closed", "handshake", "close_notify", "WARN", "ERROR"];
        let failed = log.lines().filter(|line| failures.iter().any(|one| line.contains(one)));
        assert!(failed.count() <= allowed, "{} slow commands: {log}", self.slow);
    }
}

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

/// A copy of one request is over while its further connections are being made, at any moment of their handshake: the less
/// there is to be done, the earlier.
#[track_caller]
fn each_connection_is_left(serve: &[&str], uri: &dyn Fn(&str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&[serve, &["one=memory:4M", "other=memory:4M"]].concat());
    let (one, other, file) = (uri("one"), uri("other"), path(&folder, "file"));
    fs::write(&file, vec![1; 4 << 20]).unwrap();
    let commands: [&[&str]; 5] = [
        &["copy", "-T", "4", &one, "null:"],
        &["copy", "-T", "4", &file, &other],
        &["copy", "-T", "4", &other, &one],
        &["copy", "-T", "4", "--verify", &other, &one],
        &["compare", &one, &other],
    ];
    cases(12, |random: &mut Random| {
        for words in commands {
            let size = ["64k", "256k", "1M"][random.below(3) as usize];
            let (command, rest) = words.split_first().unwrap();
            let more: &[&str] = if *command == "copy" { &["--request-size", size] } else { &[] };
            server.run(&[&[*command], &FOUR[..], more, rest].concat(), &[0]);
        }
    });
    server.end();
}

#[test]
fn each_connection_is_left_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let socket = path(&folder, "socket");
    each_connection_is_left(&["-U", &socket], &|name| {
        format!("nbd+unix:///{name}?socket={socket}")
    });
}

#[cfg(feature = "tls")]
#[test]
fn each_connection_over_tls_is_left_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, pki) = (path(&folder, "socket"), path(&folder, "pki"));
    run(Command::new(nbd_binary()).args(["cert", &pki, "--name", "localhost"]), SOON).success();
    let serve = ["-U", &socket, "--tls", "require", "--tls-certificates", &pki];
    each_connection_is_left(&serve, &|name| {
        format!("nbds+unix:///{name}?socket={socket}&tls-certificates={pki}&tls-hostname=localhost")
    });
}

/// The other side lets no second client in.
#[test]
fn a_connection_to_one_side_is_left_in_order_while_the_other_side_keeps_us_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let socket = path(&folder, "socket");
    let mut export = Export::new(Mode::Extended);
    export.size = 4 << 20;
    let parked = Script::new(export.clone()).deaf();
    let full = ScriptedServer::unix([Script::new(export).enter().hold().serve(), parked]);
    let server = Server::start(&["-U", &socket, "memory:4M"]);
    let (uri, other) = (format!("nbd+unix:///?socket={socket}"), full.endpoint().uri(""));
    let words = [&["compare"], &FOUR[..], &[&uri, &other]].concat();
    let mut comparing = Background::spawn(Command::new(nbd_binary()).args(words)).unwrap();
    wait_until("it is connected twice", SOON, || server.count("a client connected") > 1);
    full.release();
    assert_eq!(comparing.wait_exit(SOON).and_then(|status| status.code()), Some(1));
    server.end();
}
