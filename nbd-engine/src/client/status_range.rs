//! What a metadata context says of a range of any length.

use core::fmt;
use core::future::poll_fn;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::sync::Arc;

use futures_util::Stream;
use nbd_proto::Command;

use super::client::Client;
use super::pending::Pending;
use super::status_walk::StatusWalk;
use super::{ContextExtents, Error, Flags};

/// Bytes of which a metadata context says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatusRun {
    /// Where it begins in the export, in bytes.
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
    walk: StatusWalk,
    /// A request, and the offset that it is about.
    ahead: Option<(u64, Request)>,
}

type Request = Pending<Result<Vec<ContextExtents>, Error>>;

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
    /// The errors that it gives are those of [`block_status`](Self::block_status), [`Error::NoStatus`] if another context is
    /// selected, or if the server says nothing about a byte, and [`Error::Invalid`] for what reaches past the end.
    pub fn block_status_range(
        &self,
        context: &str,
        offset: u64,
        length: u64,
    ) -> BlockStatusRange<C> {
        let export = self.export();
        let block = u64::from(export.block_size().minimum());
        let max = self.max_length(&Command::block_status(offset, length));
        BlockStatusRange {
            client: self.clone(),
            context: context.into(),
            // A range that is none is refused as the first request is made.
            walk: StatusWalk::new(offset..offset.saturating_add(length), export.size(), block, max),
            ahead: None,
        }
    }
}

impl<C> BlockStatusRange<C> {
    /// Asks about `bytes` at a time, at most, rounded up to whole blocks of the minimum size; 0 means one block.
    /// Answers stay small then, and the first one comes soon. By default a request is as long as the headers allow.
    pub fn with_window(mut self, bytes: u64) -> Self {
        self.walk.limit(bytes);
        self
    }

    /// Makes one run of neighbours of the same status, also where they come from several answers. A run is reported when
    /// its end is known.
    pub const fn joined(mut self) -> Self {
        self.walk.join();
        self
    }

    /// Where the next run begins in the export, in bytes.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.walk.position()
    }

    /// The next run; `None` at the end of the range.
    ///
    /// Cancel-safe: nothing is lost.
    ///
    /// # Errors
    /// Those that [`Client::block_status_range`] names. After an error there is nothing more.
    pub async fn next(&mut self) -> Option<Result<StatusRun, Error>> {
        poll_fn(|cx| self.poll_run(cx)).await
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<StatusRun, Error>>> {
        loop {
            if let Some(run) = self.walk.next_run() {
                return Poll::Ready(Some(Ok(run)));
            }
            let request = match self.ahead.take().or_else(|| self.ask()) {
                Some(request) => self.ahead.insert(request),
                None => return Poll::Ready(None),
            };
            let result = ready!(Pin::new(&mut request.1).poll(cx));
            let from = request.0;
            self.ahead = None;
            if let Err(error) = result.and_then(|found| self.learn(from, found)) {
                self.walk.stop();
                return Poll::Ready(Some(Err(error)));
            }
            // The next answer comes while this one is in use.
            self.ahead = self.ask();
        }
    }

    /// The next request; `None` if there is nothing more to ask.
    fn ask(&self) -> Option<(u64, Request)> {
        let (from, length) = self.walk.question()?;
        Some((from, self.client.submit_block_status(from, length, Flags::empty())))
    }

    fn learn(&mut self, from: u64, found: Vec<ContextExtents>) -> Result<(), Error> {
        let found = found.into_iter().find(|found| found.context == self.context);
        let extents = found.map(|found| found.extents).unwrap_or_default();
        self.walk.answered(from, extents).map_err(|offset| Error::NoStatus {
            peer: self.client.peer().into(),
            context: Arc::clone(&self.context),
            offset,
            selected: self.client.export().has_context(&self.context),
        })
    }
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
            .field("walk", &self.walk)
            .finish_non_exhaustive()
    }
}
