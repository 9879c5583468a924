//! Replies: simple, structured and extended ones, as far as they are told apart from payload (sections "Simple reply
//! message", "Structured reply chunk message" and "Extended reply chunk message").

use super::connection::{Connection, State};
use super::event::displayable;
use super::transmission::Pending;
use super::{CommandError, Event};
use crate::wire::{
    ArrayWriter, BlockStatusDescriptor, DecodeError, ErrorChunk, ErrorCode, ExtendedReplyHeader,
    Reader, ReplyFlags, ReplyType, SimpleReplyHeader, StructuredReplyHeader, magic,
};
use crate::{Command, Error, Extent, LimitExceeded, PeerMisbehaved, RequestId};

/// A chunk whose header was found to fit its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) id: RequestId,
    reply: ReplyType,
    done: bool,
    pub(super) length: u64,
}

/// Where a block status chunk has got to.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusRun {
    context: u32,
    /// Extents that are still to come.
    remaining: u64,
    /// Where the next one begins, in the export.
    offset: u64,
}

/// The longest payload of an error chunk: the longest message, and room for fields that are not known yet.
const MAX_ERROR_PAYLOAD: u64 = 8 << 10;

/// Extents handed on at once.
const BATCH: usize = 512;

impl<C> Connection<C> {
    /// The first 16 bytes of a reply that has no extended header: a simple reply, or the most of a structured one.
    pub(super) fn compact_reply(&mut self, bytes: [u8; 16]) -> Result<Option<Event<C>>, Error> {
        if self.negotiation.structured
            && bytes.first_chunk() == Some(&magic::STRUCTURED_REPLY.to_be_bytes())
        {
            self.state = State::StructuredRest(bytes);
            return Ok(None);
        }
        let header = SimpleReplyHeader::decode(&bytes)?;
        self.simple_reply(&header)
    }

    /// The other four bytes of a structured reply's header.
    pub(super) fn structured_chunk(
        &mut self,
        head: [u8; 16],
        rest: [u8; 4],
    ) -> Result<Option<Event<C>>, Error> {
        let bytes = ArrayWriter::new().put(head).put(rest).done();
        let StructuredReplyHeader { flags, reply, cookie, length } =
            StructuredReplyHeader::decode(&bytes)?;
        let length = u64::from(length);
        self.chunk(&ExtendedReplyHeader { flags, reply, cookie, offset: 0, length })
    }

    /// The request that a reply is for. One that was answered is as unknown as one that never was (C-REP-STRUCT-07).
    fn find(&mut self, cookie: u64) -> Result<(RequestId, &mut Pending<C>), Error> {
        let id = RequestId::from_cookie(cookie);
        let found = id.and_then(|id| Some((id, self.in_flight.get_mut(id)?)));
        match found {
            Some((id, pending)) if !pending.answered => Ok((id, pending)),
            _ => Err(PeerMisbehaved::UnknownCookie(cookie).into()),
        }
    }

    fn simple_reply(&mut self, header: &SimpleReplyHeader) -> Result<Option<Event<C>>, Error> {
        let &SimpleReplyHeader { error, cookie } = header;
        let structured = self.negotiation.structured;
        let (id, pending) = self.find(cookie)?;
        let command = pending.command;
        // What has a payload must not be answered so, if there is another way (C-REP-STRUCT-08).
        if match command {
            Command::Read { .. } => structured,
            Command::BlockStatus { .. } => error == ErrorCode::OK,
            _ => false,
        } {
            return Err(PeerMisbehaved::SimpleReply(command.command_type()).into());
        }
        if error != ErrorCode::OK {
            pending.failure = Some(CommandError::new(error, alloc::string::String::new(), None));
            self.server_is_shutting_down |= error == ErrorCode::ESHUTDOWN;
        } else if let Command::Read { offset, length: 1.., .. } = command {
            let length = command.length();
            let end = offset.saturating_add(length);
            pending.coverage.add(offset, end).unwrap_or_default();
            let chunk = Chunk { id, reply: ReplyType::OFFSET_DATA, done: true, length };
            self.state = State::Payload { chunk, offset: 0, remaining: length };
            return Ok(None);
        }
        Ok(self.complete(id))
    }

