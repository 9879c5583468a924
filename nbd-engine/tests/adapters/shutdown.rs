//! The end of a server.

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::Settings;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Cmd, Errno, Mode, RawClient, Request, Wire};
use nbd_testkit::server::Transport;

use super::disks::{GatedDisk, Kind, SIZE};
use super::{Adapter, LIMIT, SHORT, Server};

fn memory(size: u64) -> ExportMap {
    ExportMap::new().with("", Memory::new(size).expect("the size is a size"))
}

fn short_drain() -> Settings {
    let mut settings = Settings::default();
    settings.drain_timeout = SHORT;
    settings
}

pub(crate) fn shutdown_finishes_requests_in_flight_and_refuses_later_ones<A: Adapter>(
    transport: Transport,
) {
    for kind in [Kind::Worker, Kind::Async] {
        let (disk, exports) = GatedDisk::share(kind);
        let server = Server::<A>::start(transport, exports);
        let mut client = server.client();
        let early = client.send(&Request::read(GatedDisk::behind(0), 8));
        disk.gates[0].wait_for(1);
        server.adapter.shut_down();
        // What the connection was about to do when it was told may still be done.
        wait_until("later requests are refused", LIMIT, || {
            client.call(&Request::read(GatedDisk::FREE, 8)).error() == Some(Errno::ESHUTDOWN)
        });
        client.call(&Request::read(GatedDisk::FREE, 8)).expect_error(Errno::ESHUTDOWN);
        client.call(&Request::write(0, &[1; 100_000])).expect_error(Errno::ESHUTDOWN);
        disk.gates[0].open();
        assert_eq!(client.reply_to(early).data(), [1; 8], "{kind:?}");
        client.wire().expect_eof();
        server.adapter.wait();
    }
}

pub(crate) fn shutdown_lets_idle_clients_go<A: Adapter>(transport: Transport) {
    let server = Server::<A>::start(transport, memory(SIZE));
    let mut clients =
        [RawClient::connect(&server.endpoint), RawClient::negotiate(&server.endpoint)]
            .into_iter()
            .chain([Mode::Simple, Mode::Structured, Mode::Extended].map(|mode| {
                let mut client = RawClient::go_in(mode, &server.endpoint);
                client.read(0, 512);
                client
            }))
            .collect::<Vec<_>>();
    clients[0].read_greeting();
    server.adapter.shut_down();
    for client in &mut clients {
        client.wire().expect_eof();
    }
    server.adapter.wait();
}

pub(crate) fn shutdown_ends_a_server_that_nobody_came_to<A: Adapter>(transport: Transport) {
    let server = Server::<A>::start(transport, memory(SIZE));
    server.adapter.shut_down();
    // Again does no harm.
    server.adapter.shut_down();
    server.adapter.wait();
}

pub(crate) fn shutdown_stops_listening_and_removes_the_unix_path<A: Adapter>(transport: Transport) {
    let server = Server::<A>::start(transport, memory(SIZE));
    server.client().finish();
    let path = server.endpoint.socket_path();
    assert!(path.is_none_or(|path| path.exists()));
    server.adapter.shut_down();
    server.adapter.wait();
    assert!(path.is_none_or(|path| !path.exists()));
    assert!(Wire::try_connect(&server.endpoint).is_err(), "somebody still listens");
}

pub(crate) fn the_drain_timeout_ends_a_request_that_never_finishes<A: Adapter>(
    transport: Transport,
) {
    for kind in [Kind::Worker, Kind::Async] {
        let (disk, exports) = GatedDisk::share(kind);
        let server = Server::<A>::with_settings(transport, exports, short_drain());
        let mut client = server.client();
        client.send(&Request::read(GatedDisk::behind(0), 8));
        disk.gates[0].wait_for(1);
        server.adapter.shut_down();
        client.wire().expect_eof();
        server.adapter.wait();
        disk.gates[0].open();
    }
}

pub(crate) fn the_drain_timeout_ends_a_client_that_does_not_read<A: Adapter>(transport: Transport) {
    let server = Server::<A>::with_settings(transport, memory(32 << 20), short_drain());
    let mut client = server.client();
    client.send(&Request::read(0, 32 << 20));
    // The reply has begun, and more of it is to come than sockets hold.
    client.wire().recv(16, "the header of the reply");
    server.adapter.shut_down();
    server.adapter.wait();
    client.wire().drain_to_eof();
}

pub(crate) fn the_drain_timeout_ends_a_client_in_the_middle_of_a_request<A: Adapter>(
    transport: Transport,
) {
    let server = Server::<A>::with_settings(transport, memory(SIZE), short_drain());
    let mut client = server.client();
    client.send(&Request { length: 4096, ..Request::write(0, &[1; 100]) });
    // A part of a header on another connection is not a request yet.
    let mut other = server.client();
    other.wire().send(&Request::new(Cmd::READ, 0, 512).encode(Mode::Simple, 1)[..27]);
    server.adapter.shut_down();
    client.wire().expect_eof();
    other.wire().expect_eof();
    server.adapter.wait();
}
