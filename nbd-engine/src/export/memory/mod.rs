//! A disk in memory.

mod account;
mod frames;
mod page;
mod pages;
#[cfg(test)]
mod shared_tests;
mod slab;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::{ControlFlow, Range};
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nbd_proto::wire::ErrorCode;

use super::bounds::{inside, inside_for_writing};
use super::{
    Allocation, Body, CanCache, CanExtents, CanFlush, CanResize, CanTrim, CanWrite, CanWriteZeroes,
    Export, ExportError, Fua, Result, Shared, TakesPages, ZeroMode,
};
use account::Account;
pub use page::Page;
use pages::{Pages, Source};

/// Bytes of a page. Large enough that a table is small (a pointer in 16 KiB) and that a shared read of 1 MiB is 64
/// pieces rather than 256; small enough that copying one for a writer takes about a microsecond, even if every write
/// meets a page that a read shares, and that a single scattered write does not take up much.
const PAGE: usize = 16 << 10;

/// A disk in memory: sparse, empty at first, gone with the process.
///
/// Memory is taken in pages of [`PAGE_SIZE`](Self::PAGE_SIZE) bytes when they are first written, and given back when
/// they are trimmed, zeroed or cut off, so that a disk of 2^62 bytes costs no more than what it holds.
///
/// # Memory
///
/// Each disk has memory of its own from the system, apart from the allocator's. Pages that are freed, on whatever
/// thread and in whatever order, are used again or returned to the system one by one. Resident are at most
///
/// - the pages that the disk holds, [`allocated_bytes`](Self::allocated_bytes), which is
///   [limited](Self::with_allocation_limit);
/// - pages that are free and kept for the next writes: an eighth of the pages that are in use, but not less than
///   256 KiB and not more than 4 MiB;
/// - pages of payloads that are being received, and pages that were replaced or freed while replies share them: no more
///   than such payloads and replies are long, rounded up to pages, and 1 MiB for each connection;
/// - bookkeeping: about 50 bytes for a page and 300 for each MiB in which anything is allocated.
///
/// So a disk that is trimmed as a whole keeps 256 KiB. On Linux with pages above 16 KiB, and on other systems, memory
/// is used again but returned only with the disk.
///
/// All disks of a process together take at most seven eighths of the memory that the process may use besides: the least
/// of what its control group and that group's parents, `ulimit -v` and `ulimit -d`, and the machine have available,
/// plus what the disks hold already. That is looked at again with each 8 MiB that they grow by. What would take more
/// fails with `ENOSPC`, as on a thinly provisioned disk; the rest of the memory is for bookkeeping and for buffers.
/// Reading, trimming and rewriting go on.
///
/// # Size
///
/// Clients may resize the disk unless [`ServerConfig::with_resize`](crate::server::ServerConfig::with_resize) says no.
///
/// # Concurrency
///
/// Any number of threads can use it. Reads and writes of the same bytes at the same time see old and new bytes mixed,
/// as on any disk, but a page never half old and half new by one write. Nothing blocks, except for the time it takes to
/// copy, clear or free the memory that a request is about.
///
/// Reads of 4 KiB and more share the pages instead of copying them. A page that is written while it is shared is
/// copied once, and the old one lives until the replies that share it are sent.
///
/// ```
/// use nbd_engine::export::{Export, Memory};
///
/// let disk = Memory::new(1 << 40)?;
/// disk.can_write().unwrap().write(b"hello", 1 << 39, false)?;
/// let mut bytes = [0; 5];
/// disk.read(&mut bytes, 1 << 39)?;
/// assert_eq!(&bytes, b"hello");
/// assert_eq!(disk.allocated_bytes(), Memory::PAGE_SIZE);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Memory {
    size: AtomicU64,
    pages: Pages,
    /// One change of the size at a time.
    resizing: Mutex<()>,
}

impl Memory {
    /// The largest size in bytes: 2^63 - 1.
    pub const MAX_SIZE: u64 = i64::MAX as u64;

    /// Memory is taken and freed in units of this many bytes.
    pub const PAGE_SIZE: u64 = PAGE as u64;

    /// A read of this many bytes or more shares pages; a shorter one is copied, which is faster than to count sharers,
    /// and spares writers the copy of a page.
    const SHARE_READS: usize = 4 << 10;

    /// Not even in a long read is less than this of a page shared.
    const SHARE_PART: usize = 4 << 10;

    /// A call of extents walks over no more than this many pages, so that it takes a millisecond or so, however large
    /// the disk is. The client asks again from there.
    const WALK: u64 = 1 << 15;

