//! Attacks on the upgrade to TLS and on the stream inside of it, on `nbd serve` of each adapter.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::mpsc;

use nbd_interop::certificates::Certificates;
use nbd_interop::{assert_serves_over_tls, over_tls};
use nbd_testkit::peers::require;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Cmd, Opt, RawClient, Rep, Request, magic, option_bytes};
use nbd_testkit::server::{NbdServe, Setup};
use nbd_testkit::{Random, SOON, matrix};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConnection, SupportedProtocolVersion};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

matrix! {
    tcp_and_unix: [
        what_follows_starttls_in_the_clear_is_never_acted_on,
        a_client_that_closes_at_any_byte_of_the_handshake_leaves_nothing,
        both_versions_end_with_close_notify,
    ],
    unix: [
        tls_starts_once_and_forgets_what_was_before,
        a_handshake_that_is_none_ends_the_connection,
        endless_and_oversized_handshakes_are_bounded,
        a_stream_that_is_cut_off_is_no_orderly_end,
        a_forged_record_ends_the_connection,
        renegotiation_is_refused,
    ],
}

fn serving(setup: Setup, certificates: &Certificates) -> NbdServe {
    let common = ["-vv", "--tls", "on", "--tls-certificates", certificates.path(), "memory:1M"];
    setup.serve().args(common).start()
}

/// What a client says first inside of the handshake.
fn client_hello(
    certificates: &Certificates,
    version: &'static SupportedProtocolVersion,
) -> Vec<u8> {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(certificates.scripted(version), name).expect("sound");
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello).expect("memory takes everything");
    }
    hello
}

/// A client whose STARTTLS was acknowledged.
fn acknowledged(server: &NbdServe) -> RawClient {
    let mut client = RawClient::negotiate(server.endpoint());
    client.option(Opt::STARTTLS, &[]).expect("it is offered");
    client
}

/// As much of the process as a connection takes is given back.
#[track_caller]
fn assert_gone(server: &NbdServe, idle: usize) {
    wait_until("all connections are closed", SOON, || server.open_files() <= idle);
}

/// S-TLS-09. The bytes are options that would be answered, or the beginning of a handshake, before the acknowledgement
/// can have been seen: neither counts as having come through TLS.
fn what_follows_starttls_in_the_clear_is_never_acted_on(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    let starttls = option_bytes(Opt::STARTTLS, &[]);
    let go = [&0_u32.to_be_bytes()[..], &[0, 0]].concat();
    let behind = [
        option_bytes(Opt::LIST, &[]),
        option_bytes(Opt::STRUCTURED_REPLY, &[]),
        option_bytes(Opt::GO, &go),
        option_bytes(Opt::EXPORT_NAME, &[]),
        option_bytes(Opt::ABORT, &[]),
        starttls.clone(),
        b"I".to_vec(),
        client_hello(&certificates, &TLS13),
    ];
    for behind in behind {
        let before = server.stderr().len();
        let mut client = RawClient::negotiate(server.endpoint());
        client.wire().send(&[&starttls[..], &behind].concat());
        // The acknowledgement may come; nothing else may.
        if let Some(reply) = client.wire().try_recv(20) {
            assert_eq!(reply[..8], magic::OPTION_REPLY.to_be_bytes());
            assert_eq!(reply[8..16], [0, 0, 0, 5, 0, 0, 0, 1]);
        }
        client.wire().expect_eof();
        wait_until("the server logs why", SOON, || {
            server.stderr()[before..].contains("plain text followed STARTTLS")
        });
    }
    assert_serves_over_tls(&server, &certificates);
}

/// S-TLS-04, S-TLS-06, S-TLS-07: in TLS there is no second upgrade, and what was agreed on before is void.
fn tls_starts_once_and_forgets_what_was_before(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    for version in VERSIONS {
        let mut client = RawClient::negotiate(server.endpoint());
        client.structured_reply().expect("it is supported");
        client.set_meta_context("", &["base:allocation"]).expect("it is supported");
        client.option(Opt::STARTTLS, &[]).expect("it is offered");
        let config = certificates.scripted(version);
        client.wire().start_tls(config, "localhost").expect("a handshake");
        assert_eq!(client.option_error(Opt::STARTTLS, &[]), Rep::ERR_INVALID);
        client.set_mode(nbd_testkit::raw::Mode::Simple);
        client.go("", &[]).expect("it is there");
        assert_eq!(client.read(0, 100_000).len(), 100_000, "by simple replies");
        client.finish();
    }
}

