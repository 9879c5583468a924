//! Long commands are carried out piece by piece, so that others get their turn in between, and so that nothing is done
//! for a client that is gone. Where there is nothing to do for very long, as in a disk in memory that is far
//! larger than what it holds, that is left out.

use core::future::poll_fn;
use core::ops::ControlFlow;
use core::task::Poll;
use std::time::{Duration, Instant};

use nbd_proto::Command;

use super::dispatch::unsupported;
use crate::export::{
    Allocation, AsyncCanCache, AsyncCanFlush, AsyncCanTrim, AsyncCanWriteZeroes, AsyncExport,
    Export, Result, ZeroMode,
};

/// A command over a long range, and how far it has got.
#[derive(Debug)]
pub(crate) struct Pieces {
    action: Action,
    offset: u64,
    end: u64,
    fua: bool,
    /// Bytes of the next piece.
    length: u64,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Trim,
    Cache,
    WriteZeroes { no_hole: bool },
}

/// The first piece. Commands that are not longer are carried out as they are.
const FIRST: u64 = 16 << 20;

/// The shortest piece: many times the largest block size, and pieces end at its multiples.
const MIN: u64 = 1 << 20;

/// The longest piece.
const MAX: u64 = 1 << 30;

/// The shortest hole that is left out.
const HOLE: u64 = 64 << 30;

/// Runs that are looked at in one step to find out how long a hole is.
const MAX_RUNS: usize = 1000;

/// Pieces that are quicker than this get longer, which costs less: most storage does these commands without touching
/// the data.
const QUICK: Duration = Duration::from_millis(5);

/// Pieces that are slower than this get shorter, so that others wait no longer.
const SLOW: Duration = Duration::from_millis(50);

impl Pieces {
    /// The pieces of a command; `None` if it is to be carried out as it is. That includes zeroes that have to be fast:
    /// a refusal must leave the range as it was.
    pub(crate) fn new(command: Command) -> Option<Self> {
        let (action, offset, length, fua) = match command {
            Command::Trim { offset, length, fua, .. } => (Action::Trim, offset, length, fua),
            Command::Cache { offset, length, .. } => (Action::Cache, offset, length, false),
            Command::WriteZeroes { offset, length, fua, no_hole, fast: false, .. } => {
                (Action::WriteZeroes { no_hole }, offset, length, fua)
            }
            _ => return None,
        };
        let end = offset.checked_add(length).filter(|_| length > FIRST)?;
        Some(Self { action, offset, end, fua, length: FIRST })
    }

    /// The range of the next piece: its offset and length.
    pub(crate) fn next_range(&self) -> (u64, u64) {
        let target = self.offset.saturating_add(self.length);
        let aligned = target - target % MIN;
        let end = if aligned > self.offset { aligned } else { target };
        (self.offset, end.min(self.end) - self.offset)
    }

    /// Whether holes can be left out: where to ask for them costs next to nothing, and they are no storage that was set
    /// aside, as in memory. Where only the commands themselves can make what was done durable, a hole may be one that is
    /// not durable yet.
    fn leaves_out_holes(&self, export: &dyn Export) -> bool {
        let clears = matches!(self.action, Action::Trim | Action::WriteZeroes { no_hole: false });
        clears
            && self.end - self.offset >= HOLE
            && export.never_blocks()
            && (!self.fua || export.can_flush().is_some())
    }

    /// Whether there is nothing to do for such a run.
    const fn is_done(&self, run: Allocation) -> bool {
        match self.action {
            Action::Trim => run.hole,
            Action::WriteZeroes { .. } => run.hole && run.zero,
            Action::Cache => false,
        }
    }

    /// Leaves out so many bytes that come next, if they are many. Gives whether that was all.
    fn leave_out(&mut self, length: u64) -> bool {
        if length >= HOLE {
            let end = self.offset.saturating_add(length);
            self.offset = if end < self.end { end - end % MIN } else { self.end };
        }
        self.offset >= self.end
    }

    /// A piece was carried out, which took that long. Gives whether it was the last one.
    pub(crate) fn advance(&mut self, length: u64, took: Duration) -> bool {
        self.offset += length;
        if took < QUICK {
            self.length = (self.length * 2).min(MAX);
        } else if took > SLOW {
            self.length = (self.length / 2).max(MIN);
        }
        self.offset >= self.end
    }

    /// Carries out all pieces on an asynchronous export. Others get their turn in between.
    pub(super) async fn run_async<E: AsyncExport>(&mut self, export: &E) -> Result<()> {
        let native = self.fua && export.can_flush().is_none();
        loop {
            let (offset, length) = self.next_range();
            let begun = Instant::now();
            match self.action {
                Action::Trim => {
                    let ability = export.can_trim().map_or_else(unsupported, Ok)?;
                    ability.trim(offset, length, native).await?;
                }
                Action::Cache => {
                    let ability = export.can_cache().map_or_else(unsupported, Ok)?;
                    ability.cache(offset, length).await?;
                }
                Action::WriteZeroes { no_hole } => {
                    let ability = export.can_write_zeroes().map_or_else(unsupported, Ok)?;
                    let mode = ZeroMode { fua: native, no_hole, fast: false };
                    ability.write_zeroes(offset, length, mode).await?;
                }
            }
            if self.advance(length, begun.elapsed()) {
                break;
            }
            let_others_run().await;
        }
        match export.can_flush() {
            Some(ability) if self.fua => ability.flush().await,
            _ => Ok(()),
        }
    }

    /// Carries out the next piece; gives the result of the command when there is no more to do.
    pub(super) fn run_next(&mut self, export: &dyn Export) -> Option<Result<()>> {
        let flushes = export.can_flush();
        let flush = |fua| match flushes {
            Some(flushes) if fua => flushes.flush(),
            _ => Ok(()),
        };
        if self.leaves_out_holes(export)
            && let Some(ability) = export.can_extents()
        {
            let (mut hole, mut runs) = (0_u64, 0);
            let mut visit = |run: Allocation| {
                if runs == MAX_RUNS || !self.is_done(run) {
                    // What comes behind does not count, whoever goes on.
                    runs = MAX_RUNS;
                    return ControlFlow::Break(());
                }
                runs += 1;
                hole = hole.saturating_add(run.length);
                ControlFlow::Continue(())
            };
            let told = ability.extents(self.offset, self.end - self.offset, &mut visit);
            if told.is_ok() && self.leave_out(hole) {
                return Some(flush(self.fua));
            }
        }
        let (offset, length) = self.next_range();
        let begun = Instant::now();
        // One flush at the end rather than one for each piece, where there is one.
        let native = self.fua && flushes.is_none();
        let result = match self.action {
            Action::Trim => match export.can_trim() {
                Some(trims) => trims.trim(offset, length, native),
                None => unsupported(),
            },
            Action::Cache => match export.can_cache() {
                Some(caches) => caches.cache(offset, length),
                None => unsupported(),
            },
            Action::WriteZeroes { no_hole } => match export.can_write_zeroes() {
                Some(zeroes) => {
                    let mode = ZeroMode { fua: native, no_hole, fast: false };
                    zeroes.write_zeroes(offset, length, mode)
                }
                None => unsupported(),
            },
        };
        if result.is_err() {
            return Some(result);
        }
        let last = self.advance(length, begun.elapsed());
        last.then(|| flush(self.fua))
    }
}

/// Is ready with the second poll.
async fn let_others_run() {
    let mut polled = false;
    poll_fn(|cx| {
        if core::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests;
