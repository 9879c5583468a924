//! Where a request's outcome waits for the one who asked for it.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use core::task::{Context, Poll};
use std::sync::{Mutex, PoisonError};

use atomic_waker::AtomicWaker;

use super::buffer::Buffer;
use super::chunks::Chunks;
use super::{ContextExtents, Error};

/// How a request went.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) buffer: Buffer,
    pub(super) findings: Findings,
    pub(super) result: Result<(), Box<Error>>,
}

/// What a reply has besides data.
#[derive(Debug, Default)]
pub(super) enum Findings {
    /// Nothing is kept.
    #[default]
    None,
    Extents(Vec<ContextExtents>),
    Chunks(Chunks),
}

impl Outcome {
    pub(super) const fn done() -> Self {
        Self { buffer: Buffer::None, findings: Findings::None, result: Ok(()) }
    }

    pub(super) fn failed(buffer: Buffer, error: Error) -> Self {
        Self { buffer, findings: Findings::None, result: Err(Box::new(error)) }
    }

    pub(super) fn into_result(self) -> Result<(), Error> {
        self.result.map_err(|error| *error)
    }
}

/// The meeting point of a request and its waiter. Reused for later requests, so that they cost no allocation.
#[derive(Debug, Default)]
pub(super) struct Completion {
    state: AtomicU8,
    outcome: Mutex<Option<Outcome>>,
    waker: AtomicWaker,
    /// The request goes on by another connection than that which its waiter knows of.
    moved: AtomicBool,
}

const WAITING: u8 = 0;
const DONE: u8 = 1;
const ABANDONED: u8 = 2;

impl Completion {
    /// Whether the outcome is there.
    pub(super) fn is_done(&self) -> bool {
        self.state.load(Ordering::Acquire) == DONE
    }

    /// Whether nobody waits for the outcome.
    pub(super) fn is_abandoned(&self) -> bool {
        self.state.load(Ordering::Acquire) == ABANDONED
    }

    /// The outcome is there.
    pub(super) fn complete(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        // That of an abandoned request is dropped with the completion.
        let done = self.state.compare_exchange(WAITING, DONE, Ordering::AcqRel, Ordering::Acquire);
        if done.is_ok() {
            self.waker.wake();
        }
    }

    /// The outcome, or the task is woken once it is there.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Outcome> {
        if !self.is_done() {
            self.watch(cx);
            if !self.is_done() {
                return Poll::Pending;
            }
        }
        self.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// The task is woken once the outcome is there, unless it is already.
    pub(super) fn watch(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// The outcome, if it is there.
    pub(super) fn take(&self) -> Option<Outcome> {
        if !self.is_done() {
            return None;
        }
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Nobody waits any more.
    pub(super) fn abandon(&self) {
        self.state.store(ABANDONED, Ordering::Release);
    }

    /// Wakes the waiter without an outcome.
    pub(super) fn nudge(&self) {
        self.waker.wake();
    }

    /// The request is on another connection by now: its waiter is woken, to find it there.
    pub(super) fn set_moved(&self) {
        self.moved.store(true, Ordering::Release);
        self.nudge();
    }

    /// Whether the request may be on any connection.
    pub(super) fn is_moved(&self) -> bool {
        self.moved.load(Ordering::Acquire)
    }

    /// Makes it ready for another request, once its outcome was taken.
    pub(super) fn reset(&self) {
        drop(self.waker.take());
        self.moved.store(false, Ordering::Release);
        self.state.store(WAITING, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_taken_once() {
        let completion = Completion::default();
        assert!(completion.take().is_none());
        completion.complete(Outcome::done());
        assert!(completion.is_done() && completion.take().is_some());
        assert!(completion.take().is_none());
        completion.reset();
        assert!(!completion.is_done());
    }

    #[test]
    fn an_abandoned_completion_stays_so() {
        let completion = Completion::default();
        completion.abandon();
        completion.complete(Outcome::done());
        assert!(completion.is_abandoned() && completion.take().is_none());
    }
}