/// S-TLS-10, S-TLS-11, S-TLS-13, S-TRM-05: the scripted client fails on an end without `close_notify`.
fn both_versions_end_with_close_notify(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    for version in VERSIONS {
        over_tls(&server, &certificates, version).finish();
        let mut client = over_tls(&server, &certificates, version);
        client.go("", &[]).expect("it is there");
        client.write(4096, &[7; 70_000]);
        assert_eq!(client.read(4096, 70_000), [7; 70_000]);
        client.finish();
    }
}

/// S-TLS-05.
fn a_handshake_that_is_none_ends_the_connection(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    for bytes in [
        option_bytes(Opt::LIST, &[]),
        vec![0; 600],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        // Application data, an alert, and a change of ciphers before there are any.
        vec![23, 3, 3, 0, 1, 0],
        vec![21, 3, 3, 0, 2, 2, 40],
        vec![20, 3, 3, 0, 1, 1, 20, 3, 3, 0, 1, 1, 20, 3, 3, 0, 1, 1],
        // A handshake of TLS 1.0 that ends within the greeting.
        vec![22, 3, 1, 0, 5, 1, 0, 0, 1, 3],
    ] {
        let mut client = acknowledged(&server);
        client.wire().send(&bytes);
        client.wire().drain_to_eof();
    }
    assert_serves_over_tls(&server, &certificates);
}

/// However a client leaves the handshake, the server closes its side and keeps nothing: there is nothing to spin on.
fn a_client_that_closes_at_any_byte_of_the_handshake_leaves_nothing(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    assert_serves_over_tls(&server, &certificates);
    let idle = server.open_files();
    let mut random = Random::new(5);
    for version in VERSIONS {
        let hello = client_hello(&certificates, version);
        for cut in [0, 1, 4, 5, 6, hello.len() - 1, hello.len()]
            .into_iter()
            .chain((0..10).map(|_| random.below(hello.len() as u64) as usize))
        {
            // Closed at once, with or without unread bytes.
            let mut client = acknowledged(&server);
            client.wire().send(&hello[..cut]);
            drop(client);
            // Closed for writing alone.
            let mut client = acknowledged(&server);
            client.wire().send(&hello[..cut]);
            client.wire().shutdown_write();
            client.wire().drain_to_eof();
        }
        // In the middle of requests.
        let mut client = over_tls(&server, &certificates, version);
        client.go("", &[]).expect("it is there");
        for _ in 0..8 {
            client.send(&Request::new(Cmd::READ, 0, 1 << 18));
        }
        drop(client);
    }
    assert_gone(&server, idle);
    assert_serves_over_tls(&server, &certificates);
}

fn endless_and_oversized_handshakes_are_bounded(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    assert_serves_over_tls(&server, &certificates);
    let idle = server.open_files();
    server.forget_peak();
    let before = server.peak_resident();

    // Records that are longer than any may be.
    for length in [0x4801_u16, 0x8000, 0xffff] {
        let mut client = acknowledged(&server);
        let [high, low] = length.to_be_bytes();
        // It may be refused by its header, or when there is more of it than fits.
        let _sent = client.wire().try_send(&[&[22, 3, 3, high, low][..], &[0; 70_000]].concat());
        client.wire().drain_to_eof();
    }
    // A greeting that says that it is 16 MiB long, in as many records as the server takes.
    let mut client = acknowledged(&server);
    let mut record = vec![22, 3, 3, 0x40, 0];
    record.extend([1, 0xff, 0xff, 0xff]);
    record.resize(5 + 0x4000, 0);
    let mut taken = 0;
    while taken < 1024 && client.wire().try_send(&record).is_ok() {
        record[5] = 0;
        taken += 1;
    }
    assert!(taken < 1024, "the server goes on taking a greeting without an end");
    client.wire().drain_to_eof();
    // Empty records and warnings without an end.
    for record in [&[22, 3, 3, 0, 0][..], &[21, 3, 3, 0, 2, 1, 90]] {
        let mut client = acknowledged(&server);
        let flood = record.repeat(4096);
        let mut taken = 0;
        while taken < 1024 && client.wire().try_send(&flood).is_ok() {
            taken += 1;
        }
        assert!(taken < 1024, "the server goes on taking {record:?}");
        client.wire().drain_to_eof();
    }
    assert_gone(&server, idle);
    let more = server.peak_resident().saturating_sub(before);
    assert!(more < 16 << 20, "{more} bytes for handshakes without an end");
    assert_serves_over_tls(&server, &certificates);
}

