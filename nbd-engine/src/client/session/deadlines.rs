//! Requests that take too long. One timer serves all: it is set to the earliest deadline, and to the next one when it
//! goes off.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::super::Error;
use super::super::connection_handle::{ConnectionHandle, Disconnect};
use super::super::request_state::RequestState;
use super::super::timer::{Alarm, Ring, Timer};
use super::Session;
use super::submission::Requests;
use crate::runtime::moment_after;

/// The clock of a connection.
pub(super) struct Deadlines {
    timer: Timer,
    limit: Option<Duration>,
    alarm: Option<Alarm>,
}

impl Deadlines {
    pub(super) const fn new(timer: Timer, limit: Option<Duration>) -> Self {
        Self { timer, limit, alarm: None }
    }

    /// How long a request may take.
    pub(super) const fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// Whether no new request has a deadline that nobody watches.
    pub(super) const fn are_watched(&self) -> bool {
        self.limit.is_none() || self.alarm.is_some()
    }

    pub(super) const fn timer(&self) -> &Timer {
        &self.timer
    }
}

impl Session {
    /// Fails requests that take too long.
    pub(super) fn expire(&mut self, cx: &mut Context<'_>) {
        let Some(limit) = self.deadlines.limit else { return };
        if self.handle.has_adopted() {
            self.deadlines.alarm = None;
        }
        loop {
            let Some(alarm) = &mut self.deadlines.alarm else {
                let Some(earliest) = self.requests.earliest_deadline() else { return };
                let wait = earliest.saturating_duration_since(self.deadlines.timer.now());
                self.deadlines.alarm = Some(self.deadlines.timer.alarm(wait, limit));
                continue;
            };
            let Poll::Ready(ring) = alarm.poll(cx) else { return };
            self.deadlines.alarm = None;
            let now = self.deadlines.timer.now();
            if ring == Ring::Late {
                self.requests.extend_deadlines(moment_after(now, limit));
                // What arrived meanwhile comes first.
                cx.waker().wake_by_ref();
                continue;
            }
            self.requests.expire(limit, now);
            // A client that wants to disconnect may have nothing to wait for any more.
            if self.requests.disconnect != Disconnect::No {
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl Requests {
    fn earliest_deadline(&self) -> Option<Instant> {
        let waiting = self.states.iter().flatten().chain(&self.backlog);
        waiting.filter_map(|request| request.deadline).min()
    }

    /// Nothing that was before counts.
    #[cold]
    fn extend_deadlines(&mut self, to: Instant) {
        let waiting = self.states.iter_mut().flatten().chain(&mut self.backlog);
        waiting.filter_map(|request| request.deadline.as_mut()).for_each(|deadline| *deadline = to);
    }

    #[cold]
    fn expire(&mut self, limit: Duration, now: Instant) {
        let due = |request: &RequestState| request.deadline.is_some_and(|deadline| deadline <= now);
        for index in 0..self.states.len() {
            if let Some(request) = &mut self.states[index]
                && due(request)
            {
                // The core has a part of it at least, and can't take that back.
                let error = timed_out(&self.handle, request, limit, true);
                self.handle.time_out(request, error);
                self.finish_if_done(index);
            }
        }
        self.backlog.retain_mut(|request| {
            let keep = !due(request);
            if !keep {
                let sent = request.sent;
                let error = timed_out(&self.handle, request, limit, sent);
                self.handle.time_out(request, error);
            }
            keep
        });
    }
}

fn timed_out(
    handle: &ConnectionHandle,
    request: &RequestState,
    limit: Duration,
    sent: bool,
) -> Error {
    let what = request.command.command_type().name().unwrap_or("a request");
    Error::TimedOut { peer: Arc::clone(&handle.peer), what, limit, sent }
}
