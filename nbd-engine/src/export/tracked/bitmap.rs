//! Which blocks of a disk are dirty, in bounded memory.

use core::ops::Range;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::bits::{Bits, WORDS};
use super::budget::{Budget, Share};
use crate::export::ranges::Ranges;

/// Blocks of a chunk.
const CHUNK: u64 = 1 << 15;
const _: () = assert!(WORDS as u64 * 64 == CHUNK);

/// Chunks of which some blocks are dirty: 4 KiB of bits each, 16 MiB in all.
const MAX_PARTIAL: usize = 4096;

/// Runs of chunks that are dirty as a whole.
const MAX_RUNS: usize = 4096;

/// Bytes that a chunk of which some blocks are dirty takes: its bits, and its entry in the map.
const PARTIAL_BYTES: u64 = WORDS as u64 * 8 + 80;

/// Bytes that a run of dirty chunks takes in its map.
const RUN_BYTES: u64 = 48;

/// A set of blocks. A chunk of blocks that are all alike takes no bits, so that a huge disk costs no more than what is
/// scattered over it. When that is too much, for the bitmap or for all bitmaps of the process, blocks become twice as
/// large: what is dirty stays dirty, and clean bytes next to it become dirty, too, which is never wrong.
#[derive(Debug)]
pub(super) struct Bitmap {
    /// Binary logarithm of the bytes of a block, as asked for.
    finest: u32,
    /// The same, as it is.
    shift: u32,
    /// Chunks whose blocks are all dirty.
    full: Ranges,
    /// Chunks of which some blocks are dirty.
    partial: BTreeMap<u64, Bits>,
    /// The memory of all that.
    share: Share,
}

impl Bitmap {
    /// A clean one, with blocks of `1 << shift` bytes.
    pub(super) fn new(shift: u32, budget: Arc<Budget>) -> Self {
        Self {
            finest: shift,
            shift,
            full: Ranges::default(),
            partial: BTreeMap::new(),
            share: Share::new(budget),
        }
    }

    /// Makes all clean, and blocks as small as they were asked for.
    pub(super) fn clear(&mut self) {
        self.shift = self.finest;
        self.full = Ranges::default();
        self.partial.clear();
        self.fits();
    }

    /// Bytes of a block now.
    pub(super) const fn granularity(&self) -> u64 {
        1 << self.shift
    }

    /// The blocks that a range of bytes touches.
    fn blocks(&self, bytes: &Range<u64>) -> Range<u64> {
        match bytes.end.checked_sub(1) {
            Some(last) if last >= bytes.start => {
                bytes.start >> self.shift..(last >> self.shift) + 1
            }
            _ => 0..0,
        }
    }

    /// Where a block begins.
    fn start(&self, block: u64) -> u64 {
        block.saturating_mul(self.granularity())
    }

    /// Makes dirty what a range of bytes touches.
    pub(super) fn insert(&mut self, bytes: &Range<u64>) {
        self.insert_blocks(self.blocks(bytes));
        while !self.fits() {
            self.coarsen();
        }
    }

    /// Whether there is memory for what is dirty. There always is if blocks are large enough: four chunks are 2^17
    /// blocks.
    fn fits(&mut self) -> bool {
        let (partial, full) = (self.partial.len(), self.full.len());
        let bytes = partial as u64 * PARTIAL_BYTES + full as u64 * RUN_BYTES;
        partial <= MAX_PARTIAL && full <= MAX_RUNS && self.share.resize(bytes)
    }

    fn insert_blocks(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let (first, last) = (blocks.start / CHUNK, blocks.end / CHUNK);
        let (head, tail) = ((blocks.start % CHUNK) as usize, (blocks.end % CHUNK) as usize);
        if first == last {
            self.set(first, head..tail);
            return;
        }
        let whole = if head == 0 { first } else { first + 1 }..last;
        if head > 0 {
            self.set(first, head..CHUNK as usize);
        }
        self.set(last, 0..tail);
        if !whole.is_empty() {
            let mut rest = self.partial.split_off(&whole.start);
            self.partial.append(&mut rest.split_off(&whole.end));
            self.full.insert(whole);
        }
    }

