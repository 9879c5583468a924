//! Requests that take exactly as long as a test wants.

use std::future::poll_fn;
use std::sync::{Condvar, Mutex};
use std::task::{Poll, Waker};

use super::LIMIT;

/// Holds up whoever comes to it, thread or task, until it is opened.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    arrived: usize,
    wakers: Vec<Waker>,
}

impl Gate {
    /// Passes, on a thread that may block.
    pub(super) fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.arrived += 1;
        self.changed.notify_all();
        let (_state, timeout) =
            self.changed.wait_timeout_while(state, LIMIT * 2, |state| !state.open).unwrap();
        assert!(!timeout.timed_out(), "the gate was never opened");
    }

    /// Passes, as a task.
    pub(super) async fn passed(&self) {
        self.state.lock().unwrap().arrived += 1;
        self.changed.notify_all();
        poll_fn(|cx| {
            let mut state = self.state.lock().unwrap();
            if state.open {
                return Poll::Ready(());
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Lets everybody pass, from now on.
    pub(super) fn open(&self) {
        let mut state = self.state.lock().unwrap();
        state.open = true;
        self.changed.notify_all();
        state.wakers.drain(..).for_each(Waker::wake);
    }

    /// Waits until so many have come to the gate.
    #[track_caller]
    pub(super) fn wait_for(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let (state, timeout) =
            self.changed.wait_timeout_while(state, LIMIT, |state| state.arrived < count).unwrap();
        assert!(!timeout.timed_out(), "{} of {count} requests have arrived", state.arrived);
    }
}
