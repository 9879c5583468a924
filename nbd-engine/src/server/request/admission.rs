//! Requests that wait until the export's layers let them be carried out.
//!
//! A layer delays a request, or has it wait for its share of a rate (see [`Layer`](crate::export::Layer)). No thread
//! and no task waits for it: the request stays in its slot, and the connection is polled again when the next one is
//! due. Delays run side by side; what waits for a rate is in a queue, in the order in which it got there, and nothing
//! is taken from the rate before the request is carried out, so that a client that is gone has taken nothing.

use core::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::task::Context;
use std::time::{Duration, Instant};

use nbd_proto::server::Connection;
use nbd_proto::{Command, RequestId};

use super::Requests;
use crate::export::{Admit, ExportError};
use crate::runtime::moment_after;
use crate::server::dispatch;
use crate::server::payload::Destination;

/// Payload bytes that may wait. With more, nothing is received: a client that is held back should not hold the buffers
/// that others need.
const MAX_WAITING_BYTES: u64 = 1 << 20;

/// The requests of a connection to an export that is asked about each.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Those that are delayed, the one that is due first on top.
    delayed: BinaryHeap<Reverse<Delayed>>,
    /// Numbers them, so that those that are due at the same time stay in order.
    next_number: u64,
    /// Those that wait for their share of a rate.
    queue: VecDeque<(RequestId, Command)>,
    /// When the first of the queue is to be looked at again.
    retry: Option<Instant>,
    /// Payload bytes of all that waits.
    bytes: u64,
    /// When the request in each slot arrived.
    arrived: Vec<Option<Instant>>,
}

#[derive(Debug)]
struct Delayed {
    due: Instant,
    number: u64,
    id: RequestId,
    command: Command,
    error: Option<ExportError>,
}

