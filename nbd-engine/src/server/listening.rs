//! The handle of what a server listens on.

use core::future::Future;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::io;
use std::sync::Arc;

use event_listener::Event;

use super::ServerState;
use super::state::Counted;
use crate::net::LocalAddr;

/// The sockets that one call made a server listen on. Cheap to clone: clones refer to the same sockets. Dropping it
/// closes nothing.
#[derive(Clone, Debug)]
pub struct Listening {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// At least one.
    addresses: Vec<LocalAddr>,
    closing: AtomicBool,
    /// Sockets that are not closed yet.
    open: AtomicUsize,
    /// Notified when sockets are to be closed, and when the last one is.
    changed: Event,
}

impl Shared {
    async fn until(&self, reached: impl Fn() -> bool) {
        while !reached() {
            let changed = self.changed.listen();
            if reached() {
                return;
            }
            changed.await;
        }
    }
}

impl Listening {
    /// The handle of open sockets with these addresses, and one for each of them.
    pub(super) fn new(
        addresses: Vec<LocalAddr>,
        state: &Arc<ServerState>,
    ) -> io::Result<(Self, Vec<SocketHandle>)> {
        if addresses.is_empty() {
            let text = "there is no socket to listen on";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let count = addresses.len();
        let shared = Arc::new(Shared {
            addresses,
            closing: AtomicBool::new(false),
            open: AtomicUsize::new(count),
            changed: Event::new(),
        });
        let handle =
            |_| SocketHandle { shared: Arc::clone(&shared), _counted: Counted::socket(state) };
        let handles = (0..count).map(handle).collect();
        Ok((Self { shared }, handles))
    }

    /// The first address that is listened on, with its actual port.
    #[must_use]
    pub fn local_addr(&self) -> &LocalAddr {
        &self.shared.addresses[0]
    }

    /// All addresses that are listened on, with their actual ports: several for a host name or a list.
    #[must_use]
    pub fn local_addrs(&self) -> &[LocalAddr] {
        &self.shared.addresses
    }

    /// Stops listening here, while the server, its other listeners and its connections go on. The path of a Unix socket
    /// that the server bound is removed, unless another socket has taken its place. A client that was not admitted yet,
    /// since the server is full, is disconnected.
    ///
    /// Closing begins at once. The future is ready when the sockets are closed, so that the addresses can be bound
    /// again; after that, and after a shutdown, it is ready immediately. Cancel-safe: dropped before it is ready, the
    /// sockets are closed all the same.
    pub fn close(&self) -> impl Future<Output = ()> + Send + '_ {
        self.begin_to_close();
        self.join()
    }

    /// Waits until the sockets are closed: by [`close`](Self::close), or since the server shuts down. The end of a server
    /// waits for all of its sockets, see [`ServerState::ended`]. Cancel-safe.
    pub async fn join(&self) {
        self.shared.until(|| self.shared.open.load(Ordering::Acquire) == 0).await;
    }

    pub(super) fn begin_to_close(&self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.changed.notify(usize::MAX);
    }
}

/// What the task of one socket holds as long as the socket is open.
#[derive(Debug)]
pub(super) struct SocketHandle {
    shared: Arc<Shared>,
    _counted: Counted,
}

impl SocketHandle {
    /// Is ready once the socket is to be closed.
    pub(super) async fn closing(&self) {
        self.shared.until(|| self.shared.closing.load(Ordering::Acquire)).await;
    }
}

impl Drop for SocketHandle {
    fn drop(&mut self) {
        if self.shared.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.changed.notify(usize::MAX);
        }
    }
}
