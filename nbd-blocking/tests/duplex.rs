//! Streams that are one object for both directions: rustls's, and layers that are worse to get on with.

#[path = "duplex/layer.rs"]
mod layer;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use layer::Layer;
use nbd_blocking::client::{ClientConfig, Error, Flags, Pending};
use nbd_blocking::export::{ExportEntry, ExportMap, Memory, PeerAddr, TlsIdentity};
use nbd_blocking::{Client, Server};
use nbd_support::bounded;
use nbd_testkit::{Random, cases};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::net::sockopt;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConnection, RootCertStore, ServerConnection, StreamOwned, crypto};

const SIZE: u64 = 256 << 10;

fn exports() -> ExportMap {
    ExportMap::new().with("disk", Memory::new(SIZE).unwrap()).unwrap()
}

/// Two connected sockets with small buffers, which are soon full.
fn sockets() -> (UnixStream, UnixStream) {
    let (one, other) = UnixStream::pair().unwrap();
    for socket in [&one, &other] {
        sockopt::set_socket_send_buffer_size(socket, 4096).unwrap();
    }
    (one, other)
}

/// Both sides of TLS 1.3 over two sockets; the handshake is yet to be made.
fn tls<S: Read + Write>(
    (client, server): (S, S),
) -> (StreamOwned<ClientConnection, S>, StreamOwned<ServerConnection, S>) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let versions = &[&rustls::version::TLS13];
    let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
    let config = config.with_protocol_versions(versions).unwrap().with_no_client_auth();
    let config = config.with_single_cert(vec![cert.der().clone()], key).unwrap();
    let server_side = ServerConnection::new(Arc::new(config)).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(versions).unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let client_side = ClientConnection::new(Arc::new(config), name).unwrap();
    (StreamOwned::new(client_side, client), StreamOwned::new(server_side, server))
}

/// Serves the disk over `stream` on a thread of its own.
fn serve<S: Read + Write + Send + 'static>(
    stream: S,
    socket: impl FnOnce(&S) -> BorrowedFd<'_> + Send + 'static,
) -> thread::JoinHandle<()> {
    thread::spawn(move || Server::new(exports()).serve_duplex(stream, socket).unwrap())
}

/// Threads that read and write any ranges, each of its own part of the disk, and many at a time.
fn any_requests(client: &Client, random: &mut Random, count: usize) {
    const THREADS: u64 = 3;
    thread::scope(|scope| {
        for part in 0..THREADS {
            let (client, random) = (client.clone(), Random::new(random.next()));
            scope.spawn(move || any_requests_from(&client, part * SIZE / THREADS, random, count));
        }
    });
}

/// Reads and writes any ranges of the part of the disk that begins at `start`, and compares what is found with a copy.
fn any_requests_from(client: &Client, start: u64, mut random: Random, count: usize) {
    const PART: u64 = 80 << 10;
    let mut disk = vec![0; PART as usize];
    // For reads with what they must find. None overlaps what is in flight, so that the order is settled.
    let mut in_flight = VecDeque::<(core::ops::Range<usize>, _, _)>::new();
    for round in 0..count {
        let length = random.of(&[1, 512, 4096, 40_000, 70_000]);
        let offset = random.below(PART - length as u64 + 1);
        let range = offset as usize..offset as usize + length;
        while in_flight.len() >= 8
            || in_flight.iter().any(|(it, ..)| it.start < range.end && range.start < it.end)
        {
            let (_, pending, expected) = in_flight.pop_front().unwrap();
            check(pending, expected);
        }
        let (pending, expected) = if random.one_in(2) {
            let data = vec![round as u8 + 1; length];
            disk[range.clone()].copy_from_slice(&data);
            (client.submit_write_from(start + offset, data, Flags::empty()), None)
        } else {
            let buffer = vec![0; length];
            let expected = Some(disk[range.clone()].to_vec());
            (client.submit_read_into(start + offset, buffer, Flags::empty()), expected)
        };
        in_flight.push_back((range, pending, expected));
    }
    for (_, pending, expected) in in_flight {
        check(pending, expected);
    }
}

/// Waits for a request, and compares what a read found.
fn check(pending: Pending<(Vec<u8>, Result<(), Error>)>, expected: Option<Vec<u8>>) {
    let (found, result) = pending.wait();
    result.unwrap();
    if let Some(expected) = expected {
        assert!(found == expected, "other data than was written");
    }
}

