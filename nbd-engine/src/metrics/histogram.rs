//! How long requests take, as counts in buckets.
//!
//! Buckets are log-linear: four of equal width for each power of two of nanoseconds, so that a bucket is at most a
//! quarter wider than its lower bound, and the index of a time is a few instructions.

use core::time::Duration;

use super::Cell;

/// Times of up to 2^10 nanoseconds have one bucket.
const FIRST_POWER: u32 = 10;

/// Times above 2^37 nanoseconds have one bucket.
const LAST_POWER: u32 = 37;

/// Buckets for each power of two, as a power of two.
const PARTS: u32 = 2;

/// The buckets: the shortest times, those between, and the longest ones.
const BUCKETS: usize = 2 + (((LAST_POWER - FIRST_POWER) as usize) << PARTS);

/// The bucket of a time: the first whose bound is not below it.
#[inline]
const fn index(nanoseconds: u64) -> usize {
    // A bound belongs to the bucket that it ends.
    let below = nanoseconds.saturating_sub(1);
    let power = (below | 1).ilog2();
    if power < FIRST_POWER {
        0
    } else if power >= LAST_POWER {
        BUCKETS - 1
    } else {
        let part = (below >> (power - PARTS)) & ((1 << PARTS) - 1);
        1 + (((power - FIRST_POWER) as usize) << PARTS) + part as usize
    }
}

/// The longest time of a bucket, in nanoseconds. The last one has no bound.
const fn bound(index: usize) -> Option<u64> {
    if index >= BUCKETS - 1 {
        return None;
    }
    let power = FIRST_POWER + (index >> PARTS) as u32;
    let part = (index as u64) & ((1 << PARTS) - 1);
    Some((1 << power) + (part << (power - PARTS)))
}

/// A histogram that one task writes.
#[derive(Debug)]
pub(crate) struct Latencies {
    buckets: [Cell; BUCKETS],
    /// Nanoseconds.
    sum: Cell,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { buckets: [const { Cell::new() }; BUCKETS], sum: Cell::new() }
    }
}

impl Latencies {
    /// Records that `count` requests took so long each.
    #[inline]
    pub(crate) fn record(&self, nanoseconds: u64, count: u64) {
        self.sum.add(nanoseconds.saturating_mul(count));
        self.buckets[index(nanoseconds)].add(count);
    }

    /// How many times were recorded so far.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(Cell::get).sum()
    }

    /// Adds what was recorded so far.
    pub(crate) fn add_to(&self, total: &mut LatencyHistogram) {
        for (total, bucket) in total.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.get();
        }
        total.sum = total.sum.saturating_add(self.sum.get());
    }
}

/// How long requests took: a count for each of a fixed set of ranges of time, from 1 microsecond to 137 seconds, each at
/// most a quarter wider than its lower bound.
///
/// ```
/// use nbd_engine::metrics::LatencyHistogram;
/// use std::time::Duration;
///
/// let mut latencies = LatencyHistogram::default();
/// latencies.record(Duration::from_micros(80));
/// latencies.record(Duration::from_millis(3));
/// assert_eq!(latencies.count(), 2);
/// let median = latencies.quantile(0.5).unwrap();
/// assert!(median >= Duration::from_micros(80) && median <= Duration::from_micros(100));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyHistogram {
    buckets: [u64; BUCKETS],
    /// Nanoseconds.
    sum: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum: 0 }
    }
}

impl LatencyHistogram {
    /// Counts a request that took so long.
    pub fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[index(nanoseconds)] += 1;
        self.sum = self.sum.saturating_add(nanoseconds);
    }

    /// Adds the requests of another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += other;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// The requests that were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The time that all of them took together.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The time that a request took on average; `None` without any.
    #[must_use]
    pub fn mean(&self) -> Option<Duration> {
        self.sum.checked_div(self.count()).map(Duration::from_nanos)
    }

    /// The time within which that part of the requests, from 0 to 1, were done: the upper bound of the bucket that the
    /// request lies in, so up to a quarter too much. `None` without any request; [`Duration::MAX`] for more than 137
    /// seconds. Parts below 0 count as 0, those above 1 and those that are no number as 1.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let count = self.count();
        let part = if part.is_nan() { 1.0 } else { part.clamp(0.0, 1.0) };
        // Counts beyond 2^53 lose precision, not more.
        let rank = ((count as f64 * part).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let found = self.buckets.iter().position(|bucket| {
            seen += bucket;
            seen >= rank
        })?;
        Some(bound(found).map_or(Duration::MAX, Duration::from_nanos))
    }

    /// The upper bound of each bucket, which is part of it, with the number of requests that took at most so long. The
    /// bound of the last one is `None`: it counts all requests.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let mut seen = 0;
        self.buckets.iter().enumerate().map(move |(index, count)| {
            seen += count;
            (bound(index).map(Duration::from_nanos), seen)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_time_is_in_the_first_bucket_that_reaches_it(
            shift in 0u32..64,
            low in any::<u64>(),
            offset in -2i64..=2,
        ) {
            for time in [low >> shift, (1u64 << shift).saturating_add_signed(offset)] {
                let index = index(time);
                prop_assert!(bound(index).is_none_or(|bound| time <= bound), "{time}");
                prop_assert!(index == 0 || bound(index - 1).unwrap() < time, "{time}");
            }
        }

        #[test]
        fn quantiles_are_at_most_a_quarter_too_long(
            times in proptest::collection::vec(1_100u64..100_000_000_000, 1..200),
            part in 0.0f64..=1.0,
        ) {
            let mut histogram = LatencyHistogram::default();
            let recorded = Latencies::default();
            for time in &times {
                histogram.record(Duration::from_nanos(*time));
                recorded.record(*time, 1);
            }
            let mut copy = LatencyHistogram::default();
            recorded.add_to(&mut copy);
            prop_assert_eq!(&copy, &histogram);
            let mut sorted = times.clone();
            sorted.sort_unstable();
            let rank = ((times.len() as f64 * part).ceil() as usize).max(1);
            let exact = sorted[rank - 1];
            let found = histogram.quantile(part).unwrap().as_nanos() as u64;
            prop_assert!(exact <= found && found <= exact + exact / 4 + 1, "{exact} {found}");
            prop_assert_eq!(histogram.count(), times.len() as u64);
            prop_assert_eq!(histogram.sum(), Duration::from_nanos(times.iter().sum()));
        }
    }

    #[test]
    fn bounds_grow_by_a_quarter_at_most_and_cover_what_is_documented() {
        let bounds: Vec<u64> = (0..BUCKETS).map_while(bound).collect();
        assert_eq!(bounds.len(), BUCKETS - 1);
        assert_eq!((bounds[0], *bounds.last().unwrap()), (1 << 10, 1 << 37));
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1] && pair[1] <= pair[0] / 4 * 5));
    }

    #[test]
    fn an_empty_histogram_has_no_quantiles() {
        let empty = LatencyHistogram::default();
        assert_eq!((empty.quantile(0.5), empty.mean(), empty.count()), (None, None, 0));
        let mut long = empty.clone();
        long.record(Duration::MAX);
        assert_eq!(long.quantile(f64::NAN), Some(Duration::MAX));
        let mut both = long.clone();
        both.merge(&long);
        assert_eq!(both.count(), 2);
        assert_eq!(both.cumulative().last(), Some((None, 2)));
    }
}
