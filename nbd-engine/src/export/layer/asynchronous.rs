//! A layer around an export whose work is a future.

use nbd_proto::{ContextInfo, Extent};

use super::{Layer, Layered, Source, gone, range, resized};
use crate::export::contexts::no_such_context;
use crate::export::{
    AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim, AsyncCanWrite,
    AsyncCanWriteZeroes, AsyncContexts, AsyncExport, BlockSize, Body, ClientInfo, CloseReason, Fua,
    Result, Visitor, ZeroMode,
};

impl<E: AsyncExport, L: Layer> AsyncExport for Layered<E, L> {
    fn size(&self) -> u64 {
        self.layer.size(self.inner.size())
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> impl Future<Output = Result<()>> + Send {
        self.inner.read(buffer, offset)
    }

    fn read_body(
        &self,
        body: &mut Body,
        length: usize,
        offset: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        self.inner.read_body(body, length, offset)
    }

    fn block_size(&self) -> BlockSize {
        self.layer.block_size(self.inner.block_size())
    }

    fn block_size_required(&self) -> bool {
        self.layer.block_size_required(self.inner.block_size_required())
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

    fn client_entered(&self, client: &ClientInfo) {
        self.inner.client_entered(client);
    }

    fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        self.inner.client_left(client, reason);
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        self.inner.can_write().filter(|_| L::WRITABLE).map(|_| self)
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        self.inner.can_flush()
    }

    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        self.inner.can_trim().filter(|_| L::WRITABLE).map(|_| self)
    }

    fn can_write_zeroes(&self) -> Option<impl AsyncCanWriteZeroes> {
        self.inner.can_write_zeroes().filter(|_| L::WRITABLE).map(|_| self)
    }

    fn can_cache(&self) -> Option<impl AsyncCanCache> {
        self.inner.can_cache()
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        self.inner.can_extents()
    }

    fn contexts(&self) -> Option<impl AsyncContexts> {
        Some(self)
    }

    fn can_resize(&self) -> Option<impl AsyncCanResize> {
        self.inner.can_resize().filter(|_| L::WRITABLE).map(|_| self)
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanWrite for Layered<E, L> {
    async fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let _changing = self.layer.change(range(offset, data.len() as u64));
        self.inner.can_write().ok_or_else(gone)?.write(data, offset, fua).await
    }

    fn fua(&self) -> Fua {
        self.inner.can_write().map(|ability| ability.fua()).unwrap_or_default()
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanTrim for Layered<E, L> {
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let _changing = self.layer.change(range(offset, length));
        self.inner.can_trim().ok_or_else(gone)?.trim(offset, length, fua).await
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanWriteZeroes for Layered<E, L> {
    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let _changing = self.layer.change(range(offset, length));
        self.inner.can_write_zeroes().ok_or_else(gone)?.write_zeroes(offset, length, mode).await
    }

    fn can_fast_zero(&self) -> bool {
        self.inner.can_write_zeroes().is_some_and(|ability| ability.can_fast_zero())
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanResize for Layered<E, L> {
    async fn resize(&self, size: u64) -> Result<()> {
        let _changing = self.layer.change(resized(self.inner.size(), size));
        self.inner.can_resize().ok_or_else(gone)?.resize(size).await
    }
}

impl<E: AsyncExport, L: Layer> AsyncContexts for Layered<E, L> {
    fn list(&self) -> Vec<ContextInfo> {
        let mut contexts = self.layer.contexts(self.inner.can_extents().is_some());
        contexts.extend(self.inner.contexts().map(|own| own.list()).unwrap_or_default());
        contexts
    }

    fn find(&self, query: &str) -> Option<ContextInfo> {
        self.inner.contexts()?.find(query)
    }

    async fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Extent>,
    ) -> Result<()> {
        match self.layer.source(context) {
            Source::Layer => self.layer.status(context, offset, length, visit),
            Source::Inner => {
                let contexts = self.inner.contexts().ok_or_else(no_such_context)?;
                contexts.status(context, offset, length, visit).await
            }
            Source::Extents(status) => {
                let extents = self.inner.can_extents().ok_or_else(no_such_context)?;
                let mut visit = |run: crate::export::Allocation| {
                    visit(Extent { length: run.length, status: status(run) })
                };
                extents.extents(offset, length, &mut visit).await
            }
        }
    }

    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        match (self.layer.source(context), self.inner.contexts()) {
            (Source::Inner, Some(contexts)) => contexts.join(context, one, other),
            (Source::Extents(_), _) => one.max(other),
            (Source::Layer | Source::Inner, _) => one | other,
        }
    }
}
