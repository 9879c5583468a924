//! A request under way: as one request on the wire, or as several.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use nbd_proto::{Command, Extent, RequestRules};

use super::buffer::Buffer;
use super::chunks::Chunks;
use super::completion::{Completion, Findings, Outcome};
use super::reconnect::Reservation;
use super::statistics::Begun;
use super::{ContextExtents, Error};

/// What a program asked for. It may be longer than the longest payload that the server takes, and then takes several
/// requests on the wire: its parts.
#[derive(Debug)]
pub(super) struct RequestState {
    pub(super) command: Command,
    /// The data; at least as long as the command.
    pub(super) buffer: Buffer,
    /// Where the waiter learns the outcome; `None` once it has timed out.
    pub(super) completion: Option<Arc<Completion>>,
    pub(super) deadline: Option<Instant>,
    pub(super) findings: Findings,
    /// Bytes of the command whose parts were submitted.
    pub(super) submitted_up_to: u64,
    /// All parts are submitted.
    pub(super) submitted: bool,
    /// Parts in flight.
    pub(super) in_flight: u32,
    /// Whether any byte of any part is known to have been sent, on any connection so far: it may have been carried out.
    pub(super) sent: bool,
    /// A part was sent that its server never answered, so that it may still carry it out.
    pub(super) unanswered: bool,
    /// The connection ended without an answer to a part.
    pub(super) abandoned: bool,
    /// The first thing that went wrong.
    pub(super) failure: Option<Box<Error>>,
    /// What the client needs it for, if no program asked for it.
    pub(super) internal: Option<Internal>,
    /// When it was submitted, while it is counted.
    pub(super) begun: Begun,
    /// How many times it was sent and lost.
    pub(super) resends: u32,
    /// The room that it holds among the kept changes.
    pub(super) reservation: Option<Reservation>,
}

/// A request of the client's own, without a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Internal {
    /// A kept change is written again.
    Replay,
    /// A flush after that.
    ReplayFlush,
    /// A flush that makes room for more changes.
    Flush,
}

impl RequestState {
    pub(super) const fn new(
        command: Command,
        buffer: Buffer,
        findings: Findings,
        completion: Arc<Completion>,
    ) -> Self {
        Self {
            command,
            buffer,
            completion: Some(completion),
            deadline: None,
            findings,
            submitted_up_to: 0,
            submitted: false,
            in_flight: 0,
            sent: false,
            unanswered: false,
            abandoned: false,
            failure: None,
            internal: None,
            begun: None,
            resends: 0,
            reservation: None,
        }
    }

    /// A request of the client's own.
    pub(super) fn internal(purpose: Internal, command: Command, data: Bytes) -> Self {
        let completion = Arc::default();
        let mut request = Self::new(command, Buffer::Shared(data), Findings::None, completion);
        (request.completion, request.internal) = (None, Some(purpose));
        request
    }

    /// Whether nobody waits for it.
    pub(super) fn is_abandoned(&self) -> bool {
        match &self.completion {
            Some(completion) => completion.is_abandoned(),
            None => self.internal.is_none(),
        }
    }

    /// Whether another part of it may be in flight. What it has there is bounded, since what is asked for later has to wait
    /// until that is on its way.
    pub(super) fn may_have_another_part(&self, rules: &RequestRules) -> bool {
        /// Parts without data, such as those of a trim.
        const PARTS: u32 = 16;
        /// Parts with data.
        const PARTS_WITH_DATA: u32 = 4;
        /// Bytes of data, however many parts that takes.
        const DATA: u64 = 8 << 20;

        if self.command.buffer_length() == 0 {
            return self.in_flight < PARTS;
        }
        let in_flight = u64::from(self.in_flight) * rules.max_length(&self.command);
        self.in_flight < PARTS_WITH_DATA || in_flight < DATA
    }

    /// Its connection is lost, and it is to be sent on another one: as if nothing of it had been submitted yet.
    pub(super) fn start_over(&mut self) {
        self.resends = self.resends.saturating_add(u32::from(self.sent));
        (self.submitted_up_to, self.submitted) = (0, false);
        (self.in_flight, self.abandoned) = (0, false);
        match &mut self.findings {
            Findings::None => {}
            Findings::Extents(extents) => extents.clear(),
            Findings::Chunks(chunks) => chunks.clear(),
        }
    }

    /// The room for a read's payload; `None` if it is not wanted any more.
    pub(super) fn room(&mut self, start: u64, length: u64) -> Option<&mut [u8]> {
        let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
        self.buffer.bytes_mut().get_mut(start..start.checked_add(length)?)
    }

    /// Data to be written.
    pub(super) fn data(&self, start: u64, length: usize) -> &[u8] {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let end = start.saturating_add(length);
        self.buffer.bytes().get(start..end).unwrap_or_default()
    }

    /// What is kept of each chunk, if chunks are wanted.
    pub(super) const fn chunks(&mut self) -> Option<&mut Chunks> {
        match &mut self.findings {
            Findings::Chunks(chunks) => Some(chunks),
            _ => None,
        }
    }

    pub(super) fn extents(&mut self, context: &Arc<str>, mut extents: Vec<Extent>) {
        let Findings::Extents(found) = &mut self.findings else { return };
        match found.iter_mut().find(|known| known.context == *context) {
            Some(known) => known.extents.append(&mut extents),
            None => found.push(ContextExtents::new(Arc::clone(context), extents)),
        }
    }

    /// The first thing that went wrong.
    pub(super) fn failed(&self) -> Option<&Error> {
        match &self.findings {
            Findings::Chunks(chunks) => self.failure.as_deref().or_else(|| chunks.failure()),
            _ => self.failure.as_deref(),
        }
    }

    /// Nothing more will be submitted of it.
    pub(super) fn fail(&mut self, error: impl FnOnce() -> Error) {
        self.submitted = true;
        if self.failure.is_none() {
            self.failure = Some(Box::new(error()));
        }
    }

    /// Hands the outcome to the waiter.
    pub(super) fn finish(mut self) {
        let Some(completion) = self.completion.take() else { return };
        let result = self.failure.take().map_or(Ok(()), Err);
        completion.complete(Outcome { buffer: self.buffer, findings: self.findings, result });
    }

    /// All of its parts that were submitted are answered: it was about no more than these.
    pub(super) fn leave_out_the_rest(&mut self) {
        // A block status is answered in part anyway.
        let is_status = matches!(self.command, Command::BlockStatus { .. });
        let is_cut = self.submitted_up_to < self.command.length();
        if is_cut && !is_status && self.failure.is_none() {
            self.command = self.command.with_range(self.command.offset(), self.submitted_up_to);
        }
    }

    /// It takes too long. Parts in flight stay; what they read is dropped. Data that may still have to be sent, or written
    /// again, stays, too.
    pub(super) fn time_out(&mut self, error: Error) {
        let Some(completion) = self.completion.take() else { return };
        let keep = self.submitted_up_to > 0 && self.command.payload_length() > 0;
        let buffer = if keep { Buffer::None } else { core::mem::take(&mut self.buffer) };
        self.submitted = true;
        self.deadline = None;
        completion.complete(Outcome::failed(buffer, error));
    }
}
