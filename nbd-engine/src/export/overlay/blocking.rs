//! An overlay over an export that may block.

use core::ops::ControlFlow;
use core::time::Duration;
use std::time::Instant;

use nbd_proto::{Command, ContextInfo, Extent};

use super::{
    BASE_DEPTH, Changes, Cut, DEPTH, Kind, Overlay, Part, Store, below, block_buffer, check_base,
    check_context, data, deepest_first, depth_context, extent,
};
use crate::export::bounds::{inside, inside_for_writing};
use crate::export::forward::forward;
use crate::export::{
    Admit, Allocation, BlockSize, Body, CanCache, CanExtents, CanFlush, CanTrim, CanWrite,
    CanWriteZeroes, ClientInfo, CloseReason, Contexts, Export, Result, ZeroMode,
};

impl<E: Export, S: Store> Overlay<E, S> {
    /// The part of the buffer from a block of the base on; the base has it.
    fn read_base(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        check_base(self.store.blocks().size(), self.base.size())?;
        self.base.read(buffer, offset)
    }

    /// The status of the base, as runs of allocation.
    fn base_extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        match self.base.can_extents() {
            Some(extents) => extents.extents(offset, length, visit),
            None => {
                let _all_at_once = visit(data(length));
                Ok(())
            }
        }
    }
}

impl<E: Export, S: Store> Export for Overlay<E, S> {
    forward! { self, self.base;
        block_size_required description rotational client_entered client_left admission
    }

    fn size(&self) -> u64 {
        self.store.blocks().size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let length = buffer.len() as u64;
        inside(offset, length, self.size())?;
        for part in self.store.blocks().parts(offset, length) {
            let within = (part.offset - offset) as usize;
            let buffer = &mut buffer[within..within + part.length as usize];
            match part.kind {
                Kind::Present => self.store.data().read(buffer, part.offset)?,
                _ => self.read_base(buffer, part.offset)?,
            }
        }
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        S::NEVER_BLOCKS && self.base.never_blocks()
    }

    fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        inside(offset, length as u64, self.size())?;
        for Part { offset, length, kind } in self.store.blocks().parts(offset, length as u64) {
            match kind {
                Kind::Present => self.store.data().read_body(body, length as usize, offset)?,
                _ => {
                    check_base(self.size(), self.base.size())?;
                    self.base.read_body(body, length as usize, offset)?;
                }
            }
        }
        Ok(())
    }

    fn try_read(&self, body: &mut Body, length: usize, offset: u64) -> Option<Result<()>> {
        if self.never_blocks() {
            return Some(self.read_body(body, length, offset));
        }
        inside(offset, length as u64, self.size()).ok()?;
        let mut parts = self.store.blocks().parts(offset, length as u64);
        let (Some(part), None) = (parts.next(), parts.next()) else { return None };
        match part.kind {
            Kind::Present => self.store.data().try_read(body, length, offset),
            _ if self.base.size() < self.size() => None,
            _ => self.base.try_read(body, length, offset),
        }
    }

    fn block_size(&self) -> BlockSize {
        super::block_size(self.base.block_size(), self.store.blocks().block())
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        Some(self)
    }

    fn can_trim(&self) -> Option<&dyn CanTrim> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        Some(self)
    }

    fn can_cache(&self) -> Option<&dyn CanCache> {
        self.base.can_cache().map(|_| self as &dyn CanCache)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }

    fn contexts(&self) -> Option<&dyn Contexts> {
        Some(self)
    }
}

impl<E: Export, S: Store> CanWrite for Overlay<E, S> {
    /// A write with FUA is followed by a flush, which makes the map of blocks durable, too.
    fn write(&self, data: &[u8], offset: u64, _fua: bool) -> Result<()> {
        inside_for_writing(offset, data.len() as u64, self.size())?;
        let blocks = self.store.blocks();
        for part in blocks.parts(offset, data.len() as u64) {
            let within = (part.offset - offset) as usize;
            let data = &data[within..within + part.length as usize];
            match part.kind {
                Kind::Present => self.store.patch(data, part.offset)?,
                Kind::Absent => self.store.put(data, part.offset)?,
                Kind::PartOfAbsent => {
                    let block = blocks.bytes_of(part.offset);
                    let mut copy = block_buffer(block.end - block.start)?;
                    self.read_base(&mut copy, block.start)?;
                    self.store.put_patched(&mut copy, data, part.offset)?;
                }
            }
        }
        Ok(())
    }

    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        inside_for_writing(offset, data.len() as u64, self.size()).ok()?;
        let mut parts = self.store.blocks().parts(offset, data.len() as u64);
        match (parts.next(), parts.next()) {
            (Some(Part { kind: Kind::Present, .. }), None) if !fua => {
                self.store.data().can_write()?.try_write(data, offset, false)
            }
            _ => None,
        }
    }
}

