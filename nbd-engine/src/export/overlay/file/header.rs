//! The first bytes of an overlay file, and what is known of its base.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Problem;
use crate::export::crc32::{self, crc32};
use crate::export::overlay::blocks::{Blocks, PAGE};
use crate::export::{AsyncExport, BlockSize, Export, Result};

/// What tells a base from others, and from itself after it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseStamp {
    pub(super) size: u64,
    /// Seconds since 1970 and nanoseconds; zero where that is not known.
    pub(super) modified: (i64, u32),
    /// Of an overlay, the checksum of its header.
    pub(super) samples: u32,
    /// Where it begins in what it is a part of.
    pub(super) offset: u64,
    pub(super) is_overlay: bool,
}

/// Places of a base that are looked at.
const SAMPLES: u64 = 64;

/// Bytes that are looked at of each.
const SAMPLE: u64 = 4096;

impl BaseStamp {
    /// The stamp of a base: its size, when its file was modified last, if it is a file, and a checksum of 64 samples of
    /// 4 KiB that are spread over it, the first and last bytes among them. Reads these, and blocks as long as the base
    /// does.
    ///
    /// A change that leaves the time of modification as it was and hits no sample is not noticed.
    ///
    /// # Errors
    /// Those of reading the base.
    pub fn new(base: &impl Export, modified: Option<SystemTime>) -> Result<Self> {
        let mut samples = Samples::new(base.size(), base.block_size());
        while let Some((buffer, offset)) = samples.next() {
            base.read(buffer, offset)?;
        }
        Ok(samples.stamp(modified))
    }

    /// The stamp of a part of this base, of that size and from that offset on, in bytes, as a
    /// [`Slice`](crate::export::Slice) is: an overlay for one part of a disk does not fit another one, and what does not begin
    /// at 0 can't be committed.
    #[must_use]
    pub const fn part(self, offset: u64, size: u64) -> Self {
        Self { offset, size, ..self }
    }

    /// [`new`](Self::new) for an export whose work is a future.
    ///
    /// Cancel-safe: it only reads.
    ///
    /// # Errors
    /// Those of reading the base.
    pub async fn new_async(base: &impl AsyncExport, modified: Option<SystemTime>) -> Result<Self> {
        let mut samples = Samples::new(base.size(), base.block_size());
        while let Some((buffer, offset)) = samples.next() {
            base.read(buffer, offset).await?;
        }
        Ok(samples.stamp(modified))
    }
}

/// The samples of a base, one after the other.
struct Samples {
    size: u64,
    block: u64,
    index: u64,
    /// Where the sample before ended.
    end: u64,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are to be counted.
    filled: usize,
    sum: u32,
}

impl Samples {
    fn new(size: u64, block_size: BlockSize) -> Self {
        let block = u64::from(block_size.minimum());
        let buffer = vec![0; SAMPLE.max(block) as usize];
        Self { size, block, index: 0, end: 0, buffer, filled: 0, sum: 0 }
    }

    /// Counts the sample before, and gives where the next one is to be read to, and its offset.
    fn next(&mut self) -> Option<(&mut [u8], u64)> {
        self.sum = crc32::extend(self.sum, &self.buffer[..self.filled]);
        self.filled = 0;
        if self.index == SAMPLES {
            return None;
        }
        let length = self.buffer.len() as u64;
        let last = u128::from(self.size.saturating_sub(length));
        let offset = (last * u128::from(self.index) / u128::from(SAMPLES - 1)) as u64;
        // Small disks are looked at as a whole.
        let offset = (offset - offset % self.block).max(self.end);
        self.filled = length.min(self.size.saturating_sub(offset)) as usize;
        if self.filled == 0 {
            return None;
        }
        self.index += 1;
        self.end = offset + self.filled as u64;
        Some((&mut self.buffer[..self.filled], offset))
    }

    fn stamp(&self, modified: Option<SystemTime>) -> BaseStamp {
        let modified = since_epoch(modified);
        BaseStamp { size: self.size, modified, samples: self.sum, offset: 0, is_overlay: false }
    }
}

/// Seconds since 1970 and nanoseconds; zero where that is not known.
fn since_epoch(time: Option<SystemTime>) -> (i64, u32) {
    let since_epoch = |time: SystemTime| match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs() as i64, after.subsec_nanos()),
        Err(before) => (-(before.duration().as_secs() as i64), before.duration().subsec_nanos()),
    };
    time.map_or((0, 0), since_epoch)
}

/// The header of an overlay file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) state: State,
    pub(super) size: u64,
    pub(super) shift: u32,
    /// Another one whenever what the overlay has begins to change, so that one over it notices.
    pub(super) generation: u32,
    pub(super) base: BaseStamp,
}

/// What is being done with the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It lies over its base.
    InUse,
    /// Its blocks are being written to the base, which is in between.
    Committing,
}

