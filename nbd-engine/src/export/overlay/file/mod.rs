//! An overlay in a file: see `docs/layers.md` for the format.
//!
//! A block's data is durable before the map says that it is there: a flush makes the data durable, then writes what the
//! map was before that, then makes the map durable. So whatever moment a crash comes at, a block is either wholly the
//! base's or has been written by clients. In between, the map is in memory alone.

mod asynchronous;
mod error;
mod header;
mod offline;

use core::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};

use super::blocks::{Blocks, PAGE};
use super::{Overlay, Store, sealed};
use crate::export::aside::Aside;
use crate::export::{AsyncExport, CanFlush, CanWrite, Export, File, Result, Slice};
use asynchronous::no_answer;
pub use error::OverlayError;
use error::Problem;
pub use header::BaseStamp;
use header::{Header, State};
pub use offline::{Committed, OverlaySummary, commit_overlay, discard_overlay, overlay_summary};

/// An overlay in a file, which outlives the server.
///
/// The file is sparse, has a map of the blocks that it holds, and knows the size of its base, when that was modified,
/// and a checksum of samples of it, so that a base which is another one or has changed is noticed when the overlay is
/// opened. It is locked while it is in use.
///
/// What was written before a flush is in the overlay once that is acknowledged, whatever happens afterwards. What was
/// written since may be lost in a crash, block by block: then the base shows. An orderly end flushes.
///
/// Over an export whose work is a future, what is not in the page cache is read on threads of the overlay's own, of which
/// there are at most 4, and so is all that changes the file.
///
/// ```no_run
/// use nbd_engine::export::{BaseStamp, File, Overlay};
///
/// let base = File::options().read_only(true).open("base.img")?;
/// let modified = std::fs::metadata("base.img")?.modified()?;
/// let stamp = BaseStamp::new(&base, Some(modified))?;
/// let disk = Overlay::in_file(base, &stamp, "changes.overlay")?;
/// println!("{} bytes differ from the base", disk.present_bytes());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct InFile {
    held: Arc<Held>,
    aside: Aside,
}

/// Threads of an overlay that read and write its file for futures, at a time.
const THREADS: usize = 4;

/// An overlay file in use.
#[doc(hidden)]
pub struct Held {
    /// The whole file, which is locked.
    file: Arc<File>,
    data: Slice<Arc<File>>,
    blocks: Blocks,
    map_offset: u64,
    /// Held by the flush that brings parts of the map into the file.
    flushing: Mutex<()>,
}

impl fmt::Debug for InFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFile")
            .field("present", &self.held.blocks.present_bytes())
            .finish_non_exhaustive()
    }
}

/// An overlay file that is open and locked.
struct Opened {
    file: fs::File,
    header: Header,
}

impl Opened {
    /// Opens and locks a file and reads its header.
    fn open(path: &Path) -> core::result::Result<Self, Problem> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(Problem::NoOverlay);
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Problem::InUse),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        // A commit or a discard may have put another file there before the lock was free.
        let (own, now) = (file.metadata()?, fs::metadata(path)?);
        if (own.dev(), own.ino()) != (now.dev(), now.ino()) {
            return Err(Problem::InUse);
        }
        let mut bytes = [0; Header::LENGTH];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Problem::NoOverlay),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(Self { header: Header::decode(&bytes)?, file }),
        }
    }

    /// The map of blocks.
    fn blocks(&self) -> core::result::Result<Blocks, Problem> {
        let blocks = Blocks::new(self.header.size, self.header.shift).ok_or(Problem::TooLarge)?;
        let mut page = [0; PAGE];
        for index in 0..(blocks.map_length() / PAGE as u64) as usize {
            let offset = Header::MAP_OFFSET + (index * PAGE) as u64;
            self.file.read_exact_at(&mut page, offset)?;
            blocks.load_page(index, &page);
        }
        Ok(blocks)
    }
}

impl InFile {
    /// Bytes of a block of a new file: 64 KiB.
    pub const BLOCK: u64 = 64 << 10;

    fn new(opened: Opened) -> core::result::Result<Self, Problem> {
        let blocks = opened.blocks()?;
        let offset = opened.header.data_offset();
        let file = File::from_std(opened.file).map_err(|error| Problem::Io(error.into()))?;
        if file.size() < offset + opened.header.size {
            return Err(Problem::Damaged("the file is shorter than its header says"));
        }
        let file = Arc::new(file);
        let data = Slice::new(Arc::clone(&file), offset, Some(opened.header.size));
        let data = data.map_err(|_| Problem::Damaged("its data lies outside of the file"))?;
        let (map_offset, flushing) = (Header::MAP_OFFSET, Mutex::default());
        let held = Arc::new(Held { file, data, blocks, map_offset, flushing });
        Ok(Self { held, aside: Aside::new("nbd-overlay", THREADS) })
    }

