//! Log messages that a peer can cause as often as it likes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time between two reports.
const PERIOD: Duration = Duration::from_secs(60);

/// Decides which occurrences of an event are logged, so that no peer can flood the log: the first at once, further ones
/// as a count, once a minute at most.
///
/// ```
/// static FAILURES: nbd_engine::Throttle = nbd_engine::Throttle::new();
/// let mut log = Vec::new();
/// for _ in 0..1000 {
///     if let Some(times) = FAILURES.count() {
///         log.push(format!("accept failed {times} times"));
///     }
/// }
/// assert_eq!(log, ["accept failed 1 times"]);
/// assert_eq!(FAILURES.unreported(), 999);
/// ```
#[derive(Debug, Default)]
pub struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    reported: Option<Instant>,
    unreported: u64,
}

impl Default for State {
    fn default() -> Self {
        Self::NEW
    }
}

impl State {
    const NEW: Self = Self { reported: None, unreported: 0 };

    fn count(&mut self, now: Instant) -> Option<u64> {
        self.unreported += 1;
        if self.reported.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            return None;
        }
        self.reported = Some(now);
        Some(core::mem::take(&mut self.unreported))
    }
}

impl Throttle {
    /// Nothing has occurred yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(State::NEW))
    }

    /// Counts an occurrence. Gives how many there were since the last report, this one included, if it is time to report
    /// them.
    #[must_use]
    pub fn count(&self) -> Option<u64> {
        self.with(|state| state.count(Instant::now()))
    }

    /// Gives how many occurrences were not reported, and takes them for reported: for a last word when it is over.
    #[must_use]
    pub fn unreported(&self) -> u64 {
        self.with(|state| core::mem::take(&mut state.unreported))
    }

    fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_occurrence_is_reported_once_and_reports_are_a_period_apart(
            pauses in prop::collection::vec(0_u64..100_000, 1..200),
        ) {
            let (mut state, mut now) = (State::NEW, Instant::now());
            let (mut reported, mut last) = (0, None);
            for (index, pause) in (1..).zip(&pauses) {
                now += Duration::from_millis(*pause);
                if let Some(times) = state.count(now) {
                    reported += times;
                    prop_assert_eq!(reported, index, "all of them up to this one");
                    if let Some(last) = last.replace(now) {
                        prop_assert!(now - last >= PERIOD);
                    }
                } else {
                    prop_assert!(last.is_some_and(|last| now - last < PERIOD));
                }
            }
            prop_assert_eq!(reported + state.unreported, pauses.len() as u64);
        }
    }
}
