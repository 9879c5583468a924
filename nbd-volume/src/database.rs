//! SlateDB as volumes use it.

use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use moka::future::Cache;
use slatedb::admin::Admin;
use slatedb::config::{DbReaderOptions, ReadOptions, ScanOptions};
use slatedb::manifest::{SsTableId, SsTableView};
use slatedb::{
    BlockTransformer, CacheTarget, Db, DbCacheManagerOps, DbIterator, DbReader, DbReaderMode,
    DbStatus, ErrorKind, SstBlockSize,
};
use slatedb_common::clock::{DefaultSystemClock, SystemClock};
use tokio::sync::{Mutex, watch};

use crate::disk_cache::Used;
use crate::error::chain;
use crate::fences::Fences;
use crate::layout::{block_index, block_key};
use crate::object_cache::object_cache;
use crate::room::{Room, Taken};
use crate::settings::settings;
use crate::{Location, Options};

/// Bytes that the tables are read in. Larger than a block of the volume, as each such part has an entry in an index
/// that is kept in memory, and a request to a distant store takes as long for 4 KiB.
const PART: SstBlockSize = SstBlockSize::Block64Kib;

/// The same in bytes.
const PART_SIZE: u64 = 64 << 10;

/// Parts of each table that are fetched by one request for a walk over blocks, at most.
const MAX_WALKED: u64 = 16;

/// And how many such requests it has in flight for each table.
const WALK_REQUESTS: u64 = 2;

/// Indexes of tables that are fetched at the same time for one read, at most.
const PREPARED_AT_ONCE: usize = 16;

/// Tables whose index is not asked for again, for so long: by then the cache may have dropped it.
const MAX_PREPARED: u64 = 1024;
const PREPARED_FOR: Duration = Duration::from_secs(60);

/// Tables that SlateDB looks into at the same time for one key.
const LOOKED_INTO: u64 = 4;