    /// Makes blocks of one chunk dirty.
    fn set(&mut self, chunk: u64, blocks: Range<usize>) {
        if blocks.is_empty() || self.full.contains(chunk) {
            return;
        }
        let Some(bits) = self.bits(chunk) else { return };
        for (word, mask) in words(blocks) {
            bits[word] |= mask;
        }
        self.promote(chunk);
    }

    /// The bits of a chunk of which not all blocks are dirty. If there is no memory for them, it is dirty as a whole
    /// from then on, and `None` is given.
    fn bits(&mut self, chunk: u64) -> Option<&mut Bits> {
        match self.partial.entry(chunk) {
            Entry::Occupied(bits) => Some(bits.into_mut()),
            Entry::Vacant(room) => match self.share.spare_bits().clean() {
                Some(bits) => Some(room.insert(bits)),
                None => {
                    self.full.insert(chunk..chunk + 1);
                    None
                }
            },
        }
    }

    /// A chunk that is dirty as a whole needs no bits.
    fn promote(&mut self, chunk: u64) {
        if self.partial.get(&chunk).is_some_and(|bits| bits.iter().all(|word| *word == u64::MAX)) {
            self.partial.remove(&chunk);
            self.full.insert(chunk..chunk + 1);
        }
    }

    /// Makes blocks twice as large.
    fn coarsen(&mut self) {
        self.shift += 1;
        let full = core::mem::take(&mut self.full);
        let partial = core::mem::take(&mut self.partial);
        for run in full.iter() {
            self.insert_blocks(run.start * (CHUNK / 2)..run.end * (CHUNK / 2));
        }
        for (chunk, bits) in partial {
            let twice = chunk / 2;
            if self.full.contains(twice) {
                continue;
            }
            let first = (chunk % 2) as usize * (WORDS / 2);
            let Some(into) = self.bits(twice) else { continue };
            for (word, pair) in into[first..].iter_mut().zip(bits.chunks_exact(2)) {
                *word |= halve(pair[0]) | halve(pair[1]) << 32;
            }
            self.promote(twice);
        }
    }

    /// Whether all of a range of bytes is dirty.
    pub(super) fn contains(&self, bytes: &Range<u64>) -> bool {
        let blocks = self.blocks(bytes);
        let mut at = blocks.start;
        while at < blocks.end {
            match self.run_of_blocks(at, blocks.end) {
                (true, end) => at = end,
                (false, _) => return false,
            }
        }
        true
    }

    /// Whether the byte `at` is dirty, and where the next byte stands of which that is not so, at most `end`, which is
    /// above `at`.
    pub(super) fn run(&self, at: u64, end: u64) -> (bool, u64) {
        let blocks = self.blocks(&(at..end));
        let (dirty, stop) = self.run_of_blocks(blocks.start, blocks.end);
        (dirty, self.start(stop).clamp(at + 1, end))
    }

    fn run_of_blocks(&self, start: u64, end: u64) -> (bool, u64) {
        let mut state = None;
        let mut at = start;
        while at < end {
            let chunk = at / CHUNK;
            let (dirty, stop) = match (self.full.contains(chunk), self.partial.get(&chunk)) {
                (false, Some(bits)) => {
                    let (dirty, stop) = run_of_bits(bits, (at % CHUNK) as usize);
                    (dirty, chunk * CHUNK + stop as u64)
                }
                (full, _) => {
                    let (_, mut stop) = self.full.run(chunk, end.div_ceil(CHUNK));
                    if !full && let Some((&next, _)) = self.partial.range(chunk..).next() {
                        stop = stop.min(next);
                    }
                    (full, stop * CHUNK)
                }
            };
            if *state.get_or_insert(dirty) != dirty {
                break;
            }
            at = stop;
        }
        (state.unwrap_or(false), at.min(end))
    }
}

