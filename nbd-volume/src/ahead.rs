//! What is being fetched from the database, and what was fetched before it is asked for.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::reads::Known;

/// Segments: runs of blocks that one scan of the database fetches. They don't overlap, so that no block is fetched by
/// two at the same time; those that were fetched ahead are kept until they were read, or others need their room.
///
/// A segment is registered before its scan begins, and whoever changes a block has it [forgotten](Self::forget) after
/// that and before its lock is released. So the scan either begins after the change, or what it finds is not used: what
/// a segment gives out is what the database has.
#[derive(Debug)]
pub(crate) struct Ahead {
    segments: Mutex<Segments>,
    /// Those of which the fetch has not begun, by their first block.
    waiting: Mutex<BTreeMap<u64, Fetch>>,
    block_size: u64,
    /// What those that are kept may take, in bytes.
    max_kept: u64,
    /// Bytes of those that are kept, and of those that were and are still in memory: replies that were not sent yet are
    /// slices of them.
    held: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Segments {
    /// By their first block.
    by_start: BTreeMap<u64, Arc<Segment>>,
    /// Bytes of those that are kept.
    kept: u64,
    /// Counts uses.
    now: u64,
}

/// A run of blocks.
#[derive(Debug)]
pub(crate) struct Segment {
    blocks: Range<u64>,
    /// Tells it from others of the same blocks.
    number: u64,
    /// Whether it stays when it was fetched.
    kept: bool,
    state: Mutex<State>,
    /// Closed when the fetch has ended, however.
    ended: watch::Receiver<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks that were changed while the segment was fetched.
    changed: BTreeSet<u64>,
    /// What was fetched, an empty block being a hole. None for a block that was changed since.
    fetched: Option<Vec<Option<Bytes>>>,
    /// Bytes that were read of it.
    read: u64,
    /// The count of uses at the latest one.
    used: u64,
}

/// A segment that is to be fetched. When this is dropped before it [is](Self::finish), others fetch the blocks by
/// themselves.
#[derive(Debug)]
pub(crate) struct Fetch {
    ahead: Arc<Ahead>,
    segment: Arc<Segment>,
    /// For one that is kept.
    held: Option<Arc<Held>>,
    _ends: watch::Sender<()>,
}

impl Ahead {
    /// Keeps at most so many bytes.
    pub(crate) fn new(block_size: u32, max_kept: u64) -> Self {
        Self {
            segments: Mutex::default(),
            waiting: Mutex::default(),
            block_size: u64::from(block_size),
            max_kept,
            held: Arc::default(),
        }
    }

    /// What may be kept, in bytes.
    pub(crate) fn max_kept(&self) -> u64 {
        self.max_kept
    }

    /// Registers segments for those of the blocks that are in none, to be fetched and dropped by those who wait for
    /// them.
    pub(crate) fn fetch(self: &Arc<Self>, blocks: &Range<u64>) -> Vec<Fetch> {
        self.register(&mut self.segments(), blocks, false)
    }

    /// The same for blocks that nobody waits for: they are kept. Returns nothing if there is no room for them, or if
    /// they are in segments already.
    pub(crate) fn fetch_ahead(self: &Arc<Self>, blocks: &Range<u64>) -> Vec<Fetch> {
        self.fetch_kept(blocks, 0)
    }

    /// The same, but only where nothing is that was used lately.
    pub(crate) fn fetch_in_idle_room(self: &Arc<Self>, blocks: &Range<u64>) -> Vec<Fetch> {
        self.fetch_kept(blocks, Segments::IDLE)
    }