/// The database of a volume, opened for writing or as it was once.
pub(crate) struct Database {
    handle: Handle,
    /// What the database is made of, now.
    status: watch::Receiver<DbStatus>,
    /// For what reads fetch of it.
    room: Room,
    /// For walks over any number of blocks, which reads do not wait for.
    walks: Room,
    /// Held by the read that does without filters.
    walking: Mutex<()>,
    /// Tables whose index was read lately.
    prepared: Cache<SsTableId, ()>,
    /// Whether it was said that a filter is damaged.
    has_said: AtomicBool,
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
    fences: Fences,
) -> Result<Db, slatedb::Error> {
    let mut builder = Db::builder(location.database(), location.database_store_with(fences))
        .with_settings(settings(options, disk_cache))
        .with_sst_block_size(PART)
        .with_system_clock(clock())
        .with_db_cache(object_cache(options), 0);
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
    fences: Fences,
) -> Result<DbReader, slatedb::Error> {
    let mut builder = DbReader::builder(location.database(), location.database_store_with(fences))
        .with_reader_mode(mode)
        .with_options(DbReaderOptions {
            object_store_cache_options: Used::settings(disk_cache),
            ..DbReaderOptions::default()
        })
        .with_system_clock(clock())
        .with_db_cache(object_cache(options), 0);
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

impl Database {
    pub(crate) fn writer(db: Db, options: &Options) -> Self {
        Self::new(db.subscribe(), Handle::Writer(db), options)
    }

    pub(crate) fn reader(db: DbReader, options: &Options) -> Self {
        Self::new(db.subscribe(), Handle::Reader(Box::new(db)), options)
    }

    fn new(status: watch::Receiver<DbStatus>, handle: Handle, options: &Options) -> Self {
        let third = options.fetching / 3;
        let prepared =
            Cache::builder().max_capacity(MAX_PREPARED).time_to_live(PREPARED_FOR).build();
        let (room, walks) = (Room::new(2 * third), Room::new(third));
        Self {
            handle,
            status,
            room,
            walks,
            prepared,
            walking: Mutex::new(()),
            has_said: AtomicBool::new(false),
        }
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

    /// The value of a key that is no block's.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, slatedb::Error> {
        let _taken = self.room.take(LOOKED_INTO * PART_SIZE).await;
        self.value(key, true).await
    }

    /// A block of so many bytes.
    pub(crate) async fn block(
        &self,
        index: u64,
        bytes: u64,
    ) -> Result<Option<Bytes>, slatedb::Error> {
        let _taken = self.room.take(self.one(index, bytes).bytes()).await;
        self.value(&block_key(index), true).await
    }

    async fn value(&self, key: &[u8], cached: bool) -> Result<Option<Bytes>, slatedb::Error> {
        let error = match self.looked_up(key, cached).await {
            Err(error) if error.kind() == ErrorKind::Data => error,
            found => return found,
        };
        let Ok(found) = self.walked_to(key, cached).await else { return Err(error) };
        if !self.has_said.swap(true, Ordering::Relaxed) {
            let error = chain(&error);
            tracing::warn!(
                error,
                "the filter of a table is damaged, and is done without, which takes longer: nbd volume check lists such tables"
            );
        }
        Ok(found)
    }

    /// By the filters of the tables.
    async fn looked_up(&self, key: &[u8], cached: bool) -> Result<Option<Bytes>, slatedb::Error> {
        let options = ReadOptions::default().with_cache_blocks(cached);
        match &self.handle {
            Handle::Writer(db) => db.get_with_options(key, &options).await,
            Handle::Reader(db) => db.get_with_options(key, &options).await,
        }
    }

    /// The same by a walk, which reads no filters: those only save a look into tables. One at a time, since each has a part
    /// of every table in memory, and the room that was taken is for a few.
    async fn walked_to(&self, key: &[u8], cached: bool) -> Result<Option<Bytes>, slatedb::Error> {
        let _alone = self.walking.lock().await;
        // SlateDB takes a walk from a key to the same one for a look at that: this is to what follows it.
        let keys = Bytes::copy_from_slice(key)..Bytes::from([key, &[0]].concat());
        let options = ScanOptions::default().with_cache_blocks(cached);
        let mut found = match &self.handle {
            Handle::Writer(db) => db.scan_with_options(keys, &options).await?,
            Handle::Reader(db) => db.scan_with_options(keys, &options).await?,
        };
        Ok(found.next().await?.map(|entry| entry.value))
    }

    /// What is wrong with a filter, of the tables that may have that key. None if they can't be read without filters either.
    pub(crate) async fn fault_of_filter(&self, key: &[u8]) -> Option<slatedb::Error> {
        let error = self.looked_up(key, false).await.err()?;
        let is_damage = error.kind() == ErrorKind::Data;
        (is_damage && self.walked_to(key, false).await.is_ok()).then_some(error)
    }

    /// Waits until there is room to fetch these blocks, which are so many bytes, at once. The walk may be
    /// [extended](Walk::extend) to `most` bytes as far as that takes no more. Cancel-safe.
    pub(crate) async fn fetch(
        &self,
        blocks: RangeInclusive<u64>,
        bytes: u64,
        most: u64,
    ) -> Walk<'_> {
        let demand = match blocks.start() == blocks.end() && most <= bytes {
            true => self.one(*blocks.start(), bytes),
            false => Demand::at_once(self.tables(&blocks), bytes),
        };
        let most = bytes.max(most.min(demand.returned()));
        let taken = self.room.take(demand.bytes()).await;
        Walk { database: self, blocks, bytes, most, demand, taken }
    }

    /// Waits until a walk over these blocks, which are so many bytes, can begin that fetches a bounded part of them at a
    /// time. Cancel-safe.
    pub(crate) async fn walk(&self, blocks: RangeInclusive<u64>, bytes: u64) -> Walk<'_> {
        let demand = Demand::in_steps(self.tables(&blocks), bytes, self.walks.all());
        let taken = self.walks.take(demand.bytes()).await;
        Walk { database: self, blocks, bytes, most: bytes, demand, taken }
    }

    /// What one block takes: SlateDB asks the filters of tables for it.
    fn one(&self, index: u64, bytes: u64) -> Demand {
        let tables = self.tables(&(index..=index)).min(LOOKED_INTO);
        // The beginning of a part does not tell whether a key is in the part before.
        let parts = if bytes < PART_SIZE { 1 } else { 2 };
        Demand { tables, parts, requests: 1 }
    }

    /// How many tables may have some of these blocks in a part of their own: runs of tables without overlaps count as one.
    fn tables(&self, blocks: &RangeInclusive<u64>) -> u64 {
        let keys = Keys::of(blocks);
        let status = self.status.borrow();
        let manifest = &status.current_manifest;
        let unmerged = manifest.l0().iter().filter(|table| keys.may_be_in(table, table)).count();
        let merged = manifest.compacted().iter().filter(|run| match run.sst_views() {
            [first, .., last] => keys.may_be_in(first, last),
            [only] => keys.may_be_in(only, only),
            [] => false,
        });
        (unmerged + merged.count()).max(1) as u64
    }

    /// Has the indexes of the tables that may have some of these blocks in the cache, as far as they have room there: walks
    /// that are not cached would fetch them first, each for itself. Cancel-safe.
    pub(crate) async fn prepare(&self, blocks: RangeInclusive<u64>) {
        let keys = Keys::of(&blocks);
        let tables: Vec<SsTableId> = {
            let status = self.status.borrow();
            let manifest = &status.current_manifest;
            let unmerged = manifest.l0().iter().filter(|table| keys.may_be_in(table, table));
            // In the order of their keys, and there may be very many.
            let merged = manifest.compacted().iter().flat_map(|run| {
                let tables = run.sst_views();
                let first = tables.partition_point(|table| keys.are_behind(table));
                tables[first..].iter().take_while(|table| keys.may_be_in(table, table))
            });
            let all = unmerged.chain(merged).map(|table| table.sst.id);
            all.filter(|table| !self.prepared.contains_key(table)).collect()
        };
        let prepare = |table| async move {
            let index = [CacheTarget::Index];
            let warmed = async {
                match &self.handle {
                    Handle::Writer(db) => db.warm_sst(table, &index).await,
                    Handle::Reader(db) => db.warm_sst(table, &index).await,
                }
            };
            // One that can't be read is reported by the walk.
            let _ = self.prepared.try_get_with(table, warmed).await;
        };
        stream::iter(tables).for_each_concurrent(PREPARED_AT_ONCE, prepare).await;
    }
}

