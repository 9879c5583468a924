//! What only futures have, of every asynchronous adapter's client: they are dropped, polled by hand, sent to other
//! threads, and waited for by many tasks. The server is the reference server.

use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use std::future::{Future, poll_fn};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::task::Wake;
use std::thread;
use std::time::{Duration, Instant};

use nbd_engine::Runtime;
use nbd_engine::client::{
    Client, ClientConfig, Connector, CurrentRuntime, Error, Flags, LostReason, Negotiation, Pending,
};
use nbd_engine::export::{ExportMap, Memory};
use nbd_testkit::Pattern;

use crate::SOON;
use crate::clients::asynchronous::AsyncClient;
use crate::exports::{Disk, Gate, Way};

/// Makes a test of each scenario with tasks for an asynchronous adapter's client.
#[macro_export]
macro_rules! task_suite {
    ($client:expr) => {
        $crate::task_suite! { @tests $client,
            many_tasks_share_a_client
            a_future_that_is_dropped_harms_no_other
            any_of_several_requests_can_be_waited_for
            requests_time_out_and_the_client_goes_on
            a_server_that_vanishes_fails_what_is_in_flight
            a_request_that_follows_a_refusal_at_once_learns_that_the_server_shuts_down
            a_walk_that_is_interrupted_goes_on_where_it_was
            futures_can_be_sent_to_other_threads
        }
    };
    (@tests $client:expr, $($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                $crate::tasks::$name($client);
            }
        )*
    };
}

/// A server of one connection, on threads. Ends with it.
struct Served {
    server: nbd_blocking::Server,
    end: UnixStream,
}

impl Served {
    fn vanish(&self) {
        self.end.shutdown(Shutdown::Both).expect("it is open");
    }
}

async fn connected<A: AsyncClient>(
    exports: ExportMap,
    config: &ClientConfig,
) -> (Served, Client<A::Connector>) {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    theirs.set_nonblocking(true).expect("a setting");
    let end = ours.try_clone().expect("a descriptor");
    let server = nbd_blocking::Server::new(exports);
    let serving = server.clone();
    thread::spawn(move || serving.serve_unix(ours).is_ok());
    let client = Client::over(A::stream(theirs), "", config).await.expect("the server is there");
    (Served { server, end }, client)
}

fn memory(size: u64) -> ExportMap {
    let disk = Memory::new(size).expect("it is small");
    ExportMap::new().with("", disk).expect("a short name")
}

/// A disk behind a closed gate, which is passed from [`Gate::END`] on.
fn gated() -> (ExportMap, Arc<Disk>) {
    let disk = Disk::new(1 << 20);
    disk.gate.close();
    (ExportMap::new().with("", Way::Workers.of(&disk)).expect("a short name"), disk)
}

const FREE: u64 = Gate::END;

/// What a future is after one turn.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Each task finds what it wrote, though most have to wait for a slot in flight.
pub fn many_tasks_share_a_client<A: AsyncClient>(adapter: A) {
    adapter.clone().run(async {
        let config = ClientConfig::new().with_max_in_flight(32);
        let (_served, client) = connected::<A>(memory(2 << 20), &config).await;
        let runtime = A::Connector::current().runtime();
        let (done, ended) = smol::channel::unbounded();
        for task in 0..200 {
            let (client, done) = (client.clone(), done.clone());
            runtime.spawn(Box::pin(async move {
                let offset = task * 4096;
                let mut fine = true;
                for round in 0..10 {
                    let data = Pattern(round).bytes(offset, 4096);
                    client.write_all_at(&data, offset).await.expect("a write");
                    let found = client.read(offset, 4096, Flags::empty()).await.expect("a read");
                    fine &= found == data;
                }
                done.send(fine).await.expect("the scenario waits");
            }));
        }
        drop(done);
        for _ in 0..200 {
            assert!(ended.recv().await.expect("no task has panicked"));
        }
    });
}

