//! What is served: the traits that an export implements, and the exports that come with the engine.

#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod any;
mod asynchronous;
mod body;
mod bounds;
mod client;
mod contexts;
mod depth;
mod entry;
mod error;
mod exports;
#[cfg(target_os = "linux")]
mod file;
mod forward;
mod layer;
mod map;
mod memory;
#[cfg(test)]
mod model;
mod pool;
mod ranges;
mod read_only;
mod tracked;
mod with_block_size;

pub(crate) use any::Kind;
pub use any::{AnyExport, IntoExport, kind};
pub use asynchronous::{
    AsyncCanCache, AsyncCanExtents, AsyncCanFlush, AsyncCanResize, AsyncCanTrim, AsyncCanWrite,
    AsyncCanWriteZeroes, AsyncContexts, AsyncExport, Visitor,
};
pub use body::{Body, ReadFlags};
pub(crate) use body::{Piece, Shared};
pub use client::{ClientInfo, CloseReason, PeerAddr, TlsIdentity, UnixPeer};
pub use contexts::{Contexts, no_such_context};
pub use depth::{AllocationDepth, WithAllocationDepth};
pub use entry::{ExportEntry, InvalidName, ListedExport};
pub use error::{ExportError, Result};
pub(crate) use exports::DynExports;
pub use exports::{Exports, Lookup, Purpose, Refusal};
#[cfg(target_os = "linux")]
pub use file::{File, FileOptions, OpenError, check_writable};
pub use layer::Layered;
pub use map::ExportMap;
pub use memory::{Memory, Page, TooLarge};
pub(crate) use pool::{Pool, allocate};
pub use read_only::{NoWriting, ReadOnly};
pub use tracked::{BitmapError, Tracked, Tracker, Tracking};
pub use with_block_size::{Constraints, WithBlockSize};

pub use nbd_proto::wire::{AllocationFlags, ErrorCode};
pub use nbd_proto::{BlockSize, ContextInfo, Extent};