    /// The header of a chunk. Whatever is wrong with it is fatal: there is no way to tell what else the server got wrong
    /// (section "Structured reply types").
    pub(super) fn chunk(
        &mut self,
        header: &ExtendedReplyHeader,
    ) -> Result<Option<Event<C>>, Error> {
        let &ExtendedReplyHeader { flags, reply, cookie, offset: found, length } = header;
        let extended = self.negotiation.extended;
        let most_extents = u64::from(self.config.limits.max_reply_extents);
        let (id, pending) = self.find(cookie)?;
        let command = pending.command;
        let sent = command.offset();
        if extended && found != sent {
            return Err(PeerMisbehaved::WrongReplyOffset { sent, found }.into());
        }
        let chunk = Chunk { id, reply, done: flags.contains(ReplyFlags::DONE), length };
        let bad_length = Err(DecodeError::BadValue("chunk length").into());
        let too_long = Err(LimitExceeded::Chunk { reply, length }.into());
        self.state = match (reply, command) {
            (ReplyType::NONE, _) if length != 0 => return bad_length,
            (ReplyType::NONE, _) if !chunk.done => return Err(PeerMisbehaved::NotFinal.into()),
            (ReplyType::NONE, _) => return Ok(self.complete(id)),
            (ReplyType::OFFSET_DATA, Command::Read { .. }) if length < 9 => return bad_length,
            (ReplyType::OFFSET_DATA, Command::Read { .. })
                if length.saturating_sub(8) > command.length() =>
            {
                return Err(PeerMisbehaved::ContentOutOfRange(sent).into());
            }
            (ReplyType::OFFSET_DATA, Command::Read { .. }) => State::DataOffset(chunk),
            (ReplyType::OFFSET_HOLE, Command::Read { .. }) if length != 12 => return bad_length,
            (ReplyType::OFFSET_HOLE, Command::Read { .. }) => State::Hole(chunk),
            (ReplyType::BLOCK_STATUS, Command::BlockStatus { .. }) if !extended => {
                match extents_in(length, 4, BlockStatusDescriptor::COMPACT_SIZE) {
                    Some(count) if count > most_extents => return too_long,
                    Some(_) => State::StatusHead(chunk),
                    None => return bad_length,
                }
            }
            (ReplyType::BLOCK_STATUS_EXT, Command::BlockStatus { .. }) if extended => {
                match extents_in(length, 8, BlockStatusDescriptor::EXTENDED_SIZE) {
                    Some(count) if count > most_extents => return too_long,
                    Some(_) => State::StatusHead(chunk),
                    None => return bad_length,
                }
            }
            _ if reply.is_error() && length > MAX_ERROR_PAYLOAD => return too_long,
            _ if reply.is_error() => {
                self.collected.clear();
                State::ErrorPayload(chunk)
            }
            _ => {
                let command = command.command_type();
                return Err(PeerMisbehaved::UnexpectedReply { command, reply }.into());
            }
        };
        Ok(None)
    }

    /// A chunk has arrived wholly; if it was the last one, so has the reply.
    pub(super) fn chunk_over(&mut self, chunk: Chunk) {
        self.state = if chunk.done { State::Complete(chunk.id) } else { State::ReplyHeader };
    }

    /// Takes account of content: inside the request, over nothing that came before, not in too many pieces
    /// (C-REP-STRUCT-04, C-REP-STRUCT-05). `true` if it can be trusted.
    fn content(&mut self, chunk: Chunk, start: u64, length: u64) -> Result<bool, Error> {
        let limit = self.config.limits.max_fragments;
        let Some(pending) = self.in_flight.get_mut(chunk.id) else { return Ok(false) };
        let (offset, whole) = (pending.command.offset(), pending.command.length());
        let end = start.checked_add(length).filter(|end| *end <= offset.saturating_add(whole));
        let Some(end) = end.filter(|_| start >= offset) else {
            return Err(PeerMisbehaved::ContentOutOfRange(start).into());
        };
        if matches!(pending.command, Command::Read { dont_fragment: true, .. })
            && !pending.coverage.is_empty()
        {
            return Err(PeerMisbehaved::Fragmented.into());
        }
        let next = pending.failures.partition_point(|at| *at < start);
        if pending.failures.get(next).is_some_and(|at| *at < end)
            || pending.coverage.add(start, end).is_err()
        {
            return Err(PeerMisbehaved::ContentOverlaps(start).into());
        }
        if pending.coverage.fragments() > limit as usize {
            return Err(LimitExceeded::Fragments(limit).into());
        }
        Ok(!pending.untrusted)
    }

    /// The offset of a data chunk has arrived; its data follows.
    pub(super) fn data(&mut self, chunk: Chunk, start: u64) -> Result<(), Error> {
        let remaining = chunk.length.saturating_sub(8);
        let trusted = self.content(chunk, start, remaining)?;
        self.state = if trusted {
            State::Payload { chunk, offset: self.place(chunk, start), remaining }
        } else {
            State::Discard { chunk, remaining }
        };
        Ok(())
    }

    /// A hole chunk has arrived.
    pub(super) fn hole(
        &mut self,
        chunk: Chunk,
        bytes: &[u8; 12],
    ) -> Result<Option<Event<C>>, Error> {
        let mut reader = Reader::new(bytes);
        let start = reader.u64("hole offset")?;
        let length = u64::from(reader.u32("hole size")?);
        if length == 0 {
            return Err(DecodeError::BadValue("hole size").into());
        }
        let trusted = self.content(chunk, start, length)?;
        let offset = self.place(chunk, start);
        self.chunk_over(chunk);
        Ok(trusted.then_some(Event::Hole { request: chunk.id, offset, length }))
    }

    /// A place in the export, counted from the request's own offset.
    fn place(&self, chunk: Chunk, start: u64) -> u64 {
        let offset = self.in_flight.get(chunk.id).map_or(0, |pending| pending.command.offset());
        start.saturating_sub(offset)
    }

