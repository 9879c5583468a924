//! The status of blocks: from what an export tells to what is sent.

use core::ops::ControlFlow;
use std::sync::Arc;

use nbd_proto::{ContextInfo, Extent};

use crate::export::{AsyncExport, Export, ExportError, Result, no_such_context};

/// A metadata context that a client has selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// `base:allocation`, from the export's extents.
    Allocation,
    /// One of the export's own, by name.
    Own(Arc<str>),
}

impl Source {
    /// The context of that name, of an export that can tell extents or not.
    pub(crate) fn new(name: &str, extents: bool) -> Self {
        if extents && name == ContextInfo::BASE_ALLOCATION {
            Self::Allocation
        } else {
            Self::Own(name.into())
        }
    }

    /// What a block has of which one part has one status and the rest another. For allocation: a hole, and zero, if
    /// both are.
    fn join(&self, own: impl FnOnce(&str) -> u64, one: u64, other: u64) -> u64 {
        match self {
            Self::Allocation => one & other,
            Self::Own(name) => own(name),
        }
    }
}

/// The status in one context.
#[derive(Clone, Debug)]
struct Answer {
    /// The context's number on the connection.
    id: u32,
    source: Source,
    /// Its extents end here in the common list.
    end: usize,
}

/// The contexts that a block status request is about, and what was found.
#[derive(Debug, Default)]
pub(crate) struct Status {
    answers: Vec<Answer>,
    extents: Vec<Extent>,
    /// Extents that the core would send of one context at most.
    most: usize,
}

/// Extents that a place in flight keeps room for.
const KEPT: usize = 4096;

impl Status {
    /// Forgets everything, and parts with the room when it is large.
    pub(crate) fn clear(&mut self) {
        self.answers.clear();
        self.extents.clear();
        if self.extents.capacity() > KEPT {
            self.extents = Vec::new();
        }
    }

    /// Begins a request that wants at most so many extents of each context.
    pub(crate) fn begin(&mut self, most: usize) {
        self.clear();
        self.most = most.max(1);
    }

    /// The request is about this context, too.
    pub(crate) fn add(&mut self, id: u32, source: Source) {
        self.answers.push(Answer { id, source, end: 0 });
    }

    /// Bytes of memory that the answer may take, here and in the queue of what is to be sent.
    pub(crate) fn cost(&self, one: bool) -> usize {
        let extents = if one { 2 } else { self.most.saturating_add(1) };
        let size = 2 * size_of::<Extent>();
        self.answers.len().saturating_mul(extents).saturating_mul(size)
    }

    /// The contexts with their extents.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (u32, &[Extent])> {
        let mut start = 0;
        self.answers.iter().map(move |answer| {
            let extents = self.extents.get(start..answer.end).unwrap_or_default();
            start = answer.end;
            (answer.id, extents)
        })
    }

    /// Asks the export about a range, in each context; may block.
    pub(crate) fn find(&mut self, export: &dyn Export, range: Asked) -> Result<()> {
        let block = u64::from(export.block_size().minimum());
        for answer in &mut self.answers {
            let source = &answer.source;
            let mut blocks = Blocks::new(&mut self.extents, self.most, block, range);
            let own = export.contexts();
            let join = |one, other| {
                let own = |name: &str| own.map_or(0, |own| own.join(name, one, other));
                source.join(own, one, other)
            };
            while let Some((at, length)) = blocks.missing() {
                let mut visit = |run| blocks.add(run, join);
                match source {
                    Source::Allocation => {
                        let extents = export.extents().ok_or_else(no_such_context)?;
                        extents.extents(at, length, &mut |run| visit(run.into()))?;
                    }
                    Source::Own(name) => {
                        let own = own.ok_or_else(no_such_context)?;
                        own.status(name, at, length, &mut visit)?;
                    }
                }
                blocks.check_progress(at)?;
            }
            answer.end = blocks.finish(export.size());
        }
        Ok(())
    }

    /// The same of an asynchronous export.
    pub(crate) async fn find_async(
        &mut self,
        export: &dyn AsyncExport,
        range: Asked,
    ) -> Result<()> {
        let block = u64::from(export.block_size().minimum());
        for answer in &mut self.answers {
            let source = &answer.source;
            let most = self.most;
            let mut blocks = Blocks::new(&mut self.extents, most, block, range);
            let own = export.contexts();
            let join = |one, other| {
                let own = |name: &str| own.map_or(0, |own| own.join(name, one, other));
                source.join(own, one, other)
            };
            while let Some((at, length)) = blocks.missing() {
                // One more than is sent, to know that the last one is complete.
                match source {
                    Source::Allocation => {
                        let extents = export.extents().ok_or_else(no_such_context)?;
                        let found = extents.extents(at, length, most + 1).await?;
                        let _enough =
                            found.into_iter().try_for_each(|run| blocks.add(run.into(), join));
                    }
                    Source::Own(name) => {
                        let own = own.ok_or_else(no_such_context)?;
                        let found = own.status(name, at, length, most + 1).await?;
                        let _enough = found.into_iter().try_for_each(|run| blocks.add(run, join));
                    }
                }
                blocks.check_progress(at)?;
            }
            answer.end = blocks.finish(export.size());
        }
        Ok(())
    }
}

