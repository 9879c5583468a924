//! A volume that is open.

use core::future::Future;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nbd_engine::export::{ErrorCode, ExportError};
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use slatedb::config::{CheckpointOptions, CheckpointScope, WriteOptions};
use slatedb::{CloseReason, Db, DbReaderMode, ErrorKind, WriteBatch};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::cache::BlockCache;
use crate::database::{self, Database};
use crate::error::chain;
use crate::layout::{
    DESCRIPTOR, Descriptor, FORMAT, FormatOnly, SIZE_KEY, Size, WRITER_KEY, WriterRecord,
    is_block_size,
};
use crate::lease::{Lease, Lost};
use crate::locks::RangeLocks;
use crate::manage::mailbox;
use crate::streams::Streams;
use crate::{Error, Location, Options};

/// A volume that is open: for writing, or as one of its snapshots. Clones are the same volume.
///
/// It is an [`AsyncExport`](nbd_engine::export::AsyncExport). The futures of its requests can be driven by any runtime; what
/// waits for the store runs on the tokio runtime in which the volume was opened, so that this has to last. A request whose
/// future is dropped is carried out all the same if it had begun to write.
///
/// One that is dropped without [`close`](Self::close) is as a server that crashed: what was flushed is safe, and the next
/// one that opens it waits until the [lease](Options::lease) is over.
#[derive(Clone)]
pub struct Volume(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) location: Location,
    pub(crate) descriptor: Descriptor,
    pub(crate) database: Database,
    pub(crate) size: AtomicU64,
    pub(crate) runtime: Handle,
    pub(crate) locks: Arc<RangeLocks>,
    pub(crate) cache: BlockCache,
    pub(crate) streams: Streams,
    /// Bytes of writes that are being carried out.
    pub(crate) writing: Arc<Semaphore>,
    /// How many at most.
    max_writing: u32,
    pub(crate) lease: Lease,
    pub(crate) patience: Duration,
    /// The latest write that SlateDB has taken.
    pub(crate) written: AtomicU64,
    /// The latest write that is known to be in the store.
    pub(crate) durable: AtomicU64,
    /// Held by the flush that is uploading.
    pub(crate) flushing: tokio::sync::Mutex<()>,
    closing: AtomicBool,
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Volume({}, {} bytes)", self.0.location, self.0.size())
    }
}

impl Volume {
    /// Opens a volume for reading and writing. Another server that has it open is fenced: it answers no request with
    /// success any more. If it did not close the volume, this waits until its lease is over.
    ///
    /// Has to be called in a tokio runtime. Not cancel-safe: one that is dropped may have fenced the other server already.
    ///
    /// # Errors
    /// When there is no volume or it can't be read, when the store does not answer within
    /// [`patience`](Options::patience), or does not honour conditional writes.
    pub async fn open(location: &Location, options: &Options) -> Result<Self, Error> {
        let descriptor = descriptor(location, options.patience).await?;
        check_conditional_writes(location, &descriptor, options.patience).await?;
        let db =
            within(location, "open", options.patience, database::open(location, options)).await?;
        let database = Database::Writer(db.clone());
        let size = size(location, &database, options.patience).await?;
        let volume = Self::new(location, options, descriptor, database, size);
        // The look at the store begins now, and not when it was opened: another server may have come meanwhile.
        tokio::spawn(watch(Arc::downgrade(&volume.0), db, options.poll_interval()));
        volume.take_over(options).await?;
        Ok(volume)
    }

    /// Opens a snapshot of a volume, for reading. Any number of servers can do so, and nobody is fenced.
    ///
    /// Has to be called in a tokio runtime. Cancel-safe.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::NoSnapshot`].
    pub async fn open_snapshot(
        location: &Location,
        name: &str,
        options: &Options,
    ) -> Result<Self, Error> {
        let descriptor = descriptor(location, options.patience).await?;
        let checkpoint = crate::manage::find_snapshot(location, name, options.patience).await?;
        let mode = DbReaderMode::Checkpoint(checkpoint.id);
        let opening = database::read(location, mode, options);
        let reader = within(location, "open a snapshot of", options.patience, opening).await?;
        let database = Database::Reader(Arc::new(reader));
        let size = size(location, &database, options.patience).await?;
        let options = Options { lease: Duration::MAX, ..options.clone() };
        let volume = Self::new(location, &options, descriptor, database, size);
        volume.0.lease.renew(volume.0.lease.look());
        Ok(volume)
    }

