//! Which requests may touch which blocks at the same time.

use core::ops::Range;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Locks of ranges of blocks. A request waits for all earlier ones that it conflicts with, those that wait themselves
/// included, so that none waits forever and no two wait for each other.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    requests: Mutex<Requests>,
    /// Notified whenever a lock is released.
    released: Notify,
}

#[derive(Debug, Default)]
struct Requests {
    next: u64,
    /// Those that hold a lock or wait for it, in the order in which they came.
    by_order: BTreeMap<u64, Request>,
}

#[derive(Debug)]
struct Request {
    blocks: Range<u64>,
    mode: Mode,
}

/// What a lock keeps away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Those that change blocks: for reading.
    Shared,
    /// All others: for changing.
    Exclusive,
}

impl Request {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.blocks.start < other.blocks.end && other.blocks.start < self.blocks.end;
        overlap && (self.mode == Mode::Exclusive || other.mode == Mode::Exclusive)
    }
}

impl Requests {
    fn add(&mut self, request: Request) -> u64 {
        let order = self.next;
        self.next += 1;
        self.by_order.insert(order, request);
        order
    }

    /// Whether nothing that came before it stands in the way of a request.
    fn is_free(&self, order: u64) -> bool {
        let Some(request) = self.by_order.get(&order) else { return true };
        !self.by_order.range(..order).any(|(_, earlier)| earlier.conflicts(request))
    }
}

impl RangeLocks {
    /// The blocks, if they are free and no earlier request waits for any of them.
    pub(crate) fn try_lock(self: &Arc<Self>, blocks: Range<u64>, mode: Mode) -> Option<RangeLock> {
        let request = Request { blocks, mode };
        let mut requests = self.requests();
        if requests.by_order.values().any(|earlier| earlier.conflicts(&request)) {
            return None;
        }
        let order = requests.add(request);
        Some(RangeLock { locks: Arc::clone(self), order })
    }

    /// Waits until the blocks are free. Cancel-safe: what is dropped while it waits leaves nothing behind.
    pub(crate) async fn lock(self: &Arc<Self>, blocks: Range<u64>, mode: Mode) -> RangeLock {
        let order = self.requests().add(Request { blocks, mode });
        let lock = RangeLock { locks: Arc::clone(self), order };
        loop {
            let released = self.released.notified();
            let mut released = core::pin::pin!(released);
            // Before the look, so that no release is missed.
            released.as_mut().enable();
            if self.requests().is_free(order) {
                return lock;
            }
            released.await;
        }
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks that are locked until this is dropped.
#[derive(Debug)]
pub(crate) struct RangeLock {
    locks: Arc<RangeLocks>,
    order: u64,
}

impl Drop for RangeLock {
    fn drop(&mut self) {
        self.locks.requests().by_order.remove(&self.order);
        self.locks.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use core::future::Future;
    use core::pin::Pin;
    use core::task::{Context, Poll, Waker};

    use proptest::prelude::*;

    use super::*;

    type Waiting = Pin<Box<dyn Future<Output = RangeLock>>>;

    fn request(locks: &Arc<RangeLocks>, blocks: Range<u64>, mode: Mode) -> Waiting {
        let locks = Arc::clone(locks);
        Box::pin(async move { locks.lock(blocks, mode).await })
    }

    fn poll(waiting: &mut Waiting) -> Option<RangeLock> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(lock) => Some(lock),
            Poll::Pending => None,
        }
    }

    #[test]
    fn readers_share_and_writers_do_not() {
        let locks = Arc::new(RangeLocks::default());
        let first = poll(&mut request(&locks, 0..4, Mode::Shared)).unwrap();
        let second = poll(&mut request(&locks, 2..6, Mode::Shared)).unwrap();
        let mut writer = request(&locks, 3..4, Mode::Exclusive);
        assert!(poll(&mut writer).is_none());
        let _elsewhere = poll(&mut request(&locks, 6..7, Mode::Exclusive)).unwrap();
        drop(first);
        assert!(poll(&mut writer).is_none());
        drop(second);
        assert!(poll(&mut writer).is_some());
    }

    #[test]
    fn what_does_not_wait_gets_what_nobody_has_or_waits_for() {
        let locks = Arc::new(RangeLocks::default());
        let first = locks.try_lock(0..4, Mode::Exclusive).unwrap();
        assert!(locks.try_lock(3..5, Mode::Exclusive).is_none());
        let mut waiting = request(&locks, 3..8, Mode::Shared);
        assert!(poll(&mut waiting).is_none());
        assert!(locks.try_lock(7..9, Mode::Exclusive).is_none());
        let _elsewhere = locks.try_lock(8..9, Mode::Exclusive).unwrap();
        drop(first);
        let waited = poll(&mut waiting).unwrap();
        assert!(locks.try_lock(7..8, Mode::Exclusive).is_none());
        drop(waited);
        assert!(locks.try_lock(7..8, Mode::Exclusive).is_some());
    }

    #[test]
    fn a_writer_that_waits_is_not_overtaken() {
        let locks = Arc::new(RangeLocks::default());
        let reader = poll(&mut request(&locks, 0..4, Mode::Shared)).unwrap();
        let mut writer = request(&locks, 0..4, Mode::Exclusive);
        assert!(poll(&mut writer).is_none());
        let mut late = request(&locks, 0..4, Mode::Shared);
        assert!(poll(&mut late).is_none());
        // One that gives up holds up nobody.
        drop(writer);
        assert!(poll(&mut late).is_some());
        drop(reader);
    }

    proptest! {
        #[test]
        fn no_two_that_conflict_are_in_and_all_get_in(
            requests in prop::collection::vec((0u64..16, 1u64..8, any::<bool>()), 1..24),
            order in prop::collection::vec(any::<prop::sample::Index>(), 64),
        ) {
            let locks = Arc::new(RangeLocks::default());
            let mut waiting: Vec<_> = requests
                .iter()
                .map(|(start, length, exclusive)| {
                    let mode = if *exclusive { Mode::Exclusive } else { Mode::Shared };
                    let mut one = request(&locks, *start..start + length, mode);
                    let lock = poll(&mut one);
                    (*start..start + length, mode, one, lock)
                })
                .collect();
            for index in order {
                let holding = |one: &(Range<u64>, Mode, Waiting, Option<RangeLock>)| one.3.is_some();
                for (i, a) in waiting.iter().enumerate().filter(|(_, one)| holding(one)) {
                    for b in waiting[i + 1..].iter().filter(|one| holding(one)) {
                        let (a, b) = (
                            Request { blocks: a.0.clone(), mode: a.1 },
                            Request { blocks: b.0.clone(), mode: b.1 },
                        );
                        prop_assert!(!a.conflicts(&b));
                    }
                }
                if waiting.is_empty() {
                    break;
                }
                let holders: Vec<usize> =
                    (0..waiting.len()).filter(|i| waiting[*i].3.is_some()).collect();
                prop_assert!(!holders.is_empty(), "all wait");
                drop(waiting.remove(holders[index.index(holders.len())]));
                for one in waiting.iter_mut().filter(|one| one.3.is_none()) {
                    one.3 = poll(&mut one.2);
                }
            }
        }
    }
}