use core::ops::ControlFlow;
/// A disk that may block while it works: a file, a block device, memory, or anything of your own.
///
/// All methods take `&self` and may be called from many threads at once, for one connection or for several; offsets
/// and lengths are in bytes, and the core has checked them: inside the export, aligned to its minimum block size, not
/// zero, and nothing that writes on an export that can't be written. An export whose size can shrink has to check the
/// range again, for requests that come at the same time.
///
/// Only the size and reading are asked for. Each other ability is a small trait of its own; implement it and return
/// `Some(self)` from the method that is named after it, and it is advertised: what is advertised and what is
/// implemented cannot disagree.
///
/// ```
/// use nbd_engine::export::{Export, Flushes, Result, Writes};
/// use std::sync::RwLock;
///
/// struct Disk(RwLock<Vec<u8>>);
///
/// impl Export for Disk {
///     fn size(&self) -> u64 {
///         self.0.read().unwrap().len() as u64
///     }
///     fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
///         let offset = offset as usize;
///         buffer.copy_from_slice(&self.0.read().unwrap()[offset..offset + buffer.len()]);
///         Ok(())
///     }
///     fn never_blocks(&self) -> bool {
///         true
///     }
///     fn writes(&self) -> Option<&dyn Writes> {
///         Some(self)
///     }
/// }
///
/// impl Writes for Disk {
///     fn write(&self, data: &[u8], offset: u64, _fua: bool) -> Result<()> {
///         let offset = offset as usize;
///         self.0.write().unwrap()[offset..offset + data.len()].copy_from_slice(data);
///         Ok(())
///     }
/// }
/// ```
pub trait Export: Send + Sync + 'static {
    /// The size in bytes, at most 2^63 - 1. It may change, by [`Resizes`] or otherwise, and is asked for all the time, so
    /// that every connection follows. A request may have been checked against an earlier size when it gets here.
    fn size(&self) -> u64;

    /// Called before the size is told to a client that enters the export or asks about it: the moment to look whether
    /// the medium has another size by now. It is called on the connection's own thread or task, so that it must not
    /// block. The default does nothing, which is right for exports that know their size at any time.
    fn refresh(&self) {}

    /// Fills `buffer` with the bytes at `offset`.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// Whether every method returns at once, so that the connection's own thread or task can call it. When `false`,
    /// the default, calls are made on worker threads, and a slow one holds up no other request.
    fn never_blocks(&self) -> bool {
        false
    }

    /// Reads into a reply body: the same as [`read`](Self::read), for exports that have holes or bytes to share.
    fn read_body(&self, body: &mut Body, length: usize, offset: u64) -> Result<()> {
        self.read(body.fill(length)?, offset)
    }

    /// Reads if that can be done at once; `None` if it might block, with nothing done. It is called on the
    /// connection's own thread or task before a worker is asked.
    fn try_read(&self, body: &mut Body, length: usize, offset: u64) -> Option<Result<()>> {
        self.never_blocks().then(|| self.read_body(body, length, offset))
    }

    /// Size constraints. The default is no constraint: bytes, 4 KiB preferred, 32 MiB of payload.
    fn block_size(&self) -> BlockSize {
        BlockSize::DEFAULT
    }

    /// Whether clients that don't ask for the size constraints are refused.
    fn block_size_required(&self) -> bool {
        false
    }

    /// A text for people who list the exports.
    fn description(&self) -> Option<String> {
        None
    }

    /// Whether the medium rotates, so that clients order their requests for it.
    fn rotational(&self) -> bool {
        false
    }

    /// Whether a flush on one connection covers what all of them wrote, and each sees at once what another wrote. True
    /// by default, since all connections share this one object; an export that keeps a cache a connection says no.
    fn multi_conn(&self) -> bool {
        true
    }

    /// A client enters the export: its first request comes after this. Clients that only ask about the export, as some do
    /// before they enter, are not reported. Called on the connection's own thread or task, so it must not block; a panic
    /// is ignored.
    ///
    /// An export that keeps a state for each client may keep it by [`ClientInfo::connection`], or be made anew for each
    /// client by [`Exports::find`].
    fn client_entered(&self, client: &ClientInfo) {
        let _ = client;
    }

    /// A client that entered has left. Called exactly once for each [`client_entered`](Self::client_entered), however
    /// the connection ends, after the last of its requests has ended: on the connection's own thread or task, or on the
    /// worker thread that carried out that request, so it must not block. A panic is ignored.
    fn client_left(&self, client: &ClientInfo, reason: &CloseReason) {
        let _ = (client, reason);
    }

    /// The ability to write; an export without it is read-only.
    fn writes(&self) -> Option<&dyn Writes> {
        None
    }

    /// The ability to make written data durable.
    fn flushes(&self) -> Option<&dyn Flushes> {
        None
    }

    /// The ability to drop data.
    fn trims(&self) -> Option<&dyn Trims> {
        None
    }

    /// The ability to write zeroes without sending them.
    fn writes_zeroes(&self) -> Option<&dyn WritesZeroes> {
        None
    }

    /// The ability to prepare for reads.
    fn caches(&self) -> Option<&dyn Caches> {
        None
    }

    /// The ability to tell holes from data, for `base:allocation`.
    fn extents(&self) -> Option<&dyn Extents> {
        None
    }

    /// The ability to tell the status of blocks in metadata contexts of its own.
    fn contexts(&self) -> Option<&dyn Contexts> {
        None
    }

    /// The ability to change the size. Clients are offered it as far as the server's settings allow.
    fn resizes(&self) -> Option<&dyn Resizes> {
        None
    }
}

/// What an export does about a request to force unit access (FUA).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fua {
    /// The engine calls [`Flushes::flush`] after the write; without [`Flushes`] the flag is not offered.
    #[default]
    Emulated,
    /// The methods that write take care of it themselves when they are called with `fua`.
    Native,
    /// The flag is not offered, even where there is [`Flushes`].
    Unsupported,
}

