//! What a metadata context says of a range of any length.

use core::fmt;
use core::future::poll_fn;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::sync::Arc;

use futures_util::Stream;
use nbd_proto::{Command, Extent};

use super::client::Client;
use super::pending::Pending;
use super::{ContextExtents, Error, Flags};

/// Bytes of which a metadata context says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatusRun {
    /// Where it begins in the export.
    pub offset: u64,
    /// Bytes; never zero.
    pub length: u64,
    /// What the context says: see [`AllocationFlags`](super::AllocationFlags) for `base:allocation`.
    pub status: u64,
}

impl StatusRun {
    /// The bytes.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length)
    }
}

/// The status of a range in one metadata context, run by run: see [`Client::block_status_range`].
///
/// A [`Stream`]; [`next`](Self::next) does without its traits. It holds one answer, and asks for the next while that is in
/// use. After an error there is nothing more.
#[must_use = "it asks for nothing before it is polled"]
pub struct BlockStatusRange<C> {
    client: Client<C>,
    context: Arc<str>,
    /// What was not reported yet.
    left: Range<u64>,
    /// Bytes that are asked about at a time.
    window: u64,
    joined: bool,
    /// An answer, and where the first of its extents that was not used up begins.
    answer: std::vec::IntoIter<Extent>,
    reached: u64,
    /// A request, and what it is about.
    ahead: Option<(u64, Pending<Result<Vec<ContextExtents>, Error>>)>,
    /// A run whose end is not known yet.
    open: Option<StatusRun>,
}

impl<C> Client<C> {
    /// Asks one selected metadata context about a range of any length, and reports runs that follow each other without a
    /// gap, from the first byte of the range to the last. Offsets and lengths need no alignment.
    ///
    /// ```
    /// # async fn example<C>(client: nbd_engine::client::Client<C>) -> Result<(), nbd_engine::client::Error> {
    /// use nbd_engine::client::AllocationFlags;
    ///
    /// let mut holes = 0;
    /// let mut runs = client.block_status_range("base:allocation", 0, client.size());
    /// while let Some(run) = runs.next().await {
    ///     let run = run?;
    ///     if AllocationFlags::from_bits_retain(run.status as u32).contains(AllocationFlags::HOLE) {
    ///         holes += run.length;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The errors that it gives are those of [`block_status`](Self::block_status), [`Error::NoStatus`] if the context is
    /// not selected, or if the server says nothing about a byte, and [`Error::Invalid`] for what reaches past the end.
    pub fn block_status_range(
        &self,
        context: &str,
        offset: u64,
        length: u64,
    ) -> BlockStatusRange<C> {
        BlockStatusRange {
            client: self.clone(),
            context: context.into(),
            // A range that is none is refused as the first request is made.
            left: offset..offset.saturating_add(length),
            window: u64::MAX,
            joined: false,
            answer: Vec::new().into_iter(),
            reached: offset,
            ahead: None,
            open: None,
        }
    }
}

impl<C> BlockStatusRange<C> {
    /// Asks about `bytes` at a time, at most. Answers stay small then, and the first one comes soon. By default a request
    /// is as long as the headers allow.
    pub fn with_window(mut self, bytes: u64) -> Self {
        self.window = bytes.max(1);
        self
    }

    /// Makes one run of neighbours of the same status, also where they come from several answers. A run is reported when
    /// its end is known.
    pub const fn joined(mut self) -> Self {
        self.joined = true;
        self
    }

    /// Where the next run begins.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.open.map_or(self.left.start, |open| open.offset)
    }

    /// The next run; `None` at the end of the range.
    ///
    /// Cancel-safe: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<StatusRun, Error>> {
        poll_fn(|cx| self.poll_run(cx)).await
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<StatusRun, Error>>> {
        loop {
            let Some(run) = self.take_run() else {
                if self.left.is_empty() {
                    return Poll::Ready(self.open.take().map(Ok));
                }
                if let Err(error) = ready!(self.poll_answer(cx)) {
                    self.left.start = self.left.end;
                    self.ahead = None;
                    // What was learnt before counts, too; but an error is not to be overlooked.
                    self.open = None;
                    return Poll::Ready(Some(Err(error)));
                }
                continue;
            };
            if !self.joined {
                return Poll::Ready(Some(Ok(run)));
            }
            match &mut self.open {
                Some(open) if open.status == run.status => open.length += run.length,
                open => {
                    if let Some(done) = open.replace(run) {
                        return Poll::Ready(Some(Ok(done)));
                    }
                }
            }
        }
    }

    /// The next run of the answer at hand.
    fn take_run(&mut self) -> Option<StatusRun> {
        while !self.left.is_empty() {
            let extent = self.answer.next()?;
            let from = self.left.start;
            self.reached = self.reached.saturating_add(extent.length);
            // An answer may begin before what is wanted, and reach past what was asked for.
            let to = self.reached.min(self.left.end);
            if to > from {
                self.left.start = to;
                let (offset, length) = (from, to - from);
                return Some(StatusRun { offset, length, status: extent.status });
            }
        }
        None
    }

    /// Waits for the next answer, and has the one after it on its way.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let (from, pending) = match &mut self.ahead {
            Some(ahead) => ahead,
            none => {
                let (from, request) = ask(&self.client, &self.context, &self.left, self.window)?;
                none.insert((from, request))
            }
        };
        let answer = ready!(Pin::new(pending).poll(cx));
        let from = *from;
        self.ahead = None;
        let found = answer?.into_iter().find(|found| found.context == self.context);
        let extents = found.map(|found| found.extents).unwrap_or_default();
        let reached = extents.iter().fold(from, |end, extent| end.saturating_add(extent.length));
        if reached <= self.left.start {
            return Poll::Ready(Err(no_status(&self.client, &self.context, self.left.start)));
        }
        (self.answer, self.reached) = (extents.into_iter(), from);
        let rest = reached..self.left.end;
        if !rest.is_empty() {
            self.ahead = Some(ask(&self.client, &self.context, &rest, self.window)?);
        }
        Poll::Ready(Ok(()))
    }
}

/// Asks about the front of a range, and a little before it if the server takes nothing but whole blocks.
fn ask<C>(
    client: &Client<C>,
    context: &str,
    range: &Range<u64>,
    window: u64,
) -> Result<(u64, Pending<Result<Vec<ContextExtents>, Error>>), Error> {
    if !client.export().has_context(context) {
        return Err(no_status(client, context, range.start));
    }
    let block = u64::from(client.export().block_size().minimum());
    let from = range.start - range.start % block;
    let end = range.end.checked_next_multiple_of(block).unwrap_or(range.end);
    // The last block of an export may be cut off.
    let end = if range.end <= client.size() { end.min(client.size()) } else { range.end };
    let length = (end - from).min(window.checked_next_multiple_of(block).unwrap_or(window));
    let max = client.max_length(&Command::block_status(from, length));
    let length = length.min(max);
    Ok((from, client.submit_block_status(from, length, Flags::empty())))
}

fn no_status<C>(client: &Client<C>, context: &str, offset: u64) -> Error {
    Error::NoStatus { peer: client.peer().into(), context: context.into(), offset }
}

impl<C> Unpin for BlockStatusRange<C> {}

impl<C> Stream for BlockStatusRange<C> {
    type Item = Result<StatusRun, Error>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<StatusRun, Error>>> {
        self.poll_run(cx)
    }
}

impl<C> fmt::Debug for BlockStatusRange<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockStatusRange")
            .field("context", &self.context)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
