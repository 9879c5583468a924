//! An export that knows what has changed.

mod bitmap;
mod bits;
mod budget;
#[cfg(test)]
mod tests;
mod tracker;

use core::ops::{ControlFlow, Range};
use std::sync::Arc;

use nbd_proto::{ContextInfo, Extent};

use super::Result;
use super::layer::{Layer, Layered, Source};
use budget::Budget;
pub use tracker::{BitmapError, Tracker};

/// Another export, of either kind, whose changes are recorded in bitmaps, so that a backup needs to copy no more than
/// those.
///
/// Each bitmap of the [`Tracker`] is a metadata context `qemu:dirty-bitmap:NAME` for clients: status 1 is dirty, 0 is
/// clean. A block is dirty from before the first byte of it changes, so that whatever a crash or an error leaves half
/// done is dirty, and stays so until the bitmap is cleared. Bitmaps live in memory and end with the process.
///
/// Only what goes through this object is recorded. Other contexts of the same kind that the export inside has, as another
/// such layer does, are clients' as before; of two with the same name they have that of this layer.
///
/// ```
/// use nbd_engine::export::{Export, Memory, Tracked};
///
/// let disk = Tracked::new(Memory::new(1 << 30)?);
/// disk.tracker().start("monday")?;
/// disk.can_write().unwrap().write(b"x", 100_000, false)?;
/// assert_eq!(disk.tracker().dirty("monday", 0..1 << 30), Some(vec![65536..131_072]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type Tracked<E> = Layered<E, Tracking>;

/// The layer of [`Tracked`].
#[derive(Clone, Debug)]
pub struct Tracking {
    tracker: Arc<Tracker>,
}

impl<E> Tracked<E> {
    /// Bytes of a block by default: 64 KiB, as with qemu.
    pub const GRANULARITY: u64 = 64 << 10;

    /// Records changes of `inner`, in no bitmap yet.
    pub fn new(inner: E) -> Self {
        Self::with_granularity(inner, Self::GRANULARITY)
    }

    /// The same with blocks of about `granularity` bytes: rounded up to a power of two from 512 to 2 GiB.
    pub fn with_granularity(inner: E, granularity: u64) -> Self {
        let shift = granularity.clamp(512, 1 << 31).next_power_of_two().trailing_zeros();
        let tracker = Arc::new(Tracker::new(shift, Budget::process()));
        Self { inner, layer: Tracking { tracker } }
    }

    /// The bitmaps. Keep a clone of it to use them while the export is served.
    pub const fn tracker(&self) -> &Arc<Tracker> {
        &self.layer.tracker
    }
}

impl Layer for Tracking {
    const OBSERVES: bool = true;

    fn change(&self, range: Range<u64>) -> impl Send {
        self.tracker.mark(range)
    }

    fn contexts(&self, _extents: bool) -> Vec<ContextInfo> {
        self.tracker.contexts()
    }

    /// A block with something dirty in it is dirty. The export inside may have other bitmaps.
    fn source(&self, context: &str) -> Source {
        if self.tracker.has_context(context) { Source::Layer } else { Source::Inner }
    }

    fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.tracker.status(context, offset, length, visit)
    }
}
