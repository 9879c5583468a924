//! Collects a message of fixed size that arrives in pieces.

use crate::{Input, Wants};

/// Bytes of a message that is not complete yet. The longest fixed-size message has 32 bytes.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    bytes: [u8; 32],
    filled: usize,
}

impl Scratch {
    /// Bytes collected so far.
    pub(crate) const fn filled(&self) -> usize {
        self.filled
    }

    /// What the rest of a message of `size` bytes wants.
    pub(crate) const fn wants(&self, size: usize) -> Wants {
        Wants::missing(size, self.filled)
    }

    /// The next `N` bytes (at most 32), once they are all there; consumes from `input` whatever belongs to them. Without
    /// leftovers of an earlier call, which is the rule, nothing is copied into the scratch.
    #[inline]
    pub(crate) fn take<const N: usize>(&mut self, input: &mut impl Input) -> Option<[u8; N]> {
        const { assert!(N <= 32) };
        if self.filled == 0
            && let Some(head) = input.unread().first_chunk::<N>().copied()
        {
            input.consume(N);
            return Some(head);
        }
        if input.unread().is_empty() {
            return None;
        }
        self.collect(input)
    }

    #[cold]
    fn collect<const N: usize>(&mut self, input: &mut impl Input) -> Option<[u8; N]> {
        let room = self.bytes.get_mut(self.filled..N)?;
        let unread = input.unread();
        let count = room.len().min(unread.len());
        room.get_mut(..count)?.copy_from_slice(unread.get(..count)?);
        input.consume(count);
        self.filled = self.filled.saturating_add(count);
        if self.filled < N {
            return None;
        }
        self.filled = 0;
        self.bytes.first_chunk::<N>().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_split_gives_the_same_messages_and_eats_no_more_than_them() {
        let stream: [u8; 12] = core::array::from_fn(|at| at as u8);
        for split in 0..=12 {
            let mut scratch = Scratch::default();
            let mut messages = alloc::vec::Vec::new();
            let (first, second) = stream.split_at(split);
            for mut input in [first, second] {
                while let Some(message) = scratch.take::<5>(&mut input) {
                    messages.push(message);
                }
                assert!(input.is_empty());
            }
            assert_eq!(messages, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]);
            assert_eq!(scratch.filled(), 2);
        }
    }
}
