//! The connection: its state, and the methods that drive it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::haggling::{Asked, Negotiation, Script};
use super::reply::{Chunk, StatusRun};
use super::transmission::Pending;
use super::view::Entered;
use super::{Config, Event, Incoming, OptionError, PauseReason};
use crate::in_flight::InFlight;
use crate::outbound::Outbound;
use crate::scratch::Scratch;
use crate::wire::{
    BlockStatusDescriptor, EXPORT_NAME_PADDING, ExportNameReply, ExtendedReplyHeader, Greeting,
    OptionCode, OptionReplyHeader,
};
use crate::{Error, Extent, Misuse, PeerMisbehaved, Refusal, RequestId, Segments};

/// The client's side of one connection, as a state machine that does no I/O.
///
/// `C` is your own data of a request: a buffer, a waker, a channel. It is kept while the request is in flight and comes
/// back with its [`Event::Completed`], or by [`next_abandoned`](Self::next_abandoned).
///
/// Its methods come in four families. **What happened:** [`next_event`](Self::next_event) (bytes arrived),
/// [`payload_received`](Self::payload_received), [`transmitted`](Self::transmitted),
/// [`tls_established`](Self::tls_established), [`end_of_stream`](Self::end_of_stream). **What you want:**
/// [`submit`](Self::submit), [`submit_block_status`](Self::submit_block_status), [`disconnect`](Self::disconnect), and
/// while haggling [`enter`](Self::enter) and a method per option. **What it wants of you:**
/// [`incoming`](Self::incoming), [`segments`](Self::segments), [`context`](Self::context). **Getters:**
/// [`is_finished`](Self::is_finished), [`export`](Self::export) and others.
///
/// The invariant: before waiting for the socket, everything that can be handled has been handled, that is
/// [`incoming`](Self::incoming) asks for bytes that you don't have (or pauses), and [`segments`](Self::segments) is
/// empty or the socket takes no more. Wait for reading *and* writing then: a client that only writes while its server
/// only writes waits forever, and this machine never makes one wait for the other.
///
/// The [module](super) has the loop.
#[derive(Debug)]
pub struct Connection<C> {
    pub(super) config: Config,
    pub(super) state: State,
    scratch: Scratch,
    /// Data of the option reply at hand, or the payload of an error chunk.
    pub(super) collected: Vec<u8>,
    pub(super) negotiation: Negotiation,
    /// What is negotiated without the embedder's doing; `None` when it is the embedder who haggles.
    pub(super) script: Option<Script>,
    pub(super) asked: Asked,
    pub(super) export: Option<Entered>,
    pub(super) out: Outbound,
    pub(super) in_flight: InFlight<Pending<C>>,
    pub(super) batch: Vec<Extent>,
    sent: VecDeque<RequestId>,
    pub(super) ready: VecDeque<Event<C>>,
    pub(super) leaving: Leaving,
    pub(super) server_is_shutting_down: bool,
    /// Why an ABORT is under way that the embedder did not ask for.
    pub(super) refusal: Option<Refusal>,
    pub(super) error: Option<Error>,
}

/// What the next bytes of the stream are, in the core's own terms.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Greeting,
    HandshakeFlags,
    OldstyleRest,
    /// It is the embedder's turn.
    Idle,
    OptionReply(OptionCode),
    OptionReplyData(OptionReplyHeader),
    ExportName,
    ExportNamePadding(usize),
    /// STARTTLS was acknowledged.
    Tls,
    ReplyHeader,
    /// The first 16 bytes of a structured reply header are here.
    StructuredRest([u8; 16]),
    DataOffset(Chunk),
    Hole(Chunk),
    StatusHead(Chunk),
    Extents(Chunk, StatusRun),
    ErrorPayload(Chunk),
    Payload {
        chunk: Chunk,
        offset: u64,
        remaining: u64,
    },
    Discard {
        chunk: Chunk,
        remaining: u64,
    },
    /// The last chunk has arrived, what remains is to tell.
    Complete(RequestId),
    Ended,
}

/// How far a departure has come that the embedder asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    No,
    Wanted,
    /// `NBD_OPT_ABORT` or `NBD_CMD_DISC` is queued.
    Said,
    /// [`Event::Disconnected`] was raised.
    Told,
}

