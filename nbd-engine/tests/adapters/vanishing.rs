//! Clients that leave without a word.

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::Settings;
use nbd_testkit::raw::{
    Cmd, Mode, Opt, RawClient, Request, Wire, info_data, meta_data, option_bytes,
};
use nbd_testkit::server::Transport;

use super::disks::{GatedDisk, Kind, SIZE};
use super::gate::Gate;
use super::{Adapter, Server};

/// All that a client sends in a short session, from its flags to its leave.
fn session() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(option_bytes(Opt::STRUCTURED_REPLY, &[]));
    bytes.extend(option_bytes(Opt::SET_META_CONTEXT, &meta_data("", &["base:allocation"])));
    bytes.extend(option_bytes(Opt::GO, &info_data("", &[])));
    for (cookie, request) in [
        Request::write(0, &[7; 48]),
        Request::read(0, 64),
        Request::block_status(0, 4096),
        Request::flush(),
        // Out of bounds: its payload is dropped.
        Request::write(SIZE, &[7; 16]),
        Request::new(Cmd::DISC, 0, 0),
    ]
    .iter()
    .enumerate()
    {
        bytes.extend(request.encode(Mode::Structured, cookie as u64));
    }
    bytes
}

/// A server that has one place, so that a place which is not freed shows at once.
fn one_place<A: Adapter>(transport: Transport) -> Server<A> {
    let mut settings = Settings::default();
    settings.max_connections = 1;
    let exports = ExportMap::new().with("", Memory::new(SIZE).expect("the size is a size"));
    Server::with_settings(transport, exports, settings)
}

fn expect_all_as_before<A: Adapter>(server: Server<A>) {
    server.expect_no_connections();
    let mut client = server.client();
    client.write(0, b"all is well");
    assert_eq!(client.read(0, 11), b"all is well");
    client.finish();
    server.stop();
}

pub(crate) fn a_client_that_stops_sending_at_any_byte_is_let_go<A: Adapter>(transport: Transport) {
    let server = one_place::<A>(transport);
    let session = session();
    for end in 0..=session.len() {
        let mut wire = Wire::connect(&server.endpoint);
        wire.send(&session[..end]);
        wire.shutdown_write();
        wire.drain_to_eof();
    }
    expect_all_as_before(server);
}

pub(crate) fn a_client_that_vanishes_at_any_byte_frees_its_place<A: Adapter>(transport: Transport) {
    let server = one_place::<A>(transport);
    let session = session();
    for end in 0..=session.len() {
        let mut wire = Wire::connect(&server.endpoint);
        // The greeting comes once the place of the client before is free.
        wire.recv(18, "the greeting");
        wire.send(&session[..end]);
    }
    expect_all_as_before(server);
}

pub(crate) fn a_client_that_vanishes_at_any_byte_of_the_replies_frees_its_place<A: Adapter>(
    transport: Transport,
) {
    let server = one_place::<A>(transport);
    let session = session();
    for end in 0.. {
        let mut wire = Wire::connect(&server.endpoint);
        wire.send(&session);
        if wire.try_recv(end).is_none() {
            // That was more than there is.
            assert!(end > 100, "the replies end after {end} bytes");
            break;
        }
    }
    expect_all_as_before(server);
}

pub(crate) fn a_client_that_vanishes_while_requests_run_frees_its_place<A: Adapter>(
    transport: Transport,
) {
    for kind in [Kind::Worker, Kind::Async] {
        let (disk, exports) = GatedDisk::share(kind);
        let server = Server::<A>::start(transport, exports);
        let mut client = server.client();
        client.send(&Request::read(GatedDisk::behind(0), 8));
        client.send(&Request::write(GatedDisk::behind(1), &[1; 512]));
        disk.gates[0].wait_for(1);
        disk.gates[1].wait_for(1);
        drop(client);
        disk.gates.iter().for_each(Gate::open);
        server.expect_no_connections();
        let mut other = RawClient::go_simple(&server.endpoint);
        assert_eq!(other.read(GatedDisk::behind(0), 8), [1; 8]);
        other.finish();
        server.stop();
    }
}
