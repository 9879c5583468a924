//! `qemu:allocation-depth`.

use core::ops::ControlFlow;

use nbd_proto::{ContextInfo, Extent};

use super::contexts::no_such_context;
use super::forward::forward;
use super::{
    BlockSize, Body, Caches, Contexts, Export, Extents, Flushes, Resizes, Result, Trims, Writes,
    WritesZeroes,
};

/// Another export with the metadata context `qemu:allocation-depth` beside those that it has.
///
/// The context tells how deep in a chain of images the data of a range is found: 0 where no image has any, 1 where the
/// export itself has. Deeper layers are a matter of formats that have them. It comes from [`Extents`]: without that
/// ability the context is not there.
///
/// ```
/// use nbd_engine::export::{Contexts, Export, Memory, WithAllocationDepth};
///
/// let disk = WithAllocationDepth::new(Memory::new(1 << 20)?);
/// assert_eq!(disk.contexts().unwrap().list()[0].name(), "qemu:allocation-depth");
/// # Ok::<(), nbd_engine::export::TooLarge>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct WithAllocationDepth<E> {
    inner: E,
}

/// The name of the context.
const NAME: &str = "qemu:allocation-depth";

impl<E: Export> WithAllocationDepth<E> {
    /// Adds the context to `inner`.
    pub const fn new(inner: E) -> Self {
        Self { inner }
    }

    /// The export without the context.
    pub fn into_inner(self) -> E {
        self.inner
    }
}

impl<E> AsRef<E> for WithAllocationDepth<E> {
    fn as_ref(&self) -> &E {
        &self.inner
    }
}

impl<E: Export> Export for WithAllocationDepth<E> {
    forward! { self, self.inner;
        size refresh read never_blocks read_body try_read block_size block_size_required description rotational multi_conn
        writes flushes trims writes_zeroes caches extents resizes
    }

    fn contexts(&self) -> Option<&dyn Contexts> {
        Some(self)
    }
}

impl<E: Export> Contexts for WithAllocationDepth<E> {
    fn list(&self) -> Vec<ContextInfo> {
        let own = self.inner.extents().and_then(|_| ContextInfo::new(NAME));
        let inner = self.inner.contexts().map(Contexts::list).unwrap_or_default();
        own.into_iter().chain(inner).collect()
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
        if context != NAME {
            let contexts = self.inner.contexts().ok_or_else(no_such_context)?;
            return contexts.status(context, offset, length, visit);
        }
        let extents = self.inner.extents().ok_or_else(no_such_context)?;
        extents.extents(offset, length, &mut |run| {
            visit(Extent { length: run.length, status: u64::from(!run.hole) })
        })
    }

    /// A block with data in it is allocated.
    fn join(&self, context: &str, one: u64, other: u64) -> u64 {
        match self.inner.contexts() {
            Some(contexts) if context != NAME => contexts.join(context, one, other),
            _ => one.max(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Memory;

    #[test]
    fn what_is_allocated_has_a_depth_of_one_and_holes_of_zero() {
        let memory = Memory::new(4 * Memory::PAGE_SIZE).unwrap();
        memory.writes().unwrap().write(b"x", Memory::PAGE_SIZE, false).unwrap();
        let disk = WithAllocationDepth::new(memory);
        let mut found = Vec::new();
        disk.status(NAME, 0, disk.size(), &mut |run| {
            found.push((run.length / Memory::PAGE_SIZE, run.status));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(found, [(1, 0), (1, 1), (2, 0)]);
        assert_eq!(disk.join(NAME, 0, 1), 1);
        let other = disk.status("x-other:a", 0, 1, &mut |_| ControlFlow::Continue(()));
        assert!(other.is_err());
    }
}