/// From the first key to the last one.
struct Keys(RangeInclusive<Bytes>);

impl Keys {
    fn of(blocks: &RangeInclusive<u64>) -> Self {
        Self(block_key(*blocks.start())..=block_key(*blocks.end()))
    }

    /// Whether some of them may be in a table, or in a run of tables from the first to the last one.
    fn may_be_in(&self, first: &SsTableView, last: &SsTableView) -> bool {
        let starts = first.sst.info.first_entry.as_ref();
        starts.is_none_or(|key| key <= self.0.end()) && !self.are_behind(last)
    }

    /// Whether all of them come after those of a table.
    fn are_behind(&self, table: &SsTableView) -> bool {
        table.sst.info.last_entry.as_ref().is_some_and(|key| key < self.0.start())
    }
}

/// What a walk has in memory at the same time, at most.
#[derive(Clone, Copy, Debug)]
struct Demand {
    tables: u64,
    /// Parts of each that a request fetches.
    parts: u64,
    /// Requests in flight, or of which something is still to be looked at, for each.
    requests: u64,
}

impl Demand {
    /// For blocks that are so many bytes, each of which any number of these tables may have. If each is in one of them, most
    /// need one request; of those that are not, older ones are fetched step by step beside the newer ones.
    fn at_once(tables: u64, bytes: u64) -> Self {
        let parts = match tables {
            // With the part at either end.
            1 => with_keys(bytes) / PART_SIZE + 2,
            _ => (with_keys(bytes) / tables / 4).saturating_mul(5).div_ceil(PART_SIZE).max(1),
        };
        Self { tables, parts, requests: 1 }
    }

