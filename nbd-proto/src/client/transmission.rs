//! Requests on their way to the server, and the end of transmission (section "Transmission").

use alloc::vec::Vec;

use super::connection::{Connection, Leaving, State};
use super::validate::{self, SubmitError};
use super::{CommandError, Event};
use crate::coverage::Coverage;
use crate::outbound::Tail;
use crate::wire::{CommandFlags, CommandType, CompactRequest, ExtendedRequest, TransmissionFlags};
use crate::{Command, RequestId};

/// A request in flight. Places in the table are reused with their vectors.
#[derive(Debug)]
pub(super) struct Pending<C> {
    pub(super) command: Command,
    pub(super) context: Option<C>,
    /// The request has left the queue, with its body.
    sent: bool,
    /// The reply is over. What it said, if the request was not sent by then.
    pub(super) answered: bool,
    result: Option<Result<(), CommandError>>,
    /// What a read's reply accounts for so far.
    pub(super) coverage: Coverage,
    /// Metadata contexts whose extents are still to come.
    pub(super) awaited: Vec<u32>,
    /// Places of errors that were reported with one, in order.
    pub(super) failures: Vec<u64>,
    /// How many error chunks came, of any kind.
    pub(super) errors: u32,
    /// The error to tell in the end: the first, but one without a place before all with one.
    pub(super) failure: Option<CommandError>,
    /// An error without a place came: no content can be trusted (C-REP-STRUCT-06).
    pub(super) untrusted: bool,
}

impl<C> Default for Pending<C> {
    fn default() -> Self {
        Self {
            command: Command::Flush,
            context: None,
            sent: false,
            answered: false,
            result: None,
            coverage: Coverage::default(),
            awaited: Vec::new(),
            failures: Vec::new(),
            errors: 0,
            failure: None,
            untrusted: false,
        }
    }
}

impl<C> Pending<C> {
    fn begin(&mut self, command: Command, context: C) {
        self.command = command;
        self.context = Some(context);
        self.sent = false;
        self.answered = false;
        self.result = None;
        self.coverage.clear();
        self.awaited.clear();
        self.failures.clear();
        self.errors = 0;
        self.failure = None;
        self.untrusted = false;
    }

    /// Whether a reply without an error told all that it should (C-REP-STRUCT-05, C-CMD-BS-14).
    fn is_complete(&self) -> bool {
        match self.command {
            Command::Read { length: 0, .. } => self.coverage.is_empty(),
            Command::Read { offset, length, .. } => {
                self.coverage.is_exactly(offset, offset.saturating_add(length))
            }
            Command::BlockStatus { .. } => self.awaited.is_empty(),
            _ => true,
        }
    }
}

/// A resize under way: the sizes to set when it fails or succeeds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resizing {
    id: RequestId,
    old: u64,
    new: u64,
}

impl<C> Connection<C> {
    /// Queues a request. The data of a write is yours to send when [`Segment::Body`](crate::Segment::Body) asks for it;
    /// that of a read is yours to receive when [`Incoming::Payload`](super::Incoming::Payload) or
    /// [`Event::Hole`] tells of it. [`Event::Completed`] follows, in any order.
    ///
    /// # Errors
    /// When the request breaks a rule of the protocol or exceeds what the server offered, or when there is no room. The
    /// context comes back.
    pub fn submit(&mut self, command: Command, context: C) -> Result<RequestId, (SubmitError, C)> {
        if let Err(error) = self.check_submit(&command, None) {
            return Err((error, context));
        }
        self.enqueue(command, None, context)
    }

    /// Queues a block status request about some of the selected metadata contexts, named by their numbers in
    /// [`ExportView::contexts`](super::ExportView::contexts). `offset`, `length` and `one` are as in
    /// [`Command::BlockStatus`].
    ///
    /// # Errors
    /// As for [`submit`](Self::submit), and [`SubmitError::NotOffered`] unless the server
    /// [takes such a list](TransmissionFlags::BLOCK_STATUS_PAYLOAD) (C-EH-19).
    pub fn submit_block_status(
        &mut self,
        offset: u64,
        length: u64,
        one: bool,
        contexts: &[u32],
        context: C,
    ) -> Result<RequestId, (SubmitError, C)> {
        let command = Command::BlockStatus { offset, length, one };
        if let Err(error) = self.check_submit(&command, Some(contexts)) {
            return Err((error, context));
        }
        self.enqueue(command, Some(contexts), context)
    }

