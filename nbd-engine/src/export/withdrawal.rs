//! Taking an export away from the clients that use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::{Event, EventListener};

/// Takes an export away from the clients that use it, while the server and its other exports go on. Clones are the same
/// withdrawal.
///
/// An entry gets one by [`ExportEntry::with_withdrawal`](super::ExportEntry::with_withdrawal).
/// [`withdraw`](Self::withdraw) then ends the connections of the clients that entered by this entry as a shutdown of the
/// server would: requests in flight get
/// [`ServerConfig::with_drain_timeout`](crate::server::ServerConfig::with_drain_timeout) to finish, later ones are
/// answered with `ESHUTDOWN`, unless the server [hangs up](crate::server::ServerConfig::with_hang_up), and the connection is
/// closed. The protocol has no other word for it: clients report that the server is shutting down, or
/// that the connection is lost, and [`ExportEntry::on_close`](super::ExportEntry::on_close) and the metrics count such ends
/// with those of a shutdown. It does not keep clients from entering: look-ups that still give the entry have their clients
/// disconnected at once.
///
/// ```
/// use nbd_engine::export::{ExportEntry, ExportMap, Memory, Withdrawal};
///
/// let withdrawal = Withdrawal::new();
/// let entry = ExportEntry::new("disk", Memory::new(1 << 20)?)?.with_withdrawal(&withdrawal);
/// let exports = ExportMap::new().with_entry(entry);
/// // While it is served, from any thread:
/// withdrawal.withdraw();
/// # drop(exports);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Withdrawal(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    withdrawn: AtomicBool,
    event: Event,
}

impl Withdrawal {
    /// Nothing is withdrawn yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Has the clients disconnected. Can be called from anywhere, any number of times; it does not wait for the end.
    pub fn withdraw(&self) {
        self.0.withdrawn.store(true, Ordering::Release);
        self.0.event.notify(usize::MAX);
    }

    /// Whether [`withdraw`](Self::withdraw) was called.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.0.withdrawn.load(Ordering::Acquire)
    }

    /// Is notified when the export is withdrawn.
    pub(crate) fn listener(&self) -> EventListener {
        self.0.event.listen()
    }
}
