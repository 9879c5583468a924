//! The tables of a volume, each by itself: which parts of them can't be read.

use core::ops::Range;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use object_store::path::Path;
use slatedb::{BlockTransformer, SstFile, SstIndex, SstReader, VersionedManifest};

use crate::error::chain;
use crate::layout::first_block_from;
use crate::object_cache::object_cache;
use crate::{Location, Options};

/// Parts of a table that are read at a time.
const AT_A_TIME: usize = 16;

/// The blocks that can't be read without a damaged part of a table, with what is wrong: among the given ones, in their
/// order, and without overlaps.
pub(super) async fn damaged_parts(
    location: &Location,
    manifest: &VersionedManifest,
    cipher: Option<Arc<dyn BlockTransformer>>,
    within: Range<u64>,
) -> Vec<(Range<u64>, String)> {
    // Those of a clone's origin lie there.
    let mut others = HashMap::new();
    for other in manifest.external_dbs() {
        for id in &other.sst_ids {
            others.insert(*id, Path::from(other.path.as_str()));
        }
    }
    let mut readers: HashMap<Path, SstReader> = HashMap::new();
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for view in manifest.all_sst_views() {
        let id = view.sst.id;
        if seen.contains(&id) {
            continue;
        }
        seen.push(id);
        let path = others.get(&id).cloned().unwrap_or_else(|| location.database());
        let reader = readers.entry(path).or_insert_with_key(|path| {
            let options = Options { object_cache: 16 << 20, ..Options::default() };
            let cache = object_cache(&options);
            SstReader::new(path.clone(), location.database_store(), Some(cache), cipher.clone())
        });
        // Nothing is read for that.
        let Ok(table) = reader.open_with_handle(view.sst.clone()) else { continue };
        let info = table.info();
        let whole = first_block(info.first_entry.as_ref())..end_block(info.last_entry.as_ref());
        match table.index().await {
            Ok(index) => found.extend(parts(&table, &index, &whole).await),
            Err(error) => found.push((whole, chain(&error))),
        }
    }
    disjoint(found, within)
}

/// The blocks that tables begin with, and those behind their last ones, in their order.
pub(super) fn ends_of_tables(manifest: &VersionedManifest) -> Vec<u64> {
    let infos = manifest.all_sst_views().map(|view| &view.sst.info);
    let ends = infos.flat_map(|info| {
        [first_block(info.first_entry.as_ref()), end_block(info.last_entry.as_ref())]
    });
    let mut ends: Vec<u64> = ends.collect();
    ends.sort_unstable();
    ends.dedup();
    ends
}

/// Keys by which the filter of each table is asked: one that no table has, behind its first one, or its only one.
pub(super) fn keys_in_tables(manifest: &VersionedManifest) -> Vec<Bytes> {
    let infos = manifest.all_sst_views().map(|view| &view.sst.info);
    let keys = infos.filter_map(|info| {
        let first = info.first_entry.as_ref()?;
        let has_more = info.last_entry.as_ref().is_some_and(|last| last > first);
        Some(if has_more { Bytes::from([first, &[0][..]].concat()) } else { first.clone() })
    });
    let mut keys: Vec<Bytes> = keys.collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The damaged parts of a table with these blocks.
async fn parts(table: &SstFile, index: &SstIndex, whole: &Range<u64>) -> Vec<(Range<u64>, String)> {
    let starts: Vec<u64> = index.iter().map(|(_, key)| first_block_from(key)).collect();
    let read = stream::iter(0..index.len()).map(|part| async move {
        table.read_block(part).await.err().map(|error| (part, chain(&error)))
    });
    let failed: Vec<(usize, String)> =
        read.buffered(AT_A_TIME).filter_map(|failed| async { failed }).collect().await;
    // Keys of the index are shorter than those of blocks where that is enough to tell parts from those before.
    let start = |part: usize| match part {
        0 => whole.start,
        _ => starts.get(part).map_or(whole.end, |start| (*start).min(whole.end)),
    };
    let range = |part: usize| start(part)..start(part + 1);
    failed.into_iter().map(|(part, what)| (range(part), what)).collect()
}

fn first_block(key: Option<&Bytes>) -> u64 {
    key.map_or(0, |key| first_block_from(key))
}

/// What follows the block of that key.
fn end_block(key: Option<&Bytes>) -> u64 {
    key.map_or(u64::MAX, |key| first_block_from(key).saturating_add(1))
}

/// The parts of these ranges that lie within another one, in their order, and cut where they overlap.
fn disjoint(mut found: Vec<(Range<u64>, String)>, within: Range<u64>) -> Vec<(Range<u64>, String)> {
    found.sort_by_key(|(range, _)| (range.start, range.end));
    let mut parts: Vec<(Range<u64>, String)> = Vec::new();
    for (range, what) in found {
        let done = parts.last().map_or(within.start, |(last, _)| last.end);
        let range = range.start.max(done)..range.end.min(within.end);
        if !range.is_empty() {
            parts.push((range, what));
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn parts_are_in_order_and_cover_what_was_found_once() {
        cases(300, |random| {
            let count = random.below(8);
            let found: Vec<_> = (0..count)
                .map(|number| {
                    let start = random.below(40);
                    (start..start + random.below(9), number.to_string())
                })
                .collect();
            let within = random.below(9)..20 + random.below(20);
            let parts = disjoint(found.clone(), within.clone());
            assert!(parts.is_sorted_by(|one, two| one.0.end <= two.0.start));
            for block in 0..60 {
                let is_in = |parts: &[(Range<u64>, String)]| {
                    parts.iter().filter(|(range, _)| range.contains(&block)).count()
                };
                let expected = usize::from(is_in(&found) > 0 && within.contains(&block));
                assert_eq!(is_in(&parts), expected, "{block} {found:?} {within:?}");
            }
        });
    }
}
