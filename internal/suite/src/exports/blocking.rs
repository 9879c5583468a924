//! A disk whose work is done by threads.

use std::ops::ControlFlow;
use std::sync::Arc;

use nbd_engine::export::{
    Allocation, Caches, Export, Extents, Flushes, Resizes, Result, Trims, Writes, WritesZeroes,
    ZeroMode,
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

    fn writes(&self) -> Option<&dyn Writes> {
        Some(self)
    }

    fn flushes(&self) -> Option<&dyn Flushes> {
        Some(self)
    }

    fn trims(&self) -> Option<&dyn Trims> {
        Some(self)
    }

    fn writes_zeroes(&self) -> Option<&dyn WritesZeroes> {
        Some(self)
    }

    fn caches(&self) -> Option<&dyn Caches> {
        Some(self)
    }

    fn extents(&self) -> Option<&dyn Extents> {
        Some(self)
    }

    fn resizes(&self) -> Option<&dyn Resizes> {
        Some(self)
    }
}

impl Writes for Blocking {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let writes = self.0.memory().writes().expect(HAS_ALL);
        self.0.gate.pass(offset, || writes.write(data, offset, fua))
    }
}

impl Flushes for Blocking {
    fn flush(&self) -> Result<()> {
        self.0.memory().flushes().expect(HAS_ALL).flush()
    }
}

impl Trims for Blocking {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let trims = self.0.memory().trims().expect(HAS_ALL);
        self.0.gate.pass(offset, || trims.trim(offset, length, fua))
    }
}

impl WritesZeroes for Blocking {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let zeroes = self.0.memory().writes_zeroes().expect(HAS_ALL);
        self.0.gate.pass(offset, || zeroes.write_zeroes(offset, length, mode))
    }
}

impl Caches for Blocking {
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        self.0.memory().caches().expect(HAS_ALL).cache(offset, length)
    }
}

impl Extents for Blocking {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        self.0.memory().extents().expect(HAS_ALL).extents(offset, length, visit)
    }
}

impl Resizes for Blocking {
    fn resize(&self, size: u64) -> Result<()> {
        self.0.memory().resizes().expect(HAS_ALL).resize(size)
    }
}
