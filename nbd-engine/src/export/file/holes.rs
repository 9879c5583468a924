//! The holes of an open file or block device: making them, and finding them.

use core::ops::Range;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, Result};

use super::ability::Ability;
use super::device::zeroes_by_itself;
use super::system::System;

/// Zeroes are written in pieces of at most this many bytes, where the kernel has no better way.
const ZEROES: u64 = 1 << 20;

/// What a file is, as far as its holes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Regular,
    /// With the bytes of its smallest unit.
    Block {
        sector: u64,
    },
}

/// What the system can do with the holes of one open file or block device: each way is tried until it turns out not to
/// be supported, and never again after that. [`File`](super::File) is built on it; for programs that copy to and from
/// files by themselves.
///
/// The methods take the file with each call. It must be the one that this was made for.
///
/// ```no_run
/// use nbd_engine::export::FileHoles;
///
/// let file = std::fs::File::open("disk.img")?;
/// let (holes, end) = (FileHoles::of(&file)?, file.metadata()?.len());
/// let mut offset = 0;
/// while offset < end {
///     let (is_hole, next) = holes.run(&file, offset, end)?;
///     println!("{offset}..{next} {}", if is_hole { "hole" } else { "data" });
///     offset = next;
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct FileHoles {
    pub(super) kind: Kind,
    /// `FALLOC_FL_PUNCH_HOLE`.
    pub(super) punch_hole: Ability,
    /// `FALLOC_FL_ZERO_RANGE`.
    pub(super) zero_range: Ability,
    /// `SEEK_DATA` and `SEEK_HOLE`.
    pub(super) seek_hole: Ability,
}

impl FileHoles {
    /// For a regular file or a block device, opened in whatever way.
    ///
    /// # Errors
    /// If the system can't say what kind of file it is.
    pub fn of(file: &fs::File) -> io::Result<Self> {
        Ok(Self::with_metadata(file, &file.metadata()?))
    }

    pub(super) fn with_metadata(file: &fs::File, metadata: &fs::Metadata) -> Self {
        let block_device = metadata.file_type().is_block_device();
        let kind = if block_device {
            // Whatever the size of a sector is, 4 KiB is a multiple of it.
            Kind::Block { sector: rustix::fs::ioctl_blksszget(file).unwrap_or(4096).into() }
        } else {
            Kind::Regular
        };
        let punch_hole = Ability::default();
        if block_device && !zeroes_by_itself(metadata.rdev()) {
            punch_hole.forget();
        }
        Self { kind, punch_hole, zero_range: Ability::default(), seek_hole: Ability::default() }
    }

    /// Makes a range read as zeroes: as a hole, or with `allocated` with space set aside, by whatever way the system
    /// offers; where there is none, zeroes are written. The file does not become longer unless they have to be written
    /// behind its end. Blocks while the system works. When it fails, a part of the range may be zero. The range is in
    /// bytes; one that is empty, or ends before it begins, changes nothing.
    ///
    /// # Errors
    /// Those of the system, such as [`io::ErrorKind::InvalidInput`] above 2^63 - 1.
    pub fn zero(&self, file: &fs::File, range: Range<u64>, allocated: bool) -> io::Result<()> {
        let whole = self.whole_sectors(range.clone());
        // A device that turns out to be unable may have lost what was cached of the range, which is written next.
        let done = !whole.is_empty()
            && (!allocated && self.punch(file, whole.clone())?
                || self.zero_in_place(file, whole.clone())?);
        let system: &dyn System = file;
        if done {
            system.write_zeroes(range.start..whole.start)?;
            system.write_zeroes(whole.end..range.end)?;
        } else {
            system.write_zeroes(range)?;
        }
        Ok(())
    }

    /// Whether there is a hole at `offset`, and where that changes: behind `offset`, and at `end` at the latest, which
    /// is where the file ended when it was looked at last. All is data for a file system that does not know holes; so
    /// is what another process has cut off meanwhile, since to read it must fail.
    ///
    /// Moves the position of the file. Blocks while the system looks.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] unless `offset` lies before `end`, and that is 2^63 - 1 at most; otherwise those
    /// of the system.
    pub fn run(&self, file: &fs::File, offset: u64, end: u64) -> io::Result<(bool, u64)> {
        // The system would take an offset that it can't express for a negative one, as if it knew no holes.
        if offset >= end || i64::try_from(end).is_err() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "there is no such range of a file",
            ));
        }
        Ok(self.find(file, offset, end)?)
    }

    /// As much of a range as the kernel can zero: all of it for regular files, whole sectors for block devices.
    pub(super) fn whole_sectors(&self, range: Range<u64>) -> Range<u64> {
        match self.kind {
            Kind::Regular => range,
            Kind::Block { sector } => {
                range.start.checked_next_multiple_of(sector).unwrap_or(u64::MAX)
                    ..range.end / sector * sector
            }
        }
    }

    /// Whether a hole could be punched. If not, a regular file has not changed; of the range of a block device, what
    /// was cached and not yet written may be lost.
    pub(super) fn punch(&self, system: &dyn System, range: Range<u64>) -> Result<bool> {
        allocate(system, &self.punch_hole, FallocateFlags::PUNCH_HOLE, range)
    }

    /// Whether zeroes could be put in place, with space set aside.
    pub(super) fn zero_in_place(&self, system: &dyn System, range: Range<u64>) -> Result<bool> {
        allocate(system, &self.zero_range, FallocateFlags::ZERO_RANGE, range)
    }

    pub(super) fn find(&self, system: &dyn System, offset: u64, end: u64) -> Result<(bool, u64)> {
        /// What is called data when the file changes while it is looked at.
        const STEP: u64 = 4096;
        let seek = |to| {
            let seek = || match system.seek(to) {
                // The answer of a file system that does not know holes.
                Err(Errno::INVAL) => Err(Errno::OPNOTSUPP),
                result => result,
            };
            self.seek_hole.attempt(seek)
        };
        let run = match seek(SeekFrom::Data(offset)) {
            None => (false, end),
            Some(Ok(data)) if data > offset => (true, data.min(end)),
            Some(Ok(_)) => match seek(SeekFrom::Hole(offset)) {
                Some(Ok(hole)) if hole > offset => (false, hole.min(end)),
                // A hole was punched here meanwhile. To call it data is never wrong.
                Some(Ok(_)) => (false, end.min(offset + STEP)),
                // The file was cut off meanwhile, see below.
                Some(Err(Errno::NXIO)) | None => (false, end),
                Some(Err(errno)) => return Err(errno),
            },
            // No data until the end of the file. If that is not where it was, the file was cut off: the rest can't
            // be read, so that it must not pass for zeroes.
            Some(Err(Errno::NXIO)) => match system.length()?.min(end) {
                end if end > offset => (true, end),
                _ => (false, end),
            },
            Some(Err(errno)) => return Err(errno),
        };
        Ok(run)
    }
}

