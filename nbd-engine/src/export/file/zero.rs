//! Dropping data and writing zeroes.

use core::ops::Range;

use rustix::fs::FallocateFlags;

use super::ability::Ability;
use super::{File, Kind, from_errno};
use crate::export::bounds::inside;
use crate::export::{CanTrim, CanWriteZeroes, ExportError, Result, ZeroMode};

/// Zeroes are written in pieces of at most this many bytes, where the kernel has no better way.
const ZEROES: u64 = 1 << 20;

impl CanTrim for File {
    /// Punches a hole, where the file system can do that: the range reads as zeroes then and takes no space. Nothing is
    /// done where it can't.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        inside(offset, length, self.size.get())?;
        let range = self.whole_sectors(offset..offset + length);
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
    /// the device or the kernel does the writing then can't be told.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.check_for_writing(offset, length)?;
        let end = offset + length;
        let range = self.whole_sectors(offset..end);
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
    /// As much of a range as the kernel can zero: all of it for regular files, whole sectors for block devices.
    fn whole_sectors(&self, range: Range<u64>) -> Range<u64> {
        match self.kind {
            Kind::Regular => range,
            Kind::Block { sector } => {
                range.start.next_multiple_of(sector)..range.end / sector * sector
            }
        }
    }

    /// Whether that was possible; nothing has changed if not.
    fn punch_hole(&self, range: Range<u64>) -> Result<bool> {
        let ability = &self.abilities.punch_hole;
        if ability.is_missing() {
            return Ok(false);
        }
        // The kernel drops what is cached of a block device's range before it finds out that the device can't do it:
        // what was written there and acknowledged would be gone. Without a flush, which may fail for what others wrote,
        // it is not tried.
        if self.kind != Kind::Regular && !ability.is_proven() && self.sync().is_err() {
            return Ok(false);
        }
        self.provisioned().remove(range.clone());
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.allocate(ability, flags, range)
    }

    /// Whether that was possible.
    fn allocate(
        &self,
        ability: &Ability,
        flags: FallocateFlags,
        range: Range<u64>,
    ) -> Result<bool> {
        let length = range.end - range.start;
        match ability.attempt(|| self.system.allocate(flags, range.start, length)) {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(errno)) => Err(from_errno(errno)),
        }
    }

    /// Whether that was possible.
    fn zero_without_writing(&self, range: Range<u64>, mode: ZeroMode) -> Result<bool> {
        if !mode.no_hole && self.punch_hole(range.clone())? {
            return Ok(true);
        }
        // The kernel itself writes zeroes to a block device that can't do it.
        if mode.fast && self.kind != Kind::Regular {
            return Ok(false);
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let done = self.allocate(&self.abilities.zero_range, flags, range.clone())?;
        if done && self.kind == Kind::Regular {
            self.provisioned().insert_up_to(Self::MOST_PROVISIONED, range);
        }
        Ok(done)
    }

    /// CanWrite zeroes, in pieces.
    fn put_zeroes(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let zeroes = vec![0; (range.end - range.start).min(ZEROES) as usize];
        let mut at = range.start;
        while at < range.end {
            let piece = &zeroes[..(range.end - at).min(ZEROES) as usize];
            self.system.write_all(piece, at).map_err(from_errno)?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}
