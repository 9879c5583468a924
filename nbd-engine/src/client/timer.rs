//! Time, whichever runtime it comes from.

use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use crate::runtime::{BoxFuture, Runtime, moment_after};

/// A runtime's clock without the runtime's type.
#[derive(Clone)]
pub(crate) struct Timer(Arc<dyn Clock>);

/// The part of a [`Runtime`] that is about time, behind a pointer.
trait Clock: Send + Sync {
    fn sleep(&self, duration: Duration) -> BoxFuture;
    fn now(&self) -> Instant;
}

impl<R: Runtime> Clock for R {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        Runtime::sleep(self, duration)
    }

    fn now(&self) -> Instant {
        Runtime::now(self)
    }
}

impl Timer {
    pub(crate) fn new(runtime: impl Runtime) -> Self {
        Self(Arc::new(runtime))
    }

    pub(crate) fn sleep(&self, duration: Duration) -> BoxFuture {
        self.0.sleep(duration)
    }

    pub(crate) fn now(&self) -> Instant {
        self.0.now()
    }

    /// Goes off after `wait`, where something may take `limit` as a whole.
    pub(crate) fn alarm(&self, wait: Duration, limit: Duration) -> Alarm {
        let slack = (limit / 2).clamp(MIN_SLACK, MAX_SLACK);
        let due = moment_after(self.now(), wait);
        Alarm { sleep: self.sleep(wait), due, slack, timer: self.clone() }
    }

    /// The future's output, unless `limit` passes first. A time in which this process did not run does not count.
    pub(crate) async fn within<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut deadline: Option<Deadline> = None;
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            deadline.get_or_insert_with(|| self.deadline(limit)).poll(cx).map(|()| None)
        })
        .await
    }

    /// Passes after `limit`, of which a time in which this process did not run is no part.
    pub(crate) fn deadline(&self, limit: Duration) -> Deadline {
        Deadline { limit, alarm: self.alarm(limit, limit) }
    }
}

/// A moment after which nothing is waited for any more. Poll what may be there by then first.
pub(crate) struct Deadline {
    limit: Duration,
    alarm: Alarm,
}

impl Deadline {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while ready!(self.alarm.poll(cx)) == Ring::Late {
            self.alarm = self.alarm.timer.alarm(self.limit, self.limit);
        }
        Poll::Ready(())
    }
}

/// By how much an alarm may be late on a busy machine: half of the limit that it is for, within these bounds.
const MIN_SLACK: Duration = Duration::from_secs(1);
const MAX_SLACK: Duration = Duration::from_secs(10);

/// A sleep that notices whether this process ran when it was due.
pub(crate) struct Alarm {
    sleep: BoxFuture,
    due: Instant,
    slack: Duration,
    timer: Timer,
}

/// How an alarm goes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    /// When it was due.
    InTime,
    /// Much later: the process was stopped (`SIGSTOP`, a debugger, a suspended machine), or no caller drove what the alarm
    /// belongs to. What the peer sent meanwhile may still lie in the socket, so that the time does not count.
    Late,
}

impl Alarm {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ring> {
        ready!(self.sleep.as_mut().poll(cx));
        let late = self.timer.now().saturating_duration_since(self.due);
        Poll::Ready(if late > self.slack { Ring::Late } else { Ring::InTime })
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timer")
    }
}

#[cfg(test)]
pub(in crate::client) mod tests {
    use core::sync::atomic::{AtomicU64, Ordering};
    use core::task::Waker;

    use super::*;

    /// A clock that goes on by hand. Sleeps don't wake: they are polled again and again.
    #[derive(Clone, Debug)]
    pub(in crate::client) struct Manual {
        start: Instant,
        nanos: Arc<AtomicU64>,
    }

    impl Default for Manual {
        fn default() -> Self {
            Self { start: Instant::now(), nanos: Arc::default() }
        }
    }

    impl Manual {
        pub(in crate::client) fn timer(&self) -> Timer {
            Timer::new(self.clone())
        }

        pub(in crate::client) fn advance(&self, duration: Duration) {
            self.nanos.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
        }
    }

    impl Runtime for Manual {
        fn sleep(&self, duration: Duration) -> BoxFuture {
            let (clock, due) = (self.clone(), moment_after(Runtime::now(self), duration));
            Box::pin(poll_fn(move |_| match Runtime::now(&clock) >= due {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }))
        }

        fn now(&self) -> Instant {
            self.start + Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
        }

        fn spawn(&self, _: BoxFuture) {
            unreachable!("nothing is spawned here")
        }
    }

    const LIMIT: Duration = Duration::from_secs(4);

    #[test]
    fn an_alarm_notices_that_the_process_did_not_run() {
        for (past_due, expected) in [(0, Ring::InTime), (1900, Ring::InTime), (2100, Ring::Late)] {
            let clock = Manual::default();
            let mut alarm = clock.timer().alarm(LIMIT, LIMIT);
            let cx = &mut Context::from_waker(Waker::noop());
            clock.advance(LIMIT - Duration::from_millis(1));
            assert!(alarm.poll(cx).is_pending());
            clock.advance(Duration::from_millis(1 + past_due));
            assert_eq!(alarm.poll(cx), Poll::Ready(expected), "{past_due} ms late");
        }
    }

    #[test]
    fn a_limit_that_no_clock_reaches_is_no_limit() {
        let clock = Manual::default();
        let timer = clock.timer();
        let mut within = pin!(timer.within(Duration::MAX, core::future::pending::<()>()));
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert!(within.as_mut().poll(cx).is_pending());
            clock.advance(Duration::from_secs(1 << 30));
        }
        assert!(within.as_mut().poll(cx).is_pending());
    }

    #[test]
    fn a_time_in_which_the_process_did_not_run_does_not_count() {
        let clock = Manual::default();
        let timer = clock.timer();
        let mut within = pin!(timer.within(LIMIT, core::future::pending::<()>()));
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert!(within.as_mut().poll(cx).is_pending());
            clock.advance(LIMIT * 10);
        }
        assert!(within.as_mut().poll(cx).is_pending());
        clock.advance(LIMIT);
        assert_eq!(within.as_mut().poll(cx), Poll::Ready(None));
    }
}
