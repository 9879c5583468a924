//! Streams and listeners that the caller brings, and futures that are dropped early.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd_testkit::raw::{Opt, RawClient, Rep, Request, Wire};
use nbd_testkit::{Pattern, SOON, assert_same_bytes};
use nbd_tokio::export::{CloseReason, ExportEntry, ExportMap, Memory, Peer, TlsIdentity};
use nbd_tokio::{ConnectionError, Server, ServerConfig};
use tokio::io::{BufStream, DuplexStream, copy_bidirectional, duplex};
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

const SIZE: u64 = 32 << 20;

fn server_with(config: ServerConfig) -> Server {
    Server::with_config(ExportMap::new().with("", Memory::new(SIZE).unwrap()).unwrap(), config)
}

fn server() -> Server {
    server_with(ServerConfig::default())
}

/// A stream in memory that holds `capacity` bytes each way, and the client's end of it, as a socket.
fn in_memory(capacity: usize) -> (DuplexStream, Wire) {
    let (ours, mut carried) = duplex(capacity);
    let (client, socket) = StdUnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut socket = UnixStream::from_std(socket).unwrap();
    tokio::spawn(async move { copy_bidirectional(&mut carried, &mut socket).await });
    (ours, Wire::from_unix(client))
}

fn serve(server: &Server, stream: DuplexStream) -> JoinHandle<Result<(), ConnectionError>> {
    let server = server.clone();
    tokio::spawn(async move { server.serve_stream(stream).await })
}

/// Runs a blocking client beside the server.
async fn client<T: Send + 'static>(script: impl FnOnce() -> T + Send + 'static) -> T {
    timeout(SOON, spawn_blocking(script)).await.expect("the client gets on").unwrap()
}

async fn end(served: JoinHandle<Result<(), ConnectionError>>) -> Result<(), ConnectionError> {
    timeout(SOON, served).await.expect("the connection ends").unwrap()
}

fn go(wire: Wire) -> RawClient {
    let mut client = RawClient::over(wire);
    let flags = client.read_greeting().flags;
    client.send_client_flags(flags.into());
    client.go("", &[]).unwrap();
    client
}

fn session(wire: Wire, length: usize) {
    let mut client = go(wire);
    let data = Pattern(1).bytes(0, length);
    client.write(4095, &data);
    assert_same_bytes(&client.read(4095, length as u64), &data, "what was written");
    client.finish();
}

/// Layers such as TLS keep what they are given until they are flushed.
#[tokio::test]
async fn a_stream_that_keeps_what_is_written_is_flushed() {
    let server = server();
    let (stream, wire) = in_memory(4096);
    let serving = server.clone();
    let served = tokio::spawn(async move { serving.serve_stream(BufStream::new(stream)).await });
    client(move || session(wire, 70_000)).await;
    end(served).await.unwrap();
}

