//! SlateDB as volumes use it.

use core::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use slatedb::admin::Admin;
use slatedb::config::{DbReaderOptions, ReadOptions, ScanOptions};
use slatedb::db_cache::moka::{MokaCache, MokaCacheOptions};
use slatedb::db_cache::{DbCache, SplitCache};
use slatedb::manifest::SsTableView;
use slatedb::{BlockTransformer, Db, DbIterator, DbReader, DbReaderMode, DbStatus, SstBlockSize};
use slatedb_common::clock::{DefaultSystemClock, SystemClock};
use tokio::sync::watch;

use crate::disk_cache::Used;
use crate::layout::{block_index, block_key};
use crate::room::{Room, Taken};
use crate::settings::settings;
use crate::{Location, Options};

/// Bytes that the tables are read in. Larger than a block of the volume, as each such part has an entry in an index
/// that is kept in memory, and a request to a distant store takes as long for 4 KiB.
const PART: SstBlockSize = SstBlockSize::Block64Kib;

/// The same in bytes.
const PART_SIZE: u64 = 64 << 10;

/// Bytes of each table that are fetched at a time by a walk over blocks, at most.
const WALKED_AT_A_TIME: u64 = 1 << 20;

/// And how many such requests it has in flight for each table.
const WALK_FETCHES: u64 = 4;

/// The database of a volume, opened for writing or as it was once.
pub(crate) struct Database {
    handle: Handle,
    /// What the database is made of, now.
    status: watch::Receiver<DbStatus>,
    /// For what is fetched of it.
    room: Room,
}

enum Handle {
    Writer(Db),
    Reader(Box<DbReader>),
}

/// Opens a database for writing, and fences an earlier writer. Makes one where there is none.
pub(crate) async fn open(
    location: &Location,
    options: &Options,
    disk_cache: Option<&Used>,
    cipher: Option<Arc<dyn BlockTransformer>>,
) -> Result<Db, slatedb::Error> {
    let mut builder = Db::builder(location.database(), location.database_store())
        .with_settings(settings(options, disk_cache))
        .with_sst_block_size(PART)
        .with_system_clock(clock())
        .with_db_cache(cache(options), 0);
    if let Some(cipher) = cipher {
        builder = builder.with_block_transformer(cipher);
    }
    builder.build().await
}

/// Opens a database as it is in the store, or as it was at a checkpoint.
pub(crate) async fn read(
    location: &Location,
    mode: DbReaderMode,
    options: &Options,
    disk_cache: Option<&Used>,
    cipher: Option<Arc<dyn BlockTransformer>>,
) -> Result<DbReader, slatedb::Error> {
    let mut builder = DbReader::builder(location.database(), location.database_store())
        .with_reader_mode(mode)
        .with_options(DbReaderOptions {
            object_store_cache_options: Used::settings(disk_cache),
            ..DbReaderOptions::default()
        })
        .with_system_clock(clock())
        .with_db_cache(cache(options), 0);
    if let Some(cipher) = cipher {
        builder = builder.with_block_transformer(cipher);
    }
    builder.build().await
}

/// What can be done with a database without opening it.
pub(crate) fn admin(location: &Location) -> Admin {
    Admin::builder(location.database(), location.database_store())
        .with_system_clock(clock())
        .build()
}

/// The time of day as it was when this process first asked, and steadily on from there: SlateDB refuses to write when
/// its clock was set back.
pub(crate) fn clock() -> Arc<dyn SystemClock> {
    static CLOCK: OnceLock<Arc<DefaultSystemClock>> = OnceLock::new();
    let clock = CLOCK.get_or_init(|| Arc::new(DefaultSystemClock::new()));
    Arc::clone(clock) as Arc<dyn SystemClock>
}

/// A cache for parts of tables, and one for their indexes and filters, which would be driven out by the former.
pub(crate) fn cache(options: &Options) -> Arc<dyn DbCache> {
    let half = |max_capacity| {
        let options = MokaCacheOptions { max_capacity, ..MokaCacheOptions::default() };
        Some(Arc::new(MokaCache::new_with_opts(options)) as Arc<dyn DbCache>)
    };
    let bytes = options.object_cache;
    let cache =
        SplitCache::new().with_block_cache(half(bytes / 2)).with_meta_cache(half(bytes / 2));
    Arc::new(cache.build())
}

impl Database {
    pub(crate) fn writer(db: Db, options: &Options) -> Self {
        let (status, room) = (db.subscribe(), Room::new(options.fetching));
        Self { handle: Handle::Writer(db), status, room }
    }

    pub(crate) fn reader(db: DbReader, options: &Options) -> Self {
        let (status, room) = (db.subscribe(), Room::new(options.fetching));
        Self { handle: Handle::Reader(Box::new(db)), status, room }
    }

    /// The handle of one that was opened for writing.
    pub(crate) fn as_writer(&self) -> Option<&Db> {
        match &self.handle {
            Handle::Writer(db) => Some(db),
            Handle::Reader(_) => None,
        }
    }

    /// The same for one that was not.
    pub(crate) fn as_reader(&self) -> Option<&DbReader> {
        match &self.handle {
            Handle::Writer(_) => None,
            Handle::Reader(db) => Some(db),
        }
    }

