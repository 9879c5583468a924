//! An export with size constraints of one's choice.

use super::layer::{Layer, Layered};
use super::{BlockSize, Export};

/// Another export, of either kind, with other size constraints: for media that want aligned requests although the
/// export that serves them does not care, and for testing clients.
///
/// Clients learn the constraints; requests that break them are refused with `EINVAL` and change nothing. A
/// size that is not a multiple of the minimum is rounded down to one, since no request could reach the rest:
/// [`cut_off`](Self::cut_off) says how much that is.
///
/// ```
/// use nbd_engine::export::{BlockSize, Export, Memory, WithBlockSize};
///
/// let disk = Memory::new((1 << 20) + 100)?;
/// let disk = WithBlockSize::new(disk, BlockSize::new(4096, 65536, 1 << 20)?).required(true);
/// assert_eq!(disk.size(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type WithBlockSize<E> = Layered<E, Constraints>;

/// The layer of [`WithBlockSize`].
#[derive(Clone, Copy, Debug)]
pub struct Constraints {
    block_size: BlockSize,
    required: bool,
}

impl Layer for Constraints {
    fn size(&self, inner: u64) -> u64 {
        // The minimum is a power of two.
        inner & !u64::from(self.block_size.minimum() - 1)
    }

    fn block_size(&self, _inner: BlockSize) -> BlockSize {
        self.block_size
    }

    fn block_size_required(&self, _inner: bool) -> bool {
        self.required
    }
}

impl<E: Export> WithBlockSize<E> {
    /// Bytes at the end of the inner export that can't be reached: fewer than the minimum block size. Zero, unless the
    /// minimum does not divide the size.
    pub fn cut_off(&self) -> u64 {
        // The minimum is a power of two.
        self.inner.size() & u64::from(self.layer.block_size.minimum() - 1)
    }
}

impl<E> WithBlockSize<E> {
    /// Gives `inner` these constraints in place of its own. The new minimum should be a multiple of that of `inner`,
    /// which otherwise gets requests that are not aligned for it.
    pub const fn new(inner: E, block_size: BlockSize) -> Self {
        Self { inner, layer: Constraints { block_size, required: false } }
    }

    /// Whether clients that don't ask for the constraints are refused. Default `false`: their requests are checked all
    /// the same.
    #[must_use]
    pub fn required(mut self, required: bool) -> Self {
        self.layer.required = required;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Memory;

    #[test]
    fn the_constraints_are_others_and_the_rest_is_as_it_was() {
        let sizes = BlockSize::new(512, 8192, 1 << 20).unwrap();
        let disk = WithBlockSize::new(Memory::new(1000).unwrap(), sizes);
        assert_eq!(
            (disk.size(), disk.block_size(), disk.block_size_required()),
            (512, sizes, false)
        );
        assert_eq!(disk.cut_off(), 1000 - 512);
        assert!(disk.required(true).block_size_required());

        let disk = WithBlockSize::new(Memory::new(4096).unwrap(), sizes);
        disk.can_write().unwrap().write(b"x", 0, false).unwrap();
        disk.can_resize().unwrap().resize(8192).unwrap();
        assert_eq!((disk.size(), disk.cut_off()), (8192, 0));
        assert!(disk.never_blocks() && disk.can_extents().is_some());
        assert_eq!(disk.into_inner().allocated_bytes(), Memory::PAGE_SIZE);
    }
}
