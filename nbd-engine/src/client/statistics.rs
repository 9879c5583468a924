//! What a client has done so far.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Error;
use super::request_state::RequestState;
use super::timer::Timer;
use crate::metrics::{ErrorKind, LatencyHistogram, RequestKind};

/// What a client has done so far, over all its connections: see [`Client::statistics`](super::Client::statistics).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStatistics {
    /// What was counted by command; commands that were never submitted are left out.
    pub requests: BTreeMap<RequestKind, RequestStatistics>,
    /// Times that a lost connection was replaced.
    pub reconnects: u64,
}

/// Requests of one kind, as the program submitted them: one that is sent in several parts, or again, counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestStatistics {
    /// Requests that were submitted.
    pub requests: u64,
    /// Requests without an outcome yet.
    pub in_flight: u64,
    /// Bytes of requests that succeeded: read, written, or what other commands were about; at most [`u64::MAX`], at which
    /// it stays.
    pub bytes: u64,
    /// Requests that the server answered with an error.
    pub errors: BTreeMap<ErrorKind, u64>,
    /// Requests that failed otherwise: their connection was lost, or they took too long.
    pub failures: u64,
    /// The time from a request's submission to its outcome, whatever that was.
    pub latencies: LatencyHistogram,
}

impl ClientStatistics {
    /// Adds those of another connection.
    pub(super) fn merge(&mut self, other: &Self) {
        self.reconnects += other.reconnects;
        for (kind, other) in &other.requests {
            let own = self.requests.entry(*kind).or_default();
            own.requests += other.requests;
            own.in_flight += other.in_flight;
            own.bytes = own.bytes.saturating_add(other.bytes);
            own.failures += other.failures;
            for (error, count) in &other.errors {
                *own.errors.entry(*error).or_default() += count;
            }
            own.latencies.merge(&other.latencies);
        }
    }
}

/// Counts the requests of one connection.
#[derive(Debug)]
pub(super) struct Counting {
    clock: Timer,
    counted: Mutex<ClientStatistics>,
}

impl Counting {
    pub(super) fn new(clock: Timer) -> Self {
        Self { clock, counted: Mutex::default() }
    }

    fn counted(&self) -> MutexGuard<'_, ClientStatistics> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A program has submitted a request.
    pub(super) fn begun(&self, request: &mut RequestState) {
        request.begun = Some(self.clock.now());
        let mut counted = self.counted();
        let of_kind = counted.requests.entry(RequestKind::of(&request.command)).or_default();
        of_kind.requests += 1;
        of_kind.in_flight += 1;
    }

    /// A request is about to get its outcome. What was not [begun](Self::begun) here, or has its outcome already, does
    /// not count.
    pub(super) fn ended(&self, request: &mut RequestState) {
        self.end(request, |request, of_kind| match request.failed() {
            None => {
                of_kind.bytes = of_kind.bytes.saturating_add(request.command.length());
            }
            Some(Error::Command { error, .. }) => {
                *of_kind.errors.entry(ErrorKind::of(error.code)).or_default() += 1;
            }
            Some(_) => of_kind.failures += 1,
        });
    }

    /// A request gets its outcome by the connection that these count.
    pub(super) fn pass_on(&self, request: &RequestState, to: &Self) {
        if request.begun.is_none() {
            return;
        }
        let kind = RequestKind::of(&request.command);
        to.counted().requests.entry(kind).or_default().in_flight += 1;
        self.counted().requests.entry(kind).or_default().in_flight -= 1;
    }

    /// The same of a request that takes too long.
    pub(super) fn timed_out(&self, request: &mut RequestState) {
        self.end(request, |_, of_kind| of_kind.failures += 1);
    }

    fn end(
        &self,
        request: &mut RequestState,
        count: impl FnOnce(&RequestState, &mut RequestStatistics),
    ) {
        let Some(begun) = request.begun.take() else { return };
        let time = self.clock.now().saturating_duration_since(begun);
        let mut counted = self.counted();
        let of_kind = counted.requests.entry(RequestKind::of(&request.command)).or_default();
        of_kind.in_flight -= 1;
        of_kind.latencies.record(time);
        count(request, of_kind);
    }

    /// A lost connection was replaced.
    pub(super) fn reconnected(&self) {
        self.counted().reconnects += 1;
    }

    pub(super) fn get(&self) -> ClientStatistics {
        self.counted().clone()
    }
}

/// When a request was submitted, if that is counted.
pub(super) type Begun = Option<Instant>;
