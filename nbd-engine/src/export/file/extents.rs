//! Telling holes from data.

use core::ops::ControlFlow;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{File, from_errno};
use crate::export::bounds::inside;
use crate::export::{Allocation, CanExtents, Result};

const DATA: Allocation = Allocation { length: 0, hole: false, zero: false };
const HOLE: Allocation = Allocation { length: 0, hole: true, zero: true };
/// Zeroes for which space was set aside.
const PROVISIONED: Allocation = Allocation { length: 0, hole: false, zero: true };

impl CanExtents for File {
    /// Asks the file system for holes; one that can't tell has none. Block devices have none either.
    ///
    /// What was zeroed through this export with `no_hole` has space set aside although most file systems call it a
    /// hole; it is told of as allocated, and zero.
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        let size = self.size.get();
        inside(offset, length, size)?;
        let mut at = offset;
        while at < offset + length {
            let (hole, end) = self.run(at, size)?;
            while at < end {
                let (kind, stop) = if hole { self.hole(at, end) } else { (DATA, end) };
                let length = stop - at;
                at = stop;
                if visit(Allocation { length, ..kind }).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl File {
    /// What kind of hole it is, and how far.
    fn hole(&self, at: u64, end: u64) -> (Allocation, u64) {
        let (provisioned, end) = self.provisioned().run(at, end);
        (if provisioned { PROVISIONED } else { HOLE }, end)
    }

    /// Whether there is a hole at `at`, and where that changes, at most `size`, which is above `at`.
    fn run(&self, at: u64, size: u64) -> Result<(bool, u64)> {
        let seek = |to| {
            let seek = || match self.system.seek(to) {
                // The answer of a file system that does not know holes.
                Err(Errno::INVAL) => Err(Errno::OPNOTSUPP),
                result => result,
            };
            self.abilities.seek_hole.attempt(seek)
        };
        let run = match seek(SeekFrom::Data(at)) {
            None => (false, size),
            Some(Ok(data)) if data > at => (true, data.min(size)),
            Some(Ok(_)) => match seek(SeekFrom::Hole(at)) {
                Some(Ok(hole)) if hole > at => (false, hole.min(size)),
                // Somebody punched a hole here meanwhile. To call it data is never wrong.
                Some(Ok(_)) => (false, size.min(at + u64::from(self.block_size.preferred()))),
                // Somebody cut the file off meanwhile, see below.
                Some(Err(Errno::NXIO)) | None => (false, size),
                Some(Err(errno)) => return Err(from_errno(errno)),
            },
            // No data until the end of the file. If that is not where it was, somebody cut the file off: the rest can't
            // be read, so that it must not pass for zeroes.
            Some(Err(Errno::NXIO)) => match self.system.length().map_err(from_errno)?.min(size) {
                end if end > at => (true, end),
                _ => (false, size),
            },
            Some(Err(errno)) => return Err(from_errno(errno)),
        };
        Ok(run)
    }
}
