//! One connection, driven until it is over.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nbd_proto::server::{Connection, LookupOutcome};
use nbd_proto::wire::{CompactRequest, ExtendedRequest};
use nbd_proto::{OrderlyEnd, Wants};

use super::metrics::Recorder;
use super::negotiation::Negotiation;
use super::request::Requests;
use super::state::ServerState;
use super::turn::Turn;
use super::watch::Activity;
use super::{ConnectionError, Stall};
use crate::busy_poll::{BUSY_POLL, BusyPoll};
use crate::export::{self, ClientInfo, Withdrawal};
use crate::maybe_tls::{InTransit, MaybeTls};
use crate::pump::Pump;
use crate::runtime::{Runtime, moment_after};
use crate::transport::Transport;

/// How a connection ended in order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// By the client.
    Closed(OrderlyEnd),
    /// By the server, which shuts down.
    ShutDown,
}

pub(crate) struct Session<T: Transport> {
    pump: Pump<Connection, MaybeTls<T>>,
    requests: Requests,
    busy_poll: BusyPoll,
    deaf: Option<Deaf>,
    drains_until: Option<Instant>,
}

/// How long it is looked for the `NBD_CMD_DISC` of a client that takes no more replies. What it sent has arrived by then, if
/// it ever does; the rest of the time is for requests that are at work, behind which it waits.
const DISCONNECT_GRACE: Duration = Duration::from_secs(2);

/// A look at it that comes so much later was held up here.
const LATE: Duration = Duration::from_secs(1);

/// A client that can be sent nothing more. It may have left in order all the same: what it asked for before its
/// `NBD_CMD_DISC` is carried out, whether or not it waits for the replies.
// S-CMD-DISC-01
struct Deaf {
    /// Why it can't.
    error: ConnectionError,
    /// When it is taken for one that was lost.
    deadline: Instant,
    /// Whether it was given more time, since this server had none for it.
    is_excused: bool,
}

impl<T: Transport> Session<T> {
    /// A connection that was just accepted. Fails when an oldstyle client can't be given its export.
    pub(crate) async fn new(
        state: Arc<ServerState>,
        transport: T,
        client: Arc<ClientInfo>,
        recorder: Option<Recorder>,
        runtime: &impl Runtime,
    ) -> Result<Self, ConnectionError> {
        let config = state.config();
        let mut negotiation = Negotiation::new(client, Arc::clone(&config));
        let connection = negotiation.begin(&state).await?;
        let shares_thread = runtime.shares_threads();
        let busy_poll = if shares_thread { Duration::ZERO } else { BUSY_POLL };
        let busy_poll = BusyPoll::new(config.busy_poll(busy_poll));
        let clock = runtime.clone();
        let clock = Box::new(move || clock.now());
        let turn = Turn::new(shares_thread);
        let mut requests = Requests::new(state, negotiation, recorder, turn, clock);
        requests.entered(&connection);
        let pump = Pump::new(connection, MaybeTls::Plain(transport));
        Ok(Self { pump, requests, busy_poll, deaf: None, drains_until: None })
    }

    pub(crate) const fn is_transmitting(&self) -> bool {
        self.pump.machine.is_transmitting()
    }

    /// Exports in the longest list that the client was given.
    pub(crate) const fn listed_exports(&self) -> u32 {
        self.pump.machine.listed_exports()
    }

    /// What takes the export away from the client that uses it, if anything does.
    pub(crate) fn withdrawal(&self) -> Option<Withdrawal> {
        self.requests.negotiation.visit()?.withdrawal().cloned()
    }

