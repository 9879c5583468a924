//! What an export can do besides being read.

use core::ops::ControlFlow;

use super::{AllocationFlags, Extent, Page, Result};

/// What an export does about a request to force unit access (FUA).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fua {
    /// The engine calls [`CanFlush::flush`] after the write; without [`CanFlush`] the flag is not offered.
    #[default]
    Emulated,
    /// The methods that write take care of it themselves when they are called with `fua`.
    Native,
    /// The flag is not offered, even where there is [`CanFlush`].
    Unsupported,
}

/// The ability to write. Part of [`Export`](super::Export).
///
/// ```
/// use nbd_engine::export::{CanWrite, Export, Fua, Result};
///
/// # struct Disk(std::sync::Mutex<Vec<u8>>);
/// # impl Export for Disk {
/// #     fn size(&self) -> u64 {
/// #         self.0.lock().unwrap().len() as u64
/// #     }
/// #     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
/// #         let offset = offset as usize;
/// #         buffer.copy_from_slice(&self.0.lock().unwrap()[offset..offset + buffer.len()]);
/// #         Ok(())
/// #     }
/// // In `impl Export for Disk`:
/// fn can_write(&self) -> Option<&dyn CanWrite> {
///     Some(self)
/// }
/// # }
///
/// impl CanWrite for Disk {
///     fn write(&self, data: &[u8], offset: u64, _fua: bool) -> Result<()> {
///         let offset = offset as usize;
///         self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
///         Ok(())
///     }
///
///     fn fua(&self) -> Fua {
///         Fua::Unsupported // It is not durable, and says so.
///     }
/// }
/// ```
pub trait CanWrite: Send + Sync {
    /// Writes `data`, of at most the maximum payload, at `offset` in bytes. With `fua` the data is durable before this
    /// returns. That is asked for only when [`fua`](Self::fua) says [`Fua::Native`]; by default it is false even for a
    /// client's FUA writes, and [`CanFlush::flush`] is called after them.
    ///
    /// # Errors
    /// The client gets it as the reply, and takes the range for written in part.
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()>;

    /// Writes if that can be done at once. With `None`, if it might block, [`write`](Self::write) is called next with
    /// the same data, of which a part may be written by then. Only consulted for exports that may block. The default is
    /// `None`.
    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        let _ = (data, offset, fua);
        None
    }

    /// How force unit access is done, for all methods that write. The default is [`Fua::Emulated`]: they never
    /// see the flag, and the engine flushes afterwards.
    fn fua(&self) -> Fua {
        Fua::Emulated
    }

    /// The ability to take over memory instead of copying it.
    fn takes_pages(&self) -> Option<&dyn TakesPages> {
        None
    }
}

/// The ability to write by taking over memory, for exports that [never block](super::Export::never_blocks). Part of
/// [`CanWrite`].
///
/// A large payload that covers whole pages is received into pages, which then go to the export one by one: nothing is
/// copied.
///
/// ```
/// use nbd_engine::export::{Page, Result, TakesPages};
/// use std::collections::BTreeMap;
/// use std::sync::Mutex;
///
/// struct Pages(Mutex<BTreeMap<u64, Page>>);
///
/// impl TakesPages for Pages {
///     fn page_size(&self) -> usize {
///         65536
///     }
///     fn new_page(&self) -> Option<Page> {
///         None
///     }
///     fn write_page(&self, page: Page, offset: u64) -> Result<Option<Page>> {
///         Ok(self.0.lock().unwrap().insert(offset, page))
///     }
/// }
/// ```
pub trait TakesPages: Send + Sync {
    /// Bytes of a page: a power of two, the same at each call.
    fn page_size(&self) -> usize;

    /// A page of the export's own memory, of that size, to be received into; its content is arbitrary, so that every
    /// byte has to be written. `None` when there is no memory for it: then the engine takes a page elsewhere, and
    /// [`write_page`](Self::write_page) says whether there is room for what is in it.
    fn new_page(&self) -> Option<Page>;

    /// Writes a page at `offset`, which is a multiple of the page size, and gives back a page that is no longer needed,
    /// if there is one, to be received into again. The page may be of any origin.
    ///
    /// # Errors
    /// The client gets it as the reply, and takes the range for written in part. The page is dropped.
    fn write_page(&self, page: Page, offset: u64) -> Result<Option<Page>>;
}

/// The ability to make written data durable. Part of [`Export`](super::Export).
///
/// ```
/// use nbd_engine::export::{CanFlush, Export, Result};
///
/// # struct Disk(std::sync::Mutex<Vec<u8>>);
/// # impl Export for Disk {
/// #     fn size(&self) -> u64 {
/// #         self.0.lock().unwrap().len() as u64
/// #     }
/// #     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
/// #         let offset = offset as usize;
/// #         buffer.copy_from_slice(&self.0.lock().unwrap()[offset..offset + buffer.len()]);
/// #         Ok(())
/// #     }
/// // In `impl Export for Disk`:
/// fn can_flush(&self) -> Option<&dyn CanFlush> {
///     Some(self)
/// }
/// # }
///
/// impl CanFlush for Disk {
///     fn flush(&self) -> Result<()> {
///         std::fs::write("disk.img", &*self.0.lock().unwrap())?;
///         Ok(())
///     }
/// }
/// ```
pub trait CanFlush: Send + Sync {
    /// Makes durable whatever was written before this was called.
    ///
    /// # Errors
    /// The client gets it as the reply: anything written since the last good flush may be lost.
    fn flush(&self) -> Result<()>;
}

