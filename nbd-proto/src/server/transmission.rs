//! Requests: everything between the start of transmission and its end (section "Transmission").

use alloc::vec::Vec;

use super::connection::State;
use super::reply::Content;
use super::validate::Refusal;
use super::{Connection, Event, Request};
use crate::coverage::Coverage;
use crate::wire::{
    BlockStatusDescriptor, CommandFlags, CommandType, ErrorCode, ExtendedRequest, Reader,
};
use crate::{Command, Error, LimitExceeded, RequestId};

/// A request in flight. Places in the table are reused with their vectors.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) cookie: u64,
    /// The offset field of the request, which extended replies repeat.
    pub(super) offset: u64,
    /// `None` for a request that was refused.
    pub(super) command: Option<Command>,
    /// Bytes counted against [`Limits::max_in_flight_bytes`](crate::Limits::max_in_flight_bytes).
    pub(super) bytes: u64,
    pub(super) phase: Phase,
    /// What a read's reply accounts for so far.
    pub(super) coverage: Coverage,
    /// Content that must be sent in one piece at the end, in simple replies and with DF.
    pub(super) deferred: Vec<Content>,
    /// Errors that were reported with an offset.
    pub(super) failures: Vec<(u64, ErrorCode)>,
    /// Metadata contexts whose extents are still to be given.
    pub(super) awaited: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// The payload is still to come.
    #[default]
    Receiving,
    /// The embedder is to reply.
    Open,
    /// The reply is queued.
    Answered,
}

impl Pending {
    fn begin(&mut self, request: &ExtendedRequest, command: Option<Command>) {
        self.cookie = request.cookie;
        self.offset = request.offset;
        self.command = command;
        self.bytes = 0;
        self.phase = Phase::Receiving;
        self.coverage.clear();
        self.deferred.clear();
        self.failures.clear();
        self.awaited.clear();
    }
}

/// A valid request whose data would exceed what may be in flight.
#[derive(Debug)]
pub(super) struct Held {
    request: ExtendedRequest,
    command: Command,
}

const SHUTTING_DOWN: Refusal = (ErrorCode::ESHUTDOWN, "the server is shutting down");
const BAD_STATUS_PAYLOAD: Refusal =
    (ErrorCode::EINVAL, "the list of metadata contexts is malformed");

impl Connection {
    /// A request header has arrived, and there is a place for it in the table.
    pub(super) fn request(&mut self, request: &ExtendedRequest) -> Result<Option<Event>, Error> {
        if request.command == CommandType::DISC {
            self.state = State::Ended;
            return Ok(Some(Event::Disconnected));
        }
        let Some(export) = &self.export else { return Ok(None) };
        let rules = &export.rules;
        let payload = rules.payload_length(request);
        if payload > self.config.limits.max_discard() {
            let command = request.command;
            return Err(LimitExceeded::Payload { command, length: payload }.into());
        }
        if request.command == CommandType::BLOCK_STATUS && payload > 0 {
            let checked = rules.check_header(request);
            self.begin_status_payload(request, checked);
            return Ok(None);
        }
        let checked = rules.check(request);
        Ok(match checked {
            Ok(_) if self.shutting_down => self.refuse_request(request, payload, SHUTTING_DOWN),
            Err(refusal) => self.refuse_request(request, payload, refusal),
            Ok(command) => {
                let held = Held { request: *request, command };
                if self.has_room(&held) {
                    self.accept(&held)
                } else {
                    self.state = State::Held(held);
                    None
                }
            }
        })
    }

    /// Whether a request's data fits into what may be in flight. A request that is alone always fits.
    pub(super) fn has_room(&self, held: &Held) -> bool {
        let length = self.bytes_for(&held.command);
        let total = self.in_flight_bytes.saturating_add(length);
        length == 0 || self.in_flight_bytes == 0 || total <= self.config.limits.max_in_flight_bytes
    }

    /// Whether the requests in flight take more than they may, so that not even a header should be read.
    pub(super) const fn exceeds_bytes(&self) -> bool {
        self.in_flight_bytes > self.config.limits.max_in_flight_bytes
    }

    /// The bytes that a command's data or its extents take: the embedder's, or the queue's.
    fn bytes_for(&self, command: &Command) -> u64 {
        let &Command::BlockStatus { one, .. } = command else {
            return command.buffer_length();
        };
        let contexts = self.export.as_ref().map_or(0, |export| export.contexts.len()) as u64;
        let extents = if one { 1 } else { u64::from(self.config.limits.max_extents) };
        contexts.saturating_mul(extents).saturating_mul(BlockStatusDescriptor::EXTENDED_SIZE as u64)
    }

    /// Raises the request that was held, once there is room.
    pub(super) fn release_held(&mut self) -> Option<Event> {
        match core::mem::replace(&mut self.state, State::RequestHeader) {
            State::Held(held) if self.has_room(&held) => self.accept(&held),
            state => {
                self.state = state;
                None
            }
        }
    }

