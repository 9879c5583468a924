//! Replies: one builder that knows simple, structured and extended ones, so that its caller need not.

use super::Connection;
use super::option_reply::displayable;
use super::transmission::Phase;
use crate::outbound::Tail;
use crate::wire::{
    BlockStatusDescriptor, ErrorChunk, ErrorCode, ExtendedReplyHeader, ReplyFlags, ReplyType,
    SimpleReplyHeader, StructuredReplyHeader,
};
use crate::{Command, Extent, Misuse, RequestId};

/// A run of a read's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    start: u64,
    end: u64,
    hole: bool,
}

impl Content {
    const fn length(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Builds the reply to one request, by [`Connection::reply`].
///
/// Commands without content are answered by [`done`](Self::done); a read by [`data`](Self::data) and
/// [`hole`](Self::hole) in any order until all of it is told, then [`finish`](Self::finish); a block status by
/// [`extents`](Self::extents) for each awaited context, then [`finish`](Self::finish); and any of them by
/// [`error`](Self::error). Dropping the builder before that keeps what was given: get it again to go on.
///
/// Nothing that would be a lie on the wire is accepted: content that overlaps or lies outside of the request, a read
/// that is finished with a gap. Such a [`Misuse`] changes nothing.
#[derive(Debug)]
#[must_use = "a request that is not answered stays in flight"]
pub struct Reply<'a> {
    connection: &'a mut Connection,
    id: RequestId,
    command: Command,
    /// A chunk that this builder queued last, which can still become the final one.
    last_chunk: Option<Chunk>,
}

/// A queued chunk's header: where it stands, and what it says.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    position: usize,
    reply: ReplyType,
    length: u64,
}

impl Connection {
    /// Starts or continues the reply to a request.
    ///
    /// # Errors
    /// [`Misuse::NoSuchRequest`] when it is not in flight or was answered, [`Misuse::PayloadPending`] when its payload
    /// has not wholly arrived.
    #[inline]
    pub fn reply(&mut self, id: RequestId) -> Result<Reply<'_>, Misuse> {
        let pending = self.in_flight.get(id).ok_or(Misuse::NoSuchRequest)?;
        match (pending.phase, pending.command) {
            (Phase::Open, Some(command)) => {
                Ok(Reply { connection: self, id, command, last_chunk: None })
            }
            (Phase::Receiving, Some(_)) => Err(Misuse::PayloadPending),
            _ => Err(Misuse::NoSuchRequest),
        }
    }

    const fn chunked(&self) -> bool {
        self.negotiation.structured || self.negotiation.extended
    }

    /// Puts the header of a structured or extended chunk.
    fn put_chunk(
        &mut self,
        id: RequestId,
        reply: ReplyType,
        flags: ReplyFlags,
        length: u64,
    ) -> Chunk {
        let position = self.out.position();
        if let Some(pending) = self.in_flight.get(id) {
            let (cookie, offset) = (pending.cookie, pending.offset);
            if self.negotiation.extended {
                let header = ExtendedReplyHeader { flags, reply, cookie, offset, length };
                self.out.put(&header.encode());
            } else {
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                self.out.put(&StructuredReplyHeader { flags, reply, cookie, length }.encode());
            }
        }
        Chunk { position, reply, length }
    }

    /// Rewrites the header of a chunk that was put since the last transmission.
    fn patch_chunk(&mut self, id: RequestId, chunk: Chunk, flags: ReplyFlags) {
        let Some(pending) = self.in_flight.get(id) else { return };
        let (cookie, offset) = (pending.cookie, pending.offset);
        let Chunk { position, reply, length } = chunk;
        if self.negotiation.extended {
            let header = ExtendedReplyHeader { flags, reply, cookie, offset, length };
            self.out.patch(position, header.encode());
        } else {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            let header = StructuredReplyHeader { flags, reply, cookie, length };
            self.out.patch(position, header.encode());
        }
    }

    fn put_simple(&mut self, id: RequestId, error: ErrorCode) {
        if let Some(pending) = self.in_flight.get(id) {
            let cookie = pending.cookie;
            self.out.put(&SimpleReplyHeader { error, cookie }.encode());
        }
    }

    /// Queues success without content. With structured replies a simple one is allowed and shorter, but not for a read
    /// (S-REP-SIMPLE-02).
    pub(super) fn succeed(&mut self, id: RequestId) {
        let read = self.in_flight.get(id).is_some_and(|pending| {
            matches!(pending.command, Some(Command::Read { .. } | Command::BlockStatus { .. }))
        });
        if self.negotiation.extended || (self.negotiation.structured && read) {
            self.put_chunk(id, ReplyType::NONE, ReplyFlags::DONE, 0);
        } else {
            self.put_simple(id, ErrorCode::OK);
        }
        self.out.seal(Tail::None, Some(id));
        self.answered(id);
    }

    /// Queues an error as the last thing said of a request.
    pub(super) fn queue_error(
        &mut self,
        id: RequestId,
        error: ErrorCode,
        text: &str,
        offset: Option<u64>,
    ) {
        if self.chunked() {
            self.put_error_chunk(id, error, text, offset, ReplyFlags::DONE);
        } else {
            self.put_simple(id, error);
        }
        self.out.seal(Tail::None, Some(id));
        self.answered(id);
    }

    fn put_error_chunk(
        &mut self,
        id: RequestId,
        error: ErrorCode,
        text: &str,
        offset: Option<u64>,
        flags: ReplyFlags,
    ) {
        let message = displayable(text).as_bytes();
        let reply = if offset.is_some() { ReplyType::ERROR_OFFSET } else { ReplyType::ERROR };
        let fixed = if offset.is_some() { 14_usize } else { 6 };
        self.put_chunk(id, reply, flags, fixed.saturating_add(message.len()) as u64);
        self.out.put_with(|out| ErrorChunk { error, message, offset }.encode(out));
    }

    fn answered(&mut self, id: RequestId) {
        if let Some(pending) = self.in_flight.get_mut(id) {
            pending.phase = Phase::Answered;
        }
    }
}

