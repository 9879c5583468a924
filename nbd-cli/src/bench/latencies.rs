//! How long requests took, to within 2 per cent.
//!
//! A benchmark compares percentiles that differ by a little. The engine's histograms, which a server keeps for each
//! command and publishes, have buckets up to a quarter wide and no longest time.

use core::time::Duration;

/// Equal buckets for each power of two of nanoseconds, as a power of two.
const PARTS: u32 = 6;

/// Times above 2^40 nanoseconds, 18 minutes, share the last bucket.
const LAST_POWER: u32 = 40;

const BUCKETS: usize = ((LAST_POWER - PARTS + 2) as usize) << PARTS;

/// The bucket of a time in nanoseconds.
const fn index(nanoseconds: u64) -> usize {
    if nanoseconds < 1 << PARTS {
        return nanoseconds as usize;
    }
    let power = nanoseconds.ilog2();
    if power > LAST_POWER {
        return BUCKETS - 1;
    }
    let part = (nanoseconds >> (power - PARTS)) & ((1 << PARTS) - 1);
    (((power - PARTS + 1) as usize) << PARTS) + part as usize
}

/// The longest time of a bucket but the last, in nanoseconds.
const fn bound(index: usize) -> u64 {
    let (octave, part) = (index >> PARTS, (index & ((1 << PARTS) - 1)) as u64);
    match octave {
        0 => part,
        octave => (((1 << PARTS) + part + 1) << (octave - 1)) - 1,
    }
}

/// A histogram of times. Recording allocates nothing.
#[derive(Clone, Debug)]
pub(super) struct Latencies {
    buckets: Box<[u64]>,
    count: u64,
    /// Nanoseconds.
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS].into(), count: 0, sum: 0, min: u64::MAX, max: 0 }
    }
}

impl Latencies {
    pub(super) fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[index(nanoseconds)] += 1;
        self.count += 1;
        self.sum += u128::from(nanoseconds);
        self.min = self.min.min(nanoseconds);
        self.max = self.max.max(nanoseconds);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (own, other) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += other;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// How many times were recorded.
    pub(super) const fn count(&self) -> u64 {
        self.count
    }

    /// What there is to say of them; `None` without any.
    pub(super) fn summary(&self) -> Option<Summary> {
        let mean = self.sum.checked_div(u128::from(self.count))?;
        let at = |part| Duration::from_nanos(self.quantile(part));
        Some(Summary {
            min: Duration::from_nanos(self.min),
            mean: Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX)),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: Duration::from_nanos(self.max),
        })
    }

    /// The time within which that part of the requests were done: the upper bound of its bucket, but not above the
    /// longest time.
    fn quantile(&self, part: f64) -> u64 {
        // Counts beyond 2^53 lose precision, not more.
        let rank = ((self.count as f64 * part).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        let found = self.buckets.iter().position(|bucket| {
            seen += bucket;
            seen >= rank
        });
        match found {
            Some(index) if index < BUCKETS - 1 => bound(index).min(self.max),
            _ => self.max,
        }
    }
}

/// What is shown of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) min: Duration,
    pub(super) mean: Duration,
    pub(super) p50: Duration,
    pub(super) p90: Duration,
    pub(super) p99: Duration,
    pub(super) p99_9: Duration,
    pub(super) max: Duration,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_time_is_in_the_first_bucket_that_reaches_it(shift in 0u32..64, low in any::<u64>()) {
            let time = low >> shift;
            let index = index(time);
            prop_assert!(index == BUCKETS - 1 || time <= bound(index), "{time}");
            prop_assert!(index == 0 || bound(index - 1) < time, "{time}");
        }

        #[test]
        fn percentiles_are_at_most_a_fiftieth_too_long(
            times in proptest::collection::vec(0u64..100_000_000_000, 1..200),
            split in 0usize..200,
        ) {
            let (mut one, mut other) = (Latencies::default(), Latencies::default());
            for (index, time) in times.iter().enumerate() {
                let of = if index < split { &mut one } else { &mut other };
                of.record(Duration::from_nanos(*time));
            }
            one.merge(&other);
            let mut sorted = times.clone();
            sorted.sort_unstable();
            let summary = one.summary().unwrap();
            let found = |time: Duration| time.as_nanos() as u64;
            prop_assert_eq!(found(summary.min), sorted[0]);
            prop_assert_eq!(found(summary.max), sorted[sorted.len() - 1]);
            prop_assert_eq!(found(summary.mean), times.iter().sum::<u64>() / times.len() as u64);
            for (part, time) in
                [(0.5, summary.p50), (0.9, summary.p90), (0.99, summary.p99), (0.999, summary.p99_9)]
            {
                let rank = ((times.len() as f64 * part).ceil() as usize).max(1);
                let (exact, found) = (sorted[rank - 1], found(time));
                prop_assert!(exact <= found && found <= exact + exact / 50 + 1, "{exact} {found}");
            }
        }
    }

    #[test]
    fn what_takes_longer_than_any_bucket_counts_with_its_own_time() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.summary(), None);
        latencies.record(Duration::MAX);
        let summary = latencies.summary().unwrap();
        assert_eq!((summary.p50, summary.max), (summary.max, Duration::from_nanos(u64::MAX)));
        assert_eq!(latencies.count(), 1);
    }
}
