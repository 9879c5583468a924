//! A copy-on-write overlay: what is written stays beside the disk.

mod asynchronous;
mod blocking;
mod blocks;
#[cfg(target_os = "linux")]
mod file;
mod memory;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::ControlFlow;

use nbd_proto::{ContextInfo, Extent};

use super::{
    Allocation, BlockSize, Body, ErrorCode, Export, ExportError, Result, Visitor, ZeroMode,
};
use blocks::{Blocks, Kind, Part};
#[cfg(target_os = "linux")]
pub use file::{
    BaseStamp, Committed, InFile, OverlayError, OverlayFile, OverlaySummary, check_overlay,
    commit_overlay, discard_overlay, overlay_summary,
};
pub use memory::InMemory;

/// Another export with a copy-on-write overlay: what clients write, zero and trim goes to the overlay, and the export
/// inside, the *base*, is only read.
///
/// The overlay is [in memory](InMemory) or [in a file](InFile), around an export of either kind. It is kept in blocks,
/// of 64 KiB in a file and mostly 16 KiB in memory: the first write to a part of a block copies the rest from the base.
/// Size and minimum block size are the base's; the size stays what it was when the overlay was opened.
///
/// While it is served, the base must not be changed by others: what they change would show through.
///
/// Clients see the union: `base:allocation` has data and holes of whichever holds a block, and what is zeroed or
/// trimmed in the overlay is a hole of it. The context `qemu:allocation-depth` is what qemu makes of such a chain: 1 where
/// the overlay has a block, 2 elsewhere; over a base that has the context itself, one more than that says (0 stays 0).
///
/// ```
/// use nbd_engine::export::{Export, Memory, Overlay};
/// use std::sync::Arc;
///
/// let base = Arc::new(Memory::new(1 << 20)?);
/// base.can_write().unwrap().write(b"base", 0, false)?;
/// let disk = Overlay::in_memory(Arc::clone(&base))?;
/// disk.can_write().unwrap().write(b"over", 2, false)?;
/// let mut bytes = [0; 6];
/// disk.read(&mut bytes, 0)?;
/// assert_eq!(&bytes, b"baover");
/// base.read(&mut bytes, 0)?;
/// assert_eq!(&bytes, b"base\0\0");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Overlay<E, S = InMemory> {
    base: E,
    store: S,
}

impl<E, S> Overlay<E, S> {
    /// The base.
    pub const fn base(&self) -> &E {
        &self.base
    }
}

impl<E, S: Store> Overlay<E, S> {
    /// Bytes of the blocks that the overlay has.
    pub fn present_bytes(&self) -> u64 {
        self.store.blocks().present_bytes()
    }
}

/// The base has more blocks than an overlay can keep account of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyBlocks {
    size: u64,
    block: u64,
}

impl fmt::Display for TooManyBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, block } = self;
        let max = u128::from(Blocks::MAX) * u128::from(*block);
        write!(
            f,
            "an overlay is for at most {max} bytes with blocks of {block}; the disk has {size}"
        )
    }
}

impl core::error::Error for TooManyBlocks {}

/// The name of the context with the depth.
const DEPTH: &str = "qemu:allocation-depth";

/// The depth of a base that says nothing of it: of a raw disk all is allocated, holes too.
const BASE_DEPTH: u64 = 2;

/// Where an overlay keeps its blocks. There are [`InMemory`] and [`InFile`]; others can't be implemented.
pub trait Store: sealed::Sealed + Send + Sync + 'static {
    /// Whether the data is there at once.
    #[doc(hidden)]
    const NEVER_BLOCKS: bool;
    #[doc(hidden)]
    type Data: Export;
    /// The data, at the offsets of the disk.
    #[doc(hidden)]
    fn data(&self) -> &Self::Data;
    #[doc(hidden)]
    fn flush(&self) -> Result<()>;
    /// Comes before each change.
    #[doc(hidden)]
    fn begin(&self) -> Result<()> {
        Ok(())
    }
}

/// A store for overlays over exports whose work is a future.
pub trait AsyncStore: Store {
    /// What [`run`](Self::run) lends to the work.
    #[doc(hidden)]
    type Held: Store;
    /// Does something with the store, on another thread if it may block. That gets a copy of `data`.
    #[doc(hidden)]
    fn run<T: Send + 'static>(
        &self,
        data: &[u8],
        work: impl FnOnce(&Self::Held, &[u8]) -> Result<T> + Send + 'static,
    ) -> impl Future<Output = Result<T>> + Send;
    /// Writes where the overlay has all.
    #[doc(hidden)]
    fn patch_async(&self, data: &[u8], offset: u64) -> impl Future<Output = Result<()>> + Send {
        self.run(data, move |held, data| held.patch(data, offset))
    }
    #[doc(hidden)]
    fn read(&self, buffer: &mut [u8], offset: u64) -> impl Future<Output = Result<()>> + Send;
    #[doc(hidden)]
    fn read_body(
        &self,
        body: &mut Body,
        length: usize,
        offset: u64,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Allocation of the data.
    #[doc(hidden)]
    fn extents(
        &self,
        offset: u64,
        length: u64,
        visit: &mut Visitor<'_, Allocation>,
    ) -> impl Future<Output = Result<()>> + Send;
}

pub(super) mod sealed {
    /// Keeps what others could not implement soundly.
    pub trait Sealed {
        #[doc(hidden)]
        #[allow(private_interfaces, reason = "only for this module")]
        fn blocks(&self) -> &super::Blocks;
    }
}

