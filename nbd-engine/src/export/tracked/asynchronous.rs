//! Tracking an export whose work is a future.

use core::ops::ControlFlow;

use nbd_proto::{ContextInfo, Extent};

use super::{Tracked, Tracker, gone, range};
use crate::export::contexts::no_such_context;
use crate::export::{
    AsyncCaches, AsyncContexts, AsyncExport, AsyncExtents, AsyncFlushes, AsyncResizes, AsyncTrims,
    AsyncWrites, AsyncWritesZeroes, BlockSize, ExportFuture, Fua, ZeroMode,
};

impl<E: AsyncExport> AsyncExport for Tracked<E> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read<'a>(&'a self, buffer: &'a mut [u8], offset: u64) -> ExportFuture<'a> {
        self.inner.read(buffer, offset)
    }

    fn block_size(&self) -> BlockSize {
        self.inner.block_size()
    }

    fn block_size_required(&self) -> bool {
        self.inner.block_size_required()
    }

    fn description(&self) -> Option<String> {
        self.inner.description()
    }

    fn rotational(&self) -> bool {
        self.inner.rotational()
    }

    fn multi_conn(&self) -> bool {
        self.inner.multi_conn()
    }

    fn writes(&self) -> Option<&dyn AsyncWrites> {
        self.inner.writes().map(|_| self as &dyn AsyncWrites)
    }

    fn flushes(&self) -> Option<&dyn AsyncFlushes> {
        self.inner.flushes()
    }

    fn trims(&self) -> Option<&dyn AsyncTrims> {
        self.inner.trims().map(|_| self as &dyn AsyncTrims)
    }

    fn writes_zeroes(&self) -> Option<&dyn AsyncWritesZeroes> {
        self.inner.writes_zeroes().map(|_| self as &dyn AsyncWritesZeroes)
    }

    fn caches(&self) -> Option<&dyn AsyncCaches> {
        self.inner.caches()
    }

    fn extents(&self) -> Option<&dyn AsyncExtents> {
        self.inner.extents()
    }

    fn contexts(&self) -> Option<&dyn AsyncContexts> {
        Some(self)
    }

    fn resizes(&self) -> Option<&dyn AsyncResizes> {
        self.inner.resizes().map(|_| self as &dyn AsyncResizes)
    }
}

impl<E: AsyncExport> AsyncWrites for Tracked<E> {
    fn write<'a>(&'a self, data: &'a [u8], offset: u64, fua: bool) -> ExportFuture<'a> {
        Box::pin(async move {
            let _marked = self.tracker.mark(range(offset, data.len() as u64));
            self.inner.writes().ok_or_else(gone)?.write(data, offset, fua).await
        })
    }

    fn fua(&self) -> Fua {
        self.inner.writes().map(AsyncWrites::fua).unwrap_or_default()
    }
}

impl<E: AsyncExport> AsyncTrims for Tracked<E> {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> ExportFuture<'_> {
        Box::pin(async move {
            let _marked = self.tracker.mark(range(offset, length));
            self.inner.trims().ok_or_else(gone)?.trim(offset, length, fua).await
        })
    }
}

impl<E: AsyncExport> AsyncWritesZeroes for Tracked<E> {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> ExportFuture<'_> {
        Box::pin(async move {
            let _marked = self.tracker.mark(range(offset, length));
            self.inner.writes_zeroes().ok_or_else(gone)?.write_zeroes(offset, length, mode).await
        })
    }
}

impl<E: AsyncExport> AsyncResizes for Tracked<E> {
    fn resize(&self, size: u64) -> ExportFuture<'_> {
        Box::pin(async move {
            let _marked = self.tracker.mark(self.resized(self.inner.size(), size));
            self.inner.resizes().ok_or_else(gone)?.resize(size).await
        })
    }
}

impl<E: AsyncExport> AsyncContexts for Tracked<E> {
    fn list(&self) -> Vec<ContextInfo> {
        let mut contexts = self.tracker.contexts();
        contexts.extend(self.inner.contexts().map(AsyncContexts::list).unwrap_or_default());
        contexts
    }

    fn find(&self, query: &str) -> Option<ContextInfo> {
        self.inner.contexts()?.find(query)
    }

    fn status<'a>(
        &'a self,
        context: &'a str,
        offset: u64,
        length: u64,
        most: usize,
    ) -> ExportFuture<'a, Vec<Extent>> {
        if !Tracker::is_context(context) {
            return match self.inner.contexts() {
                Some(contexts) => contexts.status(context, offset, length, most),
                None => Box::pin(async { Err(no_such_context()) }),
            };
        }
        Box::pin(async move {
            let mut found = Vec::new();
            self.tracker.status(context, offset, length, &mut |run| {
                found.push(run);
                if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            Ok(found)
        })
    }

    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        match self.inner.contexts() {
            Some(contexts) if !Tracker::is_context(context) => contexts.join(context, one, other),
            _ => one | other,
        }
    }
}