/// The words of a chunk that blocks lie in, with the bits in them.
fn words(blocks: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let last = blocks.end.div_ceil(64);
    (blocks.start / 64..last).map(move |word| {
        let from = blocks.start.saturating_sub(word * 64);
        let to = (blocks.end - word * 64).min(64);
        (word, u64::MAX << from & u64::MAX >> (64 - to))
    })
}

/// Whether a block is dirty, and the next one of which that is not so, or the end of the chunk.
fn run_of_bits(bits: &[u64], block: usize) -> (bool, usize) {
    let dirty = bits[block / 64] >> (block % 64) & 1 == 1;
    let mut mask = u64::MAX << (block % 64);
    for (word, bits) in bits.iter().enumerate().skip(block / 64) {
        let others = if dirty { !bits } else { *bits } & mask;
        if others != 0 {
            return (dirty, word * 64 + others.trailing_zeros() as usize);
        }
        mask = u64::MAX;
    }
    (dirty, CHUNK as usize)
}

/// Joins each two neighbouring bits into one: 32 bits remain.
const fn halve(word: u64) -> u64 {
    let word = (word | word >> 1) & 0x5555_5555_5555_5555;
    let word = (word | word >> 1) & 0x3333_3333_3333_3333;
    let word = (word | word >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
    let word = (word | word >> 4) & 0x00ff_00ff_00ff_00ff;
    let word = (word | word >> 8) & 0x0000_ffff_0000_ffff;
    (word | word >> 16) & 0x0000_0000_ffff_ffff
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "lists of dirty ranges, some with one")]
mod tests {
    use super::super::budget::OWN;
    use super::*;
    use proptest::prelude::*;

    fn bitmap(shift: u32) -> Bitmap {
        Bitmap::new(shift, Budget::new(u64::MAX))
    }

    fn runs(bitmap: &Bitmap, end: u64) -> Vec<Range<u64>> {
        let mut dirty = Vec::new();
        let mut at = 0;
        while at < end {
            let (set, stop) = bitmap.run(at, end);
            assert!(stop > at && stop <= end);
            if set {
                dirty.push(at..stop);
            }
            at = stop;
        }
        dirty
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn it_is_the_same_as_a_list_of_flags(
            steps in prop::collection::vec((0_u64..3 * CHUNK, 1_u64..2 * CHUNK), 1..12),
            coarser in 0_u64..3,
        ) {
            // Blocks of 512 bytes, over a little more than four chunks.
            let mut bitmap = bitmap(9);
            let size = (5 * CHUNK) << 9;
            let mut flags = vec![false; 5 * CHUNK as usize];
            for (start, length) in steps {
                bitmap.insert(&(start << 9..(start + length) << 9));
                flags[start as usize..(start + length) as usize].fill(true);
            }
            for step in 0..=coarser {
                for run in runs(&bitmap, size) {
                    prop_assert!(bitmap.contains(&run));
                    prop_assert!(!bitmap.contains(&(run.start..run.end + 1)) || run.end == size);
                }
                let group = 1 << step;
                let mut at = 0;
                let mut expected = Vec::new();
                for part in flags.chunks(group).map(|part| part.contains(&true)).collect::<Vec<_>>()
                    .chunk_by(|a, b| a == b)
                {
                    let end = at + ((part.len() * group) as u64) * 512;
                    if part[0] {
                        expected.push(at..end);
                    }
                    at = end;
                }
                prop_assert_eq!(runs(&bitmap, size), expected);
                bitmap.coarsen();
            }
        }
    }

    #[test]
    fn a_byte_makes_its_whole_block_dirty() {
        let mut bitmap = bitmap(16);
        bitmap.insert(&(65_535..65_537));
        bitmap.insert(&(7..7));
        assert_eq!(runs(&bitmap, 1 << 20), [0..131_072]);
        assert_eq!(runs(&bitmap, 100_000), [0..100_000]);
        bitmap.clear();
        assert_eq!(runs(&bitmap, 1 << 20), []);
    }

