//! A layer around an export that may block.

use core::ops::ControlFlow;

use nbd_proto::{ContextInfo, Extent};

use super::{Layer, Layered, Source, gone, range, resized};
use crate::export::contexts::no_such_context;
use crate::export::forward::forward;
use crate::export::{
    BlockSize, Body, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite, CanWriteZeroes,
    ClientInfo, CloseReason, Contexts, Export, Fua, Page, Result, TakesPages, ZeroMode,
};

impl<E: Export, L: Layer> Export for Layered<E, L> {
    forward! { self, self.inner;
        refresh read never_blocks read_body try_read description rotational multi_conn client_entered client_left
        can_flush can_cache can_extents
    }

    fn size(&self) -> u64 {
        self.layer.size(self.inner.size())
    }

    fn block_size(&self) -> BlockSize {
        self.layer.block_size(self.inner.block_size())
    }

    fn block_size_required(&self) -> bool {
        self.layer.block_size_required(self.inner.block_size_required())
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        let inner = self.inner.can_write().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn can_trim(&self) -> Option<&dyn CanTrim> {
        let inner = self.inner.can_trim().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        let inner = self.inner.can_write_zeroes().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn can_resize(&self) -> Option<&dyn CanResize> {
        let inner = self.inner.can_resize().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn contexts(&self) -> Option<&dyn Contexts> {
        Some(self)
    }
}

impl<E: Export, L: Layer> CanWrite for Layered<E, L> {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let _changing = self.layer.change(range(offset, data.len() as u64));
        self.inner.can_write().ok_or_else(gone)?.write(data, offset, fua)
    }

    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        let _changing = self.layer.change(range(offset, data.len() as u64));
        self.inner.can_write()?.try_write(data, offset, fua)
    }

    fn fua(&self) -> Fua {
        self.inner.can_write().map(CanWrite::fua).unwrap_or_default()
    }

    fn takes_pages(&self) -> Option<&dyn TakesPages> {
        self.inner.can_write()?.takes_pages().map(|_| self as &dyn TakesPages)
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
        let _changing = self.layer.change(range(offset, page.len() as u64));
        let takes = self.inner.can_write().and_then(CanWrite::takes_pages);
        takes.ok_or_else(gone)?.write_page(page, offset)
    }
}

impl<E: Export, L: Layer> CanTrim for Layered<E, L> {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let _changing = self.layer.change(range(offset, length));
        self.inner.can_trim().ok_or_else(gone)?.trim(offset, length, fua)
    }
}

impl<E: Export, L: Layer> CanWriteZeroes for Layered<E, L> {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let _changing = self.layer.change(range(offset, length));
        self.inner.can_write_zeroes().ok_or_else(gone)?.write_zeroes(offset, length, mode)
    }

    fn can_fast_zero(&self) -> bool {
        self.inner.can_write_zeroes().is_some_and(CanWriteZeroes::can_fast_zero)
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
        contexts.extend(self.inner.contexts().map(Contexts::list).unwrap_or_default());
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
        match self.layer.source(context) {
            Source::Layer => self.layer.status(context, offset, length, visit),
            Source::Inner => {
                let contexts = self.inner.contexts().ok_or_else(no_such_context)?;
                contexts.status(context, offset, length, visit)
            }
            Source::Extents(status) => {
                let extents = self.inner.can_extents().ok_or_else(no_such_context)?;
                extents.extents(offset, length, &mut |run| {
                    visit(Extent { length: run.length, status: status(run) })
                })
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
