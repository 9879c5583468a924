//! A run: what its threads share, and how it comes to its end.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use nbd_blocking::Client;
use nbd_blocking::client::Error;

use super::latencies::Latencies;
use super::live::Line;
use super::plan::{Plan, Request};
use super::worker::Worker;
use crate::exit::Failure;
use crate::waiting::{self, Waits};

/// How often the line on a terminal is drawn.
const REDRAW: Duration = Duration::from_millis(500);

/// What the threads of a run share.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) plan: Plan,
    /// How many requests each thread keeps in flight.
    pub(super) depth: usize,
    /// The server, as messages name it.
    pub(super) name: String,
    time: Duration,
    max_requests: u64,
    /// When the first thread began, which a busy machine may have wait.
    started: OnceLock<Instant>,
    next: AtomicU64,
    over: AtomicBool,
    /// One for each thread, which locks it once for all requests that it finds answered.
    tallies: Vec<Mutex<Tally>>,
}

/// What one thread has measured, or all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) reads: Outcomes,
    pub(super) writes: Outcomes,
    /// The first request that the server failed.
    pub(super) first_error: Option<Error>,
}

/// What became of the requests of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcomes {
    /// Of those that succeeded.
    pub(super) latencies: Latencies,
    /// How many requests the server failed, by its error.
    pub(super) errors: BTreeMap<String, u64>,
}

impl Outcomes {
    /// How many requests failed.
    pub(super) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    fn merge(&mut self, other: &Self) {
        self.latencies.merge(&other.latencies);
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
    }
}

impl Tally {
    /// How many requests were answered.
    fn answered(&self) -> u64 {
        self.succeeded() + self.failed()
    }

    pub(super) const fn succeeded(&self) -> u64 {
        self.reads.latencies.count() + self.writes.latencies.count()
    }

    /// How many requests failed.
    pub(super) fn failed(&self) -> u64 {
        self.reads.failed() + self.writes.failed()
    }

    fn merge(&mut self, other: &Self) {
        self.reads.merge(&other.reads);
        self.writes.merge(&other.writes);
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub(super) elapsed: Duration,
    pub(super) succeeded: u64,
    pub(super) failed: u64,
}

impl Run {
    /// A run of so many threads, which begins with its first request.
    pub(super) fn new(
        plan: Plan,
        name: String,
        (threads, depth): (usize, usize),
        (time, max_requests): (Duration, Option<u64>),
    ) -> Self {
        Self {
            plan,
            depth,
            name,
            time,
            max_requests: max_requests.unwrap_or(u64::MAX),
            started: OnceLock::new(),
            next: AtomicU64::new(0),
            over: AtomicBool::new(false),
            tallies: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }

    /// How long it is to take.
    pub(super) const fn time(&self) -> Duration {
        self.time
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.get().map_or(Duration::ZERO, Instant::elapsed)
    }

    /// No request is sent any more.
    pub(super) fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// The next request, with its number; `None` when the run is over.
    pub(super) fn next(&self, now: Instant) -> Option<(u64, Request)> {
        let started = *self.started.get_or_init(|| now);
        if self.over.load(Ordering::Relaxed) || now.saturating_duration_since(started) >= self.time
        {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.max_requests).then(|| (number, self.plan.request(number)))
    }

    /// What the thread of that index has measured.
    pub(super) fn tally(&self, thread: usize) -> MutexGuard<'_, Tally> {
        self.tallies[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all threads have measured so far.
    pub(super) fn total(&self) -> Tally {
        let mut total = Tally::default();
        for thread in 0..self.tallies.len() {
            total.merge(&self.tally(thread));
        }
        total
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress { elapsed: self.elapsed(), succeeded: 0, failed: 0 };
        for thread in 0..self.tallies.len() {
            let tally = self.tally(thread);
            progress.succeeded += tally.succeeded();
            progress.failed += tally.failed();
        }
        progress
    }
}

impl Waits for Run {
    fn number(&self) -> Option<u64> {
        Some((0..self.tallies.len()).map(|thread| self.tally(thread).answered()).sum())
    }

    fn text(&self, seconds: u64) -> String {
        format!("waiting for {}: no reply for {seconds} s", self.name)
    }
}

/// Sends requests over each of the connections until the run is over and all are answered. Gives the connections back.
///
/// # Errors
/// If a connection is lost, or a request takes too long. What was measured so far remains.
pub(super) fn measure(
    run: &Arc<Run>,
    clients: Vec<Client>,
    explain: impl Fn(&Error) -> Failure,
) -> Result<Vec<Client>, Failure> {
    let (sender, results) = mpsc::channel();
    let _reported = waiting::watch(Arc::<Run>::clone(run));
    thread::scope(|scope| {
        for (thread, client) in clients.into_iter().enumerate() {
            let sender = sender.clone();
            let body = move || {
                let result = Worker::new(run, thread, client).run();
                // The receiver waits for all of them.
                let _received = sender.send(result);
            };
            let name = format!("nbd-bench-{thread}");
            if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, body) {
                run.stop();
                return Err(Failure::failed(format!(
                    "cannot start thread {thread}: {error}; raise ulimit -u, or give fewer --connections"
                )));
            }
        }
        drop(sender);
        let mut line = Line::new();
        let (mut clients, mut failure) = (Vec::new(), None);
        loop {
            match results.recv_timeout(REDRAW) {
                Ok(Ok(client)) => clients.push(client),
                Ok(Err(error)) => failure = failure.or_else(|| Some(explain(&error))),
                Err(mpsc::RecvTimeoutError::Timeout) => line.draw(run, run.progress()),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        line.end();
        failure.map_or(Ok(clients), Err)
    })
}

/// Flushes what a run has written, and gives how long that took.
pub(super) fn flush(client: &Client) -> Result<Duration, Error> {
    let begun = Instant::now();
    client.flush()?;
    Ok(begun.elapsed())
}
