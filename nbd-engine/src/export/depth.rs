//! `qemu:allocation-depth`.

use nbd_proto::ContextInfo;

use super::layer::{Layer, Layered, Source};

/// Another export, of either kind, with the metadata context `qemu:allocation-depth` beside those that it has.
///
/// The context reports how deep in a chain of images the data of a range is found: 0 where no image has any, 1 where
/// the export itself has. Deeper layers are a matter of formats that have them. It comes from
/// [`CanExtents`](super::CanExtents): without that ability the context is not there.
///
/// ```
/// use nbd_engine::export::{Contexts, Export, Memory, WithAllocationDepth};
///
/// let disk = WithAllocationDepth::new(Memory::new(1 << 20)?);
/// assert_eq!(disk.contexts().unwrap().list()[0].name(), "qemu:allocation-depth");
/// # Ok::<(), nbd_engine::export::TooLarge>(())
/// ```
pub type WithAllocationDepth<E> = Layered<E, AllocationDepth>;

/// The layer of [`WithAllocationDepth`].
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct AllocationDepth;

/// The name of the context.
const NAME: &str = "qemu:allocation-depth";

impl Layer for AllocationDepth {
    fn contexts(&self, extents: bool) -> Vec<ContextInfo> {
        ContextInfo::new(NAME).filter(|_| extents).into_iter().collect()
    }

    /// A block with data in it is allocated.
    fn source(&self, context: &str) -> Source {
        if context == NAME { Source::Extents(|run| u64::from(!run.hole)) } else { Source::Inner }
    }
}

impl<E> WithAllocationDepth<E> {
    /// Adds the context to `inner`.
    pub const fn new(inner: E) -> Self {
        Self { inner, layer: AllocationDepth }
    }
}

#[cfg(test)]
mod tests {
    use core::ops::ControlFlow;

    use super::*;
    use crate::export::{Contexts, Export, Memory};

    #[test]
    fn what_is_allocated_has_a_depth_of_one_and_holes_of_zero() {
        let memory = Memory::new(4 * Memory::PAGE_SIZE).unwrap();
        memory.can_write().unwrap().write(b"x", Memory::PAGE_SIZE, false).unwrap();
        let disk = WithAllocationDepth::new(memory);
        let mut found = Vec::new();
        Contexts::status(&disk, NAME, 0, disk.size(), &mut |run| {
            found.push((run.length / Memory::PAGE_SIZE, run.status));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(found, [(1, 0), (1, 1), (2, 0)]);
        assert_eq!(Contexts::join(&disk, NAME, 0, 1), 1);
        let other = Contexts::status(&disk, "x-other:a", 0, 1, &mut |_| ControlFlow::Continue(()));
        assert!(other.is_err());
    }
}
