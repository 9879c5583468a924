//! Opening a file as an export, and what can go wrong with that.

use core::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::device::{is_device_path, is_rotational};
use super::{Abilities, Durability, File, FileHoles, Size, System};
use crate::export::BlockSize;

/// How to open a [`File`]: for reading and writing, unless said otherwise.
///
/// ```no_run
/// use nbd_engine::export::File;
///
/// let disk = File::options().read_only(true).open("disk.img")?;
/// # Ok::<(), nbd_engine::export::OpenError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    read_only: bool,
}

impl FileOptions {
    /// Whether the file is opened for reading alone, so that the export can't be written. Default `false`.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Opens a regular file or a block device that exists. Blocks while the system does.
    ///
    /// # Errors
    /// [`OpenError`], which names the path and the reason: there is none, it is no disk, or permission is denied.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<File, OpenError> {
        let path = path.as_ref();
        self.open_path(path).map_err(|problem| OpenError { path: Some(path.to_owned()), problem })
    }

    fn open_path(&self, path: &Path) -> Result<File, Problem> {
        // Looked at first: opening a pipe would wait for its other end.
        let metadata = fs::metadata(path).map_err(|error| Problem::of(error, path))?;
        is_block_device(&metadata)?;
        let file = fs::OpenOptions::new().read(true).write(!self.read_only).open(path);
        let file = file.map_err(|error| Problem::of(error, path))?;
        File::new(Box::new(file), path.display().to_string())
    }
}

/// Whether it is a block device. Refuses what is no disk.
fn is_block_device(metadata: &fs::Metadata) -> Result<bool, Problem> {
    let kind = metadata.file_type();
    if kind.is_file() {
        Ok(false)
    } else if kind.is_block_device() {
        Ok(true)
    } else if kind.is_dir() {
        Err(Problem::Directory)
    } else if kind.is_fifo() {
        Err(Problem::NoDisk("a pipe"))
    } else if kind.is_socket() {
        Err(Problem::NoDisk("a socket"))
    } else {
        Err(Problem::NoDisk("a character device"))
    }
}

impl File {
    /// How to open a file otherwise than for reading and writing.
    #[must_use]
    pub fn options() -> FileOptions {
        FileOptions::default()
    }

    /// Opens a regular file or a block device that exists, for reading and writing. Blocks while the system does.
    ///
    /// # Errors
    /// [`OpenError`], which names the path and the reason: there is none, it is no disk, or permission is denied.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::options().open(path)
    }

    /// Serves a file that is open already: read-only, when it was opened that way. It must be readable, and not opened
    /// with `O_APPEND` or `O_DIRECT`. Its position moves, but does not matter.
    ///
    /// # Errors
    /// [`OpenError`], which names the path and the reason: there is none, it is no disk, or permission is denied.
    pub fn from_std(file: fs::File) -> Result<Self, OpenError> {
        Self::from_std_at(file, Path::new("(opened by the program)"))
    }

    /// The same, with a path for the log.
    pub(crate) fn from_std_at(file: fs::File, path: &Path) -> Result<Self, OpenError> {
        let opened = Self::new(Box::new(file), path.display().to_string());
        opened.map_err(|problem| OpenError { path: None, problem })
    }

    /// `name` is for the log.
    pub(super) fn new(system: Box<dyn System>, name: String) -> Result<Self, Problem> {
        let file = system.file();
        let flags = rustix::fs::fcntl_getfl(file).map_err(io::Error::from)?;
        let metadata = file.metadata()?;
        let block_device = is_block_device(&metadata)?;
        if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE == OFlags::WRONLY {
            return Err(Problem::NotReadable);
        }
        if flags.contains(OFlags::APPEND) {
            return Err(Problem::Mode("O_APPEND", "every write would go to the end of the file"));
        }
        if flags.contains(OFlags::DIRECT) {
            return Err(Problem::Mode("O_DIRECT", "clients' requests are not aligned for it"));
        }
        let read_only = flags & OFlags::RWMODE == OFlags::RDONLY;
        if !read_only && block_device {
            check_device_writable(file)?;
        }
        let size = system.length().map_err(io::Error::from)?;
        if size == 0 && block_device {
            return Err(Problem::NoMedium);
        }
        let in_memory = rustix::fs::fstatfs(file).is_ok_and(|stat| is_in_memory(stat.f_type as _));
        Ok(Self {
            durability: Durability::of(&metadata, block_device, name),
            size: Size::new(size),
            read_only,
            in_memory: in_memory && !block_device,
            rotational: block_device && is_rotational(metadata.rdev()),
            block_size: block_size(metadata.blksize()),
            holes: FileHoles::with_metadata(file, &metadata),
            abilities: Abilities::default(),
            provisioned: Mutex::default(),
            resizing: Mutex::default(),
            system,
        })
    }
}

