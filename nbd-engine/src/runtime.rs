//! What the engine asks of a runtime.

use core::future::Future;
use core::pin::Pin;
use core::task::Context;
use core::time::Duration;
use std::time::Instant;

/// A future in a box.
pub type BoxFuture<T = ()> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Time and tasks, as an adapter provides them. Cheap to clone.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// Is ready once `duration` has passed; never, if no [`Instant`] is that far away: [`Duration::MAX`] has to do,
    /// since it stands for "no limit". Dropping the future ends the sleep.
    fn sleep(&self, duration: Duration) -> BoxFuture;

    /// The current time, by the clock that [`sleep`](Self::sleep) follows. All deadlines of the engine are measured by it.
    /// The default is the system's monotonic clock; a runtime whose time can be stopped or simulated gives its own.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Runs `task` beside the caller, to its end. Must not run it before this returns. A task may panic, which must end
    /// no other task.
    fn spawn(&self, task: BoxFuture);

    /// Has the task of `cx` polled again once others had their turn. By default it is woken at once, which puts it at the
    /// end of most runtimes' queues; a runtime that looks at its sockets only when its queue is empty has a better way.
    fn yield_now(&self, cx: &mut Context<'_>) {
        cx.waker().wake_by_ref();
    }

    /// Whether a task may share its thread with others, as on most runtimes. Then it lets the others run after a little
    /// work, and does not poll for what may come in a moment.
    fn shares_threads(&self) -> bool {
        true
    }
}

/// The moment that is `time` after `now`; one that is out of reach is never too late.
pub(crate) fn moment_after(now: Instant, time: Duration) -> Instant {
    now.checked_add(time).unwrap_or_else(|| now + Duration::from_secs(1 << 32))
}

/// A share of `time`, from 0 to 1.
pub(crate) fn share_of(time: Duration, share: f64) -> Duration {
    // The longest times are rounded up to more than there is.
    Duration::try_from_secs_f64(time.as_secs_f64() * share).map_or(time, |part| part.min(time))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_time_is_too_long_to_be_reckoned_with(
            seconds: u64,
            shift in 0..64u32,
            nanos in 0..1_000_000_000u32,
            share in 0.0..=1.0f64,
        ) {
            let now = Instant::now();
            for time in [Duration::new(seconds >> shift, nanos), Duration::MAX] {
                let moment = moment_after(now, time);
                prop_assert!(moment >= now);
                prop_assert!(moment.duration_since(now) == time || time.as_secs() > 1 << 32);
                prop_assert!(share_of(time, share) <= time);
                prop_assert_eq!(share_of(time, 0.0), Duration::ZERO);
            }
            prop_assert_eq!(share_of(Duration::from_secs(8), 0.25), Duration::from_secs(2));
        }
    }
}
