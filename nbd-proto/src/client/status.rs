//! Replies to block status requests: extents, in batches.

use core::mem::take;

use super::Event;
use super::reply::Chunk;
use super::transmission::{Cursor, Transmission};
use crate::wire::{BlockStatusDescriptor, DecodeError, Reader};
use crate::{Command, Error, Extent, PeerMisbehaved};

/// Where a block status chunk has got to.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusRun {
    context: u32,
    /// Extents that are still to come, never 0.
    remaining: u64,
    /// Where the next one begins, in the export.
    offset: u64,
}

/// Extents in one event.
const BATCH: usize = 512;

impl Transmission {
    /// What comes before the `count` extents of a block status chunk: the context, and in extended form their number.
    // (C-EH-20)
    pub(super) fn status_head(
        &mut self,
        chunk: Chunk,
        count: u64,
        head: &[u8],
    ) -> Result<Cursor, Error> {
        let mut reader = Reader::new(head);
        let context = reader.u32("context id")?;
        if self.agreed.extended && u64::from(reader.u32("descriptor count")?) != count {
            return Err(DecodeError::BadValue("descriptor count").into());
        }
        let pending = self.pending(chunk.id)?;
        let index = pending.awaited.iter().position(|awaited| *awaited == context);
        let index = index.ok_or(PeerMisbehaved::UnexpectedContext(context))?;
        pending.awaited.swap_remove(index);
        if matches!(pending.command, Command::BlockStatus { one: true, .. }) && count > 1 {
            return Err(PeerMisbehaved::MoreThanOneExtent.into());
        }
        let offset = pending.command.offset();
        Ok(Cursor::Extents(chunk, StatusRun { context, remaining: count, offset }))
    }

    pub(super) fn compact_extent(
        &mut self,
        chunk: Chunk,
        run: StatusRun,
        bytes: &[u8; 8],
    ) -> Result<(Cursor, Option<Event>), Error> {
        self.extent(chunk, run, BlockStatusDescriptor::decode_compact(bytes)?)
    }

    pub(super) fn extended_extent(
        &mut self,
        chunk: Chunk,
        run: StatusRun,
        bytes: &[u8; 16],
    ) -> Result<(Cursor, Option<Event>), Error> {
        self.extent(chunk, run, BlockStatusDescriptor::decode_extended(bytes)?)
    }

    /// One extent has arrived.
    // (C-CMD-BS-13, C-CMD-BS-14)
    fn extent(
        &mut self,
        chunk: Chunk,
        run: StatusRun,
        extent: BlockStatusDescriptor,
    ) -> Result<(Cursor, Option<Event>), Error> {
        let BlockStatusDescriptor { length, status } = extent;
        let StatusRun { context, remaining, offset } = run;
        if let Command::BlockStatus { length: asked, one: true, .. } =
            self.pending(chunk.id)?.command
            && length > asked
        {
            return Err(PeerMisbehaved::MoreThanOneExtent.into());
        }
        let offset = offset.checked_add(length).ok_or(DecodeError::BadValue("extent length"))?;
        let none = Error::Internal("an extent was read where none was left");
        let remaining = remaining.checked_sub(1).ok_or(none)?;
        self.batch.push(Extent { length, status });
        let cursor = match remaining {
            0 => chunk.after(),
            _ => Cursor::Extents(chunk, StatusRun { context, remaining, offset }),
        };
        if remaining > 0 && self.batch.len() < BATCH {
            return Ok((cursor, None));
        }
        let extents = take(&mut self.batch);
        Ok((cursor, Some(Event::Extents { id: chunk.id, context, extents })))
    }
}

/// How many extents are in a block status payload of `length` bytes; `None` unless that is a whole number above zero.
pub(super) fn extents_in(length: u64, extended: bool) -> Option<u64> {
    let (fixed, each) = match extended {
        true => (8, BlockStatusDescriptor::EXTENDED_SIZE as u64),
        false => (4, BlockStatusDescriptor::COMPACT_SIZE as u64),
    };
    let rest = length.checked_sub(fixed)?;
    (rest > 0 && rest.is_multiple_of(each)).then(|| rest.checked_div(each))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_chunk_holds_a_whole_number_of_extents() {
        assert_eq!(extents_in(12, false), Some(1));
        assert_eq!(extents_in(8 + 160, true), Some(10));
        for length in [0, 3, 4, 8, 11, 13] {
            assert_eq!(extents_in(length, false), None, "{length}");
        }
    }
}