/// Whether that was possible.
fn allocate(
    system: &dyn System,
    ability: &Ability,
    flags: FallocateFlags,
    range: Range<u64>,
) -> Result<bool> {
    let flags = flags | FallocateFlags::KEEP_SIZE;
    match ability.attempt(|| system.allocate(flags, range.start, range.end - range.start)) {
        None => Ok(false),
        Some(result) => result.map(|()| true),
    }
}

impl dyn System {
    /// Writes zeroes, in pieces.
    pub(super) fn write_zeroes(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let zeroes = vec![0; (range.end - range.start).min(ZEROES) as usize];
        let mut offset = range.start;
        while offset < range.end {
            let piece = &zeroes[..(range.end - offset).min(ZEROES) as usize];
            self.write_all(piece, offset)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 64 << 10;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn zeroed_ranges_read_as_zeroes_and_nothing_else_changes(
            ranges in prop::collection::vec((0..SIZE, 1..SIZE, any::<bool>()), 1..6),
            sector in prop_oneof![Just(None), Just(Some(512)), Just(Some(4096))],
            missing in any::<[bool; 2]>(),
        ) {
            let file = tempfile::tempfile().unwrap();
            let mut model = vec![7; SIZE];
            file.write_all_at(&model, 0).unwrap();
            let mut holes = FileHoles::of(&file).unwrap();
            prop_assert_eq!(holes.kind, Kind::Regular);
            if let Some(sector) = sector {
                holes.kind = Kind::Block { sector };
            }
            for (missing, ability) in missing.iter().zip([&holes.punch_hole, &holes.zero_range]) {
                if *missing {
                    ability.forget();
                }
            }
            for (start, length, allocated) in ranges {
                let end = (start + length).min(SIZE);
                holes.zero(&file, start as u64..end as u64, allocated).unwrap();
                model[start..end].fill(0);
            }
            let mut found = vec![1; SIZE];
            file.read_exact_at(&mut found, 0).unwrap();
            prop_assert!(found == model);
            // What is called a hole is one.
            let mut offset = 0;
            while offset < SIZE {
                let (hole, end) = holes.run(&file, offset as u64, SIZE as u64).unwrap();
                let end = usize::try_from(end).unwrap();
                prop_assert!(end > offset && end <= SIZE);
                prop_assert!(!hole || model[offset..end].iter().all(|byte| *byte == 0));
                offset = end;
            }
            prop_assert_eq!(file.metadata().unwrap().len(), SIZE as u64);
        }
    }

    #[test]
    fn a_range_that_no_file_has_is_an_error_and_nothing_is_learnt_from_it() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 0).unwrap();
        let mut holes = FileHoles::of(&file).unwrap();
        let before = holes.run(&file, 0, 4096).unwrap();
        for (offset, end) in [(0, 0), (9, 4), (0, 1 << 63), (1 << 63, u64::MAX)] {
            let error = holes.run(&file, offset, end).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset} {end}");
        }
        assert_eq!(holes.run(&file, 0, 4096).unwrap(), before);
        for kind in [Kind::Regular, Kind::Block { sector: 512 }] {
            holes.kind = kind;
            holes.zero(&file, 9..9, false).unwrap();
            #[expect(clippy::reversed_empty_ranges, reason = "a caller may compute one")]
            holes.zero(&file, 4096..9, false).unwrap();
            assert!(holes.zero(&file, u64::MAX - 9..u64::MAX, false).is_err());
        }
        let mut found = [0; 4096];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [7; 4096]);
    }

    #[test]
    fn a_hole_up_to_the_end_is_distinguished_from_a_file_that_ends_before() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let holes = FileHoles::of(&file).unwrap();
        let (hole, end) = holes.run(&file, 4096, 1 << 20).unwrap();
        if !hole {
            eprintln!("SKIPPED: the end of a file, as this file system does not know holes");
            return;
        }
        assert_eq!(end, 1 << 20);
        file.set_len(8192).unwrap();
        assert_eq!(holes.run(&file, 4096, 1 << 20).unwrap(), (true, 8192));
        for offset in [8192, 1 << 19] {
            assert_eq!(holes.run(&file, offset, 1 << 20).unwrap(), (false, 1 << 20));
        }
    }
}