/// A range that a client asks about, inside of the export and not empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// A single extent is wanted.
    pub(crate) one: bool,
}

/// Runs that are looked at for each extent that is sent, when an export cuts its runs into pieces. Together with the
/// bound on extents it bounds what a request costs.
const RUNS_PER_EXTENT: usize = 64;

/// Makes extents of whole blocks out of runs of any length: neighbours of the same status become one, and a block that
/// has parts of several gets a status that holds for all of it (S-CMD-BS-06).
struct Blocks<'a> {
    extents: &'a mut Vec<Extent>,
    /// Where those of this context begin.
    first: usize,
    most: usize,
    /// Bytes: a power of two.
    block: u64,
    /// What the client asked for ends here.
    end: u64,
    /// Where the next run begins.
    at: u64,
    /// The start and the status of a block that was told of in part.
    open: Option<(u64, u64)>,
    /// Runs that may still be looked at.
    runs: usize,
}

impl<'a> Blocks<'a> {
    fn new(extents: &'a mut Vec<Extent>, most: usize, block: u64, asked: Asked) -> Self {
        let most = if asked.one { 1 } else { most };
        Self {
            first: extents.len(),
            extents,
            most,
            // Sectors at least, which is what clients expect.
            block: block.max(512),
            end: asked.offset.saturating_add(asked.length),
            at: asked.offset,
            open: None,
            runs: most.saturating_mul(RUNS_PER_EXTENT),
        }
    }

    /// What the export is to be asked for: everything at first; the rest of a block, if that is not even one.
    fn missing(&self) -> Option<(u64, u64)> {
        let none = self.extents.len() == self.first;
        (none && self.at < self.end).then(|| (self.at, self.end - self.at))
    }

    fn check_progress(&self, before: u64) -> Result<()> {
        if self.at > before {
            return Ok(());
        }
        Err(ExportError::io("the export does not tell the status of its blocks"))
    }

    fn add(&mut self, run: Extent, join: impl FnOnce(u64, u64) -> u64) -> ControlFlow<()> {
        let end = self.at.saturating_add(run.length);
        let mut start = core::mem::replace(&mut self.at, end);
        if start == end {
            return self.go_on();
        }
        if let Some((from, status)) = self.open.take() {
            let status = join(status, run.status);
            let bound = self.bound_after(from);
            if end < bound {
                self.open = Some((from, status));
                return self.go_on();
            }
            self.push(bound - from, status);
            start = bound;
        }
        let whole = end - end % self.block;
        if whole > start {
            self.push(whole - start, run.status);
            start = whole;
        }
        if end > start {
            self.open = Some((start, run.status));
        }
        self.go_on()
    }

    fn bound_after(&self, at: u64) -> u64 {
        (at - at % self.block).saturating_add(self.block)
    }

