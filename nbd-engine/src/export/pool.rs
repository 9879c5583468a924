//! Large buffers that a connection keeps between requests.

use std::sync::{Mutex, PoisonError};

/// Buffers that wait to be used again. One pool belongs to one connection, so that what an export leaves unwritten in
/// a buffer can at worst be the same client's data.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// Bytes that a connection keeps at most.
    const KEPT: usize = 8 << 20;

    /// Sizes are rounded up to this, so that buffers fit again.
    const STEP: usize = 64 << 10;

    /// A buffer of at least `length` initialised bytes.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free
            .iter()
            .enumerate()
            .filter(|(_, buffer)| buffer.len() >= length)
            .min_by_key(|(_, buffer)| buffer.len())
            .map(|(at, _)| at);
        match fitting {
            Some(at) => free.swap_remove(at),
            None => {
                drop(free);
                vec![0; length.next_multiple_of(Self::STEP)]
            }
        }
    }

    /// Keeps a buffer for later, if there is room for it.
    pub(crate) fn give_back(&self, buffer: Vec<u8>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = free.iter().map(Vec::len).sum();
        if kept + buffer.len() <= Self::KEPT {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_no_more_are_kept_than_the_bound() {
        let pool = Pool::default();
        let first = pool.take(1 << 20);
        let place = first.as_ptr();
        pool.give_back(first);
        let taken = pool.take(1 << 20);
        assert_eq!(taken.as_ptr(), place);
        for _ in 0..20 {
            pool.give_back(vec![0; 1 << 20]);
        }
        assert_eq!(pool.free.lock().unwrap().len(), 8);
    }
}
