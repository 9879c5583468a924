//! A client that takes its replies slowly and steadily. Systems tell runtimes of room to write only when there is much of
//! it, which such a client makes but now and then: that is no stall.

use std::thread;
use std::time::{Duration, Instant};

use nbd_testkit::Endpoint;
use nbd_testkit::raw::{RawClient, Request};
use nbd_tokio::export::{ExportMap, Memory};
use nbd_tokio::metrics::Metrics;
use nbd_tokio::{Server, ServerConfig};

/// What the server requires is 16 KiB/s, and the client takes some 150.
const STALL: Duration = Duration::from_secs(1);
const PIECE: usize = 15 << 10;
const PAUSE: Duration = Duration::from_millis(100);
const REPLY: u32 = 32 << 20;

/// For so many stalls.
const STALLS: u32 = 8;

#[test]
fn a_client_that_reads_slowly_and_steadily_stays() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let exports = ExportMap::new().with("", Memory::new(64 << 20).unwrap()).unwrap();
    let metrics = Metrics::new();
    let config = ServerConfig::new().with_stall_timeout(STALL).with_metrics(&metrics);
    let server = Server::with_config(exports, config);
    let serving = runtime.block_on(server.listen_tcp("127.0.0.1:0")).unwrap();
    let address = serving.local_addr().tcp().expect("it is one of TCP");
    let mut client = RawClient::go_simple(&Endpoint::Tcp(address));
    client.send(&Request::read(0, u64::from(REPLY)));
    let begun = Instant::now();
    while begun.elapsed() < STALLS * STALL {
        assert!(client.wire().recv_or_gone(PIECE, "a piece of the reply").is_some());
        thread::sleep(PAUSE);
    }
    // The system would have something for the client for a while yet.
    assert_eq!(metrics.snapshot().connections.current, 1, "it is still served");
    drop((client, serving));
}
