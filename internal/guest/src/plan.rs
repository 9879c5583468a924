//! What is written: a seed decides all of it, so that it is known afterwards.
//!
//! Writes come in batches, whose writes are in flight at the same time and never overlap: each has a stripe of its own.

use core::ops::Range;

use nbd_testkit::Random;

/// Bytes of a sector: a disk writes each of them whole or not at all.
pub(crate) const SECTOR: usize = 512;

/// Writes of a batch.
pub(crate) const BATCH: u64 = 8;

/// Sectors of a stripe: 1 MiB.
const STRIPE: u64 = 2048;

/// Sectors that are written to in all.
pub(crate) const SECTORS: u64 = BATCH * STRIPE;

/// Max sectors of a write.
const LONGEST: u64 = 64;

/// Writes among which one has FUA, on average. A server in the guest makes it durable by a flush of the disk, which
/// empties the disk's cache; a cut of an empty cache shows nothing.
const WRITES_PER_FUA: u64 = 256;

/// Batches between two flushes, on average.
const BATCHES_PER_FLUSH: u64 = 16;

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) number: u64,
    /// The sectors.
    pub(crate) sectors: Range<u64>,
    pub(crate) fua: bool,
}

impl Write {
    /// Write number `number` of a seed.
    pub(crate) fn of(seed: u64, number: u64) -> Self {
        let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let length = 1 + random.below(LONGEST);
        // Few offsets, so that they are written to again and again.
        let start = number % BATCH * STRIPE + random.below(STRIPE / LONGEST) * LONGEST;
        Self { number, sectors: start..start + length, fua: random.one_in(WRITES_PER_FUA) }
    }

    /// Bytes from the start of the disk.
    pub(crate) fn offset(&self) -> u64 {
        self.sectors.start * SECTOR as u64
    }

    /// What is written.
    pub(crate) fn data(&self, seed: u64) -> Vec<u8> {
        self.sectors.clone().flat_map(|sector| content(seed, self.number, sector)).collect()
    }
}

/// Whether a flush follows the batch that ends before write number `next`: at any distance from the last flush, so that
/// much or little is in the disk's cache.
pub(crate) fn flush_before(seed: u64, next: u64) -> bool {
    Random::new(seed ^ next.rotate_left(16)).one_in(BATCHES_PER_FLUSH)
}

/// What a write puts into a sector: its number, and bytes that depend on everything.
pub(crate) fn content(seed: u64, number: u64, sector: u64) -> [u8; SECTOR] {
    let mut random = Random::new(seed ^ number.rotate_left(32) ^ sector.rotate_left(48));
    let mut content = [0; SECTOR];
    for word in content.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    // Never zero, which means that nothing was written.
    content[..8].copy_from_slice(&(number + 1).to_le_bytes());
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_in_flight_at_the_same_time_do_not_overlap() {
        for number in 0..1000 {
            let write = Write::of(7, number);
            let stripe = number % BATCH * STRIPE..(number % BATCH + 1) * STRIPE;
            assert!(stripe.start <= write.sectors.start && write.sectors.end <= stripe.end);
            assert_eq!(write, Write::of(7, number));
            let length = (write.sectors.end - write.sectors.start) as usize * SECTOR;
            assert_eq!(write.data(7).len(), length);
        }
    }

    #[test]
    fn much_is_written_between_two_flushes_and_fua_writes() {
        for seed in 0..8 {
            let batches = 4000;
            let flushes = (1..=batches).filter(|batch| flush_before(seed, batch * BATCH)).count();
            let fuas = (0..batches * BATCH).filter(|number| Write::of(seed, *number).fua).count();
            assert!((150..400).contains(&flushes), "{flushes} flushes");
            assert!((60..250).contains(&fuas), "{fuas} FUA writes");
        }
    }
}
