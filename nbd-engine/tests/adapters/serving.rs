//! Exports, found and used.

use nbd_engine::export::{ExportMap, Handle, Memory};
use nbd_engine::server::Settings;
use nbd_testkit::raw::{Mode, RawClient, Rep};
use nbd_testkit::server::Transport;
use nbd_testkit::{Pattern, assert_same_bytes};

use super::disks::SIZE;
use super::{Adapter, Server, endpoint};

fn memory(size: u64) -> Memory {
    Memory::new(size).expect("the size is a size")
}

pub(crate) fn what_is_written_is_read_back<A: Adapter>(transport: Transport) {
    let exports = ExportMap::new().with("", memory(4 << 20));
    let server = Server::<A>::start(transport, exports);
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut client = RawClient::go_in(mode, &server.endpoint);
        let lengths = [1, 511, 4096, 65_537, 3 << 20];
        for (seed, length) in lengths.into_iter().enumerate() {
            let data = Pattern(seed as u64).bytes(0, length);
            client.write(4095, &data);
            assert_same_bytes(&client.read(4095, length as u64), &data, "what was written");
        }
        client.finish();
    }
    server.expect_no_connections();
    server.stop();
}

pub(crate) fn exports_are_told_apart_by_name<A: Adapter>(transport: Transport) {
    let exports = ExportMap::new().with("one", memory(SIZE)).with_handle(
        "two",
        Some("the second".into()),
        Handle::new(memory(2 * SIZE)),
    );
    let server = Server::<A>::start(transport, exports);
    let mut client = RawClient::negotiate(&server.endpoint);
    let listed = client.list().unwrap();
    let expected = [("one", ""), ("two", "the second")];
    assert!(listed.iter().map(|(name, text)| (&**name, &**text)).eq(expected), "{listed:?}");
    assert_eq!(client.info("one", &[]).unwrap().size, SIZE);
    assert_eq!(client.go("two", &[]).unwrap().size, 2 * SIZE);
    client.write(SIZE, b"two");
    let mut other = RawClient::negotiate(&server.endpoint);
    assert_eq!(other.export_name("one").size, SIZE);
    other.write(0, b"one");
    assert_eq!(client.read(SIZE, 3), b"two");
    assert_eq!(client.read(0, 3), [0; 3]);
    client.finish();
    other.finish();
    server.stop();
}

pub(crate) fn the_first_export_is_the_default<A: Adapter>(transport: Transport) {
    let exports = ExportMap::new().with("first", memory(SIZE)).with("second", memory(2 * SIZE));
    let server = Server::<A>::start(transport, exports);
    let client = server.client();
    assert_eq!(client.export().size, SIZE);
    client.finish();
    server.stop();
}

pub(crate) fn an_unknown_name_is_refused_and_another_one_can_follow<A: Adapter>(
    transport: Transport,
) {
    let server = Server::<A>::start(transport, ExportMap::new().with("disk", memory(SIZE)));
    let mut client = RawClient::negotiate(&server.endpoint);
    assert_eq!(client.go("disc", &[]).unwrap_err().code, Rep::ERR_UNKNOWN);
    assert_eq!(client.go("disk", &[]).unwrap().size, SIZE);
    client.finish();
    server.stop();
}

pub(crate) fn several_listeners_serve_the_same_exports<A: Adapter>(transport: Transport) {
    let exports = ExportMap::new().with("", memory(SIZE));
    let server = Server::<A>::with_settings(transport, exports, Settings::default());
    let more = [
        server.adapter.listen_tcp(),
        server.adapter.listen_unix(&server.dir.path().join("second.sock")),
    ];
    let mut client = server.client();
    client.write(0, b"shared");
    for address in more {
        let mut other = RawClient::go_simple(&endpoint(address));
        assert_eq!(other.read(0, 6), b"shared");
        other.finish();
    }
    client.finish();
    server.stop();
}
