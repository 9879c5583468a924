//! A sparse table of pages: page numbers to shared bytes, for many threads.
//!
//! Pages are kept by regions of neighbours, regions in an ordered map, and the maps in shards with a lock each. So
//! finding a page costs one uncontended lock and a short search, a walk passes over what is absent without looking at
//! it, and what is freed leaves nothing behind: no client can make the table grow beyond a small part of its pages.
//!
//! A [`Page`] can be shared, so that a large read needs no copy. Writers change a page in place only while no reader
//! shares it, and replace it by a changed copy otherwise: a write costs one copy of a page more than its own bytes, at
//! most, for each page it touches, and just the first write after a read pays.

use core::ops::{Range, RangeInclusive};
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::PAGE;
use super::account::Account;
use super::frames::Frames;
use super::page::Page;
use crate::export::{ExportError, Result};

const PAGE_BYTES: u64 = PAGE as u64;

/// Pages of a region: 512 KiB of neighbours under one lock.
const REGION: u64 = 32;

/// Locks. Enough that a handful of threads rarely meets; few enough that asking each of them stays cheap, which is
/// what looking for the next page after a large hole does.
const SHARD_BITS: u32 = 7;

/// Regions that are freed before the lock is let go for a moment.
const BATCH: usize = 32;

/// Never empty while the lock of its shard is free.
#[derive(Default)]
struct Region([Option<Page>; REGION as usize]);

impl Region {
    /// The slots of those of `pages` that lie in the region `number`.
    fn slots(number: u64, pages: &Range<u64>) -> Range<usize> {
        let start = number * REGION;
        let slot = |page: u64| page.saturating_sub(start).min(REGION) as usize;
        slot(pages.start)..slot(pages.end)
    }

    fn count(&self, slots: Range<usize>) -> u64 {
        self.0[slots].iter().flatten().count() as u64
    }
}

type Map = BTreeMap<u64, Box<Region>>;

/// Alone on its cache lines, or threads would disturb each other on different shards.
#[derive(Default)]
#[repr(align(128))]
struct Shard(RwLock<Map>);

// A panic while a lock is held leaves plain bytes in some state of a write, which is what a failed write may leave: so
// poison is ignored.
impl Shard {
    fn read(&self) -> RwLockReadGuard<'_, Map> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Map> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is put into a part of a page.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// These bytes, as many as the part has.
    Data(&'a [u8]),
    /// Zeroes; an absent page is zero already.
    Zeroes,
    /// Zeroes; an absent page becomes present.
    AllocatedZeroes,
}

impl Source<'_> {
    fn put(self, part: &mut [u8]) {
        match self {
            Self::Data(data) => part.copy_from_slice(data),
            Self::Zeroes | Self::AllocatedZeroes => part.fill(0),
        }
    }

    /// Fills a page, whose content is arbitrary, so that it is like `old` but for the part `within`. Each byte is
    /// written once where that is possible.
    fn fill(self, page: &mut [u8], within: Range<usize>, old: Option<&[u8]>) {
        match old {
            Some(old) if within.len() < PAGE => page.copy_from_slice(old),
            _ => {
                page[..within.start].fill(0);
                page[within.end..].fill(0);
            }
        }
        self.put(&mut page[within]);
    }
}

/// The table, see the module's text.
pub(super) struct Pages {
    shards: Box<[Shard]>,
    frames: Arc<Frames>,
    /// Bytes of the pages that are present.
    allocated: AtomicU64,
    limit: u64,
}

impl Pages {
    /// An empty table that holds pages of as many bytes as the account allows now.
    pub(super) fn new(account: Arc<Account>) -> Self {
        let shards = (0..1 << SHARD_BITS).map(|_| Shard::default()).collect();
        let limit = account.limit();
        Self { shards, frames: Frames::new(account), allocated: AtomicU64::new(0), limit }
    }