/// Whether an open file can be written, as far as that shows without writing: a read-only block device (`losetup -r`,
/// `blockdev --setro`) can be opened for writing, and then refuses every write.
///
/// # Errors
/// [`ErrorKind::ReadOnlyFilesystem`], with the remedy in the text, for such a device; other kinds if it can't be asked.
pub fn check_writable(file: &fs::File) -> io::Result<()> {
    if !file.metadata()?.file_type().is_block_device() {
        return Ok(());
    }
    check_device_writable(file).map_err(|problem| OpenError { path: None, problem }.into())
}

/// An empty write asks the device itself, and changes nothing.
fn check_device_writable(file: &fs::File) -> Result<(), Problem> {
    match rustix::io::pwrite(file, &[], 0) {
        Ok(_) => Ok(()),
        Err(Errno::PERM | Errno::ROFS | Errno::ACCESS) => Err(Problem::ReadOnlyFileSystem),
        Err(errno) => Err(Problem::Other(errno.into())),
    }
}

/// Whether a type of file system, as `fstatfs` reports it, keeps files in memory.
fn is_in_memory(kind: u64) -> bool {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    // The type has 32 bits, whatever the width and the sign of the field.
    matches!(kind & 0xffff_ffff, TMPFS | RAMFS)
}

/// Any byte can be read and written, whatever the file's own blocks, since that goes through the page cache. Less than
/// one of its pages is not efficient, although a block device may say so.
fn block_size(file_system: u64) -> BlockSize {
    let preferred = file_system.clamp(4096, 1 << 20).next_power_of_two() as u32;
    BlockSize::new(1, preferred, BlockSize::DEFAULT.maximum_payload()).unwrap_or_default()
}

/// A file could not be opened as a [`File`]. The text names the file, what is wrong, and what to do about it.
#[derive(Debug)]
pub struct OpenError {
    path: Option<PathBuf>,
    problem: Problem,
}

/// What is not there of the path of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing<'a> {
    /// The file, which could be created.
    File,
    /// A device, which can't.
    Device,
    /// The directory of that path, or one that it lies in.
    Directory(&'a Path),
}

#[derive(Debug)]
pub(super) enum Problem {
    Missing,
    MissingDevice,
    MissingDirectory(PathBuf),
    Directory,
    NoDisk(&'static str),
    NoMedium,
    Denied,
    DeniedWriting,
    ReadOnlyFileSystem,
    NotReadable,
    Mode(&'static str, &'static str),
    Other(io::Error),
}

impl Problem {
    fn of(error: io::Error, path: &Path) -> Self {
        match error.kind() {
            ErrorKind::NotFound if is_device_path(path) => Self::MissingDevice,
            ErrorKind::NotFound => match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() && !parent.exists() => {
                    Self::MissingDirectory(parent.to_owned())
                }
                _ => Self::Missing,
            },
            ErrorKind::PermissionDenied if fs::File::open(path).is_ok() => Self::DeniedWriting,
            ErrorKind::PermissionDenied => Self::Denied,
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnlyFileSystem,
            _ => Self::Other(error),
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Other(error)
    }
}

impl OpenError {
    /// The file, as it was named; `None` for one that was open already.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What is not there, if that is why the file could not be opened.
    #[must_use]
    pub fn missing(&self) -> Option<Missing<'_>> {
        match &self.problem {
            Problem::Missing => Some(Missing::File),
            Problem::MissingDevice => Some(Missing::Device),
            Problem::MissingDirectory(path) => Some(Missing::Directory(path)),
            _ => None,
        }
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match &self.problem {
            Problem::Missing | Problem::MissingDevice | Problem::MissingDirectory(_) => {
                ErrorKind::NotFound
            }
            Problem::Directory => ErrorKind::IsADirectory,
            Problem::Denied | Problem::DeniedWriting => ErrorKind::PermissionDenied,
            Problem::ReadOnlyFileSystem => ErrorKind::ReadOnlyFilesystem,
            Problem::NoDisk(_) | Problem::NoMedium | Problem::NotReadable | Problem::Mode(..) => {
                ErrorKind::InvalidInput
            }
            Problem::Other(error) => error.kind(),
        }
    }
}

