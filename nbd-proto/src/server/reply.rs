//! Replies: one builder that knows simple, structured and extended ones, so that its caller need not.

use super::contexts::AwaitedContexts;
use super::option_reply::displayable;
use super::pending::{Pending, Progress};
use super::status::{StatusExtents, StatusQuery};
use super::transmission::{Entered, MAX_EXTENTS};
use crate::outbound::{Outbound, Tail};
use crate::wire::{
    BlockStatusDescriptor, ErrorChunk, ErrorCode, ExtendedReplyHeader, ReplyFlags, ReplyType,
    SimpleReplyHeader, StructuredReplyHeader,
};
use crate::{Command, Extent, Misuse, RequestId};

/// How replies look on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Simple,
    Structured,
    Extended,
}

impl Style {
    pub(super) const fn new(structured: bool, extended: bool) -> Self {
        match (structured, extended) {
            (_, true) => Self::Extended,
            (true, false) => Self::Structured,
            (false, false) => Self::Simple,
        }
    }
}

/// A run of a read's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Content {
    /// From the request's own offset on.
    start: u32,
    length: u32,
    hole: bool,
}

/// A queued chunk's header: where it stands, and what it says.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    position: usize,
    reply: ReplyType,
    length: u32,
}

/// What is needed to queue something about a request.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) id: RequestId,
    pub(super) pending: &'a mut Pending,
    pub(super) out: &'a mut Outbound,
    pub(super) style: Style,
}

impl Answer<'_> {
    /// Puts the header of a structured or extended chunk.
    #[inline]
    fn put_chunk(&mut self, reply: ReplyType, flags: ReplyFlags, length: u32) -> Chunk {
        let position = self.out.position();
        let (cookie, offset) = (self.pending.cookie, self.pending.offset);
        if self.style == Style::Extended {
            let length = length.into();
            let header = ExtendedReplyHeader { flags, reply, cookie, offset, length };
            self.out.put(&header.encode());
        } else {
            self.out.put(&StructuredReplyHeader { flags, reply, cookie, length }.encode());
        }
        Chunk { position, reply, length }
    }

    /// Makes the last chunk of a chunk that was put since the last transmission.
    #[inline]
    fn mark_done(&mut self, chunk: Chunk) {
        let (cookie, offset) = (self.pending.cookie, self.pending.offset);
        let Chunk { position, reply, length } = chunk;
        let flags = ReplyFlags::DONE;
        if self.style == Style::Extended {
            let length = length.into();
            let header = ExtendedReplyHeader { flags, reply, cookie, offset, length };
            self.out.patch(position, header.encode());
        } else {
            let header = StructuredReplyHeader { flags, reply, cookie, length };
            self.out.patch(position, header.encode());
        }
    }

    #[inline]
    fn put_simple(&mut self, error: ErrorCode) {
        let cookie = self.pending.cookie;
        self.out.put(&SimpleReplyHeader { error, cookie }.encode());
    }

    fn put_error_chunk(
        &mut self,
        error: ErrorCode,
        text: &str,
        offset: Option<u64>,
        flags: ReplyFlags,
    ) {
        let message = displayable(text).as_bytes();
        let reply = if offset.is_some() { ReplyType::ERROR_OFFSET } else { ReplyType::ERROR };
        // The message has 4096 bytes at most.
        let length = ErrorChunk { error, message, offset }.encoded_length();
        self.put_chunk(reply, flags, length);
        self.out.put_with(|out| ErrorChunk { error, message, offset }.encode(out));
    }

    /// Queues success without content. With structured replies a simple one is allowed and shorter, but not for a read.
    // S-REP-SIMPLE-02
    #[inline]
    pub(super) fn succeed(&mut self) {
        let has_content =
            matches!(self.pending.command, Command::Read { .. } | Command::BlockStatus { .. });
        match self.style {
            Style::Simple => self.put_simple(ErrorCode::OK),
            Style::Structured if !has_content => self.put_simple(ErrorCode::OK),
            Style::Structured | Style::Extended => {
                self.put_chunk(ReplyType::NONE, ReplyFlags::DONE, 0);
            }
        }
        self.out.seal(Tail::None, Some(self.id));
        self.answered();
    }

    /// Queues an error as the last thing said of a request.
    pub(super) fn fail(&mut self, error: ErrorCode, text: &str) {
        if self.style == Style::Simple {
            self.put_simple(error);
        } else {
            self.put_error_chunk(error, text, None, ReplyFlags::DONE);
        }
        self.out.seal(Tail::None, Some(self.id));
        self.answered();
    }

    #[inline]
    fn answered(&mut self) {
        if self.pending.progress == Progress::Open {
            self.pending.progress = Progress::Answered;
        }
    }

    fn tail(&self, content: Content) -> Tail {
        let length = content.length as usize;
        if content.hole {
            return Tail::Zeroes(length);
        }
        Tail::Body { id: self.id, offset: content.start.into(), length }
    }

    /// Queues a content chunk.
    #[inline]
    fn put_content(&mut self, content: Content) -> Chunk {
        // Content lies inside of the request, and that inside of the export.
        let offset = self.pending.offset.saturating_add(content.start.into());
        let none = ReplyFlags::empty();
        if content.hole {
            let chunk = self.put_chunk(ReplyType::OFFSET_HOLE, none, 12);
            self.out.put(&offset.to_be_bytes());
            self.out.put(&content.length.to_be_bytes());
            self.out.seal(Tail::None, None);
            return chunk;
        }
        let chunk = self.put_data_chunk(offset, content.length);
        let tail = self.tail(content);
        self.out.seal(tail, None);
        chunk
    }

    /// Puts the header of `length` bytes of data at `offset`. The maximum payload leaves room for the offset's eight
    /// bytes.
    #[inline]
    fn put_data_chunk(&mut self, offset: u64, length: u32) -> Chunk {
        let Some(length) = length.checked_add(8) else {
            self.out.fail("a content chunk is longer than its header can say");
            return self.put_chunk(ReplyType::NONE, ReplyFlags::empty(), 0);
        };
        let chunk = self.put_chunk(ReplyType::OFFSET_DATA, ReplyFlags::empty(), length);
        self.out.put(&offset.to_be_bytes());
        chunk
    }
}

