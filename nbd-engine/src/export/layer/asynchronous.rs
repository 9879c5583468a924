//! A layer around an export whose work is a future.

use core::ops::ControlFlow;
use core::time::Duration;
use std::time::Instant;

use nbd_proto::{Command, ContextInfo, Extent};

use super::alike::around;
use super::{Admit, For, Layer, Layered, Source, cut, gone, range, resized};
use crate::export::contexts::no_such_context;
use crate::export::forward::forward;
use crate::export::{
    Allocation, AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim,
    AsyncCanWrite, AsyncCanWriteZeroes, AsyncContexts, AsyncExport, BlockSize, Body, ClientInfo,
    CloseReason, Fua, Result, Visitor, ZeroMode,
};

impl<E: AsyncExport, L: Layer> AsyncExport for Layered<E, L> {
    forward! { self, self.inner; description rotational multi_conn }
    around! { self }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let offset = self.moved(|| self.inner.size(), offset, buffer.len() as u64, For::Reading)?;
        self.inner.read(buffer, offset).await
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        let offset = self.moved(|| self.inner.size(), offset, length as u64, For::Reading)?;
        self.inner.read_body(body, length, offset).await
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
        self.inner.can_cache().map(|_| self)
    }

    fn can_extents(&self) -> Option<impl AsyncCanExtents> {
        self.inner.can_extents().map(|_| self)
    }

    fn contexts(&self) -> Option<impl AsyncContexts> {
        Some(self)
    }

    fn can_resize(&self) -> Option<impl AsyncCanResize> {
        self.inner.can_resize().filter(|_| L::WRITABLE && L::RESIZABLE).map(|_| self)
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanWrite for Layered<E, L> {
    async fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, data.len() as u64, For::Writing)?;
        let _changing = self.layer.change(range(offset, data.len() as u64));
        self.inner.can_write().ok_or_else(gone)?.write(data, inner, fua).await
    }

    fn fua(&self) -> Fua {
        self.inner.can_write().map(|ability| ability.fua()).unwrap_or_default()
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanTrim for Layered<E, L> {
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, length, For::Reading)?;
        let _changing = self.layer.change(range(offset, length));
        self.inner.can_trim().ok_or_else(gone)?.trim(inner, length, fua).await
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanWriteZeroes for Layered<E, L> {
    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, length, For::Writing)?;
        let _changing = self.layer.change(range(offset, length));
        self.inner.can_write_zeroes().ok_or_else(gone)?.write_zeroes(inner, length, mode).await
    }

    fn can_fast_zero(&self) -> bool {
        self.inner.can_write_zeroes().is_some_and(|ability| ability.can_fast_zero())
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanCache for Layered<E, L> {
    async fn cache(&self, offset: u64, length: u64) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, length, For::Reading)?;
        self.inner.can_cache().ok_or_else(gone)?.cache(inner, length).await
    }
}

impl<E: AsyncExport, L: Layer> AsyncCanExtents for Layered<E, L> {
    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, length, For::Reading)?;
        let mut left = self.bytes_left(|| self.inner.size(), offset);
        let extents = self.inner.can_extents().ok_or_else(gone)?;
        let mut visit = |run: Allocation| match cut(&mut left, run.length) {
            Some(length) => visit(Allocation { length, ..run }),
            None => ControlFlow::Break(()),
        };
        extents.extents(inner, length, &mut visit).await
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
        let inner = self.inner.contexts().map(|own| own.list()).unwrap_or_default();
        contexts.retain(|own| inner.iter().all(|other| other.name() != own.name()));
        contexts.extend(inner);
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
        let source = self.source(context, || self.inner.contexts().map(|own| own.list()));
        if let Source::Layer = source {
            return self.layer.status(context, offset, length, visit);
        }
        let inner = self.moved(|| self.inner.size(), offset, length, For::Reading)?;
        let mut left = self.bytes_left(|| self.inner.size(), offset);
        let mut visit = |length, status| match cut(&mut left, length) {
            Some(length) => visit(Extent { length, status }),
            None => ControlFlow::Break(()),
        };
        if let Source::Extents(status) = source {
            let extents = self.inner.can_extents().ok_or_else(no_such_context)?;
            let mut visit = |run: Allocation| visit(run.length, status(run));
            return extents.extents(inner, length, &mut visit).await;
        }
        let contexts = self.inner.contexts().ok_or_else(no_such_context)?;
        let mut visit = |run: Extent| visit(run.length, run.status);
        contexts.status(context, inner, length, &mut visit).await
    }

    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        match (
            self.source(context, || self.inner.contexts().map(|own| own.list())),
            self.inner.contexts(),
        ) {
            (Source::Inner, Some(contexts)) => contexts.join(context, one, other),
            (Source::Extents(_), _) => one.max(other),
            (Source::Layer | Source::Inner, _) => one | other,
        }
    }
}