    fn fetch_kept(self: &Arc<Self>, blocks: &Range<u64>, idle: u64) -> Vec<Fetch> {
        let mut segments = self.segments();
        let bytes = (blocks.end - blocks.start).saturating_mul(self.block_size);
        // Where clients do not take their replies nothing is read ahead, rather than more and more kept in memory.
        let max_held = self.max_kept.saturating_add(self.max_kept / 2);
        let is_bounded = || self.held.load(Ordering::Acquire).saturating_add(bytes) <= max_held;
        match segments.make_room(bytes, self.max_kept, self.block_size, idle) && is_bounded() {
            true => self.register(&mut segments, blocks, true),
            false => Vec::new(),
        }
    }

    fn register(
        self: &Arc<Self>,
        segments: &mut Segments,
        blocks: &Range<u64>,
        kept: bool,
    ) -> Vec<Fetch> {
        let gaps = segments.gaps(blocks);
        let fetches = gaps.into_iter().map(|blocks| {
            let (ends, ended) = watch::channel(());
            let bytes = (blocks.end - blocks.start) * self.block_size;
            if kept {
                segments.kept += bytes;
            }
            let held = kept.then(|| Arc::new(Held::new(bytes, &self.held)));
            segments.now += 1;
            let state = State { used: segments.now, ..State::default() };
            let (start, number) = (blocks.start, segments.now);
            let state = Mutex::new(state);
            let segment = Arc::new(Segment { blocks, number, kept, state, ended });
            segments.by_start.insert(start, Arc::clone(&segment));
            Fetch { ahead: Arc::clone(self), segment, held, _ends: ends }
        });
        fetches.collect()
    }

    /// Keeps what is to be fetched until its turn comes, or somebody else [begins](Self::begin) it.
    pub(crate) fn wait(self: &Arc<Self>, fetch: Fetch) -> Turn {
        let (blocks, number) = (fetch.blocks(), fetch.segment.number);
        let replaced = self.waiting_fetches().insert(blocks.start, fetch);
        // It takes the other lock.
        drop(replaced);
        Turn { ahead: Arc::clone(self), blocks, number }
    }

    /// The blocks that are to be fetched from this one on, if that has not begun.
    pub(crate) fn waiting(&self, start: u64) -> Option<Range<u64>> {
        self.waiting_fetches().get(&start).map(Fetch::blocks)
    }

    /// Begins to fetch exactly these blocks, unless somebody else has.
    pub(crate) fn begin(&self, blocks: &Range<u64>) -> Option<Fetch> {
        self.begin_if(blocks.start, |segment| segment.blocks == *blocks)
    }

    fn begin_if(&self, start: u64, is_it: impl FnOnce(&Segment) -> bool) -> Option<Fetch> {
        let mut waiting = self.waiting_fetches();
        match is_it(&waiting.get(&start)?.segment) {
            true => waiting.remove(&start),
            false => None,
        }
    }

    fn waiting_fetches(&self) -> MutexGuard<'_, BTreeMap<u64, Fetch>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segments that hold any of these blocks, in their order.
    pub(crate) fn covering(&self, blocks: &Range<u64>) -> Vec<Arc<Segment>> {
        self.segments().covering(blocks).cloned().collect()
    }

    /// A block, if it was fetched.
    pub(crate) fn get(&self, index: u64) -> Option<Bytes> {
        self.segments().covering(&(index..index + 1)).find_map(|segment| segment.get(index))
    }

    /// Fills in those of these blocks that are not known and were fetched.
    pub(crate) fn fill(&self, known: &mut Known, blocks: &Range<u64>) {
        for segment in self.segments().covering(blocks) {
            segment.fill(known, blocks);
        }
    }

    /// Reports that these bytes were read: a segment that was read as a whole is dropped.
    pub(crate) fn read(&self, bytes: &Range<u64>) {
        let segments = &mut *self.segments();
        let blocks = bytes.start / self.block_size..bytes.end.div_ceil(self.block_size);
        segments.now += 1;
        let now = segments.now;
        let mut over = Vec::new();
        for segment in segments.covering(&blocks) {
            let span = segment.blocks.start.saturating_mul(self.block_size)
                ..segment.blocks.end.saturating_mul(self.block_size);
            let mut state = segment.state();
            state.read += bytes.end.min(span.end) - bytes.start.max(span.start);
            state.used = now;
            if state.fetched.is_some() && state.read >= span.end - span.start {
                over.push(segment.blocks.start);
            }
        }
        for start in over {
            segments.remove(start, self.block_size);
        }
    }

