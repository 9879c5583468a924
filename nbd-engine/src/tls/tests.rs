//! Streams against each other, with the bytes between them cut in every way.

use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use futures_io::{AsyncRead, AsyncWrite};
use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::records::{Ciphertext, Records, Room};
use super::rustls_records::RustlsRecords;
use super::stream::TlsStream;
use crate::export::TlsIdentity;
use crate::transport::Transport;

/// One direction: bytes, and whether the writer closed it.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    closed: bool,
}

/// One end of a connection in memory, which moves `piece` bytes at a time at most and holds `room` at most.
pub(crate) struct End {
    inbound: Arc<Mutex<Pipe>>,
    outbound: Arc<Mutex<Pipe>>,
    piece: usize,
    room: usize,
}

pub(crate) fn pair(piece: usize, room: usize) -> (End, End) {
    let (a, b) = (Arc::<Mutex<Pipe>>::default(), Arc::<Mutex<Pipe>>::default());
    let end = |inbound: &Arc<_>, outbound: &Arc<_>| End {
        inbound: Arc::clone(inbound),
        outbound: Arc::clone(outbound),
        piece,
        room,
    };
    (end(&a, &b), end(&b, &a))
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = self.inbound.lock().unwrap();
        let count = buffer.len().min(self.piece).min(pipe.bytes.len());
        if count == 0 && !pipe.closed {
            return Poll::Pending;
        }
        for byte in &mut buffer[..count] {
            *byte = pipe.bytes.pop_front().unwrap();
        }
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = self.outbound.lock().unwrap();
        let count = bytes.len().min(self.piece).min(self.room - pipe.bytes.len());
        if count == 0 {
            return Poll::Pending;
        }
        pipe.bytes.extend(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.lock().unwrap().closed = true;
        Poll::Ready(Ok(()))
    }
}

impl Transport for End {}

/// A server's and a client's configuration that trust each other.
pub(crate) fn configurations(
    version: &'static rustls::SupportedProtocolVersion,
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    with_provider(Arc::new(rustls::crypto::ring::default_provider()), version)
}

/// The same with cryptography of the test's choice.
pub(super) fn with_provider(
    provider: Arc<CryptoProvider>,
    version: &'static rustls::SupportedProtocolVersion,
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["disk.example".to_owned()]).unwrap();
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

pub(super) type Streams = (TlsStream<End>, TlsStream<End>);

fn streams(
    version: &'static rustls::SupportedProtocolVersion,
    name: &'static str,
    piece: usize,
    room: usize,
) -> Streams {
    connected(configurations(version), name, piece, room)
}

/// Streams of a server and a client that have not done the handshake.
pub(super) fn connected(
    (server, client): (Arc<ServerConfig>, Arc<ClientConfig>),
    name: &'static str,
    piece: usize,
    room: usize,
) -> Streams {
    let (near, far) = pair(piece, room);
    let server = UnbufferedServerConnection::new(server).unwrap();
    let client = UnbufferedClientConnection::new(client, name.try_into().unwrap()).unwrap();
    (
        TlsStream::new(near, Box::new(RustlsRecords::new(server))),
        TlsStream::new(far, Box::new(RustlsRecords::new(client))),
    )
}

pub(crate) fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Polls both until neither is pending, at most so many times that nothing but a hang needs more.
pub(super) fn handshake(
    server: &mut TlsStream<End>,
    client: &mut TlsStream<End>,
) -> [io::Result<()>; 2] {
    let (mut first, mut second) = (Poll::Pending, Poll::Pending);
    for _ in 0..20_000 {
        if first.is_pending() {
            first = server.poll_handshake(&mut cx());
        }
        if second.is_pending() {
            second = client.poll_handshake(&mut cx());
        }
        if let (Poll::Ready(first), Poll::Ready(second)) = (&mut first, &mut second) {
            let take = |result: &mut io::Result<()>| core::mem::replace(result, Ok(()));
            return [take(first), take(second)];
        }
    }
    panic!("the handshake hangs");
}

/// Both sides send at the same time, and neither stream takes all of it before the other side reads.
#[test]
fn a_handshake_ends_however_little_the_stream_holds() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for room in 1..32 {
            let (mut server, mut client) = streams(version, "disk.example", 1 << 20, room);
            let mut done = [false; 2];
            for _ in 0..20_000 {
                for (stream, done) in [&mut server, &mut client].into_iter().zip(&mut done) {
                    if !*done {
                        let polled = stream.poll_handshake(&mut cx());
                        *done = polled.map(|result| result.unwrap()).is_ready();
                    } else {
                        // It goes on to read, as sessions do.
                        let read = Pin::new(stream).poll_read(&mut cx(), &mut [0; 16]);
                        assert!(read.is_pending(), "{read:?}");
                    }
                }
                if done == [true; 2] {
                    break;
                }
            }
            assert_eq!(done, [true; 2], "{version:?}, {room}");
            assert_eq!(carry(&mut client, &mut server, &noise(5000), 700, 300), noise(5000));
        }
    }
}