/// S-TLS-13, S-END-03: an end of the transport without `close_notify` is reported as a cut.
fn a_stream_that_is_cut_off_is_no_orderly_end(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    for version in VERSIONS {
        let before = server.stderr().len();
        let mut client = over_tls(&server, &certificates, version);
        client.go("", &[]).expect("it is there");
        client.wire().shutdown_write();
        wait_until("the server reports a cut", SOON, || {
            server.stderr()[before..].contains("cut the connection off without close_notify")
        });
        // With it, the client has only vanished without a disconnect.
        let before = server.stderr().len();
        let mut client = over_tls(&server, &certificates, version);
        client.go("", &[]).expect("it is there");
        client.wire().end_tls();
        client.wire().shutdown_write();
        client.wire().drain_to_eof();
        assert!(!server.stderr()[before..].contains("without close_notify"));
    }
}

fn a_forged_record_ends_the_connection(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    for version in VERSIONS {
        let mut client = over_tls(&server, &certificates, version);
        client.go("", &[]).expect("it is there");
        let mut forged = vec![23, 3, 3, 0, 64];
        forged.extend([0xa5; 64]);
        client.wire().send_in_the_clear(&forged);
        client.wire().expect_tls_failure();
    }
    assert_serves_over_tls(&server, &certificates);
}

/// What openssl's client says and hears, behind an upgrade that it can't do itself. One connection, on TCP.
fn relay(server: &NbdServe) -> (std::net::SocketAddr, std::thread::JoinHandle<()>) {
    let path = server.endpoint().socket_path().expect("a Unix socket").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it listens");
    let thread = std::thread::spawn(move || {
        let mut there = UnixStream::connect(path).expect("the server is there");
        let mut greeting = [0; 18];
        there.read_exact(&mut greeting).expect("a greeting");
        there.write_all(&3_u32.to_be_bytes()).expect("it is open");
        there.write_all(&option_bytes(Opt::STARTTLS, &[])).expect("it is open");
        there.read_exact(&mut [0; 20]).expect("an acknowledgement");
        let (here, _) = listener.accept().expect("a client");
        let (here, there) = (&here, &there);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Either side may be gone at any time.
                let _cut = std::io::copy(&mut { here }, &mut { there });
                let _closed = there.shutdown(Shutdown::Both);
            });
            let _cut = std::io::copy(&mut { there }, &mut { here });
            let _closed = here.shutdown(Shutdown::Both);
        });
    });
    (address, thread)
}

/// A client of TLS 1.2 may ask for another handshake as often as it likes: it gets an alert, and the connection ends.
fn renegotiation_is_refused(setup: Setup) {
    let Some(openssl) = require("openssl") else { return };
    let certificates = Certificates::new();
    let server = serving(setup, &certificates);
    assert_serves_over_tls(&server, &certificates);
    let idle = server.open_files();
    for _ in 0..3 {
        let (address, relay) = relay(&server);
        let mut client = openssl.command();
        client.args(["s_client", "-tls1_2", "-connect", &address.to_string(), "-CAfile"]);
        client.arg(certificates.file("ca-cert.pem"));
        client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = client.spawn().expect("openssl runs");
        // A command, once the handshake is done. The end of the input would be another one, so it stays open.
        let mut commands = client.stdin.take().expect("it is piped");
        commands.write_all(b"R\n").expect("it is read");
        let (told, output) = mpsc::channel();
        let ends = std::thread::spawn(move || told.send(client.wait_with_output()));
        let output = output.recv_timeout(SOON).expect("the client ends by itself");
        ends.join().expect("no panic").expect("it was waited for");
        let output = output.expect("it can be waited for");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(said.contains("Verify return code: 0"), "the handshake itself succeeds: {said}");
        assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
        drop(commands);
        relay.join().expect("no panic");
    }
    assert_gone(&server, idle);
    assert_serves_over_tls(&server, &certificates);
}