    /// For any number of blocks, in so much memory if that is possible.
    fn in_steps(tables: u64, bytes: u64, room: u64) -> Self {
        let one_part_each = tables.saturating_mul(WALK_REQUESTS * PART_SIZE);
        let parts = (room / one_part_each).clamp(1, MAX_WALKED);
        let parts = parts.min(with_keys(bytes) / PART_SIZE + 2);
        Self { tables, parts, requests: WALK_REQUESTS }
    }

    fn bytes(&self) -> u64 {
        let parts = self.tables.saturating_mul(self.parts).saturating_mul(self.requests);
        parts.saturating_mul(PART_SIZE)
    }

    /// How many bytes of blocks are fetched with the same requests, if each is in one of several tables.
    fn returned(&self) -> u64 {
        if self.tables > 1 { self.bytes() / 9 * 6 } else { 0 }
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
    /// How long they are.
    bytes: u64,
    /// And may be.
    most: u64,
    demand: Demand,
    taken: Taken,
}

impl Walk<'_> {
    /// Adds the blocks up to this one, which are so many bytes, if that takes no more room. Returns whether it did.
    pub(crate) fn extend(&mut self, end: u64, bytes: u64) -> bool {
        let all = *self.blocks.start()..=end - 1;
        if self.bytes + bytes > self.most || self.database.tables(&all) > self.demand.tables {
            return false;
        }
        self.blocks = all;
        self.bytes += bytes;
        true
    }

    /// Whether more may be fetched than is found: blocks must not be kept as slices of that.
    pub(crate) fn is_sparse(&self) -> bool {
        self.demand.tables > 1 || self.demand.bytes() / 2 > self.bytes
    }

    /// Begins. The parts of tables that are fetched go into the cache of parts if they are `cached`.
    pub(crate) async fn begin(self, cached: bool) -> Result<Blocks, slatedb::Error> {
        let (start, end) = self.blocks.into_inner();
        if start == end {
            let found = self.database.value(&block_key(start), cached).await?;
            let block = found.map(|block| (start, block));
            return Ok(Blocks { found: Found::One(block), _taken: self.taken });
        }
        let keys = block_key(start)..=block_key(end);
        // A request fetches parts until it has as much as this.
        let at_a_time = (self.demand.parts - 1).saturating_mul(PART_SIZE) + 1;
        let options = ScanOptions::default()
            .with_read_ahead_bytes(usize::try_from(at_a_time).unwrap_or(usize::MAX))
            .with_max_fetch_tasks(usize::try_from(self.demand.requests).unwrap_or(1))
            .with_cache_blocks(cached);
        let found = match &self.database.handle {
            Handle::Writer(db) => db.scan_with_options(keys, &options).await?,
            Handle::Reader(db) => db.scan_with_options(keys, &options).await?,
        };
        Ok(Blocks { found: Found::More(Box::new(found)), _taken: self.taken })
    }
}

/// The blocks that are there, in their order.
pub(crate) struct Blocks {
    found: Found,
    _taken: Taken,
}

/// What a walk has found.
enum Found {
    /// Of a walk over one block, unless it was returned.
    One(Option<(u64, Bytes)>),
    More(Box<DbIterator>),
}

impl Blocks {
    /// The next block: a slice of what was fetched, and keeps all of that in memory.
    pub(crate) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, slatedb::Error> {
        let found = match &mut self.found {
            Found::One(block) => return Ok(block.take()),
            Found::More(found) => found,
        };
        while let Some(entry) = found.next().await? {
            if let Some(index) = block_index(&entry.key) {
                return Ok(Some((index, entry.value)));
            }
        }
        Ok(None)
    }
}
