//! What a client and the driver of one of its connections share.

use core::sync::atomic::{AtomicU64, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atomic_waker::AtomicWaker;

use super::lead::Lead;
use super::ticket::{Buffer, Outcome, Ticket};
use super::transfer::Transfer;
use super::{Error, LostReason};

/// The way to a connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: Arc<str>,
    queue: Mutex<Queue>,
    /// Whoever drives the connection.
    pub(crate) waker: AtomicWaker,
    /// Set where those who wait drive the connection themselves.
    pub(crate) lead: Option<Lead>,
    /// Answers to requests that change the export, and how many of them a flush on this connection covers.
    changes: AtomicU64,
    flushed: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<Transfer>,
    farewells: Vec<Arc<Ticket>>,
    leaving: Leaving,
    closed: Option<Closed>,
}

/// Whether the client wants to leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Leaving {
    #[default]
    No,
    /// Once all requests are answered.
    Softly,
    /// Nobody waits for anything any more.
    Now,
}

/// Why a connection takes no more requests.
#[derive(Clone, Debug)]
pub(crate) enum Closed {
    Left,
    Lost(LostReason),
}

impl Closed {
    pub(crate) fn error(&self, peer: &Arc<str>, sent: bool) -> Error {
        let peer = Arc::clone(peer);
        match self {
            Self::Left => Error::Disconnected { peer },
            Self::Lost(reason) => Error::Lost { peer, sent, reason: reason.clone() },
        }
    }
}

impl Link {
    pub(crate) fn new(peer: Arc<str>, lead: Option<Lead>) -> Self {
        let (changes, flushed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { peer, queue: Mutex::default(), waker: AtomicWaker::new(), lead, changes, flushed }
    }

    /// A request that changes the export was answered, and nobody is told before.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The changes that a flush covers that is submitted now.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// A flush that was submitted after so many changes has succeeded.
    pub(crate) fn flushed(&self, changes: u64) {
        self.flushed.fetch_max(changes, Ordering::AcqRel);
    }

    /// Whether there are changes that no flush on this connection covers.
    pub(crate) fn is_unflushed(&self) -> bool {
        self.changes() > self.flushed.load(Ordering::Acquire)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request. If the connection takes none any more, the request fails at once.
    pub(crate) fn submit(&self, mut transfer: Transfer) {
        let mut queue = self.queue();
        let closed = match (&queue.closed, queue.leaving) {
            (Some(closed), _) => Some(closed.clone()),
            (None, Leaving::No) => None,
            (None, _) => Some(Closed::Left),
        };
        if let Some(closed) = closed {
            drop(queue);
            transfer.fail(|| closed.error(&self.peer, false));
            return transfer.finish();
        }
        let first = queue.waiting.is_empty();
        queue.waiting.push(transfer);
        drop(queue);
        // Where callers drive, the next of them to wait takes it along; see `Lead::poll`.
        if first && self.lead.is_none() {
            self.waker.wake();
        }
    }

    /// Whether the connection takes requests.
    pub(crate) fn is_open(&self) -> bool {
        let queue = self.queue();
        queue.closed.is_none() && queue.leaving == Leaving::No
    }

    /// Moves what was queued to `backlog`; gives whether the client wants to leave.
    pub(crate) fn take(&self, backlog: &mut VecDeque<Transfer>) -> Leaving {
        let mut queue = self.queue();
        backlog.extend(queue.waiting.drain(..));
        queue.leaving
    }

    /// Begins to leave; `farewell` is told once that is done.
    pub(crate) fn leave(&self, leaving: Leaving, farewell: Option<Arc<Ticket>>) {
        let mut queue = self.queue();
        if queue.leaving == Leaving::No || leaving == Leaving::Now {
            queue.leaving = leaving;
        }
        match farewell {
            Some(ticket) if queue.closed.is_some() => {
                drop(queue);
                ticket.complete(farewell_outcome());
            }
            farewell => queue.farewells.extend(farewell),
        }
        self.waker.wake();
    }

    /// Takes no more requests. The first reason stays.
    pub(crate) fn close(&self, closed: Closed) {
        self.queue().closed.get_or_insert(closed);
    }

    /// The connection is over: takes no more requests, fails those in the queue, and tells those who wanted to leave.
    pub(crate) fn over(&self, closed: Closed) {
        let mut queue = self.queue();
        let closed = queue.closed.get_or_insert(closed).clone();
        let waiting = core::mem::take(&mut queue.waiting);
        let farewells = core::mem::take(&mut queue.farewells);
        drop(queue);
        for mut transfer in waiting {
            transfer.fail(|| closed.error(&self.peer, false));
            transfer.finish();
        }
        for ticket in farewells {
            ticket.complete(farewell_outcome());
        }
    }
}

const fn farewell_outcome() -> Outcome {
    Outcome { buffer: Buffer::None, extents: Vec::new(), result: Ok(()) }
}
