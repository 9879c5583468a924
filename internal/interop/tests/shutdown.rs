//! Starting and stopping `nbd serve`: what it prints, SIGTERM, the drain (S-TRM-03, S-END-02, S-ORD-05).

use std::time::{Duration, Instant};

use nbd_interop::{MIB, MODES, assert_serves};
use nbd_testkit::process::{run, wait_until};
use nbd_testkit::raw::{
    Cmd, Errno, Mode, Opt, RawClient, Rep, Request, Wire, some_attempt, unless_late,
};
use nbd_testkit::server::{NbdServe, Serve, Setup, Transport};
use nbd_testkit::{Endpoint, Pattern, SOON, assert_same_bytes, matrix, own_ip};

matrix! {
    tcp_and_unix: [
        sigterm_ends_an_idle_server,
        sigterm_ends_a_server_with_idle_clients,
        requests_in_flight_are_answered_before_the_end,
        no_new_clients_are_taken_after_sigterm,
        requests_after_sigterm_are_refused_or_cut_off,
        a_client_that_never_reads_cannot_prevent_the_end,
        a_client_in_mid_request_cannot_prevent_the_end,
    ],
    unix: [
        options_after_sigterm_are_err_shutdown,
        the_socket_is_removed_at_the_end,
        written_data_is_in_the_file_after_sigterm,
        sigint_ends_the_server_like_sigterm,
        several_addresses_are_served_and_announced,
        a_missing_file_is_reported_and_fails,
        an_address_in_use_is_reported_and_fails,
    ],
}

/// A drain that healthy clients don't see the end of, however busy the machine is.
const LONG: [&str; 2] = ["--drain-timeout", "1h"];

/// How long a server that drains answers clients that have nothing in flight.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(200);

/// Offsets of reads of 1 MiB: together more than sockets hold, so that most of them are in flight until the client
/// takes the replies.
const LOAD: [u64; 32] = {
    let mut offsets = [0; 32];
    let mut index = 0;
    while index < offsets.len() {
        offsets[index] = index as u64 * 60_013;
        index += 1;
    }
    offsets
};

/// A server in the making, by TCP at an address of its own: where it has listened nobody else does.
fn serve(setup: Setup) -> Serve {
    match setup.transport {
        Transport::Unix => setup.serve(),
        Transport::Tcp => {
            let address = own_ip().to_string();
            setup.serve().listening(["--port", "0", "--ip-addr", &address])
        }
    }
}

/// The server must end by itself, successfully.
#[track_caller]
fn assert_ends(server: &mut NbdServe) {
    let status = server.wait_exit(SOON).expect("the server ends");
    assert!(status.success(), "the server ended with {status}");
}

