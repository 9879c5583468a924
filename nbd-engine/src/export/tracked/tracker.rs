//! The bitmaps of a tracked export.

use core::fmt;
use core::ops::{ControlFlow, Range};
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nbd_proto::{ContextInfo, Extent};

use super::bitmap::Bitmap;
use super::budget::Budget;
use crate::export::Result;
use crate::export::contexts::no_such_context;

/// The bitmaps of a [`Tracked`](super::Tracked) export, by name. They are started, cleared, stopped and read while the
/// export is in use.
///
/// A backup of what has changed takes two bitmaps in turns, so that no change is missed: start the second, copy what is
/// dirty in the first, stop the first. Whatever changes in between is dirty in both.
///
/// # Memory
///
/// A bitmap takes 4 KiB for each 32768 blocks of which some are dirty and others aren't (2 GiB with blocks of 64 KiB),
/// and hardly anything for the rest. All bitmaps of a process together take at most 64 MiB, or a sixteenth of the
/// memory that the process may use if that is less, plus 20 KiB for each bitmap; one bitmap takes at most 17 MiB, and
/// no more than the same part of the whole as each of the others. What a bitmap no longer needs is kept for others. An
/// export has at most [`MAX_BITMAPS`](Self::MAX_BITMAPS) bitmaps.
///
/// A bitmap that would take more makes its blocks larger, see [`granularity`](Self::granularity). What was dirty stays
/// dirty, so that a backup copies more than it would have to, never less. The blocks are as small as at first again
/// once the bitmap is cleared.
#[derive(Debug)]
pub struct Tracker {
    /// Binary logarithm of the bytes of a block.
    shift: u32,
    bitmaps: RwLock<Vec<Named>>,
    budget: Arc<Budget>,
    /// Counts the times that something became clean.
    epoch: AtomicU64,
}

#[derive(Debug)]
struct Named {
    name: String,
    bitmap: Bitmap,
}

/// What stands in front of a bitmap's name in the name of its metadata context.
const PREFIX: &str = "qemu:dirty-bitmap:";

impl Tracker {
    /// Bitmaps at the same time. Each takes memory, and every write looks at all of them, one after the other, while
    /// others wait: backups that are many generations deep or run side by side need some dozens.
    pub const MAX_BITMAPS: usize = 256;

    /// Bytes of a bitmap's name: what fits into a metadata context's behind `qemu:dirty-bitmap:`.
    pub const LONGEST_NAME: usize = 4078;

    pub(super) const fn new(shift: u32, budget: Arc<Budget>) -> Self {
        Self { shift, bitmaps: RwLock::new(Vec::new()), budget, epoch: AtomicU64::new(0) }
    }