/// Nobody writes to a buffer that was given back, and the stream stays in step.
pub fn a_future_that_is_dropped_harms_no_other<A: AsyncClient>(adapter: A) {
    adapter.clone().run(async {
        let (exports, disk) = gated();
        let (_served, client) = connected::<A>(exports, &ClientConfig::default()).await;
        client.write_all_at(&[9; 512], FREE).await.expect("a write");
        let mut buffer = vec![1; 4096];
        {
            let read = pin!(client.read_exact_at(&mut buffer, 0));
            let write = pin!(client.write_all_at(&[7; 4096], 4096));
            assert!(poll_once(read).await.is_none() && poll_once(write).await.is_none());
            // Both are sent by now: this one was asked for later.
            client.read(FREE, 512, Flags::empty()).await.expect("a read");
        }
        assert_eq!(buffer, [1; 4096], "nobody writes to a buffer that was given back");
        for _ in 0..10 {
            let found = client.read(FREE, 512, Flags::empty()).await.expect("a read");
            assert_eq!(found, vec![9; 512]);
        }
        disk.gate.open();
        // The write was sent, and may be under way at this moment.
        let found = client.read(4096, 4096, Flags::empty()).await.expect("a read");
        assert!(found.iter().all(|byte| matches!(byte, 0 | 7)));
    });
}

/// The quickest one is told from the others.
pub fn any_of_several_requests_can_be_waited_for<A: AsyncClient>(adapter: A) {
    adapter.clone().run(async {
        let (exports, disk) = gated();
        let (_served, client) = connected::<A>(exports, &ClientConfig::default()).await;
        let read = |offset| client.submit_read_into(offset, vec![1; 512], Flags::empty());
        let requests = [read(0), read(FREE)];
        assert_eq!(Pending::any(requests.iter()).await, Some(1));
        assert!(!requests[0].is_done());
        assert_eq!(Pending::<Result<(), Error>>::any([].iter()).await, None);
        disk.gate.open();
        for request in requests {
            request.await.1.expect("a read");
        }
    });
}

/// Requests that take too long fail, and others are answered.
pub fn requests_time_out_and_the_client_goes_on<A: AsyncClient>(adapter: A) {
    adapter.clone().run(async {
        let (exports, disk) = gated();
        let config = ClientConfig::new().with_request_timeout(Some(Duration::from_secs(1)));
        let (_served, client) = connected::<A>(exports, &config).await;
        let error = client.read(0, 512, Flags::empty()).await.expect_err("the gate is closed");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        let error = client.write_all_at(&[0; 512], 512).await.expect_err("the gate is closed");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        disk.gate.open();
        // On a busy machine more may time out.
        let begun = Instant::now();
        let found = loop {
            match client.read(FREE, 512, Flags::empty()).await {
                Err(Error::TimedOut { .. }) if begun.elapsed() < SOON => {}
                found => break found.expect("a read"),
            }
        };
        assert_eq!(found, vec![0; 512]);
    });
}

/// What was sent may have been done; what comes later was not.
pub fn a_server_that_vanishes_fails_what_is_in_flight<A: AsyncClient>(adapter: A) {
    adapter.clone().run(async {
        let (exports, disk) = gated();
        let (served, client) = connected::<A>(exports, &ClientConfig::default()).await;
        let read = client.submit_read_into(0, vec![1; 512], Flags::empty());
        client.read(FREE, 512, Flags::empty()).await.expect("a read");
        served.vanish();
        let (buffer, result) = read.await;
        assert!(matches!(result, Err(Error::Lost { sent: true, .. })), "{result:?}");
        assert_eq!(buffer.len(), 512);
        let error = client.flush().await.expect_err("the connection is lost");
        assert!(matches!(error, Error::Lost { sent: false, .. }), "{error}");
        disk.gate.open();
    });
}

/// Makes a request the moment it is woken, before whatever wakes it does anything else.
struct Eager<C> {
    client: Client<C>,
    made: Mutex<Option<Pending<Result<(), Error>>>>,
    then: Waker,
}

impl<C: Send + Sync + 'static> Wake for Eager<C> {
    fn wake(self: Arc<Self>) {
        *self.made.lock().expect("no panic while it is held") = Some(self.client.submit_flush());
        self.then.wake_by_ref();
    }
}

