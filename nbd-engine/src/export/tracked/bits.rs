//! Bits of chunks, which are used again.

use core::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Words of the bits of a chunk.
pub(super) const WORDS: usize = 512;

type Words = Box<[u64; WORDS]>;

/// Bits that no chunk has any more, for the next one, of whatever bitmap. The allocator would keep them for the thread
/// that frees them, while others take more.
#[derive(Debug, Default)]
pub(super) struct SpareBits(Mutex<Vec<Words>>);

impl SpareBits {
    /// Bits that are all clean; `None` if there is no memory for them.
    pub(super) fn clean(self: &Arc<Self>) -> Option<Bits> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let words = match spare {
            Some(mut words) => {
                words.fill(0);
                words
            }
            None => {
                let mut words = Vec::new();
                words.try_reserve_exact(WORDS).ok()?;
                words.resize(WORDS, 0);
                words.into_boxed_slice().try_into().ok()?
            }
        };
        Some(Bits { words: Some(words), spare: Arc::clone(self) })
    }
}

/// The bits of a chunk.
#[derive(Debug)]
pub(super) struct Bits {
    /// There until it is dropped.
    words: Option<Words>,
    spare: Arc<SpareBits>,
}

impl Deref for Bits {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        self.words.as_ref().map(|words| &words[..]).unwrap_or_default()
    }
}

impl DerefMut for Bits {
    fn deref_mut(&mut self) -> &mut [u64] {
        self.words.as_mut().map(|words| &mut words[..]).unwrap_or_default()
    }
}

impl Drop for Bits {
    fn drop(&mut self) {
        let mut spare = self.spare.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without room in the list the allocator has to take them.
        if spare.try_reserve(1).is_ok() {
            spare.extend(self.words.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_a_thread_drops_are_used_again_and_clean() {
        let spare = Arc::new(SpareBits::default());
        let mut bits = spare.clean().unwrap();
        bits.fill(7);
        let address = bits.as_ptr().addr();
        std::thread::spawn(move || drop(bits)).join().unwrap();
        let again = spare.clean().unwrap();
        assert_eq!(again.as_ptr().addr(), address);
        assert_eq!(again[..], [0; WORDS]);
    }
}
