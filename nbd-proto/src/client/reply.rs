//! Replies: simple, structured and extended ones, up to what becomes of their content (sections "Simple reply message",
//! "Structured reply chunk message" and "Extended reply chunk message"). Functions give what comes next.

use alloc::string::String;

use super::event::displayable;
use super::pending::Pending;
use super::status;
use super::transmission::{Cursor, Transmission};
use super::{CommandError, Event};
use crate::wire::{
    ArrayWriter, DecodeError, ErrorChunk, ErrorCode, ExtendedReplyHeader, Reader, ReplyFlags,
    ReplyType, SimpleReplyHeader, StructuredReplyHeader, magic,
};
use crate::{Command, Error, LimitExceeded, Limits, PeerMisbehaved, RequestId};

/// A chunk whose header was found to fit its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) id: RequestId,
    reply: ReplyType,
    done: bool,
    /// The length of its payload.
    length: u64,
}

impl Chunk {
    /// What comes after it.
    pub(super) const fn after(self) -> Cursor {
        if self.done { Cursor::Complete(self.id) } else { Cursor::Header }
    }

    /// The length of a payload that is collected, which was compared with a bound before.
    pub(super) fn length_in_memory(self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }
}

/// The longest payload of an error chunk: the longest message, and room for fields that are not known yet.
const MAX_ERROR_PAYLOAD: u64 = 8 << 10;

impl Transmission {
    /// The first 16 bytes of a reply that has no extended header: a simple reply, or the front of a structured one.
    #[inline]
    pub(super) fn compact_reply(&mut self, bytes: [u8; 16]) -> Result<Cursor, Error> {
        if self.agreed.structured
            && bytes.first_chunk() == Some(&magic::STRUCTURED_REPLY.to_be_bytes())
        {
            return Ok(Cursor::StructuredRest(bytes));
        }
        let header = SimpleReplyHeader::decode(&bytes)?;
        self.simple_reply(&header)
    }

    /// The other four bytes of a structured reply's header.
    #[inline]
    pub(super) fn structured_chunk(
        &mut self,
        limits: &Limits,
        head: [u8; 16],
        rest: [u8; 4],
    ) -> Result<Cursor, Error> {
        let bytes = ArrayWriter::new().put(head).put(rest).done();
        let StructuredReplyHeader { flags, reply, cookie, length } =
            StructuredReplyHeader::decode(&bytes)?;
        let length = u64::from(length);
        self.chunk(limits, &ExtendedReplyHeader { flags, reply, cookie, offset: 0, length })
    }

    /// The request that a reply is for. One that was answered is as unknown as one that never was.
    // (C-REP-STRUCT-07)
    fn find(&mut self, cookie: u64) -> Result<(RequestId, &mut Pending), Error> {
        let id = RequestId::from_cookie(cookie);
        let found = id.and_then(|id| Some((id, self.in_flight.get_mut(id)?)));
        match found {
            Some((id, pending)) if pending.answer.is_none() => Ok((id, pending)),
            _ => Err(PeerMisbehaved::UnknownCookie(cookie).into()),
        }
    }

