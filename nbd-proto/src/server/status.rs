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
    /// Where the client's range begins in the export, in bytes.
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
/// bytes, except where the client's range or the export ends; a block that has parts with several statuses gets one
/// that holds for all of it: what all parts have in `base:allocation`, what any part has in other contexts, or what
/// you say by [`push_with`](Self::push_with). What exceeds the export, the client's range where it wants a single
/// extent, the limits, or what the reply can express is left out.
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
    /// The start and the status of a block of which a part is known.
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
    /// [`ControlFlow::Break`] there is enough, and more is ignored. A run of no bytes says nothing. At most 64 runs are
    /// looked at for each extent that may be sent, so that a disk in small pieces is answered in part.
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
                self.last_position().saturating_sub(self.query.offset)
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

    /// The known part of a block whose end is not known. It counts where the client's range or the export ends
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
            // There is no room for the rest in this chunk: the client asks again.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effort::{config, up_to};
    use proptest::prelude::*;

    fn query(offset: u64, length: u64) -> StatusQuery {
        StatusQuery {
            offset,
            length,
            one: false,
            size: 1 << 20,
            block: 1,
            max_extents: 10,
            max_length: u64::MAX,
            status_mask: u64::MAX,
            all: true,
        }
    }

    /// Runs of which the first begins at 0.
    type Runs = [(u64, u64)];

    /// Pushes runs from the query's range on, so many at a time as an export with little patience does.
    fn collect(extents: &mut StatusExtents, query: StatusQuery, runs: &Runs, step: usize) {
        extents.begin(query);
        while let Some((from, length)) = extents.missing() {
            assert!(length > 0 && from + length == query.offset + query.length);
            let mut start = 0;
            let mut pushed = 0;
            for &(length, status) in runs {
                let end = start + length;
                if end > from && pushed < step {
                    pushed += 1;
                    let run = Extent { length: end - from.max(start), status };
                    if extents.push(run).is_break() {
                        break;
                    }
                }
                start = end;
            }
            if pushed == 0 {
                break;
            }
        }
    }

    fn found(query: StatusQuery, runs: &Runs) -> Vec<(u64, u64)> {
        let mut extents = StatusExtents::new();
        collect(&mut extents, query, runs, usize::MAX);
        extents.iter().map(|extent| (extent.length, extent.status)).collect()
    }

    #[test]
    fn neighbours_are_joined_and_aligned_runs_are_left_alone() {
        let runs = [(1024, 1), (512, 1), (512, 0), (2048, 1)];
        assert_eq!(found(query(0, 4096), &runs), [(1536, 1), (512, 0), (2048, 1)]);
    }

    #[test]
    fn a_block_of_several_kinds_has_what_all_or_any_of_its_parts_have() {
        let runs = [(100, 3), (100, 1), (4096 - 200, 3)];
        let query = StatusQuery { block: 4096, ..query(0, 4096) };
        assert_eq!(found(query, &runs), [(4096, 1)]);
        assert_eq!(found(StatusQuery { all: false, ..query }, &runs), [(4096, 3)]);
        let mut extents = StatusExtents::new();
        extents.begin(query);
        for (length, status) in runs {
            let _ = extents.push_with(Extent { length, status }, |one, other| one * 10 + other);
        }
        assert!(extents.iter().eq([Extent { length: 4096, status: 313 }]));
    }

    #[test]
    fn nothing_is_taken_before_a_query_and_after_the_last_extent() {
        let run = Extent { length: 512, status: 1 };
        let mut extents = StatusExtents::new();
        assert!(extents.push(run).is_break());
        assert_eq!((extents.iter().next(), extents.missing()), (None, None));
        extents.begin(StatusQuery { one: true, ..query(0, 512) });
        assert!(extents.push(run).is_break());
        assert!(extents.push(Extent { length: 512, status: 2 }).is_break());
        assert!(extents.iter().eq([run]));
    }

    #[test]
    fn a_run_in_endless_pieces_ends_at_the_bound() {
        let mut extents = StatusExtents::new();
        let query = StatusQuery { size: 1 << 62, max_extents: 16, ..query(0, 1 << 62) };
        extents.begin(query);
        let pieces =
            (1_u64..).find(|_| extents.push(Extent { length: 512, status: 3 }).is_break()).unwrap();
        assert_eq!(pieces, 16 * RUNS_PER_EXTENT);
        assert!(extents.iter().eq([Extent { length: pieces * 512, status: 3 }]));
    }

    #[test]
    fn lengths_beyond_all_bounds_are_those_of_the_export() {
        let query = StatusQuery { size: u64::MAX, ..query(u64::MAX - 1024, 1024) };
        assert_eq!(found(query, &[(u64::MAX, 1)]), [(1024, 1)]);
        let mut extents = StatusExtents::new();
        extents.begin(query);
        let _ = extents.push(Extent { length: u64::MAX, status: 1 });
        let _ = extents.push(Extent { length: u64::MAX, status: 2 });
        assert!(extents.iter().eq([Extent { length: 1024, status: 1 }]));
    }

    #[test]
    fn a_collector_is_used_again_without_another_allocation() {
        let mut extents = StatusExtents::new();
        let runs: Vec<_> = (0..100).map(|at| (512, at % 2)).collect();
        let query = StatusQuery { max_extents: 100, ..query(0, 51_200) };
        collect(&mut extents, query, &runs, usize::MAX);
        let (capacity, address) = (extents.extents.capacity(), extents.extents.as_ptr());
        collect(&mut extents, query, &runs, usize::MAX);
        assert_eq!((extents.extents.capacity(), extents.extents.as_ptr()), (capacity, address));
        assert_eq!(extents.iter().count(), 100);
    }

    proptest! {
        #![proptest_config(config())]

        // (S-CMD-BS-02 to S-CMD-BS-06), whatever an export says, in however many pieces.
        #[test]
        fn every_block_gets_a_status_that_holds_for_all_of_it(
            runs in prop::collection::vec((1..up_to(3000) as u64, 0_u64..4), 1..40),
            block in prop::sample::select(&[1_u32, 512, 1024, 4096][..]),
            step in 1_usize..10,
            max_extents in 1_u32..20,
            from in 0_u64..20, blocks in 1_u64..20,
            all in any::<bool>(), one in any::<bool>(), compact in any::<bool>(),
        ) {
            let unit = u64::from(block);
            let size = runs.iter().map(|run| run.0).sum::<u64>() / unit * unit;
            let offset = from * unit;
            let length = (blocks * unit).min(size.saturating_sub(offset));
            prop_assume!(offset + length <= size && length > 0);
            let max_length = if compact { 1 << 16 } else { u64::MAX };
            let query = StatusQuery {
                offset, length, one, size, block, max_extents, max_length, all, status_mask: 1,
            };
            let mut extents = StatusExtents::new();
            collect(&mut extents, query, &runs, step);
            let found: Vec<_> = extents.iter().collect();
            let bytes: Vec<u64> = runs.iter()
                .flat_map(|&(length, status)| core::iter::repeat_n(status & 1, length as usize))
                .collect();

            prop_assert!(!found.is_empty() && found.len() <= query.max_extents() as usize);
            let total: u64 = found.iter().map(|extent| extent.length).sum();
            let last = found.last().unwrap().length;
            prop_assert!(offset + total <= size && total - last < length);
            prop_assert!(!one || total <= length);
            for pair in found.windows(2) {
                prop_assert!(pair[0].status != pair[1].status);
            }
            let mut start = offset;
            for Extent { length: extent, status } in &found {
                let end = start + extent;
                prop_assert!(*extent > 0 && *extent <= max_length);
                let ends_well = end % unit.max(512) == 0 || end >= offset + length || end == size;
                prop_assert!(ends_well || *extent == max_length, "{}", end);
                // Wherever the extent has a block of its own, its status is that of all or any of its bytes.
                let bytes = &bytes[start as usize..end as usize];
                let holds = if all {
                    *status == 0 || bytes.iter().all(|byte| *byte == 1)
                } else {
                    *status == 1 || bytes.iter().all(|byte| *byte == 0)
                };
                prop_assert!(holds, "{}..{} is not {}", start, end, status);
                start = end;
            }

            // What was collected may go through the reply's own collector once more, and stays as it is.
            let mut again = StatusExtents::new();
            again.begin(query);
            let _enough = extents.iter().try_for_each(|run| again.push(run));
            let kept: Vec<_> = again.iter().collect();
            if !compact {
                prop_assert_eq!(found, kept);
            }
        }
    }
}
