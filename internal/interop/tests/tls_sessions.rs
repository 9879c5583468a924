//! What holds of all sessions holds inside of TLS: shutdown, many clients, clients that do not read, deadlines.

use std::time::Duration;

use nbd_blocking::export::{ExportMap, Memory};
use nbd_blocking::tls::{ClientCertificates, ServerTlsMode, TlsServer};
use nbd_blocking::{Server, ServerConfig};
use nbd_interop::certificates::Certificates;
use nbd_interop::{MIB, assert_serves_over_tls, over_tls};
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Cmd, Mode, Opt, RawClient, Request, in_time};
use nbd_testkit::server::{NbdServe, Setup};
use nbd_testkit::{Endpoint, Pattern, SOON, assert_same_bytes, matrix};
use rustls::version::{TLS12, TLS13};

matrix! {
    tcp_and_unix: [
        requests_in_flight_are_answered_at_shutdown,
        many_clients_are_served_at_once,
    ],
    unix: [
        a_client_that_reads_nothing_costs_no_more_than_a_bound,
        requests_in_every_size_and_order_are_answered,
        clients_that_stay_make_no_server_spin,
    ],
}

/// An image, so that data travels and not holes.
fn serving(setup: Setup, certificates: &Certificates) -> NbdServe {
    let image = certificates.file("image");
    std::fs::write(&image, Pattern(1).bytes(0, 4 << 20)).expect("the folder is ours");
    let common = ["--tls", "require", "--tls-certificates", certificates.path()];
    setup.serve().args(common).arg(image.to_str().expect("plain")).start()
}

fn requests_in_flight_are_answered_at_shutdown(setup: Setup) {
    let certificates = Certificates::new();
    let mut server = serving(setup, &certificates);
    let mut client = over_tls(&server, &certificates, &TLS13);
    client.go("", &[]).expect("it is there");
    let requests: Vec<_> = (0..8).map(|at| Request::new(Cmd::READ, at << 18, 1 << 18)).collect();
    let cookies = client.send_all(&requests);
    // The first reply shows that the server has begun with them; all of them had come by then.
    let first = client.next_reply().expect("a reply");
    server.terminate();
    let mut replies = vec![first];
    replies.extend(client.drain());
    assert_eq!(replies.len(), cookies.len());
    for reply in replies {
        let at = cookies.iter().position(|cookie| *cookie == reply.cookie).expect("ours");
        let data = reply.data();
        assert_same_bytes(&data, &Pattern(1).bytes((at as u64) << 18, 1 << 18), "a reply");
    }
    // The server ends TLS before it closes.
    client.wire().drain_to_eof();
    let status = server.wait_exit(SOON).expect("the server ends");
    assert!(status.success(), "{status}");
}

fn many_clients_are_served_at_once(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    assert_serves_over_tls(&server, &certificates);
    let idle = server.open_files();
    let mut clients: Vec<_> = (0..40)
        .map(|number| {
            let version = if number % 2 == 0 { &TLS12 } else { &TLS13 };
            let mut client = over_tls(&server, &certificates, version);
            client.go("", &[]).expect("it is there");
            client
        })
        .collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(&Request::new(Cmd::READ, (number as u64) << 12, 100_000));
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        let reply = client.next_reply().expect("a reply");
        let expected = Pattern(1).bytes((number as u64) << 12, 100_000);
        assert_same_bytes(&reply.data(), &expected, "a reply");
        match number % 4 {
            0 => drop(client),
            _ => client.finish(),
        }
    }
    wait_until("all connections are closed", SOON, || server.open_files() <= idle);
    assert_serves_over_tls(&server, &certificates);
}

fn a_client_that_reads_nothing_costs_no_more_than_a_bound(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    assert_serves_over_tls(&server, &certificates);
    server.forget_peak();
    let before = server.peak_resident();
    let mut client = over_tls(&server, &certificates, &TLS13);
    client.go("", &[]).expect("it is there");
    let mut bytes = Vec::new();
    for _ in 0..4096 {
        client.stage(&Request::new(Cmd::READ, 0, MIB), &mut bytes);
    }
    // 4 GiB were asked for.
    client.wire().send_until_stuck(&bytes, Duration::from_millis(300));
    let more = server.peak_resident().saturating_sub(before);
    assert!(more < 128 << 20, "{more} bytes for a client that reads nothing");
    drop(client);
    assert_serves_over_tls(&server, &certificates);
}