/// No request falls between the refusal of one and the end of the connection.
pub fn a_request_that_follows_a_refusal_at_once_learns_that_the_server_shuts_down<
    A: AsyncClient,
>(
    adapter: A,
) {
    adapter.clone().run(async {
        let (exports, disk) = gated();
        let (served, client) = connected::<A>(exports, &ClientConfig::default()).await;
        let held = client.submit_read_into(0, vec![1; 512], Flags::empty());
        client.read(FREE, 512, Flags::empty()).await.expect("a read");
        served.server.shut_down();
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
            let follower = poll_fn(|_| {
                let made = eager.made.lock().expect("no panic while it is held").take();
                made.map_or(Poll::Pending, Poll::Ready)
            })
            .await;
            if request.await.is_err() {
                break follower;
            }
        };
        let error = follower.await.expect_err("the server shuts down");
        let shutting_down =
            matches!(error, Error::Lost { sent: false, reason: LostReason::ShuttingDown, .. });
        assert!(shutting_down, "{error}");
        disk.gate.open();
        held.await.1.expect("it was in flight");
    });
}

/// A walk along the block status loses nothing when its future is dropped.
pub fn a_walk_that_is_interrupted_goes_on_where_it_was<A: AsyncClient>(adapter: A) {
    const SIZE: u64 = 1 << 20;
    adapter.clone().run(async {
        let config = ClientConfig::new().with_contexts(["base:allocation"]);
        let (_served, client) = connected::<A>(memory(SIZE), &config).await;
        for index in (0..16).step_by(2) {
            client.write_all_at(&[1; 65536], index * 65536).await.expect("a write");
        }
        let runs = client.block_status_range("base:allocation", 0, SIZE);
        let (mut runs, mut found) = (runs.with_window(65536), Vec::new());
        loop {
            let interrupted = poll_once(pin!(runs.next())).await;
            let next = match interrupted {
                Some(next) => next,
                None => runs.next().await,
            };
            let Some(run) = next else { break };
            found.push(run.expect("a run").range());
        }
        let expected: Vec<_> = (0..16).map(|index| index * 65536..(index + 1) * 65536).collect();
        assert_eq!(found, expected);
    });
}

/// They are what runtimes with several threads ask for.
pub fn futures_can_be_sent_to_other_threads<A: AsyncClient>(adapter: A) {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    adapter.clone().run(async {
        let disk = Memory::new(512).expect("it is small");
        let exports = ExportMap::new().with("a", disk).expect("a short name");
        let server = nbd_blocking::Server::new(exports);
        let listening = server.listen_tcp("127.0.0.1:0").expect("a port");
        let uri = format!("nbd://{}", listening.local_addr()).parse().expect("a URI");
        let config = ClientConfig::default();
        let negotiation = is_send(Negotiation::<A::Connector>::connect(&uri, &config)).await;
        let mut negotiation = negotiation.expect("the server is there");
        assert_eq!(is_send(negotiation.list()).await.expect("a list").len(), 1);
        assert_eq!(is_send(negotiation.info("a")).await.expect("it is there").size(), 512);
        is_send(negotiation.list_meta_contexts("a", &["base:"])).await.expect("it is there");
        is_send(negotiation.set_meta_contexts("a", &["base:"])).await.expect("it is there");
        let client = is_send(negotiation.enter("a")).await.expect("it is there");
        let mut buffer = [0; 512];
        is_send(client.read_at(&mut buffer, 0)).await.expect("a read");
        is_send(client.write_at(&buffer, 0)).await.expect("a write");
        is_send(client.block_status_range("base:", 0, 512).next()).await;
        is_send(client.disconnect()).await;
        is_send(negotiation.abort()).await.expect("there is nothing to abort");
        let uri = uri.with_export("a").expect("a short name");
        let client = is_send(Client::<A::Connector>::connect_with(&uri, &config)).await;
        assert_eq!(client.expect("the server is there").size(), 512);
        server.shut_down();
    });
}
