//! The size of the export, which the file may outgrow.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, TryLockError};

use nbd_proto::wire::ErrorCode;
use rustix::fs::SeekFrom;
use rustix::io::{Errno, retry_on_intr};

use super::{File, Kind, from_errno};
use crate::export::bounds::{inside, inside_for_writing};
use crate::export::{CanResize, ExportError, Result};

/// The size in bytes, for many threads.
#[derive(Debug)]
pub(super) struct Size {
    current: AtomicU64,
    /// The largest there ever was: no request reaches further.
    highest: AtomicU64,
}

impl Size {
    pub(super) fn new(bytes: u64) -> Self {
        Self { current: bytes.into(), highest: bytes.into() }
    }

    pub(super) fn get(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    fn set(&self, bytes: u64) {
        self.highest.fetch_max(bytes, Ordering::AcqRel);
        self.current.store(bytes, Ordering::Release);
    }

    fn highest(&self) -> u64 {
        self.highest.load(Ordering::Acquire)
    }
}

impl File {
    /// Takes the file's size over if it has grown beyond all that requests could have done to it. A file that was cut
    /// off keeps its size: what is missing must fail, not vanish.
    pub(super) fn follow_growth(&self) {
        let _one_at_a_time = match self.resizing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // A resize sets the size by itself.
            Err(TryLockError::WouldBlock) => return,
        };
        self.grow();
    }

    /// With `resizing` locked.
    fn grow(&self) {
        // A file that can't be asked keeps its size; reading it says what is wrong.
        if let Ok(length) = self.system.length()
            && length > self.size.highest()
            && i64::try_from(length).is_ok()
        {
            self.size.set(length);
        }
    }

    /// Refuses a range for writing that is outside of the export, or of what is left of the file: to write behind its
    /// end would bring what was cut off back as zeroes.
    pub(super) fn check_for_writing(&self, offset: u64, length: u64) -> Result<()> {
        inside_for_writing(offset, length, self.size.get())?;
        // A write can't extend a block device.
        if self.holes.kind == Kind::Regular
            && self.length_for_writing().map_err(from_errno)? < offset + length
        {
            // A resize in between sets the size before it cuts the file: then the range is at fault (S-REQ-09).
            inside_for_writing(offset, length, self.size.get())?;
            return Err(cut_off());
        }
        Ok(())
    }

    /// The length that the kernel knows, without waiting for it.
    fn length_for_writing(&self) -> rustix::io::Result<u64> {
        // Every write pays for this. The quicker way waits where the length has to be asked for, which no file system
        // does that can write at once.
        if self.in_memory || self.abilities.try_write.is_proven() {
            retry_on_intr(|| self.system.seek(SeekFrom::End(0)))
        } else {
            self.system.length()
        }
    }

    /// The file ends before a range for reading that was inside when it was looked at last.
    pub(super) fn ends_before(&self, offset: u64, length: u64) -> ExportError {
        // As above.
        inside(offset, length, self.size.get()).err().unwrap_or_else(cut_off)
    }
}

impl CanResize for File {
    /// Cuts a regular file off or extends it by a hole. Fails with `ENOSPC` above what the file system can hold.
    fn resize(&self, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return Err(too_large(size));
        }
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        // What another process put behind the end is kept, as far as the new size allows.
        self.grow();
        let old = self.size.get();
        // Requests beyond the end are refused before there is nothing, and until there is something.
        self.size.set(size.min(old));
        self.provisioned().remove(size.min(old)..u64::MAX);
        // Before growing too: a write that began before an earlier cut may have put data there after it.
        let cut = || if size > old { self.system.set_length(old) } else { Ok(()) };
        match cut().and_then(|()| self.system.set_length(size)) {
            Ok(()) => {
                self.size.set(size);
                Ok(())
            }
            Err(errno) => {
                self.size.set(old);
                // What a file can't be is what there is no room for (S-RSZ-03).
                Err(if errno == Errno::INVAL { too_large(size) } else { from_errno(errno) })
            }
        }
    }
}

fn cut_off() -> ExportError {
    ExportError::io("the file ends before the range: it was cut off while in use")
}

fn too_large(size: u64) -> ExportError {
    ExportError::new(ErrorCode::ENOSPC, format!("{size} bytes are more than a file can have"))
}
