//! Work that may block, on threads of its own, as a future.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use atomic_waker::AtomicWaker;

/// How long a thread waits for more work before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// A few threads for work that may block. They start when there is work for them, and end when there is none for a
/// while.
pub(super) struct Aside {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    max: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    /// Those that wait for work, one that was woken and has not taken it yet included.
    idle: usize,
    closed: bool,
}

type Job = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aside")
            .field("threads", &self.shared.state().threads)
            .finish_non_exhaustive()
    }
}

impl Aside {
    /// At most `max` threads of that name; none yet.
    pub(super) fn new(name: &'static str, max: usize) -> Self {
        let (state, work) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { name, max, state, work }) }
    }

    /// Has a thread carry out the work, which waits while all are busy.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Answer<T> {
        let (job, answer) = job(work);
        let mut state = self.shared.state();
        state.queue.push_back(job);
        if !self.shared.provide(&mut state) && state.threads == 0 {
            // Nobody would ever take it. Its answer is that there is none.
            let never_run = state.queue.pop_back();
            drop((state, never_run));
        }
        answer
    }

    /// The same if a thread is free, or another one can be started; `None` otherwise.
    pub(super) fn try_run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<Answer<T>> {
        let (job, answer) = job(work);
        let mut state = self.shared.state();
        state.queue.push_back(job);
        if self.shared.provide(&mut state) {
            return Some(answer);
        }
        let never_run = state.queue.pop_back();
        drop((state, never_run));
        None
    }
}

impl Drop for Aside {
    /// What is queued is still carried out.
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    // No job runs under the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives whether a thread takes the job that was queued last as soon as it runs: an idle one, or a new one.
    fn provide(self: &Arc<Self>, state: &mut State) -> bool {
        if state.idle >= state.queue.len() {
            self.work.notify_one();
            return true;
        }
        if state.threads >= self.max {
            return false;
        }
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name(self.name.into()).spawn(move || shared.work());
        let started = thread.is_ok();
        // It is idle until it has taken something.
        state.threads += usize::from(started);
        state.idle += usize::from(started);
        started
    }

    /// What a thread does.
    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.idle -= 1;
                drop(state);
                // Its answer says that there is none.
                let _panicked = catch_unwind(AssertUnwindSafe(job));
                state = self.state();
                state.idle += 1;
                continue;
            }
            let timed_out = if state.closed {
                true
            } else {
                let (next, waited) =
                    self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                state = next;
                waited.timed_out() || state.closed
            };
            if timed_out && state.queue.is_empty() {
                state.idle -= 1;
                state.threads -= 1;
                return;
            }
        }
    }
}

fn job<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> (Job, Answer<T>) {
    let slot = Arc::new(Slot { state: Mutex::new((None, false)), waker: AtomicWaker::new() });
    let end = End(Arc::clone(&slot));
    let job = move || {
        let answer = work();
        end.0.state().0 = Some(answer);
        drop(end);
    };
    (Box::new(job), Answer(slot))
}

/// What a thread made of some work, once it has: `None` if the work panicked, or no thread could be started for it.
///
/// Cancel-safe: the work goes on by itself.
#[must_use = "the work may fail"]
pub(super) struct Answer<T>(Arc<Slot<T>>);

struct Slot<T> {
    /// The answer, and whether there will be no other.
    state: Mutex<(Option<T>, bool)>,
    waker: AtomicWaker,
}

impl<T> Slot<T> {
    fn state(&self) -> MutexGuard<'_, (Option<T>, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of some work, even by a panic, or before it began.
struct End<T>(Arc<Slot<T>>);

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        self.0.state().1 = true;
        self.0.waker.wake();
    }
}

impl<T> Future for Answer<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.waker.register(cx.waker());
        let mut state = self.0.state();
        if state.1 { Poll::Ready(state.0.take()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::layer::later::wait;
    use super::*;

    #[test]
    fn work_that_panics_has_no_answer_and_the_thread_goes_on() {
        let aside = Aside::new("test", 1);
        assert_eq!(wait(aside.run(|| 1)), Some(1));
        assert_eq!(wait(aside.run(|| -> u8 { std::panic::resume_unwind(Box::new(())) })), None);
        assert_eq!(wait(aside.run(|| 2)), Some(2));
        assert_eq!(aside.shared.state().threads, 1);
    }

    #[test]
    fn work_waits_for_a_thread_or_is_refused_where_it_may_not_wait() {
        let aside = Aside::new("test", 2);
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let busy = [(); 2].map(|()| {
            let held = Arc::clone(&held);
            aside.try_run(move || held.lock().unwrap().recv().is_ok()).expect("a thread is free")
        });
        assert!(aside.try_run(|| ()).is_none());
        let queued = aside.run(|| 3);
        busy.iter().for_each(|_| release.send(()).unwrap());
        assert_eq!(wait(queued), Some(3));
        busy.into_iter().for_each(|one| assert_eq!(wait(one), Some(true)));
        assert!(aside.shared.state().threads <= 2);
    }

    /// Whatever the order in which work comes and threads end, all of it is carried out.
    #[test]
    fn all_work_is_carried_out_also_when_nobody_waits_for_it_and_the_threads_are_let_go() {
        let (done, count) = mpsc::channel();
        for max in 1..5 {
            let aside = Aside::new("test", max);
            for number in 0..100 {
                let done = done.clone();
                let answer = aside.run(move || done.send(number).unwrap());
                if number % 3 == 0 {
                    wait(answer).unwrap();
                }
            }
        }
        drop(done);
        assert_eq!(count.iter().count(), 400);
    }
}
