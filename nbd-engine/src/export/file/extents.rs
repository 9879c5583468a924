//! Reporting holes and data.

use core::ops::ControlFlow;

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
    /// hole; it is reported as allocated and zero.
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
            let (hole, end) = self.holes.find(&*self.system, at, size).map_err(from_errno)?;
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
}
