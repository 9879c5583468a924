//! For how long requests are answered without asking the store whether somebody else writes now.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

/// A span of time, from the last look at the store at which this server still was the writer, in which it may answer
/// with success. A new writer waits for as long before it answers its first request, unless this one has closed the
/// volume in order; so no success of this one follows one of the other, even if this process was stopped meanwhile.
#[derive(Debug)]
pub(crate) struct Lease {
    length: Duration,
    /// When the last look began at which all was well, in milliseconds of [`now`].
    renewed: AtomicU64,
    /// Why there will be no other look.
    lost: OnceLock<Lost>,
    /// Notified when the lease is renewed or lost.
    changed: Notify,
    /// Notified when somebody waits for a look.
    asked: Notify,
}

/// Why a volume can't be used any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Another server has opened it.
    Fenced,
    /// It was closed here.
    Closed,
    /// SlateDB gave up.
    Failed(String),
}

/// The time since the machine started, times in which it slept included.
fn now() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

/// A point in time at which a look began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookBegan(Duration);

impl Lease {
    /// A lease that is over.
    pub(crate) fn new(length: Duration) -> Self {
        Self {
            length,
            renewed: AtomicU64::new(0),
            lost: OnceLock::new(),
            changed: Notify::new(),
            asked: Notify::new(),
        }
    }

    /// To be called before a look at the store.
    pub(crate) fn look(&self) -> LookBegan {
        LookBegan(now())
    }

    /// A look that began then found that nobody else has opened the volume.
    pub(crate) fn renew(&self, look: LookBegan) {
        self.renewed.fetch_max(milliseconds(look.0), Ordering::Release);
        self.changed.notify_waiters();
    }

    /// The volume can't be used any more. Only the first reason counts. Returns whether this is it.
    pub(crate) fn lose(&self, reason: Lost) -> bool {
        let first = self.lost.set(reason).is_ok();
        self.changed.notify_waiters();
        first
    }

    /// Why the volume can't be used any more, if so.
    pub(crate) fn lost(&self) -> Option<&Lost> {
        self.lost.get()
    }

    /// Whether a request may be answered with success now. None if that takes another look.
    pub(crate) fn allows(&self) -> Option<Result<(), &Lost>> {
        if let Some(lost) = self.lost.get() {
            return Some(Err(lost));
        }
        let end =
            Duration::from_millis(self.renewed.load(Ordering::Acquire)).saturating_add(self.length);
        (now() < end).then_some(Ok(()))
    }

    /// Waits until requests may be answered with success, or the volume is lost. Cancel-safe.
    pub(crate) async fn confirm(&self) -> Result<(), &Lost> {
        loop {
            let mut changed = core::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(answer) = self.allows() {
                return answer;
            }
            self.asked.notify_one();
            changed.await;
        }
    }

    /// Waits until the volume is lost. Cancel-safe.
    pub(crate) async fn until_lost(&self) -> &Lost {
        loop {
            let mut changed = core::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(lost) = self.lost.get() {
                return lost;
            }
            changed.await;
        }
    }

    /// Waits until somebody waits for a look. Cancel-safe.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use core::future::Future;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};

    use super::*;

    const LONG: Duration = Duration::from_secs(1 << 20);

    fn poll<F: Future>(future: core::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn nothing_is_allowed_before_the_first_look() {
        let lease = Lease::new(Duration::from_millis(1));
        let mut waiting = pin!(lease.confirm());
        assert!(poll(waiting.as_mut()).is_pending());
        // And the look is asked for.
        assert!(poll(pin!(lease.asked())).is_ready());
    }

    #[test]
    fn a_look_allows_for_as_long_as_the_lease_counted_from_its_beginning() {
        let lease = Lease::new(LONG);
        let look = lease.look();
        lease.renew(look);
        assert_eq!(lease.allows(), Some(Ok(())));
        // One that began before the lease's length is of no use, whenever it ended.
        let short = Lease::new(Duration::ZERO);
        let look = short.look();
        short.renew(look);
        assert_eq!(short.allows(), None);
    }

    #[test]
    fn a_lost_volume_stays_lost_for_the_first_reason() {
        let lease = Lease::new(LONG);
        let look = lease.look();
        let mut waiting = pin!(lease.until_lost());
        assert!(poll(waiting.as_mut()).is_pending());
        assert!(lease.lose(Lost::Fenced));
        assert!(!lease.lose(Lost::Closed));
        lease.renew(look);
        assert_eq!(lease.allows(), Some(Err(&Lost::Fenced)));
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(&Lost::Fenced));
    }
}