    // A panic while a lock is held leaves bits in some state between before and after, and marks come first.
    fn read(&self) -> RwLockReadGuard<'_, Vec<Named>> {
        self.bitmaps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Vec<Named>> {
        self.bitmaps.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a bitmap with nothing dirty: what changes from now on will be. Clients know it as the metadata context
    /// `qemu:dirty-bitmap:NAME`.
    ///
    /// # Errors
    /// When there is one of that name, the name can't be part of a metadata context's, or there are
    /// [`MAX_BITMAPS`](Self::MAX_BITMAPS) already.
    pub fn start(&self, name: &str) -> core::result::Result<(), BitmapError> {
        if context(name).is_none() {
            return Err(BitmapError::InvalidName);
        }
        let mut bitmaps = self.write();
        if bitmaps.iter().any(|earlier| earlier.name == name) {
            return Err(BitmapError::Exists);
        }
        if bitmaps.len() >= Self::MAX_BITMAPS {
            return Err(BitmapError::TooMany);
        }
        bitmaps.push(Named {
            name: name.into(),
            bitmap: Bitmap::new(self.shift, Arc::clone(&self.budget)),
        });
        self.epoch.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Makes everything clean in a bitmap; `false` when there is none of that name. Changes that are under way count as
    /// later ones.
    pub fn clear(&self, name: &str) -> bool {
        let mut bitmaps = self.write();
        let Some(named) = bitmaps.iter_mut().find(|named| named.name == name) else { return false };
        named.bitmap.clear();
        self.epoch.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Removes a bitmap; `false` when there is none of that name. Clients that ask for it get an error from now on.
    pub fn stop(&self, name: &str) -> bool {
        let mut bitmaps = self.write();
        let before = bitmaps.len();
        bitmaps.retain(|named| named.name != name);
        bitmaps.len() < before
    }

    /// The names of the bitmaps, in the order in which they were started.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.read().iter().map(|named| named.name.clone()).collect()
    }

    /// The ranges of bytes that are dirty within `range`, in order, neither touching nor overlapping; `None` when there
    /// is no bitmap of that name. They are cut to `range`, and to nothing else: blocks are dirty as a whole, and the last one
    /// may reach past the end of the export, whose [size](crate::export::Export::size) is the end to ask for.
    #[must_use]
    pub fn dirty(&self, name: &str, range: Range<u64>) -> Option<Vec<Range<u64>>> {
        let bitmaps = self.read();
        let named = bitmaps.iter().find(|named| named.name == name)?;
        let mut dirty = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (set, end) = named.bitmap.run(at, range.end);
            if set {
                dirty.push(at..end);
            }
            at = end;
        }
        Some(dirty)
    }

    /// The bytes of a block of a bitmap: as configured, or larger if changes are scattered over too much.
    /// `None` when there is no bitmap of that name.
    #[must_use]
    pub fn granularity(&self, name: &str) -> Option<u64> {
        let bitmaps = self.read();
        bitmaps.iter().find(|named| named.name == name).map(|named| named.bitmap.granularity())
    }

    /// Marks a range in all bitmaps, before it changes. What is given back is to be dropped after the change.
    pub(super) fn mark(&self, range: Range<u64>) -> Marked<'_> {
        let epoch = {
            let bitmaps = self.read();
            let epoch = self.epoch.load(Ordering::Acquire);
            if bitmaps.iter().all(|named| named.bitmap.contains(&range)) {
                return Marked { tracker: self, range, epoch };
            }
            epoch
        };
        let mut bitmaps = self.write();
        bitmaps.iter_mut().for_each(|named| named.bitmap.insert(&range));
        // If something became clean between the locks, that is marked now; the older epoch marks it once more.
        Marked { tracker: self, range, epoch }
    }

    pub(super) fn contexts(&self) -> Vec<ContextInfo> {
        self.read().iter().filter_map(|named| context(&named.name)).collect()
    }

    /// Whether a metadata context is that of one of the bitmaps.
    pub(super) fn has_context(&self, context: &str) -> bool {
        let name = context.strip_prefix(PREFIX);
        name.is_some_and(|name| self.read().iter().any(|named| named.name == name))
    }

    /// The runs of a bitmap: status 1 is dirty.
    pub(super) fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let name = context.strip_prefix(PREFIX).ok_or_else(no_such_context)?;
        let bitmaps = self.read();
        let named = bitmaps.iter().find(|named| named.name == name).ok_or_else(no_such_context)?;
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let (dirty, stop) = named.bitmap.run(at, end);
            let run = Extent { length: stop - at, status: u64::from(dirty) };
            at = stop;
            if visit(run).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The metadata context of a bitmap.
fn context(name: &str) -> Option<ContextInfo> {
    let valid = !name.is_empty() && !name.contains('\0');
    ContextInfo::new(format!("{PREFIX}{name}")).filter(|_| valid)
}

/// A change that is under way. A bitmap that was started or cleared since is marked when it is over.
#[derive(Debug)]
#[must_use = "the change must happen while this lives"]
pub(super) struct Marked<'a> {
    tracker: &'a Tracker,
    range: Range<u64>,
    epoch: u64,
}

impl Drop for Marked<'_> {
    fn drop(&mut self) {
        if self.tracker.epoch.load(Ordering::Acquire) != self.epoch {
            let mut bitmaps = self.tracker.write();
            bitmaps.iter_mut().for_each(|named| named.bitmap.insert(&self.range));
        }
    }
}

/// Why a bitmap can't be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BitmapError {
    /// There is one of that name.
    Exists,
    /// The name is empty, has a NUL in it, or is longer than [`Tracker::LONGEST_NAME`].
    InvalidName,
    /// There are [`Tracker::MAX_BITMAPS`] already.
    TooMany,
}

impl fmt::Display for BitmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists => {
                f.write_str("there is a bitmap of that name: choose another, or stop that one")
            }
            Self::InvalidName => {
                let longest = Tracker::LONGEST_NAME;
                write!(f, "a bitmap's name has 1 to {longest} bytes, and no NUL among them")
            }
            Self::TooMany => {
                let max = Tracker::MAX_BITMAPS;
                write!(
                    f,
                    "there are {max} bitmaps, which is the maximum: stop one that is not needed any more"
                )
            }
        }
    }
}

impl core::error::Error for BitmapError {}