    /// Opens the overlay file over a base; makes a new one if there is none.
    fn open(path: &Path, stamp: &BaseStamp) -> core::result::Result<Self, OverlayError> {
        let open = || -> core::result::Result<Self, Problem> {
            if !path.try_exists()? {
                let header = Header::new(stamp, Self::BLOCK.trailing_zeros());
                header.check_size()?;
                offline::create(path, &header)?;
            }
            let opened = Opened::open(path)?;
            if opened.header.state == State::Committing {
                return Err(Problem::Committing);
            }
            opened.header.check_base(stamp)?;
            Self::new(opened)
        };
        open().map_err(|problem| OverlayError::new(path, problem))
    }
}

impl<E: Export> Overlay<E, InFile> {
    /// Opens the overlay in the file of that path over `base`; makes a new, empty one if there is no such file.
    ///
    /// `base` must be what the overlay was made for: [`BaseStamp::new`] says what is compared. Blocks while the file is
    /// made or read.
    ///
    /// # Errors
    /// When the file is no overlay, is damaged, of another version, in use, or made for another base or another state of
    /// it; when a commit of it was interrupted; when the base has too many blocks, as one above 16 TiB has; when a file
    /// can't be read or written.
    pub fn in_file(
        base: E,
        stamp: &BaseStamp,
        path: impl AsRef<Path>,
    ) -> core::result::Result<Self, OverlayError> {
        Ok(Self { base, store: InFile::open(path.as_ref(), stamp)? })
    }
}

impl<E: AsyncExport> Overlay<E, InFile> {
    /// [`in_file`](Self::in_file) for an export whose work is a future; [`BaseStamp::new_async`] makes the stamp.
    ///
    /// Drop the overlay where a thread may block: its end [flushes](InFile). Cancel-safe, but a file that was not there
    /// may have been made.
    ///
    /// # Errors
    /// Those of [`in_file`](Self::in_file).
    pub async fn in_file_async(
        base: E,
        stamp: &BaseStamp,
        path: impl AsRef<Path>,
    ) -> core::result::Result<Self, OverlayError> {
        let (path, stamp) = (path.as_ref().to_owned(), *stamp);
        let name = path.clone();
        let opened = Aside::new("nbd-overlay", 1).run(move || InFile::open(&path, &stamp)).await;
        let failed = || OverlayError::new(&name, Problem::Export(no_answer()));
        Ok(Self { base, store: opened.ok_or_else(failed)?? })
    }
}

impl sealed::Sealed for Held {
    #[allow(private_interfaces, reason = "only for this module")]
    fn blocks(&self) -> &Blocks {
        &self.blocks
    }
}

impl sealed::Sealed for InFile {
    #[allow(private_interfaces, reason = "only for this module")]
    fn blocks(&self) -> &Blocks {
        &self.held.blocks
    }
}

impl Store for InFile {
    const NEVER_BLOCKS: bool = false;
    type Data = Slice<Arc<File>>;

    fn data(&self) -> &Self::Data {
        &self.held.data
    }

    fn flush(&self) -> Result<()> {
        self.held.flush()
    }
}

impl Store for Held {
    const NEVER_BLOCKS: bool = false;
    type Data = Slice<Arc<File>>;

    fn data(&self) -> &Self::Data {
        &self.data
    }

    fn flush(&self) -> Result<()> {
        let held = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        // What is marked in these was written before, and so is made durable by the next call.
        let parts = self.blocks.take_dirty();
        if parts.is_empty() {
            // Nobody else brings anything into the file: flushes that come now share one.
            drop(held);
            return CanFlush::flush(&*self.file);
        }
        let result = self.bring_in_map(&parts);
        if result.is_err() {
            parts.iter().for_each(|(page, _)| self.blocks.put_back_dirty(*page));
        }
        result
    }
}

impl Held {
    fn bring_in_map(&self, parts: &[(usize, Vec<u8>)]) -> Result<()> {
        CanFlush::flush(&*self.file)?;
        for (page, bytes) in parts {
            let offset = self.map_offset + (page * PAGE) as u64;
            CanWrite::write(&*self.file, bytes, offset, false)?;
        }
        CanFlush::flush(&*self.file)
    }
}

/// An orderly end loses nothing.
impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::error!(%error, "the overlay can't be flushed at its end: what was written last is lost");
        }
    }
}