/// The ability to drop data. Part of [`Export`](super::Export).
///
/// # Long commands
///
/// A trim, zeroes or a cache over more than 16 MiB comes in pieces, one after the other in the order of their offsets, so
/// that others have their turn in between and nothing is done for a client that is gone: the first is of 16 MiB, later ones
/// are as long as the export is quick, up to 1 GiB, and all but the last end at a multiple of 1 MiB. If one fails, the
/// client gets the error, and what came before it is done. With FUA there is one flush at the end, where there is
/// [any](CanFlush). Zeroes that have to be [fast](ZeroMode::fast) come whole. Of an export that
/// [never blocks](super::Export::never_blocks), [holes](CanExtents) of 64 GiB and more are left out.
///
/// ```
/// use nbd_engine::export::{CanTrim, Export, Result};
///
/// # struct Disk(std::sync::Mutex<Vec<u8>>);
/// # impl Export for Disk {
/// #     fn size(&self) -> u64 {
/// #         self.0.lock().unwrap().len() as u64
/// #     }
/// #     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
/// #         let offset = offset as usize;
/// #         buffer.copy_from_slice(&self.0.lock().unwrap()[offset..offset + buffer.len()]);
/// #         Ok(())
/// #     }
/// // In `impl Export for Disk`:
/// fn can_trim(&self) -> Option<&dyn CanTrim> {
///     Some(self)
/// }
/// # }
///
/// impl CanTrim for Disk {
///     fn trim(&self, offset: u64, length: u64, _fua: bool) -> Result<()> {
///         self.0.lock().unwrap()[offset as usize..(offset + length) as usize].fill(0);
///         Ok(())
///     }
/// }
/// ```
pub trait CanTrim: Send + Sync {
    /// Drops the range, in bytes, or any part of it; what it reads as later is up to the export. Nothing outside may
    /// change. `fua` is as for [`CanWrite::write`].
    ///
    /// # Errors
    /// The client gets it as the reply.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()>;
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "tests of exports make them; NBD has no other flag")]
pub struct ZeroMode {
    /// Durable before it returns, see [`CanWrite::fua`].
    pub fua: bool,
    /// Leave the range allocated.
    pub no_hole: bool,
    /// Fail with [`ExportError::not_fast`](super::ExportError::not_fast), and change nothing, unless this is faster
    /// than writing.
    pub fast: bool,
}

/// The ability to write zeroes without sending them. Part of [`Export`](super::Export).
///
/// A command over more than 16 MiB comes [in pieces](CanTrim#long-commands).
///
/// ```
/// use nbd_engine::export::{CanWriteZeroes, Export, ExportError, Result, ZeroMode};
///
/// # struct Disk(std::sync::Mutex<Vec<u8>>);
/// # impl Export for Disk {
/// #     fn size(&self) -> u64 {
/// #         self.0.lock().unwrap().len() as u64
/// #     }
/// #     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
/// #         let offset = offset as usize;
/// #         buffer.copy_from_slice(&self.0.lock().unwrap()[offset..offset + buffer.len()]);
/// #         Ok(())
/// #     }
/// // In `impl Export for Disk`:
/// fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
///     Some(self)
/// }
/// # }
///
/// impl CanWriteZeroes for Disk {
///     fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
///         if mode.fast && length > 1 << 20 {
///             return Err(ExportError::not_fast());
///         }
///         self.0.lock().unwrap()[offset as usize..(offset + length) as usize].fill(0);
///         Ok(())
///     }
/// }
/// ```
pub trait CanWriteZeroes: Send + Sync {
    /// Makes the range, in bytes, read as zeroes.
    ///
    /// # Errors
    /// The client gets it as the reply: [`not_fast`](super::ExportError::not_fast) for a fast zero that would be slow.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()>;

    /// Whether clients are offered to ask for a [fast](ZeroMode::fast) zero. An export that knows no fast way may offer
    /// it and fail with [`ExportError::not_fast`](super::ExportError::not_fast), which tells clients more than not to
    /// offer it; the default is `true`.
    fn can_fast_zero(&self) -> bool {
        true
    }
}