impl Reply<'_> {
    /// The request was carried out. For commands without content: everything but read and block status.
    ///
    /// # Errors
    /// [`Misuse::WrongAnswer`] for a read or block status, or when a part of the request was reported as failed, after
    /// which there is only [`finish`](Self::finish).
    #[inline]
    pub fn done(self) -> Result<(), Misuse> {
        let pending = self.connection.in_flight.get(self.id).ok_or(Misuse::NoSuchRequest)?;
        if matches!(self.command, Command::Read { .. } | Command::BlockStatus { .. })
            || !pending.failures.is_empty()
        {
            return Err(Misuse::WrongAnswer);
        }
        self.connection.succeed(self.id);
        Ok(())
    }

    /// The request failed. Clients see `text` where the protocol has room for it. An error value that the specification
    /// does not allow here is replaced by one that it does (S-ERR-01 to S-ERR-05).
    pub fn error(self, code: ErrorCode, text: &str) {
        let code = self.allowed(code);
        self.connection.queue_error(self.id, code, text, None);
    }

    /// A part of the request failed at `offset` in the export. To be followed by more content, or
    /// [`finish`](Self::finish). Where the protocol can't tell offsets the whole request will fail.
    ///
    /// # Errors
    /// [`Misuse::BadContent`] when the offset lies outside of the request or was reported before;
    /// [`Misuse::WrongAnswer`] for flushes and resizes.
    pub fn error_at(&mut self, code: ErrorCode, offset: u64, text: &str) -> Result<(), Misuse> {
        if matches!(self.command, Command::Flush | Command::Resize { .. }) {
            return Err(Misuse::WrongAnswer);
        }
        let (start, length) = (self.command.offset(), self.command.length());
        let code = self.allowed(code);
        let pending = self.connection.in_flight.get_mut(self.id).ok_or(Misuse::NoSuchRequest)?;
        let inside = offset >= start && offset < start.saturating_add(length);
        if !inside || pending.failures.iter().any(|(earlier, _)| *earlier == offset) {
            return Err(Misuse::BadContent);
        }
        pending.failures.push((offset, code));
        if self.streams() {
            let none = ReplyFlags::empty();
            self.connection.put_error_chunk(self.id, code, text, Some(offset), none);
            self.connection.out.seal(Tail::None, None);
            self.last_chunk = None;
        }
        Ok(())
    }

    /// `length` bytes at `offset` in the export are data, which you hold: [`Segment::Body`](crate::Segment::Body)
    /// will ask for them.
    ///
    /// # Errors
    /// [`Misuse::WrongAnswer`] unless the command is a read; [`Misuse::BadContent`] when the range is empty, overlaps
    /// earlier content, covers a reported error, or lies outside of the request.
    #[inline]
    pub fn data(&mut self, offset: u64, length: u32) -> Result<(), Misuse> {
        let content = self.content(offset, length, false)?;
        if self.streams() {
            self.put_content(content);
        }
        Ok(())
    }

    /// `length` bytes at `offset` in the export are zeroes. They are sent as a hole where the client agreed to that, as
    /// zeroes otherwise; you need not hold them.
    ///
    /// # Errors
    /// As for [`data`](Self::data).
    pub fn hole(&mut self, offset: u64, length: u32) -> Result<(), Misuse> {
        let content = self.content(offset, length, true)?;
        if self.streams() {
            self.put_content(content);
        }
        Ok(())
    }

    /// The extents of one awaited metadata context, from the request's offset on. Neighbours with the same status are
    /// joined; what exceeds the request, the limits or what the reply can express is left out.
    ///
    /// # Errors
    /// [`Misuse::WrongAnswer`] unless the command is a block status; [`Misuse::NoSuchContext`] when the context is not
    /// awaited; [`Misuse::Incomplete`] when there is no extent of any length.
    pub fn extents(
        &mut self,
        context: u32,
        extents: impl IntoIterator<Item = Extent>,
    ) -> Result<(), Misuse> {
        let Command::BlockStatus { offset, length, one } = self.command else {
            return Err(Misuse::WrongAnswer);
        };
        let connection = &mut *self.connection;
        let export = connection.export.as_ref().ok_or(Misuse::WrongPhase)?;
        let selected = export.contexts.iter().find(|selected| selected.id == context);
        let wide = selected.ok_or(Misuse::NoSuchContext)?.wide;
        let pending = connection.in_flight.get_mut(self.id).ok_or(Misuse::NoSuchRequest)?;
        let place = pending.awaited.iter().position(|awaited| *awaited == context);
        let place = place.ok_or(Misuse::NoSuchContext)?;

        let extended = connection.negotiation.extended;
        // A descriptor has 8 or 16 bytes, and all of them together must not exceed the maximum payload.
        let payload_bound =
            export.rules.block_size.maximum_payload() >> if extended { 4 } else { 3 };
        let most = connection.config.limits.max_extents.min(payload_bound).clamp(1, 1 << 20);
        let joined = Joined {
            extents: extents.into_iter(),
            next: None,
            rest: if one { length } else { export.rules.size.saturating_sub(offset) },
            wanted: length,
            longest: if extended { u64::MAX } else { u64::from(u32::MAX - 0xffff) },
            status_mask: if extended && wide { u64::MAX } else { u64::from(u32::MAX) },
        };
        let mut joined = joined.take(if one { 1 } else { most as usize });
        let first = joined.next().ok_or(Misuse::Incomplete)?;

        pending.awaited.swap_remove(place);
        let reply = if extended { ReplyType::BLOCK_STATUS_EXT } else { ReplyType::BLOCK_STATUS };
        let chunk = connection.put_chunk(self.id, reply, ReplyFlags::empty(), 0);
        let payload_at = connection.out.position();
        connection.out.put(&context.to_be_bytes());
        let count_at = connection.out.position();
        if extended {
            connection.out.put(&[0; 4]);
        }
        let mut count = 0_u32;
        connection.out.put_with(|out| {
            for extent in core::iter::once(first).chain(joined) {
                let descriptor =
                    BlockStatusDescriptor { length: extent.length, status: extent.status };
                descriptor.encode(extended, out);
                count = count.saturating_add(1);
            }
        });
        if extended {
            connection.out.patch(count_at, count.to_be_bytes());
        }
        let length = connection.out.position().saturating_sub(payload_at) as u64;
        let chunk = Chunk { length, ..chunk };
        connection.patch_chunk(self.id, chunk, ReplyFlags::empty());
        connection.out.seal(Tail::None, None);
        self.last_chunk = Some(chunk);
        Ok(())
    }

    /// All of a read's content, or all awaited extents, have been given; or all parts of the request that failed were
    /// [reported](Self::error_at).
    ///
    /// # Errors
    /// [`Misuse::Incomplete`] when something is missing and no error was reported; [`Misuse::WrongAnswer`] for a
    /// command without content of which no part failed. Nothing has changed then: get the builder again.
    #[inline]
    pub fn finish(mut self) -> Result<(), Misuse> {
        let pending = self.connection.in_flight.get(self.id).ok_or(Misuse::NoSuchRequest)?;
        let complete = match self.command {
            Command::Read { offset, length, .. } => {
                pending.coverage.is_exactly(offset, offset.saturating_add(length))
            }
            Command::BlockStatus { .. } => pending.awaited.is_empty(),
            _ if pending.failures.is_empty() => return Err(Misuse::WrongAnswer),
            _ => false,
        };
        let failure = pending.failures.first().copied();
        if failure.is_none() && !complete {
            return Err(Misuse::Incomplete);
        }
        if !self.streams() {
            match failure {
                Some((_, code)) => self.connection.queue_error(self.id, code, "", None),
                None => self.put_deferred(),
            }
        } else if let Some(chunk) = self.last_chunk.take() {
            // The last chunk is still unsent, so that it can say itself that it is the last one.
            self.connection.patch_chunk(self.id, chunk, ReplyFlags::DONE);
            self.connection.out.finish_last(self.id);
        } else {
            self.connection.put_chunk(self.id, ReplyType::NONE, ReplyFlags::DONE, 0);
            self.connection.out.seal(Tail::None, Some(self.id));
        }
        self.connection.answered(self.id);
        Ok(())
    }

    /// Whether content can be queued as it is given, in chunks. A simple reply and a read with DF go out at the end.
    fn streams(&self) -> bool {
        self.connection.chunked()
            && !matches!(self.command, Command::Read { dont_fragment: true, .. })
    }

    /// Checks and records content.
    fn content(&mut self, start: u64, length: u32, hole: bool) -> Result<Content, Misuse> {
        let Command::Read { offset, length: whole, .. } = self.command else {
            return Err(Misuse::WrongAnswer);
        };
        let streams = self.streams();
        let end = start.checked_add(u64::from(length)).ok_or(Misuse::BadContent)?;
        if start < offset || end > offset.saturating_add(whole) {
            return Err(Misuse::BadContent);
        }
        let pending = self.connection.in_flight.get_mut(self.id).ok_or(Misuse::NoSuchRequest)?;
        if pending.failures.iter().any(|(at, _)| (start..end).contains(at)) {
            return Err(Misuse::BadContent);
        }
        pending.coverage.add(start, end)?;
        let content = Content { start, end, hole };
        if !streams {
            pending.deferred.push(content);
        }
        Ok(content)
    }

    fn tail(&self, content: Content) -> Tail {
        let length = usize::try_from(content.length()).unwrap_or(0);
        if content.hole {
            return Tail::Zeroes(length);
        }
        let offset = content.start.saturating_sub(self.command.offset());
        Tail::Body { id: self.id, offset, length }
    }

    /// Queues a content chunk.
    fn put_content(&mut self, content: Content) {
        let none = ReplyFlags::empty();
        let chunk = if content.hole {
            let chunk = self.connection.put_chunk(self.id, ReplyType::OFFSET_HOLE, none, 12);
            self.connection.out.put(&content.start.to_be_bytes());
            let length = u32::try_from(content.length()).unwrap_or(u32::MAX);
            self.connection.out.put(&length.to_be_bytes());
            self.connection.out.seal(Tail::None, None);
            chunk
        } else {
            let length = content.length().saturating_add(8);
            let chunk = self.connection.put_chunk(self.id, ReplyType::OFFSET_DATA, none, length);
            self.connection.out.put(&content.start.to_be_bytes());
            let tail = self.tail(content);
            self.connection.out.seal(tail, None);
            chunk
        };
        self.last_chunk = Some(chunk);
    }

    /// Queues a whole read in one piece: as a simple reply, or as the one content chunk that DF allows.
    fn put_deferred(&mut self) {
        let Some(pending) = self.connection.in_flight.get_mut(self.id) else { return };
        let mut deferred = core::mem::take(&mut pending.deferred);
        deferred.sort_unstable_by_key(|content| content.start);
        if self.connection.chunked() {
            let (start, length) = (self.command.offset(), self.command.length());
            if deferred.iter().all(|content| content.hole) {
                self.put_content(Content { start, end: start.saturating_add(length), hole: true });
                deferred.clear();
            } else {
                let (data, flags) = (ReplyType::OFFSET_DATA, ReplyFlags::empty());
                let chunk =
                    self.connection.put_chunk(self.id, data, flags, length.saturating_add(8));
                self.connection.out.put(&start.to_be_bytes());
                self.last_chunk = Some(chunk);
            }
            if let Some(chunk) = self.last_chunk.take() {
                self.connection.patch_chunk(self.id, chunk, ReplyFlags::DONE);
            }
        } else {
            self.connection.put_simple(self.id, ErrorCode::OK);
        }
        for content in &deferred {
            let tail = self.tail(*content);
            self.connection.out.seal(tail, None);
        }
        self.connection.out.finish_last(self.id);
        if let Some(pending) = self.connection.in_flight.get_mut(self.id) {
            deferred.clear();
            pending.deferred = deferred;
        }
    }

    /// The nearest error value that the specification allows for the command (section "Error values").
    fn allowed(&self, code: ErrorCode) -> ErrorCode {
        let fast_zero = matches!(self.command, Command::WriteZeroes { fast: true, .. });
        match code {
            ErrorCode::EPERM | ErrorCode::EIO | ErrorCode::ENOMEM | ErrorCode::EINVAL => code,
            ErrorCode::ENOSPC if self.command.is_write() => code,
            ErrorCode::ENOTSUP if fast_zero => code,
            ErrorCode::ENOTSUP => ErrorCode::EINVAL,
            ErrorCode::EOVERFLOW if matches!(self.command, Command::Write { .. }) || fast_zero => {
                ErrorCode::EINVAL
            }
            ErrorCode::EOVERFLOW => code,
            ErrorCode::ESHUTDOWN if self.connection.shutting_down => code,
            _ => ErrorCode::EIO,
        }
    }
}

