//! Several connections, and those that the program makes.

use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nbd_engine::client::{ClientConfig, Error, Flags, Reconnect};
use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_testkit::{Pattern, assert_same_bytes};

use crate::{ClientSetup, Place, Setup, Transport};

fn memory() -> Memory {
    Memory::new(1 << 20).expect("it is small")
}

/// What one connection wrote is seen by all after a flush, those of one client and those of another.
pub fn writes_are_seen_by_all_connections_after_a_flush(clients: ClientSetup, servers: Setup) {
    let server = servers.serve(memory());
    let config = ClientConfig::new().with_connections(4);
    let writer = clients.connect(server.endpoint(), &config).expect("the server is there");
    let reader = clients.connect(server.endpoint(), &config).expect("the server is there");
    assert_eq!((writer.connections(), reader.connections()), (4, 4));
    server.wait_for_connections(8);
    for round in 0..16 {
        let data = Pattern(round).bytes(0, 8192);
        writer.write_all_at(&data, 100).expect("a write");
        writer.flush().expect("a flush");
        // Requests take turns, so that these are on all connections.
        for client in [&writer, &reader] {
            for _ in 0..4 {
                let found = client.read(100, 8192, Flags::empty()).expect("a read");
                assert_same_bytes(&found, &data, "what another connection wrote");
            }
        }
    }
    drop((writer, reader));
    server.stop();
}

/// A server that has no room for all connections that are wanted is used by those that it has room for.
pub fn a_server_with_less_room_is_used_by_fewer_connections(
    clients: ClientSetup,
    servers: Setup,
) {
    for (room, wanted, reconnects) in
        [(1, 2, false), (1, 4, true), (2, 3, true), (3, 4, false), (3, 8, true), (4, 4, false), (5, 2, true)]
    {
        let what = format!("room for {room}, {wanted} wanted");
        let exports = ExportMap::new().with("", memory()).expect("a short name");
        let config = ServerConfig::new()
            .with_max_connections(room)
            .with_admission_timeout(Duration::from_millis(1));
        let server = servers.serve_with(exports, config);
        let mut config = ClientConfig::new().with_connections(wanted);
        if reconnects {
            config = config.with_reconnect(Reconnect::new().with_kept_writes(64 << 10));
        }
        let client = clients.connect(server.endpoint(), &config).expect(&what);
        assert_eq!(client.connections(), room.min(wanted), "{what}");
        server.wait_for_connections(room.min(wanted));
        // Requests take turns, so that these are on all connections.
        for round in 0..2 * wanted as u64 {
            let data = Pattern(round).bytes(0, 4096);
            client.write_all_at(&data, round * 4096).expect(&what);
            client.flush().expect(&what);
            let found = client.read(round * 4096, 4096, Flags::empty()).expect(&what);
            assert_same_bytes(&found, &data, &what);
        }
        client.disconnect();
        server.stop();
    }
}

/// A stream that the program brings is all that a client and a server need.
pub fn a_client_over_a_stream_of_ones_own(clients: ClientSetup, servers: Setup) {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    let dir = tempfile::tempdir().expect("a folder");
    let exports = ExportMap::new().with("disk", memory()).expect("a short name");
    let mut server =
        servers.serve_at(exports, ServerConfig::default(), vec![Place::Stream(theirs)], dir);
    let config = ClientConfig::default();
    let client = clients.adapter().over(ours, "disk", &config).expect("the server is there");
    let data = Pattern(5).bytes(0, 200_000);
    client.write_all_at(&data, 4095).expect("a write");
    assert_same_bytes(&client.read(4095, data.len(), Flags::empty()).expect("a read"), &data, "the data");
    client.disconnect();
    server.wait_for_the_end();
}

/// When a server has gone away its clients are told, and those that connect to its successor at the same place are
/// served.
pub fn a_client_connects_again_after_the_server_went_away(clients: ClientSetup, servers: Setup) {
    let dir = tempfile::tempdir().expect("a folder for the socket");
    // The listener outlives the first server, so that nobody else takes the place meanwhile.
    let (first, second) = match clients.transport() {
        Transport::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let same = listener.try_clone().expect("a descriptor");
            (Place::TcpListener(listener), Place::TcpListener(same))
        }
        Transport::Unix | Transport::Tls => {
            let listener = UnixListener::bind(dir.path().join("nbd.sock")).expect("a path");
            let same = listener.try_clone().expect("a descriptor");
            (Place::UnixListener(listener), Place::UnixListener(same))
        }
    };
    let serve = |place| {
        let exports = ExportMap::new().with("", memory()).expect("a short name");
        let dir = tempfile::tempdir().expect("a folder");
        servers.serve_at(exports, ServerConfig::default(), vec![place], dir)
    };
    let mut server = serve(first);
    let client = clients.client(&server);
    client.write_all_at(&[1; 512], 0).expect("a write");
    server.shut_down();
    server.wait_for_the_end();
    let error = client.read(0, 512, Flags::empty()).expect_err("the server is gone");
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert!(!client.is_connected());

    let server = serve(second);
    let client = clients.client(&server);
    assert_eq!(client.read(0, 512, Flags::empty()).expect("a read"), vec![0; 512], "it has a disk of its own");
    drop(client);
    server.stop();
}
