//! The status of blocks: from what an export knows to what is sent.

use alloc::vec::Vec;
use core::iter::{Chain, Copied, Peekable};
use core::ops::ControlFlow;
use core::{option, slice};

use crate::Extent;

/// A block status request in one metadata context, by [`Reply::status_query`](super::Reply::status_query): what a
/// [`StatusExtents`] needs to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusQuery {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) one: bool,
    /// The size of the export.
    pub(super) size: u64,
    /// The minimum block size.
    pub(super) block: u32,
    pub(super) max_extents: u32,
    /// The longest extent that the reply can express.
    pub(super) max_length: u64,
    pub(super) status_mask: u64,
    /// See [`ContextKind`](super::handshake::ContextKind).
    pub(super) all: bool,
}

impl StatusQuery {
    /// Where the client's range begins.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The length of the client's range in bytes, not zero. The range lies inside of the export.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Extents that are sent at most. One more should be found, so that the last one that is sent is complete.
    #[must_use]
    pub const fn max_extents(&self) -> u32 {
        if self.one { 1 } else { self.max_extents }
    }
}

/// Runs that are looked at for each extent that is sent, when an export cuts its runs into pieces. Together with the
/// bound on extents it bounds what a request costs.
const RUNS_PER_EXTENT: u64 = 64;

/// Extents that an idle collector keeps room for.
const KEPT: usize = 4096;

/// Makes extents that may be sent out of runs of any length, in one metadata context.
///
/// Neighbours with the same status become one. Extents begin and end on multiples of the minimum block size and of 512
/// bytes, except where the client's range or the export ends; a block that has parts with several statuses gets one that
/// holds for all of it: what all parts have in `base:allocation`, what any part has in other contexts, or what you say
/// by [`push_with`](Self::push_with). What exceeds the export, the client's range where it wants a single extent, the
/// limits, or what the reply can express is left out.
///
/// It can be filled anywhere, on another thread for instance, and be used again without allocating.
///
/// ```
/// use nbd_proto::{Extent, server::{StatusExtents, StatusQuery}};
/// fn find(query: StatusQuery, extents: &mut StatusExtents, disk: &[(u64, u64)]) {
///     extents.begin(query);
///     // The runs of a real disk would begin at `query.offset()`.
///     for &(length, status) in disk {
///         if extents.push(Extent { length, status }).is_break() {
///             break;
///         }
///     }
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct StatusExtents {
    query: StatusQuery,
    extents: Vec<Extent>,
    /// Where the next run begins.
    position: u64,
    /// The start and the status of a block that was told of in part.
    open: Option<(u64, u64)>,
    /// Runs that may still be looked at.
    runs: u64,
    done: bool,
}

impl StatusExtents {
    /// A collector that takes nothing before [`begin`](Self::begin).
    #[must_use]
    pub fn new() -> Self {
        Self { done: true, ..Self::default() }
    }

    /// Begins another query, and forgets what was found before.
    pub fn begin(&mut self, query: StatusQuery) {
        self.query = query;
        self.extents.clear();
        self.extents.shrink_to(KEPT);
        self.position = query.offset;
        self.open = None;
        self.runs = u64::from(query.max_extents()).saturating_mul(RUNS_PER_EXTENT);
        self.done = false;
    }

    /// The next run, which begins where the last one ended; the first at the query's offset. After
    /// [`ControlFlow::Break`] there is enough, and more is ignored.
    pub fn push(&mut self, run: Extent) -> ControlFlow<()> {
        let all = self.query.all;
        self.push_with(run, |one, other| if all { one & other } else { one | other })
    }

    /// As [`push`](Self::push), with a function that says which status a block has of which one part has one status and
    /// the rest another.
    pub fn push_with(
        &mut self,
        run: Extent,
        join: impl FnOnce(u64, u64) -> u64,
    ) -> ControlFlow<()> {
        if self.done {
            return ControlFlow::Break(());
        }
        let status = run.status & self.query.status_mask;
        // Nothing counts behind the end of the export, so that no number gets large.
        let end = self.position.saturating_add(run.length).min(self.last_position());
        let mut start = core::mem::replace(&mut self.position, end);
        if start < end {
            if let Some((from, earlier)) = self.open.take() {
                let joined = join(earlier, status) & self.query.status_mask;
                let bound = self.block_end(from);
                if end < bound {
                    self.open = Some((from, joined));
                    return self.go_on();
                }
                self.add(from, bound, joined);
                start = bound;
            }
            let whole = end & !self.block_mask();
            if whole > start {
                self.add(start, whole, status);
                start = whole;
            }
            if end > start {
                self.open = Some((start, status));
            }
        }
        self.go_on()
    }

