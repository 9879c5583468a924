//! Listeners and streams that the program brings.

use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_testkit::raw::{Mode, RawClient, Wire};

use crate::every_command::every_command;
use crate::{Place, Setup, Transport};

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

/// A stream that the program brings is served until the client leaves.
pub fn a_stream_of_ones_own_is_served(setup: Setup) {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    let dir = tempfile::tempdir().expect("a folder");
    let mut server =
        setup.serve_at(exports(), ServerConfig::default(), vec![Place::Stream(theirs)], dir);
    let mut client = RawClient::over(Wire::from_unix(ours));
    client.read_greeting();
    client.send_client_flags(3);
    client.structured_reply().expect("they are supported");
    client.set_meta_context("", &["base:allocation"]).expect("contexts are supported");
    client.go("", &[]).expect("the default export is there");
    every_command(&mut client, 2);
    client.finish();
    server.wait_for_the_end();
}
