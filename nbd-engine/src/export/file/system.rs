//! The system calls that an export of a file makes, behind a trait so that tests can have any of them fail.

use core::fmt;
use std::fs;
use std::io::{IoSlice, IoSliceMut};

use rustix::fs::{AtFlags, FallocateFlags, FileType, SeekFrom, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags, Result, retry_on_intr};

/// One open file. Every method is one system call, and may do less than was asked for or be interrupted.
pub(super) trait System: fmt::Debug + Send + Sync + 'static {
    fn file(&self) -> &fs::File;

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        rustix::io::pread(self.file(), buffer, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize> {
        rustix::io::pwrite(self.file(), data, offset)
    }

    /// Reads what is in the page cache.
    fn read_cached(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut buffers = [IoSliceMut::new(buffer)];
        rustix::io::preadv2(self.file(), &mut buffers, offset, ReadWriteFlags::NOWAIT)
    }

    /// Writes what needs no wait.
    fn write_cached(&self, data: &[u8], offset: u64) -> Result<usize> {
        let buffers = [IoSlice::new(data)];
        rustix::io::pwritev2(self.file(), &buffers, offset, ReadWriteFlags::NOWAIT)
    }

    fn sync_data(&self) -> Result<()> {
        rustix::fs::fdatasync(self.file())
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> Result<()> {
        rustix::fs::fallocate(self.file(), flags, offset, length)
    }

    /// The position of the file moves, which does not matter: each answer belongs to its call, and all reading and
    /// writing says where.
    fn seek(&self, to: SeekFrom) -> Result<u64> {
        rustix::fs::seek(self.file(), to)
    }

    /// The size in bytes that the kernel knows. Does not ask a remote or hanging file system, so that it never blocks.
    fn length(&self) -> Result<u64> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let is_regular = |mode: u16| FileType::from_raw_mode(mode.into()) == FileType::RegularFile;
        match rustix::fs::statx(self.file(), "", flags, StatxFlags::TYPE | StatxFlags::SIZE) {
            Ok(status) if is_regular(status.stx_mode) => Ok(status.stx_size),
            // The end is the size of a block device, whose metadata has none.
            _ => retry_on_intr(|| self.seek(SeekFrom::End(0))),
        }
    }

    fn set_length(&self, bytes: u64) -> Result<()> {
        rustix::fs::ftruncate(self.file(), bytes)
    }
}

impl System for fs::File {
    fn file(&self) -> &fs::File {
        self
    }
}

impl dyn System {
    /// Fills the buffer. `false` if the file ends before it is full.
    pub(super) fn read_exact(&self, mut buffer: &mut [u8], mut offset: u64) -> Result<bool> {
        while !buffer.is_empty() {
            let count = retry_on_intr(|| self.read_at(buffer, offset))?;
            if count == 0 {
                return Ok(false);
            }
            buffer = &mut buffer[count..];
            offset += count as u64;
        }
        Ok(true)
    }

    /// Writes all of the data, or a part of it when it fails.
    pub(super) fn write_all(&self, mut data: &[u8], mut offset: u64) -> Result<()> {
        while !data.is_empty() {
            let count = retry_on_intr(|| self.write_at(data, offset))?;
            if count == 0 {
                // Nothing is written and nothing is wrong: to go on would never end.
                return Err(Errno::IO);
            }
            data = &data[count..];
            offset += count as u64;
        }
        Ok(())
    }
}
