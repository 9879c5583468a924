//! SlateDB's settings for a volume: how much it may keep in memory, and how many tables may wait to be merged.

use core::time::Duration;
use std::collections::HashMap;

use slatedb::config::{CompactionWorkerOptions, CompactorOptions, Settings};

use crate::Options;
use crate::disk_cache::Used;

/// How often SlateDB looks for what its compactor has done. [`Lease`](crate::lease::Lease) looks more often, and that
/// counts for SlateDB as well.
const MANIFEST_POLL: Duration = Duration::from_secs(30);

/// Tables that may wait to be merged. SlateDB takes no more writes when there are so many, and merging begins up to ten
/// seconds after they came. Writes that go on for longer are as fast as [so many](MERGED) at a time are merged.
const MAX_TABLES: usize = 256;

/// Bytes of them, at most: there is no need for more, and what is read is searched for in each of them.
const MAX_UNMERGED: usize = 2 << 30;

/// Tables that are merged into one at a time.
const MERGED: usize = 16;

/// Merges at the same time.
const MERGES: usize = 2;

/// Requests in flight for each table that is merged.
const FETCHES: usize = 2;

/// SlateDB's settings for a volume that is opened with these options.
pub(crate) fn settings(options: &Options, disk_cache: Option<&Used>) -> Settings {
    let table = options.table_size();
    let tables = (MAX_UNMERGED / table).min(MAX_TABLES);
    Settings {
        object_store_cache_options: Used::settings(disk_cache),
        flush_interval: Some(options.upload_interval()),
        manifest_poll_interval: MANIFEST_POLL,
        max_unflushed_bytes: options.unflushed(),
        l0_sst_size_bytes: table,
        l0_max_ssts: tables,
        l0_max_ssts_per_key: tables,
        compactor_options: Some(CompactorOptions {
            max_concurrent_compactions: MERGES,
            scheduler_options: HashMap::from([(
                "max_compaction_sources".to_owned(),
                MERGED.to_string(),
            )]),
            worker: Some(CompactionWorkerOptions {
                max_concurrent_compactions: MERGES,
                max_subcompactions: 1,
                max_fetch_tasks: FETCHES,
                bytes_to_fetch: fetched(options.unflushed()),
                ..CompactionWorkerOptions::default()
            }),
            ..CompactorOptions::default()
        }),
        ..Settings::default()
    }
}

/// Bytes that are fetched at a time of each table that is merged, so that all merges have half as much in memory as
/// is unflushed, as far as the requests are of a sensible length.
fn fetched(unflushed: usize) -> usize {
    (unflushed / 2 / (MERGES * MERGED * FETCHES)).clamp(128 << 10, 2 << 20)
}
