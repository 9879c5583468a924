//! Clients that leave without a word.

use std::time::Duration;

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_testkit::raw::{Cmd, Mode, Opt, Request, Wire, info_data, meta_data, option_bytes};

use crate::exports::{Disk, Way};
use crate::{Server, Setup};

const SIZE: u64 = 1 << 20;

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
fn one_place(setup: Setup) -> Server {
    // Whatever it takes the server to notice that a client is gone.
    let forever = Duration::from_secs(3600);
    let config = ServerConfig::new().with_max_connections(1).with_admission_timeout(forever);
    let exports =
        ExportMap::new().with("", Memory::new(SIZE).expect("it is small")).expect("a short name");
    setup.serve_with(exports, config)
}

fn expect_all_as_before(server: Server) {
    server.wait_for_connections(0);
    let mut client = server.client(Mode::Simple);
    client.write(0, b"all is well");
    assert_eq!(client.read(0, 11), b"all is well");
    client.finish();
    server.stop();
}

/// Gone after any byte that it sends.
pub fn a_client_that_vanishes_at_any_byte_frees_its_place(setup: Setup) {
    let server = one_place(setup);
    let session = session();
    for end in 0..=session.len() {
        let mut wire = Wire::connect(server.endpoint());
        // The greeting comes once the place of the client before is free.
        wire.recv(18, "the greeting");
        wire.send(&session[..end]);
    }
    expect_all_as_before(server);
}

/// Gone after any byte that it receives.
pub fn a_client_that_vanishes_at_any_byte_of_the_replies_frees_its_place(setup: Setup) {
    let server = one_place(setup);
    let session = session();
    for end in 0.. {
        let mut wire = Wire::connect(server.endpoint());
        wire.send(&session);
        if wire.try_recv(end).is_none() {
            // That was more than there is.
            assert!(end > 100, "the replies end after {end} bytes");
            break;
        }
    }
    expect_all_as_before(server);
}

/// Gone while its requests are at work, which are done or are not: the place is free.
pub fn a_client_that_vanishes_while_requests_run_frees_its_place(setup: Setup) {
    for way in Way::CONCURRENT {
        let disk = Disk::new(SIZE);
        disk.gate.close();
        let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
        let server = setup.serve_with(exports, ServerConfig::default());
        let mut client = server.client(Mode::Simple);
        client.send_all(&[Request::read(0, 8), Request::write(4096, &[1; 512])]);
        disk.gate.wait_for(2);
        drop(client);
        disk.gate.open();
        server.wait_for_connections(0);
        let mut other = server.client(Mode::Simple);
        other.read(0, 8);
        other.finish();
        server.stop();
    }
}