/// Joins neighbours of the same status and cuts what a block status chunk must not hold: lengths of zero, anything past
/// `rest`, extents that begin after `wanted` bytes (S-CMD-BS-02 to S-CMD-BS-06).
struct Joined<I> {
    extents: I,
    next: Option<Extent>,
    rest: u64,
    wanted: u64,
    longest: u64,
    status_mask: u64,
}

impl<I: Iterator<Item = Extent>> Iterator for Joined<I> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        if self.wanted == 0 || self.rest == 0 {
            return None;
        }
        let mut run = self.next.take();
        for extent in self.extents.by_ref().filter(|extent| extent.length > 0) {
            let status = extent.status & self.status_mask;
            match &mut run {
                None => run = Some(Extent { status, ..extent }),
                Some(run) if run.status == status => {
                    run.length = run.length.saturating_add(extent.length);
                }
                Some(_) => {
                    self.next = Some(Extent { status, ..extent });
                    break;
                }
            }
            // Nothing past this run can count: don't make the export walk on.
            if run.is_some_and(|run| run.length >= self.wanted.min(self.rest)) {
                break;
            }
        }
        let mut run = run?;
        run.length = run.length.min(self.rest);
        if run.length > self.longest {
            // The rest can't be told in this chunk: the client asks again.
            run.length = self.longest;
            self.wanted = 0;
        }
        self.rest = self.rest.saturating_sub(run.length);
        self.wanted = self.wanted.saturating_sub(run.length);
        Some(run)
    }
}
