//! What one cell may hold.

use std::collections::BTreeSet;

/// The writes of a cell that still matter.
#[derive(Clone, Debug)]
pub(super) struct CellHistory {
    writes: Vec<Write>,
    /// All that was ever written.
    stamps: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    token: Option<u64>,
    stamp: u64,
    issued: u64,
    /// When it had happened at the latest, if it ever did.
    settled: Option<u64>,
    acknowledged: bool,
    /// It may leave the cell as it is.
    optional: bool,
    flushed: bool,
    /// When it was known that no later read shows it.
    hidden: Option<u64>,
    /// A later write was acknowledged, rather than only seen.
    overwritten: bool,
    /// A later write is durable.
    undurable: bool,
    /// One of those of which the latest power cut has left one.
    survivor: bool,
}

impl CellHistory {
    pub(super) fn new() -> Self {
        let zeroes = Write {
            token: None,
            stamp: 0,
            issued: 0,
            settled: Some(0),
            acknowledged: true,
            optional: false,
            flushed: true,
            hidden: None,
            overwritten: false,
            undurable: false,
            survivor: true,
        };
        Self { writes: vec![zeroes], stamps: BTreeSet::from([0]) }
    }

    pub(super) fn begin(&mut self, token: u64, stamp: u64, issued: u64, optional: bool) {
        self.stamps.insert(stamp);
        self.writes.push(Write {
            token: Some(token),
            stamp,
            issued,
            settled: None,
            acknowledged: false,
            optional,
            flushed: false,
            hidden: None,
            overwritten: false,
            undurable: false,
            survivor: false,
        });
    }

    fn find(&mut self, token: u64) -> Option<&mut Write> {
        self.writes.iter_mut().find(|write| write.token == Some(token))
    }

    /// It was carried out, `durably` or not.
    pub(super) fn acknowledge(&mut self, token: u64, now: u64, durably: bool) {
        let Some(write) = self.find(token) else { return };
        write.settled.get_or_insert(now);
        write.acknowledged = true;
        if write.optional {
            return;
        }
        write.flushed |= durably;
        let issued = write.issued;
        for other in self.writes.iter_mut().filter(|other| other.is_before(issued)) {
            other.hidden.get_or_insert(now);
            other.overwritten = true;
            other.undurable |= durably;
        }
    }

    /// It has happened by now, or never will.
    pub(super) fn settle(&mut self, token: u64, now: u64) {
        if let Some(write) = self.find(token) {
            write.settled.get_or_insert(now);
        }
    }

    /// All have happened by now, or never will, but for those that are sent again.
    pub(super) fn settle_all(&mut self, now: u64, is_resent: impl Fn(u64) -> bool) {
        for write in self.writes.iter_mut().filter(|write| !write.token.is_some_and(&is_resent)) {
            write.settled.get_or_insert(now);
        }
    }

    /// It has certainly not happened.
    pub(super) fn retract(&mut self, token: u64) {
        self.writes.retain(|write| write.token != Some(token));
    }

    /// A flush has succeeded that was issued at `issued`.
    pub(super) fn flushed(&mut self, issued: u64) {
        for index in 0..self.writes.len() {
            let write = &mut self.writes[index];
            if !write.acknowledged || write.optional || write.flushed || !write.is_before(issued) {
                continue;
            }
            write.flushed = true;
            let begun = write.issued;
            for other in self.writes.iter_mut().filter(|other| other.is_before(begun)) {
                other.undurable = true;
            }
        }
    }

    /// A read that was issued at `issued` shows `stamp`. `survived` says whether no power cut came between, and `keeping`
    /// whether clients may write again what was acknowledged.
    pub(super) fn observe(
        &mut self,
        stamp: u64,
        issued: u64,
        now: u64,
        survived: bool,
        keeping: bool,
    ) -> Result<(), &'static str> {
        if !self.stamps.contains(&stamp) {
            return Err("which never wrote there");
        }
        if !survived {
            return Ok(());
        }
        let mut possible = self.writes.iter().filter(|write| write.stamp == stamp).peekable();
        if possible.peek().is_none() {
            return Err("which a power cut undid, or which was flushed over before it");
        }
        if !possible.any(|write| write.hidden.is_none_or(|hidden| hidden >= issued)) {
            return Err("over which something else was written before");
        }
        if keeping {
            // What is written again may land in another order than before.
            return Ok(());
        }
        // What was over before the read can't come back.
        for other in self.writes.iter_mut().filter(|other| other.stamp != stamp) {
            if other.is_before(issued) {
                other.hidden.get_or_insert(now);
            }
        }
        // A power cut leaves one version.
        let only_survivors =
            self.writes.iter().filter(|write| write.stamp == stamp).all(|write| write.survivor);
        if only_survivors {
            self.writes.retain(|write| !write.survivor || write.stamp == stamp);
        }
        Ok(())
    }

    /// The cache is lost, but for any part of it.
    pub(super) fn cut_power(&mut self) {
        self.writes.retain(|write| !write.undurable);
        for write in &mut self.writes {
            write.hidden = None;
            write.overwritten = false;
            // What is sent again may still happen.
            let happened = write.settled.is_some();
            write.flushed |= happened;
            write.acknowledged |= happened;
            write.survivor = happened;
        }
    }

    /// The cache is lost, but all that was acknowledged is written again before anybody looks.
    pub(super) fn cut_power_kept(&mut self) {
        for write in self.writes.iter_mut().filter(|write| !write.overwritten) {
            // What was only seen may be gone.
            write.hidden = None;
        }
    }
}

