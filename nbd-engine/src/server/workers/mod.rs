//! Threads for work that may block, shared fairly by the exports and connections of a server.
//!
//! A pool of our own rather than a general one: a job is a plain value in a queue that keeps its room, so that handing
//! one over allocates nothing; and exports and connections have shares, so that a hanging file or a greedy client
//! delays no other. The number of threads is at most the configured one, plus a few for each export that finds all of
//! them occupied by others.

mod job;
mod schedule;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use job::{Completion, Completions, Job};
use schedule::{Schedule, Shares};

use super::WorkerMetrics;
use crate::export::Export;

/// Idle workers end after this time; the next job starts one again.
const IDLE: Duration = Duration::from_secs(10);

/// The worker threads of a server.
pub(crate) struct Workers {
    pool: Arc<Pool>,
}

struct Pool {
    state: Mutex<State>,
    ready: Condvar,
    spawn: Spawn,
}

/// Starts a worker thread.
type Spawn = fn(Arc<Pool>) -> io::Result<()>;

struct State {
    schedule: Schedule<Job>,
    threads: usize,
    /// Threads that wait for a job, those that have been woken and do not run yet included.
    idle: usize,
    /// Threads that have been started and do not run yet.
    starting: usize,
    /// The latest thread could not be started, which was reported.
    refused: bool,
    stop: bool,
}

impl Workers {
    /// A pool whose exports compete for `threads` threads, none of them started yet.
    pub(crate) fn new(threads: usize) -> Self {
        Self::with_spawn(threads, |pool| {
            let thread = std::thread::Builder::new().name("nbd-worker".into());
            thread.spawn(move || pool.work()).map(drop)
        })
    }

    fn with_spawn(threads: usize, spawn: Spawn) -> Self {
        let schedule = Schedule::new(Shares::new(threads));
        let state = Mutex::new(State {
            schedule,
            threads: 0,
            idle: 0,
            starting: 0,
            refused: false,
            stop: false,
        });
        Self { pool: Arc::new(Pool { state, ready: Condvar::new(), spawn }) }
    }

    /// Threads and jobs at the moment; the maximum is not known here.
    pub(crate) fn metrics(&self) -> WorkerMetrics {
        let state = self.pool.lock();
        WorkerMetrics {
            threads: state.threads as u64,
            busy: state.schedule.running() as u64,
            waiting: state.schedule.waiting() as u64,
            max: 0,
        }
    }

    /// A lane for the jobs of one connection to this export.
    pub(crate) fn lane(&self, export: &Arc<dyn Export>) -> Lane {
        // Whether two connections use the same export is known by where it lies: both keep it alive.
        let identity = Arc::as_ptr(export).cast::<()>().addr();
        let index = self.pool.lock().schedule.open_lane(identity);
        Lane { pool: Arc::clone(&self.pool), index, _export: Arc::clone(export) }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.pool.lock().stop = true;
        self.pool.ready.notify_all();
    }
}

/// The way of one connection's jobs to the workers. Jobs that have not begun when it is dropped are never begun, and
/// those that run stop at their next piece.
pub(crate) struct Lane {
    pool: Arc<Pool>,
    index: usize,
    /// As long as the lane is there, no other export has the same address.
    _export: Arc<dyn Export>,
}

impl Lane {
    /// Queues a job. If no thread can be started at all, it is carried out here: others wait meanwhile, but a request
    /// that frees memory, where a thread's stack found no room, must not fail.
    pub(crate) fn submit(&self, job: Job) {
        let mut state = self.pool.lock();
        state.schedule.push(self.index, job);
        let left = self.pool.provide_thread(&mut state);
        drop(state);
        for job in left {
            let mut rest = Some(job);
            while let Some(job) = rest {
                rest = job.run_piece();
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Jobs own buffers and exports; those are not dropped under the lock.
        let _never_begun = self.pool.lock().schedule.close_lane(self.index);
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a thread takes the next job, if one may start. Each thread that takes one does so, too, so that
    /// threads come to be one after the other as long as there is work for them. Gives the jobs that are left to the
    /// caller, since there is not even one thread.
    fn provide_thread(self: &Arc<Self>, state: &mut State) -> Vec<Job> {
        if !state.schedule.may_start() {
            return Vec::new();
        }
        if state.idle > 0 {
            self.ready.notify_one();
            return Vec::new();
        }
        if state.starting > 0 {
            return Vec::new();
        }
        match (self.spawn)(Arc::clone(self)) {
            Ok(()) => {
                state.threads += 1;
                state.starting += 1;
                state.refused = false;
            }
            Err(error) => {
                // Said once, as it may be so for each request.
                if !core::mem::replace(&mut state.refused, true) {
                    tracing::warn!(%error, "no further worker thread can be started: requests may wait for each other");
                }
                // Else the threads that are there take the job in turn.
                if state.threads == 0 {
                    return state.schedule.take_all();
                }
            }
        }
        Vec::new()
    }

    /// What a worker thread does.
    fn work(self: &Arc<Self>) {
        let mut state = self.lock();
        state.starting -= 1;
        let mut timed_out = false;
        loop {
            if let Some((lane, job)) = state.schedule.start_next() {
                // This thread is there, so that no job is left.
                let _none = self.provide_thread(&mut state);
                drop(state);
                let mut rest = job.run_piece();
                state = self.lock();
                if state.schedule.stopped(lane)
                    && let Some(rest) = rest.take()
                {
                    state.schedule.push(lane, rest);
                }
                if rest.is_some() {
                    // The connection is gone. What a job owns is not dropped under the lock.
                    drop(state);
                    drop(rest);
                    state = self.lock();
                }
                continue;
            }
            if state.stop || timed_out {
                break;
            }
            state.idle += 1;
            let (guard, timeout) =
                self.ready.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = guard;
            state.idle -= 1;
            timed_out = timeout.timed_out();
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests;
