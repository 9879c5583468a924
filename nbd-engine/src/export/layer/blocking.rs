//! A layer around an export that may block.

use core::ops::ControlFlow;

use core::time::Duration;
use std::time::Instant;

use nbd_proto::{Command, ContextInfo, Extent};

use super::alike::around;
use super::{Admit, For, Layer, Layered, Source, cut, gone, range, resized};
use crate::export::contexts::no_such_context;
use crate::export::forward::forward;
use crate::export::{
    Allocation, BlockSize, Body, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite,
    CanWriteZeroes, ClientInfo, CloseReason, Contexts, Export, Fua, Page, Result, TakesPages,
    ZeroMode,
};

impl<E: Export, L: Layer> Export for Layered<E, L> {
    forward! { self, self.inner; refresh never_blocks description rotational multi_conn can_flush }
    around! { self }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let offset = self.moved(|| self.inner.size(), offset, buffer.len() as u64, For::Reading)?;
        self.inner.read(buffer, offset)
    }

    fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        let offset = self.moved(|| self.inner.size(), offset, length as u64, For::Reading)?;
        self.inner.read_body(body, length, offset)
    }

    fn try_read(&self, body: &mut Body, length: usize, offset: u64) -> Option<Result<()>> {
        match self.moved(|| self.inner.size(), offset, length as u64, For::Reading) {
            Ok(offset) => self.inner.try_read(body, length, offset),
            Err(error) => Some(Err(error)),
        }
    }

    fn can_cache(&self) -> Option<&dyn CanCache> {
        let inner = self.inner.can_cache()?;
        Some(if L::MOVES { self } else { inner })
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        let inner = self.inner.can_extents()?;
        Some(if L::MOVES { self } else { inner })
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        let inner = self.inner.can_write().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES || L::MOVES { self } else { inner })
    }

    fn can_trim(&self) -> Option<&dyn CanTrim> {
        let inner = self.inner.can_trim().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES || L::MOVES { self } else { inner })
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        let inner = self.inner.can_write_zeroes().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES || L::MOVES { self } else { inner })
    }

    fn can_resize(&self) -> Option<&dyn CanResize> {
        let inner = self.inner.can_resize().filter(|_| L::WRITABLE && L::RESIZABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn contexts(&self) -> Option<&dyn Contexts> {
        Some(self)
    }
}

impl<E: Export, L: Layer> CanWrite for Layered<E, L> {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, data.len() as u64, For::Writing)?;
        let _changing = self.layer.change(range(offset, data.len() as u64));
        self.inner.can_write().ok_or_else(gone)?.write(data, inner, fua)
    }

    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        let inner = match self.moved(|| self.inner.size(), offset, data.len() as u64, For::Writing)
        {
            Ok(inner) => inner,
            Err(error) => return Some(Err(error)),
        };
        let _changing = self.layer.change(range(offset, data.len() as u64));
        self.inner.can_write()?.try_write(data, inner, fua)
    }

    fn fua(&self) -> Fua {
        self.inner.can_write().map(CanWrite::fua).unwrap_or_default()
    }

    fn takes_pages(&self) -> Option<&dyn TakesPages> {
        let takes = self.inner.can_write()?.takes_pages()?;
        // Pages that begin within pages of the export inside are none to it.
        let aligned = !L::MOVES || self.layer.start().is_multiple_of(takes.page_size() as u64);
        aligned.then_some(self)
    }
}

impl<E: Export, L: Layer> TakesPages for Layered<E, L> {
    fn page_size(&self) -> usize {
        let takes = self.inner.can_write().and_then(CanWrite::takes_pages);
        takes.map_or(0, TakesPages::page_size)
    }

    fn new_page(&self) -> Option<Page> {
        self.inner.can_write()?.takes_pages()?.new_page()
    }

    fn write_page(&self, page: Page, offset: u64) -> Result<Option<Page>> {
        let inner = self.moved(|| self.inner.size(), offset, page.len() as u64, For::Writing)?;
        let _changing = self.layer.change(range(offset, page.len() as u64));
        let takes = self.inner.can_write().and_then(CanWrite::takes_pages);
        takes.ok_or_else(gone)?.write_page(page, inner)
    }
}

impl<E: Export, L: Layer> CanTrim for Layered<E, L> {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, length, For::Reading)?;
        let _changing = self.layer.change(range(offset, length));
        self.inner.can_trim().ok_or_else(gone)?.trim(inner, length, fua)
    }
}

impl<E: Export, L: Layer> CanWriteZeroes for Layered<E, L> {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, length, For::Writing)?;
        let _changing = self.layer.change(range(offset, length));
        self.inner.can_write_zeroes().ok_or_else(gone)?.write_zeroes(inner, length, mode)
    }

    fn can_fast_zero(&self) -> bool {
        self.inner.can_write_zeroes().is_some_and(CanWriteZeroes::can_fast_zero)
    }
}

impl<E: Export, L: Layer> CanCache for Layered<E, L> {
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, length, For::Reading)?;
        self.inner.can_cache().ok_or_else(gone)?.cache(inner, length)
    }
}

impl<E: Export, L: Layer> CanExtents for Layered<E, L> {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        let inner = self.moved(|| self.inner.size(), offset, length, For::Reading)?;
        let mut left = self.bytes_left(|| self.inner.size(), offset);
        let extents = self.inner.can_extents().ok_or_else(gone)?;
        extents.extents(inner, length, &mut |run| match cut(&mut left, run.length) {
            Some(length) => visit(Allocation { length, ..run }),
            None => ControlFlow::Break(()),
        })
    }
}

impl<E: Export, L: Layer> CanResize for Layered<E, L> {
    fn resize(&self, size: u64) -> Result<()> {
        let _changing = self.layer.change(resized(self.inner.size(), size));
        self.inner.can_resize().ok_or_else(gone)?.resize(size)
    }
}

impl<E: Export, L: Layer> Contexts for Layered<E, L> {
    fn list(&self) -> Vec<ContextInfo> {
        let mut contexts = self.layer.contexts(self.inner.can_extents().is_some());
        let inner = self.inner.contexts().map(Contexts::list).unwrap_or_default();
        contexts.retain(|own| inner.iter().all(|other| other.name() != own.name()));
        contexts.extend(inner);
        contexts
    }

    fn find(&self, query: &str) -> Option<ContextInfo> {
        self.inner.contexts()?.find(query)
    }

    fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
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
            return extents.extents(inner, length, &mut |run| visit(run.length, status(run)));
        }
        let contexts = self.inner.contexts().ok_or_else(no_such_context)?;
        contexts.status(context, inner, length, &mut |run| visit(run.length, run.status))
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
