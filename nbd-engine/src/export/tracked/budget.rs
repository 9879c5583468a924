//! What all bitmaps of a process take together.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::bits::SpareBits;
use crate::memory_limit;

/// Bytes for all bitmaps, where there is enough memory.
const LARGEST: u64 = 64 << 20;

/// Bitmaps take at most this part of the memory that the process may use.
const PART: u64 = 16;

/// Bytes that each bitmap may have besides, whatever the others have: four chunks and a few runs, which is enough for
/// any disk, if blocks are large enough.
pub(super) const OWN: u64 = 20 << 10;

/// An account of memory that bitmaps share.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: AtomicU64,
    bitmaps: AtomicUsize,
    spare_bits: Arc<SpareBits>,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Arc<Self> {
        let (used, bitmaps) = (AtomicU64::new(0), AtomicUsize::new(0));
        Arc::new(Self { limit, used, bitmaps, spare_bits: Arc::default() })
    }

    /// That of this process.
    pub(super) fn process() -> Arc<Self> {
        static PROCESS: OnceLock<Arc<Budget>> = OnceLock::new();
        let make = || Self::new(LARGEST.min(memory_limit::total() / PART));
        Arc::clone(PROCESS.get_or_init(make))
    }

    /// Bytes that are taken now, without what each bitmap has anyway.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one bitmap has of a budget; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    taken: u64,
}

impl Share {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        budget.bitmaps.fetch_add(1, Ordering::Relaxed);
        Self { budget, taken: 0 }
    }

    /// Where bits come from.
    pub(super) fn spare_bits(&self) -> &Arc<SpareBits> {
        &self.budget.spare_bits
    }

    /// Makes the bitmap have `bytes`. `false`, and nothing is changed, when that is more than it had and more than its
    /// part or what is left.
    pub(super) fn resize(&mut self, bytes: u64) -> bool {
        let Budget { limit, used, bitmaps, .. } = &*self.budget;
        let wanted = bytes.saturating_sub(OWN);
        if wanted <= self.taken {
            used.fetch_sub(self.taken - wanted, Ordering::Relaxed);
            self.taken = wanted;
            return true;
        }
        let more = wanted - self.taken;
        let fits = |used: u64| used.checked_add(more).filter(|sum| sum <= limit);
        // The first ones must not take everything from those that come later.
        let part = limit / bitmaps.load(Ordering::Relaxed).max(1) as u64;
        if wanted > part || used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return false;
        }
        self.taken = wanted;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.resize(0);
        self.budget.bitmaps.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_equal_parts_and_given_back() {
        let budget = Budget::new(1000);
        let mut one = Share::new(Arc::clone(&budget));
        assert!(one.resize(OWN + 1000) && !one.resize(OWN + 1001));
        let mut other = Share::new(Arc::clone(&budget));
        assert!(other.resize(OWN), "everybody has that much");
        assert!(!other.resize(OWN + 1), "nothing is left");
        assert!(!one.resize(OWN + 1001) && one.resize(OWN + 600), "less is always possible");
        assert!(!one.resize(OWN + 601), "more than half");
        assert!(other.resize(OWN + 400) && !other.resize(OWN + 401));
        assert_eq!(budget.used(), 1000);
        drop(one);
        assert!(other.resize(OWN + 1000));
        drop(other);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_process_has_one_budget() {
        assert!(Arc::ptr_eq(&Budget::process(), &Budget::process()));
        assert!(Budget::process().limit <= LARGEST);
    }
}
