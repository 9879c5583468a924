//! Requests on their way to the server (section "Request message").

use super::pending::Pending;
use super::transmission::{Resizing, Transmission};
use crate::outbound::{Outbound, Tail};
use crate::wire::{CommandFlags, CommandType, CompactRequest, ExtendedRequest, TransmissionFlags};
use crate::{Command, InvalidRequest, RequestId};

/// Why a request was not submitted. The connection is unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The request breaks a rule of the protocol, or needs what the server did not offer.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// No export has been entered, or the connection is over.
    #[error("the connection is not in the transmission phase")]
    NotTransmitting,
    /// You are disconnecting: no request may follow.
    #[error("the connection is being disconnected")]
    Disconnecting,
    /// The server is shutting down: [`disconnect`](super::Connection::disconnect).
    #[error("the server is shutting down")]
    ServerShuttingDown,
    /// As many requests as the limits allow are in flight: wait for one to complete.
    #[error("too many requests are in flight")]
    TooManyRequests,
    /// A metadata context that was not selected, or occurs twice.
    #[error("the metadata context {0} was not selected, or occurs twice")]
    BadContext(u32),
    /// A resize changes the part of the export that this request is about, or this resize would change the part that
    /// another request is about.
    #[error("a resize changes what another request is about")]
    Resizing,
}

impl Transmission {
    /// Checks a request and queues it.
    pub(super) fn submit(
        &mut self,
        out: &mut Outbound,
        strict: bool,
        command: Command,
        only: Option<&[u32]>,
    ) -> Result<RequestId, SubmitError> {
        if self.is_disconnecting() {
            return Err(SubmitError::Disconnecting);
        }
        let body = self.fits(&command, only)?;
        if strict {
            self.check(&command)?;
            if let Some(only) = only {
                self.check_contexts(only)?;
            }
        }
        let begins = self.transmitted.wrapping_add(out.queued());
        let (id, pending) = self.in_flight.take().ok_or(SubmitError::TooManyRequests)?;
        pending.begin(command, begins);
        match (command, only) {
            (Command::BlockStatus { .. }, Some(only)) => pending.awaited.extend(only),
            (Command::BlockStatus { .. }, None) => {
                pending.awaited.extend(self.contexts.iter().map(|selected| selected.id));
            }
            (Command::Resize { size: new }, _) => {
                let old = self.rules.size;
                self.resizing = Some(Resizing { id, old, new });
                self.rules.size = old.min(new);
            }
            _ => {}
        }
        put_request(out, self.agreed.extended, id, &command, only);
        let tail = if body > 0 { Tail::Body { id, offset: 0, length: body } } else { Tail::None };
        out.seal(tail, Some(id));
        Ok(id)
    }

    /// What not even tests of servers can do without: the length must fit into the header, a payload into the address
    /// space, and a list of contexts needs extended headers. Gives the length of the payload.
    // (C-EH-16)
    fn fits(&self, command: &Command, only: Option<&[u32]>) -> Result<usize, SubmitError> {
        let extended = self.agreed.extended;
        if !extended && u32::try_from(command.length()).is_err() {
            return Err(InvalidRequest::TooLong(u32::MAX.into()).into());
        }
        if !extended && only.is_some() {
            return Err(InvalidRequest::NotOffered(CommandType::BLOCK_STATUS).into());
        }
        let longest = isize::MAX as u64;
        let body = usize::try_from(command.payload_length());
        body.map_err(|_| InvalidRequest::TooLong(longest).into())
    }

    fn check(&self, command: &Command) -> Result<(), SubmitError> {
        // C-END-06.
        if self.server_is_shutting_down {
            return Err(SubmitError::ServerShuttingDown);
        }
        match (self.rules.check(command), self.resizing) {
            // It would be all right, were it not for the resize (C-RSZ-06).
            (Err(InvalidRequest::OutOfRange(_)), Some(Resizing { old, new, .. }))
                if ends_by(command, old.max(new)) =>
            {
                return Err(SubmitError::Resizing);
            }
            (result, _) => result?,
        }
        if let Command::Resize { size } = *command {
            let kept = self.rules.size.min(size);
            let ends = |other: &Pending| ends_by(&other.command, kept);
            if self.resizing.is_some() || !self.in_flight.iter().all(ends) {
                return Err(SubmitError::Resizing);
            }
        }
        Ok(())
    }

    /// A list of contexts for a block status request.
    // (C-EH-19)
    fn check_contexts(&self, only: &[u32]) -> Result<(), SubmitError> {
        if !self.rules.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD) {
            return Err(InvalidRequest::NotOffered(CommandType::BLOCK_STATUS).into());
        }
        if only.is_empty() {
            return Err(InvalidRequest::NoContexts.into());
        }
        let mut rest = only;
        while let Some((id, later)) = rest.split_first() {
            if later.contains(id) || !self.contexts.iter().any(|selected| selected.id == *id) {
                return Err(SubmitError::BadContext(*id));
            }
            rest = later;
        }
        Ok(())
    }
}

/// Puts a request's header, and the payload of a block status request that has one.
#[inline]
fn put_request(
    out: &mut Outbound,
    extended: bool,
    id: RequestId,
    command: &Command,
    only: Option<&[u32]>,
) {
    let (cookie, offset, length) = (id.cookie(), command.offset(), command.length());
    let mut flags = command.flags();
    let command = command.command_type();
    if !extended {
        // A list of contexts is refused before, and so is a longer length.
        match u32::try_from(length) {
            Ok(length) => {
                out.put(&CompactRequest { flags, command, cookie, offset, length }.encode());
            }
            Err(_) => out.fail("a request is too long for its header"),
        }
        return;
    }
    flags.set(CommandFlags::PAYLOAD_LEN, command == CommandType::WRITE || only.is_some());
    let Some(only) = only else {
        return out.put(&ExtendedRequest { flags, command, cookie, offset, length }.encode());
    };
    // The effect length, and an id for each context.
    let Some(payload) = (only.len() as u64).checked_mul(4).and_then(|ids| ids.checked_add(8))
    else {
        return out.fail("a list of contexts is too long");
    };
    out.put(&ExtendedRequest { flags, command, cookie, offset, length: payload }.encode());
    out.put(&length.to_be_bytes());
    only.iter().for_each(|context| out.put(&context.to_be_bytes()));
}

/// `NBD_CMD_DISC`, which has no offset, no length and no reply.
// (C-REQ-22)
pub(super) fn put_disconnect(out: &mut Outbound, extended: bool) {
    let (flags, command) = (CommandFlags::empty(), CommandType::DISC);
    let request = CompactRequest { flags, command, cookie: 0, offset: 0, length: 0 };
    if extended {
        out.put(&ExtendedRequest::from(request).encode());
    } else {
        out.put(&request.encode());
    }
    out.seal(Tail::None, None);
}

/// Whether all that a request is about lies before `end`.
fn ends_by(command: &Command, end: u64) -> bool {
    !command.has_range()
        || command.offset().checked_add(command.length()).is_some_and(|last| last <= end)
}
