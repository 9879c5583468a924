//! The two images of a disk: what reads see, and what survives a power cut.

use nbd_testkit::Random;

/// The cells of a disk.
#[derive(Clone, Debug)]
pub(super) struct Image {
    cells: Vec<Cell>,
    /// Changes so far.
    changes: u64,
}

#[derive(Clone, Debug, Default)]
struct Cell {
    durable: Version,
    /// Later versions in the order in which they were written. The last one is what reads see.
    cached: Vec<Version>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Version {
    stamp: u64,
    number: u64,
}

impl Image {
    pub(super) fn new(cells: u64) -> Self {
        Self { cells: vec![Cell::default(); cells as usize], changes: 0 }
    }

    fn cell(&mut self, index: u64) -> &mut Cell {
        &mut self.cells[index as usize]
    }

    /// What reads see.
    pub(super) fn read(&self, index: u64) -> u64 {
        let cell = &self.cells[index as usize];
        cell.cached.last().map_or(cell.durable.stamp, |version| version.stamp)
    }

    /// What survives.
    pub(super) fn durable(&self, index: u64) -> u64 {
        self.cells[index as usize].durable.stamp
    }

    /// Changes so far, for a [`flush`](Self::flush).
    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    /// Changes a cell in the cache; gives the number of the change.
    pub(super) fn write(&mut self, index: u64, stamp: u64) -> u64 {
        self.changes += 1;
        let number = self.changes;
        self.cell(index).cached.push(Version { stamp, number });
        number
    }

    /// Makes a cell's changes durable, up to a number.
    pub(super) fn settle(&mut self, index: u64, up_to: u64) {
        let cell = self.cell(index);
        let settled = cell.cached.partition_point(|version| version.number <= up_to);
        if let Some(last) = cell.cached.drain(..settled).next_back() {
            cell.durable = last;
        }
    }

    /// Makes all changes durable, up to a number.
    pub(super) fn flush(&mut self, up_to: u64) {
        for index in 0..self.cells.len() {
            self.settle(index as u64, up_to);
        }
    }

    /// Pushes some change out of the cache.
    pub(super) fn destage(&mut self, random: &mut Random) {
        let index = random.below(self.cells.len() as u64);
        let versions = &self.cell(index).cached;
        if !versions.is_empty() {
            let number = versions[random.below(versions.len() as u64) as usize].number;
            self.settle(index, number);
        }
    }

    /// Loses the cache, but for any part of it. With `forgets` durable data, too, by a fault that is put in on purpose.
    /// Gives what reads showed and do not show any more: cells and stamps.
    pub(super) fn cut_power(&mut self, random: &mut Random, forgets: bool) -> Vec<(u64, u64)> {
        let survivors = random.of(&[0, 2, 4]);
        let mut lost = Vec::new();
        for (index, cell) in self.cells.iter_mut().enumerate() {
            let shown = cell.cached.last().map_or(cell.durable.stamp, |version| version.stamp);
            let versions = cell.cached.len() as u64;
            if versions > 0 && survivors > 0 && random.one_in(survivors) {
                cell.durable = cell.cached[random.below(versions) as usize];
            }
            if forgets && random.one_in(4) {
                cell.durable = Version::default();
            }
            cell.cached.clear();
            if cell.durable.stamp != shown {
                lost.push((index as u64, shown));
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_survives_and_what_was_not_may() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let random = &mut Random::new(seed);
            let mut image = Image::new(1);
            image.write(0, 1);
            let up_to = image.changes();
            image.write(0, 2);
            image.write(0, 3);
            image.flush(up_to);
            assert_eq!((image.read(0), image.durable(0)), (3, 1));
            image.cut_power(random, false);
            seen.insert(image.read(0));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_change_never_undoes_a_later_one_that_is_durable() {
        let mut image = Image::new(1);
        let first = image.write(0, 1);
        let second = image.write(0, 2);
        image.settle(0, second);
        image.settle(0, first);
        assert_eq!((image.read(0), image.durable(0)), (2, 2));
    }
}
