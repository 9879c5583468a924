//! What all disks in memory of a process hold together.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::memory_limit;

/// Bytes that are granted at once, so that to look how much there is, which takes about 0.1 ms, costs little.
const STEP: u64 = 8 << 20;

/// After a refusal the limit is not looked at again for as much for this long, unless a disk gave something back.
const PAUSE: Duration = Duration::from_millis(100);

/// An account of memory that several disks share. What is in it is resident: the pages of the disks, those that are
/// received into or sent from, and those that are kept for the next ones.
pub(super) struct Account {
    /// Bytes that are held or granted: never more than the limit was when they were granted.
    committed: AtomicU64,
    /// Bytes that may be taken before the limit has to be looked at again.
    granted: AtomicU64,
    limit: Limit,
    /// How many bytes could not be had, and when that was. Locked while more is granted.
    refused: Mutex<Option<(u64, Instant)>>,
}

enum Limit {
    /// Seven eighths of what the process may use for pages: what they take already, and what is available.
    Process,
    #[cfg(test)]
    Fixed(u64),
}

impl Account {
    const fn new(limit: Limit) -> Self {
        Self {
            committed: AtomicU64::new(0),
            granted: AtomicU64::new(0),
            limit,
            refused: Mutex::new(None),
        }
    }

    /// That of this process.
    pub(super) fn process() -> Arc<Self> {
        static PROCESS: OnceLock<Arc<Account>> = OnceLock::new();
        Arc::clone(PROCESS.get_or_init(|| Arc::new(Self::new(Limit::Process))))
    }

    #[cfg(test)]
    pub(super) fn fixed(limit: u64) -> Arc<Self> {
        Arc::new(Self::new(Limit::Fixed(limit)))
    }

    /// Bytes that are in it now.
    pub(super) fn held(&self) -> u64 {
        let granted = self.granted.load(Ordering::Acquire);
        self.committed.load(Ordering::Acquire).saturating_sub(granted)
    }

    /// Bytes that may be in it, by what is available now.
    pub(super) fn limit(&self) -> u64 {
        match self.limit {
            Limit::Process => memory_limit::available().saturating_add(self.held()) / 8 * 7,
            #[cfg(test)]
            Limit::Fixed(limit) => limit,
        }
    }

    /// Whether that many more bytes would fit now. Others may take them before they are used.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        // A look at the limit takes longer than most requests, and what is granted was looked at.
        bytes <= self.granted.load(Ordering::Acquire)
            || self.limit().checked_sub(self.held()).is_some_and(|room| room >= bytes)
    }

    /// Takes bytes; `false` when there are not as many.
    pub(super) fn charge(&self, bytes: u64) -> bool {
        while !self.use_grant(bytes) {
            if !self.grant(bytes) {
                return false;
            }
        }
        true
    }

    fn use_grant(&self, bytes: u64) -> bool {
        let rest = |granted: u64| granted.checked_sub(bytes);
        self.granted.fetch_update(Ordering::AcqRel, Ordering::Acquire, rest).is_ok()
    }

    /// Looks how much there is and grants a step of it, so that at least `bytes` are granted.
    fn grant(&self, bytes: u64) -> bool {
        let mut refused = self.refused();
        let granted = self.granted.load(Ordering::Acquire);
        if granted >= bytes {
            // Somebody else has looked meanwhile.
            return true;
        }
        if refused.is_some_and(|(least, at)| bytes >= least && at.elapsed() < PAUSE) {
            return false;
        }
        let room = self.limit().saturating_sub(self.committed.load(Ordering::Acquire));
        let step = room.min(STEP.max(bytes));
        if granted.saturating_add(step) < bytes {
            *refused = Some((bytes, Instant::now()));
            return false;
        }
        *refused = None;
        self.committed.fetch_add(step, Ordering::AcqRel);
        self.granted.fetch_add(step, Ordering::AcqRel);
        true
    }

    /// Gives bytes back.
    pub(super) fn discharge(&self, bytes: u64) {
        if bytes > 0 {
            self.committed.fetch_sub(bytes, Ordering::AcqRel);
            *self.refused() = None;
        }
    }

    fn refused(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_or_needs_nothing_has_room_though_the_limit_has_fallen() {
        let account = Account::fixed(1000);
        assert!(account.charge(100));
        let granted = account.granted.load(Ordering::Acquire);
        assert!(granted > 0);
        let fallen = Account {
            committed: AtomicU64::new(1000),
            granted: AtomicU64::new(granted),
            ..Account::new(Limit::Fixed(10))
        };
        assert!(fallen.has_room(0) && fallen.has_room(granted) && !fallen.has_room(granted + 1));
    }

    #[test]
    fn no_more_than_the_limit_is_granted() {
        let account = Account::fixed(3 * STEP);
        let mut taken = 0;
        while account.charge(1000) {
            taken += 1000;
        }
        assert!((3 * STEP - 1000..=3 * STEP).contains(&taken), "{taken}");
        assert_eq!(account.held(), taken);
        assert!(!account.has_room(1000));
        account.discharge(1000);
        assert!(account.has_room(1000) && account.charge(1000) && !account.charge(1000));
    }

    #[test]
    fn a_refused_large_amount_leaves_room_for_a_small_one() {
        let account = Account::fixed(1000);
        assert!(!account.charge(1001));
        assert_eq!(account.held(), 0);
        assert!(account.charge(900) && account.charge(100) && !account.charge(1));
    }

    #[test]
    fn threads_together_take_no_more_than_the_limit() {
        let account = Account::fixed(10 * STEP);
        let max = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut own = 0;
                    for round in 0..20_000u64 {
                        if account.charge(16 << 10) {
                            own += 16 << 10;
                            max.fetch_max(account.held(), Ordering::Relaxed);
                        }
                        if round % 5 == 4 && own > 0 {
                            account.discharge(own / 2);
                            own -= own / 2;
                        }
                    }
                    account.discharge(own);
                });
            }
        });
        assert_eq!(account.held(), 0);
        assert!(max.into_inner() <= 10 * STEP);
    }

    #[test]
    fn the_process_has_one_account_with_some_room() {
        assert!(Arc::ptr_eq(&Account::process(), &Account::process()));
        assert!(Account::process().limit() > 0);
    }
}
