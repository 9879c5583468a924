//! Requests from tasks: the same code against the client and the server of each adapter, whose names are the same.
//!
//! Included by path. The module beside it, `runtime`, has what differs: `run`, `pair` of connected streams, `spawn`,
//! `detach`, `join` and `cancel` of tasks, and the traits and functions that one uses to read, write and seek.

use std::future::{Future, poll_fn};
use std::io::SeekFrom;
use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use nbd_engine::export::{Export, ExportMap, Memory};
use nbd_testkit::Pattern;

use super::runtime::client::{Client, Error, Flags, LostReason, Options, Pending, Uri, haggle};
use super::runtime::traits::*;
use super::runtime::{Server, cancel, detach, join, pair, run, spawn};
use crate::support::{GATED, Gate};

/// What a future is after one turn.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn connected(export: impl Export, options: &Options) -> (Server, Client) {
    let server = Server::new(ExportMap::new().with("", export).unwrap());
    let (ours, theirs) = pair();
    let serving = server.clone();
    detach(spawn(async move { serving.serve_stream(ours).await.is_ok() }));
    (server, Client::over(theirs, options).await.unwrap())
}

fn memory(size: u64) -> Memory {
    Memory::new(size).unwrap()
}

#[test]
fn what_was_written_is_read_back_over_tcp_and_unix_sockets() {
    run(|| async {
        let server = Server::new(ExportMap::new().with("disk", memory(1 << 20)).unwrap());
        let tcp = server.listen_tcp("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _unix = server.listen_unix(&socket).unwrap();
        let tcp = format!("nbd://{}/disk", tcp.local_addr());
        let unix = Uri::unix(socket.to_str().unwrap()).unwrap().with_export("disk").unwrap();
        for uri in [tcp, unix.to_string()] {
            let client = Client::connect(&uri).await.unwrap();
            let data = Pattern(1).bytes(0, 100_000);
            client.write_at(&data, 100).await.unwrap();
            let mut found = vec![0; data.len()];
            client.read_exact_at(&mut found, 100).await.unwrap();
            assert_eq!(found, data);
            client.write(data.clone().into(), 200_000).await.unwrap();
            assert_eq!(client.read(200_000, data.len()).await.unwrap(), data);
            client.flush().await.unwrap();
            client.write_zeroes(0, 1 << 20, Flags::empty()).await.unwrap();
            let (found, result) = client.read_into(found, 100).await;
            result.unwrap();
            assert_eq!(found, vec![0; data.len()]);
            client.disconnect().await;
        }
        server.shut_down();
        server.wait().await;
    });
}

#[test]
fn two_hundred_tasks_share_a_client() {
    run(|| async {
        let mut options = Options::default();
        options.limits.max_in_flight = 32;
        let (_server, client) = connected(memory(2 << 20), &options).await;
        let tasks: Vec<_> = (0..200)
            .map(|task| {
                let client = client.clone();
                spawn(async move {
                    let offset = task * 4096;
                    for round in 0..10 {
                        let data = Pattern(round).bytes(offset, 4096);
                        client.write_at(&data, offset).await.unwrap();
                        assert_eq!(client.read(offset, 4096).await.unwrap(), data);
                    }
                })
            })
            .collect();
        for task in tasks {
            join(task).await;
        }
    });
}

#[test]
fn a_future_that_is_dropped_harms_no_other() {
    run(|| async {
        let (gate, key) = Gate::new();
        let (_server, client) = connected(gate, &Options::default()).await;
        client.write_at(&[9; 512], 0).await.unwrap();
        let mut buffer = vec![1; 65536];
        {
            let read = pin!(client.read_exact_at(&mut buffer, GATED));
            let write = pin!(client.write_at(&[7; 65536], GATED));
            assert!(poll_once(read).await.is_none() && poll_once(write).await.is_none());
            // Both are sent by now: this one was asked for later.
            client.read(0, 512).await.unwrap();
        }
        assert_eq!(buffer, [1; 65536], "nobody writes to a buffer that was given back");
        for _ in 0..10 {
            assert_eq!(client.read(0, 512).await.unwrap(), vec![9; 512]);
        }
        key.open();
        // The write was sent, and may be under way at this moment.
        let found = client.read(GATED, 65536).await.unwrap();
        assert!(found.iter().all(|byte| matches!(byte, 0 | 7)));
    });
}

#[test]
fn requests_are_answered_out_of_order_and_any_can_be_waited_for() {
    run(|| async {
        let (gate, key) = Gate::new();
        let (_server, client) = connected(gate, &Options::default()).await;
        let requests =
            [client.submit_read(vec![1; 512], GATED), client.submit_read(vec![1; 512], 0)];
        assert_eq!(Pending::any(requests.iter()).await, Some(1));
        assert!(!requests[0].is_done());
        key.open();
        for request in requests {
            request.await.1.unwrap();
        }
    });
}

#[test]
fn requests_time_out_and_the_client_goes_on() {
    run(|| async {
        let (gate, key) = Gate::new();
        let mut options = Options::default();
        options.request_timeout = Some(Duration::from_secs(1));
        let (_server, client) = connected(gate, &options).await;
        let error = client.read(GATED, 512).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        let error = client.write_at(&[0; 512], GATED).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        key.open();
        assert_eq!(client.read(0, 512).await.unwrap(), vec![0; 512]);
    });
}

#[test]
fn a_server_that_vanishes_fails_what_is_in_flight() {
    run(|| async {
        let (gate, key) = Gate::new();
        let server = Server::new(ExportMap::new().with("", gate).unwrap());
        let (ours, theirs) = pair();
        let serving = spawn(async move { server.serve_stream(ours).await.is_ok() });
        let client = Client::over(theirs, &Options::default()).await.unwrap();
        let read = client.submit_read(vec![1; 512], GATED);
        client.read(0, 512).await.unwrap();
        cancel(serving).await;
        let (buffer, result) = read.await;
        assert!(matches!(result, Err(Error::Lost { sent: true, .. })), "{result:?}");
        assert_eq!(buffer.len(), 512);
        let error = client.flush().await.unwrap_err();
        assert!(matches!(error, Error::Lost { sent: false, .. }), "{error}");
        key.open();
    });
}

/// Makes a request the moment it is woken, before whoever wakes it does anything else.
struct Eager {
    client: Client,
    made: Mutex<Option<Pending<Result<(), Error>>>>,
    then: Waker,
}

impl Wake for Eager {
    fn wake(self: Arc<Self>) {
        *self.made.lock().unwrap() = Some(self.client.submit_flush());
        self.then.wake_by_ref();
    }
}

#[test]
fn a_request_that_follows_a_refusal_at_once_learns_that_the_server_shuts_down() {
    run(|| async {
        let (gate, key) = Gate::new();
        let (server, client) = connected(gate, &Options::default()).await;
        let held = client.submit_read(vec![1; 512], GATED);
        client.read(0, 512).await.unwrap();
        server.shut_down();
        // What the server was about to do may still be done.
        let follower = loop {
            let mut request = client.submit_flush();
            let eager = poll_fn(|cx| {
                let (made, then) = (Mutex::default(), cx.waker().clone());
                Poll::Ready(Arc::new(Eager { client: client.clone(), made, then }))
            })
            .await;
            let waker = Waker::from(Arc::clone(&eager));
            match Pin::new(&mut request).poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => continue,
                // Too quick to be followed at once.
                Poll::Ready(Err(_)) => break client.submit_flush(),
            }
            let follower = poll_fn(|_| match eager.made.lock().unwrap().take() {
                Some(follower) => Poll::Ready(follower),
                None => Poll::Pending,
            })
            .await;
            if request.await.is_err() {
                break follower;
            }
        };
        let error = follower.await.unwrap_err();
        let shutting_down =
            matches!(error, Error::Lost { sent: false, reason: LostReason::ShuttingDown, .. });
        assert!(shutting_down, "{error}");
        key.open();
        held.await.1.unwrap();
    });
}

