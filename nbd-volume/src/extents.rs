//! Finding out which blocks there are.

use core::ops::Range;
use std::sync::Arc;

use nbd_engine::export::{Allocation, Visitor};

use crate::blocks::Result;
use crate::shared::Shared;
use crate::streams::Streams;

/// Bytes of blocks that are looked at for one answer, at most.
const MAX_SCANNED: u64 = 32 << 20;

/// Runs of blocks that are there and of holes, one after the other.
struct Runs {
    runs: Vec<Allocation>,
    /// What they are of.
    bytes: Range<u64>,
    /// Where they end.
    end: u64,
    /// Bytes of blocks that are there.
    there: u64,
}

impl Runs {
    fn new(bytes: &Range<u64>) -> Self {
        Self { runs: Vec::new(), bytes: bytes.clone(), end: bytes.start, there: 0 }
    }

    /// Goes on to `end`.
    fn push(&mut self, end: u64, hole: bool) {
        let end = end.clamp(self.end, self.bytes.end);
        let length = end - self.end;
        self.there += if hole { 0 } else { length };
        self.end = end;
        match self.runs.last_mut() {
            Some(last) if last.hole == hole => last.length += length,
            _ if length > 0 => self.runs.push(Allocation { length, hole, zero: hole }),
            _ => (),
        }
    }
}

impl Shared {
    /// Reports what is there from the beginning of these bytes on, up to a bound of work.
    ///
    /// The database has the blocks beside their keys, and who asks where they are is about to read them: so they are
    /// fetched ahead as far as there is room, and otherwise looked at alone.
    pub(crate) async fn allocations(self: Arc<Self>, bytes: Range<u64>) -> Result<Vec<Allocation>> {
        let mut runs = Runs::new(&bytes);
        self.fetched_allocations(&mut runs).await;
        // Where there is not much it is skipped faster than fetched.
        if runs.there < (runs.end - bytes.start) / 2 || runs.end == bytes.start {
            self.scanned_allocations(&mut runs).await?;
        }
        Ok(runs.runs)
    }

    /// From what was fetched ahead, or is now.
    async fn fetched_allocations(self: &Arc<Self>, runs: &mut Runs) {
        // Not more than what readers leave.
        let most = MAX_SCANNED.min(self.ahead.max_kept() / 2);
        let end = runs.bytes.end.min(runs.end.saturating_add(most));
        if end == runs.end {
            return;
        }
        let mut piece = runs.end;
        while piece < end {
            let next = piece.saturating_add(Streams::MAX_PIECE).min(end);
            self.fetch_in_idle_room(&(piece..next));
            piece = next;
        }
        let blocks = Self::locked(&self.blocks(&(runs.end..end)));
        let mut next = blocks.start;
        for segment in self.ahead.covering(&blocks) {
            segment.ended().await;
            let Some(holes) = segment.holes_from(next) else { return };
            for hole in holes {
                next += 1;
                runs.push((next * self.block_size()).min(end), hole);
            }
        }
    }

    /// From the database.
    async fn scanned_allocations(&self, runs: &mut Runs) -> Result<()> {
        let most = runs.there + MAX_SCANNED;
        if runs.end == runs.bytes.end {
            return Ok(());
        }
        let bytes = runs.end..runs.bytes.end;
        let walk = self.database.walk(self.blocks(&bytes), bytes.end - bytes.start).await;
        let found = walk.begin(true).await;
        let mut found = found.map_err(|error| self.failed(&error))?;
        while let Some((index, _)) = found.next().await.map_err(|error| self.failed(&error))? {
            runs.push(index * self.block_size(), true);
            runs.push((index + 1) * self.block_size(), false);
            if runs.there >= most {
                return Ok(());
            }
        }
        runs.push(runs.bytes.end, true);
        Ok(())
    }

    /// Reports runs to a visitor, from which the engine takes what it needs.
    pub(crate) fn visit(runs: Vec<Allocation>, visit: &mut Visitor<'_, Allocation>) {
        for run in runs {
            if visit(run).is_break() {
                return;
            }
        }
    }
}
