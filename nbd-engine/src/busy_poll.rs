//! Polling a moment longer before going to sleep.
//!
//! To put a thread to sleep and wake it again costs more than many a client takes to send its next request. So a
//! connection that has just been busy asks its socket a few times more, for some microseconds, before it sleeps. That
//! must never be at the expense of others: only while nothing else is to be done for the connection, only as many
//! connections at a time as leave half of the processors free, and only as long as it pays: after some misses a
//! connection sleeps at once, until its client turns out to be quick again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long to poll by default where that holds up no other task.
pub(crate) const BUSY_POLL: Duration = Duration::from_micros(30);

#[derive(Debug)]
pub(crate) struct BusyPoll {
    limit: Duration,
    misses: u8,
    asleep_since: Option<Instant>,
}

/// So many misses in a row stop a connection from polling.
const MAX_MISSES: u8 = 4;

/// Connections that poll at the moment, in the whole process.
static POLLING: AtomicUsize = AtomicUsize::new(0);

fn max_polling() -> usize {
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| thread::available_parallelism().map_or(0, |count| count.get() / 2))
}

impl BusyPoll {
    /// Polls for at most `limit`; with a limit of zero never.
    pub(crate) const fn new(limit: Duration) -> Self {
        // The first client to be quick earns the first poll.
        Self { limit, misses: MAX_MISSES, asleep_since: None }
    }

    /// Tries until `attempt` gives something, or the limit is reached.
    pub(crate) fn spin<T>(&mut self, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        if self.limit.is_zero() {
            return None;
        }
        if self.misses >= MAX_MISSES {
            self.asleep_since = Some(Instant::now());
            return None;
        }
        if POLLING.fetch_add(1, Ordering::Relaxed) >= max_polling() {
            POLLING.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let start = Instant::now();
        let found = loop {
            let found = attempt();
            if found.is_some() || start.elapsed() >= self.limit {
                break found;
            }
            // Others that want this processor, the client for one, get it.
            thread::yield_now();
        };
        POLLING.fetch_sub(1, Ordering::Relaxed);
        self.misses = if found.is_some() { 0 } else { self.misses + 1 };
        found
    }

    /// Something arrived after a sleep: if that was soon, the next poll is worth while.
    pub(crate) fn on_wakeup(&mut self) {
        if let Some(since) = self.asleep_since.take()
            && since.elapsed() < self.limit.saturating_mul(2)
        {
            self.misses = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_no_limit_to_poll_for_nothing_is_tried() {
        let mut none = BusyPoll::new(Duration::ZERO);
        assert_eq!(none.spin(|| Some(1)), None);
        let mut fresh = BusyPoll::new(Duration::from_secs(1));
        assert_eq!(fresh.spin(|| Some(1)), None, "a client has yet to be quick");
    }

    #[test]
    fn misses_stop_the_polling_and_a_quick_client_restores_it() {
        let mut poll = BusyPoll::new(Duration::from_nanos(1));
        poll.misses = 0;
        while poll.misses < MAX_MISSES {
            let before = poll.misses;
            assert_eq!(poll.spin(|| None::<u8>), None);
            if max_polling() == 0 {
                return; // On one processor no connection polls.
            }
            assert!(poll.misses >= before);
        }
        let mut tried = false;
        poll.spin(|| {
            tried = true;
            None::<u8>
        });
        assert!(!tried);
        poll.limit = Duration::MAX;
        poll.on_wakeup();
        assert_eq!(poll.misses, 0);
    }
}
