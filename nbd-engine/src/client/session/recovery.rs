//! A lost connection is replaced by a new one, and its requests go on.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use nbd_proto::Command;

use super::super::connection_handle::{Closed, Disconnect};
use super::super::ready::ReadyConnection;
use super::super::reconnect::{Backoff, ConnectionEvent, Outage, Reconnect, Reconnector, Resend};
use super::super::{GaveUp, LostReason};
use super::Session;
use super::silence::Silence;
use super::submission::Requests;
use crate::maybe_tls::MaybeTls;
use crate::pump::Machine;
use crate::runtime::BoxFuture;

/// What a session needs to replace its connection.
pub(super) struct Recovery {
    reconnector: Arc<Reconnector>,
    /// Which of the client's connections it is.
    index: usize,
    /// `None` while an attempt has it.
    backoff: Option<Backoff>,
    /// Set while the connection is lost.
    attempt: Option<BoxFuture<Outage>>,
    /// When the connection was lost: the first time, if it broke again before it was of any use.
    since: Instant,
    connected: Instant,
    /// Whether the server has sent anything since then.
    is_of_use: bool,
    /// Set where a silent server counts as lost.
    pub(super) silence: Option<Silence>,
}

/// What a lost connection comes to.
pub(super) enum Recovered {
    NotYet,
    Connected,
    Over(Closed),
}

impl Recovery {
    pub(super) fn new(reconnector: &Arc<Reconnector>, index: usize) -> Self {
        let now = reconnector.now();
        Self {
            reconnector: Arc::clone(reconnector),
            index,
            backoff: Some(Backoff::new(&reconnector.config, index)),
            attempt: None,
            since: now,
            connected: now,
            is_of_use: true,
            silence: reconnector
                .config
                .max_silence()
                .map(|limit| Silence::new(reconnector.timer().clone(), limit)),
        }
    }

    /// A request was answered on the connection.
    pub(super) const fn answered(&mut self) {
        self.is_of_use = true;
    }

    /// Something was received on the connection.
    pub(super) const fn received(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.has_received = true;
        }
    }

    /// Something was sent on it.
    pub(super) const fn sent(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.has_sent = true;
        }
    }

    fn begin(&mut self, resized: Option<u64>) {
        let now = self.reconnector.now();
        let mut backoff = self.backoff.take();
        let lasted = now.saturating_duration_since(self.connected);
        if self.is_of_use || lasted >= self.reconnector.config.max_delay() {
            self.since = now;
            backoff.iter_mut().for_each(Backoff::reset);
        }
        let backoff = backoff.unwrap_or_else(|| Backoff::new(&self.reconnector.config, self.index));
        let reconnector = Arc::clone(&self.reconnector);
        let attempt = reconnector.reconnect(self.index, self.since, resized, backoff);
        self.attempt = Some(Box::pin(attempt));
    }

    fn observe(&self, event: &ConnectionEvent) {
        self.reconnector.config.observe(event);
    }
}

impl Session {
    pub(super) fn is_down(&self) -> bool {
        self.recovery.as_ref().is_some_and(|recovery| recovery.attempt.is_some())
    }

    /// The connection has ended. Gives whether it is to be replaced; otherwise the session is over.
    pub(super) fn interrupt(&mut self, closed: &Closed) -> bool {
        let Some(recovery) = &mut self.recovery else { return false };
        let reason = match closed {
            Closed::Lost(LostReason::Abandoned | LostReason::Internal(_)) => return false,
            Closed::Lost(reason) => reason.clone(),
            Closed::Disconnected if self.requests.stopped => LostReason::ShuttingDown,
            Closed::Disconnected => return false,
        };
        if self.requests.disconnect == Disconnect::Hard {
            return false;
        }
        self.pump.machine.end_of_stream();
        while let Some(event) = self.pump.machine.due_event() {
            self.requests.handle_event(&mut self.pump.machine, event);
        }
        // The server must not wait for what will never come.
        self.pump.transport = MaybeTls::Broken;
        let resized =
            self.requests.start_over(&Closed::Lost(reason.clone()), &recovery.reconnector.config);
        self.handle.set_down(true);
        let peer = Arc::clone(&recovery.reconnector.peer);
        let (connection, waiting) = (recovery.index, self.requests.backlog.len());
        recovery.observe(&ConnectionEvent::Lost { peer, connection, reason, waiting });
        recovery.begin(resized);
        true
    }

