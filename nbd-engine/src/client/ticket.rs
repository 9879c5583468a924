//! Where a request's outcome waits for who asked for it.

use core::mem;
use core::sync::atomic::{AtomicU8, Ordering};
use core::task::{Context, Poll};
use std::sync::{Arc, Mutex, PoisonError};

use atomic_waker::AtomicWaker;
use bytes::Bytes;

use super::{ContextExtents, Error};

/// The data of a request. It belongs to the request until the outcome is there, so that nobody who gives up waiting can
/// disturb the stream.
#[derive(Debug, Default)]
pub(crate) enum Buffer {
    #[default]
    None,
    /// To be read into, or to be written.
    Owned(Vec<u8>),
    /// To be written.
    Shared(Bytes),
}

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// What can be read into.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::None | Self::Shared(_) => &mut [],
        }
    }

    pub(crate) fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Owned(bytes) => bytes,
            Self::None | Self::Shared(_) => Vec::new(),
        }
    }
}

/// How a request went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) buffer: Buffer,
    pub(crate) extents: Vec<ContextExtents>,
    pub(crate) result: Result<(), Box<Error>>,
}

impl Outcome {
    pub(crate) fn failed(buffer: Buffer, error: Error) -> Self {
        Self { buffer, extents: Vec::new(), result: Err(Box::new(error)) }
    }
}

/// One request's place to meet. Used again for later requests, so that they cost no allocation.
#[derive(Debug, Default)]
pub(crate) struct Ticket {
    state: AtomicU8,
    outcome: Mutex<Option<Outcome>>,
    waker: AtomicWaker,
}

const WAITING: u8 = 0;
const DONE: u8 = 1;
const ABANDONED: u8 = 2;

impl Ticket {
    /// Whether the outcome is there.
    pub(crate) fn is_done(&self) -> bool {
        self.state.load(Ordering::Acquire) == DONE
    }

    /// Whether nobody waits for the outcome.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.state.load(Ordering::Acquire) == ABANDONED
    }

    /// The outcome is there.
    pub(crate) fn complete(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        // Who abandoned it can't be told, and leaves the outcome to be dropped with the ticket.
        let done = self.state.compare_exchange(WAITING, DONE, Ordering::AcqRel, Ordering::Acquire);
        if done.is_ok() {
            self.waker.wake();
        }
    }

    /// The outcome, or the task is woken once it is there.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Outcome> {
        if !self.is_done() {
            self.watch(cx);
            if !self.is_done() {
                return Poll::Pending;
            }
        }
        self.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// The task is woken once the outcome is there, unless it is already.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// The outcome, if it is there.
    pub(crate) fn take(&self) -> Option<Outcome> {
        if !self.is_done() {
            return None;
        }
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Nobody waits any more.
    pub(crate) fn abandon(&self) {
        self.state.store(ABANDONED, Ordering::Release);
    }

    /// Has whoever waits look again.
    pub(crate) fn nudge(&self) {
        self.waker.wake();
    }

    fn reset(&self) {
        drop(self.waker.take());
        self.state.store(WAITING, Ordering::Release);
    }
}

/// Tickets and buffers that wait to be used again.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    tickets: Mutex<Vec<Arc<Ticket>>>,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Spare {
    /// Tickets that are kept at most: more than are in flight at once by default.
    const TICKETS: usize = 256;

    /// Bytes of buffers that are kept at most.
    const BYTES: usize = 4 << 20;

    pub(crate) fn ticket(&self) -> Arc<Ticket> {
        let spare = self.tickets.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_default()
    }

    /// Takes a ticket back whose outcome was taken.
    pub(crate) fn return_ticket(&self, ticket: Arc<Ticket>) {
        ticket.reset();
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        if tickets.len() < Self::TICKETS {
            tickets.push(ticket);
        }
    }

    /// A buffer of at least `length` initialised bytes, with anything in them.
    pub(crate) fn buffer(&self, length: usize) -> Vec<u8> {
        let spare = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = spare.unwrap_or_default();
        if buffer.len() < length {
            // What is in it need not be copied to where it grows.
            if buffer.capacity() < length {
                buffer = Vec::new();
            }
            buffer.resize(length, 0);
        }
        buffer
    }

    pub(crate) fn return_buffer(&self, buffer: Vec<u8>) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = buffers.iter().map(Vec::len).sum();
        if kept + buffer.len() <= Self::BYTES && !buffer.is_empty() {
            buffers.push(buffer);
        }
    }
}

/// Takes what is there and leaves nothing.
impl Buffer {
    pub(crate) fn take(&mut self) -> Self {
        mem::take(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome { buffer: Buffer::Owned(vec![1]), extents: Vec::new(), result: Ok(()) }
    }

    #[test]
    fn an_outcome_is_taken_once_and_the_ticket_serves_again() {
        let spare = Spare::default();
        let ticket = spare.ticket();
        assert!(ticket.take().is_none());
        ticket.complete(outcome());
        assert!(ticket.is_done() && ticket.take().is_some() && ticket.take().is_none());
        let place = Arc::as_ptr(&ticket);
        spare.return_ticket(ticket);
        let again = spare.ticket();
        assert_eq!(Arc::as_ptr(&again), place);
        assert!(!again.is_done());
    }

    #[test]
    fn an_abandoned_ticket_stays_so() {
        let ticket = Ticket::default();
        ticket.abandon();
        ticket.complete(outcome());
        assert!(ticket.is_abandoned() && ticket.take().is_none());
    }

    #[test]
    fn buffers_come_back_and_no_more_are_kept_than_the_bound() {
        let spare = Spare::default();
        let buffer = spare.buffer(100);
        let place = buffer.as_ptr();
        spare.return_buffer(buffer);
        let again = spare.buffer(50);
        assert_eq!(again.as_ptr(), place);
        for _ in 0..10 {
            spare.return_buffer(vec![0; 1 << 20]);
        }
        assert_eq!(spare.buffers.lock().unwrap().len(), 4);
    }
}