    fn new(
        location: &Location,
        options: &Options,
        descriptor: Descriptor,
        database: Database,
        size: u64,
    ) -> Self {
        // As much as is kept unflushed, since it is counted only when SlateDB has taken it.
        let writing = u32::try_from(options.unflushed() / 4).unwrap_or(u32::MAX);
        Self(Arc::new(Shared {
            location: location.clone(),
            descriptor,
            database,
            size: AtomicU64::new(size),
            runtime: Handle::current(),
            locks: Arc::default(),
            cache: BlockCache::new(options.cache),
            streams: Streams::default(),
            writing: Arc::new(Semaphore::new(writing as usize)),
            max_writing: writing,
            lease: Lease::new(options.lease),
            patience: options.patience,
            written: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            flushing: tokio::sync::Mutex::new(()),
            closing: AtomicBool::new(false),
        }))
    }

    /// Waits until the writer before this one can't answer any more, and leaves a record of this one.
    async fn take_over(&self, options: &Options) -> Result<(), Error> {
        let shared = &self.0;
        let location = &shared.location;
        if let Some(earlier) = writer(location, &shared.database, options.patience).await?
            && earlier.open
            && earlier.volume == shared.descriptor.id
        {
            let lease = Duration::from_millis(earlier.lease);
            tracing::warn!(
                volume = %location, host = earlier.host, process = earlier.pid, ?lease,
                "another server had opened the volume and did not close it: waiting until its lease is over"
            );
            tokio::time::sleep(lease).await;
        }
        self.record_writer(true, options.lease).await
    }

    /// Stores who writes.
    async fn record_writer(&self, open: bool, lease: Duration) -> Result<(), Error> {
        let shared = &self.0;
        let record = WriterRecord {
            volume: shared.descriptor.id.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            open,
            lease: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            since: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        };
        let mut batch = WriteBatch::new();
        batch.put(WRITER_KEY, encoded(&record));
        let Database::Writer(db) = &shared.database else { return Ok(()) };
        let stored = async {
            db.write(batch).await?;
            db.flush().await
        };
        within(&shared.location, "open", shared.patience, stored).await
    }

    /// Flushes, and closes the volume, so that the next server need not wait. Requests that come later fail with
    /// `ESHUTDOWN`. Does nothing the second time, or when the volume is [lost](Self::until_lost).
    ///
    /// Not cancel-safe: one that is dropped may leave the volume as a crash does.
    ///
    /// # Errors
    /// When the store does not take what was not flushed yet.
    pub async fn close(&self) -> Result<(), Error> {
        let shared = &self.0;
        if shared.closing.swap(true, Ordering::AcqRel) || shared.lease.lost().is_some() {
            return Ok(());
        }
        // Everything that has begun to write is over.
        let _all = shared.locks.lock(0..u64::MAX, crate::locks::Mode::Exclusive).await;
        let closed = self.record_writer(false, Duration::ZERO).await;
        shared.lease.lose(Lost::Closed);
        shared.cache.clear();
        let Database::Writer(db) = &shared.database else {
            return Ok(());
        };
        closed?;
        within(&shared.location, "close", shared.patience, db.close()).await
    }

    /// Waits until the volume can't be used any more: since another server has opened it, it was closed, or SlateDB failed.
    /// Returns the reason, for a log. Cancel-safe.
    pub async fn until_lost(&self) -> String {
        self.0.lost_text(self.0.lease.until_lost().await)
    }

    /// Makes a snapshot of what the volume holds now. Not cancel-safe: one that is dropped may have made it.
    ///
    /// # Errors
    /// When there is one of that name, the name is empty, or the store fails.
    pub async fn snapshot(&self, name: &str) -> Result<(), Error> {
        let shared = &self.0;
        let location = &shared.location;
        let Database::Writer(db) = &shared.database else {
            return Err(Error::Invalid("a snapshot can't be made of a snapshot".to_owned()));
        };
        crate::manage::check_new_snapshot(location, name, shared.patience).await?;
        let options =
            CheckpointOptions { name: Some(name.to_owned()), ..CheckpointOptions::default() };
        let made = db.create_checkpoint(CheckpointScope::All, &options);
        within(location, "make a snapshot of", shared.patience, made).await.map(drop)
    }