#[cfg(all(test, feature = "tls"))]
impl OpenError {
    /// One with each problem, and one of a file without a name.
    pub(crate) fn each() -> Vec<Self> {
        let problems = nbd_testkit::each_variant!(Problem {
            Problem::Missing => Problem::Missing,
            Problem::MissingDevice => Problem::MissingDevice,
            Problem::MissingDirectory(_) => Problem::MissingDirectory("/srv/disks".into()),
            Problem::Directory => Problem::Directory,
            Problem::NoDisk(_) => Problem::NoDisk("a socket"),
            Problem::NoMedium => Problem::NoMedium,
            Problem::Denied => Problem::Denied,
            Problem::DeniedWriting => Problem::DeniedWriting,
            Problem::ReadOnlyFileSystem => Problem::ReadOnlyFileSystem,
            Problem::NotReadable => Problem::NotReadable,
            Problem::Mode(..) => Problem::Mode("O_APPEND", "what is written would go to its end"),
            Problem::Other(_) => Problem::Other(ErrorKind::OutOfMemory.into()),
        });
        let named = problems
            .into_iter()
            .map(|problem| Self { path: Some("/srv/disks/disk.img".into()), problem });
        named.chain([Self { path: None, problem: Problem::NotReadable }]).collect()
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "cannot open '{}': ", path.display())?,
            None => f.write_str("cannot serve the open file: ")?,
        }
        match &self.problem {
            Problem::Missing => f.write_str("no such file; create it first"),
            Problem::MissingDevice => f.write_str("no such device; attach it or set it up first"),
            Problem::MissingDirectory(path) => {
                write!(f, "no such directory; create '{}' first", path.display())
            }
            Problem::Directory => {
                f.write_str("is a directory; name a regular file or a block device")
            }
            Problem::NoDisk(what) => {
                write!(f, "is {what}; name a regular file or a block device")
            }
            Problem::NoMedium => {
                f.write_str("the block device has no size; insert a medium or set it up first")
            }
            Problem::Denied => {
                f.write_str("permission denied; allow this user to access it and its directories")
            }
            Problem::DeniedWriting => f.write_str(
                "permission to write is denied; open it read-only or allow this user to write it",
            ),
            Problem::ReadOnlyFileSystem => {
                f.write_str("its file system or device is read-only; open it read-only too")
            }
            Problem::NotReadable => f.write_str("it can't be read; open it for reading as well"),
            Problem::Mode(flag, why) => write!(f, "{why}; open it without {flag}"),
            Problem::Other(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        // The text of a problem with a name says it all.
        match &self.problem {
            Problem::Other(error) => core::error::Error::source(error),
            _ => None,
        }
    }
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        Self::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_size_is_a_power_of_two_whatever_the_file_system_says() {
        for (said, preferred) in [(512, 4096), (4096, 4096), (5000, 8192), (u64::MAX, 1 << 20)] {
            assert_eq!(block_size(said).preferred(), preferred);
            assert_eq!(block_size(said).minimum(), 1);
        }
    }

    #[test]
    fn file_systems_in_memory_are_known_by_their_number() {
        assert!(is_in_memory(0x0102_1994));
        assert!(is_in_memory(0xffff_ffff_8584_58f6));
        assert!(!is_in_memory(0xef53));
    }
}
