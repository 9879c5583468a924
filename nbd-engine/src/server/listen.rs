//! Accepting connections.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::select;
use rustix::io::Errno;

use super::listening::{Listening, SocketHandle};
use super::{Permit, ServerState, serve};
use crate::export::PeerAddr;
use crate::net::{LocalAddr, SocketPath};
use crate::runtime::{BoxFuture, Runtime};
use crate::transport::Transport;

/// A connection that was accepted.
#[derive(Debug)]
#[non_exhaustive]
pub struct Accepted<T> {
    /// The stream.
    pub transport: T,
    /// The address of the client.
    pub peer: PeerAddr,
}

impl<T> Accepted<T> {
    /// A stream from the client at an address.
    pub fn new(transport: T, peer: impl Into<PeerAddr>) -> Self {
        Self { transport, peer: peer.into() }
    }
}

/// Something that connections come from.
pub trait Listen: Send {
    /// The streams that it gives.
    type Transport: Transport + 'static;

    /// Waits for the next connection. The future is dropped when the socket is closed, and not before it is ready
    /// otherwise.
    ///
    /// # Errors
    /// The engine logs them, and calls again after a tenth of a second, or at once when only one connection is lost by
    /// it ([`io::ErrorKind::ConnectionAborted`], for example).
    fn accept(&mut self) -> impl Future<Output = io::Result<Accepted<Self::Transport>>> + Send;
}

/// The listener of a Unix socket with its path, which is removed before the listener is closed: a server that takes the
/// path over meanwhile can't have its own socket removed.
impl<L: Listen> Listen for (SocketPath, L) {
    type Transport = L::Transport;

    fn accept(&mut self) -> impl Future<Output = io::Result<Accepted<Self::Transport>>> + Send {
        self.1.accept()
    }
}

/// After a failure to accept (out of descriptors, mostly) the next try is made this much later.
const RETRY: Duration = Duration::from_millis(100);

/// Accepts connections from all of `sockets` and serves each as a task of the runtime, as many at a time as the
/// configuration allows. Each socket is given with the address that [`Listening`] reports for it, and has a task of its
/// own, which `spawn` starts. The task ends when the [`Listening`] is closed or the server shuts down, and does not wait
/// for connections: see [`ServerState::ended`].
///
/// A connection above [`ServerConfig::with_max_connections`](super::ServerConfig::with_max_connections) waits for another
/// one to end, and is closed once it, or the first of those in front of it, has waited for
/// [`ServerConfig::with_admission_timeout`](super::ServerConfig::with_admission_timeout).
///
/// When a listener panics the server shuts down, since it would no longer be what it looks like from outside, and
/// reports it in its [`Outcome`](super::Outcome).
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] without any socket, [`io::ErrorKind::Other`] when the server has begun to shut down,
/// and those of `spawn`; then all sockets are closed.
pub fn listen<L: Listen + 'static, R: Runtime>(
    state: &Arc<ServerState>,
    sockets: impl IntoIterator<Item = (LocalAddr, L)>,
    runtime: &R,
    mut spawn: impl FnMut(BoxFuture) -> io::Result<()>,
) -> io::Result<Listening> {
    let (addresses, listeners): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
    let (listening, handles) = Listening::new(addresses, state)?;
    if state.is_shutting_down() {
        let address = listening.local_addr();
        return Err(io::Error::other(format!("cannot listen on {address}: the server shuts down")));
    }
    for (listener, handle) in listeners.into_iter().zip(handles) {
        let socket = Socket { listener, handle };
        let accepting = accept_from(socket, Arc::clone(state), runtime.clone());
        spawn(Box::pin(accepting)).inspect_err(|_| listening.begin_to_close())?;
    }
    Ok(listening)
}

/// A listener, which is closed before its handle reports it.
struct Socket<L> {
    listener: L,
    handle: SocketHandle,
}

