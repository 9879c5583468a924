//! An overlay over an export whose work is a future.

use core::time::Duration;
use std::time::Instant;

use nbd_proto::{Command, ContextInfo, Extent};

use super::{
    AsyncStore, BASE_DEPTH, Changes, Cut, DEPTH, Kind, Overlay, Part, Store, below, block_buffer,
    check_base, check_context, data, deepest_first, depth_context, extent,
};
use crate::export::bounds::{inside, inside_for_writing};
use crate::export::forward::forward;
use crate::export::{
    Admit, Allocation, AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanTrim, AsyncCanWrite,
    AsyncCanWriteZeroes, AsyncContexts, AsyncExport, BlockSize, Body, ClientInfo, CloseReason,
    Result, Visitor, ZeroMode,
};

impl<E: AsyncExport, S: AsyncStore> Overlay<E, S> {
    async fn read_base_async(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        check_base(self.store.blocks().size(), self.base.size())?;
        self.base.read(buffer, offset).await
    }

    async fn base_extents_async(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        match self.base.can_extents() {
            Some(extents) => extents.extents(offset, length, visit).await,
            None => {
                let _all_at_once = visit(data(length));
                Ok(())
            }
        }
    }

    /// Changes a part of a block that the overlay has not.
    async fn put_part(&self, data: &[u8], offset: u64) -> Result<()> {
        let block = self.store.blocks().bytes_of(offset);
        let mut copy = block_buffer(block.end - block.start)?;
        self.read_base_async(&mut copy, block.start).await?;
        let put = move |held: &S::Held, data: &[u8]| held.put_patched(&mut copy, data, offset);
        self.store.run(data, put).await
    }
}

impl<E: AsyncExport, S: AsyncStore> AsyncExport for Overlay<E, S> {
    forward! { self, self.base;
        block_size_required description rotational client_entered client_left admission
    }

    fn size(&self) -> u64 {
        self.store.blocks().size()
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let length = buffer.len() as u64;
        inside(offset, length, self.store.blocks().size())?;
        for part in self.store.blocks().parts(offset, length) {
            let within = (part.offset - offset) as usize;
            let buffer = &mut buffer[within..within + part.length as usize];
            match part.kind {
                Kind::Present => self.store.read(buffer, part.offset).await?,
                _ => self.read_base_async(buffer, part.offset).await?,
            }
        }
        Ok(())
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        inside(offset, length as u64, self.store.blocks().size())?;
        for Part { offset, length, kind } in self.store.blocks().parts(offset, length as u64) {
            match kind {
                Kind::Present => self.store.read_body(body, length as usize, offset).await?,
                _ => {
                    check_base(self.store.blocks().size(), self.base.size())?;
                    self.base.read_body(body, length as usize, offset).await?;
                }
            }
        }
        Ok(())
    }

    fn block_size(&self) -> BlockSize {
        super::block_size(self.base.block_size(), self.store.blocks().block())
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        Some(self)
    }

    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        Some(self)
    }

    fn can_cache(&self) -> Option<impl AsyncCanCache> {
        self.base.can_cache().map(|_| self)
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        Some(self)
    }

    fn contexts(&self) -> Option<impl AsyncContexts> {
        Some(self)
    }
}

impl<E: AsyncExport, S: AsyncStore> AsyncCanWrite for Overlay<E, S> {
    async fn write(&self, data: &[u8], offset: u64, _fua: bool) -> Result<()> {
        inside_for_writing(offset, data.len() as u64, self.store.blocks().size())?;
        for part in self.store.blocks().parts(offset, data.len() as u64) {
            let within = (part.offset - offset) as usize;
            let data = &data[within..within + part.length as usize];
            match part.kind {
                Kind::Present => self.store.patch_async(data, part.offset).await?,
                Kind::Absent => {
                    let put = move |held: &S::Held, data: &[u8]| held.put(data, part.offset);
                    self.store.run(data, put).await?;
                }
                Kind::PartOfAbsent => self.put_part(data, part.offset).await?,
            }
        }
        Ok(())
    }
}

