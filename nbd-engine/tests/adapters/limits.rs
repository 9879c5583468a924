//! Deadlines, and bounds on what clients can make a server do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nbd_engine::export::{Export, ExportMap, Handle, Memory, Result};
use nbd_engine::server::Settings;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Info, Opt, RawClient, Request, info_data};
use nbd_testkit::server::Transport;

use super::disks::{SIZE, only};
use super::{Adapter, LIMIT, SHORT, Server, endpoint};

fn memory() -> ExportMap {
    ExportMap::new().with("", Memory::new(SIZE).expect("the size is a size"))
}

fn short_handshake<A: Adapter>(transport: Transport) -> Server<A> {
    let mut settings = Settings::default();
    settings.handshake_timeout = SHORT;
    Server::with_settings(transport, memory(), settings)
}

pub(crate) fn a_silent_client_is_closed_by_the_handshake_timeout<A: Adapter>(transport: Transport) {
    let server = short_handshake::<A>(transport);
    let mut client = RawClient::connect(&server.endpoint);
    client.read_greeting();
    client.wire().expect_eof();
    server.expect_no_connections();
    server.stop();
}

pub(crate) fn a_client_that_never_chooses_an_export_is_closed_by_the_handshake_timeout<
    A: Adapter,
>(
    transport: Transport,
) {
    let server = short_handshake::<A>(transport);
    let mut client = RawClient::negotiate(&server.endpoint);
    // Busy all the time: more options than are allowed would end it, too, so it only asks when there is an answer.
    let mut asked = 0;
    while asked < 1000 {
        let sent = client
            .wire()
            .try_send(&nbd_testkit::raw::option_bytes(Opt::INFO, &info_data("", &[Info::NAME])));
        if sent.is_err() || client.wire().try_recv(20).is_none() {
            break;
        }
        asked += 1;
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(asked < 1000, "the client was never closed");
    server.expect_no_connections();
    server.stop();
}

pub(crate) fn the_handshake_timeout_spares_clients_in_transmission<A: Adapter>(
    transport: Transport,
) {
    let server = short_handshake::<A>(transport);
    let mut client = server.client();
    // Another one that is closed came later, so that the time is over for both.
    let mut silent = RawClient::connect(&server.endpoint);
    silent.wire().drain_to_eof();
    client.write(0, b"still here");
    client.finish();
    server.stop();
}

pub(crate) fn no_connection_is_counted_before_a_client_comes<A: Adapter>(transport: Transport) {
    let server = Server::<A>::start(transport, memory());
    server.expect_no_connections();
    let client = server.client();
    assert_eq!(server.adapter.connections(), 1);
    client.finish();
    server.expect_no_connections();
    server.stop();
}

pub(crate) fn a_client_above_the_most_connections_waits_until_one_leaves<A: Adapter>(
    transport: Transport,
) {
    let mut settings = Settings::default();
    settings.max_connections = 2;
    let server = Server::<A>::with_settings(transport, memory(), settings);
    let first = server.client();
    let second = server.client();
    let mut third = RawClient::connect(&server.endpoint);
    third.wire().expect_silence();
    assert_eq!(server.adapter.connections(), 2);
    first.finish();
    third.read_greeting();
    drop(third);
    second.finish();
    server.expect_no_connections();
    server.stop();
}

pub(crate) fn one_connection_can_come_from_any_listener<A: Adapter>(transport: Transport) {
    let mut settings = Settings::default();
    settings.max_connections = 1;
    let server = Server::<A>::with_settings(transport, memory(), settings);
    let second = endpoint(server.adapter.listen_unix(&server.dir.path().join("second.sock")));
    for _ in 0..3 {
        for place in [&server.endpoint, &second] {
            RawClient::go_simple(place).finish();
            server.expect_no_connections();
        }
    }
    server.stop();
}

/// A disk that counts its reads.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Export for Counting {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        buffer.fill(1);
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

pub(crate) fn a_client_that_does_not_read_stops_itself<A: Adapter>(transport: Transport) {
    const LENGTH: u64 = 256 << 10;
    const REQUESTS: usize = 300;
    /// More than the buffers of the sockets hold, by far.
    const HELD: usize = 100;

    let mut settings = Settings::default();
    settings.config.limits.max_in_flight = 4;
    let disk = Arc::new(Counting::default());
    let exports = only(Handle::Blocking(Arc::<Counting>::clone(&disk)));
    let server = Server::<A>::with_settings(transport, exports, settings);
    let mut client = server.client();
    client.send_all(&vec![Request::read(0, LENGTH); REQUESTS]);
    // Quiet for a while means that the server waits for the client. Were it merely slow, less would be shown.
    let mut before = 0;
    wait_until("the server comes to rest", LIMIT, || {
        std::thread::sleep(SHORT);
        let now = disk.0.load(Ordering::Relaxed);
        now > 0 && core::mem::replace(&mut before, now) == now
    });
    let served = disk.0.load(Ordering::Relaxed);
    assert!(served < HELD, "{served} reads were served to a client that does not read");
    // Nothing is lost, and everything goes on.
    assert_eq!(client.drain().len(), REQUESTS);
    assert_eq!(disk.0.load(Ordering::Relaxed), REQUESTS);
    client.finish();
    server.stop();
}
