//! Requests: everything between the start of transmission and its end (section "Transmission").

use alloc::string::String;
use alloc::vec::Vec;

use super::handshake::{Agreed, ContextKind, Selection, Shared, Shutdown, Step, collect, skip};
use super::header::{self, Refused};
use super::pending::{Pending, Progress};
use super::reply::{Answer, Style};
use super::self_answered::SelfAnswers;
use super::status::StatusExtents;
use super::{Config, Event};
use crate::export::MAX_SIZE;
use crate::in_flight::InFlight;
use crate::outbound::Outbound;
use crate::scratch::Scratch;
use crate::wire::{
    BlockStatusDescriptor, CommandFlags, CommandType, CompactRequest, ErrorCode, ExtendedRequest,
    Reader, TransmissionFlags,
};
use crate::{
    BlockSize, Command, Error, Input, LimitExceeded, Limits, Misuse, OrderlyEnd, PauseReason,
    RequestId, RequestRules, SelectedContext, Wants,
};

/// Everything from the start of transmission on.
#[derive(Debug)]
pub(super) struct Transmission {
    pub(super) export: Entered,
    next: Next,
    /// The payload of a block status request.
    collected: Vec<u8>,
    pub(super) in_flight: InFlight<Pending>,
    /// What [`Limits::max_in_flight_bytes`] counts.
    bytes: u64,
    /// For extents that are given one by one.
    pub(super) status: StatusExtents,
    pub(super) self_answers: SelfAnswers,
}

/// The export in use.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) rules: RequestRules,
    pub(super) style: Style,
    pub(super) tls: bool,
    pub(super) block_size_advertised: bool,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) contexts: Vec<SelectedContext>,
    pub(super) kinds: Vec<ContextKind>,
    /// The size that was announced to the client.
    announced: u64,
}

impl Entered {
    /// The export has a new size. A client that can't know of it keeps the announced size at most.
    pub(super) fn set_size(&mut self, size: u64) {
        let knows = self.rules.flags.contains(TransmissionFlags::SEND_RESIZE);
        self.rules.size = size.min(if knows { MAX_SIZE } else { self.announced });
    }

    pub(super) fn new(
        size: u64,
        flags: TransmissionFlags,
        block_size: BlockSize,
        agreed: &Agreed,
        selection: Selection,
    ) -> Self {
        let Selection { contexts, kinds, .. } = selection;
        let (extended, has_contexts) = (agreed.extended, !contexts.is_empty());
        Self {
            rules: RequestRules { size, flags, block_size, extended, has_contexts },
            announced: size,
            style: Style::new(agreed.structured, agreed.extended),
            tls: agreed.tls,
            block_size_advertised: false,
            name: None,
            description: None,
            contexts,
            kinds,
        }
    }
}

/// What the next bytes of the stream are, or what they wait for.
#[derive(Debug)]
enum Next {
    Header,
    /// A valid request that waits for room.
    Held(Held),
    /// The context ids of a block status request.
    StatusPayload(RequestId, ExtendedRequest),
    Payload {
        id: RequestId,
        command: Command,
        offset: u64,
        remaining: u64,
    },
    /// A request whose payload is complete.
    Ready(RequestId, Command),
    /// The payload of a request that was refused.
    Discard {
        id: RequestId,
        command: CommandType,
        remaining: u64,
        refused: Refused,
    },
}

/// A valid request.
#[derive(Clone, Copy, Debug)]
struct Held {
    cookie: u64,
    offset: u64,
    command: Command,
}

/// What is known of a request that is refused.
#[derive(Clone, Copy, Debug)]
struct Origin {
    command: CommandType,
    cookie: u64,
    offset: u64,
}

impl From<&ExtendedRequest> for Origin {
    fn from(&ExtendedRequest { command, cookie, offset, .. }: &ExtendedRequest) -> Self {
        Self { command, cookie, offset }
    }
}

/// Extents in a block status chunk, whatever the limits say.
// S-CMD-BS-07
pub(super) const MAX_EXTENTS: u32 = 1 << 20;

const SHUTTING_DOWN: Refused = Refused::new(ErrorCode::ESHUTDOWN, "the server is shutting down");
const BAD_STATUS_PAYLOAD: Refused =
    Refused::new(ErrorCode::EINVAL, "the list of metadata contexts is malformed");

/// The slot was found free before the request was read.
const NO_SLOT: Error = Error::Internal("a request was read without a slot for it");
/// What has 64 bits exceeds every limit, so that no more is accepted long before.
const BYTES_OVERFLOW: Error = Error::Internal("the bytes in flight have more than 64 bits");
/// A slot is freed only after its request is over.
const SLOT_LOST: Error = Error::Internal("a request in flight lost its slot");