const MAGIC: &[u8; 8] = b"NBDOVER\0";
const VERSION: u32 = 1;

/// Bytes that have a meaning; the checksum follows.
const FIELDS: usize = 64;

impl Header {
    pub(super) const LENGTH: usize = 4096;

    /// Where the map begins.
    pub(super) const MAP_OFFSET: u64 = Self::LENGTH as u64;

    /// That of a new overlay with blocks of `1 << shift` bytes.
    pub(super) fn new(base: &BaseStamp, shift: u32) -> Self {
        let new = Self { state: State::InUse, size: base.size, shift, generation: 0, base: *base };
        new.of_new_generation()
    }

    /// The same of another generation, whichever.
    pub(super) fn of_new_generation(self) -> Self {
        // Keys that differ each time are all that there is in it.
        let random = RandomState::new().build_hasher().finish();
        Self { generation: random as u32 ^ (random >> 32) as u32, ..self }
    }

    /// That of the overlay as the base of another one: the generation and what lies below are in it.
    pub(super) fn stamp(&self) -> BaseStamp {
        let samples = crc32(&Self { state: State::InUse, ..*self }.encode()[..FIELDS]);
        BaseStamp { size: self.size, modified: (0, 0), samples, offset: 0, is_overlay: true }
    }

    /// Where the data begins: at a block of its own.
    pub(super) fn data_offset(&self) -> u64 {
        let blocks = self.size.div_ceil(1 << self.shift);
        let map = blocks.div_ceil(8 * PAGE as u64) * PAGE as u64;
        (Self::MAP_OFFSET + map).next_multiple_of(1 << self.shift)
    }

    /// Whether there can be an overlay for a base of this size.
    pub(super) fn check_size(&self) -> Result<(), Problem> {
        let blocks = self.size.div_ceil(1 << self.shift);
        let end = self.data_offset().checked_add(self.size);
        let fits = blocks <= Blocks::MAX && end.is_some_and(|end| i64::try_from(end).is_ok());
        if fits { Ok(()) } else { Err(Problem::TooLarge) }
    }

    /// Whether that is the base, and as it was.
    pub(super) fn check_base(&self, base: &BaseStamp) -> Result<(), Problem> {
        if (self.base.offset, self.base.is_overlay) != (base.offset, base.is_overlay) {
            let BaseStamp { offset, is_overlay, .. } = self.base;
            return Err(Problem::OtherLayers { offset, is_overlay });
        }
        if self.size != base.size {
            return Err(Problem::OtherSize { own: self.size, base: base.size });
        }
        if self.base.samples != base.samples {
            if base.is_overlay {
                return Err(Problem::OtherOverlay);
            }
            return Err(Problem::OtherBase("its content is another one"));
        }
        if self.base.modified != base.modified {
            return Err(Problem::OtherBase("it was modified since"));
        }
        Ok(())
    }

    pub(super) fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let mut put = |offset: usize, field: &[u8]| {
            bytes[offset..offset + field.len()].copy_from_slice(field);
        };
        let state = match self.state {
            State::InUse => 0_u32,
            State::Committing => 1,
        };
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &state.to_le_bytes());
        put(16, &self.size.to_le_bytes());
        put(24, &self.shift.to_le_bytes());
        put(28, &self.generation.to_le_bytes());
        put(32, &self.base.modified.0.to_le_bytes());
        put(40, &self.base.modified.1.to_le_bytes());
        put(44, &self.base.samples.to_le_bytes());
        put(48, &self.base.offset.to_le_bytes());
        put(56, &u32::from(self.base.is_overlay).to_le_bytes());
        let crc = crc32(&bytes[..FIELDS]);
        bytes[FIELDS..FIELDS + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Problem> {
        let u32_at =
            |offset: usize| bytes[offset..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
        let u64_at =
            |offset: usize| bytes[offset..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        if !bytes.starts_with(MAGIC) {
            return Err(Problem::NoOverlay);
        }
        if u32_at(8) != VERSION {
            return Err(Problem::Version(u32_at(8)));
        }
        if crc32(&bytes[..FIELDS]) != u32_at(FIELDS) {
            return Err(Problem::Damaged("the checksum of its header is wrong"));
        }
        let state = match u32_at(12) {
            0 => State::InUse,
            1 => State::Committing,
            _ => return Err(Problem::Damaged("its header has an unknown state")),
        };
        let size = u64_at(16);
        let base = BaseStamp {
            size,
            modified: (u64_at(32).cast_signed(), u32_at(40)),
            samples: u32_at(44),
            offset: u64_at(48),
            is_overlay: u32_at(56) != 0,
        };
        let header = Self { state, size, shift: u32_at(24), generation: u32_at(28), base };
        if !(9..=30).contains(&header.shift) {
            return Err(Problem::Damaged("its header has an impossible block size"));
        }
        header.check_size()?;
        Ok(header)
    }
}