#[test]
fn a_disk_reads_writes_and_seeks() {
    run(|| async {
        let (_server, client) = connected(memory(1 << 20), &Options::default()).await;
        let data = Pattern(7).bytes(0, 300_000);
        let mut disk = client.disk();
        disk.seek(SeekFrom::Start(1000)).await.unwrap();
        copy(&mut &data[..], &mut disk).await.unwrap();
        disk.flush().await.unwrap();
        assert_eq!(disk.seek(SeekFrom::Current(-300_000)).await.unwrap(), 1000);
        let mut found = Vec::new();
        copy(&mut (&mut disk).take(300_000), &mut found).await.unwrap();
        assert!(found == data);
        assert_eq!(disk.seek(SeekFrom::End(-4)).await.unwrap(), (1 << 20) - 4);
        let error = disk.write_all(b"hello").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        disk.seek(SeekFrom::End(-4)).await.unwrap();
        let mut last = Vec::new();
        disk.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"hell");
    });
}

#[test]
fn connections_are_shared_and_left() {
    run(|| async {
        let server = Server::new(ExportMap::new().with("", memory(1 << 20)).unwrap());
        let listening = server.listen_tcp("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("nbd://{}", listening.local_addr()).parse().unwrap();
        let mut options = Options::default();
        options.connections = 4;
        let client = Client::connect_with(&uri, &options).await.unwrap();
        assert_eq!((client.connections(), server.connections()), (4, 4));
        for at in 0..16 {
            let data = Pattern(at).bytes(0, 512);
            client.write_at(&data, 0).await.unwrap();
            for _ in 0..4 {
                assert_eq!(client.read(0, 512).await.unwrap(), data);
            }
        }
        client.flush().await.unwrap();
        drop(client);
        server.shut_down();
        server.wait().await;
    });
}

#[test]
fn futures_can_be_sent_to_other_threads() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    run(|| async {
        let server = Server::new(ExportMap::new().with("a", memory(512)).unwrap());
        let listening = server.listen_tcp("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("nbd://{}", listening.local_addr()).parse().unwrap();
        let options = Options::default();
        let mut haggling = is_send(haggle(&uri, &options)).await.unwrap();
        assert_eq!(is_send(haggling.list()).await.unwrap().len(), 1);
        assert_eq!(is_send(haggling.info("a")).await.unwrap().size, 512);
        is_send(haggling.list_meta_contexts("a", &["base:"])).await.unwrap();
        is_send(haggling.abort()).await.unwrap();
        let uri = uri.with_export("a").unwrap();
        let client = is_send(Client::connect_with(&uri, &options)).await.unwrap();
        let mut buffer = [0; 512];
        is_send(client.read_at(&mut buffer, 0)).await.unwrap();
        is_send(client.write_at(&buffer, 0)).await.unwrap();
        is_send(client.disconnect()).await;
    });
}

#[test]
fn a_silent_server_is_given_up() {
    run(|| async {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri: Uri = format!("nbd://{}", silent.local_addr().unwrap()).parse().unwrap();
        let mut options = Options::default();
        options.connect_timeout = Duration::from_millis(100);
        let error = Client::connect_with(&uri, &options).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    });
}
