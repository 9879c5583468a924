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
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::blocks::{Blocks, PAGE};
use super::{Overlay, Store, sealed};
use crate::export::aside::Aside;
use crate::export::{AsyncExport, CanFlush, CanWrite, Export, File, Result, Slice};
use crate::net::link_end;
use asynchronous::no_answer;
pub use error::OverlayError;
use error::Problem;
pub use header::BaseStamp;
use header::{Header, State};
pub use offline::{
    Committed, OverlaySummary, check_overlay, commit_overlay, discard_overlay, overlay_summary,
};

/// An overlay in a file, which outlives the server.
///
/// The file is sparse, has a map of the blocks that it holds, and knows the size of its base, when that was modified,
/// and a checksum of samples of it, so that a base which is another one or has changed is noticed when the overlay is
/// opened. It is locked while it is in use.
///
/// What was written before a flush is in the overlay once that is acknowledged, whatever happens afterwards. What was
/// written since may be lost in a crash, block by block: then the base shows. Dropping the overlay flushes, and logs a
/// failure. A process that ends while a server or a thread still has it does not drop it: [flush](OverlayFile::flush) the
/// [file](Overlay::file) then, which also says whether that failed.
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
    // Before the file, whose lock may be another one's at once.
    #[expect(dead_code, reason = "it is held, not used")]
    here: OpenHere,
    /// The whole file, which is locked.
    file: Arc<File>,
    data: Slice<Arc<File>>,
    blocks: Blocks,
    header: Mutex<Header>,
    /// Whether the header says that something is being changed.
    begun: AtomicBool,
    /// Held by the flush that brings parts of the map into the file.
    flushing: Mutex<()>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl fmt::Debug for InFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFile")
            .field("present", &self.held.blocks.present_bytes())
            .finish_non_exhaustive()
    }
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// The overlay files that this process has open, so that it does not blame another one.
static OPEN_HERE: Mutex<BTreeSet<Identity>> = Mutex::new(BTreeSet::new());

fn open_here() -> MutexGuard<'static, BTreeSet<Identity>> {
    OPEN_HERE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An overlay file is among those that this process has open, until this is dropped.
struct OpenHere(Identity);

impl OpenHere {
    fn new(identity: Identity) -> Self {
        open_here().insert(identity);
        Self(identity)
    }
}

impl Drop for OpenHere {
    fn drop(&mut self) {
        open_here().remove(&self.0);
    }
}

/// What is wrong with a file that is in use.
fn in_use(file: &fs::File) -> io::Result<Problem> {
    Ok(Problem::InUse { own: open_here().contains(&identity(&file.metadata()?)) })
}

/// How long a lock is waited for: one who only [looks](Opened::look) has it for an instant.
const LOOK: Duration = Duration::from_millis(200);

/// Locks a file; false if it is in use.
fn lock(file: &fs::File, operation: FlockOperation) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if start.elapsed() >= LOOK => return Ok(false),
            Err(Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(5)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Opens a regular file, and waits for no other end of a pipe.
fn regular(path: &Path, options: &mut fs::OpenOptions) -> core::result::Result<fs::File, Problem> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = match options.custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(Problem::NoOverlay);
        }
        file => file?,
    };
    if file.metadata()?.is_file() { Ok(file) } else { Err(Problem::NoOverlay) }
}

const TOO_SHORT: Problem = Problem::Damaged("the file is shorter than its header says");

/// An overlay file that is open and locked.
struct Opened {
    file: fs::File,
    header: Header,
}

impl Opened {
    /// Opens and locks a file and reads its header.
    fn open(path: &Path) -> core::result::Result<Self, Problem> {
        let file = regular(path, fs::OpenOptions::new().read(true).write(true))?;
        if !lock(&file, FlockOperation::NonBlockingLockExclusive)? {
            return Err(in_use(&file)?);
        }
        // A commit or a discard may have put another file there before the lock was free.
        if identity(&file.metadata()?) != identity(&fs::metadata(path)?) {
            return Err(Problem::InUse { own: false });
        }
        Self::of(file)
    }

    /// Opens a file to look at it, whoever uses it, and finds out whether it is in use. It can't be written.
    fn look(path: &Path) -> core::result::Result<(Self, bool), Problem> {
        let file = regular(path, fs::OpenOptions::new().read(true))?;
        // Held for no longer than this call: who opens the file for use waits for that.
        let free = match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => true,
            Err(Errno::WOULDBLOCK) => false,
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        if free {
            flock(&file, FlockOperation::Unlock).map_err(io::Error::from)?;
        }
        let again = file.try_clone()?;
        // A commit may be writing the header.
        Ok((Self::of(file).or_else(|_| Self::of(again))?, !free))
    }

    /// Reads the header.
    fn of(file: fs::File) -> core::result::Result<Self, Problem> {
        let mut bytes = [0; Header::LENGTH];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Problem::NoOverlay),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(Self { header: Header::decode(&bytes)?, file }),
        }
    }

    /// Refuses a file that does not reach as far as its header says.
    fn check_length(&self, length: u64) -> core::result::Result<(), Problem> {
        match length < self.header.data_offset() + self.header.size {
            true => Err(TOO_SHORT),
            false => Ok(()),
        }
    }

    /// Whether it has no block of its own. One of which that can't be told is not to be touched.
    fn is_empty(&self) -> bool {
        self.blocks().is_ok_and(|blocks| blocks.present_bytes() == 0)
    }

    /// The header with which it fits that base: its own, or if it has nothing, that of a new one. One that is in use may have
    /// what is not in the file yet.
    fn fit(&self, base: &BaseStamp, is_in_use: bool) -> core::result::Result<Header, Problem> {
        match self.header.check_base(base) {
            Ok(()) => Ok(self.header),
            // What was discarded, or never had anything.
            Err(_) if !is_in_use && self.is_empty() => {
                let new = Header::new(base, InFile::BLOCK.trailing_zeros());
                new.check_size()?;
                Ok(Header { generation: self.header.generation, ..new })
            }
            Err(problem) => Err(problem),
        }
    }

    /// The map of blocks.
    fn blocks(&self) -> core::result::Result<Blocks, Problem> {
        let blocks = Blocks::new(self.header.size, self.header.shift).ok_or(Problem::TooLarge)?;
        let mut page = [0; PAGE];
        for index in 0..(blocks.map_length() / PAGE as u64) as usize {
            let offset = Header::MAP_OFFSET + (index * PAGE) as u64;
            match self.file.read_exact_at(&mut page, offset) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(TOO_SHORT);
                }
                result => result?,
            }
            blocks.load_page(index, &page);
        }
        Ok(blocks)
    }
}

