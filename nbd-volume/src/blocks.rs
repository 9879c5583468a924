//! Changing blocks.

use core::mem::take;
use core::ops::{Range, RangeInclusive};
use core::sync::atomic::Ordering;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use nbd_engine::export::ExportError;
use slatedb::WriteBatch;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::commits::{Change, Outcome};
use crate::layout::{SIZE_KEY, Size};
use crate::locks::Mode;
use crate::reads::MAX_CACHED;
use crate::records::encoded;
use crate::shared::Shared;

pub(crate) type Result<T> = core::result::Result<T, ExportError>;

/// Blocks in one batch at most. A batch is in the store as a whole or not at all.
const BATCH: usize = 256;

/// Blocks that are removed at a time. Whoever waits for them has their lock.
const STEP: usize = 4 * BATCH;

/// Bytes of one block.
struct Part {
    index: u64,
    /// Within the block.
    bytes: Range<usize>,
}

impl Shared {
    /// The blocks that hold these bytes, of which there is at least one.
    pub(crate) fn blocks(&self, bytes: &Range<u64>) -> RangeInclusive<u64> {
        bytes.start / self.block_size()..=(bytes.end - 1) / self.block_size()
    }

    /// The same for a lock.
    pub(crate) fn locked(blocks: &RangeInclusive<u64>) -> Range<u64> {
        *blocks.start()..blocks.end() + 1
    }

    /// The part of a block that lies in these bytes.
    fn part(&self, index: u64, bytes: &Range<u64>) -> Part {
        let start = index * self.block_size();
        let within = |offset: u64| {
            usize::try_from(offset.saturating_sub(start).min(self.block_size())).unwrap_or(0)
        };
        Part { index, bytes: within(bytes.start)..within(bytes.end) }
    }

    /// Whether the part is all of the block that lies inside of the volume.
    fn is_whole(&self, part: &Part) -> bool {
        let inside = self.size().saturating_sub(part.index * self.block_size());
        let inside = inside.min(self.block_size());
        part.bytes.start == 0 && part.bytes.end as u64 >= inside
    }

    /// Whether blocks of such a write are worth to be kept.
    fn is_short(bytes: &Range<u64>) -> bool {
        bytes.end - bytes.start <= MAX_CACHED
    }

    /// What a request beyond the end gets: the volume may have shrunk since it was checked.
    fn check_range(&self, bytes: &Range<u64>) -> Result<()> {
        match bytes.end <= self.size() {
            true => Ok(()),
            false => Err(ExportError::invalid("the volume has become smaller than that")),
        }
    }

    /// A copy of what is written at an offset, by block. Each has memory of its own: what the cache or the database keeps
    /// of a long write would otherwise keep all of it in memory.
    pub(crate) fn pieces(&self, data: &[u8], offset: u64) -> Vec<Bytes> {
        let in_first = self.block_size() - offset % self.block_size();
        let first = usize::try_from(in_first).unwrap_or(usize::MAX).min(data.len());
        let (first, rest) = data.split_at(first);
        let rest = rest.chunks(self.descriptor.block_size as usize);
        core::iter::once(first).chain(rest).map(Bytes::copy_from_slice).collect()
    }

    /// Has these [pieces](Self::pieces) written if that takes nothing but handing them over: if they are whole blocks,
    /// and no other request has any of them. Otherwise gives them back, and the room that they have.
    pub(crate) fn write_at_once(
        self: &Arc<Self>,
        pieces: Vec<Bytes>,
        bytes: &Range<u64>,
        room: OwnedSemaphorePermit,
    ) -> core::result::Result<oneshot::Receiver<Outcome>, (Vec<Bytes>, OwnedSemaphorePermit)> {
        let is_whole = |piece: &Bytes| piece.len() as u64 == self.block_size();
        if pieces.len() > BATCH || !pieces.iter().all(is_whole) {
            return Err((pieces, room));
        }
        let blocks = self.blocks(bytes);
        let lock = self.locks.try_lock(Self::locked(&blocks), Mode::Exclusive);
        let Some(lock) = lock.filter(|_| self.check_range(bytes).is_ok()) else {
            return Err((pieces, room));
        };
        let changes = blocks.zip(pieces.into_iter().map(stored)).collect();
        Ok(self.commit(changes, Self::is_short(bytes), Some((lock, room))))
    }

    /// Writes these [pieces](Self::pieces).
    pub(crate) async fn write(
        self: Arc<Self>,
        pieces: Vec<Bytes>,
        bytes: Range<u64>,
    ) -> Result<()> {
        let blocks = self.blocks(&bytes);
        let _lock = self.locks.lock(Self::locked(&blocks), Mode::Exclusive).await;
        self.check_range(&bytes)?;
        let mut changes = Changes::new(&self, Self::is_short(&bytes));
        for (index, new) in blocks.zip(pieces) {
            let part = self.part(index, &bytes);
            changes.set(index, self.merged(&part, new).await?).await?;
        }
        changes.finish().await
    }