    /// Whether nothing is in flight or queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.pump.machine.is_idle()
    }

    /// Requests whose reply is not wholly sent.
    pub(crate) const fn requests_in_flight(&self) -> usize {
        self.pump.machine.requests_in_flight()
    }

    /// The client is to go: later requests are refused, or the connection ends once those in flight are answered.
    pub(crate) const fn shut_down(&mut self, hangs_up: bool) {
        match hangs_up && self.deaf.is_none() {
            true => self.pump.machine.hang_up(),
            // Whether a client that takes no more replies has disconnected stands behind its requests.
            false => self.pump.machine.shut_down(),
        }
    }

    /// The client is being sent away, until then.
    pub(crate) const fn drain_until(&mut self, end: Instant) {
        self.drains_until = Some(end);
    }

    /// Until when the client may be sent what is left for it, if it is sent away.
    pub(crate) const fn drains_until(&self) -> Option<Instant> {
        self.drains_until
    }

    /// Whether this connection is to end as if the server shut down.
    pub(crate) const fn is_ending(&self) -> bool {
        self.requests.ending
    }

    /// Whether the client is gone for good while its requests are being carried out.
    pub(crate) fn is_peer_gone(&self) -> bool {
        self.pump.has_input_ended() && !self.is_idle() && self.pump.transport.is_peer_gone()
    }

    /// Whether the connection has been idle and is not any more, since this was asked last.
    pub(crate) fn has_ended_rest(&mut self) -> bool {
        if self.pump.transport.in_transit().is_some_and(|it| it.incomplete > 0) {
            self.requests.end_rest();
        }
        core::mem::replace(&mut self.requests.ended_rest, false)
    }

    /// When the session has to be polled, whatever happens: a request that waits for the export's layers is due, or a client
    /// that takes no more replies is given up.
    pub(crate) fn due(&self) -> Option<Instant> {
        match &self.deaf {
            Some(deaf) if self.pump.machine.ending().is_none() => Some(deaf.deadline),
            _ => self.requests.due(),
        }
    }

    /// What the connection is doing.
    pub(crate) fn activity(&self) -> Activity {
        let tls = self.pump.transport.in_transit();
        let InTransit { incomplete, has_unsent, sent } = tls.unwrap_or_default();
        // A stream that holds back what it was given takes replies that the client has yet to take.
        let has_unsent = has_unsent || self.pump.is_unflushed();
        let is_deaf = self.deaf.is_some();
        Activity {
            // The machine has sent what TLS has taken, and knows of no other bytes than those that were decrypted.
            incomplete,
            sent: if tls.is_some() { sent } else { self.requests.activity.sent },
            receiving: self.awaits_rest_of_request(incomplete > 0),
            sending: !is_deaf && (has_unsent || self.pump.machine.segments().next().is_some()),
            closing: self.pump.machine.is_closing(),
            in_the_way: self.requests.is_in_the_way(),
            idle: (is_deaf || !has_unsent) && self.is_idle(),
            ..self.requests.activity
        }
    }

    /// Whether a part of a request was received, and the client is to send the rest. `in_record` says that a part of a
    /// TLS record was, which counts as one.
    fn awaits_rest_of_request(&self, in_record: bool) -> bool {
        if self.requests.is_waiting() {
            return false;
        }
        let extended = self.pump.machine.export().is_some_and(|export| export.extended);
        let header = if extended { ExtendedRequest::SIZE } else { CompactRequest::SIZE };
        match self.pump.machine.wants() {
            // That includes the payload of a refused write.
            Wants::Bytes { at_least } => in_record || at_least != header,
            Wants::Payload { .. } => true,
            _ => false,
        }
    }

    /// Gives back all memory that an idle connection does not need.
    pub(crate) fn free_buffers(&mut self) {
        if self.is_idle() {
            self.pump.shrink();
            self.pump.transport.shrink();
            self.requests.free_buffers();
        }
    }

    /// Whether the latest [poll](Self::poll) stopped for others to have their turn: the task has to be polled again.
    pub(crate) const fn has_more_to_do(&self) -> bool {
        self.requests.turn.is_over()
    }

    /// The client takes its replies too slowly: it is sent nothing more. The session has to be polled again.
    pub(crate) fn stop_sending(&mut self, stall: Stall) {
        self.become_deaf(ConnectionError::SendStalled(stall));
    }

    fn become_deaf(&mut self, error: ConnectionError) {
        if self.deaf.is_none() {
            self.requests.hold(&mut self.pump.machine);
            let deadline = moment_after(self.requests.now(), DISCONNECT_GRACE);
            self.deaf = Some(Deaf { error, deadline, is_excused: false });
        }
    }

    /// How the connection of a client ends that takes no more replies, if it is time.
    fn end_of_deaf(&mut self) -> Option<ConnectionError> {
        let deaf = self.deaf.as_mut()?;
        match self.pump.machine.ending() {
            Some(Ok(OrderlyEnd::Disconnected | OrderlyEnd::Aborted)) => return None,
            // It did something wrong and did not wait for the replies: the former is the reason.
            Some(Err(cause)) => return Some(cause.into()),
            Some(Ok(_)) => {}
            None if matches!(self.pump.machine.wants(), Wants::Tls) => {}
            None => {
                let now = self.requests.now();
                if now < deaf.deadline {
                    return None;
                }
                let late = now.saturating_duration_since(deaf.deadline);
                if late > LATE && !core::mem::replace(&mut deaf.is_excused, true) {
                    deaf.deadline = moment_after(now, DISCONNECT_GRACE);
                    return None;
                }
            }
        }
        self.deaf.take().map(|deaf| deaf.error)
    }

    /// Drives the connection until it is over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, ConnectionError>> {
        self.requests.begin_turn(cx);
        loop {
            let Self { pump, requests, busy_poll, deaf, .. } = self;
            requests.collect(&mut pump.machine, cx);
            let mut progress = requests.execute_waiting(&mut pump.machine, cx);
            if deaf.is_none() || pump.machine.ending().is_some() {
                progress |= requests.release(&mut pump.machine, cx);
                progress |= requests.admit_waiting(&mut pump.machine, cx);
            }
            let before = requests.activity.received;
            progress |= pump.receive(requests, cx)?;
            if requests.activity.received != before {
                busy_poll.on_wakeup();
            }
            progress |= answer_question(requests, &mut pump.machine, cx)?;
            requests.negotiation.log_refused(&mut pump.machine);
            if deaf.is_some() {
                progress |= pump.discard(requests)?;
            } else {
                match pump.send(requests, cx) {
                    Ok(sent) => progress |= sent,
                    Err(error @ ConnectionError::Transport(_)) => {
                        self.become_deaf(error);
                        continue;
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                }
                #[cfg(feature = "tls")]
                if matches!(pump.machine.wants(), Wants::Tls) && !pump.is_unflushed() {
                    progress |= begin_tls(pump, requests, cx)?;
                }
            }
            if let Some(result) = requests.closed.take() {
                return Poll::Ready(match (result, self.deaf.take()) {
                    (Ok(OrderlyEnd::EndOfStream | OrderlyEnd::HungUp), Some(deaf)) => {
                        Err(deaf.error)
                    }
                    // One that left in order need not wait for its replies, but not keep others waiting either.
                    (Ok(_), Some(Deaf { error: error @ ConnectionError::SendStalled(_), .. })) => {
                        Err(error)
                    }
                    (result, _) => result.map(End::Closed).map_err(Into::into),
                });
            }
            if let Some(error) = self.end_of_deaf() {
                return Poll::Ready(Err(error));
            }
            let Self { pump, requests, busy_poll, .. } = self;
            let hung_up = core::mem::replace(&mut requests.hung_up, false);
            if hung_up && !pump.machine.is_idle() && pump.transport.is_peer_gone() {
                return Poll::Ready(Err(ConnectionError::PeerGone));
            }
            if requests.turn.is_over() {
                return Poll::Pending;
            }
            if progress {
                continue;
            }
            let quiet = pump.machine.is_idle() && pump.machine.is_transmitting();
            if !quiet || !pump.spin(requests, busy_poll)? {
                return Poll::Pending;
            }
        }
    }

    /// What shows others how far the connection is, if anything does.
    pub(crate) const fn recorder(&self) -> Option<&Recorder> {
        self.requests.recorder.as_ref()
    }

    /// Shows others how far the connection is.
    pub(crate) fn publish(&mut self) {
        let in_flight = self.requests_in_flight();
        self.requests.publish(in_flight, self.pump.machine.self_answered());
    }

    /// The connection is over: drops what still works for the client. The export learns why.
    pub(crate) fn leave(&mut self, result: &Result<End, ConnectionError>) {
        self.requests.abandon();
        self.requests.negotiation.leave(match result {
            Ok(End::Closed(OrderlyEnd::Disconnected | OrderlyEnd::Aborted)) => {
                export::CloseReason::Disconnected
            }
            Ok(End::Closed(_)) => export::CloseReason::Vanished,
            Ok(End::ShutDown) | Err(ConnectionError::DrainTimeout(_)) => {
                export::CloseReason::ShutDown
            }
            Err(error) => export::CloseReason::Failed(error.to_string()),
        });
    }

    /// Sends the last of what was queued, and closes the writing side.
    pub(crate) fn poll_close_writing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pump.poll_close_writing(cx)
    }

    /// Closes the writing side, then reads what still comes, so that the last replies aren't lost to a reset.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pump.poll_close(cx)
    }
}