    /// Goes on replacing the connection.
    pub(super) fn poll_recovery(&mut self, cx: &mut Context<'_>) -> Recovered {
        let requests = &mut self.requests;
        requests.disconnect = self.handle.take(&mut requests.backlog);
        requests.backlog.retain(|request| !request.is_abandoned());
        match requests.disconnect {
            Disconnect::Hard => return Recovered::Over(Closed::Disconnected),
            Disconnect::Soft if requests.backlog.is_empty() => {
                return Recovered::Over(Closed::Disconnected);
            }
            _ => {}
        }
        let Some(recovery) = &mut self.recovery else { return Recovered::NotYet };
        let Some(attempt) = &mut recovery.attempt else { return Recovered::Connected };
        let Poll::Ready((connected, backoff)) = attempt.as_mut().poll(cx) else {
            if self.handle.is_failing() {
                recovery.reconnector.hand_over(recovery.index, &mut requests.backlog);
                if requests.disconnect == Disconnect::Soft && requests.backlog.is_empty() {
                    return Recovered::Over(Closed::Disconnected);
                }
            }
            return Recovered::NotYet;
        };
        (recovery.attempt, recovery.backoff) = (None, Some(backoff));
        let (peer, connection) = (Arc::clone(&recovery.reconnector.peer), recovery.index);
        match connected {
            Ok(ready) => {
                recovery.connected = recovery.reconnector.now();
                recovery.is_of_use = false;
                let outage = recovery.connected.saturating_duration_since(recovery.since);
                let waiting = requests.backlog.len();
                recovery.observe(&ConnectionEvent::Reconnected {
                    peer,
                    connection,
                    outage,
                    waiting,
                });
                self.replace(ready);
                Recovered::Connected
            }
            Err(gave_up) => {
                let reason = LostReason::GaveUp(gave_up);
                let event = ConnectionEvent::GaveUp { peer, connection, reason: reason.clone() };
                recovery.observe(&event);
                recovery.reconnector.hand_over(recovery.index, &mut requests.backlog);
                Recovered::Over(Closed::Lost(reason))
            }
        }
    }

    fn replace(&mut self, mut ready: ReadyConnection) {
        // It is the expected one, unless a resize was lost that has been carried out.
        let size = ready.details.size();
        ready.share_size(&self.requests.size);
        self.requests.size.store(size, core::sync::atomic::Ordering::Release);
        self.requests.reconnected(&ready);
        self.pump = ready.pump;
        if let Some(silence) = self.recovery.as_mut().and_then(|recovery| recovery.silence.as_mut())
        {
            silence.begin_anew();
        }
        self.handle.set_down(false);
        if let Some(counting) = &self.handle.counting {
            counting.reconnected();
        }
        if let Some(recovery) = &self.recovery {
            recovery.reconnector.wake_others();
        }
    }
}

impl Requests {
    /// The connection is lost. Whatever may be sent again waits for the next one, in front of what was not sent yet; the
    /// rest has its outcome. Gives the size that the export may have now, if a resize was lost.
    fn start_over(&mut self, lost: &Closed, config: &Reconnect) -> Option<u64> {
        self.drop_own_requests();
        // Said before any waiter learns of it.
        if let Some(durable) = &mut self.durable {
            durable.lost();
        }
        self.handle.flushed(self.handle.changes());
        self.splitting.clear();
        self.parts.clear();
        self.free.clear();
        self.flushes.clear();
        let mut resized = None;
        for mut request in core::mem::take(&mut self.states).into_iter().flatten().rev() {
            request.reservation = None;
            if let (Command::Resize { size, .. }, true) = (request.command, request.sent) {
                resized = Some(size);
            }
            match Resend::decide(&request, config) {
                Resend::Again => {
                    request.start_over();
                    self.backlog.push_front(request);
                }
                Resend::Fail => {
                    let sent = request.sent;
                    request.fail(|| lost.error(&self.handle.peer, sent));
                    self.handle.finish(request);
                }
                Resend::FailAfter(times) => {
                    let reason = LostReason::GaveUp(GaveUp::Resends { times });
                    request.fail(|| Closed::Lost(reason).error(&self.handle.peer, true));
                    self.handle.finish(request);
                }
                Resend::Finish => self.handle.finish(request),
            }
        }
        resized
    }

    /// There is a new connection.
    fn reconnected(&mut self, ready: &ReadyConnection) {
        self.rules = ready.rules;
        self.name_contexts(&ready.pump.machine);
        self.stopped = false;
        if let Some(durable) = &self.durable {
            durable.connected();
        }
        (self.output_failed, self.closed) = (None, None);
    }
}
