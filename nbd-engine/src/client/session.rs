//! One connection, driven: requests between a client and the core, bytes between the core and a transport.

mod closing;
mod deadlines;
mod durable;
mod kept;
mod recovery;
mod replies;
mod silence;
mod submission;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nbd_proto::client::Connection;
use nbd_proto::{OrderlyEnd, Wants};

use super::LostReason;
use super::config::ClientConfig;
use super::connection_handle::{Closed, ConnectionHandle, Disconnect};
use super::ready::ReadyConnection;
use super::reconnect::{Doubts, Kept, Reconnector};
use super::timer::{Deadline, Timer};
use crate::busy_poll::BusyPoll;
use crate::maybe_tls::MaybeTls;
use crate::pump::{Machine, Pump};
use crate::transport::AnyTransport;
use closing::Closing;
use deadlines::Deadlines;
use durable::Durable;
use recovery::{Recovered, Recovery};
use submission::Requests;

/// Rounds of writing and reading before the runtime gets a turn.
const MAX_ROUNDS: usize = 64;

/// Says whether the driver has what it waits for.
pub(super) type Until<'a> = Option<&'a dyn Fn() -> bool>;

pub(super) struct Session {
    handle: Arc<ConnectionHandle>,
    pump: Pump<Connection, MaybeTls<AnyTransport>>,
    requests: Requests,
    busy_poll: BusyPoll,
    deadlines: Deadlines,
    /// When to close the stream without a word, since the server does not take it.
    hard_end: Option<Deadline>,
    over: bool,
    /// The transport of a connection that has ended, as long as it takes to close.
    closing: Option<Closing>,
    /// The latest poll stopped for others to have their turn.
    interrupted: bool,
    /// Set where a lost connection is replaced.
    recovery: Option<Box<Recovery>>,
}

impl Session {
    pub(super) fn new(
        handle: &Arc<ConnectionHandle>,
        ready: ReadyConnection,
        timer: Timer,
        busy_poll: Duration,
        config: &ClientConfig,
    ) -> Self {
        let ReadyConnection { pump, details, rules, .. } = ready;
        Self {
            requests: Requests::new(handle, &pump.machine, &details, rules, config),
            handle: Arc::clone(handle),
            pump,
            busy_poll: BusyPoll::new(busy_poll),
            deadlines: Deadlines::new(timer, config.request_timeout()),
            hard_end: None,
            over: false,
            closing: None,
            interrupted: false,
            recovery: None,
        }
    }

    /// From now on a lost connection is replaced. It is the client's connection of this index.
    pub(super) fn recover_by(
        &mut self,
        reconnector: &Arc<Reconnector>,
        index: usize,
        doubts: &Arc<Doubts>,
        kept: Option<&Arc<Kept>>,
    ) {
        self.recovery = Some(Box::new(Recovery::new(reconnector, index)));
        self.requests.durable = Some(Durable::new(doubts, kept, index));
    }

