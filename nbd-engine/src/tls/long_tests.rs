//! What a connection is after a long time: how much it holds, and that its keys are renewed.

use core::pin::Pin;
use core::task::Poll;
use std::sync::Arc;

use futures_io::{AsyncRead, AsyncWrite};
use proptest::prelude::*;
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, ring};
use rustls::version::{TLS12, TLS13};
use rustls::{SupportedCipherSuite, Tls13CipherSuite};

use super::stream::TlsStream;
use super::tests::with_provider;
use super::tests::{End, Streams, carry, configurations, connected, cx, handshake, noise};

/// What docs/tls.md promises: records received, data of one that was not taken, data of one that is collected, records
/// that wait to be sent.
const BOUND: usize = (64 + 16 + 16 + 256) << 10;

fn write(stream: &mut TlsStream<End>, data: &[u8]) -> usize {
    match Pin::new(stream).poll_write(&mut cx(), data) {
        Poll::Ready(count) => count.unwrap(),
        Poll::Pending => 0,
    }
}

fn read(stream: &mut TlsStream<End>, buffer: &mut [u8]) -> usize {
    match Pin::new(stream).poll_read(&mut cx(), buffer) {
        Poll::Ready(count) => count.unwrap(),
        Poll::Pending => 0,
    }
}

fn flush(stream: &mut TlsStream<End>) -> bool {
    Pin::new(stream).poll_flush(&mut cx()).is_ready()
}

/// Connected streams whose handshake is done.
fn established(streams: Streams) -> Streams {
    let (mut server, mut client) = streams;
    for result in handshake(&mut server, &mut client) {
        result.unwrap();
    }
    (server, client)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is written and read in whatever order, and however much the transport takes: the buffers stay within
    /// their bound, and an idle stream gives all of them back.
    #[test]
    fn buffers_stay_within_their_bound_and_are_given_back(
        old in any::<bool>(),
        piece in prop_oneof![100_usize..5000, 5000_usize..300_000],
        room in 2000_usize..600_000,
        steps in prop::collection::vec((0_u8..6, 0_usize..400_000), 1..60),
    ) {
        let version = if old { &TLS12 } else { &TLS13 };
        let streams = connected(configurations(version), "disk.example", piece, room);
        let (mut server, mut client) = established(streams);
        let data = noise(400_000);
        let mut buffer = vec![0; 400_000];
        let (mut written, mut taken) = ([0, 0], [0, 0]);
        for (kind, length) in steps {
            match kind {
                0 => written[0] += write(&mut server, &data[..length]),
                1 => written[1] += write(&mut client, &data[..length]),
                2 => taken[0] += read(&mut client, &mut buffer[..length]),
                3 => taken[1] += read(&mut server, &mut buffer[..length]),
                4 => drop(flush(&mut server)),
                _ => drop(flush(&mut client)),
            }
            prop_assert!(server.held() <= BOUND && client.held() <= BOUND);
            // Shrinking at any time loses nothing.
            if length % 7 == 0 {
                server.shrink();
                client.shrink();
            }
        }
        for _ in 0..1_000_000 {
            let flushed = flush(&mut server) & flush(&mut client);
            taken[0] += read(&mut client, &mut buffer);
            taken[1] += read(&mut server, &mut buffer);
            if flushed && taken == written {
                break;
            }
        }
        prop_assert_eq!(taken, written);
        server.shrink();
        client.shrink();
        prop_assert_eq!((server.held(), client.held()), (0, 0));
    }
}

/// A cipher's key is good for a number of records; 2^24 of them are 256 GiB, which a disk soon moves.
#[test]
fn keys_are_renewed_before_they_are_worn_out() {
    let SupportedCipherSuite::Tls13(suite) = ring::cipher_suite::TLS13_AES_128_GCM_SHA256 else {
        panic!("it is of TLS 1.3")
    };
    let worn_out_soon: &'static Tls13CipherSuite = Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: 7,
        },
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: None,
    }));
    let cipher_suites = vec![SupportedCipherSuite::Tls13(worn_out_soon)];
    let provider = CryptoProvider { cipher_suites, ..ring::default_provider() };
    for room in [4096, 200_000] {
        let configurations = with_provider(Arc::new(provider.clone()), &TLS13);
        let streams = connected(configurations, "disk.example", 1000, room);
        let (mut server, mut client) = established(streams);
        let data = noise(1_000_000);
        // Small writes, so that there are many records, and large ones.
        for write in [700, 200_000] {
            let length = write * 5;
            let data = &data[..length];
            assert!(carry(&mut client, &mut server, data, write, 5000) == data);
            assert!(carry(&mut server, &mut client, data, write, 70_000) == data);
        }
    }
}
