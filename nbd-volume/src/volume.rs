//! A volume that is open.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use slatedb::config::{CheckpointOptions, CheckpointScope};
use slatedb::{DbReaderMode, WriteBatch};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::ahead::Ahead;
use crate::cache::BlockCache;
use crate::commits::Commits;
use crate::database::{self, Database};
use crate::disk_cache::Used;
use crate::encryption;
use crate::exclusive::refuse_if_open;
use crate::fences::Fences;
use crate::folder::Use;
use crate::layout::{Descriptor, WRITER_KEY, WriterRecord};
use crate::lease::{Lease, Lost};
use crate::locks::Mode;
use crate::patience::{patiently, too_late, within};
use crate::records::{check_conditional_writes, descriptor, encoded, size, writer};
use crate::shared::Shared;
use crate::streams::Streams;
use crate::uploads::Uploads;
use crate::watch::watch;
use crate::{Error, Location, Options, manifest, wal};

/// A volume that is open: for writing, or as one of its snapshots. Clones are the same volume.
///
/// It is an [`AsyncExport`](nbd_engine::export::AsyncExport). The futures of its requests can be driven by any
/// runtime; what waits for the store runs on the tokio runtime in which the volume was opened, so that this has to
/// last. A request whose future is dropped is carried out all the same if it had begun to write.
///
/// One that is dropped without [`close`](Self::close) is as a server that crashed: what was flushed is safe, and the
/// next one that opens it waits until the [lease](Options::lease) is over.
///
/// A server checks the range of a request before it calls the export. Whoever calls it without a server has to keep
/// reads within its size; changes beyond the end are refused with `EINVAL`.
#[derive(Clone)]
pub struct Volume(pub(crate) Arc<Shared>);

/// The folder of that name in the cache on disk, if there is to be one.
async fn disk_cache(
    location: &Location,
    options: &Options,
    name: String,
) -> Result<Option<Used>, Error> {
    let Some(cache) = options.disk_cache.clone() else { return Ok(None) };
    let failed = |error: tokio::task::JoinError| Error::Invalid(error.to_string());
    let used = tokio::task::spawn_blocking(move || cache.use_folder(&name));
    let used = used.await.map_err(failed)??;
    if let Some(used) = &used {
        patiently(location, "list", options.patience, async || used.verify(location).await).await?;
    }
    Ok(used)
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Volume({}, {} bytes)", self.0.location, self.0.size())
    }
}

impl Volume {
    /// Opens a volume for reading and writing. Another server that has it open is fenced: it answers no request with
    /// success any more. If it did not close the volume, this waits until its lease is over. With
    /// [`exclusive`](Options::exclusive) this fails with [`Error::Busy`] if the other server is alive.
    ///
    /// Has to be awaited in a tokio runtime. Not cancel-safe: one that is dropped may have fenced the other server
    /// already.
    ///
    /// # Errors
    /// - [`Error::NotFound`], [`Error::Format`] and [`Error::Damaged`] when there is no volume that can be read.
    /// - [`Error::NoKey`] and [`Error::WrongKey`] for one that is encrypted.
    /// - [`Error::Refused`] when the store does not accept the credentials, [`Error::Unconditional`] when it does not
    ///   honour conditional writes, [`Error::Store`] when it fails, or a step takes longer than
    ///   [`patience`](Options::patience).
    /// - [`Error::Cache`] when the [disk cache](Options::disk_cache) can't be used.
    /// - [`Error::Busy`] with [`exclusive`](Options::exclusive), [`Error::Fenced`] when another server opens the volume
    ///   at the same time.
    pub async fn open(location: &Location, options: &Options) -> Result<Self, Error> {
        let location = &location.opened(options.patience).await?;
        let descriptor = descriptor(location, options.patience).await?;
        location.check_access(Use::Write, options.patience).await?;
        let cipher = encryption::of(location, &descriptor)?;
        check_conditional_writes(location, &descriptor, options.patience).await?;
        if options.exclusive {
            refuse_if_open(location, &descriptor, options).await?;
        }
        let cache = disk_cache(location, options, descriptor.id.clone()).await?;
        wal::check(location, &descriptor, options.patience).await?;
        let fences = Fences::of(&descriptor);
        let opening = database::open(location, options, cache.as_ref(), cipher, fences);
        let db = within(location, "open", options.patience, opening).await?;
        let database = Database::writer(db.clone(), options);
        let size = size(location, &database, options.patience).await?;
        let volume = Self::new(location, options, descriptor, database, size, cache);
        // The look at the store begins now, and not when it was opened: another server may have come meanwhile.
        tokio::spawn(watch(Arc::downgrade(&volume.0), db, options.poll_interval()));
        volume.take_over(options).await?;
        Ok(volume)
    }

    /// Opens a snapshot of a volume, for reading. Any number of servers can do so, and none is fenced. Of the options
    /// the caches, [`read_ahead`](Options::read_ahead), [`fetching`](Options::fetching) and
    /// [`patience`](Options::patience) count.
    ///
    /// Has to be awaited in a tokio runtime. Cancel-safe.
    ///
    /// # Errors
    /// As [`open`](Self::open) without the last item, and [`Error::NoSnapshot`].
    pub async fn open_snapshot(
        location: &Location,
        name: &str,
        options: &Options,
    ) -> Result<Self, Error> {
        let location = &location.opened(options.patience).await?;
        let descriptor = descriptor(location, options.patience).await?;
        location.check_access(Use::Read, options.patience).await?;
        let cipher = encryption::of(location, &descriptor)?;
        manifest::latest(location, options.patience).await?;
        let checkpoint = crate::manage::find_snapshot(location, name, options.patience).await?;
        let mode = DbReaderMode::Checkpoint(checkpoint.id);
        let cache =
            disk_cache(location, options, format!("{}-{}", descriptor.id, checkpoint.id)).await?;
        let fences = Fences::of(&descriptor);
        let opening = database::read(location, mode, options, cache.as_ref(), cipher, fences);
        let reader = within(location, "open a snapshot of", options.patience, opening).await?;
        let database = Database::reader(reader, options);
        let size = size(location, &database, options.patience).await?;
        let options = Options { lease: Duration::MAX, ..options.clone() };
        let volume = Self::new(location, &options, descriptor, database, size, cache);
        volume.0.lease.renew(volume.0.lease.look());
        Ok(volume)
    }

