//! Offsets to ask for and data to write: both are cheap, and the same in every run.

/// A small generator of pseudo-random numbers (SplitMix64): a few instructions each.
///
/// Every server gets the same offsets in the same order; that is all that is asked of it.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. By multiplication, since a division costs more.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// The disk's contents in verify mode: every 8 bytes hold their own offset XOR `seed`.
///
/// A reply that has the wrong offset, cookie or order can't go unnoticed then.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The contents that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The byte at `offset` of the disk.
    pub fn byte(self, offset: u64) -> u8 {
        let word = (offset & !7) ^ self.seed;
        word.to_be_bytes()[(offset & 7) as usize]
    }

    /// Writes what belongs at `offset` into `data`.
    pub fn fill(self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.byte(at);
        }
    }

    /// The first offset at which `data`, which was read at `offset`, is not what it should be.
    pub fn first_difference(self, offset: u64, data: &[u8]) -> Option<u64> {
        (offset..).zip(data).find(|&(at, &byte)| byte != self.byte(at)).map(|(at, _)| at)
    }
}