    /// The blocks were changed, or may have been.
    pub(crate) fn forget(&self, blocks: impl Iterator<Item = u64>) {
        let segments = self.segments();
        if segments.by_start.is_empty() {
            return;
        }
        for index in blocks {
            for segment in segments.covering(&(index..index + 1)) {
                segment.forget(index);
            }
        }
    }

    /// Nothing is known any more.
    pub(crate) fn clear(&self) {
        let waiting = core::mem::take(&mut *self.waiting_fetches());
        drop(waiting);
        let mut segments = self.segments();
        segments.by_start.clear();
        segments.kept = 0;
    }

    fn segments(&self) -> MutexGuard<'_, Segments> {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segments {
    /// Uses of others after which a segment is idle.
    const IDLE: u64 = 256;

    fn covering(&self, blocks: &Range<u64>) -> impl Iterator<Item = &Arc<Segment>> + use<'_> {
        let before = self.by_start.range(..=blocks.start).next_back();
        let first = before.map_or(blocks.start, |(start, _)| *start).min(blocks.end);
        let start = blocks.start;
        let found = self.by_start.range(first..blocks.end).map(|(_, segment)| segment);
        found.filter(move |segment| segment.blocks.end > start)
    }

    /// What of the blocks is in no segment.
    fn gaps(&self, blocks: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut next = blocks.start;
        for segment in self.covering(blocks) {
            if next < segment.blocks.start {
                gaps.push(next..segment.blocks.start);
            }
            next = segment.blocks.end;
        }
        if next < blocks.end {
            gaps.push(next..blocks.end);
        }
        gaps
    }

    /// Drops what was not used for longest, and not by the latest `idle` uses, until there is room. Returns whether
    /// there is.
    fn make_room(&mut self, bytes: u64, max: u64, block_size: u64, idle: u64) -> bool {
        while self.kept.saturating_add(bytes) > max {
            let droppable = self.by_start.values().filter_map(|segment| {
                let state = segment.state();
                let is_idle = self.now - state.used >= idle;
                (segment.kept && state.fetched.is_some() && is_idle)
                    .then_some((state.used, segment.blocks.start))
            });
            match droppable.min() {
                Some((_, start)) => self.remove(start, block_size),
                None => return false,
            }
        }
        true
    }

    fn remove(&mut self, start: u64, block_size: u64) {
        if let Some(segment) = self.by_start.remove(&start)
            && segment.kept
        {
            self.kept -= (segment.blocks.end - segment.blocks.start) * block_size;
        }
    }
}

impl Segment {
    /// Waits until it was fetched, or that failed. Cancel-safe.
    pub(crate) async fn ended(&self) {
        // Nothing is ever sent: it ends when the sender is dropped.
        let _closed = self.ended.clone().changed().await;
    }

    /// A block, if it was fetched and not changed since.
    pub(crate) fn get(&self, index: u64) -> Option<Bytes> {
        let position = usize::try_from(index.checked_sub(self.blocks.start)?).ok()?;
        self.state().fetched.as_ref()?.get(position)?.clone()
    }

    /// Fills in those of these blocks that are not known, if they were fetched and not changed since.
    pub(crate) fn fill(&self, known: &mut Known, blocks: &Range<u64>) {
        let state = self.state();
        let Some(fetched) = &state.fetched else { return };
        let common = blocks.start.max(self.blocks.start)..blocks.end.min(self.blocks.end);
        let within = |all: &Range<u64>| {
            let position = |index: u64| usize::try_from(index - all.start).unwrap_or(usize::MAX);
            position(common.start)..position(common.end)
        };
        if common.is_empty() {
            return;
        }
        for (slot, block) in known[within(blocks)].iter_mut().zip(&fetched[within(&self.blocks)]) {
            if slot.is_none() {
                slot.clone_from(block);
            }
        }
    }