/// Writing. Part of [`Export`].
pub trait Writes: Send + Sync {
    /// Writes `data` at `offset`. With `fua` the data is durable before this returns. That is asked for only when
    /// [`fua`](Self::fua) says [`Fua::Native`]; by default it is false even for a client's FUA writes, and
    /// [`Flushes::flush`] is called after them.
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> Result<()>;

    /// Writes if that can be done at once; `None` if it might block, with nothing done. Only consulted for exports
    /// that may block.
    fn try_write(&self, data: &[u8], offset: u64, fua: bool) -> Option<Result<()>> {
        let _ = (data, offset, fua);
        None
    }

    /// How force unit access is done, for all methods that write.
    fn fua(&self) -> Fua {
        Fua::Emulated
    }

    /// The ability to take over memory instead of copying it.
    fn takes_pages(&self) -> Option<&dyn TakesPages> {
        None
    }
}

/// Writing by taking over memory, for exports that [never block](Export::never_blocks). Part of [`Writes`].
///
/// A large payload that covers whole pages is received into pages, which then go to the export one by one: nothing is
/// copied.
pub trait TakesPages: Send + Sync {
    /// Bytes of a page: a power of two.
    fn page_size(&self) -> usize;

    /// A page of the export's own memory, of that size, to be received into; its content is arbitrary, so that every
    /// byte has to be written. `None` when there is no memory for it: then the engine takes a page elsewhere, and
    /// [`write_page`](Self::write_page) says whether there is room for what is in it.
    fn new_page(&self) -> Option<Page>;

    /// Writes a page at `offset`, which is a multiple of the page size, and gives back a page that is no longer needed,
    /// if there is one, to be received into again. The page may be of any origin.
    fn write_page(&self, page: Page, offset: u64) -> Result<Option<Page>>;
}

/// Flushing. Part of [`Export`].
pub trait Flushes: Send + Sync {
    /// Makes durable whatever was written before this was called.
    fn flush(&self) -> Result<()>;
}

/// Trimming. Part of [`Export`].
pub trait Trims: Send + Sync {
    /// Drops the range or any part of it; what it reads as later is up to the export. Nothing outside may change.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<()>;
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "tests of exports make them; NBD has no other flag")]
pub struct ZeroMode {
    /// Durable before it returns, see [`Writes::fua`].
    pub fua: bool,
    /// Leave the range allocated.
    pub no_hole: bool,
    /// Fail with [`ExportError::not_fast`], and change nothing, unless this is faster than writing.
    pub fast: bool,
}

/// Writing zeroes. Part of [`Export`].
pub trait WritesZeroes: Send + Sync {
    /// Makes the range read as zeroes.
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()>;

    /// Whether clients are offered to ask for a [fast](ZeroMode::fast) zero. An export that knows no fast way may offer
    /// it and fail with [`ExportError::not_fast`], which tells clients more than not to offer it; the default is `true`.
    fn can_fast_zero(&self) -> bool {
        true
    }
}

/// Caching. Part of [`Export`].
pub trait Caches: Send + Sync {
    /// Prepares for reads of the range.
    fn cache(&self, offset: u64, length: u64) -> Result<()>;
}

/// Telling holes from data. Part of [`Export`].
pub trait Extents: Send + Sync {
    /// Reports runs of [`Allocation`] from `offset` on, without a gap, until `length` bytes are told of or the visitor
    /// breaks off. The last one may reach further. Reporting less is fine as long as it is something.
    ///
    /// Runs need not be aligned: clients are told of whole blocks, of the minimum block size or 512 bytes, which are
    /// data where some of them is. `offset` need not be aligned after a run that was not.
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
    /// Bytes.
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

/// Changing the size. Part of [`Export`].
///
/// Clients that can resize a disk can cut it off under the feet of others, so that servers offer it only where their
/// settings say so. Every client of the export works with the new size from then on.
pub trait Resizes: Send + Sync {
    /// Makes [`Export::size`] be `size`, any number of bytes. Fails with `ENOSPC` where there is no room for that many,
    /// and leaves the size as it was when it fails.
    fn resize(&self, size: u64) -> Result<()>;
}