    /// Drives the connection until nothing is left to do at the moment, or the driver has what it waits for. Ready once
    /// the connection is over, its transport is closed and every waiter has its outcome.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, until: Until<'_>) -> Poll<()> {
        let open = !self.over && self.poll_open(cx, until).is_pending();
        let closed = self.poll_closing(cx);
        if open {
            return Poll::Pending;
        }
        ready!(closed);
        self.handle.ended();
        Poll::Ready(())
    }

    /// Drives the connection. Ready once it is over, and every waiter for a request has its outcome.
    fn poll_open(&mut self, cx: &mut Context<'_>, until: Until<'_>) -> Poll<()> {
        self.handle.waker.register(cx.waker());
        self.requests.notified = false;
        self.interrupted = false;
        loop {
            if self.is_down() {
                match self.poll_recovery(cx) {
                    Recovered::Connected => {}
                    Recovered::Over(closed) => {
                        self.end(closed);
                        return Poll::Ready(());
                    }
                    Recovered::NotYet => {
                        self.expire(cx);
                        return Poll::Pending;
                    }
                }
            }
            let closed = match self.drive(cx, until) {
                Ok(None) => {
                    self.expire(cx);
                    match self.look_for_silence(cx) {
                        Some(reason) => Closed::Lost(reason),
                        None if self.hard_end_is_due(cx).is_pending() => return Poll::Pending,
                        None => Closed::Disconnected,
                    }
                }
                Ok(Some(closed)) => {
                    self.begin_to_close(cx);
                    closed
                }
                Err(reason) => Closed::Lost(reason),
            };
            if !self.interrupt(&closed) {
                self.end(closed);
                return Poll::Ready(());
            }
        }
    }

    /// Whether the latest [poll](Self::poll) stopped for others to have their turn: the session has to be polled again.
    pub(super) const fn has_more_to_do(&self) -> bool {
        self.interrupted
    }

    /// Only sends what is queued. Gives whether nothing of it is left to do for the leader.
    pub(super) fn push(&mut self, cx: &mut Context<'_>) -> bool {
        if self.over {
            return true;
        }
        if self.is_down() {
            // What was queued has a deadline.
            return false;
        }
        self.requests.take(&mut self.pump.machine);
        // An error shows again to the leader. So does a deadline that nobody watches yet. (Silence is watched by each leader.)
        let written = self.send(cx).is_ok() && self.requests.output_failed.is_none();
        written && self.is_silent() && self.deadlines.are_watched()
    }

    /// Fails what is not answered, and completes every waiter but those for the end itself.
    pub(super) fn end(&mut self, closed: Closed) {
        if core::mem::replace(&mut self.over, true) {
            return;
        }
        self.interrupted = false;
        tracing::debug!(peer = &*self.handle.peer, ?closed, "a connection is over");
        self.handle.close(closed.clone());
        // What it abandons may have been sent, or not.
        self.pump.machine.end_of_stream();
        while let Some(event) = self.pump.machine.due_event() {
            self.requests.handle_event(&mut self.pump.machine, event);
        }
        self.requests.end(&closed);
        self.handle.over(closed);
    }

    /// Drives the connection until nothing is left to do at the moment; gives how it ended if it did.
    fn drive(
        &mut self,
        cx: &mut Context<'_>,
        until: Until<'_>,
    ) -> Result<Option<Closed>, LostReason> {
        for _ in 0..MAX_ROUNDS {
            let progress = self.turn(cx)?;
            if let Some(result) = self.requests.closed.take() {
                return Ok(Some(closed(result)));
            }
            if self.requests.disconnect == Disconnect::Hard && self.is_silent() {
                return Ok(Some(Closed::Disconnected));
            }
            if until.is_some_and(|until| until()) {
                return Ok(None);
            }
            if progress {
                continue;
            }
            if let Some(error) = self.requests.output_failed.take() {
                return Err(LostReason::Transport(error));
            }
            if !self.spin()? {
                return Ok(None);
            }
        }
        self.interrupted = true;
        Ok(None)
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, LostReason> {
        self.requests.take(&mut self.pump.machine);
        let sent = self.send(cx)?;
        let received = self.pump.receive(&mut self.requests, cx)?;
        if core::mem::take(&mut self.requests.received) {
            self.busy_poll.on_wakeup();
            if let Some(recovery) = &mut self.recovery {
                recovery.received();
            }
        }
        if core::mem::take(&mut self.requests.answered)
            && let Some(recovery) = &mut self.recovery
        {
            recovery.answered();
        }
        if self.pump.machine.server_is_shutting_down() {
            match self.recovery {
                None => self.requests.shut_down(&mut self.pump.machine),
                // Its successor carries out the rest.
                Some(_) => self.requests.stop(&mut self.pump.machine),
            }
        }
        Ok(sent || received)
    }

    /// Sends what is queued. Gives whether anything was. When the transport fails, what it has received is still read.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<bool, LostReason> {
        match self.pump.send(&mut self.requests, cx) {
            Err(LostReason::Transport(error)) => {
                self.requests.output_failed = Some(error);
                Ok(false)
            }
            sent => {
                if let (Ok(true), Some(recovery)) = (&sent, &mut self.recovery) {
                    recovery.sent();
                }
                sent
            }
        }
    }

    /// Asks a few times more for the next reply before going to sleep.
    fn spin(&mut self) -> Result<bool, LostReason> {
        let machine = &self.pump.machine;
        let awaiting = machine.requests_in_flight() > 0
            && matches!(machine.wants(), Wants::Bytes { .. })
            && self.is_silent();
        if !awaiting || self.requests.notified {
            return Ok(false);
        }
        self.pump.spin(&mut self.requests, &mut self.busy_poll)
    }

    /// Whether everything that was to be sent has left.
    fn is_silent(&self) -> bool {
        self.pump.machine.segments().next().is_none() && !self.pump.is_unflushed()
    }
}

/// What the end of the protocol's machine means for a client.
fn closed(result: Result<OrderlyEnd, nbd_proto::Error>) -> Closed {
    match result {
        Ok(OrderlyEnd::EndOfStream) => {
            Closed::Lost(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
        Ok(_) => Closed::Disconnected,
        Err(error) => Closed::Lost(error.into()),
    }
}