/// The server must end by itself, and report that it has cut off requests; gives how many.
#[track_caller]
fn requests_cut_off(server: &mut NbdServe) -> usize {
    let status = server.wait_exit(SOON).expect("the drain is over by then");
    let log = server.stderr();
    assert_eq!(status.code(), Some(3), "{log}");
    let number = log.split_once("cut off ").and_then(|(_, rest)| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{log}"))
}

/// Waits until the signal has arrived: nothing listens any more.
#[track_caller]
fn wait_for_drain(server: &mut NbdServe) {
    let endpoint = server.endpoint().clone();
    wait_until("the server stops listening", SOON, || {
        !server.is_running() || Wire::try_connect(&endpoint).is_err()
    });
}

/// Exit status 0, at once.
fn sigterm_ends_an_idle_server(setup: Setup) {
    let mut server = setup.serving("memory:1M");
    assert_serves(&server);
    server.terminate();
    assert_ends(&mut server);
}

/// SIGINT is what a terminal sends.
fn sigint_ends_the_server_like_sigterm(setup: Setup) {
    let mut server = setup.serving("memory:1M");
    assert_serves(&server);
    server.interrupt();
    assert_ends(&mut server);
}

/// S-END-02: clients that have nothing under way are no reason to wait longer than the drain allows.
fn sigterm_ends_a_server_with_idle_clients(setup: Setup) {
    let mut server = setup.serve().args(["--drain-timeout", "1s", "memory:1M"]).start();
    let mut clients = vec![RawClient::connect(server.endpoint())];
    clients.push(RawClient::negotiate(server.endpoint()));
    for mode in MODES {
        let mut client = RawClient::go_in(mode, server.endpoint());
        client.read(0, 512);
        clients.push(client);
    }
    server.terminate();
    assert_ends(&mut server);
    for mut client in clients {
        client.wire().drain_to_eof();
    }
}

/// S-END-02: replies to what had arrived are complete: with data, or ESHUTDOWN.
fn requests_in_flight_are_answered_before_the_end(setup: Setup) {
    for mode in MODES {
        let mut server = serve(setup).args(LONG).arg("memory:4M").start();
        let data = Pattern(1).bytes(0, 4 * MIB as usize);
        let mut client = RawClient::go_in(mode, server.endpoint());
        client.write(0, &data);
        let cookies = client.send_all(&LOAD.map(|offset| Request::read(offset, MIB)));
        let first = client.reply_to(cookies[0]).data();
        assert_same_bytes(&first, &data[..MIB as usize], "read before the signal");
        server.terminate();
        wait_for_drain(&mut server);
        for (cookie, offset) in cookies.into_iter().zip(LOAD).skip(1) {
            let reply = client.reply_to(cookie);
            match reply.error() {
                Some(error) => assert_eq!(error, Errno::ESHUTDOWN),
                None => {
                    let start = offset as usize;
                    let expected = &data[start..start + MIB as usize];
                    assert_same_bytes(&reply.data(), expected, "read during the drain");
                }
            }
        }
        client.wire().drain_to_eof();
        assert_ends(&mut server);
    }
}

/// A server that is about to end is not there for new clients, though an old one keeps it from ending.
fn no_new_clients_are_taken_after_sigterm(setup: Setup) {
    let (mut server, mut client) = draining(setup, Mode::Simple);
    assert!(server.is_running(), "requests are in flight");
    assert!(Wire::try_connect(server.endpoint()).is_err());
    client.drain();
    assert_ends(&mut server);
}

/// A server that got SIGTERM, kept from ending by a client with unread replies.
#[track_caller]
fn draining(setup: Setup, mode: Mode) -> (NbdServe, RawClient) {
    let mut server = serve(setup).args(LONG).arg("memory:4M").start();
    let mut client = RawClient::go_in(mode, server.endpoint());
    client.write(0, &vec![7; 4 * MIB as usize]);
    let first = client.send_all(&LOAD.map(|offset| Request::read(offset, MIB)))[0];
    client.reply_to(first).ok();
    server.terminate();
    wait_for_drain(&mut server);
    (server, client)
}

/// S-END-02: a request that comes after the signal gets ESHUTDOWN, or the connection has ended. A connection may learn
/// of the signal a moment after the listener has closed; it must not go on as if nothing had happened.
fn requests_after_sigterm_are_refused_or_cut_off(setup: Setup) {
    for mode in MODES {
        let (mut server, mut client) = draining(setup, mode);
        let start = Instant::now();
        let mut served = true;
        while served {
            assert!(start.elapsed() < SOON, "the server goes on serving");
            let mut late = Vec::new();
            let cookie = client.stage(&Request::write(0, b"late"), &mut late);
            // The connection may be gone already.
            let _ = client.wire().try_send(&late);
            served = false;
            while let Some(reply) = client.next_reply() {
                if reply.cookie == cookie {
                    served = reply.error().is_none();
                    assert!(matches!(reply.error(), None | Some(Errno::ESHUTDOWN)), "{reply:?}");
                    break;
                }
            }
        }
        drop(client);
        assert_ends(&mut server);
    }
}

/// S-TRM-03: a client that is in the option phase still gets a clear answer, for a moment.
fn options_after_sigterm_are_err_shutdown(setup: Setup) {
    some_attempt(|| {
        let mut server = serve(setup).args(LONG).arg("memory:4M").start();
        let mut busy = RawClient::go_simple(server.endpoint());
        let mut negotiating = RawClient::negotiate(server.endpoint());
        negotiating.info("", &[]).unwrap();
        busy.send_all(&LOAD.map(|offset| Request::read(offset, MIB)));
        let refused = unless_late(SHUTDOWN_GRACE, || {
            server.terminate();
            wait_for_drain(&mut server);
            // A connection may learn of the signal a moment after the listener has closed.
            while negotiating.list().is_ok() {}
            assert_eq!(negotiating.option_error(Opt::LIST, &[]), Rep::ERR_SHUTDOWN);
            assert_eq!(negotiating.go("", &[]).unwrap_err().code, Rep::ERR_SHUTDOWN);
            negotiating.finish();
        });
        busy.drain();
        assert_ends(&mut server);
        refused
    });
}

/// `--drain-timeout` bounds the wait for a client that does not take its replies.
fn a_client_that_never_reads_cannot_prevent_the_end(setup: Setup) {
    let mut server = setup.serve().args(["--drain-timeout", "1s", "memory:4M"]).start();
    let mut client = RawClient::go_simple(server.endpoint());
    let cookies = client.send_all(&LOAD.map(|offset| Request::read(offset, MIB)));
    // Later requests are refused after the signal, and the answers to those fit into the sockets.
    client.wire().recv(1, "the beginning of a reply");
    let start = Instant::now();
    server.terminate();
    // The first ones fit into the sockets.
    assert!((1..=cookies.len()).contains(&requests_cut_off(&mut server)));
    // By default it would wait for 10 s.
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
}

/// Likewise for one that owes the rest of a request.
fn a_client_in_mid_request_cannot_prevent_the_end(setup: Setup) {
    some_attempt(|| {
        let mut server = setup.serve().args(["--drain-timeout", "1s", "memory:1M"]).start();
        let write = Request::write(0, &[7; 10_000]).encode(Mode::Simple, 1);
        let _clients = [1, 27, 28, 29, 5000].map(|cut| {
            let mut client = RawClient::go_simple(server.endpoint());
            client.wire().send(&write[..cut]);
            client
        });
        server.terminate();
        // Those of which the header has arrived: on a busy machine some may not be received before the signal.
        let cut_off = requests_cut_off(&mut server);
        assert!(cut_off <= 3, "{cut_off}");
        (cut_off == 3).then_some(())
    });
}

/// No stale socket is left for the next server to stumble over.
fn the_socket_is_removed_at_the_end(setup: Setup) {
    let mut server = setup.serving("memory:1M");
    let socket = server.endpoint().socket_path().expect("a Unix socket").to_owned();
    assert!(socket.exists());
    server.terminate();
    assert_ends(&mut server);
    assert!(!socket.exists(), "{socket:?} is still there");
}

/// S-ORD-05: a clean end loses nothing, without a FLUSH, too.
fn written_data_is_in_the_file_after_sigterm(setup: Setup) {
    let serve = setup.serve();
    let path = serve.dir().join("image");
    std::fs::write(&path, vec![0; MIB as usize]).unwrap();
    let mut server = serve.arg(path.to_str().unwrap()).start();
    let data = Pattern(2).bytes(0, 500_000);
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(4097, &data);
    client.send(&Request::new(Cmd::DISC, 0, 0));
    client.wire().expect_eof();
    server.terminate();
    assert_ends(&mut server);
    let file = std::fs::read(&path).unwrap();
    assert_same_bytes(&file[4097..504_097], &data, "file");
}

/// One line for each address, and each serves the same export.
fn several_addresses_are_served_and_announced(setup: Setup) {
    let listen = ["--port", "0", "--ip-addr", "127.0.0.1", "--ip-addr", "127.0.0.2"];
    let server = setup.serve().listening(listen).arg("memory:1M").start();
    let second = server.next_line(SOON).expect("a line for each address");
    let second = Endpoint::parse(&second).unwrap_or_else(|| panic!("{second:?} is no URI"));
    assert_ne!(server.endpoint(), &second);
    for (endpoint, expected) in [(server.endpoint(), b"\0"), (&second, b"x")] {
        let mut client = RawClient::go_simple(endpoint);
        assert_eq!(client.read(0, 1), expected);
        client.write(0, b"x");
        client.finish();
    }
}

/// A server that cannot serve says why and fails, before it says that it listens.
fn a_missing_file_is_reported_and_fails(setup: Setup) {
    let serve = setup.serve();
    let path = serve.dir().join("nosuch");
    let finished = run(&mut serve.arg(path.to_str().unwrap()).command(), SOON);
    assert_eq!(finished.stdout, "");
    let message = finished.failure();
    assert!(message.contains("nosuch"), "{message}");
}

/// Two servers cannot listen on one port.
fn an_address_in_use_is_reported_and_fails(setup: Setup) {
    let first = Setup { transport: Transport::Tcp, ..setup }.serving("memory:1M");
    let Endpoint::Tcp(address) = first.endpoint() else { panic!("TCP was asked for") };
    let port = address.port().to_string();
    let second = setup.serve().listening(["--port", &port, "--ip-addr", "127.0.0.1"]);
    let second = second.arg("memory:1M");
    let finished = run(&mut second.command(), SOON);
    assert_eq!(finished.stdout, "");
    assert_ne!(finished.failure(), "");
    assert_serves(&first);
}
