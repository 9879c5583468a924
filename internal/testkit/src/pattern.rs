//! Test data that tells where it came from.

/// A reproducible stream of bytes: what is at an offset depends on that offset and a seed, so that data
/// that was moved, swapped or repeated does not compare equal.
#[derive(Clone, Copy, Debug)]
pub struct Pattern(pub u64);

impl Pattern {
    /// The bytes at `offset..offset + len`; never zero, so that a hole cannot pass for data.
    pub fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let lead = (offset % 8) as usize;
        let words = (lead + len).div_ceil(8) as u64;
        let mut bytes = Vec::with_capacity(words as usize * 8);
        for index in 0..words {
            bytes.extend_from_slice(&self.word(offset / 8 + index));
        }
        bytes.drain(..lead);
        bytes.truncate(len);
        bytes
    }

    /// Writes the bytes at `offset` into `data`.
    pub fn fill(self, offset: u64, data: &mut [u8]) {
        data.copy_from_slice(&self.bytes(offset, data.len()));
    }

    /// The first offset at which `data`, which was read at `offset`, is not as it should be.
    pub fn first_difference(self, offset: u64, data: &[u8]) -> Option<u64> {
        let expected = self.bytes(offset, data.len());
        (offset..)
            .zip(expected.iter().zip(data))
            .find(|(_, (one, other))| one != other)
            .map(|(at, _)| at)
    }

    /// splitmix64 of a word's index, with no zero byte in it.
    fn word(self, index: u64) -> [u8; 8] {
        let mut word = index.wrapping_add(self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) | 0x0101_0101_0101_0101).to_le_bytes()
    }
}

/// Asserts that two buffers are equal; on failure says where they differ instead of printing them.
#[track_caller]
pub fn assert_same_bytes(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if found != expected {
        let at = found.iter().zip(expected).position(|(a, b)| a != b).expect("they differ");
        let bad = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        panic!(
            "{what}: {bad} of {} bytes differ, first at {at:#x}: found {:#04x}, expected {:#04x}",
            found.len(),
            found[at],
            expected[at]
        );
    }
}

/// Asserts that every byte is zero.
#[track_caller]
pub fn assert_zero(found: &[u8], what: &str) {
    // The comparison of slices is fast even without optimisation; the search is for the message.
    if found != vec![0; found.len()] {
        let at = found.iter().position(|&byte| byte != 0).expect("one is not zero");
        panic!("{what}: byte at {at:#x} of {} is {:#04x}, not zero", found.len(), found[at]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_of_the_pattern_is_the_pattern_at_that_offset() {
        let whole = Pattern(7).bytes(0, 4096);
        assert_same_bytes(&Pattern(7).bytes(1001, 99), &whole[1001..1100], "slice");
        assert_ne!(Pattern(8).bytes(0, 4096), whole);
        assert!(!whole.contains(&0));
        let mut data = [0; 99];
        Pattern(7).fill(1001, &mut data);
        assert_eq!(Pattern(7).first_difference(1001, &data), None);
        data[98] ^= 1;
        assert_eq!(Pattern(7).first_difference(1001, &data), Some(1099));
    }

    #[test]
    #[should_panic(expected = "1 of 3 bytes differ, first at 0x1")]
    fn a_difference_is_located() {
        assert_same_bytes(&[1, 2, 3], &[1, 9, 3], "three");
    }

    #[test]
    #[should_panic(expected = "byte at 0x1 of 2 is 0x07")]
    fn a_byte_that_is_not_zero_is_located() {
        assert_zero(&[0, 7], "two");
    }
}
