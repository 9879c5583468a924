//! A regular file or a block device.

mod ability;
mod extents;
mod open;
#[cfg(test)]
mod tests;
mod zero;

use core::sync::atomic::{AtomicU64, Ordering};
use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nbd_proto::wire::ErrorCode;
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};

use super::bounds::{inside, inside_for_writing};
use super::ranges::Ranges;
use super::{
    BlockSize, Body, Caches, Export, ExportError, Extents, Flushes, Fua, Resizes, Result, Trims,
    Writes, WritesZeroes,
};
use ability::Abilities;
pub use open::{FileOptions, OpenError};

/// A regular file or a block device, through the page cache.
///
/// - Any byte can be read and written, on block devices too.
/// - Reads of what is cached are done at once, and writes that need not wait, where the file system can tell
///   (`RWF_NOWAIT`); everything else is left to a worker thread. Files in memory (tmpfs, ramfs) are read and written at
///   once always. Requests of more than 1 MiB go to a worker in any case.
/// - A flush is `fdatasync`; a write with FUA writes just itself through (`RWF_DSYNC`).
/// - Trimming punches holes; writing zeroes does too, or asks for zeroes in place when no hole is wanted.
/// - Holes are those that the file system tells of (`SEEK_HOLE`).
/// - The size is that at opening. A regular file can be resized through the export, and not otherwise: what somebody
///   else cut off fails with `EIO`.
#[derive(Debug)]
pub struct File {
    file: fs::File,
    size: Size,
    kind: Kind,
    read_only: bool,
    in_memory: bool,
    rotational: bool,
    block_size: BlockSize,
    abilities: Abilities,
    /// Where space was set aside by writing zeroes. Only a hint: whatever is not there is told of as the file system
    /// says, which is right as well.
    provisioned: Mutex<Ranges>,
    /// One change of the size at a time.
    resizing: Mutex<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Regular,
    /// With the bytes of its smallest unit.
    Block {
        sector: u64,
    },
}

/// The size in bytes, for many threads.
#[derive(Debug)]
struct Size(AtomicU64);

impl Size {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Release);
    }
}

impl File {
    /// Longer requests than this many bytes are never done at once: to copy them takes longer than to wake a worker,
    /// and would hold up the connection's other requests.
    const AT_ONCE: usize = 128 << 10;

    /// More places where space was set aside are not remembered, so that memory stays small whatever clients do.
    const MOST_PROVISIONED: usize = 4096;

    /// The kernel is asked to read ahead in steps of this many bytes: of a longer one it reads only a part.
    const CACHE_STEP: u64 = 128 << 10;

    /// No more than this is read ahead for one request, so that it does not push everything else out.
    const CACHE_MOST: u64 = 1 << 30;

    fn provisioned(&self) -> MutexGuard<'_, Ranges> {
        // A hint, so that a half-made change would do no harm.
        self.provisioned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a range that was inside when it was looked at last.
    fn read_inside(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                // A resize in between sets the size before it cuts the file: then the range is at fault (S-REQ-09).
                match inside(offset, buffer.len() as u64, self.size.get()) {
                    Ok(()) => ExportError::io(
                        "the file ends before the range: it was cut off while in use",
                    ),
                    Err(outside) => outside,
                }
            }
            _ => error.into(),
        })
    }

    fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data()?)
    }

    /// The data is durable when this returns.
    fn write_through(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        let write = || {
            while done < data.len() {
                let rest = [IoSlice::new(&data[done..])];
                match pwritev2(&self.file, &rest, offset + done as u64, ReadWriteFlags::DSYNC)? {
                    0 => return Err(Errno::IO),
                    written => done += written,
                }
            }
            Ok(())
        };
        match self.abilities.write_through.attempt(write) {
            Some(result) => Ok(result.map_err(io::Error::from)?),
            None => {
                self.file.write_all_at(data, offset)?;
                self.sync()
            }
        }
    }
}

impl Export for File {
    fn size(&self) -> u64 {
        self.size.get()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        inside(offset, buffer.len() as u64, self.size.get())?;
        self.read_inside(buffer, offset)
    }

