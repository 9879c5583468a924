//! Several connections, and those that the program makes.

use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};

use nbd_engine::client::{Error, Flags, ClientConfig};
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
