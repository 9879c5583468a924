//! Servers see all connections of a command end in order, also those that it had no use for any more.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::process::{Background, run, wait_until};
use nbd_testkit::server::nbd_binary;
use nbd_testkit::{Random, cases};

const SOON: Duration = Duration::from_secs(60);

/// A copy of one request is over while its further connections are being made, at any moment of their handshake: the less
/// there is to be done, the earlier.
#[track_caller]
fn each_connection_is_left(serve: &[&str], uri: &dyn Fn(&str) -> String) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let mut command = Command::new(nbd_binary());
    command.args(["serve", "-vv"]).args(serve).args(["one=memory:4M", "other=memory:4M"]);
    let mut server = Background::spawn(&mut command).unwrap();
    assert!(server.next_line(SOON).is_some(), "{}", server.stderr());
    fs::write(path("file"), vec![1; 4 << 20]).unwrap();
    let (one, other, file) = (uri("one"), uri("other"), path("file"));
    let commands: [&[&str]; 5] = [
        &["copy", &one, "null:"],
        &["copy", &file, &other],
        &["copy", &other, &one],
        &["copy", "--verify", &other, &one],
        &["compare", &one, &other],
    ];
    cases(12, |random: &mut Random| {
        for words in commands {
            let size = ["64k", "256k", "1M"][random.below(3) as usize];
            let (command, rest) = words.split_first().unwrap();
            let more: &[&str] = if *command == "copy" { &["--request-size", size] } else { &[] };
            let all = [&[*command], more, rest].concat();
            run(Command::new(nbd_binary()).args(&all), SOON).success();
        }
    });
    let count = |what: &str| server.stderr().matches(what).count();
    wait_until("all of them have ended", SOON, || {
        count("a client connected") == count("the client disconnected")
    });
    server.terminate();
    assert!(server.wait_exit(SOON).is_some_and(|status| status.success()));
    let log = server.stderr();
    for failure in ["was closed", "handshake failed", "close_notify", "WARN", "ERROR"] {
        assert!(!log.contains(failure), "{failure}: {log}");
    }
}

#[test]
fn each_connection_is_left_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket").display().to_string();
    each_connection_is_left(&["-U", &socket], &|name| {
        format!("nbd+unix:///{name}?socket={socket}")
    });
}

#[cfg(feature = "tls")]
#[test]
fn each_connection_over_tls_is_left_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (socket, pki) = (path("socket"), path("pki"));
    run(Command::new(nbd_binary()).args(["cert", &pki, "--name", "localhost"]), SOON).success();
    let serve = ["-U", &socket, "--tls", "require", "--tls-certificates", &pki];
    each_connection_is_left(&serve, &|name| {
        format!("nbds+unix:///{name}?socket={socket}&tls-certificates={pki}&tls-hostname=localhost")
    });
}
