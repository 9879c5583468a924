//! What all handles of an open volume share, and how its requests wait.

use core::future::Future;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex, PoisonError};

use nbd_engine::export::{ErrorCode, ExportError};
use slatedb::{CloseReason, ErrorKind};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tokio::time::timeout;

use crate::Location;
use crate::ahead::Ahead;
use crate::cache::BlockCache;
use crate::commits::Commits;
use crate::database::Database;
use crate::disk_cache::Used;
use crate::error::{chain, rooted};
use crate::layout::Descriptor;
use crate::lease::{Lease, Lost};
use crate::locks::RangeLocks;
use crate::streams::Streams;
use crate::uploads::Uploads;

/// A volume that is open, as its handles, its requests and its [watch](crate::watch) have it.
pub(crate) struct Shared {
    pub(crate) location: Location,
    pub(crate) descriptor: Descriptor,
    pub(crate) database: Database,
    pub(crate) size: AtomicU64,
    pub(crate) runtime: Handle,
    pub(crate) locks: Arc<RangeLocks>,
    pub(crate) commits: Commits,
    pub(crate) cache: BlockCache,
    pub(crate) streams: Streams,
    pub(crate) ahead: Arc<Ahead>,
    /// The cache on disk, until the volume is lost.
    pub(crate) disk_cache: Mutex<Option<Used>>,
    /// Bytes of writes that are being carried out.
    pub(crate) writing: Arc<Semaphore>,
    /// How many at most.
    pub(crate) max_writing: u32,
    pub(crate) lease: Lease,
    pub(crate) patience: Duration,
    pub(crate) uploads: Uploads,
    /// Requests are not begun any more.
    pub(crate) closing: AtomicBool,
}

impl Shared {
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn block_size(&self) -> u64 {
        u64::from(self.descriptor.block_size)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.database.as_writer().is_some()
    }

    /// Drops what is known of blocks, and lets others use the cache on disk: the volume can't be used any more.
    pub(crate) fn release(&self) {
        self.cache.clear();
        self.ahead.clear();
        drop(self.disk_cache.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Runs work on the volume's runtime and waits for it, at most as long as requests may wait. Work that is given
    /// up, or whose request is dropped, goes on if it changes something.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        changes: bool,
        work: impl Future<Output = Result<T, ExportError>> + Send + 'static,
    ) -> Result<T, ExportError> {
        self.check_open()?;
        let mut task = Task { task: self.runtime.spawn(work), changes };
        let not_carried_out = |error: JoinError| {
            Err(ExportError::io(format!("the request was not carried out: {error}")))
        };
        let ended = async { (&mut task.task).await.unwrap_or_else(not_carried_out) };
        self.patiently(ended).await
    }

    /// Waits at most as long as requests may wait.
    pub(crate) async fn patiently<T>(
        &self,
        work: impl Future<Output = Result<T, ExportError>>,
    ) -> Result<T, ExportError> {
        let waited = {
            let _context = self.runtime.enter();
            timeout(self.patience, work)
        };
        waited.await.unwrap_or_else(|_| Err(self.gave_up()))
    }

    /// Room for the data of a write, which waits while other writes take all of it.
    pub(crate) async fn room_for(&self, length: u32) -> Result<OwnedSemaphorePermit, ExportError> {
        let permits = length.min(self.max_writing);
        let room = Arc::clone(&self.writing);
        if let Ok(room) = Arc::clone(&room).try_acquire_many_owned(permits) {
            return Ok(room);
        }
        let waited = async { room.acquire_many_owned(permits).await.map_err(|_| self.closed()) };
        self.patiently(waited).await
    }

    /// Whether a request may be answered with success; waits for a look at the store if need be.
    pub(crate) async fn confirm(&self) -> Result<(), ExportError> {
        if let Some(answer) = self.lease.allows() {
            return answer.map_err(|lost| self.lost(lost));
        }
        self.patiently(async { self.lease.confirm().await.map_err(|lost| self.lost(lost)) }).await
    }

    pub(crate) fn check_open(&self) -> Result<(), ExportError> {
        if let Some(lost) = self.lease.lost() {
            return Err(self.lost(lost));
        }
        if self.closing.load(Ordering::Acquire) {
            return Err(self.closed());
        }
        Ok(())
    }

    fn lost(&self, lost: &Lost) -> ExportError {
        ExportError::shutting_down(self.lost_text(lost))
    }

    pub(crate) fn closed(&self) -> ExportError {
        self.lost(&Lost::Closed)
    }

    pub(crate) fn lost_text(&self, lost: &Lost) -> String {
        let volume = &self.location;
        match lost {
            Lost::Fenced => format!("another server has opened the volume {volume}"),
            Lost::Closed => format!("the volume {volume} is closed"),
            Lost::Failed(reason) => format!("the volume {volume} failed: {reason}"),
        }
    }

    /// The error of a request that waited in vain.
    fn gave_up(&self) -> ExportError {
        let (volume, patience) = (&self.location, self.patience);
        let reason = self.location.watched().failure_within(patience);
        let reason = reason.as_deref().unwrap_or("it does not answer, or is too slow");
        ExportError::io(format!(
            "gave up after {patience:?} waiting for the store of {volume}: {reason}"
        ))
    }

    /// An error of SlateDB's as clients get it.
    pub(crate) fn failed(&self, error: &slatedb::Error) -> ExportError {
        match error.kind() {
            ErrorKind::Closed(CloseReason::Fenced) => self.lost(&Lost::Fenced),
            ErrorKind::Closed(CloseReason::Clean) => self.closed(),
            ErrorKind::Closed(CloseReason::Panic) => {
                self.lost(&Lost::Failed(rooted(self.location.url(), chain(error))))
            }
            _ => ExportError::new(ErrorCode::EIO, {
                let text = rooted(self.location.url(), chain(error));
                format!("{}: {text}", self.location)
            }),
        }
    }
}

/// Work that ends with its request if it changes nothing.
struct Task<T> {
    task: tokio::task::JoinHandle<T>,
    changes: bool,
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if !self.changes {
            self.task.abort();
        }
    }
}
