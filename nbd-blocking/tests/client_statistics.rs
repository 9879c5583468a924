//! What a client counts is what its callers saw, and what the server counted.

use std::collections::BTreeMap;

use nbd_blocking::client::{ClientConfig, CommandError, Error, Flags, Uri};
use nbd_blocking::export::{Export, ExportError, ExportMap, Result};
use nbd_blocking::metrics::{ErrorKind, Metrics, RequestKind};
use nbd_blocking::proto::wire::ErrorCode;
use nbd_blocking::{Client, LocalAddr, Server, ServerConfig};
use nbd_support::bounded;
use nbd_testkit::cases;

const SIZE: u64 = 1 << 20;

/// A disk whose second half can't be read.
struct Half;

impl Export for Half {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if offset + buffer.len() as u64 > SIZE / 2 {
            return Err(ExportError::new(ErrorCode::EIO, "the second half"));
        }
        buffer.fill(0);
        Ok(())
    }
}

fn serve(metrics: &Metrics) -> (Server, Uri) {
    let exports = ExportMap::new().with("", Half).unwrap();
    let server = Server::with_config(exports, ServerConfig::new().with_metrics(metrics));
    let listening = server.listen_tcp("127.0.0.1:0").unwrap();
    let LocalAddr::Tcp(address) = listening.local_addr() else { panic!("it is a TCP socket") };
    let uri = Uri::tcp(&address.ip().to_string(), address.port()).unwrap();
    (server, uri)
}

#[test]
fn a_client_counts_what_its_callers_saw() {
    bounded(|| {
        cases(3, |random| {
            let metrics = Metrics::new();
            let (server, uri) = serve(&metrics);
            let connections = 1 + random.below(3) as usize;
            let config = ClientConfig::new().with_statistics(true).with_connections(connections);
            let client = Client::connect_with(&uri, &config).unwrap();
            let (mut requests, mut bytes, mut errors) = (0, 0, 0);
            for _ in 0..20 {
                let batch: Vec<_> = (0..1 + random.below(16))
                    .map(|_| {
                        let length = 1 + random.below(9000);
                        let offset = random.below(SIZE - length);
                        (length, client.submit_read(offset, length as usize, Flags::empty()))
                    })
                    .collect();
                for (length, pending) in batch {
                    requests += 1;
                    match pending.wait() {
                        Ok(_) => bytes += length,
                        Err(Error::Command { error: CommandError { code, .. }, .. }) => {
                            assert_eq!(code, ErrorCode::EIO);
                            errors += 1;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            let refused = client.read_chunks(SIZE - 512, 512, Flags::empty());
            assert!(refused.is_err());
            let statistics = client.statistics().expect("they were asked for");
            let reads = &statistics.requests[&RequestKind::Read];
            assert_eq!((reads.requests, reads.bytes), (requests + 1, bytes));
            assert_eq!(reads.errors, BTreeMap::from([(ErrorKind::Eio, errors + 1)]));
            assert_eq!((reads.in_flight, reads.failures, statistics.reconnects), (0, 0, 0));
            assert_eq!(reads.latencies.count(), requests + 1);
            client.disconnect();
            server.shut_down();
            server.wait();
            let counted = &metrics.snapshot().exports[""].requests[&RequestKind::Read];
            assert_eq!((counted.requests, counted.bytes), (reads.requests, reads.bytes));
            assert_eq!(counted.errors, reads.errors);
        });
    });
}

#[test]
fn what_never_gets_an_answer_is_a_failure_and_nothing_is_counted_unasked() {
    bounded(|| {
        let (server, uri) = serve(&Metrics::new());
        let config = ClientConfig::new().with_statistics(true);
        let client = Client::connect_with(&uri, &config).unwrap();
        client.disconnect();
        assert!(client.read(0, 512, Flags::empty()).is_err());
        let statistics = client.statistics().expect("they were asked for");
        let reads = &statistics.requests[&RequestKind::Read];
        assert_eq!((reads.requests, reads.failures, reads.in_flight), (1, 1, 0));
        assert!(reads.errors.is_empty() && reads.bytes == 0);

        let client = Client::connect_with(&uri, &ClientConfig::new()).unwrap();
        client.read(0, 512, Flags::empty()).unwrap();
        assert_eq!(client.statistics(), None);
        client.disconnect();
        server.shut_down();
    });
}
