//! From the answers to block status requests, however they are cut, to runs that follow each other.

use core::ops::Range;
use std::vec::IntoIter;

use nbd_proto::Extent;

use super::StatusRun;

/// A walk along a range. It has one position: all bytes before it were reported, or are in the open run.
#[derive(Debug)]
pub(super) struct StatusWalk {
    /// What was not looked at yet, of the answer at hand or of those to come.
    left: Range<u64>,
    /// The size of the export.
    size: u64,
    /// What requests must be multiples of; a power of two.
    block: u64,
    /// The longest request.
    max: u64,
    /// Whether runs are joined across answers.
    joined: bool,
    answer: IntoIter<Extent>,
    /// Where the next extent of the answer begins.
    extent: u64,
    /// Where the answer ends.
    answered: u64,
    /// A run whose end is not known yet.
    open: Option<StatusRun>,
}

impl StatusWalk {
    pub(super) fn new(range: Range<u64>, size: u64, block: u64, max: u64) -> Self {
        Self {
            answered: range.start,
            extent: range.start,
            left: range,
            size,
            block,
            max,
            joined: false,
            answer: Vec::new().into_iter(),
            open: None,
        }
    }

    /// Asks about so many bytes at a time, at most, but no less than a block.
    pub(super) fn limit(&mut self, bytes: u64) {
        let whole = bytes.max(1).checked_next_multiple_of(self.block);
        self.max = whole.unwrap_or(u64::MAX).min(self.max);
    }

    pub(super) const fn join(&mut self) {
        self.joined = true;
    }

    /// Where the next run begins.
    pub(super) const fn position(&self) -> u64 {
        match &self.open {
            Some(open) => open.offset,
            None => self.left.start,
        }
    }

    /// Offset and length of the next request: from where the answer at hand ends, or a little before, since a server takes
    /// nothing but whole blocks. `None` if the answer reaches to the end.
    pub(super) fn question(&self) -> Option<(u64, u64)> {
        let start = self.answered.max(self.left.start);
        if start >= self.left.end {
            return None;
        }
        let from = start - start % self.block;
        let end = match self.left.end.checked_next_multiple_of(self.block) {
            // The last block of an export may be cut off.
            Some(end) if self.left.end <= self.size => end.min(self.size),
            // What reaches past the end is for the check of the request to refuse.
            _ => self.left.end,
        };
        Some((from, (end - from).min(self.max)))
    }

    /// The extents from `from` on, once all of the answer before is used up.
    ///
    /// # Errors
    /// The first byte that was asked about, if nothing is said about it.
    pub(super) fn answered(&mut self, from: u64, extents: Vec<Extent>) -> Result<(), u64> {
        let end = extents.iter().fold(from, |end, extent| end.saturating_add(extent.length));
        if from > self.left.start || end <= self.left.start {
            return Err(self.left.start);
        }
        (self.answer, self.extent, self.answered) = (extents.into_iter(), from, end);
        Ok(())
    }

    /// The next run that is known; neighbours in one answer are joined in any case.
    pub(super) fn next_run(&mut self) -> Option<StatusRun> {
        while !self.left.is_empty() {
            let Some(extent) = self.answer.next() else {
                return if self.joined { None } else { self.open.take() };
            };
            self.extent = self.extent.saturating_add(extent.length);
            // An answer may begin before what is wanted, and reach past what was asked for.
            let (offset, end) = (self.left.start, self.extent.min(self.left.end));
            if end <= offset {
                continue;
            }
            self.left.start = end;
            let run = StatusRun { offset, length: end - offset, status: extent.status };
            match &mut self.open {
                Some(open) if open.status == run.status => open.length += run.length,
                open => {
                    if let Some(done) = open.replace(run) {
                        return Some(done);
                    }
                }
            }
        }
        self.open.take()
    }

