//! Deadlines. That they are not too early is shown by what is still alive when something else has ended by one.

use std::time::{Duration, Instant};

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_testkit::raw::{
    Cmd, Mode, Opt, RawClient, Request, Wire, in_time, info_data, magic, option_bytes,
};

use crate::exports::{Disk, Gate, Way};
use crate::{SOON, Setup};

fn memory() -> ExportMap {
    ExportMap::new().with("", Memory::new(1 << 20).expect("it is small")).expect("a short name")
}

/// Clients that do not choose an export in time are sent away, whatever they do instead; those that have chosen stay.
pub fn the_handshake_has_a_deadline(setup: Setup) {
    let limit = Duration::from_secs(1);
    let config = ServerConfig::new().with_handshake_timeout(limit);
    let disk = Disk::new(1 << 20);
    let exports = ExportMap::new().with("", Way::Workers.of(&disk)).expect("a short name");
    let server = setup.serve_with(exports, config);
    let mut chosen = in_time(limit, || server.client(Mode::Simple));

    let silent = RawClient::connect(server.endpoint());
    let greeted = in_time(limit, || {
        let mut client = RawClient::connect(server.endpoint());
        client.read_greeting();
        client
    });
    let negotiating = in_time(limit, || {
        let mut client = RawClient::negotiate(server.endpoint());
        client.list().expect("listing is allowed");
        client
    });
    let halfway = in_time(limit, || {
        let mut client = RawClient::negotiate(server.endpoint());
        client.send_option_header(magic::IHAVEOPT, Opt::GO, 100);
        client.wire().send(&[0; 50]);
        client
    });
    for mut late in [silent, greeted, negotiating, halfway] {
        late.wire().drain_to_eof();
    }

    // The first of all is older than those that were too late.
    chosen.read(0, 512);
    chosen.finish();
    server.stop();
}

/// A client that is busy all the time, but never chooses, is sent away, too.
pub fn the_handshake_deadline_does_not_wait_for_silence(setup: Setup) {
    // More options than are allowed would end it, too.
    let mut limits = nbd_engine::proto::Limits::DEFAULT;
    limits.max_options = u32::MAX;
    let limit = Duration::from_secs(1);
    let config = ServerConfig::new().with_handshake_timeout(limit).with_limits(limits);
    let server = setup.serve_with(memory(), config);
    let mut client = in_time(limit, || RawClient::negotiate(server.endpoint()));
    let question = option_bytes(Opt::INFO, &info_data("", &[]));
    let begun = Instant::now();
    while client.wire().try_send(&question).is_ok() && is_acknowledged(client.wire()) {
        assert!(begun.elapsed() < SOON, "the client is never sent away");
    }
    server.stop();
}

/// A client that looks at all exports of a long list has time for it.
pub fn a_long_list_extends_the_handshake(setup: Setup) {
    let mut limits = nbd_engine::proto::Limits::DEFAULT;
    limits.max_options = u32::MAX;
    let limit = Duration::from_millis(100);
    let config = ServerConfig::new().with_handshake_timeout(limit).with_limits(limits);
    let exports = (0..100).fold(memory(), |exports, number| {
        exports.with(number.to_string(), Memory::new(1 << 20).expect("it is small")).expect("short")
    });
    let server = setup.serve_with(exports, config);
    let (begun, mut client) = in_time(limit, || {
        let begun = Instant::now();
        let mut client = RawClient::negotiate(server.endpoint());
        assert_eq!(client.list().expect("listing is allowed").len(), 101);
        (begun, client)
    });
    while begun.elapsed() < Duration::from_millis(500) {
        client.info("99", &[]).expect("it is there");
    }
    client.go("99", &[]).expect("it is there");
    client.read(0, 512);
    client.finish();
    server.stop();
}

/// Takes in the replies to an option up to the acknowledgement; not if the stream ends before.
fn is_acknowledged(wire: &mut Wire) -> bool {
    while let Some(header) = wire.try_recv(20) {
        let [.., a, b, c, d] = header[..] else { unreachable!("it has 20 bytes") };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length == 0 {
            return true;
        }
        if wire.try_recv(length).is_none() {
            return false;
        }
    }
    false
}

/// What takes longer than the drain may take is given up, the connection closed, and the server has shut down, even
/// though the disk still works on it.
pub fn the_drain_has_a_deadline(setup: Setup) {
    for way in Way::CONCURRENT {
        let config = ServerConfig::new().with_drain_timeout(Duration::from_millis(300));
        let disk = Disk::new(1 << 20);
        disk.gate.close();
        let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
        let mut server = setup.serve_with(exports, config);
        let mut client = server.client(Mode::Simple);
        client.send(&Request::read(0, 512));
        disk.gate.wait_for(1);
        server.shut_down();
        client.wire().expect_eof();
        server.wait_for_the_end();
        disk.gate.open();
    }
}

/// A request that is never sent to its end does not hold up the end either.
pub fn a_drain_does_not_wait_for_the_rest_of_a_request(setup: Setup) {
    let config = ServerConfig::new().with_drain_timeout(Duration::from_millis(300));
    let mut server = setup.serve_with(memory(), config);
    let mut client = server.client(Mode::Simple);
    client.send(&Request { length: 4096, ..Request::write(0, &[1; 100]) });
    // A part of a header on another connection is not a request yet.
    let mut other = server.client(Mode::Simple);
    other.wire().send(&Request::new(Cmd::READ, 0, 512).encode(Mode::Simple, 1)[..27]);
    server.shut_down();
    client.wire().expect_eof();
    other.wire().expect_eof();
    server.wait_for_the_end();
}

/// Replies that nobody reads are given up, too.
pub fn a_drain_does_not_wait_for_clients_that_do_not_read(setup: Setup) {
    let config = ServerConfig::new().with_drain_timeout(Duration::from_millis(300));
    let disk = Disk::new(4 << 20);
    let exports = ExportMap::new().with("", Way::Workers.of(&disk)).expect("a short name");
    let mut server = setup.serve_with(exports, config);
    let mut client = server.client(Mode::Simple);
    client.send_all(&vec![Request::read(Gate::END, 1 << 20); 64]);
    client.wire().recv(1000, "the beginning of a reply");
    server.shut_down();
    server.wait_for_the_end();
    client.wire().drain_to_eof();
}
