//! A disk whose work is done by threads.

use std::ops::ControlFlow;
use std::sync::Arc;

use nbd_engine::export::{
    Allocation, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite, CanWriteZeroes,
    Export, Result, ZeroMode,
};

use super::Disk;

/// A [`Disk`] that may block.
#[derive(Clone, Debug)]
pub struct Blocking(pub Arc<Disk>);

const HAS_ALL: &str = "a disk in memory has all abilities";

impl Export for Blocking {
    fn size(&self) -> u64 {
        self.0.memory.size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.gate.pass(offset, || self.0.memory.read(buffer, offset))
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
        Some(self)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }

    fn can_resize(&self) -> Option<&dyn CanResize> {
        Some(self)
    }
}

impl CanWrite for Blocking {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let writes = self.0.memory().can_write().expect(HAS_ALL);
        self.0.gate.pass(offset, || writes.write(data, offset, fua))
    }
}

impl CanFlush for Blocking {
    fn flush(&self) -> Result<()> {
        self.0.memory().can_flush().expect(HAS_ALL).flush()
    }
}

impl CanTrim for Blocking {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let trims = self.0.memory().can_trim().expect(HAS_ALL);
        self.0.gate.pass(offset, || trims.trim(offset, length, fua))
    }
}

impl CanWriteZeroes for Blocking {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let zeroes = self.0.memory().can_write_zeroes().expect(HAS_ALL);
        self.0.gate.pass(offset, || zeroes.write_zeroes(offset, length, mode))
    }
}

impl CanCache for Blocking {
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        self.0.memory().can_cache().expect(HAS_ALL).cache(offset, length)
    }
}

impl CanExtents for Blocking {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        self.0.memory().can_extents().expect(HAS_ALL).extents(offset, length, visit)
    }
}

impl CanResize for Blocking {
    fn resize(&self, size: u64) -> Result<()> {
        self.0.memory().can_resize().expect(HAS_ALL).resize(size)
    }
}