    /// The offset and length of what the export has to be asked for: the whole range at first, and what is left of it
    /// when all runs so far don't make a single extent; `None` when there is an answer.
    #[must_use]
    pub fn missing(&self) -> Option<(u64, u64)> {
        let left = self.end().checked_sub(self.position)?;
        (self.extents.is_empty() && left > 0).then_some((self.position, left))
    }

    /// What was found, as it is sent.
    #[must_use]
    pub fn iter(&self) -> StatusIter<'_> {
        StatusIter {
            found: self.extents.iter().copied().chain(self.tail()).peekable(),
            left: self.query.max_extents(),
            rest: if self.query.one {
                self.query.length
            } else {
                self.query.size.saturating_sub(self.query.offset)
            },
            wanted: self.query.length,
            max_length: self.query.max_length,
        }
    }

    /// Where the client's range ends.
    const fn end(&self) -> u64 {
        self.query.offset.saturating_add(self.query.length)
    }

    /// The export's end, or the end of the client's range if the export has become shorter than that.
    fn last_position(&self) -> u64 {
        self.query.size.max(self.end())
    }

    /// A block has 512 bytes at least, which is what clients expect.
    fn block_mask(&self) -> u64 {
        u64::from(self.query.block.max(512).wrapping_sub(1))
    }

    /// Where the block ends that `position` lies in.
    fn block_end(&self, position: u64) -> u64 {
        (position | self.block_mask()).saturating_add(1)
    }

    fn add(&mut self, start: u64, end: u64, status: u64) {
        let length = end.saturating_sub(start);
        match self.extents.last_mut() {
            Some(last) if last.status == status => last.length = last.length.saturating_add(length),
            _ => self.extents.push(Extent { length, status }),
        }
    }

    fn go_on(&mut self) -> ControlFlow<()> {
        self.runs = self.runs.saturating_sub(1);
        let count = self.extents.len();
        // One more than is sent, to know that the last one is complete.
        let enough = count > self.query.max_extents() as usize || (self.runs == 0 && count > 0);
        let last_block_ends = self.block_end(self.end().saturating_sub(1));
        if enough || self.position >= last_block_ends.min(self.last_position()) {
            self.done = true;
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// What is known of a block that was not told of to its end. It counts where the client's range or the export ends
    /// within the block.
    fn tail(&self) -> Option<Extent> {
        let (from, status) = self.open?;
        let size = self.query.size;
        let end = if self.position >= size {
            size
        } else if self.position >= self.end() {
            self.end()
        } else {
            return None;
        };
        let length = end.checked_sub(from).filter(|length| *length > 0)?;
        Some(Extent { length, status })
    }
}

/// The extents of a [`StatusExtents`], by [`StatusExtents::iter`].
// Joins the tail with its neighbour and cuts what a block status chunk must not hold: S-CMD-BS-02 to S-CMD-BS-06
#[derive(Clone, Debug)]
pub struct StatusIter<'a> {
    found: Peekable<Chain<Copied<slice::Iter<'a, Extent>>, option::IntoIter<Extent>>>,
    /// Extents that may still be given.
    left: u32,
    /// Bytes up to where no extent may reach.
    rest: u64,
    /// Bytes up to where an extent must begin.
    wanted: u64,
    max_length: u64,
}

impl Iterator for StatusIter<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        self.left = self.left.checked_sub(1)?;
        if self.wanted == 0 || self.rest == 0 {
            return None;
        }
        let mut run = self.found.next()?;
        while let Some(next) = self.found.next_if(|next| next.status == run.status) {
            run.length = run.length.saturating_add(next.length);
        }
        run.length = run.length.min(self.rest);
        if run.length > self.max_length {
            // The rest can't be told in this chunk: the client asks again.
            run.length = self.max_length;
            self.wanted = 0;
        }
        self.rest = self.rest.saturating_sub(run.length);
        self.wanted = self.wanted.saturating_sub(run.length);
        Some(run)
    }
}

impl<'a> IntoIterator for &'a StatusExtents {
    type Item = Extent;
    type IntoIter = StatusIter<'a>;

    fn into_iter(self) -> StatusIter<'a> {
        self.iter()
    }
}