/// Builds the reply to one request, by [`Connection::reply`](super::Connection::reply).
///
/// A read is answered by [`data`](Self::data) and [`hole`](Self::hole) in any order until all of it is accounted for, a
/// block status by [`extents`](Self::extents) for each [awaited context](Self::awaited_contexts), and then by
/// [`finish`](Self::finish); other commands by [`finish`](Self::finish) alone; and any of them by
/// [`error`](Self::error). Dropping the builder before that keeps what was given: get it again to go on.
///
/// It knows what the client agreed to, so that you need not: where a reply has to be in one piece (a simple reply, or a
/// read with [`dont_fragment`](Command::Read::dont_fragment)), content is put in order and goes out at the end.
///
/// Nothing that would be a lie on the wire is accepted: content that overlaps or lies outside of the request, a read
/// that is finished with a gap. Such a [`Misuse`] changes nothing.
#[derive(Debug)]
#[must_use = "a request that is not answered stays in flight"]
pub struct Reply<'a> {
    pub(super) answer: Answer<'a>,
    pub(super) export: &'a Entered,
    pub(super) status: &'a mut StatusExtents,
    pub(super) max_extents: u32,
    /// A chunk that this builder queued last, which can still become the final one.
    last_chunk: Option<Chunk>,
}

impl<'a> Reply<'a> {
    #[inline]
    pub(super) const fn new(
        answer: Answer<'a>,
        export: &'a Entered,
        status: &'a mut StatusExtents,
        max_extents: u32,
    ) -> Self {
        Self { answer, export, status, max_extents, last_chunk: None }
    }

