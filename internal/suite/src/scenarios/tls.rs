//! What there is only inside of TLS. The certificate is another one for each server.

use std::io::Write;
use std::time::Duration;

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_engine::tls::rustls_0_23::ClientConnection;
use nbd_testkit::raw::{Mode, Opt, RawClient, Request, Wire, in_time, trusting};
use nbd_testkit::{Endpoint, Pattern, Random, assert_same_bytes};

use crate::{Server, Setup};

fn memory() -> ExportMap {
    let disk = Memory::new(1 << 20).expect("it is small");
    ExportMap::new().with("", disk).expect("a short name")
}

/// The first message of a handshake with the server.
fn client_hello(server: &Server) -> Vec<u8> {
    let Endpoint::Tls { certificates, .. } = server.endpoint() else { panic!("it requires TLS") };
    let config = trusting(&certificates.join("ca-cert.pem"));
    let name = "localhost".try_into().expect("a name");
    let mut client = ClientConnection::new(config, name).expect("a sound configuration");
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello).expect("memory takes everything");
    }
    hello
}

/// The handshake of TLS counts to the handshake's deadline, wherever it stalls.
pub fn a_handshake_that_stalls_ends_at_the_deadline(setup: Setup) {
    let limit = Duration::from_millis(300);
    let config = ServerConfig::new().with_handshake_timeout(limit);
    let server = setup.serve_with(memory(), config);
    let Endpoint::Tls { address, .. } = server.endpoint() else { panic!("it requires TLS") };
    let hello = client_hello(&server);
    let clients = [0, 1, 5, hello.len() / 2, hello.len() - 1, hello.len()].map(|cut| {
        in_time(limit, || {
            let mut client = RawClient::negotiate(address);
            client.option(Opt::STARTTLS, &[]).expect("it is offered");
            client.wire().send(&hello[..cut]);
            client
        })
    });
    for mut client in clients {
        client.wire().drain_to_eof();
    }
    server.stop();
}

/// Ciphertext of these bytes.
fn encrypted(wire: &mut Wire, bytes: &[u8]) -> Vec<u8> {
    let tls = wire.tls().expect("TLS has started");
    tls.writer().write_all(bytes).expect("it is small");
    let mut records = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut records).expect("memory takes everything");
    }
    records
}

/// Records come together however the bytes travel: in two parts cut at every byte, and byte by byte.
pub fn records_may_be_cut_anywhere(setup: Setup) {
    let server = setup.serve_with(memory(), ServerConfig::default());
    let mut client = server.client(Mode::Simple);
    let data = Pattern(3).bytes(0, 100);
    let session = [
        Request::write(700, &data).encode(Mode::Simple, 1),
        Request::read(700, 100).encode(Mode::Simple, 2),
    ]
    .concat();
    let length = encrypted(client.wire(), &session).len();
    // What was encrypted is sent, too: records are counted.
    drop(client);
    let mut client = server.client(Mode::Simple);
    let cuts = (1..length).map(|cut| vec![cut]).chain([(1..length).collect()]);
    for cuts in cuts {
        let records = encrypted(client.wire(), &session);
        let mut start = 0;
        for end in cuts.into_iter().chain([records.len()]) {
            client.wire().send_in_the_clear(&records[start..end]);
            start = end;
        }
        // Two simple replies; the order of a write and a read that overlaps it is the server's.
        let replies = client.wire().recv(16 + 16 + 100, "two replies");
        assert_eq!(replies[..4], 0x6744_6698_u32.to_be_bytes());
    }
    assert_same_bytes(&client.read(700, 100), &data, "what was written");
    client.finish();
    server.stop();
}

/// Either side may renew its keys between any two records, and ask the other side to do so; TLS 1.3 has that in place
/// of renegotiation.
pub fn keys_may_be_renewed_at_any_time(setup: Setup) {
    let server = setup.serve_with(memory(), ServerConfig::default());
    let mut client = server.client(Mode::Structured);
    let mut random = Random::new(7);
    for round in 0..20 {
        let (offset, length) = (random.below(1 << 19), 1 + random.below(100_000));
        let data = Pattern(round).bytes(offset, length as usize);
        let tls = client.wire().tls().expect("TLS has started");
        tls.refresh_traffic_keys().expect("it is TLS 1.3");
        client.write(offset, &data);
        assert_same_bytes(&client.read(offset, length), &data, "what was written");
    }
    client.finish();
    server.stop();
}

/// A record that stays incomplete is a request that is: its client is given up, wherever it stopped. One that is quiet
/// between records stays.
pub fn records_that_are_never_finished_are_given_up(setup: Setup) {
    let limit = Duration::from_millis(400);
    let config = ServerConfig::new()
        .with_stall_timeout(limit)
        .with_crowded_timeout(Duration::from_secs(1000));
    let server = setup.serve_with(memory(), config);
    let mut quiet = server.client(Mode::Simple);
    let request = Request::write(0, &[1; 3000]).encode(Mode::Simple, 1);
    for (sent, of_record) in [(0, 1), (0, 5), (0, 1000), (0, usize::MAX), (10, 6), (1000, 100)] {
        let mut client = in_time(limit, || {
            let mut client = server.client(Mode::Simple);
            // A part of the request in a record of its own, and the rest in one that stays incomplete.
            client.wire().send(&request[..sent]);
            let record = encrypted(client.wire(), &request[sent..]);
            let end = of_record.min(record.len() - 1);
            client.wire().send_in_the_clear(&record[..end]);
            client
        });
        client.wire().drain_to_eof();
    }
    quiet.read(0, 512);
    quiet.finish();
    server.stop();
}
