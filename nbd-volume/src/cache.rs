//! Blocks that were read or written lately.

use bytes::Bytes;
use moka::sync::Cache;

/// A bounded cache of blocks. There is one writer, so that what it wrote is what everybody reads.
///
/// What is inserted has to be what the database has: whoever inserts a block holds a lock of it, and a writer inserts
/// before it releases that.
#[derive(Debug)]
pub(crate) struct BlockCache(Cache<u64, Bytes>);

impl BlockCache {
    /// What an entry costs besides its bytes.
    const OVERHEAD: u32 = 64;

    /// A cache of at most so many bytes.
    pub(crate) fn new(max_bytes: u64) -> Self {
        let weigh = |_: &u64, block: &Bytes| {
            u32::try_from(block.len()).unwrap_or(u32::MAX).saturating_add(Self::OVERHEAD)
        };
        Self(Cache::builder().max_capacity(max_bytes).weigher(weigh).build())
    }

    /// The block, which is empty where there is a hole. None if it is not known.
    pub(crate) fn get(&self, index: u64) -> Option<Bytes> {
        self.0.get(&index)
    }

    /// Whether the block is known. Does not count as a use.
    pub(crate) fn has(&self, index: u64) -> bool {
        self.0.contains_key(&index)
    }

    /// The block has this content now; an empty one is a hole. It has memory of its own, which is what counts: a slice of
    /// something longer would keep that.
    pub(crate) fn insert(&self, index: u64, block: Bytes) {
        self.0.insert(index, block);
    }

    /// The block is not known any more.
    pub(crate) fn remove(&self, index: u64) {
        self.0.invalidate(&index);
    }

    /// Nothing is known any more.
    pub(crate) fn clear(&self) {
        self.0.invalidate_all();
    }
}
