//! Oldstyle clients, on a listener of their own.

use nbd_blocking::ServerConfig;
use nbd_engine::export::{BlockSize, ExportMap, Memory, ReadOnly, WithBlockSize};
use nbd_suite::Served;
use nbd_testkit::Endpoint;
use nbd_testkit::raw::{Cmd, RawClient, Request, Wire, flag};

const MIB: u64 = 1 << 20;
const MAGICS: &[u8] = b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53";

fn two() -> Served {
    let exports = ExportMap::new()
        .with("first", Memory::new(MIB).unwrap())
        .unwrap()
        .with("second", ReadOnly::new(Memory::new(2 * MIB).unwrap()))
        .unwrap();
    Served::start(exports, ServerConfig::default())
}

/// Reads the greeting: size and flags.
fn greeting(wire: &mut Wire) -> (u64, u16) {
    assert_eq!(wire.recv(16, "magics"), MAGICS);
    let size = wire.u64("size");
    assert_eq!(wire.u16("handshake flags"), 0);
    let flags = wire.u16("transmission flags");
    assert_eq!(wire.recv(124, "padding"), [0; 124]);
    (size, flags)
}

/// Sends a request, and receives a simple reply with `length` bytes of data: its error and the data.
fn call(wire: &mut Wire, request: &Request, length: usize) -> (u32, Vec<u8>) {
    wire.send(&request.encode(nbd_testkit::raw::Mode::Simple, 7));
    assert_eq!(wire.u32("magic"), 0x6744_6698);
    let error = wire.u32("error");
    assert_eq!(wire.u64("cookie"), 7);
    (error, wire.recv(length, "data"))
}

fn connect(endpoint: &Endpoint) -> Wire {
    Wire::connect(endpoint)
}

#[test]
fn an_oldstyle_client_gets_one_export_and_uses_it() {
    let served = two();
    let mut wire = connect(&served.listen_oldstyle(""));
    let (size, flags) = greeting(&mut wire);
    assert_eq!(size, MIB);
    assert_eq!(flags & (flag::HAS_FLAGS | flag::SEND_FLUSH), flag::HAS_FLAGS | flag::SEND_FLUSH);
    assert_eq!(flags & (flag::SEND_DF | flag::BLOCK_STATUS_PAYLOAD | flag::READ_ONLY), 0);
    assert_eq!(call(&mut wire, &Request::write(5, b"old"), 0), (0, Vec::new()));
    assert_eq!(call(&mut wire, &Request::read(4, 5), 5), (0, b"\0old\0".to_vec()));
    assert_eq!(call(&mut wire, &Request::block_status(0, 512), 0).0, 22);
    wire.send(&Request::new(Cmd::DISC, 0, 0).encode(nbd_testkit::raw::Mode::Simple, 8));
    wire.expect_eof();

    // A newstyle client of the same server sees what was written.
    let mut client = RawClient::go_simple(served.endpoint());
    assert_eq!(client.read(5, 3), b"old");
    client.finish();
}

#[test]
fn a_listener_for_oldstyle_clients_leaves_the_others_newstyle() {
    let served = two();
    let old = served.listen_oldstyle("second");
    let (size, flags) = greeting(&mut connect(&old));
    assert_eq!((size, flags & flag::READ_ONLY), (2 * MIB, flag::READ_ONLY));
    let mut client = RawClient::connect(served.endpoint());
    assert_eq!(client.read_greeting().magic, u64::from_be_bytes(*b"IHAVEOPT"));
}

#[test]
fn without_its_export_a_client_is_closed_at_once() {
    let served = two();
    connect(&served.listen_oldstyle("third")).expect_eof();
}

#[test]
fn an_export_that_insists_on_its_sizes_is_not_for_oldstyle_clients() {
    let sizes = BlockSize::new(512, 4096, 1 << 20).unwrap();
    let disk = || WithBlockSize::new(Memory::new(MIB).unwrap(), sizes);
    let served = Served::only(disk().required(true));
    connect(&served.listen_oldstyle("")).expect_eof();

    // Sizes that it does not insist on are enforced all the same.
    let served = Served::only(disk());
    let mut wire = connect(&served.listen_oldstyle(""));
    greeting(&mut wire);
    assert_eq!(call(&mut wire, &Request::read(100, 512), 0).0, 22);
    assert_eq!(call(&mut wire, &Request::read(512, 512), 512), (0, vec![0; 512]));
}
