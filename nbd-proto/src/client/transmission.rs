//! The transmission phase: what the next bytes are, and which requests are in flight (section "Transmission"). Only
//! this file moves the cursor.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

use super::export::{Agreed, EnteredExport};
use super::pending::Pending;
use super::progress::{Progress, collect, drop_front, missing};
use super::reply::Chunk;
use super::status::StatusRun;
use super::submit::put_disconnect;
use super::{CommandError, Event};
use crate::in_flight::InFlight;
use crate::outbound::Outbound;
use crate::scratch::Scratch;
use crate::wire::{ExtendedReplyHeader, SimpleReplyHeader};
use crate::{
    BlockSize, ContextRefusal, Error, ExportView, Extent, Limits, Misuse, OrderlyEnd, PauseReason,
    RequestId, RequestRules, SelectedContext, Wants,
};

/// The connection once an export is entered.
#[derive(Debug)]
pub(super) struct Transmission {
    pub(super) agreed: Agreed,
    pub(super) rules: RequestRules,
    block_size_advertised: bool,
    name: Option<String>,
    description: Option<String>,
    pub(super) contexts: Vec<SelectedContext>,
    contexts_refused: Option<ContextRefusal>,
    pub(super) resizing: Option<Resizing>,
    pub(super) in_flight: InFlight<Pending>,
    /// Requests that were answered before they were transmitted, and have been transmitted since.
    early: VecDeque<RequestId>,
    cursor: Cursor,
    /// The payload of an error chunk.
    pub(super) collected: Vec<u8>,
    pub(super) batch: Vec<Extent>,
    disconnect: Disconnect,
    pub(super) server_is_shutting_down: bool,
    /// Bytes transmitted in this phase. (To wrap takes centuries.)
    pub(super) transmitted: u64,
}

/// What the next bytes of the stream are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cursor {
    Header,
    /// The first 16 bytes of a structured reply header are here.
    StructuredRest([u8; 16]),
    DataOffset(Chunk),
    /// Data for the embedder; `offset` counts from the request's own.
    Data {
        chunk: Chunk,
        offset: u64,
        remaining: u64,
    },
    /// Data that can't be trusted.
    Drop {
        chunk: Chunk,
        remaining: u64,
    },
    Hole(Chunk),
    /// What comes before so many extents.
    StatusHead(Chunk, u64),
    Extents(Chunk, StatusRun),
    ErrorPayload(Chunk),
    /// A reply has arrived; nothing more is to be read for it.
    Complete(RequestId),
}

/// How far the end has come that the embedder asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disconnect {
    No,
    /// Once nothing is in flight.
    Wanted,
    /// `NBD_CMD_DISC` is queued, or transmitted.
    Queued,
}

/// A resize under way: the sizes to set when it fails or succeeds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resizing {
    pub(super) id: RequestId,
    pub(super) old: u64,
    pub(super) new: u64,
}

/// How many bytes to be dropped are asked for at a time.
const DROP_AT_ONCE: u64 = 4 << 10;

impl Transmission {
    pub(super) fn new(export: EnteredExport, limits: &Limits, out: &mut Outbound) -> Self {
        let EnteredExport {
            info,
            block_size,
            name,
            description,
            contexts,
            contexts_refused,
            agreed,
            disconnect,
        } = export;
        let sizes = block_size.unwrap_or(BlockSize::DEFAULT);
        let rules = RequestRules {
            size: info.size,
            flags: agreed.flags(info.flags),
            block_size: sizes.with_payload_at_most(limits.max_payload),
            extended: agreed.extended,
            has_contexts: !contexts.is_empty(),
        };
        let mut transmission = Self {
            agreed,
            rules,
            block_size_advertised: block_size.is_some(),
            name,
            description,
            contexts,
            contexts_refused,
            resizing: None,
            in_flight: InFlight::new(limits.max_in_flight.max(1)),
            early: VecDeque::new(),
            cursor: Cursor::Header,
            collected: Vec::new(),
            batch: Vec::new(),
            disconnect: if disconnect { Disconnect::Wanted } else { Disconnect::No },
            server_is_shutting_down: false,
            transmitted: 0,
        };
        transmission.settle(out);
        transmission
    }