    /// To pass over a hole, of any length, takes as long as to walk over this many pages at most.
    const HOLE_STEPS: u64 = 16;

    /// A disk of `size` bytes, all zero. Its limit is seven eighths of the memory that is available now; with others it
    /// may hold less, see above.
    ///
    /// # Errors
    /// Above [`MAX_SIZE`](Self::MAX_SIZE).
    pub fn new(size: u64) -> core::result::Result<Self, TooLarge> {
        Self::with_account(size, Account::process())
    }

    fn with_account(size: u64, account: Arc<Account>) -> core::result::Result<Self, TooLarge> {
        if size > Self::MAX_SIZE {
            return Err(TooLarge { size });
        }
        let pages = Pages::new(account);
        Ok(Self { size: AtomicU64::new(size), pages, resizing: Mutex::new(()) })
    }

    /// The same disk, which holds at most `bytes` of pages. What would take more fails with `ENOSPC`. Rounded down to
    /// whole pages; 0 makes every write fail. More than the process may use is of no effect.
    #[must_use]
    pub fn with_allocation_limit(mut self, bytes: u64) -> Self {
        self.pages.set_limit(bytes);
        self
    }

    /// Bytes of pages that the disk may hold.
    #[must_use]
    pub const fn allocation_limit(&self) -> u64 {
        self.pages.limit()
    }

    /// Bytes of pages that the disk holds now: a multiple of [`PAGE_SIZE`](Self::PAGE_SIZE).
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.pages.allocated()
    }

    /// Makes the range absent where it covers pages, and zero elsewhere.
    fn clear(&self, offset: u64, length: u64) -> Result<()> {
        let end = offset + length;
        let whole = offset.div_ceil(Self::PAGE_SIZE)..end / Self::PAGE_SIZE;
        if whole.start >= whole.end {
            return self.put_zeroes(offset, length, Source::Zeroes);
        }
        let (start, stop) = (whole.start * Self::PAGE_SIZE, whole.end * Self::PAGE_SIZE);
        self.put_zeroes(offset, start - offset, Source::Zeroes)?;
        self.put_zeroes(stop, end - stop, Source::Zeroes)?;
        self.pages.free(whole);
        Ok(())
    }

    fn put_zeroes(&self, offset: u64, length: u64, source: Source<'_>) -> Result<()> {
        parts(offset, length).try_for_each(|part| self.pages.edit(part.page, part.within, source))
    }
}

/// The part of a range that lies in one page.
struct Part {
    page: u64,
    within: Range<usize>,
}

/// Cuts a range at the bounds of pages.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = Part> {
    let end = offset + length;
    let mut at = offset;
    core::iter::from_fn(move || {
        let page = at / Memory::PAGE_SIZE;
        let start = (at % Memory::PAGE_SIZE) as usize;
        // No longer than a page, so that it fits.
        let length = (end - at).min((PAGE - start) as u64) as usize;
        at += length as u64;
        (length > 0).then_some(Part { page, within: start..start + length })
    })
}

impl Export for Memory {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read(&self, mut buffer: &mut [u8], offset: u64) -> Result<()> {
        let length = buffer.len() as u64;
        inside(offset, length, self.size())?;
        for Part { page, within } in parts(offset, length) {
            let (part, rest) = buffer.split_at_mut(within.len());
            buffer = rest;
            self.pages.look(page, |page| match page {
                Some(page) => part.copy_from_slice(&page[within]),
                None => part.fill(0),
            });
        }
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        true
    }

    fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        inside(offset, length as u64, self.size())?;
        // Neighbouring holes become one piece.
        let mut hole = 0;
        for Part { page, within } in parts(offset, length as u64) {
            let part = within.len();
            self.pages.look(page, |page| -> Result<()> {
                let Some(page) = page else {
                    hole += part;
                    return Ok(());
                };
                if hole > 0 {
                    body.hole(core::mem::take(&mut hole));
                }
                if length >= Self::SHARE_READS && part >= Self::SHARE_PART {
                    body.share(Shared::page(page.clone(), within));
                } else {
                    body.fill(part)?.copy_from_slice(&page[within]);
                }
                Ok(())
            })?;
        }
        if hole > 0 {
            body.hole(hole);
        }
        Ok(())
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<&dyn CanFlush> {
        Some(self)
    }

    fn can_trim(&self) -> Option<&dyn CanTrim> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        Some(self)
    }

    fn can_cache(&self) -> Option<&dyn CanCache> {
        Some(self)
    }

    fn can_extents(&self) -> Option<&dyn CanExtents> {
        Some(self)
    }

    fn can_resize(&self) -> Option<&dyn CanResize> {
        Some(self)
    }
}