impl Transmission {
    pub(super) fn new(export: Entered, config: &Config) -> Self {
        Self {
            export,
            next: Next::Header,
            collected: Vec::new(),
            in_flight: InFlight::new(config.limits.max_in_flight.max(1)),
            bytes: 0,
            status: StatusExtents::new(),
            self_answers: SelfAnswers::default(),
        }
    }

    #[inline]
    pub(super) fn step(
        &mut self,
        shared: &mut Shared<'_>,
        scratch: &mut Scratch,
        input: &mut impl Input,
    ) -> Result<Step, Error> {
        match &mut self.next {
            Next::Header | Next::Held(_) if shared.shutdown == Shutdown::HangingUp => {
                Ok(Step::Closing(OrderlyEnd::HungUp))
            }
            Next::Header => {
                if self.in_flight.is_full() || self.exceeds_bytes(&shared.config.limits) {
                    return Ok(Step::Paused);
                }
                let request = if self.export.rules.extended {
                    let Some(bytes) = scratch.take(input) else { return Ok(Step::Starved) };
                    ExtendedRequest::decode(&bytes)?
                } else {
                    let Some(bytes) = scratch.take(input) else { return Ok(Step::Starved) };
                    CompactRequest::decode(&bytes)?.into()
                };
                self.request(shared, &request)
            }
            Next::Ready(id, command) => {
                let (id, command) = (*id, *command);
                self.next = Next::Header;
                self.in_flight.get_mut(id).ok_or(SLOT_LOST)?.progress = Progress::Open;
                // The export may have been resized since the header arrived.
                match header::check(&command, &self.export.rules) {
                    Ok(()) => Ok(Step::Event(Event::Request { id, command })),
                    Err(refused) => self.refuse(shared, id, command.command_type(), refused),
                }
            }
            Next::Payload { .. } if input.unread().is_empty() => Ok(Step::Starved),
            Next::Payload { .. } => Ok(Step::Paused),
            Next::Held(held) => {
                let Held { cookie, offset, command } = *held;
                if !self.has_room(&command, &shared.config.limits) {
                    return Ok(Step::Paused);
                }
                // The export may have been resized since the header arrived.
                match header::check(&command, &self.export.rules) {
                    Ok(()) => self.accept(shared, Held { cookie, offset, command }),
                    Err(refused) => {
                        let payload = command.payload_length();
                        let origin = Origin { command: command.command_type(), cookie, offset };
                        self.refuse_request(shared, origin, payload, refused)
                    }
                }
            }
            Next::StatusPayload(id, request) => {
                let (id, request) = (*id, *request);
                // The length was compared with that of the longest list.
                let length = usize::try_from(request.length)
                    .map_err(|_| Error::Internal("a list of contexts of any length"))?;
                if !collect(&mut self.collected, length, input) {
                    return Ok(Step::Starved);
                }
                self.next = Next::Header;
                self.status_payload(shared, id, &request)
            }
            Next::Discard { id, command, remaining, refused } => {
                *remaining = skip(*remaining, input);
                if *remaining > 0 {
                    return Ok(Step::Starved);
                }
                let (id, command, refused) = (*id, *command, *refused);
                self.next = Next::Header;
                self.refuse(shared, id, command, refused)
            }
        }
    }

    /// A request header has arrived, and there is a slot in the table.
    fn request(
        &mut self,
        shared: &mut Shared<'_>,
        request: &ExtendedRequest,
    ) -> Result<Step, Error> {
        if request.command == CommandType::DISC {
            return Ok(Step::Closing(OrderlyEnd::Disconnected));
        }
        let rules = &self.export.rules;
        let strict = shared.config.require_payload_flag;
        let payload = header::payload_length(request, rules, strict);
        if payload > shared.config.limits.max_discard() {
            let command = request.command;
            return Err(LimitExceeded::Payload { command, length: payload }.into());
        }
        let command = header::command(request, rules, strict);
        if request.command == CommandType::BLOCK_STATUS && payload > 0 {
            return self.begin_status_payload(shared, request, command);
        }
        let command = match command {
            Ok(command) => command,
            Err(refused) => return self.refuse_request(shared, request.into(), payload, refused),
        };
        if let Err(refused) = header::check(&command, rules) {
            return self.refuse_request(shared, request.into(), payload, refused);
        }
        if shared.shutdown == Shutdown::Refusing {
            return self.refuse_request(shared, request.into(), payload, SHUTTING_DOWN);
        }
        let held = Held { cookie: request.cookie, offset: request.offset, command };
        if !self.has_room(&command, &shared.config.limits) {
            self.next = Next::Held(held);
            return Ok(Step::Paused);
        }
        self.accept(shared, held)
    }

