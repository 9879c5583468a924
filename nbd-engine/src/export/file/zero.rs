//! Dropping data and writing zeroes.

use core::ops::Range;

use super::holes::Kind;
use super::{File, from_errno};
use crate::export::bounds::inside;
use crate::export::{CanTrim, CanWriteZeroes, ExportError, Result, ZeroMode};

impl CanTrim for File {
    /// Punches a hole, where the file system can do that: the range reads as zeroes then and takes no space. Nothing is
    /// done where it can't.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        inside(offset, length, self.size.get())?;
        let range = self.holes.whole_sectors(offset..offset + length);
        if !range.is_empty() {
            self.punch_hole(range)?;
        }
        if fua { self.sync() } else { Ok(()) }
    }
}

impl CanWriteZeroes for File {
    /// Punches a hole, or with `no_hole` zeroes the range in place and leaves it allocated, by whatever way the file
    /// system offers: one that costs no writing of data, or else zeroes are written.
    ///
    /// `fast` is served for regular files by the former. For block devices it is too, unless with `no_hole`: whether
    /// the device or the kernel does the writing then is unknown.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.check_for_writing(offset, length)?;
        let end = offset + length;
        let range = self.holes.whole_sectors(offset..end);
        if !range.is_empty() && self.zero_without_writing(range.clone(), mode)? {
            self.put_zeroes(offset..range.start)?;
            self.put_zeroes(range.end..end)?;
        } else if mode.fast {
            return Err(ExportError::not_fast());
        } else {
            self.put_zeroes(offset..end)?;
        }
        if mode.fua { self.sync() } else { Ok(()) }
    }
}

impl File {
    /// Whether that was possible; nothing has changed if not.
    fn punch_hole(&self, range: Range<u64>) -> Result<bool> {
        let Self { holes, .. } = self;
        if holes.punch_hole.is_missing() {
            return Ok(false);
        }
        // The kernel drops what is cached of a block device's range before it finds out that the device can't do it:
        // what was written there and acknowledged would be gone. Without a flush, which may fail for what others wrote,
        // it is not tried.
        if holes.kind != Kind::Regular && !holes.punch_hole.is_proven() && self.sync().is_err() {
            return Ok(false);
        }
        self.provisioned().remove(range.clone());
        holes.punch(&*self.system, range).map_err(from_errno)
    }

    /// Whether that was possible.
    fn zero_without_writing(&self, range: Range<u64>, mode: ZeroMode) -> Result<bool> {
        if !mode.no_hole && self.punch_hole(range.clone())? {
            return Ok(true);
        }
        // The kernel itself writes zeroes to a block device that can't do it.
        if mode.fast && self.holes.kind != Kind::Regular {
            return Ok(false);
        }
        let done = self.holes.zero_in_place(&*self.system, range.clone()).map_err(from_errno)?;
        if done && self.holes.kind == Kind::Regular {
            self.provisioned().insert_up_to(Self::MAX_PROVISIONED, range);
        }
        Ok(done)
    }

    fn put_zeroes(&self, range: Range<u64>) -> Result<()> {
        self.system.write_zeroes(range).map_err(from_errno)
    }
}
