//! Waiting a moment longer before going to sleep.
//!
//! To put a thread to sleep and wake it again costs more than many a client takes to send its next request. So a
//! connection that has just been busy asks its socket a few times more, for some microseconds, before it sleeps. That
//! must never be at the expense of others: only while nothing else is to be done for the connection, only as many
//! connections at a time as leave half of the processors free, and only as long as it pays: after some disappointments
//! a connection sleeps at once, until its client turns out to be quick again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Patience {
    limit: Duration,
    disappointments: u8,
    asleep_since: Option<Instant>,
}

/// So many disappointments in a row end a connection's patience.
const ENOUGH: u8 = 4;

/// Connections that wait at the moment, in the whole process.
static WAITING: AtomicUsize = AtomicUsize::new(0);

fn most_waiting() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| thread::available_parallelism().map_or(0, |count| count.get() / 2))
}

impl Patience {
    /// Waits for at most `limit`; a limit of zero is no patience at all.
    pub(crate) const fn new(limit: Duration) -> Self {
        // The first client to be quick earns the first wait.
        Self { limit, disappointments: ENOUGH, asleep_since: None }
    }

    /// Tries until `attempt` gives something, or patience ends.
    pub(crate) fn try_for<T>(&mut self, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        if self.limit.is_zero() {
            return None;
        }
        if self.disappointments >= ENOUGH {
            self.asleep_since = Some(Instant::now());
            return None;
        }
        if WAITING.fetch_add(1, Ordering::Relaxed) >= most_waiting() {
            WAITING.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let start = Instant::now();
        let found = loop {
            let found = attempt();
            if found.is_some() || start.elapsed() >= self.limit {
                break found;
            }
            // Whoever else wants this processor, the client for one, gets it.
            thread::yield_now();
        };
        WAITING.fetch_sub(1, Ordering::Relaxed);
        self.disappointments = if found.is_some() { 0 } else { self.disappointments + 1 };
        found
    }

    /// Something arrived after a sleep: if that was soon, the next wait is worth while.
    pub(crate) fn woken(&mut self) {
        if let Some(since) = self.asleep_since.take()
            && since.elapsed() < self.limit * 2
        {
            self.disappointments = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_patience_nothing_is_tried() {
        let mut none = Patience::new(Duration::ZERO);
        assert_eq!(none.try_for(|| Some(1)), None);
        let mut fresh = Patience::new(Duration::from_secs(1));
        assert_eq!(fresh.try_for(|| Some(1)), None, "a client has yet to be quick");
    }

    #[test]
    fn disappointments_end_patience_and_a_quick_client_restores_it() {
        let mut patience = Patience::new(Duration::from_nanos(1));
        patience.disappointments = 0;
        while patience.disappointments < ENOUGH {
            let before = patience.disappointments;
            assert_eq!(patience.try_for(|| None::<u8>), None);
            if most_waiting() == 0 {
                return; // On one processor nobody waits.
            }
            assert!(patience.disappointments >= before);
        }
        let mut tried = false;
        patience.try_for(|| {
            tried = true;
            None::<u8>
        });
        assert!(!tried);
        patience.limit = Duration::from_secs(1000);
        patience.woken();
        assert_eq!(patience.disappointments, 0);
    }
}
