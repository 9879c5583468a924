//! What a request costs the client in allocations when the caller brings the buffer: nothing, the task that drives the
//! connection included.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nbd_support::counting::{Counting, count_this_thread};
use nbd_tokio::client::{BufResult, ClientConfig, Flags, Pending};
use nbd_tokio::export::{ExportMap, Memory};
use nbd_tokio::{Client, Server};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static COUNTER: AtomicUsize = AtomicUsize::new(0);

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A client on the calling thread, of a server on another one, which is not counted.
async fn connected(config: &ClientConfig) -> Client {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        runtime().block_on(async {
            let server =
                Server::new(ExportMap::new().with("", Memory::new(64 << 20).unwrap()).unwrap());
            server.serve_stream(UnixStream::from_std(ours).unwrap()).await
        })
    });
    Client::over(UnixStream::from_std(theirs).unwrap(), "", config).await.unwrap()
}

/// Repeats rounds until a long run of them costs no allocation: before that, queues and buffers grow to their size. Gives
/// the allocations of the last run.
async fn allocations(mut round: impl AsyncFnMut()) -> usize {
    let mut cost = 0;
    for _ in 0..20 {
        let before = COUNTER.load(Ordering::Relaxed);
        assert!(before > 0, "allocations are counted");
        for _ in 0..20 {
            round().await;
        }
        cost = COUNTER.load(Ordering::Relaxed) - before;
        if cost == 0 {
            break;
        }
    }
    cost
}

async fn one_by_one(client: &Client) -> usize {
    let mut lent = vec![0; 4096];
    allocations(async || {
        for at in 0..50 {
            let (back, result) =
                client.read_into(at * 4096, core::mem::take(&mut lent), Flags::empty()).await;
            result.unwrap();
            lent = back;
            client.read_exact_at(&mut lent, at * 4096).await.unwrap();
            client.write_all_at(&lent, at * 4096).await.unwrap();
        }
        client.flush().await.unwrap();
        client.write_zeroes(0, 4096, Flags::empty()).await.unwrap();
    })
    .await
}

async fn side_by_side(client: &Client, length: usize, depth: usize) -> usize {
    let mut buffers: Vec<_> = (0..depth).map(|_| vec![0; length]).collect();
    let mut in_flight: VecDeque<Pending<BufResult>> = VecDeque::with_capacity(depth);
    allocations(async || {
        for at in 0..100 {
            let buffer = match buffers.pop() {
                Some(buffer) => buffer,
                None => {
                    let (back, result) = in_flight.pop_front().unwrap().await;
                    result.unwrap();
                    back
                }
            };
            let offset = at % 64 * length as u64;
            in_flight.push_back(if at % 2 == 0 {
                client.submit_read_into(offset, buffer, Flags::empty())
            } else {
                client.submit_write_from(offset, buffer, Flags::empty())
            });
        }
        for pending in in_flight.drain(..) {
            let (back, result) = pending.await;
            result.unwrap();
            buffers.push(back);
        }
    })
    .await
}

#[test]
fn requests_allocate_nothing() {
    // One test, since the counter is the process's.
    let timed = ClientConfig::new().with_request_timeout(Some(Duration::from_secs(3600)));
    // One thread does it all, so that its count is the whole.
    count_this_thread(&COUNTER);
    for config in [ClientConfig::default(), timed] {
        runtime().block_on(async {
            let client = connected(&config).await;
            assert_eq!(one_by_one(&client).await, 0, "one by one");
            for (length, depth) in [(4096, 32), (256 << 10, 8)] {
                let count = side_by_side(&client, length, depth).await;
                assert_eq!(count, 0, "{depth} of {length} bytes side by side");
            }
        });
    }
}
