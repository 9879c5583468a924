//! What is served: a file, a block device that lies on one, or a volume in a directory.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nbd_testkit::LoopDevice;

use super::stamp::{SECTOR, Value, read};

/// How often a sector of the medium is read again that is being written just then.
const MAX_LOOKS: u32 = 1000;

/// A kind of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// A regular file.
    File,
    /// A loop device on a file: what is in the device's cache can be told from what is on its medium.
    Loop,
    /// A volume in a local directory, which has what was flushed, and perhaps more.
    Volume,
}

impl DiskKind {
    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Loop => "loop device",
            Self::Volume => "volume",
        }
    }
}

/// A disk in a folder of its own, zero at first.
#[derive(Debug)]
pub struct Disk {
    /// Detached before anything else goes.
    _device: Option<LoopDevice>,
    path: PathBuf,
    /// Keeps the device open: when the last one closes it, the kernel writes its cache back.
    cache: File,
    medium: Option<File>,
    length: u64,
}

impl Disk {
    /// Makes one of so many sectors.
    ///
    /// # Errors
    /// When it can't be made: loop devices take rights and a kernel that has them.
    pub fn new(kind: DiskKind, folder: &Path, sectors: u64) -> io::Result<Self> {
        let length = sectors * SECTOR as u64;
        let file = folder.join("disk.img");
        let medium =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&file)?;
        medium.set_len(length)?;
        if kind == DiskKind::File {
            return Ok(Self { _device: None, path: file, cache: medium, medium: None, length });
        }
        let device = LoopDevice::try_on(&file);
        let device = device.map_err(|why| io::Error::other(format!("losetup: {}", why.trim())))?;
        let path = PathBuf::from(&device.path);
        let cache = OpenOptions::new().read(true).write(true).open(&path)?;
        Ok(Self { _device: Some(device), path, cache, medium: Some(medium), length })
    }

    /// What a server is told to serve.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it as those see it that open it now.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn cached(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length as usize];
        self.cache.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// All of what lies behind the cache, where that can be told apart.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn stored(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(medium) = &self.medium else { return Ok(None) };
        let mut bytes = vec![0; self.length as usize];
        medium.read_exact_at(&mut bytes, 0)?;
        for (sector, bytes) in bytes.chunks_mut(SECTOR).enumerate() {
            // The kernel may write it back just now.
            for _ in 0..MAX_LOOKS {
                if read(sector as u64, bytes) != Value::Torn {
                    break;
                }
                medium.read_exact_at(bytes, (sector * SECTOR) as u64)?;
            }
        }
        Ok(Some(bytes))
    }
}
