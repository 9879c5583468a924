//! Accepting connections.

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Permit, ServerState, serve};
use crate::export::PeerAddr;
use crate::net::SocketPath;
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

    /// Waits for the next connection.
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

/// Accepts connections and serves each as a task of its own, as many at a time as the settings allow, until the
/// service shuts down. Does not wait for the connections: see [`ServerState::drained`].
///
/// A connection above [`ServerConfig::with_max_connections`](super::ServerConfig::with_max_connections) waits for another one to end, and
/// is closed once the server has been full for [`ServerConfig::with_admission_timeout`](super::ServerConfig::with_admission_timeout).
///
/// When the listener panics the service shuts down, since it would no longer be what it looks like from outside, and
/// says so in its [`Outcome`](super::Outcome).
pub async fn listen<L: Listen, R: Runtime>(service: Arc<ServerState>, listener: L, runtime: R) {
    let fault = Fault(&service);
    let mut listener = listener;
    let mut gate = Gate::default();
    while let Some(accepted) = until_shutdown(&service, listener.accept()).await {
        let Accepted { transport, peer } = match accepted {
            Ok(accepted) => accepted,
            Err(error) if ends_one_connection(&error) => {
                tracing::debug!(%error, "a client hung up before it was accepted");
                continue;
            }
            Err(error) => {
                if let Some(times) = service.floods().accept.count() {
                    tracing::warn!(%error, times, "cannot accept a connection{}", remedy(&error));
                }
                runtime.sleep(RETRY).await;
                continue;
            }
        };
        match gate.admit(&service, &runtime).await {
            Admission::Granted(permit) => {
                let connection = serve(permit, transport, runtime.clone(), peer);
                // Why it ended is in the log.
                runtime.spawn(Box::pin(async move {
                    let _logged = connection.await;
                }));
            }
            Admission::Refused => {
                if let Some(times) = service.floods().full.count() {
                    let max = service.config().max_connections();
                    tracing::warn!(
                        %peer,
                        times,
                        max_connections = max,
                        "the server is full: refused a connection; allow more (--max-connections)"
                    );
                }
            }
            Admission::ShuttingDown => break,
        }
    }
    core::mem::forget(fault);
    service.floods().report_rest();
}

/// Shuts the service down when it is dropped, by a panic.
struct Fault<'a>(&'a ServerState);

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("a listener panicked");
        }
    }
}

/// What `future` gives, unless the service shuts down first.
async fn until_shutdown<F: Future>(service: &ServerState, future: F) -> Option<F::Output> {
    let (mut future, mut shutdown) = (pin!(future), pin!(service.shutdown_begun()));
    poll_fn(|cx| match shutdown.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => future.as_mut().poll(cx).map(Some),
    })
    .await
}

/// Whether a failure to accept is that of one connection, which is gone with it, and not of this machine.
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
    /// Runs from the first connection that found no room.
    deadline: Option<BoxFuture>,
}

impl Gate {
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

    use futures_util::FutureExt;

    use super::*;
    use crate::export::ExportMap;
    use crate::server::ServerConfig;
    use crate::transport::AnyTransport;

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

    #[test]
    fn a_server_without_its_listener_shuts_down_and_reports_it() {
        let service = ServerState::new(ExportMap::new(), ServerConfig::default());
        assert!(!service.outcome().listener_failed);
        let listening = listen(Arc::clone(&service), Faulty, NoRuntime);
        catch_unwind(AssertUnwindSafe(|| listening.now_or_never())).unwrap_err();
        assert!(service.is_shutting_down());
        assert!(service.outcome().listener_failed);
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
