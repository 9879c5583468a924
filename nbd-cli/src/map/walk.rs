//! From the answers to block status requests to runs of one type.

use std::ops::Range;

use nbd_blocking::client::Extent;

use crate::exit::Failure;

/// The longest request of compact headers, rounded down to the largest minimum block size that there is. Lengths that are
/// no multiple of 512 are asking for trouble: nbdkit 1.32 aborts at 2^32 - 1.
const LONGEST: u64 = (1 << 32) - (1 << 16);

/// Bytes of one type; neighbours are of other types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) status: u64,
}

/// What is looked at.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// The bytes of interest.
    pub(super) range: Range<u64>,
    /// Those of the export.
    pub(super) size: u64,
    /// What requests must be multiples of; a power of two.
    pub(super) minimum: u64,
    /// Whether lengths of 64 bits can be asked for.
    pub(super) extended: bool,
}

impl Walk {
    /// How many bytes are looked at.
    pub(super) fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Asks for one stretch after the other, from where the answer before ended, and tells the runs in order. Holds one
    /// answer at a time.
    pub(super) fn runs<E: From<Failure>>(
        &self,
        mut ask: impl FnMut(u64, u64) -> Result<Vec<Extent>, Failure>,
        mut tell: impl FnMut(Run) -> Result<(), E>,
    ) -> Result<(), E> {
        let longest = if self.extended { 1 << 62 } else { LONGEST };
        let end = self.range.end.next_multiple_of(self.minimum).min(self.size);
        // The one position: all bytes before it were told, or are in the open run.
        let mut at = self.range.start;
        let mut open: Option<Run> = None;
        while at < self.range.end {
            let (began, mut reach) = (at, at & !(self.minimum - 1));
            for extent in ask(reach, (end - reach).min(longest))? {
                reach = reach.saturating_add(extent.length);
                // An answer may begin before what is wanted, and reach past what was asked for.
                let to = reach.min(self.range.end);
                if to <= at {
                    continue;
                }
                match &mut open {
                    Some(run) if run.status == extent.status => run.length += to - at,
                    run => {
                        let new = Run { offset: at, length: to - at, status: extent.status };
                        if let Some(done) = run.replace(new) {
                            tell(done)?;
                        }
                    }
                }
                at = to;
            }
            if at == began {
                let text = format!(
                    "the server's answer about the bytes from {at} on tells nothing of them"
                );
                return Err(Failure::failed(text).into());
            }
        }
        open.map_or(Ok(()), tell)
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    /// Offset, length and type.
    type Told = Vec<(u64, u64, u64)>;

    /// Offset and length.
    type Asked = Vec<(u64, u64)>;

    /// The runs of an export that answers with `script`, one item for each request; and the requests.
    fn runs(walk: &Walk, script: &[&[(u64, u64)]]) -> (Told, Asked) {
        let (mut asked, mut told) = (Vec::new(), Vec::new());
        let mut answers = script.iter();
        let ask = |at, length| {
            asked.push((at, length));
            let answer = answers.next().expect("no more requests than answers");
            Ok(answer.iter().map(|&(length, status)| Extent { length, status }).collect())
        };
        let tell = |run: Run| {
            told.push((run.offset, run.length, run.status));
            Ok::<(), Failure>(())
        };
        walk.runs(ask, tell).unwrap();
        (told, asked)
    }

    fn walk(range: Range<u64>, size: u64) -> Walk {
        Walk { range, size, minimum: 1, extended: false }
    }

    #[test]
    fn neighbours_of_one_type_are_one_run_across_answers() {
        let (told, asked) = runs(&walk(0..100, 100), &[&[(10, 0), (20, 0)], &[(30, 0), (40, 3)]]);
        assert_eq!(told, [(0, 60, 0), (60, 40, 3)]);
        assert_eq!(asked, [(0, 100), (30, 70)]);
    }

    #[test]
    fn what_reaches_past_the_range_is_cut() {
        let (told, asked) = runs(&walk(10..50, 100), &[&[(5, 1), (60, 2), (9, 3)]]);
        assert_eq!(told, [(10, 5, 1), (15, 35, 2)]);
        assert_eq!(asked, [(10, 40)]);
    }

    #[test]
    fn requests_are_aligned_to_the_minimum_and_runs_are_not() {
        let walk = Walk { minimum: 512, ..walk(700..1500, 4096) };
        let (told, asked) = runs(&walk, &[&[(512, 0), (512, 3)]]);
        assert_eq!(told, [(700, 324, 0), (1024, 476, 3)]);
        assert_eq!(asked, [(512, 1024)]);
    }

    #[test]
    fn an_answer_that_ends_within_a_block_is_followed_by_a_request_for_the_whole_block() {
        let walk = Walk { minimum: 512, ..walk(0..2048, 2048) };
        let (told, asked) = runs(&walk, &[&[(700, 3)], &[(188, 3), (1000, 0)], &[(1024, 0)]]);
        assert_eq!(told, [(0, 700, 3), (700, 1348, 0)]);
        assert_eq!(asked, [(0, 2048), (512, 1536), (1536, 512)]);
    }

    /// Answers of any cut tell the same as the whole one.
    #[test]
    fn maps_of_any_answers_are_those_of_the_disk() {
        cases(2000, |random| {
            let minimum = 1 << random.below(13);
            let size = minimum * (1 + random.below(40));
            // The type of each block; answers are cut at blocks or anywhere.
            let types: Vec<u64> = (0..size / minimum).map(|_| random.below(3)).collect();
            let range = random.below(size)..size - random.below(2) * random.below(size);
            let range = range.start.min(range.end)..range.end;
            let walk = Walk { minimum, ..walk(range.clone(), size) };
            let mut told = Vec::new();
            let ask = |from: u64, length: u64| {
                assert!(
                    from.is_multiple_of(minimum)
                        && length.is_multiple_of(minimum)
                        && from + length <= size
                );
                let (mut at, mut answer) = (from, Vec::new());
                let stop = (from + minimum * (1 + random.below(4))).min(size);
                let mut push = |at: &mut u64, length| {
                    answer.push(Extent { length, status: types[(*at / minimum) as usize] });
                    *at += length;
                };
                while at < stop {
                    let left = minimum - at % minimum;
                    let part = random.one_in(4);
                    push(&mut at, if part { random.below(left + 1) } else { left });
                }
                if at < size && random.one_in(3) {
                    push(&mut at, random.below(minimum));
                }
                Ok(answer)
            };
            walk.runs(ask, |run| {
                told.push(run);
                Ok::<(), Failure>(())
            })
            .expect("each answer tells something");
            let mut at = range.start;
            for run in &told {
                assert_eq!(run.offset, at, "{told:?}");
                at += run.length;
                let blocks = run.offset / minimum..at.div_ceil(minimum);
                assert!(
                    blocks.clone().all(|block| types[block as usize] == run.status),
                    "{told:?}"
                );
            }
            assert_eq!(at, range.end, "{told:?}");
            assert!(told.is_sorted_by(|a, b| a.status != b.status), "neighbours differ: {told:?}");
        });
    }

    #[test]
    fn no_request_is_longer_than_the_headers_can_say() {
        let size = 6 << 30;
        let walk = Walk { minimum: 4096, ..walk(0..size, size) };
        let longest = LONGEST;
        let (told, asked) = runs(&walk, &[&[(longest, 3)], &[(size - longest, 3)]]);
        assert_eq!(told, [(0, size, 3)]);
        assert_eq!(asked, [(0, longest), (longest, size - longest)]);
        let (_, asked) = runs(&Walk { extended: true, ..walk }, &[&[(size, 3)]]);
        assert_eq!(asked, [(0, size)]);
    }

    #[test]
    fn an_empty_range_asks_nothing() {
        assert_eq!(runs(&walk(7..7, 10), &[]), (vec![], vec![]));
    }

    #[test]
    fn an_empty_answer_is_an_error_and_not_an_endless_loop() {
        let result = walk(0..10, 10).runs(|_, _| Ok(vec![]), |_| Ok::<(), Failure>(()));
        assert!(matches!(result, Err(Failure::Failed(text)) if text.contains("from 0 on")));
    }
}
