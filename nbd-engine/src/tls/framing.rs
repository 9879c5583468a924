//! Where the records of a stream end, whatever decrypts them.

/// Bytes in front of a record: the type, the version, and the length of what follows.
const HEADER: usize = 5;

/// Follows received ciphertext from record to record.
#[derive(Debug, Default)]
pub(super) struct Framing {
    /// The header of the record that is being received, as far as it has arrived.
    header: [u8; HEADER],
    /// Bytes of that record, header included.
    arrived: usize,
    /// Records that have wholly arrived.
    completed: u64,
}

impl Framing {
    /// These bytes arrived, behind those of the calls before.
    pub(super) fn received(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            if self.arrived < HEADER {
                self.header[self.arrived] = *first;
                self.arrived += 1;
                bytes = &bytes[1..];
            } else {
                let left = self.length() - self.arrived;
                let count = left.min(bytes.len());
                self.arrived += count;
                bytes = &bytes[count..];
            }
            if self.arrived >= HEADER && self.arrived == self.length() {
                self.arrived = 0;
                self.completed += 1;
            }
        }
    }

    /// The length of the record whose header has arrived.
    fn length(&self) -> usize {
        let [.., high, low] = self.header;
        HEADER + usize::from(u16::from_be_bytes([high, low]))
    }

    /// Records that have wholly arrived since the last call.
    pub(super) const fn take_completed(&mut self) -> u64 {
        core::mem::replace(&mut self.completed, 0)
    }

    /// Bytes of a record of which the rest has yet to arrive.
    pub(super) const fn incomplete(&self) -> usize {
        self.arrived
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the lengths of records, and wherever the stream is cut: what is counted is what has arrived since the
        /// last boundary.
        #[test]
        fn a_record_is_incomplete_until_its_last_byte(
            lengths in prop::collection::vec(prop_oneof![Just(0_u16), 1_u16..40, any::<u16>()], 1..12),
            cuts in prop::collection::vec(1_usize..30_000, 1..40),
        ) {
            let mut stream = Vec::new();
            let mut boundaries = vec![0];
            for length in lengths {
                stream.extend([23, 3, 3]);
                stream.extend(length.to_be_bytes());
                // Bytes that look like a header count as none.
                stream.extend((0..length).map(|index| index as u8));
                boundaries.push(stream.len());
            }
            let mut framing = Framing::default();
            let mut position = 0;
            for cut in cuts.into_iter().cycle().take(20_000) {
                let end = (position + cut).min(stream.len());
                framing.received(&stream[position..end]);
                position = end;
                let boundary = *boundaries.iter().rfind(|boundary| **boundary <= position).unwrap();
                prop_assert_eq!(framing.incomplete(), position - boundary);
                if position == stream.len() {
                    break;
                }
            }
            prop_assert_eq!(framing.incomplete(), 0);
            prop_assert_eq!(framing.take_completed(), boundaries.len() as u64 - 1);
            prop_assert_eq!(framing.take_completed(), 0);
        }
    }
}