/// What both kinds of overlays do to the store.
trait Changes: Store {
    /// Writes where the overlay has all.
    fn patch(&self, data: &[u8], offset: u64) -> Result<()> {
        self.begin()?;
        self.data().can_write().ok_or_else(broken)?.write(data, offset, false)
    }

    /// Writes whole blocks.
    fn put(&self, data: &[u8], offset: u64) -> Result<()> {
        self.blocks().bring_in(offset, data.len() as u64, || self.patch(data, offset))
    }

    /// Brings in a block of which `copy` is the content in the base, with `data` in it, unless it came in meanwhile.
    fn put_patched(&self, copy: &mut [u8], data: &[u8], offset: u64) -> Result<()> {
        let start = self.blocks().bytes_of(offset).start;
        let within = (offset - start) as usize;
        copy[within..within + data.len()].copy_from_slice(data);
        let put = || self.patch(copy, start);
        self.blocks().bring_in_unless_present(offset, put, || self.patch(data, offset))
    }

    /// Zeroes where the overlay has all.
    fn zero(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.begin()?;
        let zeroes = self.data().can_write_zeroes().ok_or_else(broken)?;
        zeroes.write_zeroes(offset, length, mode)
    }

    /// Zeroes whole blocks.
    fn put_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.blocks().bring_in(offset, length, || self.zero(offset, length, mode))
    }

    /// Trims a part of a request. What the overlay has not of a block in part stays as it is.
    fn trim_part(&self, Part { offset, length, kind }: Part) -> Result<()> {
        match kind {
            Kind::Present => {
                self.begin()?;
                self.data().can_trim().ok_or_else(broken)?.trim(offset, length, false)
            }
            Kind::Absent => self.put_zeroes(offset, length, ZeroMode::default()),
            Kind::PartOfAbsent => Ok(()),
        }
    }

    /// Prepares for reads where the overlay has all.
    fn prefetch(&self, offset: u64, length: u64) -> Result<()> {
        self.data().can_cache().map_or(Ok(()), |ability| ability.cache(offset, length))
    }

    /// Whether zeroes can be fast: by one call, without a copy from the base.
    fn check_fast(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        let mut parts = self.blocks().parts(offset, length);
        let is_fast = matches!(
            (parts.next(), parts.next()),
            (Some(Part { kind: Kind::Present | Kind::Absent, .. }), None)
        );
        if mode.fast && !is_fast { Err(ExportError::not_fast()) } else { Ok(()) }
    }
}

impl<S: Store> Changes for S {}

/// A store that has lost an ability which it is made of.
fn broken() -> ExportError {
    ExportError::io("the overlay can't be written any more")
}

/// A buffer for a block of the base.
fn block_buffer(length: u64) -> Result<Vec<u8>> {
    super::allocate(length as usize).ok_or_else(ExportError::no_memory)
}

/// The status of a run in the context with the depth, of which the base says so much.
const fn below(depth: u64) -> u64 {
    if depth == 0 { 0 } else { depth.saturating_add(1) }
}

/// Joins the depth of parts of a block.
fn deepest_first(one: u64, other: u64) -> u64 {
    // Data that is nearer hides what is deeper; no data is no depth.
    match (one, other) {
        (0, depth) | (depth, 0) => depth,
        _ => one.min(other),
    }
}

/// Passes runs on until so many bytes are covered.
struct Cut<'a, T: ?Sized> {
    left: u64,
    broken_off: bool,
    visit: &'a mut T,
}

impl<'a, T: ?Sized> Cut<'a, T> {
    const fn new(length: u64, visit: &'a mut T) -> Self {
        Self { left: length, broken_off: false, visit }
    }

    /// Passes a run on by `pass`, as far as it lies inside.
    fn run(
        &mut self,
        length: u64,
        pass: impl FnOnce(&mut T, u64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let length = length.min(self.left);
        if length == 0 {
            return ControlFlow::Break(());
        }
        self.left -= length;
        if pass(self.visit, length).is_break() {
            self.broken_off = true;
            return ControlFlow::Break(());
        }
        if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Whether the next part is to be looked at.
    const fn goes_on(&self) -> bool {
        self.left == 0 && !self.broken_off
    }
}

fn depth_context() -> Vec<ContextInfo> {
    ContextInfo::new(DEPTH).into_iter().collect()
}

/// The whole of a run is data, as far as is known.
const fn data(length: u64) -> Allocation {
    Allocation { length, hole: false, zero: false }
}

const fn extent(length: u64, status: u64) -> Extent {
    Extent { length, status }
}

fn check_context(context: &str) -> Result<()> {
    if context == DEPTH { Ok(()) } else { Err(super::no_such_context()) }
}

/// `EIO` for a base that ends before it did when the overlay was made.
fn check_base(size: u64, now: u64) -> Result<()> {
    if now >= size {
        return Ok(());
    }
    Err(ExportError::new(ErrorCode::EIO, "the base of the overlay has become smaller"))
}

/// Blocks of the overlay are preferred: what is less than one has the rest copied from the base.
fn block_size(base: BlockSize, block: u64) -> BlockSize {
    // Not more than clients would rather send at a time.
    let block = block.min(64 << 10) as u32;
    let preferred = base.preferred().max(block).min(base.maximum_payload());
    BlockSize::new(base.minimum(), preferred, base.maximum_payload()).unwrap_or(base)
}