    /// Whether a request's data fits into what may be in flight. A request that is alone always fits.
    #[inline]
    fn has_room(&self, command: &Command, limits: &Limits) -> bool {
        let length = self.bytes_for(command, limits);
        let total = self.bytes.saturating_add(length);
        length == 0 || self.bytes == 0 || total <= limits.max_in_flight_bytes
    }

    /// Whether the requests in flight take more than they may, so that not even a header should be read.
    #[inline]
    const fn exceeds_bytes(&self, limits: &Limits) -> bool {
        self.bytes > limits.max_in_flight_bytes
    }

    /// The bytes that a command's data or its extents take: the embedder's, or the queue's. What has more than 64 bits
    /// exceeds every limit.
    #[inline]
    fn bytes_for(&self, command: &Command, limits: &Limits) -> u64 {
        let &Command::BlockStatus { one, .. } = command else {
            return command.buffer_length();
        };
        let contexts = self.export.contexts.len() as u64;
        let extents = if one { 1 } else { u64::from(limits.max_extents.min(MAX_EXTENTS)) };
        contexts.saturating_mul(extents).saturating_mul(BlockStatusDescriptor::EXTENDED_SIZE as u64)
    }

    /// Gives a valid request its slot. Requests of no length succeed by themselves.
    #[inline]
    fn accept(&mut self, shared: &mut Shared<'_>, held: Held) -> Result<Step, Error> {
        let Held { cookie, offset, command } = held;
        let bytes = self.bytes_for(&command, &shared.config.limits);
        let (id, pending) = self.in_flight.take().ok_or(NO_SLOT)?;
        pending.begin(cookie, offset, command);
        self.next = Next::Header;
        if command.has_range() && command.length() == 0 {
            self.self_answers.count(command.command_type(), ErrorCode::OK);
            Answer { id, pending, out: shared.out, style: self.export.style }.succeed();
            return Ok(Step::Again);
        }
        pending.bytes = bytes;
        self.bytes = self.bytes.checked_add(bytes).ok_or(BYTES_OVERFLOW)?;
        if let Command::Write { length, .. } = command {
            pending.progress = Progress::Receiving;
            self.next = Next::Payload { id, command, offset: 0, remaining: length };
            return Ok(Step::Paused);
        }
        if let Command::BlockStatus { .. } = command {
            pending.awaited.extend(self.export.contexts.iter().map(|context| context.id));
        }
        pending.progress = Progress::Open;
        Ok(Step::Event(Event::Request { id, command }))
    }

    /// Gives a refused request its slot, so that a client that does not read its errors stops itself; the error follows
    /// once the payload is consumed.
    // S-REQ-11
    #[cold]
    fn refuse_request(
        &mut self,
        shared: &mut Shared<'_>,
        origin: Origin,
        payload: u64,
        refused: Refused,
    ) -> Result<Step, Error> {
        let Origin { command, cookie, offset } = origin;
        let (id, pending) = self.in_flight.take().ok_or(NO_SLOT)?;
        pending.begin(cookie, offset, Command::Flush);
        self.next = Next::Header;
        if payload == 0 {
            return self.refuse(shared, id, command, refused);
        }
        self.next = Next::Discard { id, command, remaining: payload, refused };
        Ok(Step::Again)
    }

    #[cold]
    fn refuse(
        &mut self,
        shared: &mut Shared<'_>,
        id: RequestId,
        command: CommandType,
        refused: Refused,
    ) -> Result<Step, Error> {
        let pending = self.in_flight.get_mut(id).ok_or(SLOT_LOST)?;
        self.self_answers.count(command, refused.code);
        let mut answer = Answer { id, pending, out: shared.out, style: self.export.style };
        answer.fail(refused.code, &alloc::format!("{refused}"));
        Ok(Step::Again)
    }

    /// A block status request that lists the contexts it is about (section "Request types").
    fn begin_status_payload(
        &mut self,
        shared: &mut Shared<'_>,
        request: &ExtendedRequest,
        command: Result<Command, Refused>,
    ) -> Result<Step, Error> {
        let length = request.length;
        let longest = (self.export.contexts.len() as u64).saturating_mul(4).saturating_add(8);
        let refused = match command {
            Err(refused) => refused,
            Ok(_) if shared.shutdown == Shutdown::Refusing => SHUTTING_DOWN,
            Ok(_) if length > longest || length < 12 || !length.is_multiple_of(4) => {
                BAD_STATUS_PAYLOAD
            }
            Ok(command) => {
                let (id, pending) = self.in_flight.take().ok_or(NO_SLOT)?;
                pending.begin(request.cookie, request.offset, command);
                self.collected.clear();
                self.next = Next::StatusPayload(id, *request);
                return Ok(Step::Again);
            }
        };
        self.refuse_request(shared, request.into(), length, refused)
    }