impl Delayed {
    const fn key(&self) -> (Instant, u64) {
        (self.due, self.number)
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Delayed {}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Admission {
    fn is_full(&self) -> bool {
        self.bytes >= MAX_WAITING_BYTES
    }

    fn arrive(&mut self, id: RequestId, now: Instant) {
        let index = id.index();
        if index >= self.arrived.len() {
            self.arrived.resize(index + 1, None);
        }
        self.arrived[index] = Some(now);
    }

    fn delay(&mut self, due: Instant, id: RequestId, command: Command, error: Option<ExportError>) {
        self.bytes += command.payload_length();
        let number = self.next_number;
        self.next_number += 1;
        self.delayed.push(Reverse(Delayed { due, number, id, command, error }));
    }

    /// The first of those whose delay is over.
    fn pop_due(&mut self, now: Instant) -> Option<Delayed> {
        self.delayed.peek().filter(|Reverse(first)| first.due <= now)?;
        let Reverse(first) = self.delayed.pop()?;
        self.bytes -= first.command.payload_length();
        Some(first)
    }

    /// When there is something to do, if nothing else happens.
    fn due(&self) -> Option<Instant> {
        let delayed = self.delayed.peek().map(|Reverse(first)| first.due);
        match (delayed, self.retry.filter(|_| !self.queue.is_empty())) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

impl Requests {
    /// A request is complete. Gives whether it is to be carried out now; otherwise it waits, or is answered already.
    pub(super) fn admit(
        &mut self,
        connection: &mut Connection,
        id: RequestId,
        command: Command,
        staged: &[u8],
    ) -> bool {
        let now = (self.clock)();
        let Some(admission) = &mut self.admission else { return true };
        let Some(export) = self.negotiation.export() else { return true };
        admission.arrive(id, now);
        let client = self.negotiation.client();
        let Admit { delay, result } =
            dispatch::guarded(|| export.admit(client, &command)).unwrap_or_else(Admit::refuse);
        if delay > Duration::ZERO {
            let due = moment_after(now, delay);
            admission.delay(due, id, command, result.err());
            self.keep_payload(id, command, staged);
            return false;
        }
        if let Err(error) = result {
            self.answer(connection, id, command, &Err(error));
            return false;
        }
        if self.take_share(command, now) {
            return true;
        }
        self.enqueue(id, command);
        self.keep_payload(id, command, staged);
        false
    }

    /// Takes the request's share of a rate, unless it, or one before it, has to wait for that.
    fn take_share(&mut self, command: Command, now: Instant) -> bool {
        let Some(admission) = &mut self.admission else { return true };
        let Some(export) = self.negotiation.export() else { return true };
        if !admission.queue.is_empty() {
            return false;
        }
        let client = self.negotiation.client();
        // A layer that panics holds nobody up.
        let wait = dispatch::guarded(|| export.pace(client, &command, now)).unwrap_or_default();
        if wait > Duration::ZERO {
            admission.retry = Some(moment_after(now, wait));
            return false;
        }
        let _panicked = dispatch::guarded(|| export.begun(client, &command, now));
        true
    }

    fn enqueue(&mut self, id: RequestId, command: Command) {
        if let Some(admission) = &mut self.admission {
            admission.bytes += command.payload_length();
            admission.queue.push_back((id, command));
        }
    }

    /// The payload of a write that waits can't stay in the receive buffer.
    pub(super) fn keep_payload(&mut self, id: RequestId, command: Command, staged: &[u8]) {
        let slot = &mut self.slots[id.index()];
        if command.payload_length() == 0 || slot.payload.is_decided() {
            return;
        }
        slot.payload.decide(&mut slot.work.body, staged.len(), None);
        if let Destination::Buffer = slot.payload.destination {
            slot.work.body.buffer_mut().copy_from_slice(staged);
        }
    }

    /// Carries out the requests whose wait is over. Gives whether there were any.
    pub(in crate::server) fn admit_waiting(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> bool {
        if self.admission.as_ref().is_none_or(|admission| admission.due().is_none()) {
            return false;
        }
        let now = (self.clock)();
        let mut progress = false;
        // Those that wait for memory hold up nobody: it may be that of others which wait here.
        while !self.turn.is_over() {
            let Some(admission) = &mut self.admission else { break };
            if let Some(Delayed { id, command, error, .. }) = admission.pop_due(now) {
                progress = true;
                match error {
                    Some(error) => self.answer(connection, id, command, &Err(error)),
                    None if self.take_share(command, now) => {
                        self.carry_out(connection, id, command, &[], cx);
                    }
                    None => self.enqueue(id, command),
                }
                continue;
            }
            if admission.retry.is_some_and(|retry| retry > now) {
                break;
            }
            let Some((id, command)) = admission.queue.pop_front() else { break };
            // Those behind it don't count any more: it is the first.
            let rest = core::mem::take(&mut admission.queue);
            let taken = self.take_share(command, now);
            let Some(admission) = &mut self.admission else { break };
            admission.queue = rest;
            if !taken {
                admission.queue.push_front((id, command));
                break;
            }
            admission.bytes -= command.payload_length();
            progress = true;
            self.carry_out(connection, id, command, &[], cx);
        }
        progress
    }

    /// When a request's wait is over that only the time ends.
    pub(in crate::server) fn due(&self) -> Option<Instant> {
        self.admission.as_ref()?.due()
    }

    /// Whether so much waits that nothing is received.
    pub(super) fn is_held_back(&self) -> bool {
        self.admission.as_ref().is_some_and(Admission::is_full)
    }

    /// Reports a request that is over.
    pub(super) fn report(
        &mut self,
        id: RequestId,
        command: Command,
        result: &crate::export::Result<()>,
    ) {
        let Some(admission) = &mut self.admission else { return };
        let Some(export) = self.negotiation.export() else { return };
        let arrived = admission.arrived.get_mut(id.index()).and_then(Option::take);
        let now = (self.clock)();
        let took = arrived.map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        let client = self.negotiation.client();
        let _panicked = dispatch::guarded(|| export.finished(client, &command, result, took));
    }
}