    fn push(&mut self, length: u64, status: u64) {
        match self.extents[self.first..].last_mut() {
            Some(last) if last.status == status => last.length = last.length.saturating_add(length),
            _ => self.extents.push(Extent { length, status }),
        }
    }

    fn go_on(&mut self) -> ControlFlow<()> {
        self.runs = self.runs.saturating_sub(1);
        let count = self.extents.len() - self.first;
        // One more than is sent, to know that the last one is complete.
        let enough = count > self.most || (self.runs == 0 && count > 0);
        if enough || self.at >= self.bound_of_last() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Where the last block ends that the client asked for a part of.
    fn bound_of_last(&self) -> u64 {
        self.bound_after(self.end - 1)
    }

    /// What is known of a block that the export did not tell to its end counts where the client's range or the export
    /// itself ends within the block. Gives where the extents of this context end.
    fn finish(mut self, size: u64) -> usize {
        if let Some((from, status)) = self.open.take() {
            let end = self.at.min(self.end.max(from));
            let complete = end >= self.end.min(size);
            if end > from && complete {
                self.push(end - from, status);
            }
        }
        self.extents.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::{Allocation, Contexts, Extents};
    use proptest::prelude::*;

    /// Runs of any length, told of `step` at a time.
    struct Runs {
        runs: Vec<(u64, bool)>,
        minimum: u32,
        step: usize,
    }

    impl Export for Runs {
        fn size(&self) -> u64 {
            self.runs.iter().map(|run| run.0).sum()
        }

        fn read(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
            Ok(())
        }

        fn block_size(&self) -> crate::export::BlockSize {
            crate::export::BlockSize::new(self.minimum, 65536, 1 << 20).unwrap()
        }

        fn extents(&self) -> Option<&dyn Extents> {
            Some(self)
        }

        fn contexts(&self) -> Option<&dyn Contexts> {
            Some(self)
        }
    }

    impl Runs {
        fn tell(&self, offset: u64, mut visit: impl FnMut(u64, bool) -> ControlFlow<()>) {
            let mut start = 0;
            let mut told = 0;
            for &(length, set) in &self.runs {
                let end = start + length;
                if end > offset && told < self.step {
                    told += 1;
                    if visit(end - start.max(offset), set).is_break() {
                        return;
                    }
                }
                start = end;
            }
        }
    }

    impl Extents for Runs {
        fn extents(
            &self,
            offset: u64,
            _length: u64,
            visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
        ) -> Result<()> {
            self.tell(offset, |length, hole| visit(Allocation { length, hole, zero: hole }));
            Ok(())
        }
    }

    impl Contexts for Runs {
        fn list(&self) -> Vec<ContextInfo> {
            Vec::new()
        }

        fn status(
            &self,
            _context: &str,
            offset: u64,
            _length: u64,
            visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
        ) -> Result<()> {
            self.tell(offset, |length, set| visit(Extent { length, status: set.into() }));
            Ok(())
        }
    }

    fn ask(export: &Runs, most: usize, asked: Asked) -> Vec<Vec<Extent>> {
        let mut status = Status::default();
        status.begin(most);
        status.add(1, Source::new("base:allocation", true));
        status.add(7, Source::new("x-set:set", true));
        status.find(export, asked).unwrap();
        let answers: Vec<_> = status.answers().map(|(id, list)| (id, list.to_vec())).collect();
        assert_eq!(answers.iter().map(|answer| answer.0).collect::<Vec<_>>(), [1, 7]);
        answers.into_iter().map(|answer| answer.1).collect()
    }

    proptest! {
        #[test]
        fn every_block_gets_a_status_that_holds_for_all_of_it(
            lengths in prop::collection::vec((1_u64..3000, any::<bool>()), 1..40),
            minimum in prop::sample::select(vec![1_u32, 512, 1024, 4096]),
            step in 1_usize..10,
            most in 1_usize..20,
            from in 0_u64..20, blocks in 1_u64..20,
        ) {
            let export = Runs { runs: lengths, minimum, step };
            let unit = u64::from(minimum);
            let size = export.size() / unit * unit;
            let offset = from * unit;
            let length = (blocks * unit).min(size.saturating_sub(offset));
            prop_assume!(offset + length <= size && length > 0);
            let flags: Vec<bool> = export.runs.iter()
                .flat_map(|&(length, set)| core::iter::repeat_n(set, length as usize)).collect();
            for one in [false, true] {
                let [allocation, own] = ask(&export, most, Asked { offset, length, one })
                    .try_into().unwrap();
                for (extents, all) in [(allocation, true), (own, false)] {
                    prop_assert!(!extents.is_empty() && extents.len() <= most + 3);
                    let mut at = offset;
                    for extent in extents {
                        let end = at + extent.length;
                        prop_assert!(extent.length > 0);
                        let last = end >= offset + length;
                        prop_assert!(end % unit == 0 || last, "{end}");
                        let bytes = &flags[at as usize..(end as usize).min(flags.len())];
                        // A hole is one everywhere; what is set anywhere is marked.
                        let set = extent.status != 0;
                        let holds = if all {
                            !set || bytes.iter().all(|&byte| byte)
                        } else {
                            set || bytes.iter().all(|&byte| !byte)
                        };
                        prop_assert!(holds, "{at}..{end} is not {set}");
                        at = end;
                    }
                }
            }
        }
    }

    #[test]
    fn neighbours_are_joined_and_aligned_runs_are_left_alone() {
        let runs = vec![(1024, true), (512, true), (512, false), (2048, true)];
        let export = Runs { runs, minimum: 1, step: 10 };
        let asked = Asked { offset: 0, length: 4096, one: false };
        let extent = |length, status| Extent { length, status };
        assert_eq!(ask(&export, 10, asked)[1], [extent(1536, 1), extent(512, 0), extent(2048, 1)]);
    }

    #[test]
    fn a_block_of_data_and_hole_is_data() {
        let runs = vec![(100, true), (100, false), (4096 - 200, true)];
        let export = Runs { runs, minimum: 4096, step: 1 };
        let asked = Asked { offset: 0, length: 4096, one: true };
        let [allocation, own] = ask(&export, 10, asked).try_into().unwrap();
        assert_eq!(allocation, [Extent { length: 4096, status: 0 }]);
        assert_eq!(own, [Extent { length: 4096, status: 1 }]);
    }

    #[test]
    fn an_export_that_tells_nothing_fails_the_request() {
        let export = Runs { runs: vec![(4096, true)], minimum: 1, step: 0 };
        let mut status = Status::default();
        status.begin(10);
        status.add(1, Source::Allocation);
        assert!(status.find(&export, Asked { offset: 0, length: 1, one: false }).is_err());
    }

    #[test]
    fn a_run_in_endless_pieces_ends_at_the_bound() {
        /// 2^62 bytes in runs of one sector, all alike.
        struct Endless;
        impl Export for Endless {
            fn size(&self) -> u64 {
                1 << 62
            }
            fn read(&self, _buffer: &mut [u8], _offset: u64) -> Result<()> {
                Ok(())
            }
            fn extents(&self) -> Option<&dyn Extents> {
                Some(self)
            }
        }
        impl Extents for Endless {
            fn extents(
                &self,
                _offset: u64,
                length: u64,
                visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
            ) -> Result<()> {
                let run = Allocation { length: 512, hole: true, zero: true };
                for _ in 0..length / 512 {
                    if visit(run).is_break() {
                        break;
                    }
                }
                Ok(())
            }
        }
        let mut status = Status::default();
        status.begin(16);
        status.add(1, Source::Allocation);
        status.find(&Endless, Asked { offset: 0, length: 1 << 62, one: false }).unwrap();
        let (_, extents) = status.answers().next().unwrap();
        assert_eq!(extents, [Extent { length: 16 * RUNS_PER_EXTENT as u64 * 512, status: 3 }]);
    }
}
