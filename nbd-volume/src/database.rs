//! SlateDB as volumes use it.

use core::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use slatedb::admin::Admin;
use slatedb::config::{DbReaderOptions, ReadOptions, ScanOptions};
use slatedb::db_cache::moka::{MokaCache, MokaCacheOptions};
use slatedb::db_cache::{DbCache, SplitCache};
use slatedb::{BlockTransformer, Db, DbIterator, DbReader, DbReaderMode, SstBlockSize};
use slatedb_common::clock::{DefaultSystemClock, SystemClock};

use crate::disk_cache::Used;
use crate::layout::{block_index, block_key};
use crate::settings::settings;
use crate::{Location, Options};

/// Bytes that the tables are read in. Larger than a block of the volume, as each such part has an entry in an index
/// that is kept in memory, and a request to a distant store takes as long for 4 KiB.
const PART: SstBlockSize = SstBlockSize::Block64Kib;

/// The same in bytes.
pub(crate) const PART_SIZE: usize = 64 << 10;

/// The database of a volume, opened for writing or as it was once.
#[derive(Clone)]
pub(crate) enum Database {
    Writer(Db),
    Reader(Arc<DbReader>),
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
    /// The value of a key.
    pub(crate) async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, slatedb::Error> {
        let options = ReadOptions::default();
        match self {
            Self::Writer(db) => db.get_with_options(key, &options).await,
            Self::Reader(db) => db.get_with_options(key, &options).await,
        }
    }

    /// The blocks among these that are there, in their order. So many bytes are fetched by one request to the store,
    /// and go into the cache of parts if they are `cached`.
    pub(crate) async fn blocks(
        &self,
        blocks: RangeInclusive<u64>,
        at_a_time: usize,
        cached: bool,
    ) -> Result<Blocks, slatedb::Error> {
        let keys = block_key(*blocks.start())..=block_key(*blocks.end());
        let options = ScanOptions::default()
            .with_read_ahead_bytes(at_a_time.max(PART_SIZE))
            .with_max_fetch_tasks(4)
            .with_cache_blocks(cached);
        let iterator = match self {
            Self::Writer(db) => db.scan_with_options(keys, &options).await?,
            Self::Reader(db) => db.scan_with_options(keys, &options).await?,
        };
        Ok(Blocks(iterator))
    }
}

/// A walk over the blocks that are there.
pub(crate) struct Blocks(DbIterator);

impl Blocks {
    /// The next block.
    pub(crate) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, slatedb::Error> {
        while let Some(entry) = self.0.next().await? {
            if let Some(index) = block_index(&entry.key) {
                return Ok(Some((index, entry.value)));
            }
        }
        Ok(None)
    }
}
