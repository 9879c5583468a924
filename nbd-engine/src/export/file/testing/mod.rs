//! Files whose system calls fail in the ways that real ones do, and what the export has to make of it.

mod clumsy;
mod durable;
mod medium;
mod sizes;

/// Random numbers of a seed, so that a failure can be had again.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound.max(1)
    }

    fn once_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}