    fn try_read(&self, body: &mut Body, length: usize, offset: u64) -> Option<Result<()>> {
        if length > Self::AT_ONCE {
            return None;
        }
        if self.in_memory {
            return Some(body.fill(length).and_then(|buffer| self.read(buffer, offset)));
        }
        if self.abilities.try_read.is_missing()
            || offset.checked_add(length as u64)? > self.size.get()
        {
            return None;
        }
        let buffer = match body.fill(length) {
            Ok(buffer) => buffer,
            Err(error) => return Some(Err(error)),
        };
        let read = || {
            let mut buffers = [IoSliceMut::new(buffer)];
            preadv2(&self.file, &mut buffers, offset, ReadWriteFlags::NOWAIT)
        };
        match self.abilities.try_read.attempt(read) {
            Some(Ok(count)) if count == length => Some(Ok(())),
            // Nothing or just a part of it is cached, or there is an error, which the worker will see.
            _ => {
                body.take_back();
                None
            }
        }
    }

    fn block_size(&self) -> BlockSize {
        self.block_size
    }

    fn rotational(&self) -> bool {
        self.rotational
    }

    fn writes(&self) -> Option<&dyn Writes> {
        (!self.read_only).then_some(self)
    }

    fn flushes(&self) -> Option<&dyn Flushes> {
        Some(self)
    }

    fn trims(&self) -> Option<&dyn Trims> {
        (!self.read_only).then_some(self)
    }

    fn writes_zeroes(&self) -> Option<&dyn WritesZeroes> {
        (!self.read_only).then_some(self)
    }

    fn caches(&self) -> Option<&dyn Caches> {
        Some(self)
    }

    fn extents(&self) -> Option<&dyn Extents> {
        Some(self)
    }

    /// Block devices have the size that they have.
    fn resizes(&self) -> Option<&dyn Resizes> {
        (!self.read_only && self.kind == Kind::Regular).then_some(self)
    }
}

impl Writes for File {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        inside_for_writing(offset, data.len() as u64, self.size.get())?;
        if fua {
            self.write_through(data, offset)
        } else {
            Ok(self.file.write_all_at(data, offset)?)
        }
    }

    /// `None` may come after a part of the data is written. That does no harm: the same bytes are written to the same
    /// place next.
    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        if data.len() > Self::AT_ONCE {
            return None;
        }
        if self.in_memory {
            return Some(self.write(data, offset, fua));
        }
        // To be durable takes a wait.
        if fua || offset.checked_add(data.len() as u64)? > self.size.get() {
            return None;
        }
        let write = || {
            let buffers = [IoSlice::new(data)];
            pwritev2(&self.file, &buffers, offset, ReadWriteFlags::NOWAIT)
        };
        match self.abilities.try_write.attempt(write) {
            Some(Ok(count)) if count == data.len() => Some(Ok(())),
            _ => None,
        }
    }

    /// Native: cheaper than a flush of the whole file.
    fn fua(&self) -> Fua {
        Fua::Native
    }
}

impl Flushes for File {
    fn flush(&self) -> Result<()> {
        self.sync()
    }
}

impl Caches for File {
    /// Has the kernel read ahead, in its own time: the first GiB of the range.
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        inside(offset, length, self.size.get())?;
        if self.in_memory {
            return Ok(());
        }
        let end = offset + length.min(Self::CACHE_MOST);
        let mut at = offset;
        while at < end {
            let step = (end - at).min(Self::CACHE_STEP);
            let advice = rustix::fs::Advice::WillNeed;
            // No more than advice: a kernel that does not take it does not make the range any less readable.
            if rustix::fs::fadvise(&self.file, at, step.try_into().ok(), advice).is_err() {
                break;
            }
            at += step;
        }
        Ok(())
    }
}

impl Resizes for File {
    /// Cuts a regular file off or extends it by a hole. Fails with `ENOSPC` above what the file system can hold.
    fn resize(&self, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(too_large(size));
        }
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.size.get();
        // Requests beyond the end are refused before there is nothing, and until there is something.
        self.size.set(size.min(old));
        self.provisioned().remove(size.min(old)..u64::MAX);
        // Before growing too: a write that began before an earlier cut may have put data there after it.
        let cut = || if size > old { self.file.set_len(old) } else { Ok(()) };
        match cut().and_then(|()| self.file.set_len(size)) {
            Ok(()) => {
                self.size.set(size);
                Ok(())
            }
            Err(error) => {
                self.size.set(old);
                // What a file can't be is what there is no room for (S-RSZ-03).
                Err(match error.kind() {
                    ErrorKind::InvalidInput => too_large(size),
                    _ => error.into(),
                })
            }
        }
    }
}

fn too_large(size: u64) -> ExportError {
    ExportError::new(ErrorCode::ENOSPC, format!("{size} bytes are more than a file can have"))
}

/// For those who send parts of the file themselves.
impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
