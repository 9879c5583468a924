//! The connection: its state, and the methods that drive it.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use super::transmission::{Held, Pending};
use super::validate::{Refusal, Rules};
use super::{Config, Event, Incoming, PauseReason};
use crate::in_flight::InFlight;
use crate::outbound::Outbound;
use crate::scratch::Scratch;
use crate::wire::{
    ClientFlags, CompactRequest, ExtendedRequest, HandshakeFlags, NewstyleGreeting, OptionHeader,
    TransmissionFlags,
};
use crate::{BlockSize, Error, Misuse, PeerMisbehaved, RequestId, Segments};

/// The server's side of one connection, as a state machine that does no I/O.
///
/// Its methods come in four families. **What happened:** [`next_event`](Self::next_event) (bytes arrived),
/// [`payload_received`](Self::payload_received), [`transmitted`](Self::transmitted),
/// [`tls_established`](Self::tls_established), [`end_of_stream`](Self::end_of_stream). **What you want:**
/// [`answer_list`](Self::answer_list), [`answer_lookup`](Self::answer_lookup), [`reply`](Self::reply),
/// [`shut_down`](Self::shut_down), [`set_size`](Self::set_size). **What it wants of you:**
/// [`incoming`](Self::incoming), [`segments`](Self::segments), [`next_finished`](Self::next_finished). **Getters:**
/// [`is_finished`](Self::is_finished), [`is_idle`](Self::is_idle), [`export`](Self::export) and others.
///
/// The invariant: before waiting for the socket, everything that can be handled has been handled, that is
/// [`incoming`](Self::incoming) asks for bytes that you don't have (or pauses), and [`segments`](Self::segments) is
/// empty or the socket takes no more. The [crate's front page](crate) has the loop.
#[derive(Debug)]
pub struct Connection {
    pub(super) config: Config,
    pub(super) state: State,
    scratch: Scratch,
    /// Data of the option at hand, or the payload of a block status request.
    pub(super) collected: Vec<u8>,
    pub(super) options: u32,
    /// Exports in the longest list that the client was given.
    pub(super) listed: u32,
    pub(super) negotiation: Negotiation,
    pub(super) export: Option<Entered>,
    pub(super) out: Outbound,
    pub(super) in_flight: InFlight<Pending>,
    pub(super) in_flight_bytes: u64,
    finished: VecDeque<RequestId>,
    pub(super) shutting_down: bool,
    error: Option<Error>,
}

/// What the next bytes of the stream are, in the core's own terms.
#[derive(Debug)]
pub(super) enum State {
    ClientFlags,
    OptionHeader,
    OptionData(OptionHeader),
    /// Data that is too long to be looked at.
    OptionSkip(OptionHeader, u32),
    /// The embedder is to answer the option in `collected`.
    Awaiting(OptionHeader),
    /// STARTTLS was acknowledged.
    Tls,
    RequestHeader,
    /// A valid request that waits for room.
    Held(Held),
    /// The context ids of a block status request.
    StatusPayload(RequestId, ExtendedRequest),
    Payload(RequestId, u64, u64),
    Discard(RequestId, u64, Refusal),
    Ended,
}

/// What was agreed so far. STARTTLS voids all but the client flags (S-TLS-06).
#[derive(Debug, Default)]
pub(super) struct Negotiation {
    pub(super) client_flags: ClientFlags,
    pub(super) tls: bool,
    pub(super) structured: bool,
    pub(super) extended: bool,
    /// The export that the selection was made for, as named by the client.
    pub(super) selection_for: String,
    pub(super) selection: Vec<SelectedContext>,
}

/// A metadata context that the client selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedContext {
    /// Its number on this connection.
    pub id: u32,
    /// Its place in [`ExportInfo::contexts`](crate::ExportInfo::contexts).
    pub index: usize,
    /// Namespace, colon, leaf.
    pub name: String,
    pub(super) wide: bool,
}

/// The export in use during transmission.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) rules: Rules,
    /// The size that the client was told.
    pub(super) announced: u64,
    pub(super) contexts: Vec<SelectedContext>,
}

/// What the client was told of the export in use.
#[derive(Clone, Copy, Debug)]
pub struct ExportView<'a> {
    /// The size in bytes.
    pub size: u64,
    /// Transmission flags as advertised.
    pub flags: TransmissionFlags,
    /// Size constraints as enforced.
    pub block_size: BlockSize,
    /// Metadata contexts that were selected.
    pub contexts: &'a [SelectedContext],
    /// Whether reads are answered by structured or extended replies.
    pub structured: bool,
    /// Whether extended headers are in use.
    pub extended: bool,
}

