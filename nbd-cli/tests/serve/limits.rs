//! What it does at its limits, and what it says of them.

use std::os::unix::net::UnixStream;
use std::process::Command;

use nbd_testkit::peers;
use nbd_testkit::process::{run, wait_until};
use nbd_testkit::raw::{Info, RawClient, Wire, flag};
use nbd_testkit::server::{Runtime, Setup, Transport};

use super::{LIMIT, RUNTIMES, Serving};

fn nbd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
    command.args(arguments);
    command
}

#[test]
fn a_full_server_refuses_clients_and_says_so_once() {
    for runtime in RUNTIMES {
        let arguments = ["--runtime", runtime, "--port", "0", "--max-connections", "1"];
        let server = Serving::start(arguments.into_iter().chain(["memory:1M"]));
        let mut only = RawClient::go_simple(&server.endpoint());
        assert!(!only.has_flag(flag::CAN_MULTI_CONN));
        // At once, so that they wait together.
        let mut wires = [(); 50].map(|()| Wire::connect(&server.endpoint()));
        wires.iter_mut().for_each(Wire::drain_to_eof);
        let refused = run(&mut nbd(&["info", &server.uri]), LIMIT).failure();
        assert!(refused.contains("it may have all connections that it can have"), "{refused}");
        only.read(0, 512);
        only.finish();
        server.process.terminate();
        let (code, log) = server.end();
        assert_eq!(code, Some(0), "{log}");
        let lines: Vec<&str> = log.lines().collect();
        let [first, last] = lines[..] else { panic!("not two lines: {log}") };
        assert!(first.contains("the server is full") && first.contains("--max-connections"));
        assert!(last.contains("times=50"), "{log}");
    }
}

#[test]
fn a_copy_from_a_server_of_one_connection_does_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy").display().to_string();
    let server = Serving::start(["--port", "0", "--max-connections", "1", "memory:1M"]);
    run(&mut nbd(&["copy", &server.uri, &copy]), LIMIT).success();
    if let Some(peer) = peers::require("nbdcopy") {
        run(peer.command().args([&server.uri, &copy]), LIMIT).success();
    }
    server.stop();
}

#[test]
fn descriptors_that_run_out_are_reported_once_with_a_remedy() {
    for runtime in [
        Runtime::Tokio,
        #[cfg(feature = "async-std")]
        Runtime::AsyncStd,
        Runtime::Blocking,
    ] {
        let setup = Setup { runtime, transport: Transport::Unix };
        let mut server = setup.serve().prepared_by("ulimit -n 32").arg("memory:1M").start();
        let files = server.open_files();
        let clients: Vec<Wire> = (0..60).map(|_| Wire::connect(server.endpoint())).collect();
        wait_until("it cannot accept", LIMIT, || server.stderr().contains("cannot accept"));
        drop(clients);
        wait_until("they are gone", LIMIT, || server.open_files() <= files + 2);
        // Some are still in the queue of the socket, and take descriptors when they are accepted.
        wait_until("clients are served again", LIMIT, || {
            Wire::connect(server.endpoint()).try_recv(18).is_some()
        });
        RawClient::go_simple(server.endpoint()).finish();
        server.terminate();
        assert!(server.wait_exit(LIMIT).is_some_and(|status| status.success()));
        let log = server.stderr();
        let warnings = log.lines().filter(|line| line.contains("cannot accept")).count();
        assert_eq!(warnings, 1, "{log}");
        assert!(log.contains("ulimit -n") && log.contains("--max-connections"), "{log}");
    }
}

#[test]
fn a_client_may_ask_about_each_of_many_exports() {
    let exports: Vec<String> = (0..2000).map(|number| format!("e{number}=memory:1M")).collect();
    // Over TCP their clients take 40 ms for each question.
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nbd.sock").display().to_string();
    let listen = ["--unix", &socket].into_iter();
    let server = Serving::start(listen.chain(exports.iter().map(String::as_str)));
    let mut client = RawClient::negotiate(&server.endpoint());
    client.structured_reply().unwrap();
    let listed = client.list().unwrap();
    assert_eq!(listed.len(), exports.len());
    for (name, _) in &listed {
        // As qemu-nbd --list does, and one more.
        for _ in 0..4 {
            client.info(name, &[Info::BLOCK_SIZE]).unwrap();
        }
    }
    client.finish();
    let text = run(&mut nbd(&["list", &server.uri]), LIMIT).success();
    assert_eq!(text.matches("export=").count(), exports.len());
    for (name, arguments) in [
        ("qemu-nbd", vec!["--list", "--socket", &socket]),
        ("nbdinfo", vec!["--list", &server.uri]),
    ] {
        let Some(peer) = peers::require(name) else { continue };
        let text = run(peer.command().args(arguments), LIMIT).success();
        assert!(text.contains("e1999"), "{name}: {} bytes", text.len());
    }
    server.stop();
}

#[test]
fn our_client_lists_as_many_exports_as_our_server_can_have() {
    let exports: Vec<String> = (0..17_000).map(|number| format!("{number}=memory:1")).collect();
    let server =
        Serving::start(["--port", "0"].into_iter().chain(exports.iter().map(String::as_str)));
    let text = run(&mut nbd(&["list", "--json", &server.uri]), 2 * LIMIT).success();
    assert_eq!(text.matches("\"export-name\"").count(), exports.len());
    server.stop();
}

#[test]
fn silent_clients_of_the_control_socket_delay_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control").display().to_string();
    for runtime in RUNTIMES {
        let arguments = ["--runtime", runtime, "--port", "0", "--control", &control, "memory:1M"];
        let server = Serving::start(arguments);
        let silent: Vec<UnixStream> =
            (0..100).map(|_| UnixStream::connect(&control).unwrap()).collect();
        assert_eq!(run(&mut nbd(&["bitmap", &control, "start", "a"]), LIMIT).success(), "");
        assert_eq!(run(&mut nbd(&["bitmap", &control, "list"]), LIMIT).success(), "a\n");
        drop(silent);
        server.stop();
    }
}

/// However many connections may be, the server starts if a check finds nothing.
#[test]
fn any_number_of_connections_is_taken_or_refused() {
    for runtime in RUNTIMES {
        for shift in [16, 20, 31, 32, 62, 63] {
            for number in [(1_u64 << shift) - 1, 1 << shift, u64::MAX - shift] {
                let max = number.to_string();
                let words =
                    ["--runtime", runtime, "--max-connections", &max, "--port", "0", "memory:1M"];
                let check = run(&mut nbd(&[&["serve", "--check"][..], &words].concat()), LIMIT);
                match check.status.code() {
                    Some(0) => Serving::start(words).stop(),
                    code => assert_eq!((code, runtime), (Some(64), "blocking"), "{number}"),
                }
            }
        }
    }
}
