//! Calls that do less than they were asked for, are interrupted, or fail half-way.

use std::fs;
use std::sync::Mutex;

use proptest::prelude::*;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, Result};

use super::super::File;
use super::super::system::System;
use super::Dice;
use crate::export::model::{self, Step};
use crate::export::{Export, ZeroMode};

/// A file in a temporary folder.
#[derive(Debug)]
struct Clumsy {
    file: fs::File,
    dice: Mutex<Dice>,
    /// One call in so many fails for good; 0 for none.
    failures: u64,
}

impl Clumsy {
    fn disk(size: u64, seed: u64, failures: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        let clumsy = Self { file, dice: Mutex::new(Dice::new(seed)), failures };
        File::new(Box::new(clumsy), "clumsy".into()).unwrap()
    }

    fn dice<T>(&self, throw: impl FnOnce(&mut Dice) -> T) -> T {
        throw(&mut self.dice.lock().unwrap())
    }

    /// Before a call: it may be interrupted, or fail.
    fn stumble(&self) -> Result<()> {
        self.dice(|dice| {
            if dice.once_in(4) {
                return Err(Errno::INTR);
            }
            if self.failures > 0 && dice.once_in(self.failures) {
                let errors = [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::PERM];
                return Err(errors[dice.below(errors.len() as u64) as usize]);
            }
            Ok(())
        })
    }

    /// How much of what was asked for is done: something.
    fn part(&self, length: usize) -> usize {
        match length {
            0 | 1 => length,
            _ => self.dice(|dice| {
                if dice.once_in(2) { length } else { 1 + dice.below(length as u64 - 1) as usize }
            }),
        }
    }
}

impl System for Clumsy {
    fn file(&self) -> &fs::File {
        &self.file
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.stumble()?;
        let part = self.part(buffer.len());
        System::read_at(&self.file, &mut buffer[..part], offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize> {
        self.stumble()?;
        System::write_at(&self.file, &data[..self.part(data.len())], offset)
    }

    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.stumble()?;
        let part = self.part(buffer.len());
        self.file.read_cached(&mut buffer[..part], offset)
    }

    fn write_cached(&self, data: &[u8], offset: u64) -> Result<usize> {
        self.stumble()?;
        self.file.write_cached(&data[..self.part(data.len())], offset)
    }

    /// A call that fails may have done a part.
    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        if let Err(errno) = self.stumble() {
            let part = self.part(length as usize) as u64;
            let _done = self.file.allocate(flags, offset, part);
            return Err(errno);
        }
        self.file.allocate(flags, offset, length)
    }

    fn seek(&self, to: SeekFrom) -> Result<u64> {
        self.stumble()?;
        System::seek(&self.file, to)
    }

    /// Syncs of the kernel are not interrupted and tried again: see `Durability::sync`.
    fn sync_data(&self) -> Result<()> {
        Ok(())
    }
}

/// Where a step may have changed something.
fn touched(step: &Step) -> (u64, u64) {
    match *step {
        Step::Write { offset, length, .. }
        | Step::Trim { offset, length }
        | Step::Zero { offset, length, .. } => (offset, length),
        _ => (0, 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn short_counts_and_interruptions_change_nothing(
        size in 0u64..400_000, seed: u64, steps in model::steps()
    ) {
        model::check(&Clumsy::disk(size, seed, 0), steps);
    }

    /// A request that succeeds has done all of it; one that fails says so, and has touched its range alone. Nothing is
    /// reported as zeroes that is not, whatever fails on the way.
    #[test]
    fn failures_are_never_passed_off_as_data(
        size in 1u64..400_000, seed: u64, steps in model::steps()
    ) {
        let disk = Clumsy::disk(size, seed, 6);
        let mut content = vec![0; size as usize];
        for step in steps {
            let (offset, length) = touched(&step);
            if length == 0 || offset + length > size {
                continue;
            }
            let range = offset as usize..(offset + length) as usize;
            let (result, expected) = match step {
                Step::Write { seed, fua, .. } => (
                    disk.can_write().unwrap().write(&vec![seed | 1; length as usize], offset, fua),
                    Some(seed | 1),
                ),
                Step::Zero { mode, .. } => {
                    (disk.can_write_zeroes().unwrap().write_zeroes(offset, length, mode), Some(0))
                }
                _ => (disk.can_trim().unwrap().trim(offset, length, true), None),
            };
            let mut after = vec![0; size as usize];
            prop_assert_eq!(System::read_at(disk.system.file(), &mut after, 0), Ok(after.len()));
            prop_assert!(after[..range.start] == content[..range.start]);
            prop_assert!(after[range.end..] == content[range.end..]);
            match (&result, expected) {
                (Ok(()), Some(byte)) => {
                    prop_assert!(after[range].iter().all(|&found| found == byte));
                }
                // A fast zero that is refused has changed nothing.
                (Err(error), Some(0)) if *error == crate::export::ExportError::not_fast() => {
                    let fast = matches!(step, Step::Zero { mode: ZeroMode { fast: true, .. }, .. });
                    prop_assert!(fast);
                    prop_assert!(after == content);
                }
                _ => {}
            }
            content = after;
            let mut found = vec![0xee; size as usize];
            if disk.read(&mut found, 0).is_ok() {
                prop_assert!(found == content);
            }
            let mut at = 0;
            let result = disk.can_extents().unwrap().extents(0, size, &mut |run| {
                let end = at + run.length as usize;
                assert!(!run.zero || content[at..end].iter().all(|&byte| byte == 0));
                at = end;
                core::ops::ControlFlow::Continue(())
            });
            prop_assert!(at == size as usize || result.is_err());
        }
    }
}