    /// The request.
    #[must_use]
    pub const fn id(&self) -> RequestId {
        self.answer.id
    }

    /// What is asked for.
    #[must_use]
    pub const fn command(&self) -> Command {
        self.answer.pending.command
    }

    /// The request failed. Clients see `text` where the protocol has room for it, which is at most 4096 bytes, up to
    /// the first NUL. An error value that the specification does not [allow](Self::allowed) here is replaced by one
    /// that it does.
    // S-ERR-01 to S-ERR-05
    pub fn error(mut self, code: ErrorCode, text: &str) {
        let code = self.allowed(code);
        self.answer.fail(code, text);
    }

    /// A part of the request failed at `offset` in the export, in bytes. To be followed by more content, or
    /// [`finish`](Self::finish). Where the protocol can't express offsets the whole request will fail, with the first
    /// of the codes and without a text. Code and text are treated as by [`error`](Self::error).
    /// Content that was given before may hold the offset; what is given later must not.
    ///
    /// # Errors
    /// [`Misuse::BadContent`] when the offset lies outside of the request or was reported before;
    /// [`Misuse::WrongAnswer`] for flushes and resizes.
    pub fn error_at(&mut self, code: ErrorCode, offset: u64, text: &str) -> Result<(), Misuse> {
        let command = self.command();
        if !command.has_range() {
            return Err(Misuse::WrongAnswer);
        }
        let code = self.allowed(code);
        let failures = &mut self.answer.pending.failures;
        let inside =
            offset.checked_sub(command.offset()).is_some_and(|start| start < command.length());
        if !inside || failures.iter().any(|(earlier, _)| *earlier == offset) {
            return Err(Misuse::BadContent);
        }
        failures.push((offset, code));
        if self.streams() {
            self.answer.put_error_chunk(code, text, Some(offset), ReplyFlags::empty());
            self.answer.out.seal(Tail::None, None);
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
    pub fn data(&mut self, offset: u64, length: u64) -> Result<(), Misuse> {
        self.content(offset, length, false)
    }

    /// `length` bytes at `offset` in the export are zeroes. They are sent as a hole where the client agreed to that, as
    /// zeroes otherwise; you need not hold them.
    ///
    /// # Errors
    /// As for [`data`](Self::data).
    #[inline]
    pub fn hole(&mut self, offset: u64, length: u64) -> Result<(), Misuse> {
        self.content(offset, length, true)
    }

    /// The metadata contexts whose extents a block status request still waits for, in no particular order: numbers to
    /// look up in [`ExportView::contexts`](crate::ExportView::contexts). None for other commands.
    ///
    /// The iterator does not borrow the builder, so that [`extents`](Self::extents) can be called for each: it gives the
    /// contexts that were awaited when it was made.
    pub fn awaited_contexts(&self) -> AwaitedContexts<'a> {
        AwaitedContexts::new(&self.export.contexts, &self.answer.pending.awaited)
    }

    /// What is asked in one awaited metadata context, for a [`StatusExtents`].
    ///
    /// # Errors
    /// [`Misuse::WrongAnswer`] unless the command is a block status; [`Misuse::NoSuchContext`] when the context is not
    /// awaited.
    pub fn status_query(&self, context: u32) -> Result<StatusQuery, Misuse> {
        let Command::BlockStatus { offset, length, one } = self.command() else {
            return Err(Misuse::WrongAnswer);
        };
        if !self.answer.pending.awaited.contains(&context) {
            return Err(Misuse::NoSuchContext);
        }
        let export = self.export;
        let mut kinds = export.contexts.iter().zip(&export.kinds);
        let kind = kinds.find(|(selected, _)| selected.id == context).map(|(_, kind)| kind);
        let kind = kind.ok_or(Misuse::NoSuchContext)?;
        let extended = self.answer.style == Style::Extended;
        // A descriptor has 8 or 16 bytes, and all of them together must not exceed the maximum payload.
        let payload = export.rules.block_size.maximum_payload();
        let max_extents = self.max_extents.min(payload >> if extended { 4 } else { 3 });
        Ok(StatusQuery {
            offset,
            length,
            one,
            size: export.rules.size,
            block: export.rules.block_size.minimum(),
            max_extents: max_extents.clamp(1, MAX_EXTENTS),
            // A multiple of every block size.
            max_length: if extended { u64::MAX } else { u64::from(u32::MAX - 0xffff) },
            status_mask: if extended && kind.wide { u64::MAX } else { u64::from(u32::MAX) },
            all: kind.all,
        })
    }

    /// The extents of one awaited metadata context, from the request's offset on: runs of any length, which are made
    /// into what may be sent as by [`StatusExtents`]. A [`StatusExtents`] itself is welcome, too.
    ///
    #[doc = include_str!("../../doc/block_status.md")]
    ///
    /// # Errors
    /// Those of [`status_query`](Self::status_query); [`Misuse::Incomplete`] when the runs don't reach to the end of a
    /// single extent.
    pub fn extents(
        &mut self,
        context: u32,
        extents: impl IntoIterator<Item = Extent>,
    ) -> Result<(), Misuse> {
        let query = self.status_query(context)?;
        self.status.begin(query);
        for run in extents {
            if self.status.push(run).is_break() {
                break;
            }
        }
        let count = self.status.iter().zip(1_u32..).last().ok_or(Misuse::Incomplete)?.1;
        self.answer.pending.awaited.retain(|awaited| *awaited != context);

        let extended = self.answer.style == Style::Extended;
        let (reply, head, size) = if extended {
            (ReplyType::BLOCK_STATUS_EXT, 8, 16)
        } else {
            (ReplyType::BLOCK_STATUS, 4, 8)
        };
        // There are 2^20 at most.
        let length = count.saturating_mul(size).saturating_add(head);
        let chunk = self.answer.put_chunk(reply, ReplyFlags::empty(), length);
        let out = &mut *self.answer.out;
        out.put(&context.to_be_bytes());
        if extended {
            out.put(&count.to_be_bytes());
        }
        out.put_with(|out| {
            for Extent { length, status } in self.status.iter() {
                BlockStatusDescriptor { length, status }.encode(extended, out);
            }
        });
        out.seal(Tail::None, None);
        self.last_chunk = Some(chunk);
        Ok(())
    }

    /// All is said: all of a read's content, or all awaited extents, have been given, or all parts of the request that
    /// failed were [reported](Self::error_at). Other commands were carried out.
    ///
    /// # Errors
    /// [`Misuse::Incomplete`] when something is missing and no error was reported. Nothing has changed then: get the
    /// builder again.
    #[inline]
    pub fn finish(mut self) -> Result<(), Misuse> {
        let pending = &*self.answer.pending;
        let failure = pending.failures.first().copied();
        let complete = match pending.command {
            Command::Read { offset, length, .. } => {
                // The range lies inside of the export.
                pending.coverage.is_exactly(offset, offset.saturating_add(length))
            }
            Command::BlockStatus { .. } => pending.awaited.is_empty(),
            _ if failure.is_none() => {
                self.answer.succeed();
                return Ok(());
            }
            _ => false,
        };
        if failure.is_none() && !complete {
            return Err(Misuse::Incomplete);
        }
        let id = self.answer.id;
        if !self.streams() {
            match failure {
                Some((_, code)) => self.answer.fail(code, ""),
                None => self.put_deferred(),
            }
        } else if let Some(chunk) = self.last_chunk {
            // The last chunk is still unsent, so that it can say itself that it is the last one.
            self.answer.mark_done(chunk);
            self.answer.out.finish_last(id);
        } else {
            self.answer.put_chunk(ReplyType::NONE, ReplyFlags::DONE, 0);
            self.answer.out.seal(Tail::None, Some(id));
        }
        self.answer.answered();
        Ok(())
    }

    /// Whether content can be queued as it is given, in chunks. A simple reply and a read with DF go out at the end.
    fn streams(&self) -> bool {
        self.answer.style != Style::Simple
            && !matches!(self.answer.pending.command, Command::Read { dont_fragment: true, .. })
    }

    /// Checks and records content, and queues it if that is the time.
    #[inline]
    fn content(&mut self, from: u64, bytes: u64, hole: bool) -> Result<(), Misuse> {
        let pending = &mut *self.answer.pending;
        let Command::Read { offset, length: whole, .. } = pending.command else {
            return Err(Misuse::WrongAnswer);
        };
        let start = from.checked_sub(offset).ok_or(Misuse::BadContent)?;
        if start.checked_add(bytes).is_none_or(|end| end > whole) {
            return Err(Misuse::BadContent);
        }
        // A read has no more than the maximum payload.
        let (Ok(start), Ok(length)) = (u32::try_from(start), u32::try_from(bytes)) else {
            return Err(Misuse::BadContent);
        };
        let end = from.checked_add(bytes).ok_or(Misuse::BadContent)?;
        if pending.failures.iter().any(|(failed, _)| (from..end).contains(failed)) {
            return Err(Misuse::BadContent);
        }
        pending.coverage.add(from, end)?;
        let content = Content { start, length, hole };
        if self.streams() {
            self.last_chunk = Some(self.answer.put_content(content));
        } else {
            self.answer.pending.deferred.push(content);
        }
        Ok(())
    }

    /// Queues a whole read in one piece: as a simple reply, or as the one content chunk that DF allows.
    fn put_deferred(&mut self) {
        let answer = &mut self.answer;
        if let ([content], Style::Simple) = (answer.pending.deferred.as_slice(), answer.style) {
            let tail = answer.tail(*content);
            answer.put_simple(ErrorCode::OK);
            return answer.out.seal(tail, Some(answer.id));
        }
        let mut deferred = core::mem::take(&mut answer.pending.deferred);
        deferred.sort_unstable_by_key(|content| content.start);
        let length = answer.pending.command.length();
        if answer.style == Style::Simple {
            answer.put_simple(ErrorCode::OK);
        } else {
            // A read has no more than the maximum payload.
            let Ok(length) = u32::try_from(length) else {
                return answer.out.fail("a read is longer than the maximum payload");
            };
            let chunk = if deferred.iter().all(|content| content.hole) {
                deferred.clear();
                answer.put_content(Content { start: 0, length, hole: true })
            } else {
                answer.put_data_chunk(answer.pending.offset, length)
            };
            answer.mark_done(chunk);
        }
        for content in &deferred {
            let tail = answer.tail(*content);
            answer.out.seal(tail, None);
        }
        answer.out.finish_last(answer.id);
        deferred.clear();
        answer.pending.deferred = deferred;
    }

    /// The nearest error value that the specification allows for the command (section "Error values"): what
    /// [`error`](Self::error) sends in place of `code`.
    #[must_use]
    pub fn allowed(&self, code: ErrorCode) -> ErrorCode {
        let command = self.command();
        let fast_zero = matches!(command, Command::WriteZeroes { fast: true, .. });
        match code {
            ErrorCode::EPERM
            | ErrorCode::EIO
            | ErrorCode::ENOMEM
            | ErrorCode::EINVAL
            | ErrorCode::ESHUTDOWN => code,
            ErrorCode::ENOSPC if command.is_write() => code,
            ErrorCode::ENOTSUP if fast_zero => code,
            ErrorCode::ENOTSUP => ErrorCode::EINVAL,
            ErrorCode::EOVERFLOW if matches!(command, Command::Write { .. }) || fast_zero => {
                ErrorCode::EINVAL
            }
            ErrorCode::EOVERFLOW => code,
            _ => ErrorCode::EIO,
        }
    }
}