    /// The volume's URL.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.0.location
    }
}

impl Shared {
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn block_size(&self) -> u64 {
        u64::from(self.descriptor.block_size)
    }

    pub(crate) fn is_writable(&self) -> bool {
        matches!(self.database, Database::Writer(_))
    }

    /// Hands a batch to SlateDB, which may make it wait for memory.
    pub(crate) async fn put(&self, batch: WriteBatch) -> Result<(), slatedb::Error> {
        let Database::Writer(db) = &self.database else { return Ok(()) };
        let handle = db.write_with_options(batch, &WriteOptions::default()).await?;
        self.written.fetch_max(handle.seqnum(), Ordering::AcqRel);
        Ok(())
    }

    /// Has everything uploaded that was written until now. One upload serves all that came before it began.
    pub(crate) async fn upload(&self) -> Result<(), slatedb::Error> {
        let Database::Writer(db) = &self.database else { return Ok(()) };
        let wanted = self.written.load(Ordering::Acquire);
        let is_durable =
            || self.durable.load(Ordering::Acquire).max(db.status().durable_seq) >= wanted;
        if is_durable() {
            return Ok(());
        }
        let _turn = self.flushing.lock().await;
        if is_durable() {
            return Ok(());
        }
        let uploading = self.written.load(Ordering::Acquire);
        db.flush().await?;
        self.durable.fetch_max(uploading, Ordering::AcqRel);
        Ok(())
    }

