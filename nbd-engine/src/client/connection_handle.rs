//! What a client and the session of one of its connections share.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atomic_waker::AtomicWaker;

use super::completion::{Completion, Outcome};
use super::free_list::FreeList;
use super::request_state::RequestState;
use super::statistics::Counting;
use super::{DriveMode, Error, LostReason};

/// The client's end of a connection: requests go in, and the session takes them out.
#[derive(Debug)]
pub(super) struct ConnectionHandle {
    pub(super) peer: Arc<str>,
    mode: DriveMode,
    queue: Mutex<Queue>,
    /// The task that drives the connection.
    pub(super) waker: AtomicWaker,
    /// Answers to requests that change the export, and how many of them a flush on this connection covers.
    changes: AtomicU64,
    flushed: AtomicU64,
    /// Set while the connection is lost and being replaced.
    down: AtomicBool,
    /// Set when an attempt to replace it has failed meanwhile.
    failing: AtomicBool,
    /// Requests have come from another connection, whose deadlines may be earlier than all that are known.
    adopted: AtomicBool,
    /// The client wants to disconnect, as the queue says, for each waiter to ask that leaves.
    is_to_end: AtomicBool,
    pub(super) free: FreeList,
    /// Set where the client's requests are counted.
    pub(super) counting: Option<Counting>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<RequestState>,
    /// Those who wait for the end of the connection.
    disconnecting: Vec<Arc<Completion>>,
    disconnect: Disconnect,
    closed: Option<Closed>,
    /// Nothing is left to be done for those who wait for the end.
    ended: bool,
}

impl Queue {
    /// Whether requests are taken.
    fn is_open(&self) -> bool {
        self.closed.is_none() && self.disconnect == Disconnect::No
    }
}

/// Whether the client wants to disconnect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Disconnect {
    #[default]
    No,
    /// Once all requests are answered.
    Soft,
    /// Without waiting for answers: nobody waits for them.
    Hard,
}

/// Why a connection takes no more requests.
#[derive(Clone, Debug)]
pub(super) enum Closed {
    Disconnected,
    Lost(LostReason),
}

impl Closed {
    pub(super) fn error(&self, peer: &Arc<str>, sent: bool) -> Error {
        let peer = Arc::clone(peer);
        match self {
            Self::Disconnected => Error::Disconnected { peer },
            Self::Lost(reason) => Error::Lost { peer, sent, reason: reason.clone() },
        }
    }
}

impl ConnectionHandle {
    pub(super) fn new(peer: Arc<str>, mode: DriveMode, counting: Option<Counting>) -> Self {
        Self {
            peer,
            mode,
            queue: Mutex::default(),
            waker: AtomicWaker::new(),
            changes: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            down: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            adopted: AtomicBool::new(false),
            is_to_end: AtomicBool::new(false),
            free: FreeList::default(),
            counting,
        }
    }

    /// Hands the outcome of a request to its waiter.
    pub(super) fn finish(&self, mut request: RequestState) {
        if let Some(counting) = &self.counting {
            counting.ended(&mut request);
        }
        request.finish();
    }

    /// A request takes too long.
    pub(super) fn time_out(&self, request: &mut RequestState, error: Error) {
        if let Some(counting) = &self.counting {
            counting.timed_out(request);
        }
        request.time_out(error);
    }

    pub(super) fn set_down(&self, down: bool) {
        self.failing.store(false, Ordering::Release);
        self.down.store(down, Ordering::Release);
    }

    /// An attempt to replace the connection has failed.
    pub(super) fn set_failing(&self) {
        self.failing.store(true, Ordering::Release);
    }

    /// Whether the connection could not be replaced so far.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Whether requests can go on by this connection.
    pub(super) fn is_up(&self) -> bool {
        !self.is_down() && self.is_open()
    }

    /// Whether requests have to wait for the connection to be replaced.
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// A request that changes the export was answered. Said before its waiter learns it.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The changes that a flush covers that is submitted now.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// A flush that was submitted after so many changes has succeeded.
    pub(super) fn flushed(&self, changes: u64) {
        self.flushed.fetch_max(changes, Ordering::AcqRel);
    }

