//! How it ends.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nbd_testkit::process::{Background, run, wait_until};
use nbd_testkit::raw::{RawClient, Request, Wire};
use nbd_testkit::{Random, cases, own_ip};

use super::{LIMIT, RUNTIMES, Serving, serve};

/// A server, and a client in the middle of a request that will never be whole: the drain would take an hour.
fn with_a_stuck_client(runtime: &str) -> (Serving, RawClient) {
    let arguments = ["--runtime", runtime, "--port", "0", "--drain-timeout", "1h", "memory:1M"];
    // Nobody else listens there once it does not.
    let address = ["--ip-addr".to_owned(), own_ip().to_string()];
    let server = Serving::start(arguments.map(str::to_owned).into_iter().chain(address));
    let mut client = RawClient::go_simple(&server.endpoint());
    // In one piece with a read, so that the reply to that says that the server knows of the write as well.
    let mut bytes = Vec::new();
    let read = client.stage(&Request::read(0, 8), &mut bytes);
    client.stage(&Request { length: 4096, ..Request::write(0, &[1; 100]) }, &mut bytes);
    client.wire().send(&bytes);
    client.reply_to(read).ok();
    (server, client)
}

/// Waits until a signal has arrived: nothing listens any more.
fn expect_closed_listener(server: &Serving) {
    let endpoint = server.endpoint();
    wait_until("the server stops listening", LIMIT, || Wire::try_connect(&endpoint).is_err());
}

#[test]
fn sigterm_and_sigint_end_it_well_while_connections_are_open() {
    for runtime in RUNTIMES {
        for interrupt in [false, true] {
            let server = Serving::start(["--runtime", runtime, "--port", "0", "memory:1M"]);
            let mut negotiating = RawClient::negotiate(&server.endpoint());
            let mut idle = RawClient::go_simple(&server.endpoint());
            idle.read(0, 512);
            if interrupt {
                server.process.interrupt();
            } else {
                server.process.terminate();
            }
            negotiating.wire().expect_eof();
            idle.wire().expect_eof();
            assert_eq!(server.end(), (Some(0), String::new()), "{runtime}");
        }
    }
}

/// What nobody flushed is in the overlay file when the server has ended, and the request log has every line, whatever the
/// server ended by.
#[test]
fn an_orderly_end_loses_nothing_of_overlays_and_request_logs() {
    cases(12, |random| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let size = 1 + random.below(1 << 20);
        let mut model: Vec<u8> = (0..size).map(|_| random.next() as u8).collect();
        fs::write(path("base"), &model).unwrap();
        let arguments = |mut command: Command| {
            command.current_dir(folder.path());
            command.args(["--layer", "overlay:changes", "--layer", "log:lines", "base"]);
            command
        };
        let runtime = random.of(&RUNTIMES);
        let mut lines = 0;
        let mut write = |client: &mut RawClient, random: &mut Random| {
            for _ in 0..random.below(20) {
                let offset = random.below(size);
                let length = 1 + random.below((size - offset).min(100_000));
                let data: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                model[offset as usize..][..data.len()].copy_from_slice(&data);
                client.call(&Request::write(offset, &data)).ok();
                lines += 1;
            }
        };
        let stays_connected = random.one_in(2);
        if random.one_in(3) {
            let mut command = arguments(serve(["--runtime", runtime, "--stdio"]));
            let (own, other) = UnixStream::pair().unwrap();
            command.stdin(OwnedFd::from(other.try_clone().unwrap())).stdout(OwnedFd::from(other));
            let mut server = command.spawn().unwrap();
            drop(command);
            let mut client = RawClient::over(Wire::from_unix(own));
            client.read_greeting();
            client.send_client_flags(3);
            client.go("", &[]).unwrap();
            write(&mut client, random);
            client.finish();
            assert_eq!(server.wait().unwrap().code(), Some(0));
        } else {
            let words = ["--runtime", runtime, "--unix", "socket"];
            let server = Serving::spawn(&mut arguments(serve(words)));
            let mut client = RawClient::go_simple(&server.endpoint());
            write(&mut client, random);
            let client = stays_connected.then_some(client);
            server.stop();
            drop(client);
        }
        let logged = fs::read_to_string(path("lines")).unwrap_or_default();
        assert_eq!(logged.matches(" write ").count(), lines, "{runtime}");
        let server = Serving::spawn(&mut arguments(serve(["--unix", "socket"])));
        let mut client = RawClient::go_simple(&server.endpoint());
        assert!(client.read(0, size) == model, "{runtime}: something is lost");
        client.finish();
        server.stop();
    });
}

/// Longer than a signal may take to come once more and be the same one.
const ECHO: Duration = Duration::from_millis(300);

/// On a busy machine the server may be late to look, and what has come by then is still the first one.
#[test]
fn a_second_signal_ends_it_at_once() {
    for runtime in RUNTIMES {
        for (second, code) in [(Background::terminate as fn(&_), 15), (Background::interrupt, 2)] {
            let (server, _client) = with_a_stuck_client(runtime);
            server.process.terminate();
            expect_closed_listener(&server);
            let ends = || {
                thread::sleep(ECHO);
                second(&server.process);
                thread::sleep(ECHO);
                !server.process.is_running()
            };
            assert!((0..20).any(|_| ends()), "{runtime}");
            assert_eq!(server.end().0, Some(128 + code), "{runtime}");
        }
    }
}