    /// Runs work on the volume's runtime and waits for it, at most as long as requests may wait. Work that is given up, or
    /// whose request is dropped, goes on if it changes something.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        changes: bool,
        work: impl Future<Output = Result<T, ExportError>> + Send + 'static,
    ) -> Result<T, ExportError> {
        self.check_open()?;
        let mut task = Task { task: self.runtime.spawn(work), changes };
        let waited = {
            let _context = self.runtime.enter();
            timeout(self.patience, &mut task.task)
        };
        match waited.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => {
                Err(ExportError::io(format!("the request was not carried out: {error}")))
            }
            Err(_) => Err(self.gave_up()),
        }
    }

    /// Room for the data of a write, which waits while other writes take all of it.
    pub(crate) async fn room_for(&self, length: u32) -> Result<OwnedSemaphorePermit, ExportError> {
        let permits = length.min(self.max_writing);
        let waited = {
            let _context = self.runtime.enter();
            timeout(self.patience, Arc::clone(&self.writing).acquire_many_owned(permits))
        };
        match waited.await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) => Err(self.lost(&Lost::Closed)),
            Err(_) => Err(self.gave_up()),
        }
    }

    /// Whether a request may be answered with success; waits for a look at the store if need be.
    pub(crate) async fn confirm(&self) -> Result<(), ExportError> {
        if let Some(answer) = self.lease.allows() {
            return answer.map_err(|lost| self.lost(lost));
        }
        let waited = {
            let _context = self.runtime.enter();
            timeout(self.patience, self.lease.confirm())
        };
        match waited.await {
            Ok(answer) => answer.map_err(|lost| self.lost(lost)),
            Err(_) => Err(self.gave_up()),
        }
    }

    fn check_open(&self) -> Result<(), ExportError> {
        if let Some(lost) = self.lease.lost() {
            return Err(self.lost(lost));
        }
        if self.closing.load(Ordering::Acquire) {
            return Err(self.lost(&Lost::Closed));
        }
        Ok(())
    }

    fn lost(&self, lost: &Lost) -> ExportError {
        ExportError::shutting_down(self.lost_text(lost))
    }

    fn lost_text(&self, lost: &Lost) -> String {
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
        let reason = self.location.watched().failure();
        let reason = reason.as_deref().unwrap_or("it does not answer, or is too slow");
        ExportError::io(format!(
            "gave up after {patience:?} waiting for the store of {volume}: {reason}"
        ))
    }

    /// An error of SlateDB's as clients get it.
    pub(crate) fn failed(&self, error: &slatedb::Error) -> ExportError {
        match error.kind() {
            ErrorKind::Closed(CloseReason::Fenced) => self.lost(&Lost::Fenced),
            ErrorKind::Closed(CloseReason::Clean) => self.lost(&Lost::Closed),
            ErrorKind::Closed(CloseReason::Panic) => self.lost(&Lost::Failed(chain(error))),
            _ => ExportError::new(ErrorCode::EIO, format!("{}: {}", self.location, chain(error))),
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

/// Renews the lease, notices that the volume is lost, and answers what is asked by way of the store.
async fn watch(shared: std::sync::Weak<Shared>, db: Db, interval: Duration) {
    let mut status = db.subscribe();
    loop {
        let Some(volume) = shared.upgrade() else { return };
        let look = volume.lease.look();
        let refreshed = tokio::select! {
            refreshed = db.refresh_manifest() => refreshed,
            _ = status.wait_for(|status| status.close_reason.is_some()) => Ok(()),
        };
        let reason = status.borrow().close_reason;
        let lost = match (reason, refreshed) {
            (Some(CloseReason::Fenced), _) => Some(Lost::Fenced),
            (Some(CloseReason::Clean), _) => Some(Lost::Closed),
            (Some(_), refreshed) => Some(Lost::Failed(
                refreshed
                    .err()
                    .map_or_else(|| "a task of SlateDB's panicked".to_owned(), |e| chain(&e)),
            )),
            (None, Ok(())) => {
                volume.lease.renew(look);
                None
            }
            (None, Err(error)) => {
                tracing::debug!(volume = %volume.location, %error, "cannot look who writes");
                None
            }
        };
        if let Some(lost) = lost {
            volume.cache.clear();
            if volume.lease.lose(lost.clone()) && lost != Lost::Closed {
                tracing::error!("{}: its clients are disconnected", volume.lost_text(&lost));
            }
            return;
        }
        mailbox::answer(&Volume(Arc::clone(&volume))).await;
        let asked = volume.lease.asked();
        tokio::select! {
            () = tokio::time::sleep(interval) => (),
            () = asked => (),
            _ = status.wait_for(|status| status.close_reason.is_some()) => (),
        }
    }
}

/// Awaits something that SlateDB does, for so long at most.
pub(crate) async fn within<T>(
    location: &Location,
    doing: &'static str,
    patience: Duration,
    future: impl Future<Output = Result<T, slatedb::Error>>,
) -> Result<T, Error> {
    match timeout(patience, future).await {
        Ok(result) => result.map_err(|error| Error::database(location.url(), doing, &error)),
        Err(_) => Err(too_late(location, doing, patience)),
    }
}

pub(crate) fn too_late(location: &Location, doing: &'static str, patience: Duration) -> Error {
    let failure = location.watched().failure();
    let failure = failure.as_deref().unwrap_or("the store does not answer, or is too slow");
    Error::Store {
        url: location.url().to_owned(),
        doing,
        reason: format!("gave up after {patience:?}: {failure}"),
    }
}

/// What the volume is.
pub(crate) async fn descriptor(
    location: &Location,
    patience: Duration,
) -> Result<Descriptor, Error> {
    let url = location.url();
    let damaged = |what: String| Error::Damaged { url: url.to_owned(), what };
    let (store, path) = (location.store(), location.object(DESCRIPTOR));
    let read = patiently(location, "open", patience, async || match store.get(&path).await {
        Ok(found) => found.bytes().await.map(Some),
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    })
    .await?;
    let bytes = read.ok_or_else(|| Error::NotFound { url: url.to_owned() })?;
    let format: FormatOnly = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("{DESCRIPTOR} is not understood: {error}")))?;
    if format.format == 0 || format.format > FORMAT {
        let found = format.format;
        return Err(Error::Format { url: url.to_owned(), found, known: FORMAT });
    }
    let descriptor: Descriptor = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("{DESCRIPTOR} is not understood: {error}")))?;
    if !is_block_size(descriptor.block_size) {
        return Err(damaged(format!("a block size of {} bytes", descriptor.block_size)));
    }
    Ok(descriptor)
}