    /// The block with this part of it replaced; empty if it is all zeroes.
    async fn merged(&self, part: &Part, new: Bytes) -> Result<Bytes> {
        if new.len() as u64 == self.block_size() {
            return Ok(stored(new));
        }
        let old = match self.is_whole(part) {
            true => Bytes::new(),
            false => self.block(part.index).await?,
        };
        if old.is_empty() && is_zero(&new) {
            return Ok(old);
        }
        let mut block = BytesMut::zeroed(self.descriptor.block_size as usize);
        if !old.is_empty() {
            block.copy_from_slice(&old);
        }
        block[part.bytes.clone()].copy_from_slice(&new);
        Ok(stored(block.freeze()))
    }

    /// Makes a beginning of these bytes read as zeroes, and returns how long it is. Blocks that are not there cost
    /// nothing.
    pub(crate) async fn zero_some(self: Arc<Self>, bytes: Range<u64>) -> Result<u64> {
        let blocks = self.blocks(&bytes);
        let _lock = self.locks.lock(Self::locked(&blocks), Mode::Exclusive).await;
        self.check_range(&bytes)?;
        self.zero_locked(&bytes).await
    }

    /// The same for the holder of a lock.
    async fn zero_locked(self: &Arc<Self>, bytes: &Range<u64>) -> Result<u64> {
        let blocks = self.blocks(bytes);
        let mut changes = Changes::new(self, false);
        let (first, last) = (*blocks.start(), *blocks.end());
        let mut edges = vec![first];
        edges.extend((last != first).then_some(last));
        // Blocks of which something is left.
        edges.retain(|index| !self.is_whole(&self.part(*index, bytes)));
        for index in &edges {
            let part = self.part(*index, bytes);
            if !self.block(*index).await?.is_empty() {
                let zeroes = Bytes::from(vec![0; part.bytes.len()]);
                changes.set(*index, self.merged(&part, zeroes).await?).await?;
            }
        }
        let (whole, end) = self.there(blocks, bytes.end - bytes.start, &edges).await?;
        for index in whole {
            changes.set(index, Bytes::new()).await?;
        }
        changes.finish().await?;
        Ok(end.map_or(bytes.end, |index| index * self.block_size()) - bytes.start)
    }

    /// Some of the blocks among these, so many bytes, that are there and not among others; and the next one of them, if
    /// there are more. The walk is over before anything waits for its changes.
    async fn there(
        &self,
        blocks: RangeInclusive<u64>,
        bytes: u64,
        others: &[u64],
    ) -> Result<(Vec<u64>, Option<u64>)> {
        let mut there = Vec::new();
        let found = self.database.walk(blocks, bytes).await.begin(true).await;
        let mut found = found.map_err(|error| self.failed(&error))?;
        while let Some((index, _)) = found.next().await.map_err(|error| self.failed(&error))? {
            match there.len() {
                _ if others.contains(&index) => (),
                ..STEP => there.push(index),
                _ => return Ok((there, Some(index))),
            }
        }
        Ok((there, None))
    }

    /// Changes the size. What was cut off reads as zeroes if the volume grows again.
    pub(crate) async fn resize(self: Arc<Self>, size: u64) -> Result<()> {
        let all = self.locks.lock(0..u64::MAX, Mode::Exclusive).await;
        let old = self.size();
        if size > old {
            // What an earlier cut may have left behind when it was interrupted.
            self.zero_beyond(old).await?;
        }
        let mut batch = WriteBatch::new();
        batch.put(SIZE_KEY, encoded(&Size { size }));
        self.put(batch).await.map_err(|error| self.failed(&error))?;
        self.size.store(size, Ordering::Release);
        if size < old {
            self.zero_beyond(size).await?;
        }
        // Other requests need not wait for the store.
        drop(all);
        self.upload().await.map_err(|error| self.failed(&error))
    }

    /// Removes everything from this offset on.
    async fn zero_beyond(self: &Arc<Self>, offset: u64) -> Result<()> {
        let end = i64::MAX as u64;
        let mut next = offset;
        while next < end {
            next += self.zero_locked(&(next..end)).await?;
        }
        Ok(())
    }
}

/// Blocks that get another content, in batches. To be used with a lock of them.
struct Changes<'a> {
    shared: &'a Arc<Shared>,
    /// What is not handed over yet.
    changes: Vec<Change>,
    /// Whether the cache learns of them, or forgets them.
    kept: bool,
}

impl<'a> Changes<'a> {
    fn new(shared: &'a Arc<Shared>, kept: bool) -> Self {
        Self { shared, changes: Vec::new(), kept }
    }

    /// The block has this content; an empty one is a hole.
    async fn set(&mut self, index: u64, block: Bytes) -> Result<()> {
        self.changes.push((index, block));
        match self.changes.len() {
            BATCH.. => self.write().await,
            _ => Ok(()),
        }
    }

    async fn write(&mut self) -> Result<()> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let outcome = self.shared.commit(take(&mut self.changes), self.kept, None);
        self.shared.committed(outcome).await
    }

    async fn finish(mut self) -> Result<()> {
        self.write().await
    }
}

/// A block as it is stored: empty if it is all zeroes.
fn stored(block: Bytes) -> Bytes {
    if is_zero(&block) { Bytes::new() } else { block }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Eight at a time, which the compiler makes more of.
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
