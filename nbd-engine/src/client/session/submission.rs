//! From what a program asks for to requests in flight.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use nbd_proto::client::{Connection, SubmitError};
use nbd_proto::{Command, OrderlyEnd, RequestRules};

use super::super::config::ClientConfig;
use super::super::connection_handle::{Closed, ConnectionHandle, Disconnect};
use super::super::details::ExportDetails;
use super::super::reconnect::Tally;
use super::super::request_state::RequestState;
use super::super::{Error, LostReason, split};
use super::durable::Durable;

/// The requests of a connection, and their data.
pub(super) struct Requests {
    pub(super) handle: Arc<ConnectionHandle>,
    pub(super) rules: RequestRules,
    /// That of the export, as the client sees it.
    pub(super) size: Arc<AtomicU64>,
    /// The selected metadata contexts by their numbers on this connection.
    pub(super) contexts: Vec<(u32, Arc<str>)>,
    /// Requests that wait for a free slot in flight.
    pub(super) backlog: VecDeque<RequestState>,
    pub(super) states: Vec<Option<RequestState>>,
    pub(super) free: Vec<usize>,
    /// What is in flight, by the index of its id.
    pub(super) parts: Vec<Option<Part>>,
    /// Requests of which not all parts are submitted, which take turns with each other and with those that wait.
    pub(super) splitting: VecDeque<usize>,
    /// Whether a part goes before a request that waits.
    part_is_next: bool,
    max_in_flight: usize,
    pub(super) disconnect: Disconnect,
    /// A waiter was woken in this turn, and may have more to ask for.
    pub(super) notified: bool,
    /// Something was received in this round.
    pub(super) received: bool,
    /// A request was answered in this round.
    pub(super) answered: bool,
    /// The transport takes no more bytes. What it has received is still read.
    pub(super) output_failed: Option<Arc<io::Error>>,
    /// How the machine ended, once it did.
    pub(super) closed: Option<Result<OrderlyEnd, nbd_proto::Error>>,
    /// Set where a lost connection is replaced: what was acknowledged and not flushed.
    pub(super) durable: Option<Durable>,
    /// Flushes in flight by the indices of their states, and what was acknowledged when they were submitted.
    pub(super) flushes: Vec<(usize, Tally)>,
    /// Requests of the client's own, which come first.
    pub(super) own: VecDeque<RequestState>,
    /// Kept changes that are being written again, and the flush after them.
    pub(super) replaying: usize,
    /// Nothing more is submitted on this connection, since the server is shutting down.
    pub(super) stopped: bool,
}

/// A request on the wire: which part of which request of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) request: usize,
    /// Where it begins, counted from the whole one.
    pub(super) start: u64,
    /// An error chunk has arrived for it.
    pub(super) has_error: bool,
}

impl Requests {
    pub(super) fn new(
        handle: &Arc<ConnectionHandle>,
        machine: &Connection,
        details: &ExportDetails,
        rules: RequestRules,
        config: &ClientConfig,
    ) -> Self {
        let mut requests = Self {
            handle: Arc::clone(handle),
            rules,
            size: Arc::clone(&details.size),
            contexts: Vec::new(),
            backlog: VecDeque::new(),
            states: Vec::new(),
            free: Vec::new(),
            parts: Vec::new(),
            splitting: VecDeque::new(),
            part_is_next: false,
            max_in_flight: config.limits().max_in_flight.max(1) as usize,
            disconnect: Disconnect::No,
            notified: false,
            received: false,
            answered: false,
            output_failed: None,
            closed: None,
            durable: None,
            flushes: Vec::new(),
            own: VecDeque::new(),
            replaying: 0,
            stopped: false,
        };
        requests.name_contexts(machine);
        requests
    }

    /// Learns the numbers of the selected metadata contexts on a connection.
    pub(super) fn name_contexts(&mut self, machine: &Connection) {
        let selected = machine.export().map_or(&[][..], |export| export.contexts);
        self.contexts =
            selected.iter().map(|selected| (selected.id, selected.name.as_str().into())).collect();
    }

