//! What is left to copy, handed out piece by piece to those who copy.

use std::collections::VecDeque;

use super::extents::Extents;

/// A stretch of bytes that are zero, or may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) length: u64,
    pub(super) zero: bool,
}

/// Something to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// It reads as zeroes, so that there is no need to read it.
    pub(super) zero: bool,
}

/// How a disk is cut. All are powers of two or multiples of `unit`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// What offsets and lengths have to be multiples of, on both sides; a power of two.
    pub(super) unit: u64,
    /// The longest piece of data.
    pub(super) data: u64,
    /// The longest piece of zeroes.
    pub(super) zero: u64,
}

/// A run that is as long as this need not be merged with the next: more would only delay the work.
const LONG: u64 = 1 << 30;

/// Hands out the pieces of a disk, in order. What is known of its zeroes is asked for as it goes.
#[derive(Debug)]
pub(super) struct Plan {
    at: u64,
    end: u64,
    cut: Cut,
    /// What is known of the bytes from `at` on: neighbours differ, unless they are long.
    runs: VecDeque<Run>,
    /// How far they reach.
    known: u64,
    extents: Extents,
}

impl Plan {
    pub(super) fn new(size: u64, cut: Cut, extents: Extents) -> Self {
        Self { at: 0, end: size, cut, runs: VecDeque::new(), known: 0, extents }
    }

    /// Hands out nothing more.
    pub(super) fn stop(&mut self) {
        self.at = self.end;
    }

    /// The next piece. Offsets are multiples of the unit, and so are lengths, but for that of the last piece if the size is
    /// none; that one is data.
    pub(super) fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        self.look_ahead();
        let unit = self.cut.unit;
        let run = self.runs.front().copied().unwrap_or(Run { length: u64::MAX, zero: false });
        let run_end = self.at.saturating_add(run.length).min(self.end);
        let zeroes_end = run_end & !(unit - 1);
        let zero = run.zero && zeroes_end > self.at;
        let end = if zero {
            zeroes_end.min(self.at.saturating_add(self.cut.zero))
        } else {
            // Requests that begin at multiples of their length are easiest on most servers.
            let grid = (self.at / self.cut.data + 1).saturating_mul(self.cut.data);
            run_end.checked_next_multiple_of(unit).unwrap_or(u64::MAX).min(grid).min(self.end)
        };
        let piece = Piece { offset: self.at, length: end - self.at, zero };
        self.advance(end);
        Some(piece)
    }

    /// Learns enough to know where the run at hand ends.
    fn look_ahead(&mut self) {
        while self.known < self.end {
            match self.runs.front() {
                Some(first) if first.length >= LONG || self.runs.len() > 1 => return,
                _ => {}
            }
            let before = self.known;
            for run in self.extents.next(before, self.end) {
                self.known = self.known.saturating_add(run.length);
                match self.runs.back_mut() {
                    Some(last) if last.zero == run.zero => {
                        last.length = last.length.saturating_add(run.length);
                    }
                    _ => self.runs.push_back(run),
                }
            }
            if self.known == before {
                // Nothing is known of the rest, so all of it may be data.
                let length = self.end - before;
                self.runs.push_back(Run { length, zero: false });
                self.known = self.end;
            }
        }
    }

    fn advance(&mut self, to: u64) {
        let mut step = to - self.at;
        self.at = to;
        while let Some(first) = self.runs.front_mut() {
            if first.length > step {
                first.length -= step;
                return;
            }
            step -= first.length;
            self.runs.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(size: u64, unit: u64, runs: &[(u64, bool)]) -> Vec<(u64, u64, bool)> {
        let runs = runs.iter().map(|&(length, zero)| Run { length, zero }).collect();
        let cut = Cut { unit, data: 64, zero: 128 };
        let mut plan = Plan::new(size, cut, Extents::Known(runs));
        let next = || plan.next().map(|piece| (piece.offset, piece.length, piece.zero));
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn without_knowledge_all_is_data_in_pieces_of_the_request_size() {
        assert_eq!(pieces(150, 1, &[]), [(0, 64, false), (64, 64, false), (128, 22, false)]);
        assert_eq!(pieces(0, 1, &[]), []);
    }

    #[test]
    fn neighbours_of_a_kind_are_merged_and_zeroes_are_left_out() {
        let found = pieces(300, 1, &[(5, false), (7, false), (200, true), (88, false)]);
        let wanted =
            [(0, 12, false), (12, 128, true), (140, 72, true), (212, 44, false), (256, 44, false)];
        assert_eq!(found, wanted);
    }

    #[test]
    fn zeroes_shrink_to_whole_units() {
        let found = pieces(100, 16, &[(5, false), (50, true), (1, false), (44, true)]);
        let wanted =
            [(0, 16, false), (16, 32, true), (48, 16, false), (64, 32, true), (96, 4, false)];
        assert_eq!(found, wanted);
        // Zeroes that have no whole unit are data.
        let found = pieces(32, 16, &[(5, false), (20, true), (7, false)]);
        assert_eq!(found, [(0, 16, false), (16, 16, false)]);
    }

    #[test]
    fn what_reaches_past_the_end_is_cut_and_what_falls_short_is_data() {
        assert_eq!(pieces(20, 1, &[(1000, true)]), [(0, 20, true)]);
        assert_eq!(pieces(20, 1, &[(8, true)]), [(0, 8, true), (8, 12, false)]);
    }
}
