//! Flushing: one upload serves all flushes that came before it began, and waits a moment for those that are about to
//! come.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use slatedb::WriteBatch;
use slatedb::config::WriteOptions;
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout_at};

use crate::shared::Shared;

/// What is written, and what of it is in the store.
#[derive(Debug, Default)]
pub(crate) struct Uploads {
    /// The latest write that SlateDB has taken.
    written: AtomicU64,
    /// The latest write that is known to be in the store.
    durable: AtomicU64,
    /// Flushes that had something to upload, ever.
    arrived: AtomicU64,
    /// That another one has arrived.
    arrival: Notify,
    /// The latest upload. Held by the flush that is uploading.
    latest: Mutex<Option<Upload>>,
}

/// An upload that has ended.
#[derive(Clone, Copy, Debug)]
struct Upload {
    /// Flushes that had arrived when it began.
    begun: u64,
    /// Flushes that will have arrived when all that it served have come again.
    again: u64,
    /// Until when the next one waits for them.
    until: Instant,
}

impl Upload {
    /// The next one waits for an eighth of the time that this one took,
    const PART: u32 = 8;

    /// but not for longer than that,
    const MAX_WAIT: Duration = Duration::from_millis(10);

    /// and not at all for less than a timer can tell.
    const MIN_WAIT: Duration = Duration::from_millis(1);

    /// One that ends now, after the one `before`. It began when `begun` flushes had arrived; by now `arrived` have.
    fn ended(before: Option<Self>, begun: u64, arrived: u64, took: Duration) -> Self {
        let served = begun - before.map_or(0, |before| before.begun);
        let wait = match took / Self::PART {
            wait if wait < Self::MIN_WAIT => Duration::ZERO,
            wait => wait.min(Self::MAX_WAIT),
        };
        Self { begun, again: arrived + served, until: Instant::now() + wait }
    }
}

impl Uploads {
    /// Waits for the flushes that are about to come.
    ///
    /// Clients that write and flush in turn come again at once when an upload has served them. One that came while it
    /// was under way must not begin the next upload before they do: it would have that for itself, and they would wait
    /// for all of it, again and again.
    async fn gather(&self, latest: Option<Upload>) {
        let Some(latest) = latest.filter(|latest| Instant::now() < latest.until) else { return };
        while self.arrived.load(Ordering::Acquire) < latest.again {
            // One that came since the look has left a permit.
            if timeout_at(latest.until, self.arrival.notified()).await.is_err() {
                return;
            }
        }
    }
}

impl Shared {
    /// Hands a batch to SlateDB, which may make it wait for memory.
    pub(crate) async fn put(&self, batch: WriteBatch) -> Result<(), slatedb::Error> {
        let Some(db) = self.database.as_writer() else { return Ok(()) };
        let handle = db.write_with_options(batch, &WriteOptions::default()).await?;
        self.uploads.written.fetch_max(handle.seqnum(), Ordering::AcqRel);
        Ok(())
    }

    /// Has everything uploaded that was written until now. One upload serves all that came before it began.
    pub(crate) async fn upload(&self) -> Result<(), slatedb::Error> {
        let Some(db) = self.database.as_writer() else { return Ok(()) };
        let uploads = &self.uploads;
        let wanted = uploads.written.load(Ordering::Acquire);
        let is_durable =
            || uploads.durable.load(Ordering::Acquire).max(db.status().durable_seq) >= wanted;
        if is_durable() {
            return Ok(());
        }
        uploads.arrived.fetch_add(1, Ordering::AcqRel);
        uploads.arrival.notify_one();
        let mut latest = uploads.latest.lock().await;
        if is_durable() {
            return Ok(());
        }
        uploads.gather(*latest).await;
        let begun = uploads.arrived.load(Ordering::Acquire);
        let uploading = uploads.written.load(Ordering::Acquire);
        let start = Instant::now();
        db.flush().await?;
        uploads.durable.fetch_max(uploading, Ordering::AcqRel);
        let arrived = uploads.arrived.load(Ordering::Acquire);
        *latest = Some(Upload::ended(*latest, begun, arrived, start.elapsed()));
        Ok(())
    }
}