impl Connection {
    /// A connection that was just accepted. The greeting is queued: newstyle, and see [`oldstyle`](Self::oldstyle).
    #[must_use]
    pub fn new(config: Config) -> Self {
        let mut flags = HandshakeFlags::FIXED_NEWSTYLE;
        flags.set(HandshakeFlags::NO_ZEROES, config.no_zeroes);
        let mut connection = Self::silent(config);
        connection.greet(&NewstyleGreeting { flags }.encode());
        connection
    }

    /// A connection with nothing queued.
    pub(super) fn silent(config: Config) -> Self {
        Self {
            in_flight: InFlight::new(config.limits.max_in_flight.max(1)),
            config,
            state: State::ClientFlags,
            scratch: Scratch::default(),
            collected: Vec::new(),
            options: 0,
            listed: 0,
            negotiation: Negotiation::default(),
            export: None,
            out: Outbound::default(),
            in_flight_bytes: 0,
            finished: VecDeque::new(),
            shutting_down: false,
            error: None,
        }
    }

    pub(super) fn greet(&mut self, greeting: &[u8]) {
        self.out.put(greeting);
        self.out.seal(crate::outbound::Tail::None, None);
    }

    // What happened.

    /// Bytes arrived: eats what it can off the front of `input` and gives at most one event. Bytes that it did not eat
    /// stay yours: they may be a payload, or have to wait. `None` means that more is needed, or that
    /// [`incoming`](Self::incoming) has something to say.
    ///
    /// # Errors
    /// The peer is at fault and the connection is over: close it. The error is sticky.
    pub fn next_event(&mut self, input: &mut &[u8]) -> Result<Option<Event>, Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let result = self.step(input);
        if let Err(error) = result {
            self.error = Some(error);
        }
        result
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Option<Event>, Error> {
        loop {
            let event = match &mut self.state {
                State::RequestHeader => {
                    if self.in_flight.is_full() || self.exceeds_bytes() {
                        return Ok(None);
                    }
                    let Some(request) = self.take_request(input)? else { return Ok(None) };
                    self.request(&request)?
                }
                State::Held(_) => match self.release_held() {
                    Some(event) => Some(event),
                    None => return Ok(None),
                },
                State::StatusPayload(_, request) => {
                    let length = request.length;
                    if !self.collect(input, length) {
                        return Ok(None);
                    }
                    self.status_payload()
                }
                State::ClientFlags => {
                    let Some(bytes) = self.scratch.take(input) else { return Ok(None) };
                    self.client_flags(u32::from_be_bytes(bytes))?;
                    None
                }
                State::OptionHeader => {
                    if self.out.control_len() > MAX_UNSENT {
                        return Ok(None);
                    }
                    let Some(bytes) = self.scratch.take(input) else { return Ok(None) };
                    self.option_header(&OptionHeader::decode(&bytes)?)?;
                    None
                }
                State::OptionData(header) => {
                    let header = *header;
                    if !self.collect(input, u64::from(header.length)) {
                        return Ok(None);
                    }
                    let event = self.option(&header)?;
                    if matches!(self.state, State::Tls) && !input.is_empty() {
                        return Err(PeerMisbehaved::PlaintextAfterStartTls.into());
                    }
                    event
                }
                State::OptionSkip(header, remaining) => {
                    let skipped = input.len().min(*remaining as usize);
                    *input = input.get(skipped..).unwrap_or_default();
                    *remaining = remaining.saturating_sub(u32::try_from(skipped).unwrap_or(0));
                    if *remaining > 0 {
                        return Ok(None);
                    }
                    let header = *header;
                    self.option_too_big(&header)?
                }
                State::Awaiting(_)
                | State::Tls
                | State::Payload(..)
                | State::Discard(..)
                | State::Ended => return Ok(None),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// The next request header, widened to its extended form.
    fn take_request(&mut self, input: &mut &[u8]) -> Result<Option<ExtendedRequest>, Error> {
        Ok(if self.negotiation.extended {
            match self.scratch.take(input) {
                Some(bytes) => Some(ExtendedRequest::decode(&bytes)?),
                None => None,
            }
        } else {
            match self.scratch.take(input) {
                Some(bytes) => Some(CompactRequest::decode(&bytes)?.into()),
                None => None,
            }
        })
    }

    /// Moves bytes into `collected` until it holds `length`, which was compared with a bound before.
    fn collect(&mut self, input: &mut &[u8], length: u64) -> bool {
        let missing = usize::try_from(length).unwrap_or(0).saturating_sub(self.collected.len());
        if let Some((head, rest)) = input.split_at_checked(missing.min(input.len())) {
            self.collected.extend_from_slice(head);
            *input = rest;
        }
        self.collected.len() as u64 >= length
    }

    /// Bytes of the payload that [`incoming`](Self::incoming) told of were moved or dropped.
    ///
    /// # Errors
    /// [`Misuse::TooManyBytes`] when `count` exceeds what remained; [`Misuse::WrongPhase`] when no payload was due.
    pub fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
        match &mut self.state {
            State::Payload(id, offset, remaining) => {
                *remaining = remaining.checked_sub(count).ok_or(Misuse::TooManyBytes)?;
                *offset = offset.saturating_add(count);
                if *remaining == 0 {
                    let id = *id;
                    self.state = State::RequestHeader;
                    self.payload_complete(id);
                }
            }
            State::Discard(id, remaining, refusal) => {
                *remaining = remaining.checked_sub(count).ok_or(Misuse::TooManyBytes)?;
                if *remaining == 0 {
                    let (id, refusal) = (*id, *refusal);
                    self.state = State::RequestHeader;
                    self.refuse(id, refusal);
                }
            }
            _ => return Err(Misuse::WrongPhase),
        }
        Ok(())
    }

    /// The first `count` bytes of [`segments`](Self::segments) went out. Ask [`next_finished`](Self::next_finished)
    /// afterwards.
    ///
    /// # Errors
    /// [`Misuse::TooManyBytes`] when there were fewer.
    pub fn transmitted(&mut self, count: usize) -> Result<(), Misuse> {
        self.out.transmitted(count, &mut self.finished)
    }

    /// The TLS handshake that [`Incoming::Tls`] asked for succeeded: what follows comes out of TLS. All that was
    /// negotiated before is forgotten (S-TLS-06). A handshake that fails has no method: close the connection.
    ///
    /// # Errors
    /// [`Misuse::WrongPhase`] when no handshake was due.
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        if !matches!(self.state, State::Tls) || !self.out.is_empty() {
            return Err(Misuse::WrongPhase);
        }
        let client_flags = self.negotiation.client_flags;
        self.negotiation = Negotiation { client_flags, tls: true, ..Negotiation::default() };
        self.state = State::OptionHeader;
        Ok(())
    }

    /// The stream ended. Requests in flight are still to be answered, in case that the client only closed its writing
    /// side; then the connection [is finished](Self::is_finished).
    ///
    /// # Errors
    /// [`Error::UnexpectedEnd`] when the end came in the middle of a message, for the log. A write whose payload is
    /// cut off comes back by [`next_finished`](Self::next_finished) and is not to be executed.
    pub fn end_of_stream(&mut self) -> Result<(), Error> {
        let state = core::mem::replace(&mut self.state, State::Ended);
        let inside = match state {
            State::Payload(id, ..) => {
                self.abandon(id);
                Some("a payload")
            }
            State::Discard(id, ..) => {
                self.abandon(id);
                Some("a payload")
            }
            State::StatusPayload(id, _) => {
                self.abandon(id);
                Some("a payload")
            }
            State::OptionData(_) | State::OptionSkip(..) => Some("an option"),
            State::Tls => Some("the TLS handshake"),
            _ if self.scratch.filled() > 0 => Some("a header"),
            _ => None,
        };
        inside.map_or(Ok(()), |what| Err(Error::UnexpectedEnd(what)))
    }

    pub(super) const fn set_error(&mut self, error: Error) {
        self.error = Some(error);
    }

    fn abandon(&mut self, id: RequestId) {
        self.finished.push_back(id);
    }

    // What you want.

    /// The server is shutting down: options are refused with `NBD_REP_ERR_SHUTDOWN` and new requests with
    /// `NBD_ESHUTDOWN`; what is in flight can still be answered.
    pub const fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// The export in use has a new size, by a resize on this connection or another one, or by itself.
    ///
    /// A client that was not offered `RESIZE` can't know: it keeps the size that it was told at most, so that it is not
    /// told of extents beyond.
    ///
    /// # Errors
    /// [`Misuse::WrongPhase`] when no export is in use.
    pub fn set_size(&mut self, size: u64) -> Result<(), Misuse> {
        let export = self.export.as_mut().ok_or(Misuse::WrongPhase)?;
        let knows = export.rules.flags.contains(TransmissionFlags::SEND_RESIZE);
        export.rules.size = if knows { size } else { size.min(export.announced) };
        Ok(())
    }

    // What it wants of you.

    /// What the next bytes of the stream are.
    #[must_use]
    pub fn incoming(&self) -> Incoming {
        if self.error.is_some() {
            return Incoming::Terminated;
        }
        let need =
            |total: usize, have: usize| Incoming::Control { need: total.saturating_sub(have) };
        match &self.state {
            State::RequestHeader if self.in_flight.is_full() => {
                Incoming::Paused(PauseReason::TooManyRequests)
            }
            State::RequestHeader if self.exceeds_bytes() => {
                Incoming::Paused(PauseReason::TooManyBytes)
            }
            State::RequestHeader if self.negotiation.extended => {
                need(ExtendedRequest::SIZE, self.scratch.filled())
            }
            State::RequestHeader => need(CompactRequest::SIZE, self.scratch.filled()),
            State::Held(held) if self.has_room(held) => Incoming::Control { need: 0 },
            State::Held(_) => Incoming::Paused(PauseReason::TooManyBytes),
            State::StatusPayload(_, request) => {
                need(usize::try_from(request.length).unwrap_or(0), self.collected.len())
            }
            State::Payload(id, offset, remaining) => {
                Incoming::Payload { request: *id, offset: *offset, remaining: *remaining }
            }
            State::Discard(_, remaining, _) => Incoming::Discard { remaining: *remaining },
            State::ClientFlags => need(4, self.scratch.filled()),
            State::OptionHeader if self.out.control_len() > MAX_UNSENT => {
                Incoming::Paused(PauseReason::Unsent)
            }
            State::OptionHeader => need(OptionHeader::SIZE, self.scratch.filled()),
            State::OptionData(header) => need(header.length as usize, self.collected.len()),
            State::OptionSkip(_, remaining) => need(*remaining as usize, 0),
            State::Awaiting(_) => Incoming::Paused(PauseReason::AwaitingAnswer),
            State::Tls if !self.out.is_empty() => Incoming::Paused(PauseReason::Unsent),
            State::Tls => Incoming::Tls,
            State::Ended => Incoming::Terminated,
        }
    }

    /// What is to be sent, in order. Write any prefix of it in any way, then call [`transmitted`](Self::transmitted).
    #[must_use]
    pub fn segments(&self) -> Segments<'_> {
        self.out.segments()
    }

