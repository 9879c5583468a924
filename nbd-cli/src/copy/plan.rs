//! What is left to copy, handed out piece by piece to the threads that copy.
//!
//! One position walks a copy: [`Plan::at`]. What is known of the source is looked up by absolute offsets from there, so
//! that a piece that was rounded can't shift what comes after it.

use super::extents::Extents;

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

impl Cut {
    /// The longest piece of data: `wanted` bytes, if the sides take requests of `max`; a multiple of `unit`, and one at
    /// least.
    pub(super) fn longest_data(wanted: u64, max: u64, unit: u64) -> u64 {
        (wanted.min(max) & !(unit - 1)).max(unit)
    }
}

/// Hands out the pieces of a disk, in order. What is known of its zeroes is asked for as it goes.
#[derive(Debug)]
pub(super) struct Plan {
    at: u64,
    end: u64,
    cut: Cut,
    extents: Extents,
}

impl Plan {
    pub(super) fn new(size: u64, cut: Cut, extents: Extents) -> Self {
        Self { at: 0, end: size, cut, extents }
    }

    /// Leaves out what is before `offset`, a multiple of the unit.
    pub(super) fn from(self, offset: u64) -> Self {
        Self { at: offset, ..self }
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
        self.extents.forget(self.at);
        let zeroes = self.zeroes(self.at, self.cut.zero);
        let zero = zeroes > 0;
        let length = if zero { zeroes } else { self.data() };
        let piece = Piece { offset: self.at, length, zero };
        self.at += length;
        Some(piece)
    }

    /// How many bytes from `from` on are whole units of zeroes, at most `max`, which is a multiple of the unit.
    fn zeroes(&mut self, from: u64, max: u64) -> u64 {
        let limit = from.saturating_add(max).min(self.end);
        let mut reach = from;
        while reach < limit {
            let run = self.extents.at(reach);
            if !run.zero {
                break;
            }
            reach = run.range.end.min(limit);
        }
        let length = reach - from;
        length - length % self.cut.unit
    }

    /// How long the piece of data is that begins here. A unit of which a part may be data is data.
    fn data(&mut self) -> u64 {
        let Cut { unit, data, .. } = self.cut;
        // Requests that begin at multiples of their length are easiest on most servers.
        let limit = (self.at / data + 1).saturating_mul(data).min(self.end);
        let mut reach = self.at;
        loop {
            let run = self.extents.at(reach);
            let end = if run.zero { reach + 1 } else { run.range.end };
            reach = end.checked_next_multiple_of(unit).unwrap_or(u64::MAX).min(limit);
            if reach == limit || self.zeroes(reach, unit) > 0 {
                return reach - self.at;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;
    use crate::copy::extents::Oracle;

    #[test]
    fn the_longest_piece_of_data_fits_both_sides_and_has_whole_units() {
        cases(2000, |random| {
            let unit = 1 << random.below(17);
            let [wanted, max] = [(); 2].map(|()| {
                let bits = random.below(27);
                1 + random.below(1 << bits)
            });
            let longest = Cut::longest_data(wanted, max, unit);
            let limit = wanted.min(max);
            assert!(longest > 0 && longest.is_multiple_of(unit), "{longest} {unit}");
            assert!(longest == unit || longest <= limit, "{longest} {limit} {unit}");
            assert!(longest + unit > limit, "{longest} {limit} {unit}");
        });
    }

    /// The pieces of a source that reports these lengths, at once.
    fn pieces(size: u64, unit: u64, runs: &[(u64, bool)]) -> Vec<(u64, u64, bool)> {
        let mut answers = Some(runs.to_vec());
        let oracle = Oracle::Script(Box::new(move |_, _| answers.take().unwrap_or_default()));
        let cut = Cut { unit, data: 64, zero: 128 };
        let mut plan = Plan::new(size, cut, Extents::new(oracle, size));
        let next = || {
            let piece = plan.next();
            piece.map(|piece| (piece.offset, piece.length, piece.zero))
        };
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
        assert_eq!(found, [(0, 32, false)]);
    }

    /// A unit that begins with data and ends with data takes the hole between them along, and nothing after it moves.
    #[test]
    fn what_lies_within_a_unit_of_data_shifts_nothing() {
        let found = pieces(
            128,
            32,
            &[(2, false), (6, true), (8, false), (48, true), (32, false), (32, true)],
        );
        assert_eq!(found, [(0, 32, false), (32, 32, true), (64, 32, false), (96, 32, true)]);
    }

    #[test]
    fn what_reaches_past_the_end_is_cut_and_what_falls_short_is_data() {
        assert_eq!(pieces(20, 1, &[(1000, true)]), [(0, 20, true)]);
        assert_eq!(pieces(20, 1, &[(8, true)]), [(0, 8, true), (8, 12, false)]);
    }
}