impl Write {
    /// Whether it was settled before that moment.
    fn is_before(&self, moment: u64) -> bool {
        self.settled.is_some_and(|settled| settled < moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cell with writes 1, 2, ... that were acknowledged one after the other: the first at tick 2.
    fn written(count: u64) -> (CellHistory, u64) {
        let mut cell = CellHistory::new();
        for token in 1..=count {
            cell.begin(token, token, 2 * token - 1, false);
            cell.acknowledge(token, 2 * token, false);
        }
        (cell, 2 * count + 1)
    }

    fn shows(cell: &CellHistory, stamp: u64, issued: u64) -> bool {
        cell.clone().observe(stamp, issued, issued + 1, true, false).is_ok()
    }

    #[test]
    fn an_acknowledged_write_is_read_back() {
        let (cell, now) = written(2);
        assert!(!shows(&cell, 0, now) && !shows(&cell, 1, now) && shows(&cell, 2, now));
        assert!(!shows(&cell, 9, now), "nobody wrote that");
        assert!(shows(&cell, 1, 3), "a read that began before the second write");
    }

    #[test]
    fn concurrent_writes_land_in_either_order_but_do_not_alternate() {
        let mut cell = CellHistory::new();
        cell.begin(1, 1, 1, false);
        cell.begin(2, 2, 2, false);
        cell.acknowledge(1, 3, false);
        cell.acknowledge(2, 4, false);
        assert!(!shows(&cell, 0, 5) && shows(&cell, 1, 5) && shows(&cell, 2, 5));
        cell.observe(1, 5, 6, true, false).unwrap();
        assert!(shows(&cell, 1, 7) && !shows(&cell, 2, 7));
    }

    #[test]
    fn a_power_cut_undoes_what_was_not_flushed() {
        let (mut cell, now) = written(2);
        cell.flushed(now);
        cell.begin(3, 3, now + 1, false);
        cell.acknowledge(3, now + 2, false);
        cell.cut_power();
        assert!(!shows(&cell, 1, now + 3), "flushed over");
        assert!(shows(&cell, 2, now + 3) && shows(&cell, 3, now + 3));
        cell.observe(2, now + 4, now + 5, true, false).unwrap();
        assert!(!shows(&cell, 3, now + 6), "it was lost");
        cell.cut_power();
        assert!(!shows(&cell, 3, now + 7), "for ever");
    }

    #[test]
    fn a_flush_covers_what_was_acknowledged_before_it_was_issued() {
        let (mut cell, now) = written(1);
        cell.begin(2, 2, now, false);
        cell.flushed(now + 1);
        cell.acknowledge(2, now + 2, false);
        cell.cut_power();
        assert!(!shows(&cell, 0, now + 3) && shows(&cell, 1, now + 3) && shows(&cell, 2, now + 3));
    }

    #[test]
    fn what_nobody_heard_of_may_still_happen_until_the_server_ends() {
        let (mut cell, now) = written(1);
        cell.begin(2, 2, now, false);
        assert!(shows(&cell, 1, now + 10) && shows(&cell, 2, now + 11));
        cell.settle_all(now + 12, |_| false);
        cell.observe(1, now + 13, now + 14, true, false).unwrap();
        assert!(!shows(&cell, 2, now + 15));
    }

    #[test]
    fn a_trim_may_change_nothing() {
        let (mut cell, now) = written(1);
        cell.begin(2, 0, now, true);
        cell.acknowledge(2, now + 1, false);
        assert!(shows(&cell, 0, now + 2) && shows(&cell, 1, now + 2));
        cell.observe(0, now + 2, now + 3, true, false).unwrap();
        assert!(!shows(&cell, 1, now + 4));
    }
}