    /// What comes before a block status chunk's extents: the context, and in extended form their number (C-EH-20).
    pub(super) fn status_head(&mut self, chunk: Chunk, head: &[u8]) -> Result<(), Error> {
        let mut reader = Reader::new(head);
        let context = reader.u32("context id")?;
        let (fixed, each) = if self.negotiation.extended {
            (8, BlockStatusDescriptor::EXTENDED_SIZE)
        } else {
            (4, BlockStatusDescriptor::COMPACT_SIZE)
        };
        let count = extents_in(chunk.length, fixed, each).unwrap_or(0);
        if self.negotiation.extended && u64::from(reader.u32("descriptor count")?) != count {
            return Err(DecodeError::BadValue("descriptor count").into());
        }
        let Some(pending) = self.in_flight.get_mut(chunk.id) else { return Ok(()) };
        let place = pending.awaited.iter().position(|awaited| *awaited == context);
        let place = place.ok_or(PeerMisbehaved::UnexpectedContext(context))?;
        pending.awaited.swap_remove(place);
        if matches!(pending.command, Command::BlockStatus { one: true, .. }) && count > 1 {
            return Err(PeerMisbehaved::MoreThanOneExtent.into());
        }
        let run = StatusRun { context, remaining: count, offset: pending.command.offset() };
        self.state = State::Extents(chunk, run);
        Ok(())
    }

    /// One extent has arrived (C-CMD-BS-13, C-CMD-BS-14).
    pub(super) fn extent(
        &mut self,
        chunk: Chunk,
        mut run: StatusRun,
        extent: BlockStatusDescriptor,
    ) -> Result<Option<Event<C>>, Error> {
        let BlockStatusDescriptor { length, status } = extent;
        if let Some(pending) = self.in_flight.get(chunk.id)
            && let Command::BlockStatus { length: asked, one: true, .. } = pending.command
            && length > asked
        {
            return Err(PeerMisbehaved::MoreThanOneExtent.into());
        }
        let end = run.offset.checked_add(length);
        run.offset = end.ok_or(DecodeError::BadValue("extent length"))?;
        run.remaining = run.remaining.saturating_sub(1);
        self.batch.push(Extent { length, status });
        if run.remaining == 0 {
            self.chunk_over(chunk);
        } else {
            self.state = State::Extents(chunk, run);
            if self.batch.len() < BATCH {
                return Ok(None);
            }
        }
        let extents = core::mem::take(&mut self.batch);
        Ok(Some(Event::Extents { request: chunk.id, context: run.context, extents }))
    }

    /// An error chunk has arrived, its payload in `collected`. One of an unknown type, or with a place though the
    /// command has none, is as good as one without a place (C-REP-STRUCT-02).
    pub(super) fn error_chunk(&mut self, chunk: Chunk) -> Result<Option<Event<C>>, Error> {
        let limit = self.config.limits.max_fragments;
        let ErrorChunk { error: code, message, offset } =
            ErrorChunk::decode(chunk.reply, &self.collected)?;
        let text = displayable(message);
        self.server_is_shutting_down |= code == ErrorCode::ESHUTDOWN;
        self.chunk_over(chunk);
        let Some(pending) = self.in_flight.get_mut(chunk.id) else { return Ok(None) };
        pending.errors = pending.errors.saturating_add(1);
        if pending.errors > limit {
            return Err(LimitExceeded::Fragments(limit).into());
        }
        let command = pending.command;
        let offset = offset.filter(|_| !matches!(command, Command::Flush | Command::Resize { .. }));
        let error = CommandError::new(code, text, offset);
        let Some(at) = offset else {
            if !pending.untrusted {
                pending.failure = Some(error);
            }
            pending.untrusted = true;
            return Ok(None);
        };
        if !(command.offset()..command.offset().saturating_add(command.length())).contains(&at) {
            return Err(PeerMisbehaved::ErrorOutOfRange(at).into());
        }
        let place = pending.failures.partition_point(|earlier| *earlier < at);
        pending.failures.insert(place, at);
        if pending.failure.is_none() {
            pending.failure = Some(error.clone());
        }
        Ok(Some(Event::ErrorAt { request: chunk.id, error }))
    }
}

/// How many extents of `each` bytes follow `fixed` bytes in a payload of `length`; `None` unless that is a whole number
/// above zero.
fn extents_in(length: u64, fixed: u64, each: usize) -> Option<u64> {
    let (rest, each) = (length.checked_sub(fixed)?, each as u64);
    (rest > 0 && rest.is_multiple_of(each)).then(|| rest.checked_div(each))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_chunk_holds_a_whole_number_of_extents() {
        assert_eq!(extents_in(12, 4, 8), Some(1));
        assert_eq!(extents_in(8 + 160, 8, 16), Some(10));
        for length in [0, 3, 4, 8, 11, 13] {
            assert_eq!(extents_in(length, 4, 8), None, "{length}");
        }
    }
}