/// Whether the store refuses to overwrite an object when it is asked to: all that keeps two writers apart rests on that.
async fn check_conditional_writes(
    location: &Location,
    descriptor: &Descriptor,
    patience: Duration,
) -> Result<(), Error> {
    match store_descriptor(location, descriptor, patience).await {
        Err(Error::Exists { .. }) => Ok(()),
        // What it has overwritten is the same.
        Ok(()) => Err(Error::Unconditional { url: location.url().to_owned() }),
        Err(error) => Err(error),
    }
}

/// Stores what a volume is, unless there is one.
pub(crate) async fn store_descriptor(
    location: &Location,
    descriptor: &Descriptor,
    patience: Duration,
) -> Result<(), Error> {
    let (store, path) = (location.store(), location.object(DESCRIPTOR));
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let bytes = encoded(descriptor);
    let url = || location.url().to_owned();
    patiently(location, "write to", patience, async || {
        match store.put_opts(&path, bytes.clone().into(), options.clone()).await {
            Ok(_) => Ok(Ok(())),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(Err(Error::Exists { url: url() })),
            Err(
                object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. },
            ) => Ok(Err(Error::Unconditional { url: url() })),
            // There is nothing else that could be missing.
            Err(object_store::Error::NotFound { .. }) => Ok(Err(Error::Store {
                url: url(),
                doing: "write to",
                reason: "there is no such bucket or container: make it by the store's own tools"
                    .into(),
            })),
            Err(error) => Err(error),
        }
    })
    .await?
}

/// Repeats a request to the store until it succeeds, for so long at most. What would fail again in the same way is not repeated.
pub(crate) async fn patiently<T>(
    location: &Location,
    doing: &'static str,
    patience: Duration,
    mut request: impl AsyncFnMut() -> object_store::Result<T>,
) -> Result<T, Error> {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);
    let repeating = async {
        let mut pause = FIRST;
        loop {
            let error = match request().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            use object_store::Error as Kind;
            if let Kind::NotFound { .. }
            | Kind::AlreadyExists { .. }
            | Kind::Precondition { .. }
            | Kind::InvalidPath { .. }
            | Kind::NotSupported { .. }
            | Kind::NotImplemented { .. }
            | Kind::PermissionDenied { .. }
            | Kind::Unauthenticated { .. }
            | Kind::UnknownConfigurationKey { .. } = error
            {
                return Err(Error::store(location.url(), doing, &error));
            }
            tracing::info!(volume = %location, %error, "cannot {doing} the volume, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    };
    match timeout(patience, repeating).await {
        Ok(result) => result,
        Err(_) => Err(too_late(location, doing, patience)),
    }
}

/// The size of the volume.
pub(crate) async fn size(
    location: &Location,
    database: &Database,
    patience: Duration,
) -> Result<u64, Error> {
    let url = location.url();
    let value = within(location, "open", patience, database.get(SIZE_KEY)).await?;
    let damaged = |what: String| Error::Damaged { url: url.to_owned(), what };
    let value = value
        .ok_or_else(|| damaged("it has no size; was nbd volume create interrupted?".into()))?;
    let Size { size } = serde_json::from_slice(&value)
        .map_err(|error| damaged(format!("its size is not understood: {error}")))?;
    if i64::try_from(size).is_err() || size == 0 {
        return Err(damaged(format!("a size of {size} bytes")));
    }
    Ok(size)
}

/// Who writes, or wrote last.
pub(crate) async fn writer(
    location: &Location,
    database: &Database,
    patience: Duration,
) -> Result<Option<WriterRecord>, Error> {
    let value = within(location, "open", patience, database.get(WRITER_KEY)).await?;
    // What is not understood is from a later version, which may be running.
    Ok(value.map(|value| {
        serde_json::from_slice(&value).unwrap_or_else(|_| WriterRecord {
            volume: String::new(),
            host: "an unknown host".into(),
            pid: 0,
            open: true,
            lease: 0,
            since: 0,
        })
    }))
}

/// A record as it is stored.
pub(crate) fn encoded(record: &impl serde::Serialize) -> Bytes {
    // Records of texts and numbers can't fail to be written.
    serde_json::to_vec(record).unwrap_or_default().into()
}
