//! An overlay in memory over an export whose work is a future.

use core::time::Duration;
use std::time::Instant;

use nbd_proto::{Command, ContextInfo, Extent};

use super::sealed::Sealed;
use super::{
    Changes, Cut, DEPTH, InMemory, Kind, Overlay, Part, Store, below, block_buffer, check_base,
    check_context, data, deepest_first, depth_context, extent,
};
use crate::export::bounds::{inside, inside_for_writing};
use crate::export::{
    Admit, Allocation, AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanTrim, AsyncCanWrite,
    AsyncCanWriteZeroes, AsyncContexts, AsyncExport, BlockSize, Body, CanExtents, ClientInfo,
    CloseReason, Export, Result, Visitor, ZeroMode,
};

impl<E: AsyncExport> Overlay<E, InMemory> {
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
        self.store.put_patched(&mut copy, data, offset)
    }
}

impl<E: AsyncExport> AsyncExport for Overlay<E, InMemory> {
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
                Kind::Present => self.store.data().read(buffer, part.offset)?,
                _ => self.read_base_async(buffer, part.offset).await?,
            }
        }
        Ok(())
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        inside(offset, length as u64, self.store.blocks().size())?;
        for Part { offset, length, kind } in self.store.blocks().parts(offset, length as u64) {
            match kind {
                Kind::Present => self.store.data().read_body(body, length as usize, offset)?,
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

    fn block_size_required(&self) -> bool {
        self.base.block_size_required()
    }

    fn description(&self) -> Option<String> {
        self.base.description()
    }

    fn rotational(&self) -> bool {
        self.base.rotational()
    }

    fn client_entered(&self, client: &ClientInfo) {
        self.base.client_entered(client);
    }

    fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        self.base.client_left(client, reason);
    }

    fn admits(&self) -> bool {
        self.base.admits()
    }

    fn admit(&self, client: &ClientInfo, command: &Command) -> Admit {
        self.base.admit(client, command)
    }

    fn pace(&self, client: &ClientInfo, command: &Command, now: Instant) -> Duration {
        self.base.pace(client, command, now)
    }

    fn begun(&self, client: &ClientInfo, command: &Command, now: Instant) {
        self.base.begun(client, command, now);
    }

    fn finished(
        &self,
        client: &ClientInfo,
        command: &Command,
        result: &Result<()>,
        took: Duration,
    ) {
        self.base.finished(client, command, result, took);
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

impl<E: AsyncExport> AsyncCanWrite for Overlay<E, InMemory> {
    async fn write(&self, data: &[u8], offset: u64, _fua: bool) -> Result<()> {
        inside_for_writing(offset, data.len() as u64, self.store.blocks().size())?;
        for part in self.store.blocks().parts(offset, data.len() as u64) {
            let within = (part.offset - offset) as usize;
            let data = &data[within..within + part.length as usize];
            match part.kind {
                Kind::Present => self.store.patch(data, part.offset)?,
                Kind::Absent => self.store.put(data, part.offset)?,
                Kind::PartOfAbsent => self.put_part(data, part.offset).await?,
            }
        }
        Ok(())
    }
}

impl<E: AsyncExport> AsyncCanFlush for Overlay<E, InMemory> {
    async fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl<E: AsyncExport> AsyncCanTrim for Overlay<E, InMemory> {
    async fn trim(&self, offset: u64, length: u64, _fua: bool) -> Result<()> {
        inside(offset, length, self.store.blocks().size())?;
        let mut parts = self.store.blocks().parts(offset, length);
        parts.try_for_each(|part| self.store.trim_part(part))
    }
}

impl<E: AsyncExport> AsyncCanWriteZeroes for Overlay<E, InMemory> {
    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        inside_for_writing(offset, length, self.store.blocks().size())?;
        self.store.check_fast(offset, length, mode)?;
        let mode = ZeroMode { fua: false, ..mode };
        for Part { offset, length, kind } in self.store.blocks().parts(offset, length) {
            match kind {
                Kind::Present => self.store.zero(offset, length, mode)?,
                Kind::Absent => self.store.put_zeroes(offset, length, mode)?,
                Kind::PartOfAbsent => self.put_part(&block_buffer(length)?, offset).await?,
            }
        }
        Ok(())
    }
}

impl<E: AsyncExport> AsyncCanCache for Overlay<E, InMemory> {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        inside(offset, length, self.store.blocks().size())?;
        for Part { offset, length, kind } in self.store.blocks().parts(offset, length) {
            if let Some(ability) = self.base.can_cache().filter(|_| kind != Kind::Present) {
                ability.cache(offset, length).await?;
            }
        }
        Ok(())
    }
}

impl<E: AsyncExport> AsyncCanExtents for Overlay<E, InMemory> {
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
                self.store.data().extents(at, end - at, &mut pass)?;
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

impl<E: AsyncExport> AsyncContexts for Overlay<E, InMemory> {
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
            if present {
                let _all_at_once = cut.run(length, |visit, length| visit(extent(length, 1)));
            } else if let Some(own) = &own {
                let mut pass = |run: Extent| {
                    cut.run(run.length, |visit, length| visit(extent(length, below(run.status))))
                };
                own.status(DEPTH, at, length, &mut pass).await?;
            } else {
                let mut pass = |run: Allocation| {
                    let depth = if run.hole { 0 } else { 2 };
                    cut.run(run.length, |visit, length| visit(extent(length, depth)))
                };
                self.base_extents_async(at, length, &mut pass).await?;
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
