//! Reading blocks: from the cache, from what was fetched ahead, or by a scan of the database.

use core::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use nbd_engine::export::ExportError;
use tokio::time::timeout;

use crate::ahead::{Ahead, Fetch};
use crate::blocks::Result;
use crate::database::PART_SIZE;
use crate::layout::block_key;
use crate::locks::Mode;
use crate::shared::Shared;

/// Bytes of a read or write up to which its blocks are kept in the cache: longer ones are not likely to be read again
/// soon, and would drive out what is.
pub(crate) const MAX_CACHED: u64 = 256 << 10;

/// Bytes of a sequence up to which its blocks are kept in the caches, for the same reason.
const MAX_CACHED_SEQUENCE: u64 = 16 << 20;

/// Consecutive blocks, without gaps: an empty one is a hole.
pub(crate) type Run = Vec<Bytes>;

/// Consecutive blocks as far as they are known.
pub(crate) type Known = Vec<Option<Bytes>>;

/// How long a range is that is read in sequence: whether its blocks are worth to be kept.
pub(crate) fn is_kept(bytes: &Range<u64>, sequence: u64) -> bool {
    bytes.end - bytes.start <= MAX_CACHED && sequence <= MAX_CACHED_SEQUENCE
}

impl Shared {
    /// Begins to fetch what will be read soon, unless it is known already. For a sequence that is so long.
    pub(crate) fn fetch_ahead(self: &Arc<Self>, bytes: &Range<u64>, sequence: u64) {
        self.begin(bytes, sequence, Ahead::fetch_ahead);
    }

    /// Begins to fetch what is likely to be read, where nothing is that was fetched for others.
    pub(crate) fn fetch_in_idle_room(self: &Arc<Self>, bytes: &Range<u64>) {
        self.begin(bytes, u64::MAX, Ahead::fetch_in_idle_room);
    }

    fn begin(
        self: &Arc<Self>,
        bytes: &Range<u64>,
        sequence: u64,
        register: impl FnOnce(&Arc<Ahead>, &Range<u64>) -> Vec<Fetch>,
    ) {
        let blocks = Self::locked(&self.blocks(bytes));
        if self.check_open().is_err() || blocks.clone().all(|index| self.cache.has(index)) {
            return;
        }
        for fetch in register(&self.ahead, &blocks) {
            self.runtime.spawn(Arc::clone(self).fetch(fetch, sequence <= MAX_CACHED_SEQUENCE));
        }
    }

    /// The blocks that hold these bytes if all of them are known without asking the database. Those that are read in
    /// sequence are looked for among what was fetched ahead first, the others in the cache.
    ///
    /// No lock is needed: a change is reported to the cache after everything else, and before its request is answered.
    pub(crate) fn at_hand(&self, bytes: &Range<u64>, in_sequence: bool) -> Option<Run> {
        let is_short = bytes.end - bytes.start <= MAX_CACHED;
        let blocks = Self::locked(&self.blocks(bytes));
        let mut known = unknown(&blocks);
        if in_sequence {
            self.ahead.fill(&mut known, &blocks);
        }
        for (slot, index) in known.iter_mut().zip(blocks.clone()) {
            if slot.is_none() {
                let cached = if is_short { self.cache.get(index) } else { None };
                *slot = Some(cached.or_else(|| self.ahead.get(index))?);
            }
        }
        self.ahead.read(bytes);
        known.into_iter().collect()
    }

    /// The blocks that hold these bytes. Those that are `kept` get into the cache.
    pub(crate) async fn read(self: Arc<Self>, bytes: Range<u64>, kept: bool) -> Result<Run> {
        let blocks = Self::locked(&self.blocks(&bytes));
        let _lock = self.locks.lock(blocks.clone(), Mode::Shared).await;
        let mut known: Known = match kept {
            true => blocks.clone().map(|index| self.cache.get(index)).collect(),
            false => unknown(&blocks),
        };
        if let Some(missing) = missing(&blocks, &known) {
            self.fill(&mut known, &blocks, &missing).await;
            self.ahead.read(&bytes);
        }
        // What could not be fetched with others, or was changed before the lock was taken.
        if let Some(missing) = missing(&blocks, &known) {
            let found = self.scan(&missing, true).await?;
            for (index, block) in missing.zip(found) {
                known[position(&blocks, index)] = Some(block);
            }
        }
        let run: Run = known.into_iter().map(Option::unwrap_or_default).collect();
        if kept {
            for (index, block) in blocks.zip(&run) {
                if !self.cache.has(index) {
                    // A copy: what was read is a slice of something larger.
                    self.cache.insert(index, Bytes::copy_from_slice(block));
                }
            }
        }
        Ok(run)
    }

