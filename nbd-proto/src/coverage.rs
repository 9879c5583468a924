//! Which parts of a request's range are accounted for.

use alloc::vec::Vec;

use crate::Misuse;

/// A set of disjoint ranges. In-order additions, by far the most common, stay a single range without a search.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    /// Sorted, disjoint, never touching: `(start, end)`.
    ranges: Vec<(u64, u64)>,
}

impl Coverage {
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// The number of separate ranges, which is what the set's memory grows with.
    pub(crate) fn fragments(&self) -> usize {
        self.ranges.len()
    }

    /// Adds `start..end`. Refuses an empty range and one that overlaps what is there.
    pub(crate) fn add(&mut self, start: u64, end: u64) -> Result<(), Misuse> {
        if start >= end {
            return Err(Misuse::BadContent);
        }
        if let Some(last) = self.ranges.last_mut() {
            if last.1 == start {
                last.1 = end;
                return Ok(());
            }
            if last.1 < start {
                self.ranges.push((start, end));
                return Ok(());
            }
        } else {
            self.ranges.push((start, end));
            return Ok(());
        }
        self.insert(start, end)
    }

    fn insert(&mut self, start: u64, end: u64) -> Result<(), Misuse> {
        let next = self.ranges.partition_point(|range| range.1 <= start);
        if self.ranges.get(next).is_some_and(|range| range.0 < end) {
            return Err(Misuse::BadContent);
        }
        let touches_next = self.ranges.get(next).is_some_and(|range| range.0 == end);
        let before = next
            .checked_sub(1)
            .filter(|index| self.ranges.get(*index).is_some_and(|range| range.1 == start));
        match (before, touches_next) {
            (Some(before), true) => {
                let (_, joined_end) = self.ranges.remove(next);
                if let Some(range) = self.ranges.get_mut(before) {
                    range.1 = joined_end;
                }
            }
            (Some(before), false) => {
                if let Some(range) = self.ranges.get_mut(before) {
                    range.1 = end;
                }
            }
            (None, true) => {
                if let Some(range) = self.ranges.get_mut(next) {
                    range.0 = start;
                }
            }
            (None, false) => self.ranges.insert(next, (start, end)),
        }
        Ok(())
    }

    /// Whether nothing is covered.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether exactly `start..end` is covered, which is not empty.
    pub(crate) fn is_exactly(&self, start: u64, end: u64) -> bool {
        matches!(self.ranges.as_slice(), [only] if *only == (start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlap_is_refused_and_gaps_are_seen() {
        let mut coverage = Coverage::default();
        coverage.add(10, 20).unwrap();
        coverage.add(30, 40).unwrap();
        assert_eq!(coverage.add(15, 16), Err(Misuse::BadContent));
        assert_eq!(coverage.add(5, 11), Err(Misuse::BadContent));
        assert_eq!(coverage.add(20, 20), Err(Misuse::BadContent));
        assert!(!coverage.is_exactly(10, 40));
        coverage.add(20, 30).unwrap();
        assert!(coverage.is_exactly(10, 40));
        coverage.add(0, 10).unwrap();
        assert!(coverage.is_exactly(0, 40));
    }

    proptest! {
        #![proptest_config(crate::effort::config())]

        /// Any order of adding the pieces of a range gives the same answers as a map of bytes.
        #[test]
        fn agrees_with_a_map_of_bytes(pieces in prop::collection::vec((0u64..64, 1u64..16), 0..40)) {
            let mut coverage = Coverage::default();
            let mut map = [false; 128];
            for (start, length) in pieces {
                let range = start as usize..(start + length) as usize;
                let free = !map[range.clone()].iter().any(|taken| *taken);
                prop_assert_eq!(coverage.add(start, start + length).is_ok(), free);
                if free {
                    map[range].fill(true);
                }
            }
            let fragments = map.windows(2).filter(|pair| !pair[0] && pair[1]).count() + usize::from(map[0]);
            prop_assert_eq!(coverage.fragments(), fragments);
        }
    }
}
