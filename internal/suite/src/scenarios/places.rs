//! Listeners and streams that the program brings.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nbd_engine::export::{ExportEntry, ExportMap, Memory, PeerAddr};
use nbd_engine::server::{ConnectionError, ServerConfig};
use nbd_testkit::raw::{Mode, RawClient, Wire};

use crate::every_command::every_command;
use crate::{Place, Server, Setup, Transport};

fn exports() -> ExportMap {
    ExportMap::new().with("", Memory::new(1 << 20).expect("it is small")).expect("a short name")
}

/// A listener that was made by the program serves like one of the adapter's own, and its path stays.
pub fn listeners_of_ones_own_are_accepted_from(setup: Setup) {
    let dir = tempfile::tempdir().expect("a folder for the socket");
    let path = dir.path().join("own.sock");
    let place = match setup.transport() {
        Transport::Tcp => Place::TcpListener(TcpListener::bind("127.0.0.1:0").expect("a port")),
        Transport::Unix | Transport::Tls => Place::UnixListener(UnixListener::bind(&path).expect("a path")),
    };
    let mut server = setup.serve_at(exports(), ServerConfig::default(), vec![place], dir);
    let mut client = server.client(Mode::Structured);
    every_command(&mut client, 1);
    client.finish();
    server.client(Mode::Simple).finish();
    server.shut_down();
    server.wait_for_the_end();
    assert_eq!(path.exists(), setup.transport() == Transport::Unix);
}

/// A pair of connected sockets: the client's, with its address, and the server's, as a place.
fn pair(transport: Transport) -> (Wire, Option<SocketAddr>, Place) {
    match transport {
        Transport::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let client = listener.local_addr().and_then(TcpStream::connect).expect("a client");
            let address = client.local_addr().expect("an address");
            let (server, _) = listener.accept().expect("it has connected");
            let wire = Wire::from_tcp(client).expect("a setting");
            (wire, Some(address), Place::TcpStream(server))
        }
        Transport::Unix | Transport::Tls => {
            let (client, server) = UnixStream::pair().expect("two sockets");
            (Wire::from_unix(client), None, Place::UnixStream(server))
        }
    }
}

/// A stream that the program brings is served until the client disconnects.
pub fn a_stream_of_ones_own_is_served(setup: Setup) {
    for (wire, place) in streams(&setup) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut server = setup.serve_at(exports(), ServerConfig::default(), vec![place], dir);
        let mut client = RawClient::over(wire);
        client.read_greeting();
        client.send_client_flags(3);
        client.structured_reply().expect("they are supported");
        client.set_meta_context("", &["base:allocation"]).expect("contexts are supported");
        client.go("", &[]).expect("the default export is there");
        every_command(&mut client, 2);
        client.finish();
        server.wait_for_the_end();
    }
}

/// An accept loop of the program's own loses nothing of what is known of a client.
pub fn an_export_learns_the_peer_of_a_stream_of_ones_own(setup: Setup) {
    let (wire, address, place) = pair(setup.transport());
    let entered = Arc::new(Mutex::new(Vec::new()));
    let entering = Arc::clone(&entered);
    let entry = ExportEntry::new("", Memory::new(1 << 20).expect("it is small"))
        .expect("a short name")
        .on_enter(move |client| entering.lock().expect("no panic").push(client.peer.clone()));
    let exports = ExportMap::new().with_entry(entry);
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = setup.serve_at(exports, ServerConfig::default(), vec![place], dir);
    let mut client = RawClient::over(wire);
    client.read_greeting();
    client.send_client_flags(3);
    client.go("", &[]).expect("the default export is there");
    client.finish();
    server.wait_for_the_end();
    let entered = entered.lock().expect("no panic");
    match (&entered[..], address) {
        ([PeerAddr::Tcp(peer)], Some(address)) => assert_eq!(*peer, address),
        ([PeerAddr::Unix(Some(peer))], None) => {
            assert_eq!(peer.pid.unsigned_abs(), std::process::id());
        }
        ([PeerAddr::Unix(None)], None) if !cfg!(target_os = "linux") => {}
        (entered, _) => panic!("{entered:?}"),
    }
}

/// A stream of either kind, of which the adapter knows more or less.
fn streams(setup: &Setup) -> [(Wire, Place); 2] {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    let (wire, _, place) = pair(setup.transport());
    [(Wire::from_unix(ours), Place::Stream(theirs)), (wire, place)]
}

/// A server with room for one connection, which has one.
fn full(setup: &Setup, timeout: Duration) -> (Server, RawClient) {
    let config = ServerConfig::new().with_max_connections(1).with_admission_timeout(timeout);
    let server = setup.serve_with(exports(), config);
    let client = server.client(Mode::Simple);
    (server, client)
}

/// A program learns that the server is full, once it has been so for the configured time, and the client gets no byte.
pub fn a_stream_of_ones_own_is_refused_by_a_full_server(setup: Setup) {
    for timeout in [Duration::ZERO, Duration::from_millis(1)] {
        let (server, mut client) = full(&setup, timeout);
        for (mut wire, place) in streams(&setup) {
            let error = server.serve(place).expect_err("there is no room");
            assert!(
                matches!(error, ConnectionError::ServerFull { max_connections: 1, waited } if waited == timeout),
                "{error}"
            );
            wire.expect_eof();
        }
        assert_eq!(client.read(0, 512), [0; 512]);
        client.finish();
        server.stop();
    }
}

/// A stream of the program's own is served as soon as another connection ends.
pub fn a_stream_of_ones_own_waits_for_room(setup: Setup) {
    for (mut wire, place) in streams(&setup) {
        let (server, client) = full(&setup, Duration::from_secs(3600));
        thread::scope(|scope| {
            let served = scope.spawn(|| server.serve(place));
            wire.expect_silence();
            client.finish();
            let mut client = RawClient::over(wire);
            client.read_greeting();
            client.send_client_flags(3);
            client.go("", &[]).expect("the default export is there");
            client.finish();
            served.join().expect("no panic").expect("a proper session");
        });
        server.stop();
    }
}

/// A server that shuts down says so to the program that brings something, be it early or late.
pub fn nothing_of_ones_own_is_taken_after_the_shutdown(setup: Setup) {
    let is_shutdown = |result| matches!(result, Err(ConnectionError::ShuttingDown));
    for (mut wire, place) in streams(&setup) {
        let (mut server, mut client) = full(&setup, Duration::from_secs(3600));
        thread::scope(|scope| {
            let served = scope.spawn(|| server.serve(place));
            wire.expect_silence();
            server.shut_down();
            assert!(is_shutdown(served.join().expect("no panic")));
        });
        wire.expect_eof();
        for (mut wire, place) in streams(&setup) {
            assert!(is_shutdown(server.serve(place)));
            wire.expect_eof();
        }
        let dir = tempfile::tempdir().expect("a folder for the socket");
        let path = dir.path().join("late.sock");
        let listener = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let unix_listener = UnixListener::bind(dir.path().join("own.sock")).expect("a path");
        for place in [
            Place::Text("127.0.0.1:0".into()),
            Place::Unix(path.clone()),
            Place::TcpListener(listener()),
            Place::UnixListener(unix_listener),
        ] {
            let error = server.listen(place).expect_err("it is too late").to_string();
            assert!(error.contains("the server shuts down"), "{error}");
        }
        assert!(!path.exists());
        client.wire().expect_eof();
        drop(client);
        server.wait_for_the_end();
    }
}