#[test]
fn a_tls_stream_of_the_callers_is_used_on_both_sides() {
    bounded(|| {
        cases(4, |random| {
            let (client, server) = tls(sockets());
            let served = serve(server, |stream| stream.sock.as_fd());
            let config = ClientConfig::default();
            let client =
                Client::over_duplex(client, |stream| stream.sock.as_fd(), "disk", &config).unwrap();
            any_requests(&client, random, 60);
            client.disconnect();
            drop(client);
            served.join().unwrap();
        });
    });
}

#[test]
fn a_layer_that_holds_back_all_it_can_is_used_on_both_sides() {
    bounded(|| {
        cases(10, |random| {
            let (client, server) = sockets();
            let [client, server] = [client, server].map(|it| Layer::new(it, random.next()));
            let served = serve(server, Layer::socket);
            let config = ClientConfig::default();
            let client = Client::over_duplex(client, Layer::socket, "disk", &config).unwrap();
            any_requests(&client, random, 20);
            client.disconnect();
            drop(client);
            served.join().unwrap();
        });
    });
}

#[test]
fn a_borrowed_stream_is_left_open_for_the_caller_to_close() {
    bounded(|| {
        let (mut client, mut server) = tls(sockets());
        let served = thread::spawn(move || {
            let ended = Server::new(exports()).serve_duplex(&mut server, |it| it.sock.as_fd());
            ended.unwrap();
            server.conn.send_close_notify();
            server.flush().unwrap();
        });
        client.read_exact(&mut [0; 18]).unwrap();
        client.write_all(&3_u32.to_be_bytes()).unwrap();
        let abort = [b"IHAVEOPT".as_slice(), &2_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
        client.write_all(&abort).unwrap();
        // Without close_notify this end would be an error.
        let mut acknowledged = Vec::new();
        client.read_to_end(&mut acknowledged).unwrap();
        assert_eq!(acknowledged.len(), 20);
        served.join().unwrap();
    });
}

/// The server takes the embedder's word for it that a stream runs inside of TLS (S-TLS-07).
#[test]
fn a_stream_inside_of_tls_reaches_exports_that_require_it() {
    bounded(|| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let entering = Arc::clone(&seen);
        let entry = ExportEntry::new("", Memory::new(SIZE).unwrap()).unwrap().with_tls_required();
        let entry = entry.on_enter(move |it| entering.lock().unwrap().push(it.tls.clone()));
        let server = Server::new(ExportMap::new().with_entry(entry));
        for in_tls in [true, false] {
            let (client, stream) = tls(sockets());
            let mut identity = TlsIdentity::default();
            identity.names.push("tenant.example".into());
            let (server, of_client) = (server.clone(), identity.clone());
            let served = thread::spawn(move || {
                if in_tls {
                    return server.serve_duplex_in_tls(stream, |it| it.sock.as_fd(), of_client);
                }
                server.serve_duplex(stream, |it| it.sock.as_fd())
            });
            let config = ClientConfig::default();
            let client = Client::over_duplex(client, |stream| stream.sock.as_fd(), "", &config);
            assert_eq!(client.is_ok(), in_tls, "{:?}", client.err());
            if let Ok(client) = client {
                client.disconnect();
                assert_eq!(seen.lock().unwrap().pop(), Some(Some(identity)));
            }
            // A client that is refused hangs up as it likes.
            let ended = served.join().unwrap();
            assert!(ended.is_ok() || !in_tls, "{ended:?}");
        }
        assert!(seen.lock().unwrap().is_empty());
    });
}

#[test]
fn an_export_learns_the_peer_of_the_socket_below_the_stream() {
    bounded(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let address = client.local_addr().unwrap();
        let below = client.try_clone().unwrap();
        let (client, server) = tls((client, listener.accept().unwrap().0));
        let entered = Arc::new(Mutex::new(Vec::new()));
        let entering = Arc::clone(&entered);
        let entry = ExportEntry::new("", Memory::new(SIZE).unwrap()).unwrap();
        let entry = entry.on_enter(move |it| entering.lock().unwrap().push(it.peer.clone()));
        let exports = ExportMap::new().with_entry(entry);
        let served = thread::spawn(move || {
            Server::new(exports).serve_duplex(server, |stream| stream.sock.as_fd())
        });
        let config = ClientConfig::default();
        let client =
            Client::over_duplex(client, |stream| stream.sock.as_fd(), "", &config).unwrap();
        assert!(client.peer().starts_with("127.0.0.1:"), "{}", client.peer());
        assert!(below.nodelay().unwrap(), "set up as other sockets are");
        client.disconnect();
        drop(client);
        served.join().unwrap().unwrap();
        assert_eq!(*entered.lock().unwrap(), [PeerAddr::Tcp(address)]);
    });
}
