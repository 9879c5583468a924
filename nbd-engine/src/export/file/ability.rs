//! What the file system or the kernel may not be able to do.

use core::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, Result};

/// A way of doing something, until it turns out that it is not supported. Asking again and again would cost a system
/// call each time, and the answer does not change while a file is open.
#[derive(Debug, Default)]
pub(super) struct Ability {
    missing: AtomicBool,
    proven: AtomicBool,
}

impl Ability {
    /// Does it, or `None` if that is not supported.
    pub(super) fn attempt<T>(&self, call: impl FnMut() -> Result<T>) -> Option<Result<T>> {
        if self.is_missing() {
            return None;
        }
        match rustix::io::retry_on_intr(call) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.forget();
                None
            }
            result => {
                if result.is_ok() {
                    self.proven.store(true, Ordering::Relaxed);
                }
                Some(result)
            }
        }
    }

    /// Whether it has succeeded before.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    pub(super) fn is_missing(&self) -> bool {
        self.missing.load(Ordering::Relaxed)
    }

    /// Never tries again.
    pub(super) fn forget(&self) {
        self.missing.store(true, Ordering::Relaxed);
    }
}

/// What is tried before a request goes to a worker.
#[derive(Debug, Default)]
pub(super) struct Abilities {
    /// Reading what is cached, `RWF_NOWAIT`.
    pub(super) try_read: Ability,
    /// Writing what needs no wait, `RWF_NOWAIT`.
    pub(super) try_write: Ability,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsupported_call_is_made_once() {
        let ability = Ability::default();
        let mut calls = 0;
        for _ in 0..3 {
            let result: Option<Result<()>> = ability.attempt(|| {
                calls += 1;
                Err(Errno::OPNOTSUPP)
            });
            assert!(result.is_none());
        }
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_call_that_fails_otherwise_is_made_again() {
        let ability = Ability::default();
        for _ in 0..3 {
            assert_eq!(ability.attempt(|| Err::<(), _>(Errno::IO)), Some(Err(Errno::IO)));
        }
        assert!(!ability.is_missing());
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        let mut results = [Ok(7), Err(Errno::INTR)].into_iter().rev();
        assert_eq!(Ability::default().attempt(|| results.next().unwrap()), Some(Ok(7)));
    }
}