async fn a_client_over_a_stream_in_memory() {
    let server = server();
    // Capacities that cut every header, and one that does not.
    for (capacity, length) in [(1, 600), (27, 70_000), (1 << 16, 1 << 20)] {
        let (stream, wire) = in_memory(capacity);
        let served = serve(&server, stream);
        client(move || session(wire, length)).await;
        end(served).await.unwrap();
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_client_is_served_over_a_stream_in_memory_on_one_thread() {
    a_client_over_a_stream_in_memory().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_served_over_a_stream_in_memory_on_several_threads() {
    a_client_over_a_stream_in_memory().await;
}

/// The server takes the embedder's word for it that a stream runs inside of TLS (S-TLS-07).
#[tokio::test]
async fn a_stream_inside_of_tls_reaches_exports_that_require_it() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let learns = Arc::clone(&seen);
    let entry = ExportEntry::new("", Memory::new(SIZE).unwrap()).unwrap().with_tls_required();
    let entry = entry.on_close(move |client, _| learns.lock().unwrap().push(client.clone()));
    let server = Server::new(ExportMap::new().with_entry(entry));
    let mut identity = TlsIdentity::default();
    identity.names.push("tenant.example".into());
    let peer = Peer::new("a tunnel").with_tls(identity.clone());

    let (stream, wire) = in_memory(4096);
    let serving = server.clone();
    let served = tokio::spawn(async move { serving.serve_stream_of(stream, peer).await });
    client(move || {
        let mut client = RawClient::over(wire);
        let flags = client.read_greeting().flags;
        client.send_client_flags(flags.into());
        assert_eq!(client.option_error(Opt::STARTTLS, &[]), Rep::ERR_INVALID);
        client.go("", &[]).unwrap();
        client.finish();
    })
    .await;
    end(served).await.unwrap();
    let seen = seen.lock().unwrap().pop().expect("the export was used");
    assert_eq!((seen.peer.to_string().as_str(), seen.tls), ("a tunnel", Some(identity)));

    let (stream, wire) = in_memory(4096);
    let served = serve(&server, stream);
    client(move || {
        let mut client = RawClient::over(wire);
        let flags = client.read_greeting().flags;
        client.send_client_flags(flags.into());
        assert_eq!(client.go("", &[]).unwrap_err().code, Rep::ERR_TLS_REQD);
    })
    .await;
    end(served).await.unwrap();
}

#[tokio::test]
async fn dropping_the_future_ends_the_connection_and_its_export_learns_of_it() {
    let left = Arc::new(Mutex::new(Vec::new()));
    let leaving = Arc::clone(&left);
    let entry = ExportEntry::new("", Memory::new(SIZE).unwrap()).unwrap();
    let entry = entry.on_close(move |_, reason| leaving.lock().unwrap().push(reason.clone()));
    let server = Server::new(ExportMap::new().with_entry(entry));
    let (stream, wire) = in_memory(4096);
    let served = serve(&server, stream);
    let mut raw = client(move || go(wire)).await;
    assert_eq!(server.connections(), 1);
    served.abort();
    assert!(served.await.unwrap_err().is_cancelled());
    assert_eq!(server.connections(), 0);
    assert_eq!(*left.lock().unwrap(), [CloseReason::Dropped]);
    client(move || raw.wire().expect_eof()).await;
}

#[tokio::test]
async fn the_caller_learns_why_a_connection_ended() {
    let config = ServerConfig::new().with_handshake_timeout(Duration::from_millis(50));
    let hasty = server_with(config);
    let (stream, _silent) = in_memory(4096);
    let ended = end(serve(&hasty, stream)).await;
    assert!(matches!(ended, Err(ConnectionError::HandshakeTimeout(_))), "{ended:?}");

    let server = server();
    let (stream, mut wire) = in_memory(4096);
    wire.send(&[0xff; 4]);
    let ended = end(serve(&server, stream)).await;
    assert!(matches!(ended, Err(ConnectionError::Protocol(_))), "{ended:?}");

    let (stream, wire) = in_memory(4096);
    let served = serve(&server, stream);
    client(move || go(wire).send(&Request::read(0, SIZE))).await;
    let ended = end(served).await;
    assert!(matches!(ended, Err(ConnectionError::Transport(_))), "{ended:?}");
    assert_eq!((hasty.connections(), server.connections()), (0, 0));
}

#[tokio::test]
async fn a_stream_that_comes_after_the_shutdown_is_closed_at_once() {
    let server = server();
    server.shut_down();
    let (stream, mut wire) = in_memory(4096);
    let ended = end(serve(&server, stream)).await;
    assert!(matches!(ended, Err(ConnectionError::ShuttingDown)), "{ended:?}");
    client(move || wire.expect_eof()).await;
}

#[tokio::test]
async fn a_stream_above_the_max_connections_waits_until_one_ends() {
    let config = ServerConfig::new()
        .with_max_connections(1)
        .with_admission_timeout(Duration::from_secs(3600));
    let server = server_with(config);
    let (first, first_wire) = in_memory(4096);
    let (second, second_wire) = in_memory(4096);
    let first_served = serve(&server, first);
    let raw = client(move || go(first_wire)).await;
    let second_served = serve(&server, second);
    let waiting = client(move || {
        let mut second = second_wire;
        second.expect_silence();
        second
    });
    let second_wire = waiting.await;
    client(move || raw.finish()).await;
    end(first_served).await.unwrap();
    client(move || session(second_wire, 4096)).await;
    end(second_served).await.unwrap();
}

#[tokio::test]
async fn waiting_for_the_end_can_be_given_up_and_begun_again() {
    let server = server();
    let listening = server.listen_tcp("127.0.0.1:0").await.unwrap();
    timeout(Duration::ZERO, server.wait()).await.expect_err("nobody has told it to end");
    server.shut_down();
    timeout(SOON, server.wait()).await.unwrap();
    timeout(SOON, listening.join()).await.unwrap();
}
