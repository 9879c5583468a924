//! Which parts of a range were covered, and that none was covered twice.

use std::collections::BTreeMap;

/// A range and the disjoint pieces of it that were seen.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    start: u64,
    end: u64,
    /// Start and end of each piece.
    pieces: BTreeMap<u64, u64>,
}

impl Coverage {
    /// Nothing of `offset..offset + len` covered yet.
    pub fn new(offset: u64, len: u64) -> Self {
        Self { start: offset, end: offset.saturating_add(len), pieces: BTreeMap::new() }
    }

    /// Adds a piece, which must lie inside the range and apart from every other piece.
    pub fn insert(&mut self, offset: u64, len: u64) -> Result<(), String> {
        let end = offset.checked_add(len).ok_or("the piece wraps around")?;
        if offset < self.start || end > self.end {
            return Err(format!("{offset:#x}..{end:#x} leaves {:#x}..{:#x}", self.start, self.end));
        }
        if let Some((start, stop)) = self.pieces.range(..end).next_back()
            && *stop > offset
        {
            return Err(format!("{offset:#x}..{end:#x} overlaps {start:#x}..{stop:#x}"));
        }
        self.pieces.insert(offset, end);
        Ok(())
    }

    /// The first part that no piece covers.
    pub fn first_gap(&self) -> Option<(u64, u64)> {
        let mut at = self.start;
        for (&start, &end) in &self.pieces {
            if start > at {
                return Some((at, start));
            }
            at = end;
        }
        (at < self.end).then_some((at, self.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_fill_the_range() {
        let mut coverage = Coverage::new(100, 30);
        for offset in [120, 100, 110] {
            assert_eq!(coverage.insert(offset, 10), Ok(()));
        }
        assert_eq!(coverage.first_gap(), None);
    }

    #[test]
    fn gaps_are_found() {
        let mut coverage = Coverage::new(100, 30);
        assert_eq!(coverage.first_gap(), Some((100, 130)));
        coverage.insert(105, 5).unwrap();
        assert_eq!(coverage.first_gap(), Some((100, 105)));
        coverage.insert(100, 5).unwrap();
        assert_eq!(coverage.first_gap(), Some((110, 130)));
    }

    #[test]
    fn overlap_and_excess_are_refused() {
        let mut coverage = Coverage::new(100, 30);
        coverage.insert(110, 10).unwrap();
        for (offset, len) in [(109, 2), (119, 1), (110, 10), (100, 30), (112, 3)] {
            assert!(coverage.insert(offset, len).unwrap_err().contains("overlaps"), "{offset}");
        }
        for (offset, len) in [(99, 1), (129, 2), (130, 1), (u64::MAX, 2)] {
            assert!(coverage.insert(offset, len).is_err(), "{offset}");
        }
        assert_eq!(coverage.insert(109, 1), Ok(()));
        assert_eq!(coverage.insert(120, 10), Ok(()));
    }
}
