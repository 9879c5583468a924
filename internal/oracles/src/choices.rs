//! Taking decisions from a fuzzer's bytes.

/// Bytes that decide something. When they have run out, everything is zero.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a> {
    rest: &'a [u8],
}

impl<'a> Choices<'a> {
    /// Starts at the front.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    /// The next bytes.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (head, rest) = self.rest.split_at(N.min(self.rest.len()));
        bytes[..head.len()].copy_from_slice(head);
        self.rest = rest;
        bytes
    }

    /// The next three bytes as a number.
    pub fn u24(&mut self) -> u32 {
        let [a, b, c] = self.bytes();
        u32::from_be_bytes([0, a, b, c])
    }

    /// The next four bytes as a number.
    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes())
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left.
    #[must_use]
    pub const fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// A stream of arbitrary numbers from a seed, the same each time.
#[derive(Clone, Copy, Debug)]
pub struct Whims(u64);

impl Whims {
    /// A stream for each seed.
    #[must_use]
    pub const fn new(seed: u8) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next number.
    pub const fn next(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as u8
    }
}