    /// The value of a key.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, slatedb::Error> {
        let options = ReadOptions::default();
        let _taken = self.room.take(PART_SIZE).await;
        match &self.handle {
            Handle::Writer(db) => db.get_with_options(key, &options).await,
            Handle::Reader(db) => db.get_with_options(key, &options).await,
        }
    }

    /// Waits until there is room to fetch these blocks, which are so many bytes, at once. The walk may be
    /// [extended](Walk::extend) to `most` bytes if that takes not much more. Cancel-safe.
    pub(crate) async fn fetch(
        &self,
        blocks: RangeInclusive<u64>,
        bytes: u64,
        most: u64,
    ) -> Walk<'_> {
        // A part of each table that has some of them is fetched, however few they are.
        let parts = self.tables(&blocks).saturating_add(1).saturating_mul(PART_SIZE);
        let most = bytes.max(most.min(parts / 2));
        let taken = self.room.take(parts.saturating_add(with_keys(most))).await;
        Walk { database: self, blocks, bytes, most, parts, taken, at_a_time: None }
    }

    /// Waits until a walk over these blocks can begin that fetches a bounded part of them at a time. Cancel-safe.
    pub(crate) async fn walk(&self, blocks: RangeInclusive<u64>) -> Walk<'_> {
        let tables = self.tables(&blocks);
        let share = self.room.all() / 2 / tables.saturating_mul(WALK_FETCHES);
        let at_a_time = share.clamp(PART_SIZE, WALKED_AT_A_TIME);
        let bytes = tables.saturating_mul(WALK_FETCHES).saturating_mul(at_a_time);
        let taken = self.room.take(bytes).await;
        let at_a_time = Some(at_a_time);
        Walk { database: self, blocks, bytes: 0, most: 0, parts: bytes, taken, at_a_time }
    }

    /// How many tables may have some of these blocks in a part of their own: runs of tables without overlaps count as one.
    fn tables(&self, blocks: &RangeInclusive<u64>) -> u64 {
        let (first, last) = (block_key(*blocks.start()), block_key(*blocks.end()));
        let status = self.status.borrow();
        let manifest = &status.current_manifest;
        let has_some = |table: &&SsTableView| {
            let info = &table.sst.info;
            let starts = info.first_entry.as_ref().is_none_or(|entry| entry[..] <= last[..]);
            starts && info.last_entry.as_ref().is_none_or(|entry| entry[..] >= first[..])
        };
        let unmerged = manifest.l0().iter().filter(has_some).count();
        (unmerged + manifest.compacted().len()).max(1) as u64
    }
}

/// What so many bytes of blocks take with their keys and the like.
fn with_keys(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8)
}

/// A walk over blocks that has room for what it fetches, until it is dropped.
pub(crate) struct Walk<'a> {
    database: &'a Database,
    blocks: RangeInclusive<u64>,
    /// How long they are, for those that are fetched at once.
    bytes: u64,
    /// And may be.
    most: u64,
    /// Bytes of parts of tables that are fetched, however few blocks they have of these.
    parts: u64,
    taken: Taken,
    /// Bytes of each table that are fetched at a time by others.
    at_a_time: Option<u64>,
}

impl Walk<'_> {
    /// Whether so many bytes of blocks can be added.
    pub(crate) fn can_extend(&self, bytes: u64) -> bool {
        self.bytes + bytes <= self.most
    }

    /// Adds the blocks up to this one, which are so many bytes.
    pub(crate) fn extend(&mut self, end: u64, bytes: u64) {
        self.blocks = *self.blocks.start()..=end - 1;
        self.bytes += bytes;
    }

    /// Whether much more is fetched than is found: blocks should not be kept as slices of that.
    pub(crate) fn is_sparse(&self) -> bool {
        self.parts > self.bytes / 2
    }

    /// Begins. The parts of tables that are fetched go into the cache of parts if they are `cached`.
    pub(crate) async fn begin(self, cached: bool) -> Result<Blocks, slatedb::Error> {
        let keys = block_key(*self.blocks.start())..=block_key(*self.blocks.end());
        // At once: with room for keys and the like, so that it is one request for each table.
        let (at_a_time, fetches) = match self.at_a_time {
            None => (with_keys(self.bytes).saturating_add(2 * PART_SIZE), WALK_FETCHES),
            Some(bytes) => (bytes, WALK_FETCHES),
        };
        let options = ScanOptions::default()
            .with_read_ahead_bytes(usize::try_from(at_a_time).unwrap_or(usize::MAX))
            .with_max_fetch_tasks(usize::try_from(fetches).unwrap_or(1))
            .with_cache_blocks(cached);
        let found = match &self.database.handle {
            Handle::Writer(db) => db.scan_with_options(keys, &options).await?,
            Handle::Reader(db) => db.scan_with_options(keys, &options).await?,
        };
        Ok(Blocks { found, _taken: self.taken })
    }
}

/// The blocks that are there, in their order.
pub(crate) struct Blocks {
    found: DbIterator,
    _taken: Taken,
}

impl Blocks {
    /// The next block: a slice of what was fetched, and keeps all of that in memory.
    pub(crate) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, slatedb::Error> {
        while let Some(entry) = self.found.next().await? {
            if let Some(index) = block_index(&entry.key) {
                return Ok(Some((index, entry.value)));
            }
        }
        Ok(None)
    }
}
