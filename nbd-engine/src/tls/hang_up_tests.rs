//! What a stream makes of a peer that hangs up, of transports that hold back what they are given, and of those that bring
//! much at once.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::io;
use std::sync::Arc;

use futures_io::{AsyncRead, AsyncWrite};
use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::server::{UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::rustls_records::RustlsRecords;
use super::stream::TlsStream;
use super::tests::{End, configurations, cx, noise, pair};
use crate::transport::Transport;

/// A transport with the faults and habits that others have.
struct Wire {
    end: End,
    /// What was written, and not flushed yet.
    held: Option<Vec<u8>>,
    /// Flushes that are pending before one delivers.
    slow: usize,
    /// What writes and reads fail with, since the peer is gone.
    gone: Option<io::ErrorKind>,
    /// Reads that are pending before what has arrived is known of, as with runtimes that are told so later.
    late: usize,
    /// Receive calls that brought something.
    receives: usize,
}

impl Wire {
    const fn new(end: End) -> Self {
        Self { end, held: None, slow: 0, gone: None, late: 0, receives: 0 }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let gone = self.gone;
        if self.late > 0 {
            self.late -= 1;
            return Poll::Pending;
        }
        match Pin::new(&mut self.end).poll_read(cx, buffer) {
            // As sockets do: what has arrived can be read, and then comes the error.
            Poll::Pending => gone.map_or(Poll::Pending, |kind| Poll::Ready(Err(kind.into()))),
            done => {
                self.receives += 1;
                done
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.gone {
            return Poll::Ready(Err(kind.into()));
        }
        match &mut self.held {
            Some(held) => {
                held.extend_from_slice(bytes);
                Poll::Ready(Ok(bytes.len()))
            }
            None => Pin::new(&mut self.end).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { end, held: Some(held), slow, .. } = &mut *self else {
            return Poll::Ready(Ok(()));
        };
        if *slow > 0 {
            *slow -= 1;
            return Poll::Pending;
        }
        while !held.is_empty() {
            match Pin::new(&mut *end).poll_write(cx, held) {
                Poll::Ready(count) => drop(held.drain(..count?)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.as_mut().poll_flush(cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.end).poll_close(cx),
            other => other,
        }
    }
}

impl Transport for Wire {}

type Stream = TlsStream<Wire>;

fn connected(
    (server, client): (Arc<ServerConfig>, Arc<ClientConfig>),
    (near, far): (End, End),
) -> (Stream, Stream) {
    let server = UnbufferedServerConnection::new(server).unwrap();
    let client =
        UnbufferedClientConnection::new(client, "disk.example".try_into().unwrap()).unwrap();
    (
        TlsStream::new(Wire::new(near), Box::new(RustlsRecords::new(server))),
        TlsStream::new(Wire::new(far), Box::new(RustlsRecords::new(client))),
    )
}

/// A server that demands a certificate of its clients, and a client that has none.
fn one_sided(
    version: &'static rustls::SupportedProtocolVersion,
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["disk.example".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider.clone());
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

/// Polls both until neither is pending.
fn handshake(server: &mut Stream, client: &mut Stream) -> [io::Result<()>; 2] {
    let mut results = [None, None];
    for _ in 0..1000 {
        for (stream, result) in [(&mut *server, 0), (&mut *client, 1)] {
            if results[result].is_none()
                && let Poll::Ready(done) = stream.poll_handshake(&mut cx())
            {
                results[result] = Some(done);
            }
        }
        if results.iter().all(Option::is_some) {
            return results.map(|result| result.expect("it is there"));
        }
    }
    panic!("the handshake hangs");
}

fn established(ends: (End, End)) -> (Stream, Stream) {
    let (mut server, mut client) = connected(configurations(&TLS13), ends);
    for result in handshake(&mut server, &mut client) {
        result.unwrap();
    }
    (server, client)
}

fn write(stream: &mut Stream, bytes: &[u8]) -> io::Result<usize> {
    match Pin::new(stream).poll_write(&mut cx(), bytes) {
        Poll::Ready(result) => result,
        Poll::Pending => Ok(0),
    }
}

fn read(stream: &mut Stream, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    Pin::new(stream).poll_read(&mut cx(), buffer)
}

const HANG_UPS: [io::ErrorKind; 3] =
    [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionAborted];

/// With TLS 1.3 a client learns only behind its own handshake that its certificate is not accepted, and may write before
/// it reads: the write fails, and the alert says why.
#[test]
fn an_alert_that_came_before_a_reset_is_reported_in_place_of_the_reset() {
    for (kind, late) in HANG_UPS.into_iter().flat_map(|kind| (0..4).map(move |late| (kind, late))) {
        let (mut server, mut client) = connected(one_sided(&TLS13), pair(1 << 20, 1 << 20));
        let [of_server, of_client] = handshake(&mut server, &mut client);
        of_client.unwrap();
        of_server.unwrap_err();
        (client.transport().gone, client.transport().late) = (Some(kind), late);
        let mut written = (0..=late).map(|_| write(&mut client, b"an option"));
        let error = written.find_map(Result::err).expect("it is known by then").to_string();
        assert!(error.contains("certificate_required"), "{kind:?} {late}: {error}");
        let error = write(&mut client, b"an option").unwrap_err().to_string();
        assert!(error.contains("certificate_required"), "{kind:?} {late}: {error}");
        let Poll::Ready(Err(error)) = read(&mut client, &mut [0; 16]) else { panic!("no error") };
        assert!(error.to_string().contains("certificate_required"), "{kind:?}: {error}");
    }
}

/// Behind the handshake, and before any data: both when it shows in a write and when it shows in a read.
#[test]
fn a_reset_right_after_the_handshake_names_its_likely_reason() {
    for (kind, at) in HANG_UPS.into_iter().flat_map(|kind| (0..4).map(move |at| (kind, at))) {
        let (mut server, mut client) = established(pair(1 << 20, 1 << 20));
        let (writes, is_client) = (at % 2 == 0, at < 2);
        let side = if is_client { &mut client } else { &mut server };
        side.transport().gone = Some(kind);
        let error = if writes {
            write(side, b"an option").unwrap_err()
        } else {
            match read(side, &mut [0; 16]) {
                Poll::Ready(Err(error)) => error,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(error.kind(), kind);
        let text = error.to_string();
        assert_eq!(text.contains("client-cert.pem"), is_client, "{text}");
        assert_eq!(text.contains("this server's certificate"), !is_client, "{text}");
        assert!(text.contains("may say why"), "{text}");
    }
}

/// Of a server that ends the connection in order instead. It gets the same answer as at any other end. A client may look
/// whether there is a server, and leave.
#[test]
fn an_end_right_after_the_handshake_names_its_likely_reason_to_the_client() {
    for (old, is_client) in [(false, false), (false, true), (true, false), (true, true)] {
        let configurations = configurations(if old { &TLS12 } else { &TLS13 });
        let (mut server, mut client) = connected(configurations, pair(1 << 20, 1 << 20));
        for result in handshake(&mut server, &mut client) {
            result.unwrap();
        }
        let (side, other) =
            if is_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
        assert!(Pin::new(&mut *other).poll_close(&mut cx()).is_ready());
        if is_client {
            // Also where nothing can be sent any more.
            side.transport().gone = old.then_some(io::ErrorKind::BrokenPipe);
            for _ in 0..2 {
                let Poll::Ready(Err(error)) = read(side, &mut [0; 16]) else { panic!("no error") };
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
                let says = "the peer closed the connection right after the handshake, as a server";
                let text = error.to_string();
                assert!(text.contains(says) && text.contains("client-cert.pem"), "{text}");
            }
            assert!(write(side, b"an option").is_err());
        } else {
            assert!(matches!(read(side, &mut [0; 16]), Poll::Ready(Ok(0))));
            assert!(Pin::new(&mut *side).poll_close(&mut cx()).is_ready());
        }
        if side.transport().gone.is_none() {
            assert!(!matches!(read(other, &mut [0; 16]), Poll::Pending), "it was not answered");
        }
    }
}

#[test]
fn a_reset_in_the_handshake_says_that_it_was_there() {
    let (_server, mut client) = connected(configurations(&TLS12), pair(1 << 20, 1 << 20));
    assert!(client.poll_handshake(&mut cx()).is_pending());
    client.transport().gone = Some(io::ErrorKind::ConnectionReset);
    let Poll::Ready(Err(error)) = client.poll_handshake(&mut cx()) else { panic!("no error") };
    assert!(error.to_string().contains("in the middle of the handshake"), "{error}");
}

/// A peer that has sent data did accept this side. Its last data is not lost to a write that fails.
#[test]
fn data_that_came_before_a_reset_can_still_be_read() {
    for kind in HANG_UPS {
        let (mut server, mut client) = established(pair(1 << 20, 1 << 20));
        let data = noise(50_000);
        assert_eq!(write(&mut server, &data).unwrap(), data.len());
        client.transport().gone = Some(kind);
        for _ in 0..3 {
            let error = write(&mut client, b"a request").unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
        let (mut received, mut buffer) = (Vec::new(), vec![0; 7000]);
        let error = loop {
            match read(&mut client, &mut buffer) {
                Poll::Ready(Ok(count)) => received.extend_from_slice(&buffer[..count]),
                Poll::Ready(Err(error)) => break error,
                Poll::Pending => panic!("it waits for a peer that is gone"),
            }
        };
        assert!(received == data, "{} bytes", received.len());
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!error.to_string().contains("client-cert.pem"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A stream such as a `BufWriter` sends nothing before it is flushed, and that may take its time: the handshake, data
    /// in both directions and the end get through all the same.
    #[test]
    fn what_a_transport_holds_back_is_flushed(
        old in any::<bool>(),
        slow in 0_usize..5,
        room in 300_usize..100_000,
        length in 1_usize..100_000,
        orderly in any::<bool>(),
    ) {
        let version = if old { &TLS12 } else { &TLS13 };
        let (mut server, mut client) = connected(configurations(version), pair(4096, room));
        for stream in [&mut server, &mut client] {
            stream.transport().held = Some(Vec::new());
            stream.transport().slow = slow;
        }
        for result in handshake(&mut server, &mut client) {
            result.unwrap();
        }
        let (data, mut buffer) = (noise(length), vec![0; 10_000]);
        for flip in [false, true] {
            let (from, to) =
                if flip { (&mut server, &mut client) } else { (&mut client, &mut server) };
            from.transport().slow = slow;
            let (mut written, mut received) = (0, Vec::new());
            for _ in 0..10_000 {
                written += write(from, &data[written..]).unwrap();
                let flushed = Pin::new(&mut *from).poll_flush(&mut cx());
                prop_assert_eq!(from.in_transit().has_unsent, flushed.is_pending());
                if let Poll::Ready(count) = read(to, &mut buffer) {
                    received.extend_from_slice(&buffer[..count.unwrap()]);
                }
                if received.len() == data.len() {
                    break;
                }
            }
            prop_assert!(received == data);
        }
        client.transport().slow = 0;
        if orderly {
            for _ in 0..1000 {
                if Pin::new(&mut client).poll_close(&mut cx()).is_ready() {
                    break;
                }
            }
        }
        // Without a close the drop says the last word.
        drop(client);
        let end = read(&mut server, &mut buffer);
        prop_assert!(matches!(end, Poll::Ready(Ok(0))), "{:?}", end);
    }
}

/// The answers of TLS to what the peer sends are flushed, too, though nobody writes: here the one that the client waits
/// for before it may use new keys.
#[test]
fn alerts_are_flushed() {
    let (mut server, mut client) = established(pair(1 << 20, 1 << 20));
    server.transport().held = Some(Vec::new());
    // No record: the server says so.
    client.send_in_the_clear(&[
        23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0,
    ]);
    let Poll::Ready(Err(_)) = read(&mut server, &mut [0; 16]) else { panic!("no error") };
    let Poll::Ready(Err(error)) = read(&mut client, &mut [0; 16]) else { panic!("no alert") };
    assert!(error.to_string().contains("alert"), "{error}");
}

/// What a receive call brings grows with what the peer has to send, up to a bound, and a quiet stream gives it back.
#[test]
fn a_busy_peers_records_come_many_at_a_time() {
    let (mut server, mut client) = established(pair(1 << 20, 1 << 20));
    let (data, mut buffer) = (noise(1 << 19), vec![0; 100_000]);
    let mut receives = 0;
    for _ in 0..4 {
        let mut written = 0;
        while written < data.len() {
            written += write(&mut client, &data[written..]).unwrap();
        }
        let before = server.transport().receives;
        let mut received = 0;
        while received < data.len() {
            let Poll::Ready(count) = read(&mut server, &mut buffer) else { panic!("{received}") };
            received += count.unwrap();
        }
        receives = server.transport().receives - before;
    }
    assert!(receives <= data.len() / (32 << 10), "{receives} calls");
    server.shrink();
    assert_eq!(server.held(), 0);
}
