//! The parts of an object, and the cache of those that were read lately.

use core::ops::{Range, RangeInclusive};

use bytes::Bytes;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

/// Bytes of a part, but for the last one: what is asked for and kept as a whole.
pub(super) const PART: u64 = 64 << 10;

/// The parts that hold these bytes, of which there is at least one.
pub(super) fn parts_of(bytes: &Range<u64>) -> RangeInclusive<u64> {
    bytes.start / PART..=(bytes.end - 1) / PART
}

/// The bytes of a run of parts of an object that has that size.
pub(super) fn bytes_of(parts: &Range<u64>, size: u64) -> Range<u64> {
    let offset = |part: u64| part.saturating_mul(PART).min(size);
    offset(parts.start)..offset(parts.end)
}

/// A bounded cache. The oldest go first, so that what is read ahead stays until it is read: a policy that looks at
/// how often something was used would not keep it at all.
#[derive(Debug)]
pub(super) struct Parts(Cache<u64, Bytes>);

impl Parts {
    /// A cache of at most so many bytes.
    pub(super) fn new(max_bytes: u64) -> Self {
        let weigh = |_: &u64, part: &Bytes| u32::try_from(part.len()).unwrap_or(u32::MAX);
        let cache = Cache::builder().max_capacity(max_bytes).weigher(weigh);
        Self(cache.eviction_policy(EvictionPolicy::lru()).build())
    }

    pub(super) fn get(&self, part: u64) -> Option<Bytes> {
        self.0.get(&part)
    }

    pub(super) fn contains(&self, part: u64) -> bool {
        self.0.contains_key(&part)
    }

    pub(super) fn insert(&self, part: u64, bytes: Bytes) {
        self.0.insert(part, bytes);
    }

    pub(super) fn clear(&self) {
        self.0.invalidate_all();
    }
}