/// The ability to prepare for reads. Part of [`Export`](super::Export).
/// A command over more than 16 MiB comes [in pieces](CanTrim#long-commands).
///
/// ```
/// use nbd_engine::export::{CanCache, Export, Result};
///
/// # struct Disk(std::sync::Mutex<Vec<u8>>);
/// # impl Export for Disk {
/// #     fn size(&self) -> u64 {
/// #         self.0.lock().unwrap().len() as u64
/// #     }
/// #     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
/// #         let offset = offset as usize;
/// #         buffer.copy_from_slice(&self.0.lock().unwrap()[offset..offset + buffer.len()]);
/// #         Ok(())
/// #     }
/// // In `impl Export for Disk`:
/// fn can_cache(&self) -> Option<&dyn CanCache> {
///     Some(self)
/// }
/// # }
///
/// impl CanCache for Disk {
///     fn cache(&self, _offset: u64, _length: u64) -> Result<()> {
///         Ok(()) // All of it is in memory already.
///     }
/// }
/// ```
pub trait CanCache: Send + Sync {
    /// Prepares for reads of the range, in bytes. Doing nothing is fine.
    ///
    /// # Errors
    /// The client gets it as the reply.
    fn cache(&self, offset: u64, length: u64) -> Result<()>;
}

/// The ability to report holes, for `base:allocation`. Part of [`Export`](super::Export).
///
/// ```
/// use nbd_engine::export::{Allocation, CanExtents, Export, Result};
///
/// # struct Disk(std::sync::Mutex<Vec<u8>>);
/// # impl Export for Disk {
/// #     fn size(&self) -> u64 {
/// #         self.0.lock().unwrap().len() as u64
/// #     }
/// #     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
/// #         let offset = offset as usize;
/// #         buffer.copy_from_slice(&self.0.lock().unwrap()[offset..offset + buffer.len()]);
/// #         Ok(())
/// #     }
/// // In `impl Export for Disk`:
/// fn can_extents(&self) -> Option<&dyn CanExtents> {
///     Some(self)
/// }
/// # }
///
/// impl CanExtents for Disk {
///     fn extents(
///         &self,
///         offset: u64,
///         length: u64,
///         visit: &mut dyn FnMut(Allocation) -> std::ops::ControlFlow<()>,
///     ) -> Result<()> {
///         let disk = self.0.lock().unwrap();
///         let range = &disk[offset as usize..(offset + length) as usize];
///         for run in range.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
///             let length = run.len() as u64;
///             if visit(Allocation { length, hole: false, zero: run[0] == 0 }).is_break() {
///                 break;
///             }
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait CanExtents: Send + Sync {
    /// Reports runs of [`Allocation`] from `offset` on, without a gap, until `length` bytes are covered or the visitor
    /// breaks off. The last run may reach further. Reporting less is fine as long as it is something.
    ///
    /// Runs need not be aligned: clients get whole blocks, of the minimum block size or 512 bytes, which are data where
    /// some of them is. `offset` need not be aligned after a run that was not.
    ///
    /// # Errors
    /// The client gets it as the reply, whatever runs were reported before.
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Allocation) -> ControlFlow<()>,
    ) -> Result<()>;
}

/// A run of bytes that are allocated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "exports make them; the context has two flags")]
pub struct Allocation {
    /// Bytes. A run of none says nothing.
    pub length: u64,
    /// No space is taken: a write may find none.
    pub hole: bool,
    /// All bytes read as zero.
    pub zero: bool,
}

impl From<Allocation> for Extent {
    fn from(allocation: Allocation) -> Self {
        let mut flags = AllocationFlags::empty();
        flags.set(AllocationFlags::HOLE, allocation.hole);
        flags.set(AllocationFlags::ZERO, allocation.zero);
        Self { length: allocation.length, status: u64::from(flags.bits()) }
    }
}

/// The ability to change the size. Part of [`Export`](super::Export).
///
/// Any client that may write can then resize the disk, and cut it off while others use it. A server offers it unless
/// [`ServerConfig::with_resize`](crate::server::ServerConfig::with_resize) says no; the default is yes, since an export
/// with this ability is taken to mean it. (`nbd serve` offers it with `--resize` alone.) Every client of the export works with the new size from then on.
///
/// ```
/// use nbd_engine::export::{CanResize, Export, ExportError, Result};
///
/// # struct Disk(std::sync::Mutex<Vec<u8>>);
/// # impl Export for Disk {
/// #     fn size(&self) -> u64 {
/// #         self.0.lock().unwrap().len() as u64
/// #     }
/// #     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
/// #         let offset = offset as usize;
/// #         buffer.copy_from_slice(&self.0.lock().unwrap()[offset..offset + buffer.len()]);
/// #         Ok(())
/// #     }
/// // In `impl Export for Disk`:
/// fn can_resize(&self) -> Option<&dyn CanResize> {
///     Some(self)
/// }
/// # }
///
/// impl CanResize for Disk {
///     fn resize(&self, size: u64) -> Result<()> {
///         let size = usize::try_from(size).map_err(|_| ExportError::no_space())?;
///         self.0.lock().unwrap().resize(size, 0);
///         Ok(())
///     }
/// }
/// ```
pub trait CanResize: Send + Sync {
    /// Makes [`Export::size`](super::Export::size) be `size` bytes.
    ///
    /// # Errors
    /// `ENOSPC` where there is no space for that many. The size stays as it was, whatever the error.
    fn resize(&self, size: u64) -> Result<()>;
}