    fn new(
        location: &Location,
        options: &Options,
        descriptor: Descriptor,
        database: Database,
        size: u64,
        disk_cache: Option<Used>,
    ) -> Self {
        // As much as is kept unflushed, since it is counted only when SlateDB has taken it.
        let writing = u32::try_from(options.unflushed() / 4).unwrap_or(u32::MAX);
        let ahead = Arc::new(Ahead::new(descriptor.block_size, options.read_ahead));
        Self(Arc::new(Shared {
            location: location.clone(),
            descriptor,
            database,
            size: AtomicU64::new(size),
            runtime: Handle::current(),
            locks: Arc::default(),
            commits: Commits::default(),
            cache: BlockCache::new(options.cache),
            // The rest was fetched, and is kept until all of a piece is read.
            streams: Streams::new(options.read_ahead / 4 * 3),
            ahead,
            disk_cache: Mutex::new(disk_cache),
            writing: Arc::new(Semaphore::new(writing as usize)),
            max_writing: writing,
            lease: Lease::new(options.lease),
            patience: options.patience,
            uploads: Uploads::default(),
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
        let Some(db) = shared.database.as_writer() else { return Ok(()) };
        let stored = async {
            db.write(batch).await?;
            db.flush().await
        };
        within(&shared.location, "open", shared.patience, stored).await
    }

    /// Flushes, and closes the volume, so that the next server need not wait. Requests that come later fail with
    /// `ESHUTDOWN`. Does nothing the second time, or when the volume is [lost](Self::until_lost).
    ///
    /// Takes at most [`patience`](Options::patience), also when requests wait for a store that is away: then the
    /// volume is left as by a crash. Has to be awaited in a tokio runtime. Not cancel-safe: one that is dropped
    /// leaves it so as well.
    ///
    /// # Errors
    /// [`Error::Store`] when the store does not take what was not flushed yet, which is lost then; [`Error::Fenced`]
    /// when another server has opened the volume.
    pub async fn close(&self) -> Result<(), Error> {
        let shared = &self.0;
        if shared.closing.swap(true, Ordering::AcqRel) || shared.lease.lost().is_some() {
            return Ok(());
        }
        let closed = timeout(shared.patience, self.close_database()).await;
        shared.lease.lose(Lost::Closed);
        shared.release();
        closed.unwrap_or_else(|_| Err(too_late(&shared.location, "close", shared.patience)))
    }

    async fn close_database(&self) -> Result<(), Error> {
        let shared = &self.0;
        // Everything that has begun to write is over.
        let _all = shared.locks.lock(0..u64::MAX, Mode::Exclusive).await;
        // The record lets a successor answer at once: from here on nothing is answered with success.
        shared.lease.lose(Lost::Closed);
        let Some(db) = shared.database.as_writer() else { return Ok(()) };
        let recorded = self.record_writer(false, Duration::ZERO).await;
        let closed = within(&shared.location, "close", shared.patience, db.close()).await;
        recorded.and(closed)
    }

    /// Waits until the volume can't be used any more: since another server has opened it, it was closed, or SlateDB
    /// failed. Returns the reason, for a log; each handle and each call gets it. Cancel-safe. Any executor can drive
    /// it.
    pub async fn until_lost(&self) -> String {
        self.0.lost_text(self.0.lease.until_lost().await)
    }

    /// Whether the volume can't be used any more, as [`until_lost`](Self::until_lost) waits for.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.lease.lost().is_some()
    }

    /// Makes a snapshot of what the volume holds now: of all writes that were answered, flushed or not, which are
    /// uploaded first. Its name has 1 to 200 bytes without `@`, `/` and control characters,
    /// and is not `.` or `..`.
    ///
    /// Has to be awaited in a tokio runtime. Not cancel-safe: one that is dropped may have made it.
    ///
    /// # Errors
    /// [`Error::SnapshotExists`] when there is one of that name; [`Error::Invalid`] for a name of another form, and when
    /// this is a snapshot itself; [`Error::Store`] or [`Error::Fenced`] when it can't be stored.
    pub async fn snapshot(&self, name: &str) -> Result<(), Error> {
        let shared = &self.0;
        let location = &shared.location;
        let Some(db) = shared.database.as_writer() else {
            return Err(Error::Invalid("a snapshot can't be made of a snapshot".to_owned()));
        };
        crate::manage::check_new_snapshot(location, name, shared.patience).await?;
        let options =
            CheckpointOptions { name: Some(name.to_owned()), ..CheckpointOptions::default() };
        let made = db.create_checkpoint(CheckpointScope::All, &options);
        within(location, "make a snapshot of", shared.patience, made).await.map(drop)
    }

    /// Where the volume lies, by the URL that was given to [`open`](Self::open). Requests by way of it go to the local directory
    /// that was opened, if it is one, wherever that is by now. A snapshot's is that of its volume.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.0.location
    }
}