/// Carries `data` from one stream to the other in writes of `write` bytes and reads of `read`.
pub(super) fn carry(
    from: &mut TlsStream<End>,
    to: &mut TlsStream<End>,
    data: &[u8],
    write: usize,
    read: usize,
) -> Vec<u8> {
    let (mut sent, mut received, mut buffer) = (0, Vec::new(), vec![0; read]);
    for _ in 0..2_000_000 {
        if sent < data.len() {
            let end = (sent + write).min(data.len());
            if let Poll::Ready(count) = Pin::new(&mut *from).poll_write(&mut cx(), &data[sent..end])
            {
                sent += count.unwrap();
            }
        } else if let Poll::Ready(result) = Pin::new(&mut *from).poll_flush(&mut cx()) {
            result.unwrap();
        }
        if let Poll::Ready(count) = Pin::new(&mut *to).poll_read(&mut cx(), &mut buffer) {
            received.extend_from_slice(&buffer[..count.unwrap()]);
        }
        if received.len() >= data.len() {
            return received;
        }
    }
    panic!("{} of {} bytes arrived", received.len(), data.len());
}

pub(crate) fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the sizes of writes, reads, and the pieces between them: the bytes arrive, in order, both ways.
    #[test]
    fn bytes_arrive_in_order_however_they_are_cut(
        old in any::<bool>(),
        piece in prop_oneof![1_usize..64, 64_usize..70_000],
        room in 200_usize..300_000,
        length in prop_oneof![1_usize..300, 300_usize..200_000],
        write in prop_oneof![1_usize..200, 200_usize..200_000],
        read in prop_oneof![1_usize..200, 200_usize..100_000],
    ) {
        let version = if old { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
        let (mut server, mut client) = streams(version, "disk.example", piece, room);
        for result in handshake(&mut server, &mut client) {
            result.unwrap();
        }
        let data = noise(length);
        prop_assert!(carry(&mut client, &mut server, &data, write, read) == data);
        prop_assert!(carry(&mut server, &mut client, &data, write, read) == data);
    }
}

#[test]
fn a_wrong_name_fails_the_handshake_on_both_sides() {
    let (mut server, mut client) = streams(&rustls::version::TLS13, "other.example", 4096, 65536);
    let [server, client] = handshake(&mut server, &mut client);
    let text = client.unwrap_err().to_string();
    assert!(text.contains(", not for other.example"), "{text}");
    // The client tells the server by an alert.
    let text = server.unwrap_err().to_string();
    assert!(text.contains("alert"), "{text}");
}

