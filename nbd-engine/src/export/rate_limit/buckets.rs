//! How much of a rate was used, and where a connection finds that.

use core::fmt;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nbd_proto::Command;

use super::Rates;

/// What was used of each bounded rate.
#[derive(Debug)]
pub(super) struct Buckets {
    bytes: Option<Bucket>,
    requests: Option<Bucket>,
    /// What times are counted from: the first one that was asked about.
    epoch: OnceLock<Instant>,
}

/// What was used of a rate.
#[derive(Debug)]
struct Bucket {
    /// Units in a second.
    rate: NonZeroU64,
    /// When what was carried out so far is paid for, in nanoseconds.
    paid: AtomicU64,
}

impl Buckets {
    pub(super) const fn new(rates: Rates) -> Self {
        const fn bucket(rate: Option<NonZeroU64>) -> Option<Bucket> {
            match rate {
                Some(rate) => Some(Bucket { rate, paid: AtomicU64::new(0) }),
                None => None,
            }
        }
        let (bytes, requests) = (bucket(rates.bytes), bucket(rates.requests));
        Self { bytes, requests, epoch: OnceLock::new() }
    }

    fn nanoseconds(&self, now: Instant) -> u64 {
        let epoch = *self.epoch.get_or_init(|| now);
        let time = now.saturating_duration_since(epoch);
        time.as_secs().saturating_mul(NANOS).saturating_add(u64::from(time.subsec_nanos()))
    }

    /// Whether there is a debt.
    pub(super) fn owe(&self, now: Instant) -> bool {
        self.wait(now) > Duration::ZERO
    }

    /// How long until nothing is owed.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let now = self.nanoseconds(now);
        let owed = |bucket: &Option<Bucket>| {
            let paid = bucket.as_ref().map_or(0, |bucket| bucket.paid.load(Ordering::Relaxed));
            paid.saturating_sub(now)
        };
        Duration::from_nanos(owed(&self.bytes).max(owed(&self.requests)))
    }

    /// Takes what the request needs.
    pub(super) fn take(&self, command: &Command, now: Instant) {
        let now = self.nanoseconds(now);
        if let Some(bytes) = &self.bytes {
            bytes.pay(command.buffer_length(), now);
        }
        if let Some(requests) = &self.requests {
            requests.pay(1, now);
        }
    }
}

const NANOS: u64 = 1_000_000_000;

impl Bucket {
    /// Puts off the moment when everything is paid for by the price of so many units.
    fn pay(&self, units: u64, now: u64) {
        let price = match units.checked_mul(NANOS) {
            Some(nanoseconds) => nanoseconds.div_ceil(self.rate.get()),
            None => {
                let price =
                    (u128::from(units) * u128::from(NANOS)).div_ceil(self.rate.get().into());
                price.try_into().unwrap_or(u64::MAX)
            }
        };
        // What was not used before is lost, but for the burst.
        let paid = |paid: u64| Some(paid.max(now).saturating_add(price));
        let _always = self.paid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid);
    }
}

/// Where a client's connection has found what its requests count in, for each limit that it passes. It spares the look-up
/// by the client's identity for each request.
#[derive(Default)]
pub(in crate::export) struct Shares(Mutex<Vec<(Arc<()>, Arc<Buckets>)>>);

impl Shares {
    pub(in crate::export) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Arc<()>, Arc<Buckets>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `act` with the buckets for the limit of that identity, which are looked up the first time.
    pub(super) fn with(
        &self,
        limit: &Arc<()>,
        look_up: impl FnOnce() -> Option<Arc<Buckets>>,
        act: impl FnOnce(&Buckets),
    ) {
        let mut known = self.lock();
        if let Some((_, buckets)) = known.iter().find(|(other, _)| Arc::ptr_eq(other, limit)) {
            return act(buckets);
        }
        if let Some(buckets) = look_up() {
            act(&buckets);
            known.push((Arc::clone(limit), buckets));
        }
    }

    /// The client has left the export.
    pub(super) fn forget(&self, limit: &Arc<()>) {
        self.lock().retain(|(other, _)| !Arc::ptr_eq(other, limit));
    }
}

/// A copy looks up by itself.
impl Clone for Shares {
    fn clone(&self) -> Self {
        Self::new()
    }
}

/// They say nothing of the client.
impl PartialEq for Shares {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Shares {}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.lock().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prices that don't fit are as long as time goes.
    #[test]
    fn what_costs_more_than_can_be_counted_is_never_paid_for() {
        let now = Instant::now();
        let buckets = Buckets::new(Rates::new().bytes_per_second(1));
        buckets.take(&Command::read(0, 10), now);
        assert_eq!(buckets.wait(now), Duration::from_secs(10));
        let half = Bucket { rate: NonZeroU64::MIN, paid: AtomicU64::new(7) };
        half.pay(u64::MAX, 0);
        assert_eq!(half.paid.into_inner(), u64::MAX);
        let wide = Bucket { rate: NonZeroU64::MAX, paid: AtomicU64::new(7) };
        wide.pay(u64::MAX, 0);
        assert_eq!(wide.paid.into_inner(), 7 + NANOS);
        // A moment before the first one is the first one.
        let buckets = Buckets::new(Rates::new().requests_per_second(1));
        let later = now + Duration::from_secs(5);
        buckets.take(&Command::flush(), later);
        assert_eq!(buckets.wait(now), Duration::from_secs(1));
    }
}