    /// Which of the blocks from this one on are holes, if they were fetched and not changed since.
    pub(crate) fn holes_from(&self, index: u64) -> Option<Vec<bool>> {
        let position = usize::try_from(index.checked_sub(self.blocks.start)?).ok()?;
        let state = self.state();
        let fetched = state.fetched.as_ref()?.get(position..)?;
        fetched.iter().map(|block| block.as_ref().map(Bytes::is_empty)).collect()
    }

    fn forget(&self, index: u64) {
        let mut state = self.state();
        let position = usize::try_from(index - self.blocks.start).unwrap_or(usize::MAX);
        match &mut state.fetched {
            Some(fetched) => {
                if let Some(block) = fetched.get_mut(position) {
                    *block = None;
                }
            }
            None => {
                state.changed.insert(index);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch {
    /// What is to be fetched.
    pub(crate) fn blocks(&self) -> Range<u64> {
        self.segment.blocks.clone()
    }

    /// Whether it is kept, or anybody has looked for its blocks and not gone.
    pub(crate) fn is_wanted(&self) -> bool {
        /// Of those that know it anyway: the fetch, and the list of segments.
        const OTHERS: usize = 2;
        self.segment.kept || Arc::strong_count(&self.segment) > OTHERS
    }

    /// The blocks were found to be these, by a scan that began after the segment was registered.
    pub(crate) fn finish(self, blocks: Vec<Bytes>) {
        let mut state = self.segment.state();
        let changed = core::mem::take(&mut state.changed);
        let indexes = self.segment.blocks.clone();
        let known = indexes.zip(blocks).map(|(index, block)| {
            let is_known = !changed.contains(&index);
            is_known.then(|| match &self.held {
                Some(held) if !block.is_empty() => held.slice(block),
                _ => block,
            })
        });
        state.fetched = Some(known.collect());
    }
}

/// Whoever waits to fetch a segment. When this is dropped before it was begun, others fetch the blocks by themselves.
#[derive(Debug)]
pub(crate) struct Turn {
    ahead: Arc<Ahead>,
    blocks: Range<u64>,
    number: u64,
}

impl Turn {
    /// What is to be fetched.
    pub(crate) fn blocks(&self) -> &Range<u64> {
        &self.blocks
    }

    /// Begins, unless somebody else has.
    pub(crate) fn begin(&self) -> Option<Fetch> {
        self.ahead.begin_if(self.blocks.start, |segment| segment.number == self.number)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.begin());
    }
}

/// Counts a segment that is kept, from when its fetch is planned until none of its blocks is in memory any more.
#[derive(Debug)]
struct Held {
    bytes: u64,
    all: Arc<AtomicU64>,
}

impl Held {
    fn new(bytes: u64, all: &Arc<AtomicU64>) -> Self {
        all.fetch_add(bytes, Ordering::AcqRel);
        Self { bytes, all: Arc::clone(all) }
    }

    /// A block of it.
    fn slice(self: &Arc<Self>, block: Bytes) -> Bytes {
        struct Slice(
            Bytes,
            #[expect(dead_code, reason = "it is counted until this is dropped")] Arc<Held>,
        );
        impl AsRef<[u8]> for Slice {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        Bytes::from_owner(Slice(block, Arc::clone(self)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let mut segments = self.ahead.segments();
        let start = self.segment.blocks.start;
        let is_there =
            segments.by_start.get(&start).is_some_and(|one| Arc::ptr_eq(one, &self.segment));
        let stays = self.segment.kept && self.segment.state().fetched.is_some();
        if is_there && !stays {
            segments.remove(start, self.ahead.block_size);
        }
    }
}

#[cfg(test)]
mod tests;
