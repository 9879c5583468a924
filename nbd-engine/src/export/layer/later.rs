//! A disk in memory whose work is a future, for tests.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use super::Allocation;
use crate::export::{
    AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim, AsyncCanWrite,
    AsyncCanWriteZeroes, AsyncExport, BlockSize, Body, CanCache, CanExtents, CanFlush, CanResize,
    CanTrim, CanWrite, CanWriteZeroes, Export, Fua, Memory, Result, Visitor, ZeroMode,
};

/// A disk in memory, as a future.
#[derive(Debug)]
pub(in crate::export) struct Later(pub(in crate::export) Memory);

impl AsyncExport for Later {
    fn size(&self) -> u64 {
        Export::size(&self.0)
    }
    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        Export::read(&self.0, buffer, offset)
    }
    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        Export::read_body(&self.0, body, length, offset)
    }
    fn block_size(&self) -> BlockSize {
        Export::block_size(&self.0)
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

impl AsyncCanWrite for Later {
    async fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        CanWrite::write(&self.0, data, offset, fua)
    }
    fn fua(&self) -> Fua {
        CanWrite::fua(&self.0)
    }
}

impl AsyncCanFlush for Later {
    async fn flush(&self) -> Result<()> {
        CanFlush::flush(&self.0)
    }
}

impl AsyncCanTrim for Later {
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        CanTrim::trim(&self.0, offset, length, fua)
    }
}

impl AsyncCanWriteZeroes for Later {
    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        CanWriteZeroes::write_zeroes(&self.0, offset, length, mode)
    }
}

impl AsyncCanCache for Later {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        CanCache::cache(&self.0, offset, length)
    }
}

impl AsyncCanExtents for Later {
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        CanExtents::extents(&self.0, offset, length, visit)
    }
}

impl AsyncCanResize for Later {
    async fn resize(&self, size: u64) -> Result<()> {
        CanResize::resize(&self.0, size)
    }
}

/// None of these futures ever waits.
pub(in crate::export) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}