    /// Whether there are changes that no flush on this connection covers.
    pub(super) fn is_unflushed(&self) -> bool {
        self.changes() > self.flushed.load(Ordering::Acquire)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request. If the connection takes none any more, the request fails at once.
    pub(super) fn submit(&self, mut request: RequestState) {
        let mut queue = self.queue();
        let closed = match (&queue.closed, queue.disconnect) {
            (Some(closed), _) => Some(closed.clone()),
            (None, Disconnect::No) => None,
            (None, _) => Some(Closed::Disconnected),
        };
        if let Some(closed) = closed {
            drop(queue);
            request.fail(|| closed.error(&self.peer, false));
            return self.finish(request);
        }
        let first = queue.waiting.is_empty();
        queue.waiting.push(request);
        drop(queue);
        // Where callers drive, the next of them to wait takes it along.
        if first && self.mode == DriveMode::Spawned {
            self.waker.wake();
        }
    }

    /// Queues a request that another connection can't carry out. Gives it back if this one takes none any more.
    pub(super) fn adopt(&self, request: RequestState, from: &Self) -> Option<RequestState> {
        let mut queue = self.queue();
        if !queue.is_open() {
            return Some(request);
        }
        if let (Some(counting), Some(from)) = (&self.counting, &from.counting) {
            from.pass_on(&request, counting);
        }
        let completion = request.completion.clone();
        queue.waiting.push(request);
        drop(queue);
        self.adopted.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(completion) = completion {
            completion.set_moved();
        }
        None
    }

    /// Whether requests have come from other connections since this was asked before.
    pub(super) fn has_adopted(&self) -> bool {
        self.adopted.swap(false, Ordering::AcqRel)
    }

    /// Whether the connection takes requests.
    pub(super) fn is_open(&self) -> bool {
        self.queue().is_open()
    }

    /// Whether a request was queued that nobody has taken yet.
    pub(super) fn has_queued(&self) -> bool {
        !self.queue().waiting.is_empty()
    }

    /// Moves what was queued to `backlog`; gives whether the client wants to disconnect.
    pub(super) fn take(&self, backlog: &mut VecDeque<RequestState>) -> Disconnect {
        let mut queue = self.queue();
        backlog.extend(queue.waiting.drain(..));
        queue.disconnect
    }

    /// Begins to disconnect; `done` is completed once the connection is over.
    pub(super) fn disconnect(&self, how: Disconnect, done: Option<Arc<Completion>>) {
        let mut queue = self.queue();
        if queue.disconnect == Disconnect::No || how == Disconnect::Hard {
            queue.disconnect = how;
        }
        match done {
            Some(completion) if queue.ended => {
                drop(queue);
                completion.complete(Outcome::done());
            }
            done => queue.disconnecting.extend(done),
        }
        self.is_to_end.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether the client wants to disconnect.
    pub(super) fn is_to_end(&self) -> bool {
        self.is_to_end.load(Ordering::Acquire)
    }

    /// Takes no more requests. The first reason stays.
    pub(super) fn close(&self, closed: Closed) {
        self.queue().closed.get_or_insert(closed);
    }

    /// The connection is over: takes no more requests, and fails those in the queue.
    pub(super) fn over(&self, closed: Closed) {
        let mut queue = self.queue();
        let closed = queue.closed.get_or_insert(closed).clone();
        let waiting = core::mem::take(&mut queue.waiting);
        drop(queue);
        for mut request in waiting {
            request.fail(|| closed.error(&self.peer, false));
            self.finish(request);
        }
    }

    /// Whether there is somebody to drive the connection once all requests have their outcomes.
    pub(super) fn is_driven_to_the_end(&self) -> bool {
        self.mode == DriveMode::Spawned || self.is_end_awaited()
    }

    /// Whether anybody waits for the end.
    pub(super) fn is_end_awaited(&self) -> bool {
        !self.queue().disconnecting.iter().all(|completion| completion.is_abandoned())
    }

    /// The transport is closed, or given up: completes disconnects.
    pub(super) fn ended(&self) {
        let mut queue = self.queue();
        queue.ended = true;
        let disconnecting = core::mem::take(&mut queue.disconnecting);
        drop(queue);
        for completion in disconnecting {
            completion.complete(Outcome::done());
        }
    }
}
