//! Exports that consist of another one, of either kind, with something changed.
//!
//! A [`Layer`] says what is changed, once; [`Layered`] puts it around an [`Export`] (`layer/blocking.rs`) and around an
//! [`AsyncExport`](super::AsyncExport) (`layer/asynchronous.rs`).

mod asynchronous;
mod blocking;
#[cfg(test)]
mod tests;

use core::ops::{ControlFlow, Range};

use nbd_proto::{BlockSize, ContextInfo, Extent};

use super::contexts::no_such_context;
use super::{Allocation, ExportError, Result};

/// What a wrapper changes of the export inside. The defaults change nothing.
pub trait Layer: Send + Sync + 'static {
    /// Whether the abilities to write, trim, zero and resize stay.
    const WRITABLE: bool = true;

    /// Whether [`change`](Self::change) does anything.
    const OBSERVES: bool = false;

    /// The size, given that of the export inside.
    fn size(&self, inner: u64) -> u64 {
        inner
    }

    /// The size constraints.
    fn block_size(&self, inner: BlockSize) -> BlockSize {
        inner
    }

    /// Whether clients that don't ask for the constraints are refused.
    fn block_size_required(&self, inner: bool) -> bool {
        inner
    }

    /// A range is about to change. What this gives is dropped after the change, however it ended.
    fn change(&self, range: Range<u64>) -> impl Send {
        let _ = range;
    }

    /// The metadata contexts that come before those of the export inside, which reports extents or not.
    fn contexts(&self, extents: bool) -> Vec<ContextInfo> {
        let _ = extents;
        Vec::new()
    }

    /// Where the status in a metadata context comes from.
    fn source(&self, context: &str) -> Source {
        let _ = context;
        Source::Inner
    }

    /// Reports the status in a context whose source is [`Source::Layer`].
    fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let _ = (context, offset, length, visit);
        Err(no_such_context())
    }
}

/// Where the status in a metadata context comes from, and how that of a block with parts of both is found.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Source {
    /// From the export inside.
    Inner,
    /// From its extents, by this mapping; the larger status wins.
    Extents(fn(Allocation) -> u64),
    /// From the layer; bits of either are set.
    Layer,
}

/// An export in a layer: see the wrappers, such as [`ReadOnly`](super::ReadOnly).
#[derive(Clone, Copy, Debug, Default)]
pub struct Layered<E, L> {
    pub(super) inner: E,
    pub(super) layer: L,
}

impl<E, L> Layered<E, L> {
    /// The export inside, without the layer.
    pub fn into_inner(self) -> E {
        self.inner
    }
}

impl<E, L> AsRef<E> for Layered<E, L> {
    fn as_ref(&self) -> &E {
        &self.inner
    }
}

/// The error of an ability that an export had when it was asked, and has no more.
fn gone() -> ExportError {
    ExportError::io("the export can't do that any more")
}

/// A resize changes what lies between the sizes.
const fn resized(old: u64, new: u64) -> Range<u64> {
    if old < new { old..new } else { new..old }
}

/// The range of a change, wherever it may be.
const fn range(offset: u64, length: u64) -> Range<u64> {
    offset..offset.saturating_add(length)
}