impl InFile {
    /// Bytes of a block of a new file: 64 KiB.
    pub const BLOCK: u64 = 64 << 10;

    /// `path` is for the log.
    fn new(opened: Opened, path: &Path) -> core::result::Result<Self, Problem> {
        let blocks = opened.blocks()?;
        let metadata = opened.file.metadata()?;
        opened.check_length(metadata.len())?;
        let header = opened.header;
        let file =
            File::from_std_at(opened.file, path).map_err(|error| Problem::Io(error.into()))?;
        let file = Arc::new(file);
        let data = Slice::new(Arc::clone(&file), header.data_offset(), Some(header.size));
        let data = data.map_err(|_| Problem::Damaged("its data lies outside of the file"))?;
        let (header, begun, flushing) =
            (Mutex::new(header), AtomicBool::default(), Mutex::default());
        let here = OpenHere::new(identity(&metadata));
        let held = Arc::new(Held { file, data, blocks, header, begun, flushing, here });
        Ok(Self { held, aside: Aside::new("nbd-overlay", THREADS) })
    }

    /// Opens the overlay file over a base; makes a new one if there is none.
    fn open(path: &Path, stamp: &BaseStamp) -> core::result::Result<Self, OverlayError> {
        let open = || -> core::result::Result<Self, Problem> {
            if !path.try_exists()? {
                let header = Header::new(stamp, Self::BLOCK.trailing_zeros());
                header.check_size()?;
                offline::create(&link_end(path), &header)?;
            }
            let opened = Opened::open(path)?;
            if opened.header.state == State::Committing {
                return Err(Problem::Committing);
            }
            let header = opened.fit(stamp, false)?;
            if header != opened.header {
                offline::empty(&opened.file, &header)?;
            }
            let opened = Opened { header, ..opened };
            Self::new(opened, path)
        };
        open().map_err(|problem| OverlayError::makes(path, problem))
    }
}

impl<E: Export> Overlay<E, InFile> {
    /// Opens the overlay in the file of that path over `base`; makes a new, empty one if there is no such file.
    ///
    /// `base` must be what the overlay was made for, unless the file has nothing yet, or was
    /// [discarded](discard_overlay): [`BaseStamp::new`] says what is compared. Blocks while the file is made or read.
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

impl<E> Overlay<E, InFile> {
    /// The stamp of the overlay as the base of another one, which can't be committed then. It becomes another one by the first
    /// change after the overlay was opened, by a commit, a discard, and another base below.
    #[must_use]
    pub fn stamp(&self) -> BaseStamp {
        let header = self.store.held.header.lock().unwrap_or_else(PoisonError::into_inner);
        header.stamp()
    }

    /// The file, for one who is to flush it at the end, whatever lies around the overlay then.
    #[must_use]
    pub fn file(&self) -> OverlayFile {
        OverlayFile(Arc::downgrade(&self.store.held))
    }
}

/// The file of an [`Overlay`], which this does not keep open. Clones are the same.
#[derive(Clone, Debug)]
pub struct OverlayFile(Weak<Held>);

impl OverlayFile {
    /// Makes what was written durable, as a flush by a client does. Blocks. Nothing is to be done when the overlay is gone:
    /// its end [flushes](InFile).
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn flush(&self) -> Result<()> {
        self.0.upgrade().map_or(Ok(()), |held| held.flush())
    }
}

impl<E: AsyncExport> Overlay<E, InFile> {
    /// [`in_file`](Self::in_file) for an export whose work is a future; [`BaseStamp::new_async`] makes the stamp.
    ///
    /// Drop the overlay where a thread may block: its end [flushes](InFile). Cancel-safe, but a file that was not there
    /// may have been made, and one that has nothing may be for this base by now.
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

    fn begin(&self) -> Result<()> {
        self.held.begin()
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

    /// Before anything is changed, what lies over this overlay has to notice, whatever happens then.
    fn begin(&self) -> Result<()> {
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut header = self.header.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.begun.load(Ordering::Acquire) {
            let new = header.of_new_generation();
            CanWrite::write(&*self.file, &new.encode(), 0, false)?;
            CanFlush::flush(&*self.file)?;
            *header = new;
            self.begun.store(true, Ordering::Release);
        }
        Ok(())
    }
}

impl Held {
    fn bring_in_map(&self, parts: &[(usize, Vec<u8>)]) -> Result<()> {
        CanFlush::flush(&*self.file)?;
        for (page, bytes) in parts {
            let offset = Header::MAP_OFFSET + (page * PAGE) as u64;
            CanWrite::write(&*self.file, bytes, offset, false)?;
        }
        CanFlush::flush(&*self.file)
    }
}

/// Who drops it loses nothing.
impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::error!(%error, "the overlay can't be flushed at its end: what was written last is lost");
        }
    }
}