    fn check_submit(&self, command: &Command, only: Option<&[u32]>) -> Result<(), SubmitError> {
        let export = match &self.export {
            Some(export) if self.error.is_none() => export,
            _ => return Err(SubmitError::NotTransmitting),
        };
        if self.leaving != Leaving::No {
            return Err(SubmitError::Disconnecting);
        }
        validate::fits(command, self.negotiation.extended)?;
        if only.is_some() && !self.negotiation.extended {
            return Err(SubmitError::NotOffered(CommandType::BLOCK_STATUS));
        }
        if !self.config.strict {
            return Ok(());
        }
        if self.server_is_shutting_down {
            return Err(SubmitError::ServerShuttingDown);
        }
        let rules = &export.rules;
        match (rules.check(command), export.resizing) {
            // It would be all right, were it not for the resize.
            (Err(SubmitError::OutOfRange(_)), Some(Resizing { old, new, .. }))
                if ends_by(command, old.max(new)) =>
            {
                return Err(SubmitError::Resizing);
            }
            (result, _) => result?,
        }
        match *command {
            Command::BlockStatus { .. } if export.contexts.is_empty() => {
                return Err(SubmitError::NoContexts);
            }
            Command::Resize { size } => {
                let kept = rules.size.min(size);
                if export.resizing.is_some()
                    || self.in_flight.iter().any(|other| !ends_by(&other.command, kept))
                {
                    return Err(SubmitError::Resizing);
                }
            }
            _ => {}
        }
        let Some(only) = only else { return Ok(()) };
        if !rules.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD) {
            return Err(SubmitError::NotOffered(CommandType::BLOCK_STATUS));
        }
        if only.is_empty() {
            return Err(SubmitError::NoContexts);
        }
        for (at, id) in only.iter().enumerate() {
            let twice = only.get(..at).unwrap_or_default().contains(id);
            if twice || !export.contexts.iter().any(|selected| selected.id == *id) {
                return Err(SubmitError::BadContext(*id));
            }
        }
        Ok(())
    }

    fn enqueue(
        &mut self,
        command: Command,
        only: Option<&[u32]>,
        context: C,
    ) -> Result<RequestId, (SubmitError, C)> {
        let Some((id, pending)) = self.in_flight.take() else {
            return Err((SubmitError::TooManyRequests, context));
        };
        pending.begin(command, context);
        if let Some(export) = &mut self.export {
            match (command, only) {
                (Command::BlockStatus { .. }, Some(only)) => pending.awaited.extend(only),
                (Command::BlockStatus { .. }, None) => {
                    pending.awaited.extend(export.contexts.iter().map(|selected| selected.id));
                }
                (Command::Resize { size: new }, _) => {
                    let old = export.rules.size;
                    export.resizing = Some(Resizing { id, old, new });
                    export.rules.size = old.min(new);
                }
                _ => {}
            }
        }
        self.put_request(id, &command, only);
        let tail = match command {
            Command::Write { length, .. } => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                Tail::Body { id, offset: 0, length }
            }
            _ => Tail::None,
        };
        self.out.seal(tail, Some(id));
        Ok(id)
    }

    /// Puts a request's header, and the payload of a block status request that has one.
    #[inline]
    fn put_request(&mut self, id: RequestId, command: &Command, only: Option<&[u32]>) {
        let (cookie, offset, length) = (id.cookie(), command.offset(), command.length());
        let mut flags = command.flags();
        let command = command.command_type();
        if !self.negotiation.extended {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            self.out.put(&CompactRequest { flags, command, cookie, offset, length }.encode());
            return;
        }
        flags.set(CommandFlags::PAYLOAD_LEN, command == CommandType::WRITE || only.is_some());
        let payload = only.map(|only| (only.len() as u64).saturating_mul(4).saturating_add(8));
        let header_length = payload.unwrap_or(length);
        let request = ExtendedRequest { flags, command, cookie, offset, length: header_length };
        self.out.put(&request.encode());
        if let Some(only) = only {
            self.out.put(&length.to_be_bytes());
            only.iter().for_each(|context| self.out.put(&context.to_be_bytes()));
        }
    }

    /// A request has left, with its body. It may have been answered before.
    pub(super) fn request_sent(&mut self, id: RequestId) -> Option<Event<C>> {
        let pending = self.in_flight.get_mut(id)?;
        pending.sent = true;
        let result = pending.result.take()?;
        self.release(id, result)
    }

    /// A reply is over. The request itself is once it has left, for until then its buffer is in use.
    pub(super) fn complete(&mut self, id: RequestId) -> Option<Event<C>> {
        self.state = State::ReplyHeader;
        let pending = self.in_flight.get_mut(id)?;
        let result = match pending.failure.take() {
            Some(error) => Err(error),
            None if !pending.is_complete() => Err(CommandError::incomplete()),
            None => Ok(()),
        };
        pending.answered = true;
        let sent = pending.sent;
        self.resized(id, result.is_ok());
        if sent {
            return self.release(id, result);
        }
        if let Some(pending) = self.in_flight.get_mut(id) {
            pending.result = Some(result);
        }
        None
    }

    fn release(&mut self, id: RequestId, result: Result<(), CommandError>) -> Option<Event<C>> {
        let context = self.in_flight.get_mut(id)?.context.take()?;
        self.in_flight.release(id);
        self.settle();
        Some(Event::Completed { request: id, context, result })
    }

    /// The export has its new size, or its old one (section "Request types" of the resize extension).
    fn resized(&mut self, id: RequestId, success: bool) {
        if let Some(export) = &mut self.export
            && let Some(resizing) = export.resizing
            && resizing.id == id
        {
            export.resizing = None;
            export.rules.size = if success { resizing.new } else { resizing.old };
        }
    }

    /// Leaves softly, as soon as possible: by `NBD_OPT_ABORT` when it is the client's turn, by `NBD_CMD_DISC` once all
    /// requests in flight are answered (C-OPT-AB-04, C-END-07, C-CMD-DISC-16). Go on driving the connection until
    /// [`Event::Disconnected`], or drop it if that takes too long.
    pub fn disconnect(&mut self) {
        if self.leaving != Leaving::No || self.error.is_some() {
            return;
        }
        self.leaving = Leaving::Wanted;
        if matches!(self.state, State::Idle) {
            self.leave_haggling();
        }
        self.settle();
    }

    /// As [`disconnect`](Self::disconnect), but does not wait for requests in flight. The server has to carry them out
    /// all the same, and most servers answer them.
    pub fn disconnect_now(&mut self) {
        self.disconnect();
        if self.export.is_some() && self.leaving == Leaving::Wanted {
            self.put_disconnect();
            self.settle();
        }
    }

    /// During transmission: says goodbye once nothing is in flight, and tells so once that has left.
    pub(super) fn settle(&mut self) {
        if self.leaving == Leaving::No
            || self.export.is_none()
            || self.error.is_some()
            || self.in_flight.len() > 0
        {
            return;
        }
        if self.leaving == Leaving::Wanted {
            self.put_disconnect();
        }
        self.state = State::Ended;
        if self.out.is_empty() {
            self.tell_disconnected();
        }
    }

    /// `NBD_CMD_DISC`, which has no offset, no length and no reply (C-REQ-22).
    fn put_disconnect(&mut self) {
        self.leaving = Leaving::Said;
        let (flags, command) = (CommandFlags::empty(), CommandType::DISC);
        let request = CompactRequest { flags, command, cookie: 0, offset: 0, length: 0 };
        if self.negotiation.extended {
            self.out.put(&ExtendedRequest::from(request).encode());
        } else {
            self.out.put(&request.encode());
        }
        self.out.seal(Tail::None, None);
    }
}

/// Whether all that a request is about lies before `end`.
fn ends_by(command: &Command, end: u64) -> bool {
    match command {
        Command::Flush | Command::Resize { .. } => true,
        _ => command.offset().checked_add(command.length()).is_some_and(|last| last <= end),
    }
}
