//! A disk whose work is a future: that of the blocking one, behind the same gate.

use std::sync::Arc;

use nbd_engine::export::{
    Allocation, AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim,
    AsyncCanWrite, AsyncCanWriteZeroes, AsyncExport, Export, Result, Visitor, ZeroMode,
};

use super::Disk;

/// A [`Disk`] whose work is a future.
#[derive(Clone, Debug)]
pub struct Asynchronous(pub Arc<Disk>);

const HAS_ALL: &str = "a disk in memory has all abilities";

impl AsyncExport for Asynchronous {
    fn size(&self) -> u64 {
        self.0.memory.size()
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.gate.pass_async(offset, || self.0.memory.read(buffer, offset)).await
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
        Some(self)
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        Some(self)
    }

    fn can_resize(&self) -> Option<impl AsyncCanResize> {
        Some(self)
    }
}

impl AsyncCanWrite for Asynchronous {
    async fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let writes = self.0.memory().can_write().expect(HAS_ALL);
        self.0.gate.pass_async(offset, || writes.write(data, offset, fua)).await
    }
}

impl AsyncCanFlush for Asynchronous {
    async fn flush(&self) -> Result<()> {
        self.0.memory().can_flush().expect(HAS_ALL).flush()
    }
}

impl AsyncCanTrim for Asynchronous {
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let trims = self.0.memory().can_trim().expect(HAS_ALL);
        self.0.gate.pass_async(offset, || trims.trim(offset, length, fua)).await
    }
}

impl AsyncCanWriteZeroes for Asynchronous {
    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let zeroes = self.0.memory().can_write_zeroes().expect(HAS_ALL);
        self.0.gate.pass_async(offset, || zeroes.write_zeroes(offset, length, mode)).await
    }
}

impl AsyncCanCache for Asynchronous {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        self.0.memory().can_cache().expect(HAS_ALL).cache(offset, length)
    }
}

impl AsyncCanExtents for Asynchronous {
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        self.0.memory().can_extents().expect(HAS_ALL).extents(offset, length, visit)
    }
}

impl AsyncCanResize for Asynchronous {
    async fn resize(&self, size: u64) -> Result<()> {
        self.0.memory().can_resize().expect(HAS_ALL).resize(size)
    }
}