#[test]
fn an_orderly_end_is_an_end_and_a_cut_is_an_error() {
    for orderly in [true, false] {
        let (mut server, mut client) =
            streams(&rustls::version::TLS13, "disk.example", 4096, 65536);
        for result in handshake(&mut server, &mut client) {
            result.unwrap();
        }
        assert_eq!(carry(&mut client, &mut server, b"last words", 64, 64), b"last words");
        if orderly {
            assert!(matches!(Pin::new(&mut client).poll_close(&mut cx()), Poll::Ready(Ok(()))));
        } else {
            client.close_transport();
        }
        for _ in 0..3 {
            let end = Pin::new(&mut server).poll_read(&mut cx(), &mut [0; 16]);
            match end {
                Poll::Ready(Ok(0)) => assert!(orderly, "a cut stream has no end"),
                Poll::Ready(Err(error)) => {
                    assert!(!orderly, "{error}");
                    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn bytes_that_are_no_tls_end_the_stream_and_every_later_call() {
    let (server, _) = configurations(&rustls::version::TLS13);
    let (near, far) = pair(4096, 65536);
    let server = UnbufferedServerConnection::new(server).unwrap();
    let mut server = TlsStream::new(near, Box::new(RustlsRecords::new(server)));
    far.outbound.lock().unwrap().bytes.extend(b"NBDMAGICIHAVEOPT\0\0\0\x03");
    for _ in 0..3 {
        match server.poll_handshake(&mut cx()) {
            Poll::Ready(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::InvalidData),
            other => panic!("{other:?}"),
        }
    }
    assert!(Pin::new(&mut server).poll_write(&mut cx(), b"x").ready_and(|r| r.is_err()));
}

trait ReadyAnd<T> {
    fn ready_and(self, check: impl FnOnce(T) -> bool) -> bool;
}

impl<T> ReadyAnd<T> for Poll<T> {
    fn ready_and(self, check: impl FnOnce(T) -> bool) -> bool {
        match self {
            Self::Ready(value) => check(value),
            Self::Pending => false,
        }
    }
}

/// Records in the clear, for what does not depend on the cipher.
struct Clear;

impl Records for Clear {
    fn process(
        &mut self,
        input: &mut [u8],
        _: &mut Ciphertext,
        plaintext: &mut dyn FnMut(&[u8]) -> Room,
    ) -> io::Result<usize> {
        let mut consumed = 0;
        while let [_, _, _, high, low, rest @ ..] = &input[consumed..]
            && let length = usize::from(u16::from_be_bytes([*high, *low]))
            && let Some(data) = rest.get(..length)
        {
            consumed += 5 + length;
            if !data.is_empty() && plaintext(data) == Room::Full {
                break;
            }
        }
        Ok(consumed)
    }

    fn encrypt(&mut self, _: &mut [u8], _: &[u8], _: &mut Ciphertext) -> io::Result<()> {
        unreachable!("it only receives")
    }

    fn close_notify(&mut self, _: &mut [u8], _: &mut Ciphertext) -> io::Result<()> {
        Ok(())
    }

    fn hang_up_hint(&self) -> &'static str {
        ""
    }

    fn is_client(&self) -> bool {
        true
    }

    fn is_handshaking(&self) -> bool {
        false
    }

    fn is_closed_by_peer(&self) -> bool {
        false
    }

    fn peer_identity(&self) -> Option<TlsIdentity> {
        None
    }

    fn description(&self) -> String {
        String::new()
    }
}

/// Whatever they are for: keys are renewed by records without data, and nothing else bounds those of OpenSSL.
#[test]
fn records_without_data_are_bounded_unless_there_is_data_in_between() {
    for together in [1, 7, 1000] {
        let (near, far) = pair(1 << 20, 1 << 20);
        let mut stream = TlsStream::new(near, Box::new(Clear));
        let mut buffer = [0; 100];
        let mut read = |records: &[u8]| {
            far.outbound.lock().unwrap().bytes.extend(records);
            Pin::new(&mut stream).poll_read(&mut cx(), &mut buffer)
        };
        let empty = [23, 3, 3, 0, 0];
        for _ in 0..100 {
            let records = [&empty.repeat(20)[..], &[23, 3, 3, 0, 3, 1, 2, 3]].concat();
            assert!(matches!(read(&records), Poll::Ready(Ok(3))));
        }
        let refused = (0..1000).find_map(|sent| match read(&empty.repeat(together)) {
            Poll::Pending => None,
            Poll::Ready(Err(error)) => Some((sent * together, error.to_string())),
            Poll::Ready(Ok(count)) => panic!("{count} bytes"),
        });
        let (sent, error) = refused.expect("it takes them without an end");
        assert!(error.contains("without data"), "{error}");
        assert!(sent <= 64, "after {sent} records");
    }
}

#[cfg(feature = "tls-psk")]
mod pre_shared_keys {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::tls::{TlsClient, TlsServer};

    struct Keys(tempfile::TempDir);

    impl Keys {
        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            path
        }
    }

    fn streams(of_client: &str, user: &str) -> Streams {
        streams_of_allowed(of_client, user, &["*"])
    }

    /// With a server that has keys of alice and bob, and allows these patterns.
    fn streams_of_allowed(of_client: &str, user: &str, allowed: &[&str]) -> Streams {
        let keys = Keys(tempfile::tempdir().unwrap());
        let server = keys.file("server", "alice:0123456789abcdef\nbob:00ff00ff00ff00ff\n");
        let client = keys.file("client", of_client);
        let (near, far) = pair(1000, 65536);
        let server = TlsServer::from_psk_file(server).unwrap().allow(allowed.iter().copied());
        let client = TlsClient::builder().pre_shared_key(user, client).build().unwrap();
        (server.accept(near).unwrap(), client.connect(far, None).unwrap())
    }

    #[test]
    fn a_user_with_the_right_key_is_known_by_name() {
        let (mut server, mut client) = streams("bob:00FF00ff00ff00ff", "bob");
        for result in handshake(&mut server, &mut client) {
            result.unwrap();
        }
        assert_eq!(server.peer_identity().unwrap().names, ["bob"]);
        let data = noise(100_000);
        assert!(carry(&mut client, &mut server, &data, 30_000, 7000) == data);
        assert!(carry(&mut server, &mut client, &data, 7000, 30_000) == data);
        assert!(matches!(Pin::new(&mut client).poll_close(&mut cx()), Poll::Ready(Ok(()))));
        let end = Pin::new(&mut server).poll_read(&mut cx(), &mut [0; 16]);
        assert!(matches!(end, Poll::Ready(Ok(0))), "{end:?}");
    }

    /// A server that does not have the key may have a certificate, of whatever authority: it is not the one that is meant.
    #[test]
    fn a_certificate_does_not_stand_for_a_key() {
        let keys = Keys(tempfile::tempdir().unwrap());
        let client = keys.file("client", "bob:00ff00ff00ff00ff");
        let client = TlsClient::builder().pre_shared_key("bob", client).build().unwrap();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (near, far) = pair(1000, 65536);
            let server = UnbufferedServerConnection::new(configurations(version).0).unwrap();
            let mut server = TlsStream::new(near, Box::new(RustlsRecords::new(server)));
            let mut client = client.connect(far, None).unwrap();
            let [of_server, of_client] = handshake(&mut server, &mut client);
            of_client.unwrap_err();
            of_server.unwrap_err();
            let data = Pin::new(&mut client).poll_write(&mut cx(), b"a secret");
            assert!(!matches!(data, Poll::Ready(Ok(_))), "{data:?}");
        }
    }

    /// The client can't tell them apart, and the server can.
    #[test]
    fn a_wrong_key_an_unknown_user_and_one_that_is_not_allowed_fail_alike() {
        let mut of_client = Vec::new();
        for (keys, user, of_server) in [
            ("bob:0000000000000000", "bob", "the user \"bob\": the pre-shared keys"),
            ("eve:0123456789abcdef", "eve", "the user \"eve\" has no key"),
            ("alice:0123456789abcdef", "alice", "the user \"alice\" is not allowed"),
            ("BOB:00ff00ff00ff00ff", "BOB", "the user \"BOB\" has no key"),
            ("e\u{7}e:00", "e\u{7}e", "the user \"e\\u{7}e\" has no key"),
        ] {
            let (mut server, mut client) = streams_of_allowed(keys, user, &["bob"]);
            let [server, client] = handshake(&mut server, &mut client);
            let text = server.unwrap_err().to_string();
            assert!(text.contains(of_server), "{text}");
            of_client.push(client.unwrap_err().to_string());
        }
        assert!(of_client[0].contains("compare the user and the key"), "{}", of_client[0]);
        assert!(of_client[0].contains("(alert "), "{}", of_client[0]);
        of_client.dedup();
        assert_eq!(of_client.len(), 1, "{of_client:?}");
    }

    #[test]
    fn a_user_that_is_allowed_is_let_in() {
        let (mut server, mut client) = streams_of_allowed("bob:00ff00ff00ff00ff", "bob", &["b*"]);
        for result in handshake(&mut server, &mut client) {
            result.unwrap();
        }
    }

    #[test]
    fn certificates_and_a_key_contradict_each_other() {
        let keys = Keys(tempfile::tempdir().unwrap());
        let file = keys.file("keys", "bob:00ff00ff00ff00ff");
        let builder = TlsClient::builder().pre_shared_key("bob", file);
        let error = builder.clone().directory("/etc/pki/nbd").build().unwrap_err().to_string();
        assert!(error.contains("both are given"), "{error}");
        builder.authority("/etc/pki/nbd/ca-cert.pem").build().unwrap_err();
    }

    #[test]
    fn a_user_without_a_key_in_the_file_is_named() {
        let keys = Keys(tempfile::tempdir().unwrap());
        let path = keys.file("keys", "alice:00112233445566778899aabbccddeeff");
        let error = TlsClient::builder().pre_shared_key("bob", &path).build().unwrap_err();
        assert!(error.to_string().contains("'bob'"), "{error}");
    }

    /// What is not TLS, or TLS of another kind: each is called by its name on the side that notices.
    #[test]
    fn a_handshake_that_can_have_no_good_end_says_why() {
        let keys = Keys(tempfile::tempdir().unwrap());
        let file = keys.file("keys", "bob:00ff00ff00ff00ff00ff00ff00ff00ff");
        let tls = TlsServer::from_psk_file(&file).unwrap();
        for bytes in [&b"NBDMAGICIHAVEOPT\0\0\0\x03"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 100]] {
            let (near, far) = pair(4096, 65536);
            let mut server = tls.accept(near).unwrap();
            far.outbound.lock().unwrap().bytes.extend(bytes);
            let Poll::Ready(Err(error)) = server.poll_handshake(&mut cx()) else {
                panic!("{bytes:?}")
            };
            assert!(error.to_string().contains("is no TLS"), "{bytes:?}: {error}");
        }
        // A client with certificates alone.
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (near, far) = pair(4096, 65536);
            let name = "disk.example".try_into().unwrap();
            let client = UnbufferedClientConnection::new(configurations(version).1, name).unwrap();
            let mut client = TlsStream::new(far, Box::new(RustlsRecords::new(client)));
            let mut server = tls.accept(near).unwrap();
            for error in handshake(&mut server, &mut client) {
                let error = error.unwrap_err().to_string();
                assert!(
                    error.contains("a certificate and the other one a pre-shared key"),
                    "{error}"
                );
            }
        }
    }
}
