//! Delays between attempts.

use core::time::Duration;

use super::Reconnect;
use crate::runtime::share_of;

/// The delays of one connection: each twice as long as the one before, with a random share.
#[derive(Debug)]
pub(in super::super) struct Backoff {
    min: Duration,
    max: Duration,
    jitter: f64,
    random: u64,
    /// Attempts that were made since the last reset.
    attempts: u32,
}

impl Backoff {
    /// For the connection of this index: each has random delays of its own.
    pub(in super::super) const fn new(config: &Reconnect, index: usize) -> Self {
        let random = config.seed() ^ (index as u64).wrapping_mul(0xA24B_AED4_963E_E407);
        let (min, max, jitter) = (config.min_delay(), config.max_delay(), config.jitter());
        Self { min, max, jitter, random, attempts: 0 }
    }

    pub(in super::super) const fn reset(&mut self) {
        self.attempts = 0;
    }

    pub(super) const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long to wait before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        self.attempts = self.attempts.saturating_add(1);
        let delay = self.min.saturating_mul(factor).min(self.max);
        share_of(delay, 1.0 - self.jitter * self.fraction())
    }

    /// From 0 to 1, by splitmix64.
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.random;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^= word >> 31;
        (word >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn delays_double_between_their_bounds_and_differ_by_jitter(
            seed: u64,
            min in 1..1000u64,
            factor in 1..1000u64,
            jitter in 0.0..=1.0f64,
            index in 0..16usize,
        ) {
            let (min, max) = (Duration::from_millis(min), Duration::from_millis(min * factor));
            let config = Reconnect::new().with_delays(min, max).with_jitter(jitter).with_seed(seed);
            let mut backoff = Backoff::new(&config, index);
            let mut again = Backoff::new(&config, index);
            let mut full = min;
            for _ in 0..40 {
                let delay = backoff.next();
                prop_assert!(delay <= full.min(max), "{delay:?} of {full:?}");
                let least = full.min(max).mul_f64((1.0 - jitter).max(0.0));
                // As it is rounded.
                prop_assert!(delay + Duration::from_nanos(1) >= least, "{delay:?} of {full:?}");
                prop_assert_eq!(again.next(), delay, "the seed determines them");
                full = (full * 2).min(max);
            }
            backoff.reset();
            prop_assert!(backoff.next() <= min);
        }
    }

    /// The numbers that others publish for splitmix64 from the seed 0 on.
    #[test]
    fn random_delays_are_those_of_splitmix64() {
        let mut backoff = Backoff::new(&Reconnect::new().with_seed(0), 0);
        for word in [0xE220_A839_7B1D_CDAF_u64, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F] {
            let expected = (word >> 11) as f64 / (1u64 << 53) as f64;
            assert_eq!(backoff.fraction().to_bits(), expected.to_bits());
        }
    }

    #[test]
    fn connections_of_one_client_come_back_at_different_times() {
        let config = Reconnect::new().with_seed(1);
        let delays: Vec<_> = (0..4).map(|index| Backoff::new(&config, index).next()).collect();
        assert!((1..4).all(|index| !delays[..index].contains(&delays[index])), "{delays:?}");
    }

    #[test]
    fn choices_that_make_no_sense_become_the_nearest_that_do() {
        let (long, short) = (Duration::from_secs(2), Duration::from_secs(1));
        let config = Reconnect::new().with_delays(long, short).with_jitter(f64::NAN);
        assert_eq!((config.max_delay(), config.jitter()), (long, 0.0));
        assert_eq!(Reconnect::new().with_jitter(7.0).jitter(), 1.0);

        let config = Reconnect::new().with_delays(Duration::MAX, short).with_jitter(0.0);
        assert_eq!(Backoff::new(&config, 0).next(), Duration::MAX);
    }
}
