//! A number with one writer and any number of readers.

use core::sync::atomic::{AtomicU64, Ordering};

/// A number that one task at a time writes, while others read it at any time. To add is a load and a store, without the
/// cost of an atomic addition: a second writer would lose counts.
#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

impl Cell {
    /// Zero.
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds to the number, which goes no further than it can: what clients ask for may be as long as it gets. Readers that see the sum also see what was written to other cells before.
    #[inline]
    pub(crate) fn add(&self, amount: u64) {
        self.set(self.0.load(Ordering::Relaxed).saturating_add(amount));
    }

    /// Replaces the number.
    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    /// The number.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
