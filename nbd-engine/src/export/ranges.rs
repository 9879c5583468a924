//! A set of ranges: of bytes, or of whatever units its owner counts in.

use core::ops::Range;
use std::collections::BTreeMap;

/// Ranges that neither overlap nor touch: start to end.
#[derive(Debug, Default)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range, unless that would make them more than `max`.
    pub(crate) fn insert_up_to(&mut self, max: usize, range: Range<u64>) {
        if let Some((start, end)) = self.absorb(range)
            && self.0.len() < max
        {
            self.0.insert(start, end);
        }
    }

    /// Adds a range.
    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if let Some((start, end)) = self.absorb(range) {
            self.0.insert(start, end);
        }
    }

    /// Takes out what overlaps or touches a range; gives what is to be put in instead.
    fn absorb(&mut self, range: Range<u64>) -> Option<(u64, u64)> {
        if range.is_empty() {
            return None;
        }
        // Those that overlap or touch become one with it.
        let Range { mut start, mut end } = range;
        while let Some((&s, &e)) = self.0.range(..=end).next_back().filter(|&(_, &e)| e >= start) {
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        Some((start, end))
    }

    /// Removes whatever of a range is there.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
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

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether `at` is inside.
    pub(crate) fn contains(&self, at: u64) -> bool {
        self.0.range(..=at).next_back().is_some_and(|(_, &end)| end > at)
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// Whether `at` is inside, and where the next byte stands that is not as this one, at max `end`.
    pub(crate) fn run(&self, at: u64, end: u64) -> (bool, u64) {
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
                prop_assert_eq!(inside, set.contains(at));
                prop_assert!(flags[at as usize..end as usize].iter().all(|&flag| flag == inside));
                prop_assert!(end == 64 || flags[end as usize] != inside);
                at = end;
            }
        }
    }

    #[test]
    fn a_full_set_takes_no_more() {
        let mut set = Ranges::default();
        for at in 0..200 {
            set.insert_up_to(100, 2 * at..2 * at + 1);
        }
        assert_eq!(set.len(), 100);
    }
}