    fn simple_reply(&mut self, header: &SimpleReplyHeader) -> Result<Cursor, Error> {
        let &SimpleReplyHeader { error, cookie } = header;
        let structured = self.agreed.structured;
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
            pending.failure = Some(CommandError::new(error, String::new(), None));
            self.server_is_shutting_down |= error == ErrorCode::ESHUTDOWN;
            return Ok(Cursor::Complete(id));
        }
        let Command::Read { length: length @ 1.., .. } = command else {
            return Ok(Cursor::Complete(id));
        };
        // Nothing came before: chunks are not spoken here.
        let twice = Error::Internal("a read was answered twice");
        pending.coverage.add(0, length).map_err(|_| twice)?;
        let chunk = Chunk { id, reply: ReplyType::OFFSET_DATA, done: true, length };
        Ok(Cursor::Data { chunk, offset: 0, remaining: length })
    }

    /// The header of a chunk. Whatever is wrong with it is fatal: there is no way to tell what else the server got
    /// wrong (section "Structured reply types").
    pub(super) fn chunk(
        &mut self,
        limits: &Limits,
        header: &ExtendedReplyHeader,
    ) -> Result<Cursor, Error> {
        let &ExtendedReplyHeader { flags, reply, cookie, offset: found, length } = header;
        let extended = self.agreed.extended;
        let max_extents = u64::from(limits.max_reply_extents);
        let (id, pending) = self.find(cookie)?;
        let command = pending.command;
        let sent = command.offset();
        // C-EH-17.
        if extended && found != sent {
            return Err(PeerMisbehaved::WrongReplyOffset { sent, found }.into());
        }
        let chunk = Chunk { id, reply, done: flags.contains(ReplyFlags::DONE), length };
        let bad_length = Err(DecodeError::BadValue("chunk length").into());
        let too_long = Err(LimitExceeded::Chunk { reply, length }.into());
        Ok(match (reply, command) {
            (ReplyType::NONE, _) if length != 0 => return bad_length,
            (ReplyType::NONE, _) if !chunk.done => return Err(PeerMisbehaved::NotFinal.into()),
            (ReplyType::NONE, _) => chunk.after(),
            (ReplyType::OFFSET_DATA, Command::Read { length: asked, .. }) => {
                match length.checked_sub(8) {
                    None | Some(0) => return bad_length,
                    Some(data) if data > asked => {
                        return Err(PeerMisbehaved::ContentOutOfRange(sent).into());
                    }
                    Some(_) => Cursor::DataOffset(chunk),
                }
            }
            (ReplyType::OFFSET_HOLE, Command::Read { .. }) if length != 12 => return bad_length,
            (ReplyType::OFFSET_HOLE, Command::Read { .. }) => Cursor::Hole(chunk),
            (ReplyType::BLOCK_STATUS, Command::BlockStatus { .. }) if !extended => {
                match status::extents_in(length, extended) {
                    Some(count) if count > max_extents => return too_long,
                    Some(count) => Cursor::StatusHead(chunk, count),
                    None => return bad_length,
                }
            }
            (ReplyType::BLOCK_STATUS_EXT, Command::BlockStatus { .. }) if extended => {
                match status::extents_in(length, extended) {
                    Some(count) if count > max_extents => return too_long,
                    Some(count) => Cursor::StatusHead(chunk, count),
                    None => return bad_length,
                }
            }
            _ if reply.is_error() && length > MAX_ERROR_PAYLOAD => return too_long,
            _ if reply.is_error() => {
                self.collected.clear();
                Cursor::ErrorPayload(chunk)
            }
            _ => {
                let command = command.command_type();
                return Err(PeerMisbehaved::UnexpectedReply { command, reply }.into());
            }
        })
    }

    /// Takes account of content: inside the request, over nothing that came before, not in too many pieces. Gives where
    /// it starts, counted from the request's own offset, and whether it can be trusted.
    // (C-REP-STRUCT-04, C-REP-STRUCT-05)
    fn content(
        &mut self,
        limits: &Limits,
        chunk: Chunk,
        start: u64,
        length: u64,
    ) -> Result<(u64, bool), Error> {
        let limit = limits.max_fragments;
        let pending = self.pending(chunk.id)?;
        let range = pending.range(start, length);
        let (from, end) = range.ok_or(PeerMisbehaved::ContentOutOfRange(start))?;
        if matches!(pending.command, Command::Read { dont_fragment: true, .. })
            && !pending.coverage.is_empty()
        {
            return Err(PeerMisbehaved::Fragmented.into());
        }
        let next = pending.failures.partition_point(|failure| *failure < from);
        if pending.failures.get(next).is_some_and(|failure| *failure < end)
            || pending.coverage.add(from, end).is_err()
        {
            return Err(PeerMisbehaved::ContentOverlaps(start).into());
        }
        if pending.coverage.fragments() > limit as usize {
            return Err(LimitExceeded::Fragments(limit).into());
        }
        Ok((from, !pending.untrusted))
    }

    /// The offset of a data chunk has arrived; its data follows.
    #[inline]
    pub(super) fn data(
        &mut self,
        limits: &Limits,
        chunk: Chunk,
        start: u64,
    ) -> Result<Cursor, Error> {
        let short = Error::Internal("a data chunk is shorter than its offset");
        let remaining = chunk.length.checked_sub(8).ok_or(short)?;
        let (offset, trusted) = self.content(limits, chunk, start, remaining)?;
        Ok(match trusted {
            true => Cursor::Data { chunk, offset, remaining },
            false => Cursor::Drop { chunk, remaining },
        })
    }

    /// A hole chunk has arrived.
    pub(super) fn hole(
        &mut self,
        limits: &Limits,
        chunk: Chunk,
        bytes: &[u8; 12],
    ) -> Result<(Cursor, Option<Event>), Error> {
        let mut reader = Reader::new(bytes);
        let start = reader.u64("hole offset")?;
        let length = u64::from(reader.u32("hole size")?);
        if length == 0 {
            return Err(DecodeError::BadValue("hole size").into());
        }
        let (offset, trusted) = self.content(limits, chunk, start, length)?;
        let event = Event::Hole { id: chunk.id, offset, length };
        Ok((chunk.after(), trusted.then_some(event)))
    }

    /// An error chunk has arrived, its payload in `collected`. One of an unknown type, or with an offset though the
    /// command has none, is as good as one without an offset.
    // (C-REP-STRUCT-02)
    pub(super) fn error_chunk(
        &mut self,
        limits: &Limits,
        chunk: Chunk,
    ) -> Result<CommandError, Error> {
        let limit = limits.max_fragments;
        let ErrorChunk { error: code, message, offset } =
            ErrorChunk::decode(chunk.reply, &self.collected)?;
        let message = displayable(message);
        self.server_is_shutting_down |= code == ErrorCode::ESHUTDOWN;
        let pending = self.pending(chunk.id)?;
        match pending.errors.checked_add(1).filter(|errors| *errors <= limit) {
            Some(errors) => pending.errors = errors,
            None => return Err(LimitExceeded::Fragments(limit).into()),
        }
        let offset = offset.filter(|_| pending.command.has_range());
        let error = CommandError::new(code, message, offset);
        let Some(offset) = offset else {
            if !pending.untrusted {
                pending.failure = Some(error.clone());
            }
            pending.untrusted = true;
            return Ok(error);
        };
        let range = pending.range(offset, 1);
        let (failure, _) = range.ok_or(PeerMisbehaved::ErrorOutOfRange(offset))?;
        let index = pending.failures.partition_point(|earlier| *earlier < failure);
        pending.failures.insert(index, failure);
        if pending.failure.is_none() {
            pending.failure = Some(error.clone());
        }
        Ok(error)
    }
}