    /// A request that is over: its reply is wholly transmitted, or its payload was cut off. Its buffers are yours
    /// again, and its name is void. Ask until there is none: the place in flight is free only then.
    pub fn next_finished(&mut self) -> Option<RequestId> {
        let id = self.finished.pop_front()?;
        if let Some(pending) = self.in_flight.get(id) {
            self.in_flight_bytes = self.in_flight_bytes.saturating_sub(pending.bytes);
        }
        self.in_flight.release(id);
        Some(id)
    }

    // Getters.

    /// Whether all is said and done: nothing more will be read, and nothing is in flight or queued. Close.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.error.is_some() || (matches!(self.state, State::Ended) && self.is_idle())
    }

    /// Whether no request is in flight and nothing is queued.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight.len() == 0 && self.out.is_empty()
    }

    /// Whether the handshake is over and an export is in use.
    #[must_use]
    pub const fn is_transmitting(&self) -> bool {
        self.export.is_some()
    }

    /// Whether the stream runs over TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.negotiation.tls
    }

    /// Requests whose reply is not wholly transmitted.
    #[must_use]
    pub const fn requests_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The export in use, `None` during haggling.
    #[must_use]
    pub fn export(&self) -> Option<ExportView<'_>> {
        self.export.as_ref().map(|entered| ExportView {
            size: entered.rules.size,
            flags: entered.rules.flags,
            block_size: entered.rules.block_size,
            contexts: &entered.contexts,
            structured: self.negotiation.structured || self.negotiation.extended,
            extended: self.negotiation.extended,
        })
    }
}

/// Option replies that may wait to be sent before no further option is read.
const MAX_UNSENT: usize = 256 << 10;