    /// The payload of a block status request has arrived: effect length and context ids.
    // S-EH-10, S-EH-11
    fn status_payload(
        &mut self,
        shared: &mut Shared<'_>,
        id: RequestId,
        request: &ExtendedRequest,
    ) -> Result<Step, Error> {
        let mut reader = Reader::new(&self.collected);
        let length = reader.u64("effect length")?;
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        let command = Command::BlockStatus { offset: request.offset, length, one };
        let bytes = self.bytes_for(&command, &shared.config.limits);
        let pending = self.in_flight.get_mut(id).ok_or(SLOT_LOST)?;
        let mut known = true;
        while let Ok(context) = reader.u32("context id") {
            known &= self.export.contexts.iter().any(|selected| selected.id == context)
                && !pending.awaited.contains(&context);
            pending.awaited.push(context);
        }
        let checked = header::check(&command, &self.export.rules);
        match if known { checked } else { checked.and(Err(BAD_STATUS_PAYLOAD)) } {
            Err(refused) => self.refuse(shared, id, CommandType::BLOCK_STATUS, refused),
            Ok(()) => {
                pending.command = command;
                // No room was reserved for this form: it is what stops the next header from being read, if need be.
                pending.bytes = bytes;
                self.bytes = self.bytes.checked_add(bytes).ok_or(BYTES_OVERFLOW)?;
                pending.progress = Progress::Open;
                Ok(Step::Event(Event::Request { id, command }))
            }
        }
    }

    #[inline]
    pub(super) fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
        let Next::Payload { id, command, offset, remaining } = &mut self.next else {
            return Err(Misuse::WrongPhase);
        };
        *remaining = remaining.checked_sub(count).ok_or(Misuse::TooManyBytes)?;
        // Together they are the payload's length.
        *offset = offset.saturating_add(count);
        if *remaining == 0 {
            self.next = Next::Ready(*id, *command);
        }
        Ok(())
    }

    /// Frees the slots of requests whose reply was transmitted, and keeps those in the list that the embedder knows.
    #[inline]
    pub(super) fn release(&mut self, finished: &mut Vec<RequestId>, out: &mut Outbound) {
        finished.retain(|id| {
            let Some(pending) = self.in_flight.release(*id) else {
                out.fail("a request ended twice");
                return false;
            };
            match self.bytes.checked_sub(pending.bytes) {
                Some(bytes) => self.bytes = bytes,
                None => out.fail("the bytes in flight don't add up"),
            }
            pending.progress != Progress::Hidden
        });
    }

    /// What is wanted when [`step`](Self::step) came to nothing.
    #[inline]
    pub(super) fn wants(&self, limits: &Limits, scratch: &Scratch) -> Wants {
        match &self.next {
            Next::Header if self.in_flight.is_full() => {
                Wants::Nothing(PauseReason::TooManyRequests)
            }
            Next::Header if self.exceeds_bytes(limits) => Wants::Nothing(PauseReason::TooManyBytes),
            Next::Header if self.export.rules.extended => scratch.wants(ExtendedRequest::SIZE),
            Next::Header => scratch.wants(CompactRequest::SIZE),
            Next::Held(held) if self.has_room(&held.command, limits) => {
                Wants::Nothing(PauseReason::EventDue)
            }
            Next::Held(_) => Wants::Nothing(PauseReason::TooManyBytes),
            Next::Ready(..) => Wants::Nothing(PauseReason::EventDue),
            &Next::Payload { id, command, offset, remaining } => {
                Wants::Payload { id, command, offset, remaining }
            }
            Next::StatusPayload(_, request) => {
                let size = usize::try_from(request.length).unwrap_or(usize::MAX);
                Wants::missing(size, self.collected.len())
            }
            Next::Discard { remaining, .. } => Wants::dropping(*remaining),
        }
    }

    /// The stream ended: what it cut off. The request that was not received in whole is forgotten.
    pub(super) fn cut_off(&mut self) -> Option<&'static str> {
        let (Next::Payload { id, .. } | Next::Discard { id, .. } | Next::StatusPayload(id, _)) =
            self.next
        else {
            return None;
        };
        self.in_flight.release(id);
        Some("a payload")
    }
}
