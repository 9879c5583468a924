//! What a request costs the client in allocations when the caller brings the buffer: nothing.

use std::collections::VecDeque;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nbd_blocking::client::{ClientConfig, Flags, Pending, Reconnect};
use nbd_blocking::export::{ExportMap, Memory};
use nbd_blocking::{Client, Server};
use nbd_support::counting::{Counting, count_this_thread};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `round` until everything has its size, then again, and gives how often the latter allocated.
fn allocations(config: &ClientConfig, mut round: impl FnMut(&Client)) -> usize {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = Server::new(ExportMap::new().with("", Memory::new(64 << 20).unwrap()).unwrap());
    thread::spawn(move || server.serve_unix(listener.accept().unwrap().0));
    let uri = format!("nbd+unix:///?socket={}", path.display()).parse().unwrap();
    let client = Client::connect_with(&uri, config).unwrap();
    count_this_thread(&COUNTER);
    for _ in 0..20 {
        round(&client);
    }
    let before = COUNTER.load(Ordering::Relaxed);
    assert!(before > 0, "the first requests do allocate, and are counted");
    for _ in 0..20 {
        round(&client);
    }
    COUNTER.load(Ordering::Relaxed) - before
}

#[test]
fn requests_allocate_nothing() {
    // One test, since the counter is the process's.
    let timed = ClientConfig::new().with_request_timeout(Some(Duration::from_secs(3600)));
    let reconnecting = ClientConfig::new().with_reconnect(Reconnect::new());
    for config in [ClientConfig::default(), timed, reconnecting] {
        let mut lent = vec![0; 4096];
        let one_by_one = allocations(&config, |client| {
            for at in 0..50 {
                let (back, result) =
                    client.read_into(at * 4096, core::mem::take(&mut lent), Flags::empty());
                result.unwrap();
                lent = back;
                client.read_exact_at(&mut lent, at * 4096).unwrap();
                client.write_all_at(&lent, at * 4096).unwrap();
            }
            client.flush().unwrap();
            client.write_zeroes(0, 4096, Flags::empty()).unwrap();
        });
        assert_eq!(one_by_one, 0, "one by one");

        for (length, depth) in [(4096, 32), (256 << 10, 8)] {
            let mut buffers: Vec<_> = (0..depth).map(|_| vec![0; length]).collect();
            let mut in_flight = VecDeque::with_capacity(depth);
            let side_by_side = allocations(&config, |client| {
                for at in 0..100 {
                    let buffer = buffers.pop().unwrap_or_else(|| {
                        let (back, result) =
                            in_flight.pop_front().map(Pending::wait).expect("they are in flight");
                        result.unwrap();
                        back
                    });
                    let offset = at % 64 * length as u64;
                    in_flight.push_back(if at % 2 == 0 {
                        client.submit_read_into(offset, buffer, Flags::empty())
                    } else {
                        client.submit_write_from(offset, buffer, Flags::empty())
                    });
                }
                for pending in in_flight.drain(..) {
                    let (back, result) = pending.wait();
                    result.unwrap();
                    buffers.push(back);
                }
            });
            assert_eq!(side_by_side, 0, "{depth} of {length} bytes side by side");
        }
    }
}
