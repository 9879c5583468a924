//! A regular file or a block device.

mod ability;
mod device;
mod durability;
mod extents;
mod holes;
mod open;
mod size;
mod system;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod zero;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::bounds::inside;
use super::ranges::Ranges;
use super::{
    BlockSize, Body, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite, CanWriteZeroes,
    Export, ExportError, Fua, Result,
};
use ability::Abilities;
pub use device::is_device_path;
use durability::Durability;
pub use holes::FileHoles;
use holes::Kind;
pub use open::{FileOptions, Missing, OpenError, check_writable};
use size::Size;
use system::System;

/// A regular file or a block device, through the page cache.
///
/// - Any byte can be read and written, on block devices too.
/// - Reads of what is cached are done at once, and writes that need not wait, where the file system can tell
///   (`RWF_NOWAIT`); everything else is left to a worker thread. Files in memory (tmpfs, ramfs) are read and written at
///   once always. Requests of more than 128 KiB go to a worker in any case.
/// - A flush is `fdatasync`, and a request with FUA is followed by one: every file system honours that, whereas some
///   ignore `RWF_DSYNC`. Flushes that come while one runs share the next.
/// - Trimming punches holes; writing zeroes does too, or asks for zeroes in place when no hole is wanted.
/// - Holes are those that the file system reports (`SEEK_HOLE`).
/// - The size is that at opening, and follows a file or device that grows: at the next [`refresh`](Export::refresh),
///   which is when a client enters the export. Clients may resize a regular file through the export,
///   too, unless [`ServerConfig::with_resize`](crate::server::ServerConfig::with_resize) says no. What another
///   process cut off fails with `EIO`, for reading and for writing.
///
/// # When a flush fails
/// The kernel then marks the pages that it could not write back clean and drops them at will; it reports the error
/// once, and there is no way to find out which writes were lost. So a failed flush is final: that flush fails with the
/// system's error, and from then on every flush and every request with FUA fails with `EIO`, on all connections and on
/// all exports of the same file or device in this process. Reading and writing without FUA go on. It makes no
/// difference that the cause was a full (thin) disk and that there is room again: what was lost stays lost.
///
/// The state ends when the last `File` of that file is dropped and it is opened anew; `nbd serve` is restarted for
/// that. Clients whose flush failed have to take what they wrote since their last successful one for lost.
#[derive(Debug)]
pub struct File {
    system: Box<dyn System>,
    durability: Durability,
    size: Size,
    read_only: bool,
    in_memory: bool,
    rotational: bool,
    block_size: BlockSize,
    abilities: Abilities,
    holes: FileHoles,
    /// Where space was set aside by writing zeroes. Only a hint: whatever is not there is reported as the file system
    /// says, which is right as well.
    provisioned: Mutex<Ranges>,
    /// One change of the size at a time.
    resizing: Mutex<()>,
}

impl File {
    /// Longer requests than this many bytes are never done at once: to copy them takes longer than to wake a worker,
    /// and would hold up the connection's other requests.
    const AT_ONCE: usize = 128 << 10;

    /// More ranges where space was set aside are not remembered, so that memory stays small whatever clients do.
    const MAX_PROVISIONED: usize = 4096;

    /// The kernel is asked to read ahead in steps of this many bytes: of a longer one it reads only a part.
    const READ_AHEAD_STEP: u64 = 128 << 10;

    /// No more than this is read ahead for one request, so that it does not push everything else out.
    const MAX_READ_AHEAD: u64 = 1 << 30;

    fn provisioned(&self) -> MutexGuard<'_, Ranges> {
        // A hint, so that a half-made change would do no harm.
        self.provisioned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a range that was inside when it was looked at last.
    fn read_inside(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self.system.read_exact(buffer, offset) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.ends_before(offset, buffer.len() as u64)),
            Err(errno) => Err(from_errno(errno)),
        }
    }

    /// Makes durable what was written before this was called.
    fn sync(&self) -> Result<()> {
        self.durability.sync(|| self.system.sync_data())
    }
}

fn from_errno(errno: Errno) -> ExportError {
    io::Error::from(errno).into()
}

impl Export for File {
    fn size(&self) -> u64 {
        self.size.get()
    }

    /// Looks whether the file has grown.
    fn refresh(&self) {
        self.follow_growth();
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
        match self.abilities.try_read.attempt(|| self.system.read_cached(buffer, offset)) {
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

    fn can_write(&self) -> Option<&dyn CanWrite> {
        (!self.read_only).then_some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        Some(self)
    }

    fn can_trim(&self) -> Option<&dyn CanTrim> {
        (!self.read_only).then_some(self)
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        (!self.read_only).then_some(self)
    }

    fn can_cache(&self) -> Option<&dyn CanCache> {
        Some(self)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }

    /// Block devices have the size that they have.
    fn can_resize(&self) -> Option<&dyn CanResize> {
        (!self.read_only && self.holes.kind == Kind::Regular).then_some(self)
    }
}

impl CanWrite for File {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()> {
        self.check_for_writing(offset, data.len() as u64)?;
        self.system.write_all(data, offset).map_err(from_errno)?;
        if fua { self.sync() } else { Ok(()) }
    }

    /// `None` may come after a part of the data is written. That does no harm: the same bytes are written at the same
    /// offset next.
    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        if data.len() > Self::AT_ONCE {
            return None;
        }
        if self.in_memory {
            return Some(self.write(data, offset, fua));
        }
        // To be durable takes a wait.
        if fua
            || self.abilities.try_write.is_missing()
            || self.check_for_writing(offset, data.len() as u64).is_err()
        {
            return None;
        }
        match self.abilities.try_write.attempt(|| self.system.write_cached(data, offset)) {
            Some(Ok(count)) if count == data.len() => Some(Ok(())),
            _ => None,
        }
    }

    /// Native, so that callers of the methods get it, too.
    fn fua(&self) -> Fua {
        Fua::Native
    }
}

impl CanFlush for File {
    fn flush(&self) -> Result<()> {
        self.sync()
    }
}

impl CanCache for File {
    /// Has the kernel read ahead, in its own time: the first GiB of the range.
    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        inside(offset, length, self.size.get())?;
        if self.in_memory {
            return Ok(());
        }
        let end = offset + length.min(Self::MAX_READ_AHEAD);
        let mut at = offset;
        while at < end {
            let step = (end - at).min(Self::READ_AHEAD_STEP);
            let advice = rustix::fs::Advice::WillNeed;
            // No more than advice: a kernel that does not take it does not make the range any less readable.
            if rustix::fs::fadvise(self.system.file(), at, step.try_into().ok(), advice).is_err() {
                break;
            }
            at += step;
        }
        Ok(())
    }
}

/// For programs that send parts of the file themselves.
///
/// Don't sync the descriptor, a duplicate of it, or a range of it: the kernel would report a failed write-back there,
/// and flushes of the export would never learn of it.
impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.system.file().as_fd()
    }
}
