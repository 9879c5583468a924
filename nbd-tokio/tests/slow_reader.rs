//! Clients that take their replies slowly and steadily. Systems tell runtimes of room to write only when there is much of
//! it, which such a client makes but now and then: that is no stall.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nbd_testkit::Endpoint;
use nbd_testkit::raw::{Mode, RawClient, Request};
use nbd_tokio::export::{ExportMap, Memory};
use nbd_tokio::metrics::Metrics;
use nbd_tokio::{Server, ServerConfig};

/// Several times what the clients may stand still on a busy machine.
const STALL: Duration = Duration::from_secs(6);
/// What is read at a time, ten times a second: each is more than the 16 KiB/s that the server requires. By TCP the system
/// itself tells the other side of room when there are some hundred KiB of it, so that there a stall has to last longer.
const PIECES: [(bool, usize); 5] =
    [(false, 10 << 10), (false, 20 << 10), (false, 40 << 10), (true, 40 << 10), (true, 80 << 10)];
const PAUSE: Duration = Duration::from_millis(100);
/// Replies that wait, each of as many bytes: one that is long, and several.
const REPLIES: [(u64, u64); 2] = [(1, 32 << 20), (16, 1 << 20)];

/// For so many stalls: a server looks every two seconds, so that it has found them by then.
const STALLS: u32 = 2;

#[test]
fn clients_that_read_slowly_and_steadily_stay() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let exports = ExportMap::new().with("", Memory::new(64 << 20).unwrap()).unwrap();
    let metrics = Metrics::new();
    let config = ServerConfig::new().with_stall_timeout(STALL).with_metrics(&metrics);
    let server = Server::with_config(exports, config);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let tcp = runtime.block_on(server.listen_tcp("127.0.0.1:0")).unwrap();
    let _unix = runtime.block_on(async { server.listen_unix(&socket) }).unwrap();
    let tcp = Endpoint::Tcp(tcp.local_addr().tcp().expect("it is one of TCP"));
    let unix = Endpoint::Unix(socket);
    let kinds = PIECES.map(|(is_tcp, piece)| (if is_tcp { &tcp } else { &unix }, piece));
    let kinds = kinds.into_iter().flat_map(|kind| REPLIES.map(|replies| (kind, replies)));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for ((endpoint, piece), (count, length)) in kinds {
            let over = &over;
            scope.spawn(move || {
                let mut client = RawClient::go_simple(endpoint);
                for cookie in 0..count {
                    let read = Request::read(cookie * length, length).encode(Mode::Simple, cookie);
                    client.wire().send(&read);
                }
                while !over.load(Ordering::Relaxed) {
                    let read = client.wire().recv_or_gone(piece, "a piece of the replies");
                    assert!(read.is_some(), "{endpoint:?} {piece} {count}");
                    thread::sleep(PAUSE);
                }
            });
        }
        thread::sleep(STALLS * STALL);
        let clients = PIECES.len() * REPLIES.len();
        // The system would have something for clients of ended connections for a while yet.
        let served = metrics.snapshot().connections.current;
        over.store(true, Ordering::Relaxed);
        assert_eq!(served, clients as u64, "all are still served");
    });
}
