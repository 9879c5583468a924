//! Streams and listeners that the caller brings.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use nbd_blocking::export::{ExportMap, Memory};
use nbd_blocking::{ConnectionError, Server, ServerConfig};
use nbd_testkit::raw::{RawClient, Request, Wire};
use nbd_testkit::{Pattern, SOON, assert_same_bytes};

const SIZE: u64 = 32 << 20;

fn server_with(config: ServerConfig) -> Server {
    Server::with_config(ExportMap::new().with("", Memory::new(SIZE).unwrap()).unwrap(), config)
}

fn server() -> Server {
    server_with(ServerConfig::default())
}

/// Runs `task` on a thread; what it gives arrives at the receiver.
fn beside<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // The test may have failed meanwhile.
        let _gone = sender.send(task());
    });
    receiver
}

/// Two pipes, and a socket whose bytes are carried by them: the client's end.
fn pipes() -> (PipeReader, PipeWriter, UnixStream) {
    let (to_server, outward) = io::pipe().unwrap();
    let (inward, from_server) = io::pipe().unwrap();
    let (client, carried) = UnixStream::pair().unwrap();
    let source = carried.try_clone().unwrap();
    thread::spawn(move || carry(source, outward));
    thread::spawn(move || {
        carry(inward, &carried);
        carried.shutdown(Shutdown::Write)
    });
    (to_server, from_server, client)
}

/// Carries bytes until either side ends. Not `io::copy`: it may wait until a pipe is full.
fn carry(mut from: impl Read, mut to: impl Write) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn go(wire: Wire) -> RawClient {
    let mut client = RawClient::over(wire);
    let flags = client.read_greeting().flags;
    client.send_client_flags(flags.into());
    client.go("", &[]).unwrap();
    client
}

/// A session with payloads larger than any buffer on the way.
fn session(wire: Wire) {
    let mut client = go(wire);
    let data = Pattern(1).bytes(0, 1 << 20);
    client.write(4095, &data);
    assert_same_bytes(&client.read(4095, 1 << 20), &data, "what was written");
    client.finish();
}

#[test]
fn a_client_is_served_over_a_pair_of_pipes() {
    let server = server();
    let (reader, writer, client) = pipes();
    let serving = server.clone();
    let served = beside(move || serving.serve_stream(reader, writer));
    session(Wire::from_unix(client));
    served.recv_timeout(SOON).unwrap().unwrap();
    assert_eq!(server.connections(), 0);
}

#[test]
fn the_caller_learns_why_a_connection_ended() {
    let serve = |server: &Server, stream: UnixStream| {
        let serving = server.clone();
        beside(move || serving.serve_unix(stream))
    };

    let config = ServerConfig::new().with_handshake_timeout(Duration::from_millis(50));
    let hasty = server_with(config);
    let (ours, _silent) = UnixStream::pair().unwrap();
    let ended = serve(&hasty, ours).recv_timeout(SOON).unwrap();
    assert!(matches!(ended, Err(ConnectionError::HandshakeTimeout(_))), "{ended:?}");

    let server = server();
    let (ours, theirs) = UnixStream::pair().unwrap();
    Wire::from_unix(theirs).send(&[0xff; 4]);
    let ended = serve(&server, ours).recv_timeout(SOON).unwrap();
    assert!(matches!(ended, Err(ConnectionError::Protocol(_))), "{ended:?}");

    let (ours, theirs) = UnixStream::pair().unwrap();
    let ended = serve(&server, ours);
    let mut client = go(Wire::from_unix(theirs));
    client.send(&Request::read(0, SIZE));
    drop(client);
    let ended = ended.recv_timeout(SOON).unwrap();
    assert!(matches!(ended, Err(ConnectionError::Transport(_))), "{ended:?}");
    assert_eq!((hasty.connections(), server.connections()), (0, 0));
}

#[test]
fn a_stream_that_comes_after_the_shutdown_is_closed_at_once() {
    let server = server();
    server.shut_down();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = server.clone();
    let served = beside(move || serving.serve_unix(ours));
    Wire::from_unix(theirs).expect_eof();
    let ended = served.recv_timeout(SOON).unwrap();
    assert!(matches!(ended, Err(ConnectionError::ShuttingDown)), "{ended:?}");
}

#[test]
fn the_drain_timeout_ends_a_stream_whose_other_end_is_stuck() {
    let config = ServerConfig::new().with_drain_timeout(Duration::from_millis(50));
    let server = server_with(config);
    let (reader, writer, stream) = pipes();
    let serving = server.clone();
    let served = beside(move || serving.serve_stream(reader, writer));
    let mut client = go(Wire::from_unix(stream));
    // More than pipes and sockets hold; only its beginning is read.
    client.send(&Request::read(0, SIZE));
    client.wire().recv(16, "the header of the reply");
    server.shut_down();
    let ended = served.recv_timeout(SOON).expect("the call returns");
    assert!(matches!(ended, Err(ConnectionError::DrainTimeout(_))), "{ended:?}");
}

#[test]
fn an_end_of_the_stream_ends_the_connection() {
    let server = server();
    let (reader, writer, stream) = pipes();
    let serving = server.clone();
    let served = beside(move || serving.serve_stream(reader, writer));
    stream.shutdown(Shutdown::Write).unwrap();
    served.recv_timeout(SOON).unwrap().unwrap();
    let mut greeting = Vec::new();
    (&stream).read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting.len(), 18);
}

#[test]
fn a_socket_and_its_clone_are_a_stream_that_ends_with_the_session() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let (unix, other) = UnixStream::pair().unwrap();
    let ends = [
        (
            Wire::from_tcp(tcp).unwrap(),
            beside(move || server().serve_stream(accepted.try_clone().unwrap(), accepted)),
        ),
        (
            Wire::from_unix(unix),
            beside(move || server().serve_stream(other.try_clone().unwrap(), other)),
        ),
    ];
    for (wire, served) in ends {
        let mut client = go(wire);
        assert_eq!(client.read(0, 512), [0; 512]);
        // Says goodbye, and waits for the end of the stream.
        client.finish();
        assert!(served.recv_timeout(SOON).unwrap().is_ok());
    }
}
