//! Exports as those of the other kind, for tests.

use core::future::Future;
use core::ops::ControlFlow;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::sync::Arc;
use std::task::Wake;
use std::thread::{self, Thread};

use super::Allocation;
use crate::export::contexts::no_such_context;
use crate::export::{
    AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim, AsyncCanWrite,
    AsyncCanWriteZeroes, AsyncContexts, AsyncExport, BlockSize, Body, CanCache, CanExtents,
    CanFlush, CanResize, CanTrim, CanWrite, CanWriteZeroes, ContextInfo, Contexts, Export, Extent,
    Fua, Result, Visitor, ZeroMode,
};

/// An export that may block, as one whose work is a future.
#[derive(Debug)]
pub(in crate::export) struct Later<E>(pub(in crate::export) E);

/// What an ability does that the export inside has.
macro_rules! ability {
    ($export:expr, $ability:ident) => {
        $export.$ability().expect("it is asked for only where it is there")
    };
}

impl<E: Export> AsyncExport for Later<E> {
    fn size(&self) -> u64 {
        self.0.size()
    }
    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.read(buffer, offset)
    }
    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        self.0.read_body(body, length, offset)
    }
    fn block_size(&self) -> BlockSize {
        self.0.block_size()
    }
    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        self.0.can_write().map(|_| self)
    }
    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        self.0.can_flush().map(|_| self)
    }
    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        self.0.can_trim().map(|_| self)
    }
    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        self.0.can_write_zeroes().map(|_| self)
    }
    fn can_cache(&self) -> Option<impl AsyncCanCache> {
        self.0.can_cache().map(|_| self)
    }
    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        self.0.can_extents().map(|_| self)
    }
    fn contexts(&self) -> Option<impl AsyncContexts> {
        self.0.contexts().map(|_| self)
    }
    fn can_resize(&self) -> Option<impl AsyncCanResize> {
        self.0.can_resize().map(|_| self)
    }
}

impl<E: Export> AsyncCanWrite for Later<E> {
    async fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        ability!(self.0, can_write).write(data, offset, fua)
    }
    fn fua(&self) -> Fua {
        ability!(self.0, can_write).fua()
    }
}

impl<E: Export> AsyncCanFlush for Later<E> {
    async fn flush(&self) -> Result<()> {
        ability!(self.0, can_flush).flush()
    }
}

impl<E: Export> AsyncCanTrim for Later<E> {
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        ability!(self.0, can_trim).trim(offset, length, fua)
    }
}

impl<E: Export> AsyncCanWriteZeroes for Later<E> {
    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        ability!(self.0, can_write_zeroes).write_zeroes(offset, length, mode)
    }
    fn can_fast_zero(&self) -> bool {
        ability!(self.0, can_write_zeroes).can_fast_zero()
    }
}

impl<E: Export> AsyncCanCache for Later<E> {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        ability!(self.0, can_cache).cache(offset, length)
    }
}

impl<E: Export> AsyncCanExtents for Later<E> {
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        ability!(self.0, can_extents).extents(offset, length, visit)
    }
}

impl<E: Export> AsyncContexts for Later<E> {
    fn list(&self) -> Vec<ContextInfo> {
        ability!(self.0, contexts).list()
    }
    fn find(&self, query: &str) -> Option<ContextInfo> {
        ability!(self.0, contexts).find(query)
    }
    async fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Extent>,
    ) -> Result<()> {
        ability!(self.0, contexts).status(context, offset, length, visit)
    }
    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        ability!(self.0, contexts).join(context, one, other)
    }
}

impl<E: Export> AsyncCanResize for Later<E> {
    async fn resize(&self, size: u64) -> Result<()> {
        ability!(self.0, can_resize).resize(size)
    }
}

/// The output of a future that never waits.
pub(in crate::export) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// Waits for a future.
pub(in crate::export) fn wait<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        thread::park();
    }
}

