//! Which blocks of a disk an overlay has, and how a request falls into parts.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of a part of the map that is written to a file as a whole.
pub(super) const PAGE: usize = 4096;

/// Words of a part of the map.
const WORDS: usize = PAGE / 8;

/// Locks that the blocks share.
const STRIPES: usize = 64;

/// The blocks that an overlay has. A block that is there stays there.
pub(super) struct Blocks {
    size: u64,
    shift: u32,
    bits: Vec<AtomicU64>,
    /// The parts of the map that are not in the file yet.
    dirty: Vec<AtomicBool>,
    /// Held by those that bring blocks in.
    stripes: [Mutex<()>; STRIPES],
}

/// A part of a request, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) kind: Kind,
}

/// How the overlay and a part of a request lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The overlay has all of it.
    Present,
    /// Whole blocks that the overlay has not.
    Absent,
    /// A part of one block that the overlay has not.
    PartOfAbsent,
}

impl Blocks {
    /// Blocks of a map at most: 32 MiB of bits.
    pub(super) const MAX: u64 = 1 << 28;

    /// The blocks of a disk of `size` bytes, none of them there. `None` if there are more than [`MAX`](Self::MAX), or
    /// no memory for them.
    pub(super) fn new(size: u64, shift: u32) -> Option<Self> {
        let blocks = size.div_ceil(1 << shift);
        if blocks > Self::MAX {
            return None;
        }
        let pages = blocks.div_ceil(8 * PAGE as u64) as usize;
        let mut bits = Vec::new();
        bits.try_reserve_exact(pages * WORDS).ok()?;
        bits.resize_with(pages * WORDS, AtomicU64::default);
        let mut dirty = Vec::new();
        dirty.resize_with(pages, AtomicBool::default);
        let stripes = core::array::from_fn(|_| Mutex::new(()));
        Some(Self { size, shift, bits, dirty, stripes })
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a block.
    pub(super) const fn block(&self) -> u64 {
        1 << self.shift
    }

    /// Bytes of the map.
    pub(super) const fn map_length(&self) -> u64 {
        (self.dirty.len() * PAGE) as u64
    }

    fn is_present(&self, block: u64) -> bool {
        let word = &self.bits[(block / 64) as usize];
        // What was brought in before it was marked is seen by those that see the mark.
        word.load(Ordering::Acquire) & (1 << (block % 64)) != 0
    }

    /// Marks blocks, whose data is there.
    fn mark(&self, blocks: Range<u64>) {
        for block in blocks {
            let index = (block / 64) as usize;
            self.bits[index].fetch_or(1 << (block % 64), Ordering::AcqRel);
            self.dirty[index / WORDS].store(true, Ordering::Release);
        }
    }

    /// The blocks that lie wholly inside of a range, or are touched by it. The last block may end with the disk.
    fn touched(&self, offset: u64, length: u64) -> Range<u64> {
        offset >> self.shift..(offset + length).div_ceil(self.block())
    }

    /// The range of a block in bytes.
    pub(super) fn bytes_of(&self, offset: u64) -> Range<u64> {
        let start = offset & !(self.block() - 1);
        start..(start + self.block()).min(self.size)
    }

    /// Whether the byte at `offset` is in the overlay, and where the next one is that is not so, at most `end`.
    pub(super) fn run(&self, offset: u64, end: u64) -> (bool, u64) {
        let mut block = offset >> self.shift;
        let present = self.is_present(block);
        let blocks = end.div_ceil(self.block());
        let same = if present { u64::MAX } else { 0 };
        loop {
            block += 1;
            // Words that are all alike are passed over at once.
            while block.is_multiple_of(64)
                && block + 64 <= blocks
                && self.bits[(block / 64) as usize].load(Ordering::Acquire) == same
            {
                block += 64;
            }
            if block >= blocks {
                return (present, end);
            }
            if self.is_present(block) != present {
                return (present, block << self.shift);
            }
        }
    }

    /// The first part of a range that is not empty.
    pub(super) fn first_part(&self, offset: u64, end: u64) -> Part {
        let (present, stop) = self.run(offset, end);
        let part = |stop: u64, kind| Part { offset, length: stop - offset, kind };
        if present {
            return part(stop, Kind::Present);
        }
        let block = self.bytes_of(offset);
        if block.start < offset || stop < block.end {
            return part(stop.min(block.end), Kind::PartOfAbsent);
        }
        // As many whole blocks as there are.
        let whole = if stop == self.size { stop } else { stop & !(self.block() - 1) };
        part(whole, Kind::Absent)
    }

    /// All parts of a range, as they are when they are looked at.
    pub(super) fn parts(&self, offset: u64, length: u64) -> impl Iterator<Item = Part> {
        let end = offset + length;
        let mut at = offset;
        core::iter::from_fn(move || {
            let part = (at < end).then(|| self.first_part(at, end))?;
            at += part.length;
            Some(part)
        })
    }

    /// Brings in whole blocks: `put` does it while nobody else does with any of these.
    pub(super) fn bring_in<T, E>(
        &self,
        offset: u64,
        length: u64,
        put: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let blocks = self.touched(offset, length);
        let _held = self.lock(&blocks);
        let result = put()?;
        self.mark(blocks);
        Ok(result)
    }

    /// Brings in the block of `offset`: `put` is called if nobody else has meanwhile; otherwise `patch`.
    pub(super) fn bring_in_unless_present<E>(
        &self,
        offset: u64,
        put: impl FnOnce() -> Result<(), E>,
        patch: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let blocks = self.touched(offset, 1);
        let held = self.lock(&blocks);
        if self.is_present(blocks.start) {
            drop(held);
            return patch();
        }
        put()?;
        self.mark(blocks);
        Ok(())
    }

    fn lock(&self, blocks: &Range<u64>) -> Vec<MutexGuard<'_, ()>> {
        let count = (blocks.end - blocks.start) as usize;
        let first = (blocks.start % STRIPES as u64) as usize;
        let is_needed = |stripe: usize| (stripe + STRIPES - first) % STRIPES < count;
        // Always in the same order, so that nobody waits for each other.
        let stripes = self.stripes.iter().enumerate().filter(|(stripe, _)| is_needed(*stripe));
        stripes.map(|(_, one)| one.lock().unwrap_or_else(PoisonError::into_inner)).collect()
    }