impl<E: AsyncExport, S: AsyncStore> AsyncCanFlush for Overlay<E, S> {
    async fn flush(&self) -> Result<()> {
        self.store.run(&[], |held, _| held.flush()).await
    }
}

impl<E: AsyncExport, S: AsyncStore> AsyncCanTrim for Overlay<E, S> {
    async fn trim(&self, offset: u64, length: u64, _fua: bool) -> Result<()> {
        inside(offset, length, self.store.blocks().size())?;
        for part in self.store.blocks().parts(offset, length) {
            self.store.run(&[], move |held, _| held.trim_part(part)).await?;
        }
        Ok(())
    }
}

impl<E: AsyncExport, S: AsyncStore> AsyncCanWriteZeroes for Overlay<E, S> {
    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        inside_for_writing(offset, length, self.store.blocks().size())?;
        self.store.check_fast(offset, length, mode)?;
        let mode = ZeroMode { fua: false, ..mode };
        for Part { offset, length, kind } in self.store.blocks().parts(offset, length) {
            match kind {
                Kind::Present => {
                    self.store.run(&[], move |held, _| held.zero(offset, length, mode)).await?;
                }
                Kind::Absent => {
                    let put = move |held: &S::Held, _: &[u8]| held.put_zeroes(offset, length, mode);
                    self.store.run(&[], put).await?;
                }
                Kind::PartOfAbsent => self.put_part(&block_buffer(length)?, offset).await?,
            }
        }
        Ok(())
    }
}

impl<E: AsyncExport, S: AsyncStore> AsyncCanCache for Overlay<E, S> {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        inside(offset, length, self.store.blocks().size())?;
        for Part { offset, length, kind } in self.store.blocks().parts(offset, length) {
            match kind {
                Kind::Present => {
                    let cache = move |held: &S::Held, _: &[u8]| held.prefetch(offset, length);
                    self.store.run(&[], cache).await?;
                }
                _ => {
                    if let Some(ability) = self.base.can_cache() {
                        ability.cache(offset, length).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl<E: AsyncExport, S: AsyncStore> AsyncCanExtents for Overlay<E, S> {
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        inside(offset, length, self.store.blocks().size())?;
        let mut at = offset;
        while at < offset + length {
            let (present, end) = self.store.blocks().run(at, offset + length);
            let mut cut = Cut::new(end - at, &mut *visit);
            let mut pass = |run: Allocation| {
                cut.run(run.length, |visit, length| visit(Allocation { length, ..run }))
            };
            if present {
                self.store.extents(at, end - at, &mut pass).await?;
            } else {
                self.base_extents_async(at, end - at, &mut pass).await?;
            }
            if !cut.goes_on() {
                break;
            }
            at = end;
        }
        Ok(())
    }
}

impl<E: AsyncExport, S: AsyncStore> AsyncContexts for Overlay<E, S> {
    fn list(&self) -> Vec<ContextInfo> {
        depth_context()
    }

    async fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Extent>,
    ) -> Result<()> {
        check_context(context)?;
        inside(offset, length, self.store.blocks().size())?;
        let own = self.base.contexts();
        let own = own.filter(|own| own.list().iter().any(|context| context.name() == DEPTH));
        let mut at = offset;
        while at < offset + length {
            let (present, end) = self.store.blocks().run(at, offset + length);
            let length = end - at;
            let mut cut = Cut::new(length, &mut *visit);
            match own.as_ref().filter(|_| !present) {
                Some(own) => {
                    let mut pass = |run: Extent| {
                        cut.run(run.length, |visit, length| {
                            visit(extent(length, below(run.status)))
                        })
                    };
                    own.status(DEPTH, at, length, &mut pass).await?;
                }
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
