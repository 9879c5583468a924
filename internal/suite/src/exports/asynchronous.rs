//! A disk whose work is a future: that of the blocking one, behind the same gate.

use std::ops::ControlFlow;
use std::sync::Arc;

use nbd_engine::export::{
    Allocation, AsyncCaches, AsyncExport, AsyncExtents, AsyncFlushes, AsyncResizes, AsyncTrims,
    AsyncWrites, AsyncWritesZeroes, Export, ExportFuture, ZeroMode,
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

    fn read<'a>(&'a self, buffer: &'a mut [u8], offset: u64) -> ExportFuture<'a> {
        Box::pin(self.0.gate.pass_async(offset, move || self.0.memory.read(buffer, offset)))
    }

    fn writes(&self) -> Option<&dyn AsyncWrites> {
        Some(self)
    }

    fn flushes(&self) -> Option<&dyn AsyncFlushes> {
        Some(self)
    }

    fn trims(&self) -> Option<&dyn AsyncTrims> {
        Some(self)
    }

    fn writes_zeroes(&self) -> Option<&dyn AsyncWritesZeroes> {
        Some(self)
    }

    fn caches(&self) -> Option<&dyn AsyncCaches> {
        Some(self)
    }

    fn extents(&self) -> Option<&dyn AsyncExtents> {
        Some(self)
    }

    fn resizes(&self) -> Option<&dyn AsyncResizes> {
        Some(self)
    }
}

impl AsyncWrites for Asynchronous {
    fn write<'a>(&'a self, data: &'a [u8], offset: u64, fua: bool) -> ExportFuture<'a> {
        let writes = self.0.memory().writes().expect(HAS_ALL);
        Box::pin(self.0.gate.pass_async(offset, move || writes.write(data, offset, fua)))
    }
}

impl AsyncFlushes for Asynchronous {
    fn flush(&self) -> ExportFuture<'_> {
        Box::pin(async { self.0.memory().flushes().expect(HAS_ALL).flush() })
    }
}

impl AsyncTrims for Asynchronous {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> ExportFuture<'_> {
        let trims = self.0.memory().trims().expect(HAS_ALL);
        Box::pin(self.0.gate.pass_async(offset, move || trims.trim(offset, length, fua)))
    }
}

impl AsyncWritesZeroes for Asynchronous {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> ExportFuture<'_> {
        let zeroes = self.0.memory().writes_zeroes().expect(HAS_ALL);
        Box::pin(self.0.gate.pass_async(offset, move || zeroes.write_zeroes(offset, length, mode)))
    }
}

impl AsyncCaches for Asynchronous {
    fn cache(&self, offset: u64, length: u64) -> ExportFuture<'_> {
        Box::pin(async move { self.0.memory().caches().expect(HAS_ALL).cache(offset, length) })
    }
}

impl AsyncExtents for Asynchronous {
    fn extents(&self, offset: u64, length: u64, most: usize) -> ExportFuture<'_, Vec<Allocation>> {
        Box::pin(async move {
            let mut found = Vec::new();
            let extents = self.0.memory().extents().expect(HAS_ALL);
            extents.extents(offset, length, &mut |allocation| {
                found.push(allocation);
                if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok(found)
        })
    }
}

impl AsyncResizes for Asynchronous {
    fn resize(&self, size: u64) -> ExportFuture<'_> {
        Box::pin(async move { self.0.memory().resizes().expect(HAS_ALL).resize(size) })
    }
}
