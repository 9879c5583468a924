//! An overlay in memory.

use core::fmt;

use super::blocks::Blocks;
use super::{AsyncStore, Overlay, Store, TooManyBlocks, sealed};
use crate::export::{Allocation, AsyncExport, Body, CanExtents, Export, Memory, Result, Visitor};

/// An overlay in memory, gone with the process. Its blocks are those of a disk in [`Memory`], which is sparse and takes
/// at most what that may; in addition it takes a bit for each block of the base.
pub struct InMemory {
    data: Memory,
    blocks: Blocks,
}

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemory")
            .field("present", &self.blocks.present_bytes())
            .finish_non_exhaustive()
    }
}

/// Binary logarithm of the bytes of a block: those of the memory's pages, so that no page is copied in part.
const SHIFT: u32 = Memory::PAGE_SIZE.trailing_zeros();

/// The same for disks of which that would be too many blocks.
const LARGE_SHIFT: u32 = 21;

impl InMemory {
    fn new(size: u64) -> core::result::Result<Self, TooManyBlocks> {
        let blocks = Blocks::new(size, SHIFT).or_else(|| Blocks::new(size, LARGE_SHIFT));
        let too_many = TooManyBlocks { size, block: 1 << LARGE_SHIFT };
        let data = Memory::new(size).map_err(|_| too_many)?;
        Ok(Self { data, blocks: blocks.ok_or(too_many)? })
    }
}

impl sealed::Sealed for InMemory {
    #[allow(private_interfaces, reason = "only for this module")]
    fn blocks(&self) -> &Blocks {
        &self.blocks
    }
}

impl Store for InMemory {
    const NEVER_BLOCKS: bool = true;
    type Data = Memory;

    fn data(&self) -> &Memory {
        &self.data
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl AsyncStore for InMemory {
    type Held = Self;

    async fn run<T: Send + 'static>(
        &self,
        data: &[u8],
        work: impl FnOnce(&Self, &[u8]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        work(self, data)
    }

    async fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.data.read(buffer, offset)
    }

    async fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        self.data.read_body(body, length, offset)
    }

    async fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> Result<()> {
        self.data.extents(offset, length, visit)
    }
}

impl<E: Export> Overlay<E> {
    /// Puts an empty overlay in memory over `base`. Blocks are of 16 KiB, or of 2 MiB if the base has more than 4 TiB.
    ///
    /// # Errors
    /// For a base of more than 512 TiB, or when there is no memory for the account of its blocks.
    pub fn in_memory(base: E) -> core::result::Result<Self, TooManyBlocks> {
        let store = InMemory::new(base.size())?;
        Ok(Self { base, store })
    }
}

impl<E: AsyncExport> Overlay<E> {
    /// [`in_memory`](Self::in_memory) for an export whose work is a future.
    ///
    /// # Errors
    /// Those of [`in_memory`](Self::in_memory).
    pub fn in_memory_async(base: E) -> core::result::Result<Self, TooManyBlocks> {
        let store = InMemory::new(base.size())?;
        Ok(Self { base, store })
    }
}
