//! A request on its way: whole, or in pieces.

use std::sync::Arc;
use std::time::Instant;

use super::invalid::Operation;
use super::ticket::{Buffer, Outcome, Ticket};
use super::{ContextExtents, Error};

/// What somebody asked for. The longest payload that a server takes is smaller than what may be asked for, so that it
/// can take several requests on the wire.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) operation: Operation,
    /// The data; at least as long as the operation.
    pub(crate) buffer: Buffer,
    /// Who is to be told; nobody once it has timed out.
    pub(crate) ticket: Option<Arc<Ticket>>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) extents: Vec<ContextExtents>,
    /// How far it was cut into pieces.
    pub(crate) cut: u64,
    /// All pieces are submitted.
    pub(crate) submitted: bool,
    /// Pieces in flight.
    pub(crate) in_flight: u32,
    /// Where its first piece begins in the stream of all that is sent.
    pub(crate) begins: Option<u64>,
    /// The first thing that went wrong.
    pub(crate) failure: Option<Box<Error>>,
}

impl Transfer {
    pub(crate) fn new(operation: Operation, buffer: Buffer, ticket: Arc<Ticket>) -> Self {
        Self {
            operation,
            buffer,
            ticket: Some(ticket),
            deadline: None,
            extents: Vec::new(),
            cut: 0,
            submitted: false,
            in_flight: 0,
            begins: None,
            failure: None,
        }
    }

    /// The place of a read's payload; `None` if nobody wants it any more.
    pub(crate) fn place(&mut self, start: u64, length: u64) -> Option<&mut [u8]> {
        let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
        self.buffer.bytes_mut().get_mut(start..start.checked_add(length)?)
    }

    /// Data to be written.
    pub(crate) fn data(&self, start: u64, length: usize) -> &[u8] {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let end = start.saturating_add(length);
        self.buffer.bytes().get(start..end).unwrap_or_default()
    }

    /// Nothing more will be submitted of it.
    pub(crate) fn fail(&mut self, error: impl FnOnce() -> Error) {
        self.submitted = true;
        if self.failure.is_none() {
            self.failure = Some(Box::new(error()));
        }
    }

    /// Tells whoever asked how it went.
    pub(crate) fn finish(mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let result = self.failure.take().map_or(Ok(()), Err);
        ticket.complete(Outcome { buffer: self.buffer, extents: self.extents, result });
    }

    /// It takes too long. Pieces in flight stay; what they read is dropped. Data that may still have to be sent stays, too.
    pub(crate) fn time_out(&mut self, error: Error) {
        let Some(ticket) = self.ticket.take() else { return };
        let keep = self.in_flight > 0 && self.operation.is_write();
        let buffer = if keep { Buffer::None } else { self.buffer.take() };
        self.submitted = true;
        self.deadline = None;
        ticket.complete(Outcome::failed(buffer, error));
    }
}
