//! Reading blocks: from the cache, from what was fetched ahead, or by a scan of the database.

use core::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use nbd_engine::export::ExportError;
use tokio::time::timeout;

use crate::ahead::{Ahead, Fetch, Turn};
use crate::blocks::Result;
use crate::database::Walk;
use crate::locks::Mode;
use crate::shared::Shared;
use crate::streams::Streams;

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
        self.spawn_fetches(register(&self.ahead, &blocks), sequence <= MAX_CACHED_SEQUENCE);
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
            let found = self.read_stored(&missing).await?;
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
        let fetches = self.ahead.fetch(missing);
        // Before they begin: they leave when they were fetched, and are not fetched when nobody wants them.
        let segments = self.ahead.covering(missing);
        self.spawn_fetches(fetches, true);
        for segment in segments {
            segment.ended().await;
            segment.fill(known, blocks);
        }
    }

    fn spawn_fetches(self: &Arc<Self>, fetches: Vec<Fetch>, cached: bool) {
        for fetch in fetches {
            let turn = self.ahead.wait(fetch);
            let shared = Arc::clone(self);
            self.runtime.spawn(async move {
                // Those that fail are fetched by those who need them, who report the error.
                let _ = timeout(shared.patience, shared.fetch(turn, cached)).await;
            });
        }
    }

    /// Fetches a segment when there is room for it, unless it was fetched with one before it. Those that follow it, and
    /// still wait then, are fetched with it: where blocks lie in many tables, a part of each of them is fetched for a short
    /// segment as it is for a long one.
    async fn fetch(&self, turn: Turn, cached: bool) -> Result<()> {
        // For one block alone far less is fetched than for two.
        let (blocks, block_size) = (turn.blocks(), self.block_size());
        let is_alone = self.bytes(blocks) == block_size && self.ahead.waiting(blocks.end).is_none();
        if !is_alone {
            self.database.prepare(blocks.start..=blocks.end - 1).await;
        }
        let most = if is_alone { 0 } else { Streams::MAX_PIECE };
        let mut walk = self.fetched_at_once(blocks, most).await;
        let Some(fetch) = turn.begin().filter(Fetch::is_wanted) else { return Ok(()) };
        let mut all = fetch.blocks();
        let mut fetches = vec![fetch];
        while let Some(next) = self.ahead.waiting(all.end) {
            if !walk.extend(next.end, self.bytes(&next)) {
                break;
            }
            let Some(fetch) = self.ahead.begin(&next) else { break };
            fetches.push(fetch);
            all.end = next.end;
        }
        let mut found = self.scan(walk, &all, cached).await?;
        for fetch in fetches.into_iter().rev() {
            let start = fetch.blocks().start;
            fetch.finish(found.split_off(position(&all, start)));
        }
        Ok(())
    }

    /// Waits until there is room to fetch these blocks at once, and perhaps more.
    async fn fetched_at_once(&self, blocks: &Range<u64>, most: u64) -> Walk<'_> {
        self.database.fetch(blocks.start..=blocks.end - 1, self.bytes(blocks), most).await
    }

    /// How long they are.
    fn bytes(&self, blocks: &Range<u64>) -> u64 {
        (blocks.end - blocks.start).saturating_mul(self.block_size())
    }

    /// The blocks as the database has them now.
    async fn read_stored(&self, blocks: &Range<u64>) -> Result<Run> {
        if blocks.end - blocks.start == 1 {
            let block = self.stored(blocks.start).await?;
            return Ok(vec![Bytes::copy_from_slice(&block)]);
        }
        let walk = self.fetched_at_once(blocks, 0).await;
        self.scan(walk, blocks, true).await
    }

    /// The blocks as a walk over them finds them, and perhaps over some behind them.
    async fn scan(&self, walk: Walk<'_>, blocks: &Range<u64>, cached: bool) -> Result<Run> {
        let failed = |error| self.failed(&error);
        let mut copies = walk.is_sparse().then(|| Copies::new(self.bytes(blocks)));
        let mut found = walk.begin(cached).await.map_err(failed)?;
        let mut run = Run::new();
        let mut next = blocks.start;
        while let Some((index, block)) = found.next().await.map_err(failed)? {
            if index >= blocks.end {
                break;
            }
            let block = self.checked(index, block)?;
            run.extend((next..index).map(|_| Bytes::new()));
            run.push(match &mut copies {
                Some(copies) => copies.copy(&block),
                None => block,
            });
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
        let found = self.database.block(index, self.block_size()).await;
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

/// Copies of blocks, several of which share memory: as slices of what was fetched each would keep all of that, which is
/// much more than what was asked for where blocks lie in many tables.
struct Copies {
    free: BytesMut,
    chunk: usize,
}

impl Copies {
    /// Bytes that share memory, at most.
    const CHUNK: usize = 128 << 10;

    /// For blocks of so many bytes.
    fn new(bytes: u64) -> Self {
        let chunk = usize::try_from(bytes).unwrap_or(usize::MAX).min(Self::CHUNK);
        Self { free: BytesMut::new(), chunk }
    }

    fn copy(&mut self, block: &[u8]) -> Bytes {
        if self.free.capacity() < block.len() {
            self.free = BytesMut::with_capacity(self.chunk.max(block.len()));
        }
        self.free.extend_from_slice(block);
        self.free.split().freeze()
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