impl<E: Export, S: Store> CanFlush for Overlay<E, S> {
    fn flush(&self) -> Result<()> {
        self.store.flush()
    }
}

impl<E: Export, S: Store> CanTrim for Overlay<E, S> {
    fn trim(&self, offset: u64, length: u64, _fua: bool) -> Result<()> {
        inside(offset, length, self.size())?;
        let mut parts = self.store.blocks().parts(offset, length);
        parts.try_for_each(|part| self.store.trim_part(part))
    }
}

impl<E: Export, S: Store> CanWriteZeroes for Overlay<E, S> {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        inside_for_writing(offset, length, self.size())?;
        self.store.check_fast(offset, length, mode)?;
        let mode = ZeroMode { fua: false, ..mode };
        let blocks = self.store.blocks();
        for Part { offset, length, kind } in blocks.parts(offset, length) {
            match kind {
                Kind::Present => self.store.zero(offset, length, mode)?,
                Kind::Absent => self.store.put_zeroes(offset, length, mode)?,
                Kind::PartOfAbsent => {
                    let block = blocks.bytes_of(offset);
                    let mut copy = block_buffer(block.end - block.start)?;
                    self.read_base(&mut copy, block.start)?;
                    let zeroes = block_buffer(length)?;
                    self.store.put_patched(&mut copy, &zeroes, offset)?;
                }
            }
        }
        Ok(())
    }
}

impl<E: Export, S: Store> CanCache for Overlay<E, S> {
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        inside(offset, length, self.size())?;
        for Part { offset, length, kind } in self.store.blocks().parts(offset, length) {
            match (kind, self.base.can_cache()) {
                (Kind::Present, _) => self.store.prefetch(offset, length)?,
                (_, Some(ability)) => ability.cache(offset, length)?,
                (_, None) => {}
            }
        }
        Ok(())
    }
}

impl<E: Export, S: Store> CanExtents for Overlay<E, S> {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        inside(offset, length, self.size())?;
        let mut at = offset;
        while at < offset + length {
            // Blocks that came in meanwhile are no matter: each part is as it is when it is looked at.
            let (present, end) = self.store.blocks().run(at, offset + length);
            let mut cut = Cut::new(end - at, &mut *visit);
            let mut pass = |run: Allocation| {
                cut.run(run.length, |visit, length| visit(Allocation { length, ..run }))
            };
            match self.store.data().can_extents().filter(|_| present) {
                Some(extents) => extents.extents(at, end - at, &mut pass)?,
                None => self.base_extents(at, end - at, &mut pass)?,
            }
            if !cut.goes_on() {
                break;
            }
            at = end;
        }
        Ok(())
    }
}

impl<E: Export, S: Store> Contexts for Overlay<E, S> {
    fn list(&self) -> Vec<ContextInfo> {
        depth_context()
    }

    fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_context(context)?;
        inside(offset, length, self.size())?;
        let own = self.base.contexts();
        let own = own.filter(|own| own.list().iter().any(|context| context.name() == DEPTH));
        let mut at = offset;
        while at < offset + length {
            let (present, end) = self.store.blocks().run(at, offset + length);
            let length = end - at;
            let mut cut = Cut::new(length, &mut *visit);
            match own.filter(|_| !present) {
                Some(own) => own.status(DEPTH, at, length, &mut |run| {
                    cut.run(run.length, |visit, length| visit(extent(length, below(run.status))))
                })?,
                None => {
                    let depth = if present { 1 } else { BASE_DEPTH };
                    let _all_at_once =
                        cut.run(length, |visit, length| visit(extent(length, depth)));
                }
            }
            if !cut.goes_on() {
                break;
            }
            at = end;
        }
        Ok(())
    }

    fn join(&self, _context: &str, one: u64, other: u64) -> u64 {
        deepest_first(one, other)
    }
}