    pub(super) fn view(&self) -> ExportView<'_> {
        ExportView {
            size: self.rules.size,
            flags: self.rules.flags,
            block_size: self.rules.block_size,
            block_size_advertised: self.block_size_advertised,
            name: self.name.as_deref(),
            description: self.description.as_deref(),
            contexts: &self.contexts,
            contexts_refused: self.contexts_refused.as_ref(),
            structured: self.agreed.chunked(),
            extended: self.agreed.extended,
            tls: self.agreed.tls,
        }
    }

    pub(super) const fn is_disconnecting(&self) -> bool {
        !matches!(self.disconnect, Disconnect::No)
    }

    /// Whether everything is answered and the server knows that nothing follows: nothing more is read.
    const fn is_over(&self) -> bool {
        matches!(self.disconnect, Disconnect::Queued) && self.in_flight.len() == 0
    }

    /// What the next bytes are.
    pub(super) fn wants(&self, filled: usize, unsent: bool) -> Wants {
        if !self.early.is_empty() || (self.is_over() && !unsent) {
            return Wants::Nothing(PauseReason::EventDue);
        }
        if self.is_over() {
            return Wants::Nothing(PauseReason::Unsent);
        }
        let extended = self.agreed.extended;
        let (total, have) = match self.cursor {
            Cursor::Data { chunk, offset, remaining } => {
                return match self.in_flight.get(chunk.id) {
                    Some(&Pending { command, .. }) => {
                        Wants::Payload { id: chunk.id, command, offset, remaining }
                    }
                    None => Wants::Nothing(PauseReason::EventDue),
                };
            }
            Cursor::Drop { remaining, .. } => {
                let at_once = remaining.min(DROP_AT_ONCE);
                (usize::try_from(at_once).unwrap_or(1), 0)
            }
            Cursor::Header if extended => (ExtendedReplyHeader::SIZE, filled),
            Cursor::Header => (SimpleReplyHeader::SIZE, filled),
            Cursor::StructuredRest(_) => (4, filled),
            Cursor::DataOffset(_) => (8, filled),
            Cursor::Hole(_) => (12, filled),
            Cursor::StatusHead(..) => (if extended { 8 } else { 4 }, filled),
            Cursor::Extents(..) => (if extended { 16 } else { 8 }, filled),
            Cursor::ErrorPayload(chunk) => (chunk.length_in_memory(), self.collected.len()),
            Cursor::Complete(_) => return Wants::Nothing(PauseReason::EventDue),
        };
        missing(total, have)
    }

    /// Handles the front of `input`, up to the next event.
    #[inline]
    pub(super) fn receive(
        &mut self,
        limits: &Limits,
        scratch: &mut Scratch,
        out: &mut Outbound,
        input: &mut &[u8],
    ) -> Result<Progress, Error> {
        /// The next message of fixed size, or nothing yet.
        macro_rules! take {
            () => {
                match scratch.take(input) {
                    Some(bytes) => bytes,
                    None => return Ok(Progress::Stuck),
                }
            };
        }
        if let Some(id) = self.early.pop_front() {
            let answer = self.pending(id)?.answer.take();
            let result = answer.ok_or(Error::Internal("an early answer got lost"))?;
            return Ok(Progress::Event(self.release(out, id, result)));
        }
        if self.is_over() {
            return Ok(if out.is_empty() {
                Progress::Close(OrderlyEnd::Disconnected)
            } else {
                Progress::Stuck
            });
        }
        loop {
            let (cursor, event) = match self.cursor {
                Cursor::Header if self.agreed.extended => {
                    let header = ExtendedReplyHeader::decode(&take!())?;
                    self.cursor = self.chunk(limits, &header)?;
                    continue;
                }
                Cursor::Header => {
                    self.cursor = self.compact_reply(take!())?;
                    continue;
                }
                Cursor::StructuredRest(head) => {
                    self.cursor = self.structured_chunk(limits, head, take!())?;
                    continue;
                }
                Cursor::DataOffset(chunk) => {
                    let offset = u64::from_be_bytes(take!());
                    self.cursor = self.data(limits, chunk, offset)?;
                    continue;
                }
                Cursor::Data { chunk, .. } => {
                    self.pending(chunk.id)?;
                    return Ok(Progress::Stuck);
                }
                Cursor::Drop { .. } if input.is_empty() => return Ok(Progress::Stuck),
                Cursor::Drop { chunk, remaining } => {
                    let at_once = usize::try_from(remaining).unwrap_or(usize::MAX);
                    let dropped = drop_front(input, at_once) as u64;
                    self.cursor = match remaining.checked_sub(dropped) {
                        Some(remaining @ 1..) => Cursor::Drop { chunk, remaining },
                        _ => chunk.after(),
                    };
                    continue;
                }
                Cursor::Hole(chunk) => self.hole(limits, chunk, &take!())?,
                Cursor::StatusHead(chunk, count) => {
                    self.cursor = if self.agreed.extended {
                        let head: [u8; 8] = take!();
                        self.status_head(chunk, count, &head)?
                    } else {
                        let head: [u8; 4] = take!();
                        self.status_head(chunk, count, &head)?
                    };
                    continue;
                }
                Cursor::Extents(chunk, run) if self.agreed.extended => {
                    let bytes: [u8; 16] = take!();
                    self.extended_extent(chunk, run, &bytes)?
                }
                Cursor::Extents(chunk, run) => {
                    let bytes: [u8; 8] = take!();
                    self.compact_extent(chunk, run, &bytes)?
                }
                Cursor::ErrorPayload(chunk) => {
                    if !collect(&mut self.collected, input, chunk.length_in_memory()) {
                        return Ok(Progress::Stuck);
                    }
                    let error = self.error_chunk(limits, chunk)?;
                    (chunk.after(), Some(Event::ErrorChunk { id: chunk.id, error }))
                }
                Cursor::Complete(id) => {
                    self.cursor = Cursor::Header;
                    match self.complete(out, id)? {
                        Some(event) => return Ok(Progress::Event(event)),
                        None => continue,
                    }
                }
            };
            self.cursor = cursor;
            if let Some(event) = event {
                return Ok(Progress::Event(event));
            }
        }
    }

    /// The embedder has moved `count` bytes of the data that comes next.
    pub(super) fn payload_received(&mut self, count: u64) -> Result<(), Misuse> {
        let Cursor::Data { chunk, offset, remaining } = self.cursor else {
            return Err(Misuse::WrongPhase);
        };
        let remaining = remaining.checked_sub(count).ok_or(Misuse::TooManyBytes)?;
        let offset = offset.checked_add(count).ok_or(Misuse::TooManyBytes)?;
        self.cursor = match remaining {
            0 => chunk.after(),
            _ => Cursor::Data { chunk, offset, remaining },
        };
        Ok(())
    }

    /// A request that must be in flight.
    #[inline]
    pub(super) fn pending(&mut self, id: RequestId) -> Result<&mut Pending, Error> {
        let lost = Error::Internal("a reply was read for a request that is not in flight");
        self.in_flight.get_mut(id).ok_or(lost)
    }

    /// A request has been transmitted, with its payload. It may have been answered before. Gives whether there was a
    /// payload.
    pub(super) fn request_sent(&mut self, out: &mut Outbound, id: RequestId) -> bool {
        let Some(pending) = self.in_flight.get_mut(id) else {
            out.fail("a request was transmitted that is not in flight");
            return false;
        };
        pending.sent = true;
        let payload = pending.command.payload_length() > 0;
        if pending.answer.is_some() {
            self.early.push_back(id);
        }
        payload
    }

    /// A reply is over. The request itself is once it has been transmitted, for until then its buffer is in use.
    fn complete(&mut self, out: &mut Outbound, id: RequestId) -> Result<Option<Event>, Error> {
        let pending = self.pending(id)?;
        let (result, sent) = (pending.result(), pending.sent);
        self.resized(id, result.is_ok());
        if sent {
            return Ok(Some(self.release(out, id, result)));
        }
        self.pending(id)?.answer = Some(result);
        Ok(None)
    }

    fn release(
        &mut self,
        out: &mut Outbound,
        id: RequestId,
        result: Result<(), CommandError>,
    ) -> Event {
        self.in_flight.release(id);
        self.settle(out);
        Event::Completed { id, result }
    }

    /// The export has its new size, or its old one (section "Request types" of the resize extension).
    fn resized(&mut self, id: RequestId, success: bool) {
        if let Some(resizing) = self.resizing.take_if(|resizing| resizing.id == id) {
            self.rules.size = if success { resizing.new } else { resizing.old };
        }
    }

    /// The embedder wants to disconnect once everything is answered.
    // (C-END-07, C-CMD-DISC-16)
    pub(super) fn disconnect(&mut self, out: &mut Outbound) {
        if self.disconnect == Disconnect::No {
            self.disconnect = Disconnect::Wanted;
        }
        self.settle(out);
    }

    /// The embedder wants to disconnect without waiting for replies.
    pub(super) fn disconnect_now(&mut self, out: &mut Outbound) {
        if self.disconnect != Disconnect::Queued {
            self.disconnect = Disconnect::Queued;
            put_disconnect(out, self.agreed.extended);
        }
    }

    /// Queues `NBD_CMD_DISC` if it is wanted and nothing is in flight.
    fn settle(&mut self, out: &mut Outbound) {
        if self.disconnect == Disconnect::Wanted && self.in_flight.len() == 0 {
            self.disconnect_now(out);
        }
    }

    /// What it means that the stream ends now.
    pub(super) const fn end_of_stream(&self, filled: usize) -> Result<OrderlyEnd, Error> {
        Err(Error::UnexpectedEnd(match self.cursor {
            _ if self.is_over() => return Ok(OrderlyEnd::Disconnected),
            Cursor::Header if filled == 0 && self.in_flight.len() > 0 => "requests in flight",
            Cursor::Header if filled == 0 => "the transmission phase",
            _ => "a reply",
        }))
    }
}