impl CanWrite for Memory {
    fn write(&self, mut data: &[u8], offset: u64, _fua: bool) -> Result<()> {
        let length = data.len() as u64;
        inside_for_writing(offset, length, self.size())?;
        for Part { page, within } in parts(offset, length) {
            let (part, rest) = data.split_at(within.len());
            data = rest;
            self.pages.edit(page, within, Source::Data(part))?;
        }
        Ok(())
    }

    /// Native: no write is any more durable than another.
    fn fua(&self) -> Fua {
        Fua::Native
    }

    fn takes_pages(&self) -> Option<&dyn TakesPages> {
        Some(self)
    }
}

impl TakesPages for Memory {
    fn page_size(&self) -> usize {
        PAGE
    }

    fn new_page(&self) -> Option<Page> {
        self.pages.frames().page(|_| {})
    }

    fn write_page(&self, page: Page, offset: u64) -> Result<Option<Page>> {
        inside_for_writing(offset, page.len() as u64, self.size())?;
        // Memory of another origin would not come back to the disk when it is trimmed.
        let own = page.is_of(self.pages.frames());
        if !own || !offset.is_multiple_of(Self::PAGE_SIZE) {
            self.write(&page, offset, false)?;
            return Ok(own.then_some(page));
        }
        self.pages.exchange(offset / Self::PAGE_SIZE, page)
    }
}

impl CanFlush for Memory {
    /// Does nothing: the disk lives as long as the process in any case.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

impl CanTrim for Memory {
    /// Frees the pages that the range covers and zeroes the rest of it.
    fn trim(&self, offset: u64, length: u64, _fua: bool) -> Result<()> {
        inside(offset, length, self.size())?;
        self.clear(offset, length)
    }
}

impl CanWriteZeroes for Memory {
    /// Frees pages, which is always fast; with `no_hole` it allocates what is absent instead, which never is. A range
    /// for which the limit leaves no room fails with `ENOSPC` before anything is changed.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        inside_for_writing(offset, length, self.size())?;
        if !mode.no_hole {
            return self.clear(offset, length);
        }
        if mode.fast {
            return Err(ExportError::not_fast());
        }
        let end = offset + length;
        self.pages.check_room(offset / Self::PAGE_SIZE..end.div_ceil(Self::PAGE_SIZE))?;
        self.put_zeroes(offset, length, Source::AllocatedZeroes)
    }
}

impl CanCache for Memory {
    /// Does nothing: everything is in memory.
    fn cache(&self, _offset: u64, _length: u64) -> Result<()> {
        Ok(())
    }
}

impl CanExtents for Memory {
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()> {
        let size = self.size();
        inside(offset, length, size)?;
        // Runs are reported by pages, but not beyond the end of the disk.
        let last = (offset + length).div_ceil(Self::PAGE_SIZE);
        let mut at = offset;
        let mut walk = Self::WALK;
        while at < offset + length && walk > 0 {
            let page = at / Self::PAGE_SIZE;
            let (data, end) = self.pages.run(page, last, walk);
            walk = walk.saturating_sub(if data { end - page } else { Self::HOLE_STEPS });
            let end = size.min(end * Self::PAGE_SIZE);
            let length = end - at;
            at = end;
            if visit(Allocation { length, hole: !data, zero: !data }).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl CanResize for Memory {
    /// Drops what lies beyond a smaller size: growing again brings zeroes. Fails with `ENOSPC` above
    /// [`MAX_SIZE`](Memory::MAX_SIZE).
    fn resize(&self, size: u64) -> Result<()> {
        if size > Self::MAX_SIZE {
            let text = TooLarge { size }.to_string();
            return Err(ExportError::new(ErrorCode::ENOSPC, text));
        }
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.size();
        if size < old {
            self.size.store(size, Ordering::Release);
        }
        // Before growing too: a write that began before an earlier cut may have put pages there after it.
        let start = size.min(old);
        self.clear(start, (1 << 63) - start)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("size", &self.size())
            .field("allocated_bytes", &self.allocated_bytes())
            .field("allocation_limit", &self.allocation_limit())
            .finish_non_exhaustive()
    }
}

/// A disk in memory was to be larger than [`Memory::MAX_SIZE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    size: u64,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a disk of {} bytes is too large: the maximum is {}", self.size, Memory::MAX_SIZE)
    }
}

impl core::error::Error for TooLarge {}