    /// The memory of the disk.
    pub(super) const fn frames(&self) -> &Arc<Frames> {
        &self.frames
    }

    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) const fn set_limit(&mut self, bytes: u64) {
        self.limit = bytes;
    }

    pub(super) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Fibonacci hashing: neighbouring regions, and those at any regular distance, get different shards.
    fn shard(&self, region: u64) -> &Shard {
        let hash = region.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(hash >> (u64::BITS - SHARD_BITS)) as usize]
    }

    /// Shows the page, or that it is absent. Its bytes do not change meanwhile.
    pub(super) fn look<R>(&self, page: u64, look: impl FnOnce(Option<&Page>) -> R) -> R {
        let region = page / REGION;
        let map = self.shard(region).read();
        look(map.get(&region).and_then(|region| region.0[slot(page)].as_ref()))
    }

    /// Puts `source` into the part `within` of a page. Fails when that takes a page more than the limit allows.
    pub(super) fn edit(&self, page: u64, within: Range<usize>, source: Source<'_>) -> Result<()> {
        let shard = self.shard(page / REGION);
        loop {
            let seen = {
                let mut map = shard.write();
                match (present(&mut map, page), source) {
                    (Some(bytes), _) => {
                        if let Some(bytes) = bytes.get_mut() {
                            source.put(&mut bytes[within]);
                            return Ok(());
                        }
                        Some(bytes.clone())
                    }
                    (None, Source::Zeroes) => return Ok(()),
                    (None, _) => None,
                }
            };
            // Memory is taken, cleared and copied with no lock held. The page that was seen cannot change under our
            // hands, because we share it now.
            let fill = |page: &mut [u8]| source.fill(page, within.clone(), seen.as_deref());
            let fresh = self.frames.page(fill).ok_or_else(out_of_memory)?;
            let mut map = shard.write();
            match (present(&mut map, page), &seen) {
                (Some(current), Some(seen)) if current.same(seen) => {
                    *current = fresh;
                    return Ok(());
                }
                (None, None) => {
                    self.reserve()?;
                    map.entry(page / REGION).or_default().0[slot(page)] = Some(fresh);
                    return Ok(());
                }
                // Another thread was faster. It got its work done, so that there is progress.
                _ => {}
            }
        }
    }

    /// Puts a whole page in place and gives back the one that was there. Fails when that takes a page more than the
    /// limit allows.
    pub(super) fn exchange(&self, page: u64, bytes: Page) -> Result<Option<Page>> {
        let mut map = self.shard(page / REGION).write();
        if let Some(current) = present(&mut map, page) {
            return Ok(Some(core::mem::replace(current, bytes)));
        }
        self.reserve()?;
        map.entry(page / REGION).or_default().0[slot(page)] = Some(bytes);
        Ok(None)
    }

    /// Room for one page more.
    fn reserve(&self) -> Result<()> {
        let add = |bytes: u64| bytes.checked_add(PAGE_BYTES).filter(|&sum| sum <= self.limit);
        match self.allocated.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(()),
            Err(_) => Err(self.full()),
        }
    }

    fn full(&self) -> ExportError {
        let text =
            format!("no space is left: the memory's limit of {} bytes is reached", self.limit);
        ExportError::new(ExportError::no_space().code(), text)
    }

    /// Whether all of `pages` could be present. Others may take the room before it is used.
    pub(super) fn check_room(&self, pages: Range<u64>) -> Result<()> {
        // What is certain to fail is not worth a count.
        let bytes = |count: u64| count.checked_mul(PAGE_BYTES).filter(|&sum| sum <= self.limit);
        let range = bytes(pages.end - pages.start).ok_or_else(|| self.full())?;
        let there = self.count(&pages);
        let missing = range - there * PAGE_BYTES;
        match self.allocated().checked_add(missing) {
            Some(sum) if sum > self.limit => Err(self.full()),
            Some(_) if self.frames.account().has_room(missing) => Ok(()),
            Some(_) => Err(out_of_memory()),
            None => Err(self.full()),
        }
    }

    /// The first pages of regions that share a lock.
    #[cfg(test)]
    pub(super) fn regions_of_one_shard(&self, count: usize) -> Vec<u64> {
        let alike = |region: &u64| core::ptr::eq(self.shard(*region), self.shard(0));
        (0..).filter(alike).map(|region| region * REGION).take(count).collect()
    }

    /// How many of `pages` are present.
    fn count(&self, pages: &Range<u64>) -> u64 {
        let Some(regions) = regions(pages) else { return 0 };
        let count = |shard: &Shard| {
            let map = shard.read();
            let found = map.range(regions.clone());
            found.map(|(&number, found)| found.count(Region::slots(number, pages))).sum::<u64>()
        };
        self.shards.iter().map(count).sum()
    }

    /// Drops pages. What is shared stays in memory until the last one who shares it is done.
    pub(super) fn free(&self, pages: Range<u64>) {
        let Some(regions) = regions(&pages) else { return };
        if regions.end() - regions.start() < self.shards.len() as u64 {
            for region in regions {
                let mut freed = Vec::new();
                self.take(&mut self.shard(region).write(), region, &pages, &mut freed);
                // The lock is free again before the memory goes.
                self.frames.give_back_pages(freed);
            }
            return;
        }
        for shard in &self.shards {
            let mut rest = Some(*regions.start());
            while let Some(start) = rest.take() {
                let mut freed = Vec::new();
                let mut map = shard.write();
                let numbers = map.range(start..=*regions.end()).map(|(&number, _)| number);
                let batch: Vec<u64> = numbers.take(BATCH).collect();
                for &region in &batch {
                    self.take(&mut map, region, &pages, &mut freed);
                }
                drop(map);
                self.frames.give_back_pages(freed);
                // The last of a full batch is asked for again, for there may be nothing after it.
                rest = batch.get(BATCH - 1).copied();
            }
        }
    }

    /// Moves those of `pages` that lie in one region out of it, and the region out of its map when that was all.
    fn take(&self, map: &mut Map, number: u64, pages: &Range<u64>, freed: &mut Vec<Page>) {
        let Some(region) = map.get_mut(&number) else { return };
        let before = freed.len();
        freed.extend(region.0[Region::slots(number, pages)].iter_mut().filter_map(Option::take));
        if region.0.iter().all(Option::is_none) {
            map.remove(&number);
        }
        let bytes = (freed.len() - before) as u64 * PAGE_BYTES;
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How far the pages from `page` on are all present, or all absent: which of both, and the first page that is
    /// different, or else `end`, which is above `page`. Present ones are walked over, `max` of them and no further;
    /// absent ones are not.
    pub(super) fn run(&self, page: u64, end: u64, max: u64) -> (bool, u64) {
        if self.look(page, |page| page.is_some()) {
            (true, self.next(page, end.min(page + max), false))
        } else {
            (false, self.next(page, end, true))
        }
    }

    /// The first page from `page` on that is present, or absent, or else `end`.
    fn next(&self, mut page: u64, end: u64, wanted: bool) -> u64 {
        while page < end {
            let region = page / REGION;
            let map = self.shard(region).read();
            match map.get(&region) {
                Some(found) => {
                    let mut slots = found.0[slot(page)..].iter();
                    if let Some(skip) = slots.position(|slot| slot.is_some() == wanted) {
                        return end.min(page + skip as u64);
                    }
                    page = (region + 1) * REGION;
                }
                None if !wanted => return page,
                None => {
                    drop(map);
                    match self.next_region(region) {
                        Some(region) => page = region * REGION,
                        None => return end,
                    }
                }
            }
        }
        end
    }

    /// The next region that is there, after one that is not.
    fn next_region(&self, region: u64) -> Option<u64> {
        // Often the neighbour; if not, each shard knows its own next.
        let region = region + 1;
        if self.shard(region).read().contains_key(&region) {
            return Some(region);
        }
        let next = |shard: &Shard| shard.read().range(region..).next().map(|(&region, _)| region);
        self.shards.iter().filter_map(next).min()
    }
}

/// There is no memory, whatever the disk's own limit is.
fn out_of_memory() -> ExportError {
    let text = "no space is left: this process may not use more memory for its disks";
    ExportError::new(ExportError::no_space().code(), text)
}

/// The regions that a range of pages touches; none for an empty range.
fn regions(pages: &Range<u64>) -> Option<RangeInclusive<u64>> {
    (!pages.is_empty()).then(|| pages.start / REGION..=(pages.end - 1) / REGION)
}

fn slot(page: u64) -> usize {
    (page % REGION) as usize
}

fn present(map: &mut Map, page: u64) -> Option<&mut Page> {
    map.get_mut(&(page / REGION))?.0[slot(page)].as_mut()
}
