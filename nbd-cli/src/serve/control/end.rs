//! What the clients of a control socket know of the end of a server that is replaced.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Shared by all clients of a control socket.
#[derive(Debug, Default)]
pub(super) struct End {
    unanswered: AtomicUsize,
    replaced: AtomicBool,
}

impl End {
    /// Whether another server has taken over, so that nothing is to be changed here any more.
    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }
}

/// A client from when it is accepted until its answer is sent, or it gets none.
#[derive(Debug)]
pub(super) struct Unanswered {
    all: Arc<End>,
    is_counted: Cell<bool>,
}

impl Unanswered {
    pub(super) fn new(all: &Arc<End>) -> Self {
        all.unanswered.fetch_add(1, Ordering::AcqRel);
        Self { all: Arc::clone(all), is_counted: Cell::new(true) }
    }

    /// Its answer is sent.
    pub(super) fn answered(&self) {
        if self.is_counted.replace(false) {
            self.all.unanswered.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// How many others have no answer.
    pub(super) fn others(&self) -> usize {
        self.all.unanswered.load(Ordering::Acquire) - usize::from(self.is_counted.get())
    }

    /// The server is replaced.
    pub(super) fn replaced(&self) {
        self.all.replaced.store(true, Ordering::Release);
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.answered();
    }
}