async fn accept_from<L: Listen, R: Runtime>(
    mut socket: Socket<L>,
    state: Arc<ServerState>,
    runtime: R,
) {
    let fault = Fault(&state);
    let mut gate = Gate::default();
    let Socket { listener, handle } = &mut socket;
    loop {
        let accepted = {
            let mut accept = pin!(listener.accept());
            let accept = poll_fn(|cx| {
                let accepted = accept.as_mut().poll(cx);
                if accepted.is_pending() {
                    gate.queue_ends();
                }
                accepted
            });
            unless_closed(&state, handle, accept).await
        };
        let Some(accepted) = accepted else { break };
        let Accepted { transport, peer } = match accepted {
            Ok(accepted) => accepted,
            Err(error) if ends_one_connection(&error) => {
                tracing::debug!(%error, "a client hung up before it was accepted");
                continue;
            }
            Err(error) => {
                if let Some(metrics) = state.metrics() {
                    metrics.accept_failed();
                }
                if let Some(times) = state.floods().accept.count() {
                    tracing::warn!(%error, times, "cannot accept a connection{}", remedy(&error));
                }
                unless_closed(&state, handle, runtime.sleep(RETRY)).await;
                continue;
            }
        };
        if !state.config().access().admits(&peer) {
            if let Some(metrics) = state.metrics() {
                metrics.denied();
            }
            if let Some(times) = state.floods().denied.count() {
                tracing::warn!(%peer, times, "refused a connection: its peer may not connect");
            }
            continue;
        }
        match admission(&state, handle, &mut gate, &runtime).await {
            Some(Admission::Granted(permit)) => {
                let connection = serve(permit, transport, runtime.clone(), peer);
                // Why it ended is in the log.
                runtime.spawn(Box::pin(async move {
                    let _logged = connection.await;
                }));
            }
            Some(Admission::Refused) => {
                state.count_refused();
                if let Some(times) = state.floods().full.count() {
                    let max = state.config().max_connections();
                    tracing::warn!(
                        %peer,
                        times,
                        max_connections = max,
                        "the server is full: refused a connection; allow more (--max-connections)"
                    );
                }
            }
            Some(Admission::ShuttingDown) | None => break,
        }
    }
    core::mem::forget(fault);
    state.floods().report_rest();
    #[cfg(feature = "tls")]
    if let Some(tls) = state.config().tls() {
        tls.report_rest();
    }
}

/// Shuts the server down when it is dropped by a panic.
struct Fault<'a>(&'a ServerState);

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("a listener panicked");
        }
    }
}

/// Whether a connection that was accepted is let in. If there is room it is, even if the socket is to be closed meanwhile:
/// a client is not to notice that its connection was the last one from there.
async fn admission(
    state: &Arc<ServerState>,
    socket: &SocketHandle,
    gate: &mut Gate,
    runtime: &impl Runtime,
) -> Option<Admission> {
    let mut admitted = pin!(gate.admit(state, runtime));
    match admitted.as_mut().now_or_never() {
        Some(admission) => Some(admission),
        None => unless_closed(state, socket, admitted).await,
    }
}

/// What `future` gives, unless the server shuts down or the socket is to be closed first.
async fn unless_closed<F: Future>(
    state: &ServerState,
    socket: &SocketHandle,
    future: F,
) -> Option<F::Output> {
    // Asked first: what waits for the socket then lets go of it before it is closed.
    let (shutdown, closing) = (pin!(state.shutdown_begun()), pin!(socket.closing()));
    let (mut closed, mut future) = (select(shutdown, closing), pin!(future));
    poll_fn(|cx| match closed.poll_unpin(cx) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => future.as_mut().poll(cx).map(Some),
    })
    .await
}

// Whether a failure to accept is that of one connection, which is gone with it, and not of this machine.
fn ends_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted | Kind::ConnectionReset | Kind::NotConnected | Kind::Interrupted
    )
}

fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => {
            ": this process has no file descriptor left; allow it more (ulimit -n), or fewer connections \
             (--max-connections)"
        }
        Some(Errno::NFILE) => {
            ": the system has no file descriptor left; close some, or raise fs.file-max"
        }
        _ => "",
    }
}

/// What becomes of a connection that was accepted.
enum Admission {
    Granted(Permit),
    Refused,
    ShuttingDown,
}

/// Lets connections in while there is room.
#[derive(Default)]
struct Gate {
    /// Runs from the first connection that found no room, for all that are behind it.
    deadline: Option<BoxFuture>,
}

impl Gate {
    /// Nobody is behind those that were refused: whoever comes next waits as they did.
    fn queue_ends(&mut self) {
        self.deadline = None;
    }

