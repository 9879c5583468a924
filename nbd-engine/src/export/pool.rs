//! Large buffers that a connection keeps between requests.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers that wait to be used again. One pool belongs to one connection, so that what an export leaves unwritten in
/// a buffer can at worst be the same client's data.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
    /// Bytes that are kept.
    kept: AtomicUsize,
}

impl Pool {
    /// Bytes that a connection keeps at most.
    const MAX_KEPT: usize = 8 << 20;

    /// Sizes are rounded up to this, so that buffers fit again.
    const STEP: usize = 64 << 10;

    /// The size of the buffer that so many bytes get.
    pub(crate) const fn rounded(length: usize) -> usize {
        length.next_multiple_of(Self::STEP)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of at least `length` initialised bytes; `None` if there is no memory for it.
    pub(crate) fn take(&self, length: usize) -> Option<Vec<u8>> {
        let mut free = self.lock();
        match fitting(&free, length) {
            Some(index) => {
                let buffer = free.swap_remove(index);
                self.kept.fetch_sub(buffer.len(), Ordering::Relaxed);
                Some(buffer)
            }
            None => {
                drop(free);
                allocate(Self::rounded(length))
            }
        }
    }

    /// Keeps a buffer for later, if there is room for it.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        let mut free = self.lock();
        if self.kept() + buffer.len() <= Self::MAX_KEPT {
            self.kept.fetch_add(buffer.len(), Ordering::Relaxed);
            free.push(buffer);
        }
    }

    /// Bytes that are kept at the moment.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// Whether a buffer is kept that has room for so many bytes.
    pub(crate) fn has_fitting(&self, length: usize) -> bool {
        fitting(&self.lock(), length).is_some()
    }

    /// Frees all buffers that are kept.
    pub(crate) fn clear(&self) {
        let mut free = self.lock();
        *free = Vec::new();
        self.kept.store(0, Ordering::Relaxed);
    }
}

/// The smallest buffer that has room for `length` bytes.
fn fitting(free: &[Vec<u8>], length: usize) -> Option<usize> {
    let fitting = free.iter().enumerate().filter(|(_, buffer)| buffer.len() >= length);
    fitting.min_by_key(|(_, buffer)| buffer.len()).map(|(index, _)| index)
}

/// A buffer of zeroes; `None` if there is no memory for it, where `vec!` would end the process.
pub(crate) fn allocate(length: usize) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(length).ok()?;
    buffer.resize(length, 0);
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_no_more_are_kept_than_the_bound() {
        let pool = Pool::default();
        let first = pool.take(1 << 20).unwrap();
        let address = first.as_ptr();
        pool.give_back(first);
        let taken = pool.take(1 << 20).unwrap();
        assert_eq!(taken.as_ptr(), address);
        for _ in 0..20 {
            pool.give_back(vec![0; 1 << 20]);
        }
        assert_eq!((pool.free.lock().unwrap().len(), pool.kept()), (8, 8 << 20));
        pool.clear();
        assert_eq!((pool.has_fitting(1), pool.kept()), (false, 0));
    }

    #[test]
    fn memory_that_is_not_there_is_reported() {
        assert!(allocate(usize::MAX / 2).is_none());
        assert!(Pool::default().take(isize::MAX as usize - Pool::STEP).is_none());
    }
}
