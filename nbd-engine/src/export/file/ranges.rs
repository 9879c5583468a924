//! A set of ranges of bytes.

use core::ops::Range;
use std::collections::BTreeMap;

/// Ranges that neither overlap nor touch: start to end.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// More ranges than this are not remembered, so that the set stays small whatever clients do.
    pub(super) const MOST: usize = 4096;

    /// Adds a range, unless the set is full.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        // Those that overlap or touch become one with it.
        let Range { mut start, mut end } = range;
        while let Some((&s, &e)) = self.0.range(..=end).next_back().filter(|&(_, &e)| e >= start) {
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        if self.0.len() < Self::MOST {
            self.0.insert(start, end);
        }
    }

    /// Removes whatever of a range is there.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { start, end } = range;
        while let Some((&s, &e)) = self.0.range(..end).next_back().filter(|&(_, &e)| e > start) {
            self.0.remove(&s);
            if s < start {
                self.0.insert(s, start);
            }
            if e > end {
                self.0.insert(end, e);
            }
        }
    }

    /// Whether `at` is inside, and where the next byte stands that is not as this one, at most `end`.
    pub(super) fn run(&self, at: u64, end: u64) -> (bool, u64) {
        match self.0.range(..=at).next_back() {
            Some((_, &e)) if e > at => (true, e.min(end)),
            _ => (false, self.0.range(at..).next().map_or(end, |(&s, _)| s.min(end))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_set_is_the_same_as_a_list_of_flags(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..64), 0..40)
        ) {
            let mut set = Ranges::default();
            let mut flags = [false; 64];
            for (insert, a, b) in steps {
                let range = a.min(b)..a.max(b);
                flags[range.start as usize..range.end as usize].fill(insert);
                if insert { set.insert(range) } else { set.remove(range) }
            }
            let mut at = 0;
            while at < 64 {
                let (inside, end) = set.run(at, 64);
                prop_assert!(end > at);
                prop_assert!(flags[at as usize..end as usize].iter().all(|&flag| flag == inside));
                prop_assert!(end == 64 || flags[end as usize] != inside);
                at = end;
            }
        }
    }

    #[test]
    fn a_full_set_takes_no_more() {
        let mut set = Ranges::default();
        for at in 0..2 * Ranges::MOST as u64 {
            set.insert(2 * at..2 * at + 1);
        }
        assert_eq!(set.0.len(), Ranges::MOST);
    }
}
