//! Where zeroes are: by block status from servers, by holes from files.

use core::fmt;
use core::ops::Range;
use std::collections::VecDeque;

use nbd_blocking::Client;
use nbd_blocking::client::{AllocationFlags, BlockStatusRange, Error};

use super::disk::Disk;
use crate::map::ALLOCATION;
use crate::output;
use crate::target::Names;

/// How much a server is asked about at a time: enough that few questions are asked, and little enough that the answers
/// stay small and the first one comes soon.
const WINDOW: u64 = 512 << 20;

/// Bytes that read as zeroes, or may be anything. Runs have absolute offsets: none depends on where another one ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) range: Range<u64>,
    pub(super) zero: bool,
}

/// What the source says of its bytes: one answer for each offset, however the answers are cut.
#[derive(Debug)]
pub(super) struct Extents {
    oracle: Oracle,
    /// Where the source ends.
    end: u64,
    /// What was reported and is not forgotten yet: in order, without overlaps, none empty or past the end.
    known: VecDeque<Run>,
}

impl Extents {
    pub(super) fn new(oracle: Oracle, end: u64) -> Self {
        Self { oracle, end, known: VecDeque::new() }
    }

    /// The run that holds the byte at `offset`, which lies before the end. What nothing is known of may be data.
    pub(super) fn at(&mut self, offset: u64) -> Run {
        if let Some(run) = self.find(offset) {
            return run;
        }
        for run in self.oracle.ask(offset, self.end) {
            self.learn(run);
        }
        if let Some(run) = self.find(offset) {
            return run;
        }
        // A source that does not answer once would be asked for every block.
        self.oracle = Oracle::None;
        let rest = Run { range: offset..self.end, zero: false };
        self.learn(rest.clone());
        rest
    }

    /// Lets go of what ends at `offset` or before it.
    pub(super) fn forget(&mut self, offset: u64) {
        while self.known.front().is_some_and(|run| run.range.end <= offset) {
            self.known.pop_front();
        }
    }

    fn find(&self, offset: u64) -> Option<Run> {
        let index = self.known.partition_point(|run| run.range.end <= offset);
        self.known.get(index).filter(|run| run.range.contains(&offset)).cloned()
    }

    /// Adds what is new in a run.
    fn learn(&mut self, Run { mut range, zero }: Run) {
        let last = self.known.back_mut();
        range.start = range.start.max(last.as_ref().map_or(0, |last| last.range.end));
        range.end = range.end.min(self.end);
        if range.is_empty() {
            return;
        }
        match last {
            Some(last) if last.zero == zero && last.range.end == range.start => {
                last.range.end = range.end;
            }
            _ => self.known.push_back(Run { range, zero }),
        }
    }
}

#[cfg(test)]
pub(super) type Script = dyn FnMut(u64, u64) -> Vec<(u64, bool)> + Send;

/// The side that knows where the zeroes are.
pub(super) enum Oracle {
    /// None, or none is asked.
    None,
    /// The server.
    Server(Box<Status>),
    /// The file system.
    Disk(Disk),
    /// Two sides, of which both have to have zeroes.
    Both(Box<[Extents; 2]>),
    /// A test: gives lengths, and whether they are zero, from an offset on.
    #[cfg(test)]
    Script(Box<Script>),
}

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Server(_) => "Server",
            Self::Disk(_) => "Disk",
            Self::Both(_) => "Both",
            #[cfg(test)]
            Self::Script(_) => "Script",
        })
    }
}

impl Oracle {
    /// What is known of some bytes, in order, one after the other. They need not begin at `offset`, but do so before
    /// it.
    fn ask(&mut self, offset: u64, end: u64) -> Vec<Run> {
        match self {
            Self::None => Vec::new(),
            Self::Server(status) => status.ask(offset),
            Self::Disk(disk) => match disk.run(offset, end) {
                Ok((zero, end)) => vec![Run { range: offset..end, zero }],
                // Without it the copy is slower, and as good.
                Err(error) => {
                    tracing::warn!(offset, %error, "holes are not known: reading everything from here on");
                    Vec::new()
                }
            },
            Self::Both(sides) => {
                let [one, other] = sides.each_mut().map(|side| {
                    side.forget(offset);
                    side.at(offset)
                });
                let range = offset..one.range.end.min(other.range.end).min(end);
                vec![Run { range, zero: one.zero && other.zero }]
            }
            #[cfg(test)]
            Self::Script(script) => runs(offset, script(offset, end)),
        }
    }
}