    /// Takes over what was queued, and submits as much of it as may be in flight.
    pub(super) fn take(&mut self, machine: &mut Connection) {
        self.disconnect = self.handle.take(&mut self.backlog);
        if self.disconnect == Disconnect::Soft && self.nobody_waits() {
            self.disconnect = Disconnect::Hard;
        }
        self.end_turns();
        // What is queued while the connection ends has the end of the connection for its outcome.
        let may_submit = !machine.is_closing();
        while may_submit && machine.requests_in_flight() < self.max_in_flight {
            let Some(index) = self.take_turn(machine) else { break };
            self.submit_next_part(machine, index);
        }
        // Kept changes are not being written again then: nothing else is in flight meanwhile, so that a caller waits for
        // something in the backlog, or for nothing any more.
        let all_submitted = self.backlog.is_empty() && self.splitting.is_empty();
        if self.disconnect != Disconnect::No && all_submitted {
            machine.disconnect();
        }
        if self.disconnect == Disconnect::Hard {
            machine.disconnect_now();
        }
    }

    /// All that is in flight has timed out. (What was only abandoned is waited for, as long as it may take.)
    fn nobody_waits(&self) -> bool {
        let timed_out = |request: &RequestState| request.completion.is_none();
        self.backlog.is_empty() && self.states.iter().flatten().all(timed_out)
    }

    /// What nobody waits for any more, or has failed, takes no more turns. Nothing is admitted in between, so that no index of
    /// one that is over is another one's yet.
    fn end_turns(&mut self) {
        for _ in 0..self.splitting.len() {
            let Some(index) = self.splitting.pop_front() else { return };
            let Some(request) = &mut self.states[index] else { continue };
            request.submitted |= request.is_abandoned();
            match request.submitted {
                true => self.finish_if_done(index),
                false => self.splitting.push_back(index),
            }
        }
    }

    /// The request of which something may be submitted now. Parts of what is long take turns with what was asked for later,
    /// so that nobody waits for all of it.
    fn take_turn(&mut self, machine: &Connection) -> Option<usize> {
        let may_go_on = |index: &usize| {
            self.states[*index]
                .as_ref()
                .is_some_and(|request| request.may_have_another_part(&self.rules))
        };
        let part = self.splitting.iter().position(may_go_on);
        let wins = core::mem::replace(&mut self.part_is_next, false);
        if let Some(at) = part.filter(|_| wins) {
            return self.splitting.remove(at);
        }
        self.part_is_next = true;
        while let Some(request) = self.next_request(machine) {
            // Nobody would miss it.
            if !request.is_abandoned() {
                return Some(self.admit(request));
            }
        }
        self.splitting.remove(part?)
    }

