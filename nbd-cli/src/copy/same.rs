//! Copies of something onto itself, which would empty it before it is read.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use super::open::{Kind, Side};
use crate::exit::Failure;

/// Which file or block device something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    File(u64, u64),
    Device(u64),
}

/// A file or a block device, and what it lies on: the file behind a loop device, the disk of a partition.
#[derive(Debug)]
struct Store(Vec<Identity>);

impl Store {
    /// `None` for what holds no bytes.
    fn new(metadata: &Metadata) -> Option<Self> {
        let kind = metadata.file_type();
        if kind.is_file() {
            return Some(Self(vec![Identity::File(metadata.dev(), metadata.ino())]));
        }
        if !kind.is_block_device() {
            return None;
        }
        let mut chain = vec![Identity::Device(metadata.rdev())];
        let number = |device: u64| format!("{}:{}", major(device), minor(device));
        let folder = Path::new("/sys/dev/block").join(number(metadata.rdev()));
        let disk = match folder.join("partition").exists() {
            true => fs::canonicalize(&folder).ok().and_then(|path| Some(path.parent()?.to_owned())),
            false => None,
        };
        if let Some(device) = disk.as_deref().and_then(device) {
            chain.push(Identity::Device(device));
        }
        let backing = disk.as_ref().unwrap_or(&folder).join("loop/backing_file");
        if let Ok(file) = fs::read_to_string(backing)
            && let Ok(metadata) = fs::metadata(file.trim_end_matches('\n'))
            && let Some(Self(below)) = Self::new(&metadata)
        {
            chain.extend(below);
        }
        Some(Self(chain))
    }

    /// Whether one is the other, or lies on it.
    fn overlaps(&self, other: &Self) -> bool {
        self.0.contains(&other.0[0]) || other.0.contains(&self.0[0])
    }
}

/// The number of the block device that a folder of sysfs is about.
fn device(folder: &Path) -> Option<u64> {
    let text = fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim_end().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Refuses a copy whose two sides are known to be the same, or to share a file.
///
/// A file that is served is not to be copied to, since it is emptied first, nor to be copied to its own server, since it is
/// not known what the server makes of it. What a server has open for reading only is left alone when something is copied
/// to it: it may be what an image lies on.
pub(super) fn check(source: &Side, destination: &Side) -> Result<(), Failure> {
    let failed = |text: String| Err(Failure::failed(text));
    let (from, to) = (&source.name, &destination.name);
    match (store(source), store(destination)) {
        (Some(one), Some(other)) if one.overlaps(&other) => {
            failed(format!("{from} and {to} are the same file, or one lies on the other"))
        }
        (None, Some(local)) => match served(source, &local, false) {
            Some(path) => failed(format!(
                "{to} is what {from} serves ({}): it would be overwritten before it is read",
                path.display()
            )),
            None => Ok(()),
        },
        (Some(local), None) => match served(destination, &local, true) {
            Some(path) => {
                failed(format!("{from} is what {to} serves and writes to ({})", path.display()))
            }
            None => Ok(()),
        },
        (None, None) => match shared(source, destination) {
            Some(path) => failed(format!("{from} and {to} both serve {}", path.display())),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// What a local side is. Standard input and output can be a file, too.
fn store(side: &Side) -> Option<Store> {
    let metadata = match &side.kind {
        Kind::Disk { disk, .. } => disk.file.metadata(),
        Kind::Stream(file) => file.metadata(),
        Kind::Server { .. } | Kind::Null => return None,
    };
    Store::new(&metadata.ok()?)
}

/// The file that a server has open and that is a local one, or lies on it.
fn served(side: &Side, local: &Store, written: bool) -> Option<PathBuf> {
    let Kind::Server { target, .. } = &side.kind else { return None };
    let mut files = target.open_files().into_iter().filter(|file| file.writable || !written);
    let found =
        files.find(|file| Store::new(&file.metadata).is_some_and(|one| one.overlaps(local)));
    found.map(|file| file.path)
}

/// How much an export may be smaller than its file: the largest minimum block.
const REST: u64 = 64 << 10;

/// The file that two servers both have open, one of them to write. Only one as large as what they serve: they may share
/// others, such as a log.
fn shared(source: &Side, destination: &Side) -> Option<PathBuf> {
    let (Kind::Server { target: from, .. }, Kind::Server { target: to, .. }) =
        (&source.kind, &destination.kind)
    else {
        return None;
    };
    // One server may have several exports, and which of its files are whose is not known.
    if from.is_same_server(to) {
        return None;
    }
    let sizes = [source.size()?, destination.size()?];
    let written = to.open_files().into_iter().filter(|file| file.writable);
    let written: Vec<_> =
        written.filter_map(|file| Some((Store::new(&file.metadata)?, file))).collect();
    let is_served = |file: &Metadata| {
        let is_size = |size: &u64| file.len() >= *size && file.len() - size < REST;
        file.file_type().is_block_device() || sizes.iter().all(is_size)
    };
    let files = from.open_files().into_iter().filter(|file| is_served(&file.metadata));
    let mut found = files.filter_map(|file| Store::new(&file.metadata)).filter_map(|one| {
        written.iter().find(|(other, _)| one.overlaps(other)).map(|(_, file)| file.path.clone())
    });
    found.next()
}