/// From the lengths of an answer about the bytes from `offset` on to absolute offsets.
#[cfg(test)]
fn runs(offset: u64, lengths: impl IntoIterator<Item = (u64, bool)>) -> Vec<Run> {
    let mut start = offset;
    let run = |(length, zero)| {
        let range = start..start.saturating_add(length);
        start = range.end;
        Run { range, zero }
    };
    lengths.into_iter().map(run).collect()
}

/// A server that is asked ahead: while one answer is used, the next is on its way.
#[derive(Debug)]
pub(super) struct Status {
    range: Box<BlockStatusRange>,
    names: Names,
}

impl Status {
    /// What the server says of the bytes up to `end`.
    pub(super) fn new(client: &Client, end: u64, names: Names) -> Self {
        let range = client.block_status_range(ALLOCATION, 0, end).with_window(WINDOW);
        Self { range: Box::new(range), names }
    }

    fn ask(&mut self, offset: u64) -> Vec<Run> {
        loop {
            match self.range.next() {
                Some(Ok(run)) if run.range().end <= offset => {}
                Some(Ok(run)) => {
                    let state = AllocationFlags::from_bits_retain(run.status as u32);
                    // A hole that does not say so may read as anything.
                    let zero = state.contains(AllocationFlags::ZERO);
                    return vec![Run { range: run.range(), zero }];
                }
                // We are about to end; or the server does not know, and what it does not know may be data.
                None | Some(Err(Error::Disconnected { .. } | Error::NoStatus { .. })) => {
                    return Vec::new();
                }
                Some(Err(error)) => {
                    // Without it the copy is slower, and as good.
                    let error = output::printable(&self.names.put(&error.to_string()));
                    tracing::warn!(
                        offset,
                        error,
                        "block status failed: reading everything from here on"
                    );
                    return Vec::new();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_any_cut_means_the_same() {
        // Answers that begin early, overlap, are too long, or have empty runs.
        let answers = |offset: u64, _| match offset {
            0 => vec![(3, true), (0, false), (4, true)],
            7 => vec![(3, false)],
            10 => vec![(u64::MAX, true)],
            _ => vec![],
        };
        let mut extents = Extents::new(Oracle::Script(Box::new(answers)), 20);
        let run = |range, zero| Run { range, zero };
        assert_eq!(extents.at(5), run(5..20, false), "no answer");
        let mut extents = Extents::new(Oracle::Script(Box::new(answers)), 20);
        assert_eq!(extents.at(0), run(0..7, true));
        assert_eq!(extents.at(7), run(7..10, false));
        assert_eq!(extents.at(10), run(10..20, true));
        extents.forget(8);
        assert_eq!(extents.known.len(), 2, "what was passed is forgotten");
        assert_eq!(extents.at(9), run(7..10, false), "what is in use is kept");
        assert_eq!(extents.at(19), run(10..20, true));
    }

    #[test]
    fn two_sides_have_zeroes_where_both_have_them() {
        let side = |lengths: &[(u64, bool)]| {
            let mut answers = Some(lengths.to_vec());
            let script = move |_, _| answers.take().unwrap_or_default();
            Extents::new(Oracle::Script(Box::new(script)), 20)
        };
        let sides = [
            side(&[(5, true), (5, false), (8, true), (2, false)]),
            side(&[(7, true), (2, false), (3, true)]),
        ];
        let mut both = Extents::new(Oracle::Both(Box::new(sides)), 20);
        let found: Vec<u64> = (0..20).filter(|offset| both.at(*offset).zero).collect();
        assert_eq!(found, [0, 1, 2, 3, 4, 10, 11], "what one side does not know of is data");
    }
}
