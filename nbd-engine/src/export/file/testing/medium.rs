//! A file system as far as durability goes: a page cache, a medium behind it, and the kernel's way of reporting what
//! could not be written back.

use std::fs;
use std::sync::{Arc, Mutex};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, Result};

use super::super::File;
use super::super::system::System;
use super::Dice;

pub(super) const PAGE: usize = 16;

/// An inode.
#[derive(Debug)]
pub(super) struct Medium {
    state: Mutex<State>,
    /// Stands for the inode in the process.
    inode: fs::File,
}

#[derive(Debug)]
struct State {
    cached: Vec<u8>,
    dirty: Vec<bool>,
    durable: Vec<u8>,
    dice: Dice,
    /// A page in so many can't be written back; 0 for none.
    failures: u64,
    /// How often a write-back failed, and how the last time.
    errors: (u64, Errno),
    syncs: u64,
    /// Whether holes can be punched. If not, it is as with block devices: what is cached there is dropped first.
    punches: bool,
}

/// An open file description: the kernel reports an error once for each.
#[derive(Debug)]
pub(super) struct Description {
    medium: Arc<Medium>,
    seen: Mutex<u64>,
}

/// A descriptor; others may stand for the same description.
#[derive(Debug)]
struct Descriptor(Arc<Description>);

impl Medium {
    pub(super) fn new(size: usize, seed: u64, failures: u64) -> Arc<Self> {
        let size = size.next_multiple_of(PAGE);
        let inode = tempfile::tempfile().unwrap();
        let state = State {
            cached: vec![0; size],
            dirty: vec![false; size / PAGE],
            durable: vec![0; size],
            dice: Dice::new(seed),
            failures,
            errors: (0, Errno::IO),
            syncs: 0,
            punches: true,
        };
        Arc::new(Self { state: Mutex::new(state), inode })
    }

    pub(super) fn open(self: &Arc<Self>) -> Arc<Description> {
        let seen = Mutex::new(self.state.lock().unwrap().errors.0);
        Arc::new(Description { medium: Arc::clone(self), seen })
    }

    /// The kernel writes some pages back in its own time.
    pub(super) fn write_back_some(&self) {
        let mut state = self.state.lock().unwrap();
        for page in 0..state.dirty.len() {
            if state.dice.once_in(2) {
                state.write_back(page);
            }
        }
    }

    pub(super) fn durable(&self, range: core::ops::Range<usize>) -> Vec<u8> {
        self.state.lock().unwrap().durable[range].to_vec()
    }

    pub(super) fn failures(&self, failures: u64) {
        self.state.lock().unwrap().failures = failures;
    }

    pub(super) fn never_punches(&self) {
        self.state.lock().unwrap().punches = false;
    }

    pub(super) fn syncs(&self) -> u64 {
        self.state.lock().unwrap().syncs
    }
}

impl State {
    /// What can't be written back is clean afterwards, and lost.
    fn write_back(&mut self, page: usize) {
        if !core::mem::take(&mut self.dirty[page]) {
            return;
        }
        if self.failures > 0 && self.dice.once_in(self.failures) {
            let errno = [Errno::IO, Errno::NOSPC, Errno::DQUOT][self.dice.below(3) as usize];
            self.errors = (self.errors.0 + 1, errno);
            return;
        }
        let range = page * PAGE..(page + 1) * PAGE;
        let cached = self.cached[range.clone()].to_vec();
        self.durable[range].copy_from_slice(&cached);
    }
}

impl Description {
    /// An export of a descriptor of its own for this description.
    pub(super) fn disk(self: &Arc<Self>) -> File {
        let system = Descriptor(Arc::clone(self));
        File::new(Box::new(system), "a medium".into()).unwrap()
    }
}

impl System for Descriptor {
    fn file(&self) -> &fs::File {
        &self.0.medium.inode
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let state = self.0.medium.state.lock().unwrap();
        let from = state.cached.get(offset as usize..).unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize> {
        let mut state = self.0.medium.state.lock().unwrap();
        let range = offset as usize..offset as usize + data.len();
        state.cached[range.clone()].copy_from_slice(data);
        state.dirty[range.start / PAGE..range.end.div_ceil(PAGE)].fill(true);
        Ok(data.len())
    }

    fn read_cached(&self, _: &mut [u8], _: u64) -> Result<usize> {
        Err(Errno::AGAIN)
    }

    fn write_cached(&self, data: &[u8], offset: u64) -> Result<usize> {
        self.write_at(data, offset)
    }

    fn sync_data(&self) -> Result<()> {
        let Description { medium, seen } = &*self.0;
        let pages = {
            let mut state = medium.state.lock().unwrap();
            state.syncs += 1;
            state.dirty.len()
        };
        for page in 0..pages {
            medium.state.lock().unwrap().write_back(page);
        }
        // As in the kernel: the first one that asks consumes the error for the description.
        let (count, errno) = medium.state.lock().unwrap().errors;
        if core::mem::replace(&mut *seen.lock().unwrap(), count) < count {
            // Others have time to find no error any more.
            std::thread::yield_now();
            return Err(errno);
        }
        Ok(())
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        if !flags.contains(FallocateFlags::PUNCH_HOLE) {
            return Err(Errno::OPNOTSUPP);
        }
        let mut state = self.0.medium.state.lock().unwrap();
        if !state.punches {
            let State { cached, dirty, durable, .. } = &mut *state;
            let range = offset as usize..(offset + length) as usize;
            cached[range.clone()].copy_from_slice(&durable[range.clone()]);
            dirty[range.start.div_ceil(PAGE)..range.end / PAGE].fill(false);
            return Err(Errno::OPNOTSUPP);
        }
        drop(state);
        self.write_at(&vec![0; length as usize], offset).map(drop)
    }

    fn seek(&self, to: SeekFrom) -> Result<u64> {
        if to == SeekFrom::End(0) { self.length() } else { Err(Errno::INVAL) }
    }

    fn length(&self) -> Result<u64> {
        Ok(self.0.medium.state.lock().unwrap().cached.len() as u64)
    }
}
