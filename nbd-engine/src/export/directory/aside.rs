//! Work that may block, on a thread of its own, as a future.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use atomic_waker::AtomicWaker;

use crate::export::Refusal;

/// Threads at a time.
const MAX_THREADS: usize = 16;

/// Counts the threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Busy(Arc<AtomicUsize>);

/// A thread that is counted.
struct Counted(Busy);

impl Busy {
    fn enter(&self) -> Option<Counted> {
        let counted = Counted(self.clone());
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        // Dropped again if that is one too many.
        (before < MAX_THREADS).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The answer of a thread, once it is there. Cancel-safe: the thread goes on by itself.
pub(super) struct Aside<T>(Arc<Shared<T>>);

struct Shared<T> {
    answer: Mutex<Option<Result<T, Refusal>>>,
    waker: AtomicWaker,
}

/// Answers when the work is over, even by a panic.
struct Answer<T>(Arc<Shared<T>>);

impl<T> Answer<T> {
    fn give(&self, answer: Result<T, Refusal>) {
        let mut room = self.0.answer.lock().unwrap_or_else(PoisonError::into_inner);
        room.get_or_insert(answer);
        drop(room);
        self.0.waker.wake();
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        self.give(Err(Refusal::Unknown));
    }
}

impl<T: Send + 'static> Aside<T> {
    /// Starts a thread for the work; `None` if there are too many, or no more can be started.
    pub(super) fn start(
        busy: &Busy,
        work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Option<Self> {
        let counted = busy.enter()?;
        let shared = Arc::new(Shared { answer: Mutex::new(None), waker: AtomicWaker::new() });
        let answer = Answer(Arc::clone(&shared));
        let thread = thread::Builder::new().name("nbd-lookup".into()).spawn(move || {
            let _counted = counted;
            answer.give(work());
        });
        thread.ok().map(|_| Self(shared))
    }
}

impl<T> Future for Aside<T> {
    type Output = Result<T, Refusal>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.waker.register(cx.waker());
        let answer = self.0.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        answer.map_or(Poll::Pending, Poll::Ready)
    }
}
