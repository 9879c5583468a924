//! An export that can't be written.

use super::layer::{Layer, Layered};

/// Another export, of either kind, without its abilities to write, trim, zero and resize.
///
/// Whoever else has the inner export may still write it; flushing covers that, and is kept.
///
/// ```
/// use nbd_engine::export::{Export, Memory, ReadOnly};
///
/// let disk = ReadOnly::new(Memory::new(1 << 20)?);
/// assert_eq!(disk.size(), 1 << 20);
/// assert!(disk.can_write().is_none());
/// # Ok::<(), nbd_engine::export::TooLarge>(())
/// ```
pub type ReadOnly<E> = Layered<E, NoWriting>;

/// The layer of [`ReadOnly`].
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct NoWriting;

impl Layer for NoWriting {
    const WRITABLE: bool = false;
}

impl<E> ReadOnly<E> {
    /// Takes the abilities to write away from `inner`.
    pub const fn new(inner: E) -> Self {
        Self { inner, layer: NoWriting }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{Body, Export, Memory};

    #[test]
    fn nothing_that_writes_is_left() {
        let disk = ReadOnly::new(Memory::new(1 << 20).unwrap());
        assert!(disk.can_write().is_none());
        assert!(disk.can_trim().is_none());
        assert!(disk.can_write_zeroes().is_none());
        assert!(disk.can_resize().is_none());
    }

    #[test]
    fn the_rest_is_as_it_was() {
        let memory = Memory::new(1 << 20).unwrap();
        memory.can_write().unwrap().write(b"data", 5, false).unwrap();
        let disk = ReadOnly::new(memory);
        let mut body = Body::default();
        disk.read_body(&mut body, 4, 5).unwrap();
        assert_eq!(body.buffer(), b"data");
        assert_eq!(disk.size(), 1 << 20);
        assert!(disk.never_blocks() && disk.multi_conn());
        assert!(Export::can_extents(&disk).is_some() && disk.can_cache().is_some());
        assert!(disk.can_flush().is_some());
        assert_eq!(disk.into_inner().allocated_bytes(), Memory::PAGE_SIZE);
    }
}