    /// Gives a valid request its place. Requests of no length succeed by themselves.
    fn accept(&mut self, held: &Held) -> Option<Event> {
        let command = held.command;
        let bytes = self.bytes_for(&command);
        let (id, pending) = self.in_flight.take()?;
        pending.begin(&held.request, Some(command));
        pending.phase = Phase::Open;
        pending.bytes = bytes;
        self.in_flight_bytes = self.in_flight_bytes.saturating_add(bytes);
        self.state = State::RequestHeader;
        let ranged = !matches!(command, Command::Flush | Command::Resize { .. });
        if ranged && command.length() == 0 {
            self.succeed(id);
            return None;
        }
        match command {
            Command::Write { length, .. } => {
                pending.phase = Phase::Receiving;
                self.state = State::Payload(id, 0, u64::from(length));
            }
            Command::BlockStatus { .. } => {
                if let Some(export) = &self.export {
                    pending.awaited.extend(export.contexts.iter().map(|context| context.id));
                }
            }
            _ => {}
        }
        Some(Event::Request(Request { id, command }))
    }

    /// Gives a refused request its place, so that a client who does not read its errors stops itself; the error
    /// follows once the payload is consumed (S-REQ-11).
    fn refuse_request(
        &mut self,
        request: &ExtendedRequest,
        payload: u64,
        refusal: Refusal,
    ) -> Option<Event> {
        let (id, pending) = self.in_flight.take()?;
        pending.begin(request, None);
        self.state = State::RequestHeader;
        if payload > 0 {
            self.state = State::Discard(id, payload, refusal);
        } else {
            self.refuse(id, refusal);
        }
        None
    }

    pub(super) fn refuse(&mut self, id: RequestId, (code, text): Refusal) {
        self.queue_error(id, code, text, None);
    }

    pub(super) fn payload_complete(&mut self, id: RequestId) {
        if let Some(pending) = self.in_flight.get_mut(id) {
            pending.phase = Phase::Open;
        }
    }

    /// A block status request that lists the contexts it is about (section "Request types").
    fn begin_status_payload(&mut self, request: &ExtendedRequest, checked: Result<(), Refusal>) {
        let selected = self.export.as_ref().map_or(0, |export| export.contexts.len());
        let longest = selected.saturating_mul(4).saturating_add(8) as u64;
        let refusal = match checked {
            Err(refusal) => refusal,
            Ok(()) if self.shutting_down => SHUTTING_DOWN,
            Ok(())
                if request.length > longest
                    || request.length < 12
                    || !request.length.is_multiple_of(4) =>
            {
                BAD_STATUS_PAYLOAD
            }
            Ok(()) => {
                if let Some((id, pending)) = self.in_flight.take() {
                    pending.begin(request, None);
                    self.collected.clear();
                    self.state = State::StatusPayload(id, *request);
                }
                return;
            }
        };
        self.refuse_request(request, request.length, refusal);
    }

    /// The payload of a block status request is in `collected`: effect length and context ids (S-EH-10, S-EH-11).
    pub(super) fn status_payload(&mut self) -> Option<Event> {
        let State::StatusPayload(id, request) =
            core::mem::replace(&mut self.state, State::RequestHeader)
        else {
            return None;
        };
        let mut reader = Reader::new(&self.collected);
        let length = reader.u64("effect length").unwrap_or(0);
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        let command = Command::BlockStatus { offset: request.offset, length, one };
        // There was no room reserved for this form: it is what stops the next header from being read, if need be.
        let bytes = self.bytes_for(&command);
        let export = self.export.as_ref()?;
        let pending = self.in_flight.get_mut(id)?;
        let mut known = true;
        while let Ok(context) = reader.u32("context id") {
            known &= export.contexts.iter().any(|selected| selected.id == context)
                && !pending.awaited.contains(&context);
            pending.awaited.push(context);
        }
        let checked = export.rules.check_range(&command);
        match checked {
            Ok(()) if known => {
                pending.command = Some(command);
                pending.bytes = bytes;
                self.in_flight_bytes = self.in_flight_bytes.saturating_add(bytes);
                pending.phase = Phase::Open;
                Some(Event::Request(Request { id, command }))
            }
            Ok(()) => {
                self.refuse(id, BAD_STATUS_PAYLOAD);
                None
            }
            Err(refusal) => {
                self.refuse(id, refusal);
                None
            }
        }
    }

    /// The metadata contexts whose extents a block status request still waits for, in no particular order: numbers to
    /// look up in [`ExportView::contexts`](super::ExportView::contexts).
    pub fn awaited_contexts(&self, id: RequestId) -> &[u32] {
        self.in_flight.get(id).map_or(&[], |pending| &pending.awaited)
    }
}