/// Answers what the client asks about exports, once they have answered. Gives whether they have.
fn answer_question(
    requests: &mut Requests,
    connection: &mut Connection,
    cx: &mut Context<'_>,
) -> Result<bool, ConnectionError> {
    match requests.negotiation.answer(connection, &requests.state, cx) {
        None => Ok(false),
        Some(outcome) => {
            if outcome? == LookupOutcome::Entered {
                requests.entered(connection);
            }
            Ok(true)
        }
    }
}

/// Does the TLS handshake, once the answer to STARTTLS is sent. Gives whether it has finished.
#[cfg(feature = "tls")]
fn begin_tls<T: Transport>(
    pump: &mut Pump<Connection, MaybeTls<T>>,
    requests: &mut Requests,
    cx: &mut Context<'_>,
) -> Result<bool, ConnectionError> {
    // The machine offers TLS only if there is a configuration of it.
    let config = Arc::clone(requests.negotiation.config());
    let Some(tls) = config.tls() else {
        return Err(ConnectionError::Internal(nbd_proto::Misuse::WrongPhase));
    };
    let count = |succeeded| {
        if let Some(metrics) = requests.state.metrics() {
            metrics.tls_began(succeeded);
        }
    };
    let stream = pump.transport.tls(|transport| tls.accept(transport));
    let stream = stream.map_err(ConnectionError::Tls).inspect_err(|_| count(false))?;
    match stream.poll_handshake(cx) {
        Poll::Pending => return Ok(false),
        Poll::Ready(done) => {
            count(done.is_ok());
            done.map_err(ConnectionError::TlsHandshake)?;
        }
    }
    let identity = stream.peer_identity().unwrap_or_default();
    if !tls.admits(&identity) {
        return Err(ConnectionError::NotAllowed(identity.names));
    }
    tracing::debug!(suite = stream.description(), names = ?identity.names, "TLS begins");
    if let Some(recorder) = &requests.recorder {
        recorder.identified(identity.clone());
    }
    requests.negotiation.identified(identity);
    pump.machine.tls_established()?;
    Ok(true)
}

#[cfg(test)]
mod admission_tests;
#[cfg(test)]
mod deaf_tests;
#[cfg(test)]
mod tests;
