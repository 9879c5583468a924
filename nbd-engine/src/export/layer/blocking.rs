//! A layer around an export that may block.

use core::ops::ControlFlow;

use nbd_proto::{ContextInfo, Extent};

use super::{Layer, Layered, Source, gone, range, resized};
use crate::export::contexts::no_such_context;
use crate::export::forward::forward;
use crate::export::{
    BlockSize, Body, Caches, ClientInfo, CloseReason, Contexts, Export, Extents, Flushes, Fua,
    Page, Resizes, Result, TakesPages, Trims, Writes, WritesZeroes, ZeroMode,
};

impl<E: Export, L: Layer> Export for Layered<E, L> {
    forward! { self, self.inner;
        refresh read never_blocks read_body try_read description rotational multi_conn client_entered client_left
        flushes caches extents
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

    fn writes(&self) -> Option<&dyn Writes> {
        let inner = self.inner.writes().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn trims(&self) -> Option<&dyn Trims> {
        let inner = self.inner.trims().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn writes_zeroes(&self) -> Option<&dyn WritesZeroes> {
        let inner = self.inner.writes_zeroes().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn resizes(&self) -> Option<&dyn Resizes> {
        let inner = self.inner.resizes().filter(|_| L::WRITABLE)?;
        Some(if L::OBSERVES { self } else { inner })
    }

    fn contexts(&self) -> Option<&dyn Contexts> {
        Some(self)
    }
}

impl<E: Export, L: Layer> Writes for Layered<E, L> {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let _changing = self.layer.change(range(offset, data.len() as u64));
        self.inner.writes().ok_or_else(gone)?.write(data, offset, fua)
    }

    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        let _changing = self.layer.change(range(offset, data.len() as u64));
        self.inner.writes()?.try_write(data, offset, fua)
    }

    fn fua(&self) -> Fua {
        self.inner.writes().map(Writes::fua).unwrap_or_default()
    }

    fn takes_pages(&self) -> Option<&dyn TakesPages> {
        self.inner.writes()?.takes_pages().map(|_| self as &dyn TakesPages)
    }
}

impl<E: Export, L: Layer> TakesPages for Layered<E, L> {
    fn page_size(&self) -> usize {
        let takes = self.inner.writes().and_then(Writes::takes_pages);
        takes.map_or(0, TakesPages::page_size)
    }

    fn new_page(&self) -> Option<Page> {
        self.inner.writes()?.takes_pages()?.new_page()
    }

    fn write_page(&self, page: Page, offset: u64) -> Result<Option<Page>> {
        let _changing = self.layer.change(range(offset, page.len() as u64));
        let takes = self.inner.writes().and_then(Writes::takes_pages);
        takes.ok_or_else(gone)?.write_page(page, offset)
    }
}

impl<E: Export, L: Layer> Trims for Layered<E, L> {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let _changing = self.layer.change(range(offset, length));
        self.inner.trims().ok_or_else(gone)?.trim(offset, length, fua)
    }
}

impl<E: Export, L: Layer> WritesZeroes for Layered<E, L> {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let _changing = self.layer.change(range(offset, length));
        self.inner.writes_zeroes().ok_or_else(gone)?.write_zeroes(offset, length, mode)
    }

    fn can_fast_zero(&self) -> bool {
        self.inner.writes_zeroes().is_some_and(WritesZeroes::can_fast_zero)
    }
}

impl<E: Export, L: Layer> Resizes for Layered<E, L> {
    fn resize(&self, size: u64) -> Result<()> {
        let _changing = self.layer.change(resized(self.inner.size(), size));
        self.inner.resizes().ok_or_else(gone)?.resize(size)
    }
}

impl<E: Export, L: Layer> Contexts for Layered<E, L> {
    fn list(&self) -> Vec<ContextInfo> {
        let mut contexts = self.layer.contexts(self.inner.extents().is_some());
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
                let extents = self.inner.extents().ok_or_else(no_such_context)?;
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
