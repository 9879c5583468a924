//! What finished requests of a connection leave behind for later ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::completion::Completion;

/// Completions and buffers to be used again.
#[derive(Debug, Default)]
pub(super) struct FreeList(Mutex<Lists>);

#[derive(Debug, Default)]
struct Lists {
    completions: Vec<Arc<Completion>>,
    buffers: Vec<Vec<u8>>,
    /// Bytes of all buffers.
    bytes: usize,
}

impl FreeList {
    /// Completions that are kept at most: more than are in flight at once by default.
    const MAX_COMPLETIONS: usize = 256;

    /// Bytes of buffers that are kept at most.
    const MAX_BYTES: usize = 4 << 20;

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn completion(&self) -> Arc<Completion> {
        let free = self.lists().completions.pop();
        free.unwrap_or_default()
    }

    /// Takes a completion back whose outcome was taken.
    pub(super) fn return_completion(&self, completion: Arc<Completion>) {
        completion.reset();
        let mut lists = self.lists();
        if lists.completions.len() < Self::MAX_COMPLETIONS {
            lists.completions.push(completion);
        }
    }

    /// A buffer of at least `length` initialised bytes, with anything in them.
    pub(super) fn buffer(&self, length: usize) -> Vec<u8> {
        let mut buffer = {
            let mut lists = self.lists();
            let buffer = lists.buffers.pop().unwrap_or_default();
            lists.bytes -= buffer.len();
            buffer
        };
        if buffer.len() < length {
            // What is in it need not be copied to where it grows.
            if buffer.capacity() < length {
                buffer = Vec::new();
            }
            buffer.resize(length, 0);
        }
        buffer
    }

    pub(super) fn return_buffer(&self, buffer: Vec<u8>) {
        let mut lists = self.lists();
        if lists.bytes + buffer.len() <= Self::MAX_BYTES && !buffer.is_empty() {
            lists.bytes += buffer.len();
            lists.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_are_used_again() {
        let free = FreeList::default();
        let completion = free.completion();
        let address = Arc::as_ptr(&completion);
        free.return_completion(completion);
        assert_eq!(Arc::as_ptr(&free.completion()), address);
    }

    #[test]
    fn buffers_come_back_and_no_more_are_kept_than_the_bound() {
        let free = FreeList::default();
        let buffer = free.buffer(100);
        let address = buffer.as_ptr();
        free.return_buffer(buffer);
        let again = free.buffer(50);
        assert_eq!(again.as_ptr(), address);
        for _ in 0..10 {
            free.return_buffer(vec![0; 1 << 20]);
        }
        let lists = free.lists();
        assert_eq!((lists.buffers.len(), lists.bytes), (4, 4 << 20));
    }
}