/// An export whose work is a future, as one that may block.
#[derive(Debug)]
pub(in crate::export) struct Sooner<E>(pub(in crate::export) E);

impl<E: AsyncExport> Export for Sooner<E> {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        wait(self.0.read(buffer, offset))
    }
    fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        wait(self.0.read_body(body, length, offset))
    }
    fn block_size(&self) -> BlockSize {
        self.0.block_size()
    }
    fn can_write(&self) -> Option<&dyn CanWrite> {
        self.0.can_write().map(|_| self as &dyn CanWrite)
    }
    fn can_flush(&self) -> Option<&dyn CanFlush> {
        self.0.can_flush().map(|_| self as &dyn CanFlush)
    }
    fn can_trim(&self) -> Option<&dyn CanTrim> {
        self.0.can_trim().map(|_| self as &dyn CanTrim)
    }
    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        self.0.can_write_zeroes().map(|_| self as &dyn CanWriteZeroes)
    }
    fn can_cache(&self) -> Option<&dyn CanCache> {
        self.0.can_cache().map(|_| self as &dyn CanCache)
    }
    fn can_extents(&self) -> Option<&dyn CanExtents> {
        self.0.can_extents().map(|_| self as &dyn CanExtents)
    }
    fn contexts(&self) -> Option<&dyn Contexts> {
        self.0.contexts().map(|_| self as &dyn Contexts)
    }
    fn can_resize(&self) -> Option<&dyn CanResize> {
        self.0.can_resize().map(|_| self as &dyn CanResize)
    }
}

impl<E: AsyncExport> CanWrite for Sooner<E> {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        wait(ability!(self.0, can_write).write(data, offset, fua))
    }
    fn fua(&self) -> Fua {
        ability!(self.0, can_write).fua()
    }
}

impl<E: AsyncExport> CanFlush for Sooner<E> {
    fn flush(&self) -> Result<()> {
        wait(ability!(self.0, can_flush).flush())
    }
}

impl<E: AsyncExport> CanTrim for Sooner<E> {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        wait(ability!(self.0, can_trim).trim(offset, length, fua))
    }
}

impl<E: AsyncExport> CanWriteZeroes for Sooner<E> {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        wait(ability!(self.0, can_write_zeroes).write_zeroes(offset, length, mode))
    }
    fn can_fast_zero(&self) -> bool {
        ability!(self.0, can_write_zeroes).can_fast_zero()
    }
}

impl<E: AsyncExport> CanCache for Sooner<E> {
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        wait(ability!(self.0, can_cache).cache(offset, length))
    }
}

impl<E: AsyncExport> CanExtents for Sooner<E> {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        // The visitor need not be sent to another thread: the runs are collected first.
        let mut runs = Vec::new();
        let mut collect = |run| {
            runs.push(run);
            ControlFlow::Continue(())
        };
        wait(ability!(self.0, can_extents).extents(offset, length, &mut collect))?;
        let _broken_off = runs.into_iter().try_for_each(visit);
        Ok(())
    }
}

impl<E: AsyncExport> Contexts for Sooner<E> {
    fn list(&self) -> Vec<ContextInfo> {
        ability!(self.0, contexts).list()
    }
    fn find(&self, query: &str) -> Option<ContextInfo> {
        ability!(self.0, contexts).find(query)
    }
    fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut runs = Vec::new();
        let mut collect = |run| {
            runs.push(run);
            ControlFlow::Continue(())
        };
        let contexts = self.0.contexts().ok_or_else(no_such_context)?;
        wait(contexts.status(context, offset, length, &mut collect))?;
        let _broken_off = runs.into_iter().try_for_each(visit);
        Ok(())
    }
    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        ability!(self.0, contexts).join(context, one, other)
    }
}

impl<E: AsyncExport> CanResize for Sooner<E> {
    fn resize(&self, size: u64) -> Result<()> {
        wait(ability!(self.0, can_resize).resize(size))
    }
}
