//! A part of an export.

use crate::counted;
use core::fmt;

use super::layer::{Layer, Layered};
use super::{AsyncExport, BlockSize, Export};

/// A range of bytes of another export, of either kind, as an export of its own.
///
/// Nothing outside of the range can be read or written through it. Its size can't be changed; a slice that was given no
/// length ends where the export inside does, whose size may change. One that has a length becomes smaller when the
/// export inside ends before it.
///
/// ```
/// use nbd_engine::export::{Export, Memory, Slice};
///
/// let disk = Slice::new(Memory::new(10 << 20)?, 1 << 20, Some(4 << 20))?;
/// assert_eq!(disk.size(), 4 << 20);
/// disk.can_write().unwrap().write(b"x", 0, false)?;
/// let mut byte = [0];
/// disk.as_ref().read(&mut byte, 1 << 20)?;
/// assert_eq!(byte, *b"x");
/// assert!(Slice::new(Memory::new(1 << 20)?, 1 << 20, Some(1)).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Slice<E> = Layered<E, ByteRange>;

/// The layer of [`Slice`].
#[derive(Clone, Copy, Debug)]
pub struct ByteRange {
    offset: u64,
    length: Option<u64>,
}

impl Layer for ByteRange {
    const RESIZABLE: bool = false;
    const MOVES: bool = true;

    fn size(&self, inner: u64) -> u64 {
        let rest = inner.saturating_sub(self.offset);
        self.length.map_or(rest, |length| length.min(rest))
    }

    fn start(&self) -> u64 {
        self.offset
    }
}

impl ByteRange {
    /// Checks the range against the export that it is taken from.
    pub(super) fn new(
        size: u64,
        block_size: BlockSize,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Self, SliceError> {
        let end = offset.checked_add(length.unwrap_or(0));
        if end.is_none_or(|end| end > size) {
            return Err(SliceError::Outside { offset, length, size });
        }
        let block = u64::from(block_size.minimum());
        let aligned = |bytes: u64| bytes.is_multiple_of(block);
        match [offset, length.unwrap_or(0)].into_iter().find(|bytes| !aligned(*bytes)) {
            Some(bytes) => Err(SliceError::Unaligned { bytes, block }),
            None => Ok(Self { offset, length }),
        }
    }
}

impl<E: Export> Slice<E> {
    /// The `length` bytes from `offset` on; to the end if no length is given. Both are multiples of the minimum block
    /// size of `inner`.
    ///
    /// # Errors
    /// When the range does not lie inside of `inner`, or is not aligned.
    pub fn new(inner: E, offset: u64, length: Option<u64>) -> Result<Self, SliceError> {
        let layer = ByteRange::new(inner.size(), inner.block_size(), offset, length)?;
        Ok(Self::with(inner, layer))
    }
}

impl<E: AsyncExport> Slice<E> {
    /// [`new`](Self::new) for an export whose work is a future.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn new_async(inner: E, offset: u64, length: Option<u64>) -> Result<Self, SliceError> {
        let layer = ByteRange::new(inner.size(), inner.block_size(), offset, length)?;
        Ok(Self::with(inner, layer))
    }
}

impl<E> Slice<E> {
    /// Where it begins in what it is a part of, in bytes.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.layer().offset
    }
}

/// A range can't be taken from an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SliceError {
    /// It does not lie inside of the export. All in bytes.
    #[non_exhaustive]
    Outside {
        /// Where the range begins.
        offset: u64,
        /// How long it is, unless it reaches to the end.
        length: Option<u64>,
        /// The size of the export.
        size: u64,
    },
    /// The offset or the length is not a multiple of the export's minimum block size.
    #[non_exhaustive]
    Unaligned {
        /// The offset or the length, in bytes.
        bytes: u64,
        /// The minimum block size in bytes.
        block: u64,
    },
}

impl fmt::Display for SliceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Outside { offset, length: Some(length), size } => write!(
                f,
                "the range of {} at offset {offset} is not inside of the disk, which has {}",
                counted(length, "byte"),
                counted(size, "byte")
            ),
            Self::Outside { offset, length: None, size } => {
                write!(
                    f,
                    "the offset {offset} is beyond the end of the disk, which has {}",
                    counted(size, "byte")
                )
            }
            Self::Unaligned { bytes, block } => {
                write!(
                    f,
                    "{bytes} is not a multiple of the disk's minimum block size, {block} bytes"
                )
            }
        }
    }
}

impl core::error::Error for SliceError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{ErrorCode, Memory, WithBlockSize};

    #[test]
    fn a_range_that_is_not_inside_or_not_aligned_is_refused() {
        let disk = || Memory::new(1 << 20).unwrap();
        for (offset, length) in [
            (1 << 20, Some(1)),
            (u64::MAX, Some(u64::MAX)),
            ((1 << 20) + 1, None),
            (1, Some(1 << 20)),
        ] {
            let refused = Slice::new(disk(), offset, length).unwrap_err();
            assert!(matches!(refused, SliceError::Outside { .. }), "{refused}");
        }
        let sizes = BlockSize::new(4096, 4096, 1 << 20).unwrap();
        for (offset, length) in [(512, None), (4096, Some(512))] {
            let refused =
                Slice::new(WithBlockSize::new(disk(), sizes), offset, length).unwrap_err();
            assert!(matches!(refused, SliceError::Unaligned { bytes: 512, .. }), "{refused}");
        }
    }

    #[test]
    fn a_request_beyond_the_end_does_not_reach_what_lies_behind() {
        let memory = Memory::new(4 << 20).unwrap();
        memory.can_write().unwrap().write(&[7; 4 << 20], 0, false).unwrap();
        let disk = Slice::new(memory, 1 << 20, Some(1 << 20)).unwrap();
        let end = disk.size();
        let mut buffer = [0; 2];
        assert_eq!(disk.read(&mut buffer, end - 1).unwrap_err().code(), ErrorCode::EINVAL);
        let refused = disk.can_write().unwrap().write(&[1; 2], end - 1, false);
        assert_eq!(refused.unwrap_err().code(), ErrorCode::ENOSPC);
        for (offset, length) in [(end - 1, 2), (end, 1), (u64::MAX, 1), (0, u64::MAX)] {
            disk.can_trim().unwrap().trim(offset, length, false).unwrap_err();
            let zeroes = disk.can_write_zeroes().unwrap();
            zeroes.write_zeroes(offset, length, Default::default()).unwrap_err();
        }
        let mut all = vec![0; 4 << 20];
        disk.into_inner().read(&mut all, 0).unwrap();
        assert!(all.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn a_slice_follows_the_size_of_the_export_inside() {
        let disk = Slice::new(Memory::new(4096).unwrap(), 1024, None).unwrap();
        assert!(disk.can_resize().is_none());
        disk.as_ref().can_resize().unwrap().resize(8192).unwrap();
        assert_eq!(disk.size(), 8192 - 1024);
        disk.as_ref().can_resize().unwrap().resize(10).unwrap();
        assert_eq!(disk.size(), 0);
        let disk = Slice::new(Memory::new(4096).unwrap(), 1024, Some(1024)).unwrap();
        for (inner, size) in [(1500, 476), (1 << 20, 1024)] {
            disk.as_ref().can_resize().unwrap().resize(inner).unwrap();
            assert_eq!(disk.size(), size);
        }
    }
}