    /// One connection waits at a time; all that come meanwhile are in the listener's queue. So the time runs from the
    /// first that found the server full, and the last in the queue does not wait for the sum of all.
    async fn admit(&mut self, service: &Arc<ServerState>, runtime: &impl Runtime) -> Admission {
        let mut admitted = pin!(service.admit());
        let limit = service.config().admission_timeout();
        let admission = poll_fn(|cx| {
            if let Poll::Ready(permit) = admitted.as_mut().poll(cx) {
                return Poll::Ready(permit.map_or(Admission::ShuttingDown, Admission::Granted));
            }
            let deadline = self.deadline.get_or_insert_with(|| {
                tracing::info!("the server is full: a connection waits");
                runtime.sleep(limit)
            });
            if deadline.as_mut().poll(cx).is_ready() {
                // It is polled again by the next connection, if the server is still full.
                *deadline = Box::pin(core::future::ready(()));
                return Poll::Ready(Admission::Refused);
            }
            Poll::Pending
        })
        .await;
        if matches!(admission, Admission::Granted(_)) {
            self.deadline = None;
        }
        admission
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::export::ExportMap;
    use crate::server::ServerConfig;
    use crate::transport::{AnyTransport, Plain};

    /// A listener with a fault.
    struct Faulty;

    impl Listen for Faulty {
        type Transport = AnyTransport;

        async fn accept(&mut self) -> io::Result<Accepted<AnyTransport>> {
            panic!("a faulty listener");
        }
    }

    #[derive(Clone)]
    struct NoRuntime;

    impl Runtime for NoRuntime {
        fn sleep(&self, _: Duration) -> BoxFuture {
            Box::pin(core::future::pending())
        }

        fn spawn(&self, _: BoxFuture) {}
    }

    /// A listener with clients in queues of these lengths, one after the other.
    struct Queues(Vec<usize>);

    impl Listen for Queues {
        type Transport = AnyTransport;

        async fn accept(&mut self) -> io::Result<Accepted<AnyTransport>> {
            poll_fn(|cx| match self.0.first_mut() {
                None => Poll::Pending,
                Some(0) => {
                    self.0.remove(0);
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Some(left) => {
                    *left -= 1;
                    Poll::Ready(())
                }
            })
            .await;
            Ok(Accepted::new(Box::new(Plain(Silent)), PeerAddr::Unix(None)))
        }
    }

    /// A runtime whose sleeps end the second time that they are looked at, and are counted.
    #[derive(Clone, Default)]
    struct Sleeps(Arc<AtomicUsize>);

    impl Runtime for Sleeps {
        fn sleep(&self, _: Duration) -> BoxFuture {
            self.0.fetch_add(1, Ordering::Relaxed);
            let mut is_over = false;
            Box::pin(poll_fn(move |cx| {
                cx.waker().wake_by_ref();
                if core::mem::replace(&mut is_over, true) { Poll::Ready(()) } else { Poll::Pending }
            }))
        }

        fn spawn(&self, _: BoxFuture) {}
    }

    #[test]
    fn at_a_full_server_each_queue_waits_once() {
        nbd_testkit::cases(20, |random| {
            let queues: Vec<_> =
                (0..1 + random.below(5)).map(|_| random.below(4) as usize).collect();
            let waits = queues.iter().filter(|length| **length > 0).count();
            let state =
                ServerState::new(ExportMap::new(), ServerConfig::new().with_max_connections(1));
            let _only_one = state.admit().now_or_never().unwrap().unwrap();
            let (sleeps, mut tasks) = (Sleeps::default(), Vec::new());
            let listening = listen(&state, [nowhere(Queues(queues.clone()))], &sleeps, |task| {
                tasks.push(task);
                Ok(())
            });
            for _ in 0..100 {
                assert!((&mut tasks[0]).now_or_never().is_none());
            }
            assert_eq!(sleeps.0.load(Ordering::Relaxed), waits, "{queues:?}");
            drop(listening);
        });
    }

    fn nowhere<L>(listener: L) -> (LocalAddr, L) {
        (LocalAddr::Unix("".into()), listener)
    }

    /// A listener without clients, or one that fails each time.
    struct Quiet {
        fails: bool,
        open: Arc<()>,
    }

    impl Listen for Quiet {
        type Transport = AnyTransport;

        async fn accept(&mut self) -> io::Result<Accepted<AnyTransport>> {
            let _open = &self.open;
            if self.fails { Err(Errno::MFILE.into()) } else { core::future::pending().await }
        }
    }

    #[test]
    fn a_listener_is_closed_while_it_waits_and_before_its_close_returns() {
        for fails in [false, true] {
            let state = ServerState::new(ExportMap::new(), ServerConfig::default());
            let open = Arc::new(());
            let mut tasks = Vec::new();
            let quiet = [0, 1].map(|_| nowhere(Quiet { fails, open: Arc::clone(&open) }));
            let listening = listen(&state, quiet, &NoRuntime, |task| {
                tasks.push(task);
                Ok(())
            });
            let listening = listening.unwrap();
            assert!(tasks.iter_mut().all(|task| task.now_or_never().is_none()));
            let mut closing = pin!(listening.close());
            assert!(tasks.pop().unwrap().now_or_never().is_some());
            assert!(closing.as_mut().now_or_never().is_none(), "one is open");
            assert!(tasks.pop().unwrap().now_or_never().is_some());
            assert_eq!(Arc::strong_count(&open), 1);
            assert!(closing.now_or_never().is_some());
            assert!(listening.clone().close().now_or_never().is_some(), "it is closed already");
            assert!(!state.is_shutting_down());
        }
    }

    /// A stream on which nothing ever happens.
    struct Silent;

    impl futures_io::AsyncRead for Silent {
        fn poll_read(
            self: core::pin::Pin<&mut Self>,
            _: &mut core::task::Context<'_>,
            _: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }
    }

    impl futures_io::AsyncWrite for Silent {
        fn poll_write(
            self: core::pin::Pin<&mut Self>,
            _: &mut core::task::Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(
            self: core::pin::Pin<&mut Self>,
            _: &mut core::task::Context<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_close(
            self: core::pin::Pin<&mut Self>,
            _: &mut core::task::Context<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    /// Gives a connection in the very moment in which its socket is to be closed.
    struct LastOne(Arc<std::sync::OnceLock<Listening>>);

    impl Listen for LastOne {
        type Transport = Plain<Silent>;

        async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
            self.0.get().unwrap().begin_to_close();
            Ok(Accepted::new(Plain(Silent), "a client"))
        }
    }

    /// Counts the connections that it is to run.
    #[derive(Clone)]
    struct Counting(Arc<AtomicUsize>);

    impl Runtime for Counting {
        fn sleep(&self, _: Duration) -> BoxFuture {
            Box::pin(core::future::pending())
        }

        fn spawn(&self, _: BoxFuture) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_connection_that_was_accepted_as_its_socket_is_closed_is_served() {
        let state = ServerState::new(ExportMap::new(), ServerConfig::default());
        let (handle, runtime) = (Arc::default(), Counting(Arc::default()));
        let mut tasks = Vec::new();
        let listening = listen(&state, [nowhere(LastOne(Arc::clone(&handle)))], &runtime, |task| {
            tasks.push(task);
            Ok(())
        });
        handle.set(listening.unwrap()).unwrap();
        assert!(tasks.pop().unwrap().now_or_never().is_some(), "it is closed");
        assert_eq!(runtime.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_socket_without_a_task_is_closed_with_all_others() {
        let state = ServerState::new(ExportMap::new(), ServerConfig::default());
        let open = Arc::new(());
        let quiet = [0, 1, 2].map(|_| nowhere(Quiet { fails: false, open: Arc::clone(&open) }));
        let mut tasks = Vec::new();
        let started = listen(&state, quiet, &NoRuntime, |task| {
            if tasks.len() == 1 {
                return Err(Errno::AGAIN.into());
            }
            tasks.push(task);
            Ok(())
        });
        assert_eq!(started.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(tasks.pop().unwrap().now_or_never().is_some());
        assert_eq!(Arc::strong_count(&open), 1);
        let none: [(LocalAddr, Quiet); 0] = [];
        let error = listen(&state, none, &NoRuntime, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_server_without_its_listener_shuts_down_and_reports_it() {
        let state = ServerState::new(ExportMap::new(), ServerConfig::default());
        assert!(!state.outcome().listener_failed);
        let listening = listen(&state, [nowhere(Faulty)], &NoRuntime, |task| {
            catch_unwind(AssertUnwindSafe(|| task.now_or_never())).unwrap_err();
            Ok(())
        });
        assert!(state.is_shutting_down());
        assert!(state.outcome().listener_failed);
        listening.unwrap().join().now_or_never().expect("it is closed");
    }

    #[test]
    fn descriptors_that_ran_out_have_a_remedy() {
        let remedy = |errno: Errno| remedy(&errno.into());
        assert!(remedy(Errno::MFILE).contains("ulimit -n"));
        assert!(remedy(Errno::MFILE).contains("--max-connections"));
        assert!(remedy(Errno::NFILE).contains("fs.file-max"));
        assert_eq!(remedy(Errno::NOMEM), "");
    }

    #[test]
    fn a_client_that_hangs_up_early_is_not_a_failure_to_accept() {
        for (errno, ends) in [
            (Errno::CONNABORTED, true),
            (Errno::MFILE, false),
            (Errno::NFILE, false),
            (Errno::NOBUFS, false),
            (Errno::NOMEM, false),
        ] {
            assert_eq!(ends_one_connection(&errno.into()), ends, "{errno:?}");
        }
    }
}
