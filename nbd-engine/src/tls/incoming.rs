//! What a TLS stream has received and not decrypted.

use super::records::MAX_PLAINTEXT;

/// Ciphertext that one call of the transport may bring: several records of a busy peer.
const INCOMING: usize = 64 << 10;

/// The least that holds any record.
const SMALLEST_INCOMING: usize = MAX_PLAINTEXT + 2048;

/// Ciphertext as it arrives. Records are decrypted in place.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    buffer: Vec<u8>,
    start: usize,
    /// How far the records have been processed, or found to be incomplete.
    seen: usize,
    end: usize,
    /// Whether the last receive call filled the buffer.
    was_filled: bool,
}

impl Incoming {
    /// What has arrived.
    pub(super) fn all(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.end]
    }

    /// The part of it that was processed before, and not consumed.
    pub(super) fn seen(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.seen]
    }

    /// All was processed, and `count` bytes of it are consumed.
    pub(super) fn processed(&mut self, count: usize) {
        (self.start, self.seen) = (self.start + count, self.end);
        if self.start == self.end {
            (self.start, self.seen, self.end) = (0, 0, 0);
        }
    }

    /// The first `count` bytes of the spare room arrived; gives them.
    pub(super) fn arrived(&mut self, count: usize) -> &[u8] {
        let begin = self.end;
        self.end += count;
        self.was_filled = self.end == self.buffer.len();
        &self.buffer[begin..self.end]
    }

    /// Room for more. A part of a record that is there moves to the front, so that the whole one fits. The buffer grows
    /// for a peer that keeps it full.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.seen -= self.start;
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.is_empty() || self.was_filled && self.buffer.len() < INCOMING {
            let length = (self.buffer.len() * 4).clamp(SMALLEST_INCOMING, INCOMING);
            self.buffer.reserve_exact(length - self.buffer.len());
            self.buffer.resize(length, 0);
            self.was_filled = false;
        }
        &mut self.buffer[self.end..]
    }

    /// Gives memory back that an idle connection does not need.
    pub(super) fn shrink(&mut self) {
        if self.start == self.end {
            *self = Self::default();
        }
    }

    /// Bytes of the buffer.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.buffer.capacity()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever arrives and is consumed: bytes come out as they went in, there is room for the rest of any record, and
        /// the buffer grows once for each call that fills it, up to its bound.
        #[test]
        fn it_is_a_queue_that_grows_for_peers_that_keep_it_full(
            steps in prop::collection::vec((any::<bool>(), 0_usize..40_000, 0_usize..70_000), 1..20),
        ) {
            let (mut incoming, mut model, mut next) = (Incoming::default(), VecDeque::new(), 0_u8);
            let mut expected = SMALLEST_INCOMING;
            for (fills, count, consumed) in steps {
                let room = incoming.spare();
                let count = if fills { room.len() } else { count.min(room.len() - 1) };
                for byte in &mut room[..count] {
                    *byte = next;
                    model.push_back(next);
                    next = next.wrapping_mul(31).wrapping_add(7);
                }
                prop_assert_eq!(incoming.spare().len(), incoming.buffer.len() - incoming.end);
                prop_assert_eq!(incoming.buffer.len(), expected);
                prop_assert_eq!(incoming.arrived(count).len(), count);
                prop_assert!(model.iter().eq(&*incoming.all()));
                if fills {
                    expected = (expected * 4).min(INCOMING);
                }
                // What stays is a part of one record at most.
                let least = model.len().saturating_sub(MAX_PLAINTEXT);
                let consumed = consumed.clamp(least, model.len());
                incoming.processed(consumed);
                model.drain(..consumed);
                prop_assert!(model.iter().eq(&*incoming.all()));
                prop_assert_eq!(incoming.seen().len(), model.len());
            }
            incoming.processed(model.len());
            incoming.shrink();
            prop_assert_eq!(incoming.held(), 0);
        }
    }
}
