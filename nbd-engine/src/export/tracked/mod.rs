//! An export that knows what has changed.

mod asynchronous;
mod bitmap;
#[cfg(test)]
mod tests;
mod tracker;

use core::ops::{ControlFlow, Range};
use std::sync::Arc;

use nbd_proto::{ContextInfo, Extent};

use super::contexts::no_such_context;
use super::forward::forward;
use super::{
    BlockSize, Body, Caches, Contexts, Export, ExportError, Extents, Flushes, Fua, Page, Resizes,
    Result, TakesPages, Trims, Writes, WritesZeroes, ZeroMode,
};
pub use tracker::{BitmapError, Tracker};

/// Another export, of either kind, whose changes are recorded in bitmaps, so that a backup needs to copy no more than
/// those.
///
/// Each bitmap of the [`Tracker`] is a metadata context `qemu:dirty-bitmap:NAME` for clients: status 1 is dirty, 0 is
/// clean. A block is dirty from before the first byte of it changes, so that whatever a crash or an error leaves half
/// done is dirty, and stays so until the bitmap is cleared. Bitmaps live in memory and end with the process.
///
/// Only what goes through this object is recorded.
///
/// ```
/// use nbd_engine::export::{Export, Memory, Tracked};
///
/// let disk = Tracked::new(Memory::new(1 << 30)?);
/// disk.tracker().start("monday")?;
/// disk.writes().unwrap().write(b"x", 100_000, false)?;
/// assert_eq!(disk.tracker().dirty("monday", 0..1 << 30), Some(vec![65536..131_072]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tracked<E> {
    inner: E,
    tracker: Arc<Tracker>,
}

impl<E> Tracked<E> {
    /// Bytes of a block, unless told otherwise: 64 KiB, as with qemu.
    pub const GRANULARITY: u64 = 64 << 10;

    /// Records changes of `inner`, in no bitmap yet.
    pub fn new(inner: E) -> Self {
        Self::with_granularity(inner, Self::GRANULARITY)
    }

    /// The same with blocks of about `granularity` bytes: rounded up to a power of two from 512 to 2 GiB.
    pub fn with_granularity(inner: E, granularity: u64) -> Self {
        let shift = granularity.clamp(512, 1 << 31).next_power_of_two().trailing_zeros();
        Self { inner, tracker: Arc::new(Tracker::new(shift)) }
    }

    /// The bitmaps. Keep a clone of it to use them while the export is served.
    pub const fn tracker(&self) -> &Arc<Tracker> {
        &self.tracker
    }

    /// The export by itself, unrecorded.
    pub fn into_inner(self) -> E {
        self.inner
    }

    /// A resize changes what lies between the sizes.
    fn resized(&self, old: u64, new: u64) -> Range<u64> {
        old.min(new)..old.max(new)
    }
}

impl<E> AsRef<E> for Tracked<E> {
    fn as_ref(&self) -> &E {
        &self.inner
    }
}

/// The range of a change, wherever it may be.
const fn range(offset: u64, length: u64) -> Range<u64> {
    offset..offset.saturating_add(length)
}

/// An ability that an export had when it was asked, and has no more.
fn gone() -> ExportError {
    ExportError::io("the export can't do that any more")
}

impl<E: Export> Export for Tracked<E> {
    forward! { self, self.inner;
        size refresh read never_blocks read_body try_read block_size block_size_required description rotational multi_conn
        flushes caches extents
    }

    fn writes(&self) -> Option<&dyn Writes> {
        self.inner.writes().map(|_| self as &dyn Writes)
    }

    fn trims(&self) -> Option<&dyn Trims> {
        self.inner.trims().map(|_| self as &dyn Trims)
    }

    fn writes_zeroes(&self) -> Option<&dyn WritesZeroes> {
        self.inner.writes_zeroes().map(|_| self as &dyn WritesZeroes)
    }

    fn contexts(&self) -> Option<&dyn Contexts> {
        Some(self)
    }

    fn resizes(&self) -> Option<&dyn Resizes> {
        self.inner.resizes().map(|_| self as &dyn Resizes)
    }
}

impl<E: Export> Writes for Tracked<E> {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        let _marked = self.tracker.mark(range(offset, data.len() as u64));
        self.inner.writes().ok_or_else(gone)?.write(data, offset, fua)
    }

    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        let _marked = self.tracker.mark(range(offset, data.len() as u64));
        self.inner.writes()?.try_write(data, offset, fua)
    }

    fn fua(&self) -> Fua {
        self.inner.writes().map(Writes::fua).unwrap_or_default()
    }

    fn takes_pages(&self) -> Option<&dyn TakesPages> {
        self.inner.writes()?.takes_pages().map(|_| self as &dyn TakesPages)
    }
}

impl<E: Export> TakesPages for Tracked<E> {
    fn page_size(&self) -> usize {
        let takes = self.inner.writes().and_then(Writes::takes_pages);
        takes.map_or(0, TakesPages::page_size)
    }

    fn new_page(&self) -> Option<Page> {
        self.inner.writes()?.takes_pages()?.new_page()
    }

    fn write_page(&self, page: Page, offset: u64) -> Result<Option<Page>> {
        let _marked = self.tracker.mark(range(offset, page.len() as u64));
        let takes = self.inner.writes().and_then(Writes::takes_pages);
        takes.ok_or_else(gone)?.write_page(page, offset)
    }
}

impl<E: Export> Trims for Tracked<E> {
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()> {
        let _marked = self.tracker.mark(range(offset, length));
        self.inner.trims().ok_or_else(gone)?.trim(offset, length, fua)
    }
}

impl<E: Export> WritesZeroes for Tracked<E> {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let _marked = self.tracker.mark(range(offset, length));
        self.inner.writes_zeroes().ok_or_else(gone)?.write_zeroes(offset, length, mode)
    }
}

impl<E: Export> Resizes for Tracked<E> {
    fn resize(&self, size: u64) -> Result<()> {
        let _marked = self.tracker.mark(self.resized(self.inner.size(), size));
        self.inner.resizes().ok_or_else(gone)?.resize(size)
    }
}

impl<E: Export> Contexts for Tracked<E> {
    fn list(&self) -> Vec<ContextInfo> {
        let mut contexts = self.tracker.contexts();
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
        if Tracker::is_context(context) {
            return self.tracker.status(context, offset, length, visit);
        }
        let contexts = self.inner.contexts().ok_or_else(no_such_context)?;
        contexts.status(context, offset, length, visit)
    }

    /// A block with something dirty in it is dirty.
    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        match self.inner.contexts() {
            Some(contexts) if !Tracker::is_context(context) => contexts.join(context, one, other),
            _ => one | other,
        }
    }
}
