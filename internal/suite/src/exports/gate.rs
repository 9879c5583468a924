//! A gate that work waits at.

use std::future::poll_fn;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use nbd_engine::export::{ExportError, Result};
use nbd_testkit::process::wait_until;

use crate::SOON;

/// Work at offsets below [`Gate::END`] waits here while the gate is closed, until the scenario lets it go on; it is known
/// by its offset. Other work passes. Counts how much is at work at once, whether it has to wait or not.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Offsets of what waits, in the order in which it came; no two are equal.
    waiting: Vec<u64>,
    /// Offsets that may go on.
    released: Vec<u64>,
    wakers: Vec<Waker>,
    at_work: usize,
    most_at_work: usize,
    begun: usize,
}

impl State {
    /// Whether work at `offset` may go on; a release counts once. `waits` is whether the work has been told to wait.
    fn pass(&mut self, offset: u64, waits: &mut bool) -> bool {
        let released = self.released.iter().position(|at| *at == offset);
        if let Some(at) = released {
            self.released.swap_remove(at);
        }
        let passes = released.is_some() || !self.closed || offset >= Gate::END;
        if !passes && !*waits {
            self.waiting.push(offset);
        }
        if passes && *waits {
            self.waiting.retain(|at| *at != offset);
        }
        *waits = !passes;
        passes
    }
}

impl Gate {
    /// Work from this offset on never waits.
    pub const END: u64 = 64 << 10;

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the gate.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// Opens it for good.
    pub fn open(&self) {
        self.change(|state| state.closed = false);
    }

    /// Lets one piece of work at that offset go on.
    pub fn release(&self, offset: u64) {
        self.change(|state| state.released.push(offset));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wakers = core::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until so many pieces of work wait, and gives their offsets in the order in which they came.
    #[track_caller]
    pub fn wait_for(&self, count: usize) -> Vec<u64> {
        let what = format!("{count} requests wait at the gate");
        wait_until(&what, SOON, || self.lock().waiting.len() == count);
        self.lock().waiting.clone()
    }

    /// Waits until at least so many pieces of work wait.
    #[track_caller]
    pub fn wait_for_at_least(&self, count: usize) {
        let what = format!("{count} requests wait at the gate");
        wait_until(&what, SOON, || self.lock().waiting.len() >= count);
    }

    /// The most that was at work at once.
    pub fn most_at_work(&self) -> usize {
        self.lock().most_at_work
    }

    /// How much was begun so far.
    pub fn begun(&self) -> usize {
        self.lock().begun
    }

    fn arrive(&self) -> AtWork<'_> {
        let mut state = self.lock();
        state.begun += 1;
        state.at_work += 1;
        state.most_at_work = state.most_at_work.max(state.at_work);
        AtWork(self)
    }

    /// Passes the gate on a thread, and does `work`.
    pub(super) fn pass<T>(&self, offset: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _at_work = self.arrive();
        let mut waits = false;
        let mut state = self.lock();
        while !state.pass(offset, &mut waits) {
            let waited = self.changed.wait_timeout(state, SOON * 2);
            let (changed, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = changed;
            if timeout.timed_out() {
                return Err(ExportError::io("the gate stayed closed"));
            }
        }
        drop(state);
        work()
    }

    /// Passes the gate in a future, and does `work`.
    pub(super) async fn pass_async<T>(
        &self,
        offset: u64,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let _at_work = self.arrive();
        let (mut first, mut waits) = (true, false);
        poll_fn(|cx| {
            let mut state = self.lock();
            // Even where nothing has to wait the future is polled twice, as that of a real disk.
            if core::mem::take(&mut first) {
                cx.waker().wake_by_ref();
            } else if state.pass(offset, &mut waits) {
                return Poll::Ready(());
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        work()
    }
}

/// Counts a piece of work while it lasts; a future may be dropped before its end.
struct AtWork<'a>(&'a Gate);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.lock().at_work -= 1;
    }
}