/// Clients in every state that they can stay in: the server does nothing until the deadline of one of them, which is
/// what is waited for. A thread that spins takes all the CPU that it gets for that long.
fn clients_that_stay_make_no_server_spin(setup: Setup) {
    const STALL: Duration = Duration::from_secs(1);
    let certificates = Certificates::new();
    let common = ["--tls", "require", "--tls-certificates", certificates.path()];
    let server = setup.serve().args(common).args(["--stall-timeout", "1s", "memory:4M"]).start();
    let upgrading = || {
        let mut client = RawClient::negotiate(server.endpoint());
        client.option(Opt::STARTTLS, &[]).expect("it is offered");
        client
    };
    let in_transmission = |version| {
        let mut client = over_tls(&server, &certificates, version);
        client.go("", &[]).expect("it is there");
        client.read(0, 512);
        client
    };
    let mut clients = vec![upgrading()];
    let mut half_a_greeting = upgrading();
    half_a_greeting.wire().send(&[22, 3, 3, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
    clients.push(half_a_greeting);
    for version in [&TLS12, &TLS13] {
        clients.push(in_transmission(version));
        let mut half_a_record = in_transmission(version);
        half_a_record.wire().send_in_the_clear(&[23, 3, 3, 1, 0, 1, 2, 3]);
        clients.push(half_a_record);
        // Ended in order, but for the transport.
        let mut ended = in_transmission(version);
        ended.wire().end_tls();
        clients.push(ended);
        // Its replies fill the socket.
        let mut deaf = in_transmission(version);
        let reads = Request::read(0, MIB).encode(Mode::Simple, 1).repeat(64);
        deaf.wire().send(&reads);
        clients.push(deaf);
    }
    // Once the server has done what there was to do. A witness that takes its reply too slowly stalls itself.
    let mut witness = in_time(STALL, || {
        let mut witness = in_transmission(&TLS13);
        witness.read(0, MIB);
        witness
    });
    let mut stalled = in_transmission(&TLS13);
    let write = Request::write(0, &[1; 512]).encode(Mode::Simple, 1);
    stalled.wire().send(&write[..write.len() - 100]);
    let before = server.cpu_time();
    stalled.wire().discard_to_eof("the deadline");
    let used = server.cpu_time() - before;
    assert!(used < Duration::from_millis(300), "{used:?} of CPU for clients that do nothing");
    witness.read(0, 512);
    drop(clients);
    assert_serves_over_tls(&server, &certificates);
}

fn requests_in_every_size_and_order_are_answered(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    nbd_testkit::cases(4, |random| {
        let version = random.of(&[&TLS12, &TLS13]);
        let mut client = over_tls(&server, &certificates, version);
        client.structured_reply().expect("it is supported");
        client.go("", &[]).expect("it is there");
        for _ in 0..12 {
            // Around the size of a record, and across many of them.
            let length = match random.below(3) {
                0 => 1 + random.below(100),
                1 => (16 << 10) - 40 + random.below(80),
                _ => 1 + random.below(300_000),
            };
            let offset = random.below((4 << 20) - length);
            if random.one_in(3) {
                client.write(offset, &Pattern(1).bytes(offset, length as usize));
            } else {
                let expected = Pattern(1).bytes(offset, length as usize);
                assert_same_bytes(&client.read(offset, length), &expected, "a read");
            }
        }
        client.finish();
    });
}

/// The handshake of TLS is a part of the handshake, which has a deadline.
#[test]
fn a_handshake_that_stalls_ends_at_the_deadline() {
    let certificates = Certificates::new();
    let tls = TlsServer::from_directory(certificates.path(), ClientCertificates::Off);
    let limit = Duration::from_millis(200);
    let config = ServerConfig::new()
        .with_handshake_timeout(limit)
        .with_tls(ServerTlsMode::Required, tls.expect("sound files"));
    let exports = ExportMap::new().with("", Memory::new(MIB).expect("memory")).expect("a name");
    let server = Server::with_config(exports, config);
    let listening = server.listen_tcp("127.0.0.1:0").expect("a port");
    let endpoint = Endpoint::parse(&format!("nbd://{}/", listening.local_addr())).expect("TCP");
    let beginnings: [&[u8]; 3] = [&[], &[22], &[22, 3, 3, 2, 0, 1, 0, 1, 0xfc, 3, 3]];
    for beginning in beginnings {
        let mut client = in_time(limit, || {
            let mut client = RawClient::negotiate(&endpoint);
            client.option(Opt::STARTTLS, &[]).expect("it is offered");
            client.wire().send(beginning);
            client
        });
        client.wire().drain_to_eof();
    }
    server.shut_down();
    server.wait();
}