    fn admit(&mut self, request: RequestState) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            self.states.push(None);
            self.states.len() - 1
        });
        self.states[index] = Some(request);
        index
    }

    fn submit_next_part(&mut self, machine: &mut Connection, index: usize) {
        let Some(request) = &mut self.states[index] else { return };
        if !request.submitted {
            if let (Command::Flush, Some(durable)) = (request.command, &self.durable) {
                self.flushes.push((index, durable.mark()));
            }
            let start = request.submitted_up_to;
            let (command, last) = split::next_part(&self.rules, &request.command, start);
            match machine.submit(command) {
                Ok(id) => {
                    request.submitted_up_to += command.length();
                    request.in_flight += 1;
                    request.submitted = last;
                    let slot = id.index();
                    if slot >= self.parts.len() {
                        self.parts.resize(slot + 1, None);
                    }
                    self.parts[slot] = Some(Part { request: index, start, has_error: false });
                }
                Err(error) => request.fail(|| refused(&self.handle, error)),
            }
        }
        match request.submitted {
            true => self.finish_if_done(index),
            false => self.splitting.push_back(index),
        }
    }

    /// Hands over the outcome of a request whose last part was answered.
    pub(super) fn finish_if_done(&mut self, index: usize) {
        let done = |request: &mut RequestState| {
            request.submitted && request.in_flight == 0 && !request.abandoned
        };
        if let Some(mut request) = self.states[index].take_if(done) {
            self.free.push(index);
            self.notified = true;
            request.leave_out_the_rest();
            if self.durable.is_some() {
                self.settle(index, &mut request);
            }
            self.handle.finish(request);
        }
    }

    /// Takes note of an answered request on a connection that may be replaced.
    fn settle(&mut self, index: usize, request: &mut RequestState) {
        let flush = self.flushes.iter().position(|(known, _)| *known == index);
        let covered = flush.map(|at| self.flushes.swap_remove(at).1).unwrap_or_default();
        if let Some(purpose) = request.internal {
            return self.own_request_ended(purpose, request, covered);
        }
        if let Some(durable) = &mut self.durable
            && request.failure.is_none()
        {
            durable.succeeded(request, covered);
        }
        request.reservation = None;
    }

    /// The server takes no more requests, and there will be another one: what is in flight goes on, and all others wait.
    pub(super) fn stop(&mut self, machine: &mut Connection) {
        if !core::mem::replace(&mut self.stopped, true) {
            for index in self.splitting.drain(..) {
                if let Some(request) = &mut self.states[index]
                    && !request.submitted
                {
                    // It begins anew on the next connection.
                    (request.submitted, request.abandoned) = (true, true);
                }
            }
            machine.disconnect();
        }
    }

    /// The server takes no more requests: what is in flight goes on, and all others fail.
    #[cold]
    pub(super) fn shut_down(&mut self, machine: &mut Connection) {
        let closed = Closed::Lost(LostReason::ShuttingDown);
        self.handle.close(closed.clone());
        // Requests that were made before that, too, by a waiter that was woken a moment ago.
        self.disconnect = self.handle.take(&mut self.backlog);
        for mut request in self.backlog.drain(..) {
            request.fail(|| closed.error(&self.handle.peer, false));
            self.handle.finish(request);
        }
        for index in core::mem::take(&mut self.splitting) {
            if let Some(request) = &mut self.states[index] {
                // The core has a part of it, and can't take that back.
                request.fail(|| closed.error(&self.handle.peer, true));
                self.finish_if_done(index);
            }
        }
        machine.disconnect();
    }

    /// The connection is over: fails all that is not answered.
    pub(super) fn end(&mut self, closed: &Closed) {
        self.drop_own_requests();
        // Said before any waiter learns of it.
        if let Some(durable) = &mut self.durable {
            match closed {
                Closed::Lost(_) => durable.lost(),
                Closed::Disconnected => durable.disconnected(),
            }
        }
        let in_flight: Vec<_> = self.states.iter_mut().filter_map(Option::take).collect();
        for mut request in in_flight.into_iter().chain(core::mem::take(&mut self.backlog)) {
            request.reservation = None;
            let sent = request.sent;
            request.fail(|| closed.error(&self.handle.peer, sent));
            self.handle.finish(request);
        }
    }
}

/// Why the core did not take a part of a request that had been found valid.
fn refused(handle: &ConnectionHandle, error: SubmitError) -> Error {
    let peer = Arc::clone(&handle.peer);
    match error {
        SubmitError::Invalid(invalid) => Error::Invalid(invalid),
        SubmitError::Disconnecting | SubmitError::NotTransmitting => Error::Disconnected { peer },
        // The session knows that before it submits anything. If it did not, an earlier part might have been sent.
        SubmitError::ServerShuttingDown => {
            Error::Lost { peer, sent: true, reason: LostReason::ShuttingDown }
        }
        error => Error::NotSubmitted(error),
    }
}