#[test]
fn the_first_signal_lets_requests_in_flight_finish() {
    for runtime in RUNTIMES {
        // On a busy machine the other one may come later.
        let as_timeout_sends_it = || {
            let (server, client) = with_a_stuck_client(runtime);
            let began = Instant::now();
            server.process.terminate();
            thread::sleep(Duration::from_millis(1));
            // To its process group, once more.
            server.process.terminate();
            (began.elapsed() < Duration::from_millis(100)).then_some((server, client))
        };
        let (server, mut client) =
            (0..100).find_map(|_| as_timeout_sends_it()).expect("a moment of peace");
        expect_closed_listener(&server);
        client.wire().send(&[1; 4096 - 100]);
        client.drain().into_iter().for_each(|reply| drop(reply.ok()));
        client.wire().expect_eof();
        assert_eq!(server.end().0, Some(0), "{runtime}");
    }
}

#[test]
fn the_drain_timeout_ends_what_does_not_finish() {
    for runtime in RUNTIMES {
        let arguments =
            ["--runtime", runtime, "--port", "0", "--drain-timeout", "50ms", "memory:1M"];
        let server = Serving::start(arguments);
        let mut client = RawClient::go_simple(&server.endpoint());
        client.read(0, 512);
        client.send(&Request { length: 4096, ..Request::write(0, &[1; 100]) });
        server.process.terminate();
        client.wire().expect_eof();
        let says = "nbd: cut off 1 request that did not finish within 50ms (--drain-timeout)\n";
        assert_eq!(server.end(), (Some(3), says.into()), "{runtime}");
    }
}

#[test]
fn requests_that_are_cut_off_are_counted() {
    for runtime in RUNTIMES {
        let arguments =
            ["--runtime", runtime, "--port", "0", "--drain-timeout", "50ms", "memory:32M"];
        let server = Serving::start(arguments);
        // More than sockets hold, of which nothing is read.
        let clients: Vec<RawClient> = [3, 4]
            .into_iter()
            .map(|requests| {
                let mut client = RawClient::go_simple(&server.endpoint());
                client.write(0, &vec![1; 16 << 20]);
                let replies = client.send_all(&vec![Request::read(0, 16 << 20); requests]);
                // They are under way.
                client.wire().recv(1, "the first byte of a reply");
                assert_eq!(replies.len(), requests);
                client
            })
            .collect();
        server.process.terminate();
        let (code, said) = server.end();
        assert_eq!(code, Some(3), "{runtime}: {said}");
        assert!(said.contains("cut off 7 requests"), "{runtime}: {said}");
        drop(clients);
    }
}

#[test]
fn a_hang_up_and_a_quit_end_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    for runtime in RUNTIMES {
        for hang_up in [true, false] {
            let arguments = ["--runtime", runtime, "--unix", path.to_str().unwrap(), "memory:1M"];
            let server = Serving::start(arguments);
            let mut idle = RawClient::go_simple(&server.endpoint());
            idle.read(0, 512);
            match hang_up {
                true => server.process.hang_up(),
                false => server.process.quit(),
            }
            idle.wire().expect_eof();
            assert_eq!(server.end(), (Some(0), String::new()), "{runtime}");
            assert!(!path.exists(), "the socket stays");
        }
    }
}

#[test]
fn a_second_hang_up_does_not_cut_requests_off() {
    let (server, mut client) = with_a_stuck_client("tokio");
    server.process.hang_up();
    expect_closed_listener(&server);
    // At once, and when it would be a second signal if it were another one.
    for _ in 0..4 {
        server.process.hang_up();
        thread::sleep(ECHO);
    }
    client.wire().send(&[1; 4096 - 100]);
    client.drain().into_iter().for_each(|reply| drop(reply.ok()));
    client.wire().expect_eof();
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn a_hang_up_that_is_ignored_stays_ignored() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" serve --port 0 memory:1M"]);
    let process = Background::spawn(shell.arg(env!("CARGO_BIN_EXE_nbd"))).unwrap();
    let uri = process.next_line(LIMIT).expect("it says where it listens");
    let server = Serving { process, uri };
    server.process.hang_up();
    RawClient::go_simple(&server.endpoint()).finish();
    server.stop();
}

#[test]
fn the_unix_socket_is_removed_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    for runtime in RUNTIMES {
        let socket = path.to_str().unwrap();
        let server = Serving::start(["--runtime", runtime, "--unix", socket, "memory:1M"]);
        assert!(path.exists());
        server.stop();
        assert!(!path.exists(), "{runtime}");
    }
}

#[test]
fn nothing_is_logged_unless_asked_for() {
    for runtime in RUNTIMES {
        for (verbosity, logged) in [("--runtime", false), ("-v", true), ("-vv", true)] {
            let mut arguments = vec!["--runtime", runtime, "--port", "0", "memory:1M"];
            if logged {
                arguments.push(verbosity);
            }
            let server = Serving::start(arguments);
            // A client that breaks the protocol.
            let mut wire = Wire::connect(&server.endpoint());
            wire.send(&[0xff; 4]);
            wire.drain_to_eof();
            RawClient::go_simple(&server.endpoint()).finish();
            server.process.terminate();
            let (code, log) = server.end();
            assert_eq!(code, Some(0), "{runtime}");
            assert_eq!(!log.is_empty(), logged, "{runtime} {verbosity}: {log}");
        }
    }
}

#[test]
fn clients_that_hang_up_on_the_control_socket_are_not_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control").display().to_string();
    let server = Serving::start(["--port", "0", "--control", &control, "memory:1M"]);
    // The first says nothing, the second not all of it, the third does not wait for the answer.
    for request in [&b""[..], b"\xff", b"list\n"] {
        UnixStream::connect(&control).unwrap().write_all(request).unwrap();
    }
    let mut bitmap = Command::new(env!("CARGO_BIN_EXE_nbd"));
    assert_eq!(run(bitmap.args(["bitmap", &control, "list"]), LIMIT).success(), "");
    server.stop();
}
