//! Requests that take too long. One timer serves all: it is set to the earliest deadline, and to the next one when it
//! goes off.

use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use super::super::Error;
use super::super::link::{Leaving, Link};
use super::super::transfer::Transfer;
use super::Session;
use crate::transport::Transport;

impl<T: Transport> Session<T> {
    /// Fails requests that take too long.
    pub(super) fn expire(&mut self, link: &Link, cx: &mut Context<'_>) {
        let Some(limit) = self.timeout else { return };
        loop {
            let Some(alarm) = &mut self.alarm else {
                let waiting = self.transfers.iter().flatten().chain(&self.backlog);
                let Some(earliest) = waiting.filter_map(|transfer| transfer.deadline).min() else {
                    return;
                };
                let wait = earliest.saturating_duration_since(Instant::now());
                self.alarm = Some(self.timer.sleep(wait));
                continue;
            };
            if alarm.as_mut().poll(cx).is_pending() {
                return;
            }
            self.alarm = None;
            self.expire_now(link, limit);
            // Who wants to leave may have nothing to wait for any more.
            if self.leaving != Leaving::No {
                cx.waker().wake_by_ref();
            }
        }
    }

    #[cold]
    fn expire_now(&mut self, link: &Link, limit: Duration) {
        let now = Instant::now();
        let due = |transfer: &Transfer| transfer.deadline.is_some_and(|deadline| deadline <= now);
        for at in 0..self.transfers.len() {
            if let Some(transfer) = &mut self.transfers[at]
                && due(transfer)
            {
                let sent = transfer.begins.is_some_and(|begins| begins < self.sent);
                transfer.time_out(timed_out(link, transfer.operation.what(), limit, sent));
                if self.cutting == Some(at) {
                    self.cutting = None;
                }
                self.finish_if_done(at);
            }
        }
        self.backlog.retain_mut(|transfer| {
            let keep = !due(transfer);
            if !keep {
                transfer.time_out(timed_out(link, transfer.operation.what(), limit, false));
            }
            keep
        });
    }
}

fn timed_out(link: &Link, what: &'static str, limit: Duration, sent: bool) -> Error {
    Error::TimedOut { peer: Arc::clone(&link.peer), what, limit, sent }
}
