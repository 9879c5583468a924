//! What long commands do, and how many steps that takes.

use core::ops::Range;
use std::sync::{Mutex, PoisonError};

use nbd_testkit::{Random, cases};

use super::*;
use crate::export::{CanCache, CanExtents, CanFlush, CanTrim, CanWriteZeroes, ExportError};

/// A disk that is mostly holes, and what was done where.
#[derive(Debug)]
struct Sparse {
    /// Where each run ends, and whether it is data.
    runs: Vec<(u64, bool)>,
    flushes: bool,
    tells: bool,
    is_quick: bool,
    done: Mutex<Vec<(u64, u64)>>,
}

impl Sparse {
    fn new(random: &mut Random) -> Self {
        let (mut end, mut runs) = (0, Vec::new());
        while runs.len() < 12 {
            let longest = 1 << (10 + random.below(46));
            end += 1 + random.below(longest);
            runs.push((end, false));
            end += 1 + random.below(4 << 30);
            runs.push((end, true));
        }
        let (flushes, is_quick) = (random.one_in(2), random.one_in(2));
        Self { runs, flushes, tells: true, is_quick, done: Mutex::default() }
    }

    fn done(&self) -> Vec<(u64, u64)> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, offset: u64, length: u64) -> Result<()> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push((offset, length));
        Ok(())
    }

    fn tell(
        &self,
        offset: u64,
        length: u64,
        mut visit: impl FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut at = offset;
        for (end, data) in &self.runs {
            let end = (*end).min(offset + length);
            if end > at {
                let run = Allocation { length: end - at, hole: !data, zero: !data };
                if visit(run).is_break() {
                    break;
                }
                at = end;
            }
        }
        if self.tells { Ok(()) } else { Err(ExportError::io("it does not know")) }
    }
}

impl Export for Sparse {
    fn size(&self) -> u64 {
        self.runs.last().map_or(0, |(end, _)| *end)
    }

    fn read(&self, _: &mut [u8], _: u64) -> Result<()> {
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        self.is_quick
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        self.flushes.then_some(self as &dyn CanFlush)
    }

    fn can_trim(&self) -> Option<&dyn CanTrim> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        Some(self)
    }

    fn can_cache(&self) -> Option<&dyn CanCache> {
        Some(self)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }
}

impl CanFlush for Sparse {
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl CanTrim for Sparse {
    fn trim(&self, offset: u64, length: u64, _: bool) -> Result<()> {
        self.note(offset, length)
    }
}

impl CanWriteZeroes for Sparse {
    fn write_zeroes(&self, offset: u64, length: u64, _: ZeroMode) -> Result<()> {
        self.note(offset, length)
    }
}

impl CanCache for Sparse {
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        self.note(offset, length)
    }
}

impl CanExtents for Sparse {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        self.tell(offset, length, visit)
    }
}

/// All data is covered, nothing outside of the range and nothing twice, and long holes cost next to nothing.
#[test]
fn only_what_is_there_takes_time() {
    cases(400, |random| {
        let mut disk = Sparse::new(random);
        let size = disk.size();
        let offset = random.below(size);
        let length = 1 + random.below(size - offset);
        let fua = random.one_in(2);
        let flags = |command: Command| if fua { command.with_fua() } else { command };
        let (command, clears) = match random.below(4) {
            0 => (flags(Command::trim(offset, length)), true),
            1 => (flags(Command::write_zeroes(offset, length)), true),
            2 => (flags(Command::write_zeroes(offset, length)).with_no_hole(), false),
            _ => (Command::cache(offset, length), false),
        };
        // What can't be left out goes in pieces of a GiB, of which there are not to be too many here.
        let leaves_out = clears && disk.is_quick && (disk.flushes || !fua);
        let (command, length) = match leaves_out {
            true => (command, length),
            false => {
                disk.tells = random.one_in(2);
                let length = length.min(1 << 40);
                (command.with_range(offset, length), length)
            }
        };
        let Some(mut pieces) = Pieces::new(command) else { return };
        let result = loop {
            if let Some(result) = pieces.run_next(&disk) {
                break result;
            }
        };
        result.unwrap();
        let done = disk.done();
        let mut at = offset;
        for (start, length) in &done {
            let hole = Range { start: at, end: *start };
            assert!(hole.start <= hole.end, "twice: {done:?}");
            assert!(hole.is_empty() || leaves_out, "left out: {hole:?}");
            assert!(disk.is_hole(&hole), "data was left out: {hole:?} {disk:?}");
            at = start + length;
        }
        assert!(at <= offset + length && disk.is_hole(&Range { start: at, end: offset + length }));
        if leaves_out {
            // Of each of 12 holes less than 64 GiB, of the data 4 GiB each, and a few pieces to begin with.
            assert!(done.len() < 12 * (64 + 4) + 50, "{} pieces", done.len());
        }
    });
}

impl Sparse {
    fn is_hole(&self, range: &Range<u64>) -> bool {
        let mut start = 0;
        self.runs.iter().all(|(end, data)| {
            let run = core::mem::replace(&mut start, *end)..*end;
            !data || run.start.max(range.start) >= run.end.min(range.end)
        })
    }
}
