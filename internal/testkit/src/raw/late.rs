//! Clients that may be late.
//!
//! A deadline that is short, so that a test need not wait for it long, also passes for a client that a busy machine lets
//! wait. A test that needs the client to get somewhere before it says so here, and lets another client try.

use core::cell::Cell;
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

/// How many clients may be late, one after the other, until something else must be the matter.
const ATTEMPTS: usize = 30;

thread_local! {
    /// Whether this thread runs the script of a client that may be late.
    static MAY_BE_LATE: Cell<bool> = const { Cell::new(false) };
}

/// With what the script of a client that may be late is left when the peer has closed: where it had got to.
struct Gone(String);

/// The peer has closed where the client had to send or to receive.
#[track_caller]
pub(super) fn gone(what: String) -> ! {
    if MAY_BE_LATE.get() {
        resume_unwind(Box::new(Gone(what)));
    }
    panic!("{what}")
}

/// Runs what a client does with a server that may close once `limit` has passed since the beginning. Nothing if it has
/// closed before the script was at its end.
///
/// # Panics
/// When the server has closed before it may, or when the script panics.
pub fn unless_late<T>(limit: Duration, script: impl FnOnce() -> T) -> Option<T> {
    let begun = Instant::now();
    let outer = MAY_BE_LATE.replace(true);
    let result = catch_unwind(AssertUnwindSafe(script));
    MAY_BE_LATE.set(outer);
    match result {
        Ok(done) => Some(done),
        Err(panic) => match panic.downcast::<Gone>() {
            Ok(gone) => {
                let passed = begun.elapsed();
                assert!(passed >= limit, "{}, after {passed:?} of {limit:?}", gone.0);
                None
            }
            Err(panic) => resume_unwind(panic),
        },
    }
}

/// Runs what a client does with such a server, with a new connection each time, until one is in time.
///
/// # Panics
/// When the server closes before it may, when the script panics, or when none is in time.
pub fn in_time<T>(limit: Duration, mut script: impl FnMut() -> T) -> T {
    some_attempt(|| unless_late(limit, &mut script))
}

/// What the first attempt gives that comes to something.
///
/// # Panics
/// When none does.
#[track_caller]
pub fn some_attempt<T>(attempt: impl FnMut() -> Option<T>) -> T {
    let mut attempts = core::iter::repeat_with(attempt).take(ATTEMPTS);
    attempts
        .find_map(|done| done)
        .unwrap_or_else(|| panic!("none of {ATTEMPTS} attempts was in time"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::{RawClient, Request, Wire};
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    /// A client whose server closes after `time`.
    fn left_after(time: Duration) -> RawClient {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(time);
            drop(theirs);
        });
        RawClient::over(Wire::from_unix(ours))
    }

    #[test]
    fn another_client_tries_when_one_was_late() {
        let mut attempts = 0;
        let done = in_time(LIMIT, || {
            attempts += 1;
            if attempts < 3 {
                left_after(LIMIT).read_greeting();
            }
            attempts
        });
        assert_eq!(done, 3);
        // Whether it sends or receives.
        let late = unless_late::<()>(LIMIT, || {
            let mut client = left_after(LIMIT);
            loop {
                client.send(&Request::flush());
            }
        });
        assert!(late.is_none());
    }

    #[test]
    #[should_panic(expected = "the peer closed")]
    fn a_server_that_closes_too_soon_fails_the_test() {
        unless_late(Duration::from_secs(3600), || left_after(LIMIT).read_greeting());
    }

    #[test]
    #[should_panic(expected = "something else")]
    fn what_else_is_wrong_fails_the_test() {
        unless_late(Duration::ZERO, || panic!("something else"));
    }

    #[test]
    #[should_panic(expected = "the peer closed")]
    fn a_client_that_may_not_be_late_fails_the_test() {
        assert!(unless_late(Duration::ZERO, || ()).is_some());
        left_after(Duration::ZERO).read_greeting();
    }
}