    #[test]
    fn scattered_blocks_of_a_huge_disk_stay_within_the_bound_and_dirty() {
        let mut bitmap = bitmap(16);
        let offsets: Vec<u64> = (0..20_000).map(|n| n * (i64::MAX as u64 / 20_000)).collect();
        for &offset in &offsets {
            bitmap.insert(&(offset..offset + 1));
        }
        assert!(bitmap.partial.len() <= MAX_PARTIAL);
        assert!(bitmap.granularity() > 1 << 16);
        assert!(offsets.iter().all(|&offset| bitmap.contains(&(offset..offset + 1))));
        bitmap.clear();
        assert_eq!(bitmap.granularity(), 1 << 16);
    }

    #[test]
    fn all_of_a_huge_disk_is_one_run() {
        let mut bitmap = bitmap(16);
        bitmap.insert(&(5..u64::MAX));
        assert!(bitmap.partial.len() <= 1 && bitmap.full.len() == 1);
        assert_eq!(bitmap.run(0, i64::MAX as u64), (true, i64::MAX as u64));
        assert_eq!(bitmap.granularity(), 1 << 16);
    }

    #[test]
    fn runs_of_whole_chunks_are_bounded_too() {
        let mut bitmap = bitmap(9);
        let chunk = CHUNK << 9;
        for n in 0..MAX_RUNS as u64 + 1 {
            bitmap.insert(&(2 * n * chunk..(2 * n + 1) * chunk));
        }
        assert!(bitmap.full.len() <= MAX_RUNS && bitmap.partial.len() <= MAX_PARTIAL);
        assert!(bitmap.contains(&(0..1)));
    }

    /// Bytes that a bitmap takes.
    fn size(bitmap: &Bitmap) -> u64 {
        let (partial, full) = (bitmap.partial.len() as u64, bitmap.full.len() as u64);
        partial * PARTIAL_BYTES + full * RUN_BYTES
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn bitmaps_that_share_little_memory_stay_within_it_and_miss_no_change(
            limit in 0..400_000_u64,
            changes in prop::collection::vec(
                (0..6_usize, 0..1_u64 << 44, prop_oneof![1..4096_u64, 1..1_u64 << 40]), 1..600
            ),
            cleared in 0..600_usize,
        ) {
            let budget = Budget::new(limit);
            let mut bitmaps: Vec<_> =
                (0..6).map(|_| (Bitmap::new(9, Arc::clone(&budget)), Vec::new())).collect();
            for (number, (which, start, length)) in changes.into_iter().enumerate() {
                let (bitmap, dirty) = &mut bitmaps[which];
                if number == cleared {
                    bitmap.clear();
                    dirty.clear();
                    prop_assert_eq!(bitmap.granularity(), 512);
                }
                bitmap.insert(&(start..start + length));
                dirty.push(start..start + length);
                prop_assert!(size(bitmap) <= limit + OWN);
            }
            for (bitmap, dirty) in &bitmaps {
                for range in dirty {
                    prop_assert!(bitmap.contains(range));
                }
            }
            let all: u64 = bitmaps.iter().map(|(bitmap, _)| size(bitmap)).sum();
            prop_assert!(all <= limit + 6 * OWN);
            prop_assert!(budget.used() <= limit);
            drop(bitmaps);
            prop_assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn bitmaps_by_the_hundred_of_a_huge_disk_stay_within_the_bound() {
        let budget = Budget::new(4 << 20);
        let mut bitmaps: Vec<_> = (0..256).map(|_| Bitmap::new(16, Arc::clone(&budget))).collect();
        let changes = (0..8192).map(|at| at << 31);
        for at in changes.clone() {
            bitmaps.iter_mut().for_each(|bitmap| bitmap.insert(&(at..at + 512)));
        }
        let all: u64 = bitmaps.iter().map(size).sum();
        assert!(all <= (4 << 20) + 256 * OWN, "{all}");
        for bitmap in &bitmaps {
            assert!(changes.clone().all(|at| bitmap.contains(&(at..at + 512))));
            // Blocks of 2^28 bytes are 2^16 on 16 TiB, so that two chunks are enough.
            assert!(bitmap.granularity() <= 1 << 28, "{}", bitmap.granularity());
        }
    }
}