    /// Ends the walk where it is.
    pub(super) fn stop(&mut self) {
        self.left.start = self.left.end;
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    const MAX: u64 = (1 << 32) - (1 << 16);

    /// The runs of an export that answers with `script`, one item for each request; and the requests.
    fn runs(mut walk: StatusWalk, script: &[&[(u64, u64)]]) -> (Vec<StatusRun>, Vec<(u64, u64)>) {
        walk.join();
        let (mut asked, mut found, mut script) = (Vec::new(), Vec::new(), script.iter());
        loop {
            found.extend(std::iter::from_fn(|| walk.next_run()));
            let Some((from, length)) = walk.question() else { return (found, asked) };
            asked.push((from, length));
            let answer = script.next().expect("no more requests than answers");
            let extents = answer.iter().map(|&(length, status)| Extent { length, status });
            walk.answered(from, extents.collect()).expect("it says something");
        }
    }

    fn run(offset: u64, length: u64, status: u64) -> StatusRun {
        StatusRun { offset, length, status }
    }

    #[test]
    fn neighbours_of_one_status_are_one_run_across_answers() {
        let walk = StatusWalk::new(0..100, 100, 1, MAX);
        let (found, asked) = runs(walk, &[&[(10, 0), (20, 0)], &[(30, 0), (40, 3)]]);
        assert_eq!(found, [run(0, 60, 0), run(60, 40, 3)]);
        assert_eq!(asked, [(0, 100), (30, 70)]);
    }

    #[test]
    fn runs_that_are_not_joined_come_with_their_answer() {
        let mut walk = StatusWalk::new(0..100, 100, 1, MAX);
        let extents = [10, 20].map(|length| Extent { length, status: 0 });
        walk.answered(0, extents.into()).unwrap();
        assert_eq!(walk.next_run(), Some(run(0, 30, 0)));
        assert_eq!((walk.next_run(), walk.position()), (None, 30));
    }

    #[test]
    fn what_reaches_past_the_range_is_cut() {
        let walk = StatusWalk::new(10..50, 100, 1, MAX);
        let (found, asked) = runs(walk, &[&[(5, 1), (60, 2), (9, 3)]]);
        assert_eq!(found, [run(10, 5, 1), run(15, 35, 2)]);
        assert_eq!(asked, [(10, 40)]);
    }

    #[test]
    fn requests_are_aligned_to_the_minimum_and_runs_are_not() {
        let walk = StatusWalk::new(700..1500, 4096, 512, MAX);
        let (found, asked) = runs(walk, &[&[(512, 0), (512, 3)]]);
        assert_eq!(found, [run(700, 324, 0), run(1024, 476, 3)]);
        assert_eq!(asked, [(512, 1024)]);
    }

    #[test]
    fn an_answer_that_ends_within_a_block_is_followed_by_a_request_for_the_whole_block() {
        let walk = StatusWalk::new(0..2048, 2048, 512, MAX);
        let script = [&[(700, 3)][..], &[(188, 3), (1000, 0)], &[(1024, 0)]];
        let (found, asked) = runs(walk, &script);
        assert_eq!(found, [run(0, 700, 3), run(700, 1348, 0)]);
        assert_eq!(asked, [(0, 2048), (512, 1536), (1536, 512)]);
    }

    #[test]
    fn no_request_is_longer_than_the_bound() {
        let size = 6 << 30;
        let walk = StatusWalk::new(0..size, size, 4096, MAX);
        let (found, asked) = runs(walk, &[&[(MAX, 3)], &[(size - MAX, 3)]]);
        assert_eq!(found, [run(0, size, 3)]);
        assert_eq!(asked, [(0, MAX), (MAX, size - MAX)]);
        let mut walk = StatusWalk::new(0..size, size, 4096, MAX);
        walk.limit(1);
        assert_eq!(walk.question(), Some((0, 4096)));
    }

    #[test]
    fn an_empty_range_asks_nothing() {
        assert_eq!(runs(StatusWalk::new(7..7, 10, 1, MAX), &[]), (vec![], vec![]));
    }

    #[test]
    fn an_answer_that_says_nothing_is_an_error_and_not_an_endless_loop() {
        let mut walk = StatusWalk::new(700..2048, 2048, 512, MAX);
        assert_eq!(walk.answered(512, Vec::new()), Err(700));
        assert_eq!(walk.answered(512, vec![Extent { length: 188, status: 0 }]), Err(700));
        walk.stop();
        assert_eq!((walk.next_run(), walk.question()), (None, None));
    }

    /// Answers of any cut come to the same as the whole one, joined or not.
    #[test]
    fn runs_of_any_answers_are_those_of_the_disk() {
        cases(2000, |random| {
            let block = 1 << random.below(13);
            let size = block * (1 + random.below(40));
            // The status of each block; answers are cut at blocks or anywhere.
            let types: Vec<u64> = (0..size / block).map(|_| random.below(3)).collect();
            let range = random.below(size)..size - random.below(2) * random.below(size);
            let range = range.start.min(range.end)..range.end;
            let mut walk = StatusWalk::new(range.clone(), size, block, MAX);
            let joined = random.one_in(2);
            if joined {
                walk.join();
            }
            if random.one_in(2) {
                walk.limit(random.below(size) + 1);
            }
            let mut found = Vec::new();
            loop {
                found.extend(std::iter::from_fn(|| walk.next_run()));
                let Some((from, length)) = walk.question() else { break };
                assert!(from.is_multiple_of(block) && length.is_multiple_of(block) && length > 0);
                assert!(from + length <= size);
                let (mut offset, mut answer) = (from, Vec::new());
                let stop = (from + block * (1 + random.below(4))).min(size);
                let mut push = |offset: &mut u64, length| {
                    answer.push(Extent { length, status: types[(*offset / block) as usize] });
                    *offset += length;
                };
                while offset < stop {
                    let left = block - offset % block;
                    let part = random.one_in(4);
                    push(&mut offset, if part { random.below(left + 1) } else { left });
                }
                if offset < size && random.one_in(3) {
                    push(&mut offset, random.below(block));
                }
                walk.answered(from, answer).expect("each answer says something");
            }
            let mut end = range.start;
            for run in &found {
                assert_eq!(run.offset, end, "{found:?}");
                assert!(run.length > 0);
                end = run.range().end;
                let blocks = run.offset / block..end.div_ceil(block);
                let alike = |block: u64| types[block as usize] == run.status;
                assert!(blocks.clone().all(alike), "{found:?}");
            }
            assert_eq!(end, range.end, "{found:?}");
            assert!(!joined || found.is_sorted_by(|a, b| a.status != b.status), "{found:?}");
        });
    }
}