    /// Reads the map as it is in the file.
    pub(super) fn load_page(&self, page: usize, bytes: &[u8]) {
        let words = self.bits[page * WORDS..].iter().zip(bytes.chunks_exact(8));
        for (word, bytes) in words.take(WORDS) {
            word.store(bytes.try_into().map_or(0, u64::from_le_bytes), Ordering::Relaxed);
        }
    }

    /// Takes the parts of the map that are not in the file yet, as they are now: all that is marked in them was
    /// brought in before.
    pub(super) fn take_dirty(&self) -> Vec<(usize, Vec<u8>)> {
        let taken = self.dirty.iter().enumerate();
        let taken = taken.filter(|(_, dirty)| dirty.swap(false, Ordering::AcqRel));
        let bytes = |page: usize| {
            let words = self.bits[page * WORDS..].iter().take(WORDS);
            words.flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect()
        };
        taken.map(|(page, _)| (page, bytes(page))).collect()
    }

    /// A part of the map did not get into the file.
    pub(super) fn put_back_dirty(&self, page: usize) {
        self.dirty[page].store(true, Ordering::Release);
    }

    /// Bytes of the blocks that are there.
    pub(super) fn present_bytes(&self) -> u64 {
        let words = self.bits.iter().map(|word| word.load(Ordering::Relaxed));
        let count: u64 = words.map(|word| u64::from(word.count_ones())).sum();
        let Some(last) = self.size.checked_sub(1) else { return 0 };
        // The last block ends with the disk.
        let missing = ((last >> self.shift) + 1) * self.block() - self.size;
        let missing = if self.is_present(last >> self.shift) { missing } else { 0 };
        (count << self.shift) - missing
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn parts_cover_a_range_and_are_what_a_list_of_flags_says() {
        cases(200, |random| {
            let shift = 3 + random.below(3) as u32;
            let size = 1 + random.below(6000);
            let blocks = Blocks::new(size, shift).unwrap();
            let count = size.div_ceil(1 << shift);
            let mut flags = vec![false; count as usize];
            for _ in 0..random.below(20) {
                let start = random.below(count);
                let end = (start + 1 + random.below(300)).min(count);
                blocks.mark(start..end);
                flags[start as usize..end as usize].fill(true);
            }
            let flag = |offset: u64| flags[(offset >> shift) as usize];
            let offset = random.below(size);
            let length = 1 + random.below(size - offset);
            let mut at = offset;
            for part in blocks.parts(offset, length) {
                assert!(part.offset == at && part.length > 0);
                let end = at + part.length;
                let (first, last) = (blocks.bytes_of(at), blocks.bytes_of(end - 1));
                assert!((at..end).all(|byte| flag(byte) == (part.kind == Kind::Present)));
                match part.kind {
                    Kind::Present => {}
                    Kind::Absent => assert!(first.start == at && last.end == end),
                    Kind::PartOfAbsent => {
                        assert!(first == last && part.length < first.end - first.start);
                    }
                }
                at = end;
            }
            assert_eq!(at, offset + length);
            let present = (0..size).filter(|offset| flag(*offset)).count() as u64;
            assert_eq!(blocks.present_bytes(), present);
        });
    }

    #[test]
    fn a_map_is_the_same_once_it_was_written_and_read() {
        let size = 3 * 8 * PAGE as u64 * 512;
        let blocks = Blocks::new(size, 9).unwrap();
        assert_eq!(blocks.map_length(), 3 * PAGE as u64);
        assert!(blocks.take_dirty().is_empty());
        for offset in [0, 512 * 70, size - 1] {
            let put = || Ok::<_, ()>(());
            blocks.bring_in_unless_present(offset, put, || panic!("it is there")).unwrap();
            blocks.bring_in_unless_present(offset, || panic!("it is not"), put).unwrap();
        }
        let other = Blocks::new(size, 9).unwrap();
        let dirty = blocks.take_dirty();
        assert_eq!(dirty.iter().map(|(page, _)| *page).collect::<Vec<_>>(), [0, 2]);
        dirty.iter().for_each(|(page, bytes)| other.load_page(*page, bytes));
        assert!(blocks.take_dirty().is_empty());
        blocks.put_back_dirty(2);
        assert_eq!(blocks.take_dirty().len(), 1);
        let all = |blocks: &Blocks| blocks.parts(0, size).collect::<Vec<_>>();
        assert_eq!(all(&blocks), all(&other));
        assert_eq!(other.present_bytes(), 3 * 512);
    }

    #[test]
    fn what_fails_to_come_in_is_not_there() {
        let blocks = Blocks::new(1 << 20, 16).unwrap();
        blocks.bring_in(0, 1 << 20, || Err::<(), _>(())).unwrap_err();
        blocks.bring_in_unless_present(0, || Err(()), || Ok(())).unwrap_err();
        assert_eq!(blocks.present_bytes(), 0);
        assert!(Blocks::new(Blocks::MAX << 16 | 1, 16).is_none());
    }
}
