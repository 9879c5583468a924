//! Threads for work that may block, shared by all connections of a server.
//!
//! A pool of our own rather than a general one: a job is a plain value in a queue that keeps its room, so that handing
//! one over allocates nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use nbd_proto::{Command, RequestId};

use super::dispatch::{self, Work};
use super::visit::Visit;
use crate::export::{Export, ExportError, Result};

/// A command to carry out on a worker.
pub(crate) struct Job {
    pub(crate) id: RequestId,
    pub(crate) command: Command,
    pub(crate) export: Arc<dyn Export>,
    pub(crate) work: Work,
    pub(crate) done: Arc<Completions>,
    /// The client leaves the export only after this.
    pub(crate) visit: Option<Arc<Visit>>,
}

/// A command that was carried out.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) id: RequestId,
    pub(crate) work: Work,
    pub(crate) result: Result<()>,
}

/// Where a connection's finished jobs are collected.
#[derive(Debug, Default)]
pub(crate) struct Completions {
    finished: Mutex<Vec<Completion>>,
    /// The connection is gone: what has not begun need not be done.
    abandoned: AtomicBool,
    pub(crate) waker: AtomicWaker,
}

impl Completions {
    /// The connection is gone.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    fn push(&self, completion: Completion) {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner).push(completion);
        self.waker.wake();
    }

    /// Swaps what has finished into `into`, which must be empty.
    pub(crate) fn take(&self, into: &mut Vec<Completion>) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        core::mem::swap(&mut *finished, into);
    }
}

/// Idle workers end after this time; the next job starts one again.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    ready: Condvar,
    most: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    stop: bool,
}

impl Workers {
    /// A pool of at most `most` threads, none of them started yet.
    pub(crate) fn new(most: usize) -> Self {
        let queue = Mutex::new(Queue::default());
        Self { shared: Arc::new(Shared { queue, ready: Condvar::new(), most: most.max(1) }) }
    }

    /// Queues a job. When no thread can be started at all, the job fails rather than hang.
    pub(crate) fn submit(&self, job: Job) {
        let mut queue = self.shared.lock();
        queue.jobs.push_back(job);
        if queue.jobs.len() <= queue.idle {
            drop(queue);
            self.shared.ready.notify_one();
            return;
        }
        if queue.threads < self.shared.most {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("nbd-worker".into());
            match thread.spawn(move || shared.run()) {
                Ok(_) => queue.threads += 1,
                Err(error) if queue.threads == 0 => {
                    tracing::error!(%error, "no worker thread can be started");
                    for job in queue.jobs.drain(..) {
                        job.finish(Err(ExportError::io("the server has no thread for this")));
                    }
                }
                Err(_) => {}
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.ready.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job.run();
                queue = self.lock();
                continue;
            }
            if queue.stop {
                break;
            }
            queue.idle += 1;
            let (woken, timeout) =
                self.ready.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
    }
}

impl Job {
    fn run(mut self) {
        if self.done.abandoned.load(Ordering::Relaxed) {
            return;
        }
        let run = || dispatch::execute(&*self.export, self.command, &mut self.work);
        let result = dispatch::guarded(run).and_then(|result| result);
        self.finish(result);
    }

    fn finish(self, result: Result<()>) {
        // Before the completion: the session may be gone a moment later, and with it whoever waits for that.
        drop(self.visit);
        self.done.push(Completion { id: self.id, work: self.work, result });
    }
}