impl<C> Connection<C> {
    /// A connection that was just established. Nothing is sent before the server's greeting.
    ///
    /// # Errors
    /// When the configuration holds a name, a query or a list that must not be sent.
    pub fn new(config: Config) -> Result<Self, OptionError> {
        config.check()?;
        Ok(Self {
            in_flight: InFlight::new(config.limits.max_in_flight.max(1)),
            config,
            state: State::Greeting,
            scratch: Scratch::default(),
            collected: Vec::new(),
            negotiation: Negotiation::default(),
            script: None,
            asked: Asked::default(),
            export: None,
            out: Outbound::default(),
            batch: Vec::new(),
            sent: VecDeque::new(),
            ready: VecDeque::new(),
            leaving: Leaving::No,
            server_is_shutting_down: false,
            refusal: None,
            error: None,
        })
    }

    // What happened.

    /// Bytes arrived: eats what it can off the front of `input` and gives at most one event. Bytes that it did not eat
    /// stay yours: they may be a payload, or have to wait. `None` means that more is needed, or that
    /// [`incoming`](Self::incoming) has something to say.
    ///
    /// # Errors
    /// The connection is over: close it, and take what was in flight from [`next_abandoned`](Self::next_abandoned). The
    /// error is sticky.
    #[inline]
    pub fn next_event(&mut self, input: &mut &[u8]) -> Result<Option<Event<C>>, Error> {
        if let Some(event) = self.ready.pop_front() {
            return Ok(Some(event));
        }
        if let Some(error) = self.error {
            return Err(error);
        }
        // Whatever goes wrong while the machine takes its leave, the reason for that comes first.
        let result = self.step(input).map_err(|error| self.refusal.map_or(error, Error::Refused));
        if let Err(error) = &result {
            self.fail(*error);
        }
        result
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Option<Event<C>>, Error> {
        /// The next message of fixed size, or nothing yet.
        macro_rules! take {
            () => {
                match self.scratch.take(input) {
                    Some(bytes) => bytes,
                    None => return Ok(None),
                }
            };
        }
        loop {
            let event = match self.state {
                State::ReplyHeader if self.negotiation.extended => {
                    let header = take!();
                    self.chunk(&ExtendedReplyHeader::decode(&header)?)?
                }
                State::ReplyHeader => {
                    let header = take!();
                    self.compact_reply(header)?
                }
                State::StructuredRest(head) => {
                    let rest = take!();
                    self.structured_chunk(head, rest)?
                }
                State::DataOffset(chunk) => {
                    let offset = u64::from_be_bytes(take!());
                    self.data(chunk, offset)?;
                    None
                }
                State::Complete(id) => self.complete(id),
                State::Hole(chunk) => {
                    let hole = take!();
                    self.hole(chunk, &hole)?
                }
                State::StatusHead(chunk) if self.negotiation.extended => {
                    let head: [u8; 8] = take!();
                    self.status_head(chunk, &head)?;
                    None
                }
                State::StatusHead(chunk) => {
                    let head: [u8; 4] = take!();
                    self.status_head(chunk, &head)?;
                    None
                }
                State::Extents(chunk, run) => {
                    let extent = if self.negotiation.extended {
                        BlockStatusDescriptor::decode_extended(&take!())?
                    } else {
                        BlockStatusDescriptor::decode_compact(&take!())?
                    };
                    self.extent(chunk, run, extent)?
                }
                State::ErrorPayload(chunk) => {
                    if !self.collect(input, chunk.length) {
                        return Ok(None);
                    }
                    self.error_chunk(chunk)?
                }
                State::Greeting => {
                    let magics = take!();
                    self.greeting(Greeting::decode(&magics)?)?;
                    None
                }
                State::HandshakeFlags => {
                    let flags = u16::from_be_bytes(take!());
                    self.handshake_flags(flags)?
                }
                State::OldstyleRest => {
                    if !self.collect(input, OLDSTYLE_REST as u64) {
                        return Ok(None);
                    }
                    self.oldstyle()?
                }
                State::OptionReply(code) => {
                    let header = take!();
                    self.option_reply_header(code, OptionReplyHeader::decode(&header)?)?;
                    None
                }
                State::OptionReplyData(header) => {
                    if !self.collect(input, u64::from(header.length)) {
                        return Ok(None);
                    }
                    let event = self.option_reply(&header)?;
                    if matches!(self.state, State::Tls) && !input.is_empty() {
                        return Err(PeerMisbehaved::PlaintextAfterStartTls.into());
                    }
                    event
                }
                State::ExportName => {
                    let reply = take!();
                    let reply = ExportNameReply::decode_export_name(&reply)?;
                    self.export_name_reply(reply)?
                }
                State::ExportNamePadding(remaining) => {
                    let skipped = remaining.min(input.len());
                    *input = input.get(skipped..).unwrap_or_default();
                    match remaining.saturating_sub(skipped) {
                        0 => Some(self.enter_export()?),
                        rest => {
                            self.state = State::ExportNamePadding(rest);
                            return Ok(None);
                        }
                    }
                }
                State::Idle
                | State::Tls
                | State::Payload { .. }
                | State::Discard { .. }
                | State::Ended => return Ok(None),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
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
        let (chunk, rest) = match &mut self.state {
            State::Payload { chunk, offset, remaining } => {
                *remaining = remaining.checked_sub(count).ok_or(Misuse::TooManyBytes)?;
                *offset = offset.saturating_add(count);
                (*chunk, *remaining)
            }
            State::Discard { chunk, remaining } => {
                *remaining = remaining.checked_sub(count).ok_or(Misuse::TooManyBytes)?;
                (*chunk, *remaining)
            }
            _ => return Err(Misuse::WrongPhase),
        };
        if rest == 0 {
            self.chunk_over(chunk);
        }
        Ok(())
    }

    /// The first `count` bytes of [`segments`](Self::segments) went out.
    ///
    /// # Errors
    /// [`Misuse::TooManyBytes`] when there were fewer.
    pub fn transmitted(&mut self, count: usize) -> Result<(), Misuse> {
        let result = self.out.transmitted(count, &mut self.sent);
        while let Some(id) = self.sent.pop_front() {
            if let Some(event) = self.request_sent(id) {
                self.ready.push_back(event);
            }
        }
        self.settle();
        result
    }

    /// The TLS handshake that [`Incoming::Tls`] asked for succeeded: what follows comes out of TLS. All that was
    /// negotiated before is forgotten (C-TLS-26). A handshake that fails has no method: close the connection
    /// (C-TLS-23).
    ///
    /// # Errors
    /// [`Misuse::WrongPhase`] when no handshake was due.
    pub fn tls_established(&mut self) -> Result<(), Misuse> {
        if !matches!(self.state, State::Tls) || !self.out.is_empty() {
            return Err(Misuse::WrongPhase);
        }
        self.negotiation.forget_for_tls();
        match self.proceed() {
            Ok(event) => self.ready.extend(event),
            Err(error) => self.fail(error),
        }
        Ok(())
    }

    /// The stream ended. The connection is over: what was in flight comes from
    /// [`next_abandoned`](Self::next_abandoned), events that are ready from [`next_event`](Self::next_event).
    ///
    /// # Errors
    /// [`Error::UnexpectedEnd`] unless you had [left](Self::disconnect) before and everything was answered;
    /// [`Error::Refused`] when the server hung up instead of refusing. A server may close without a reply when it is
    /// left by `NBD_OPT_ABORT` (C-OPT-AB-05).
    pub fn end_of_stream(&mut self) -> Result<(), Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if let State::Complete(id) = self.state {
            let event = self.complete(id);
            self.ready.extend(event);
        }
        if let Some(error) = self.what_ended() {
            self.fail(error);
            return Err(error);
        }
        self.state = State::Ended;
        self.out = Outbound::default();
        self.tell_disconnected();
        Ok(())
    }

    /// Why it is wrong that the stream ends now, if it is.
    fn what_ended(&self) -> Option<Error> {
        if let Some(refusal) = self.refusal {
            return Some(refusal.into());
        }
        let untouched = self.scratch.filled() == 0;
        let inside = match self.state {
            State::Ended => return None,
            State::OptionReply(OptionCode::ABORT) => return None,
            State::OptionReplyData(header) if header.code == OptionCode::ABORT => return None,
            State::ExportName if untouched => return Some(Refusal::ExportName.into()),
            State::Greeting | State::HandshakeFlags | State::OldstyleRest => "the greeting",
            State::Tls => "the TLS handshake",
            State::Idle
            | State::OptionReply(_)
            | State::OptionReplyData(_)
            | State::ExportName
            | State::ExportNamePadding(_) => "option haggling",
            State::ReplyHeader if untouched && self.in_flight.len() > 0 => "requests in flight",
            State::ReplyHeader if untouched => "the transmission phase",
            _ => "a reply",
        };
        Some(Error::UnexpectedEnd(inside))
    }

    /// Ends the connection: nothing more will be sent or understood.
    pub(super) fn fail(&mut self, error: Error) {
        self.error = Some(error);
        self.state = State::Ended;
        self.out = Outbound::default();
    }

    // What it wants of you.

    /// What the next bytes of the stream are.
    #[must_use]
    #[inline]
    pub fn incoming(&self) -> Incoming {
        if !self.ready.is_empty() {
            return Incoming::Control { need: 0 };
        }
        let extended = self.negotiation.extended;
        let (total, have) = match self.state {
            State::Payload { chunk, offset, remaining } => {
                return Incoming::Payload { request: chunk.id, offset, remaining };
            }
            State::Discard { remaining, .. } => return Incoming::Discard { remaining },
            State::Tls if !self.out.is_empty() => return Incoming::Paused(PauseReason::Unsent),
            State::Tls => return Incoming::Tls,
            State::Idle => return Incoming::Paused(PauseReason::YourTurn),
            State::Ended => return Incoming::Terminated,
            State::ReplyHeader if extended => (32, self.scratch.filled()),
            State::ReplyHeader | State::Greeting => (16, self.scratch.filled()),
            State::StructuredRest(_) => (4, self.scratch.filled()),
            State::DataOffset(_) => (8, self.scratch.filled()),
            State::Hole(_) => (12, self.scratch.filled()),
            State::StatusHead(_) => (if extended { 8 } else { 4 }, self.scratch.filled()),
            State::Extents(..) => (if extended { 16 } else { 8 }, self.scratch.filled()),
            State::ErrorPayload(chunk) => {
                (usize::try_from(chunk.length).unwrap_or(0), self.collected.len())
            }
            State::Complete(_) => (0, 0),
            State::HandshakeFlags => (2, self.scratch.filled()),
            State::OldstyleRest => (OLDSTYLE_REST, self.collected.len()),
            State::OptionReply(_) => (OptionReplyHeader::SIZE, self.scratch.filled()),
            State::OptionReplyData(header) => (header.length as usize, self.collected.len()),
            State::ExportName => (ExportNameReply::EXPORT_NAME_SIZE, self.scratch.filled()),
            State::ExportNamePadding(remaining) => (remaining, 0),
        };
        Incoming::Control { need: total.saturating_sub(have) }
    }

    /// What is to be sent, in order. Write any prefix of it in any way, then call [`transmitted`](Self::transmitted).
    #[must_use]
    pub fn segments(&self) -> Segments<'_> {
        self.out.segments()
    }

    /// What was submitted with a request that is in flight.
    #[must_use]
    #[inline]
    pub fn context(&self, id: RequestId) -> Option<&C> {
        self.in_flight.get(id)?.context.as_ref()
    }

    /// What was submitted with a request that is in flight, to be changed.
    #[must_use]
    #[inline]
    pub fn context_mut(&mut self, id: RequestId) -> Option<&mut C> {
        self.in_flight.get_mut(id)?.context.as_mut()
    }

    /// A request that will not be answered any more, since the connection is over. Ask until there is none; before that
    /// there is none either. Whether the server carried it out is unknown.
    pub fn next_abandoned(&mut self) -> Option<(RequestId, C)> {
        if self.error.is_none() && !matches!(self.state, State::Ended) {
            return None;
        }
        loop {
            let (id, mut pending) = self.in_flight.pop()?;
            if let Some(context) = pending.context.take() {
                return Some((id, context));
            }
        }
    }
}

/// What follows the magics of an oldstyle greeting: size, flags, padding.
const OLDSTYLE_REST: usize = 12 + EXPORT_NAME_PADDING;
