//! Random cases that can be repeated.

use std::time::{SystemTime, UNIX_EPOCH};

/// The variable that has [`cases`] run a single case again.
const SEED: &str = "NBD_SEED";

/// The variable that has [`cases`] run so many cases, for long runs.
const CASES: &str = "NBD_CASES";

/// Reproducible pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    #[inline]
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which is not zero. By multiplication, since a division costs more where speed is measured.
    #[inline]
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// True in one of `times` cases.
    pub const fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn of<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.below(these.len() as u64) as usize]
    }
}

/// Runs `count` random cases, other ones each time. A case that panics has its seed printed: with `NBD_SEED=SEED` in
/// the environment that case alone is run, and with `NBD_CASES=N` so many instead of `count`.
pub fn cases(count: u64, mut case: impl FnMut(&mut Random)) {
    let (first, count) = match std::env::var(SEED) {
        Ok(seed) => (seed.parse().expect("NBD_SEED is a number"), 1),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
            let count = std::env::var(CASES)
                .ok()
                .map_or(count, |count| count.parse().expect("NBD_CASES is a number"));
            (Random::new(now.as_nanos() as u64).next() >> 16, count)
        }
    };
    for seed in first..first + count {
        let _named = Named(seed);
        case(&mut Random::new(seed));
    }
}

/// Names the seed if its case panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to run this case again: {SEED}={}", self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            [random.next(), random.next(), random.below(10), random.of(&[1, 2, 3])]
        };
        assert_eq!(numbers(5), numbers(5));
        assert_ne!(numbers(5), numbers(6));
        let mut run = 0;
        cases(7, |_| run += 1);
        let is_set = [SEED, CASES].iter().any(|name| std::env::var(name).is_ok());
        assert!(run == 7 || is_set);
    }
}