    /// Fills in what others fetch or have fetched, and fetches the rest for them as well.
    async fn fill(self: &Arc<Self>, known: &mut Known, blocks: &Range<u64>, missing: &Range<u64>) {
        for fetch in self.ahead.fetch(missing) {
            self.runtime.spawn(Arc::clone(self).fetch(fetch, true));
        }
        // Before the wait: they leave when they were fetched.
        for segment in self.ahead.covering(missing) {
            segment.ended().await;
            segment.fill(known, blocks);
        }
    }

    /// Fetches a segment. One that fails is fetched by those who need it, who report the error.
    async fn fetch(self: Arc<Self>, fetch: Fetch, cached: bool) {
        let blocks = fetch.blocks();
        if let Ok(Ok(found)) = timeout(self.patience, self.scan(&blocks, cached)).await {
            fetch.finish(found);
        }
    }

    /// The blocks as the database has them now.
    async fn scan(&self, blocks: &Range<u64>, cached: bool) -> Result<Run> {
        if blocks.end - blocks.start == 1 {
            return Ok(vec![self.stored(blocks.start).await?]);
        }
        let failed = |error| self.failed(&error);
        let length = (blocks.end - blocks.start).saturating_mul(self.block_size());
        // With room for keys and the like, so that it is one request for each table.
        let length = usize::try_from(length + length / 8).unwrap_or(usize::MAX) + 2 * PART_SIZE;
        let range = blocks.start..=blocks.end - 1;
        let mut found = self.database.blocks(range, length, cached).await.map_err(failed)?;
        let mut run = Run::new();
        let mut next = blocks.start;
        while let Some((index, block)) = found.next().await.map_err(failed)? {
            let block = self.checked(index, block)?;
            run.extend((next..index).map(|_| Bytes::new()));
            run.push(block);
            next = index + 1;
        }
        run.extend((next..blocks.end).map(|_| Bytes::new()));
        Ok(run)
    }

    /// A block, by way of the cache. To be called with a lock of it.
    pub(crate) async fn block(&self, index: u64) -> Result<Bytes> {
        if let Some(block) = self.cache.get(index) {
            return Ok(block);
        }
        let block = match self.ahead.get(index) {
            Some(block) => block,
            None => self.stored(index).await?,
        };
        let block = Bytes::copy_from_slice(&block);
        self.cache.insert(index, block.clone());
        Ok(block)
    }

    /// A block as the database has it.
    async fn stored(&self, index: u64) -> Result<Bytes> {
        let found = self.database.get(&block_key(index)).await;
        match found.map_err(|error| self.failed(&error))? {
            None => Ok(Bytes::new()),
            Some(block) => self.checked(index, block),
        }
    }

    /// A block as it was stored, if it can be one.
    fn checked(&self, index: u64, block: Bytes) -> Result<Bytes> {
        match block.len() as u64 == self.block_size() {
            true => Ok(block),
            false => Err(ExportError::io(format!(
                "{} is damaged: block {index} has {} bytes instead of {}",
                self.location,
                block.len(),
                self.block_size()
            ))),
        }
    }
}

fn unknown(blocks: &Range<u64>) -> Known {
    vec![None; usize::try_from(blocks.end - blocks.start).unwrap_or(0)]
}

/// The position of a block among others that it is one of.
fn position(blocks: &Range<u64>, index: u64) -> usize {
    usize::try_from(index - blocks.start).unwrap_or(usize::MAX)
}

/// From the first block that is not known to the last one.
fn missing(blocks: &Range<u64>, known: &Known) -> Option<Range<u64>> {
    let first = known.iter().position(Option::is_none)?;
    let last = known.iter().rposition(Option::is_none)?;
    Some(blocks.start + first as u64..blocks.start + last as u64 + 1)
}
