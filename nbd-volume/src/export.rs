//! A volume as an export.

use core::ops::Range;
use std::sync::Arc;

use nbd_engine::export::{
    Allocation, AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim,
    AsyncCanWrite, AsyncCanWriteZeroes, AsyncExport, Body, ExportError, Result, Visitor, ZeroMode,
};
use nbd_engine::proto::BlockSize;

use crate::Volume;
use crate::pieces::{cut, fill, share};
use crate::reads::{Run, is_kept};
use crate::shared::Shared;
use crate::streams::Streams;

impl Volume {
    /// The blocks that hold these bytes, confirmed.
    async fn run_of(&self, bytes: &Range<u64>) -> Result<Run> {
        let shared = &self.0;
        let plan = shared.streams.read(bytes, shared.size());
        for piece in &plan.ahead {
            shared.fetch_ahead(piece, plan.length);
        }
        let run = match shared.at_hand(bytes, plan.length > 0) {
            Some(run) => run,
            None => {
                let kept = is_kept(bytes, plan.length);
                shared.run(false, Arc::clone(shared).read(bytes.clone(), kept)).await?
            }
        };
        shared.confirm().await?;
        Ok(run)
    }

    /// Makes a range read as zeroes.
    async fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let shared = &self.0;
        let (mut next, end) = (offset, offset + length);
        while next < end {
            let step = Arc::clone(shared).zero_some(next..end);
            next += shared.run(true, step).await?;
        }
        shared.confirm().await
    }
}

impl AsyncExport for Volume {
    fn size(&self) -> u64 {
        self.0.size()
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let bytes = offset..offset + buffer.len() as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        let run = self.run_of(&bytes).await?;
        fill(buffer, cut(run, self.0.block_size(), &bytes));
        Ok(())
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        let bytes = offset..offset + length as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        let run = self.run_of(&bytes).await?;
        share(body, cut(run, self.0.block_size(), &bytes));
        Ok(())
    }

    fn block_size(&self) -> BlockSize {
        BlockSize::new(1, self.0.descriptor.block_size, 1 << 25).unwrap_or(BlockSize::DEFAULT)
    }

    fn description(&self) -> Option<String> {
        Some(format!("volume on object storage: {}", self.0.location))
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        self.0.is_writable().then_some(self)
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        self.0.is_writable().then_some(self)
    }

    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        self.0.is_writable().then_some(self)
    }

    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        self.0.is_writable().then_some(self)
    }

    fn can_cache(&self) -> Option<impl AsyncCanCache> {
        Some(self)
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        Some(self)
    }

    fn can_resize(&self) -> Option<impl AsyncCanResize> {
        self.0.is_writable().then_some(self)
    }
}

impl AsyncCanWrite for Volume {
    // FUA is a write and a flush, as the engine does it: uploads are shared with those of other clients.
    async fn write(&self, data: &[u8], offset: u64, _fua: bool) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let shared = &self.0;
        let length = u32::try_from(data.len()).map_err(|_| ExportError::too_large())?;
        // Memory for the copy is bounded even when SlateDB takes nothing.
        let room = shared.room_for(length).await?;
        let pieces = shared.pieces(data, offset);
        let bytes = offset..offset + u64::from(length);
        shared.check_open()?;
        match shared.write_at_once(pieces, &bytes, room) {
            Ok(outcome) => shared.patiently(shared.committed(outcome)).await?,
            Err((pieces, room)) => {
                let writing = {
                    let shared = Arc::clone(shared);
                    async move {
                        let _room = room;
                        shared.write(pieces, bytes).await
                    }
                };
                shared.run(true, writing).await?;
            }
        }
        shared.confirm().await
    }
}

impl AsyncCanFlush for Volume {
    async fn flush(&self) -> Result<()> {
        let shared = Arc::clone(&self.0);
        let uploading = {
            let shared = Arc::clone(&shared);
            async move { shared.upload().await.map_err(|error| shared.failed(&error)) }
        };
        shared.run(true, uploading).await?;
        shared.confirm().await
    }
}

impl AsyncCanTrim for Volume {
    async fn trim(&self, offset: u64, length: u64, _fua: bool) -> Result<()> {
        self.zero(offset, length).await
    }
}

impl AsyncCanWriteZeroes for Volume {
    // Nothing is ever reserved, so that there is nothing to leave allocated either.
    async fn write_zeroes(&self, offset: u64, length: u64, _mode: ZeroMode) -> Result<()> {
        self.zero(offset, length).await
    }
}

impl AsyncCanCache for Volume {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        /// Bytes that are prepared at a time.
        const STEP: u64 = 256 << 10;
        /// Bytes that one request prepares at most: more would drive itself out of the cache.
        const MAX: u64 = 16 << 20;
        let shared: &Arc<Shared> = &self.0;
        let (mut next, end) = (offset, offset + length.min(MAX));
        let mut piece = next;
        while next < end {
            // What is fetched at a time is longer than what is kept at a time.
            if piece <= next {
                piece = (next + Streams::MAX_PIECE).min(end);
                shared.fetch_ahead(&(next..piece), 0);
            }
            let step = next..(next + STEP).min(end);
            shared.run(false, Arc::clone(shared).read(step.clone(), true)).await?;
            next = step.end;
        }
        shared.confirm().await
    }
}

impl AsyncCanExtents for Volume {
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        let shared = &self.0;
        let reading = Arc::clone(shared).allocations(offset..offset + length);
        let runs = shared.run(false, reading).await?;
        shared.confirm().await?;
        Shared::visit(runs, visit);
        Ok(())
    }
}

impl AsyncCanResize for Volume {
    async fn resize(&self, size: u64) -> Result<()> {
        if size == 0 || i64::try_from(size).is_err() {
            return Err(ExportError::invalid("a volume has a size from 1 byte to 2^63 - 1"));
        }
        let shared = &self.0;
        shared.run(true, Arc::clone(shared).resize(size)).await?;
        shared.confirm().await
    }
}
