//! A cache on a local disk: parts of the store's tables, as they lie in the store.
//!
//! SlateDB keeps them, and takes nothing from them without verifying its checksum; what does not match is fetched from the
//! store again. Tables never change, and no two have one name, so that no part can be out of date. What is done here is the
//! rest: a folder for each volume, which one server has at a time; and the lengths of the tables, which SlateDB keeps
//! there without a checksum and believes, are compared with the store's.

use std::collections::{BTreeSet, HashMap};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::TryStreamExt;
use nbd_engine::net::lock_folder;
use object_store::ObjectStore;
use rustix::fs::{Access, access};
use slatedb::config::ObjectStoreCacheOptions;

use crate::{Error, Location};

/// A directory in which parts of a volume's objects are kept for reading. It outlives the server; it may be deleted
/// whenever no server uses it. A server that opens a volume whose folder another one uses goes without, and logs it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskCache {
    /// The directory, which is made if it is missing. Each volume has a folder of its own in it.
    pub directory: PathBuf,
    /// Bytes that the parts of one volume may take. SlateDB removes others when it has added some, so that it may be
    /// somewhat more for a moment. Opening a volume with less than [`MIN_BYTES`](Self::MIN_BYTES) fails with
    /// [`Error::Cache`].
    pub max_bytes: u64,
}

/// A cache's folder as long as a volume uses it.
#[derive(Debug)]
pub(crate) struct Used {
    _lock: OwnedFd,
    folder: PathBuf,
    max_bytes: u64,
}

impl DiskCache {
    /// The smallest size that is accepted, in bytes.
    pub const MIN_BYTES: u64 = 64 << 20;

    /// Bytes that are fetched and kept as one. SlateDB fetches the parts of a request one after the other, and all of a
    /// part for a block of it.
    const PART: usize = 1 << 20;

    /// How long an earlier opening of the volume may take to release the folder.
    const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

    /// A cache of so many bytes for each volume in a directory. Nothing is checked before a volume is opened.
    #[must_use]
    pub const fn new(directory: PathBuf, max_bytes: u64) -> Self {
        Self { directory, max_bytes }
    }

    /// Finds out whether a volume could be opened with it, as far as that shows, and changes nothing: whether the size is
    /// enough, and the directory can be written or made. Blocks for a moment.
    ///
    /// # Errors
    /// [`Error::Cache`].
    pub fn check(&self) -> Result<(), Error> {
        self.check_size()?;
        let named = |path| if path == Path::new("") { Path::new(".") } else { path };
        // What is missing is made in what is there.
        let mut known = self.directory.ancestors().map(named);
        let found = known.find(|path| path.symlink_metadata().is_ok());
        let path = found.unwrap_or(Path::new("."));
        let writable = std::fs::metadata(path).and_then(|metadata| match metadata.is_dir() {
            true => Ok(access(path, Access::WRITE_OK | Access::EXEC_OK)?),
            false => Err(io::ErrorKind::NotADirectory.into()),
        });
        match writable {
            // The folder of the volume may be there, and be this user's.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && has_folders(path) => {
                Ok(())
            }
            writable => writable.map_err(|error| self.failed("write to", path, &error)),
        }
    }

    fn check_size(&self) -> Result<(), Error> {
        match self.max_bytes < Self::MIN_BYTES {
            true => Err(Error::Cache {
                directory: self.directory.clone(),
                reason: format!("{} bytes are too few: give at least 64M", self.max_bytes),
            }),
            false => Ok(()),
        }
    }

    fn failed(&self, doing: &str, path: &Path, error: &io::Error) -> Error {
        Error::Cache {
            directory: self.directory.clone(),
            reason: format!("cannot {doing} {}: {error}", path.display()),
        }
    }

    /// Makes the folder of that name ready. None, with a warning, if the disk has no room for a folder, or if another server
    /// uses it: two would remove each other's parts, and count only their own.
    ///
    /// Blocks for a moment.
    pub(crate) fn use_folder(&self, name: &str) -> Result<Option<Used>, Error> {
        let folder = self.directory.join(name);
        let failed = |doing: &str, error: &io::Error| self.failed(doing, &folder, error);
        self.check_size()?;
        let is_full = |error: &io::Error| {
            let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
            let is_full = kinds.contains(&error.kind());
            if is_full {
                let folder = folder.display();
                tracing::warn!(%folder, "the disk of the cache is full: what can't be kept is fetched again");
            }
            is_full
        };
        // What lies there is what lies on the volume: nobody else's to read.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        match made {
            Err(error) if is_full(&error) => {
                tracing::warn!("serving the volume without a cache on disk");
                return Ok(None);
            }
            made => made.map_err(|error| failed("make", &error))?,
        }
        let lock = match lock_folder(&folder, Self::LOCK_TIMEOUT) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                tracing::warn!(
                    folder = %folder.display(),
                    "another server uses this cache of the volume, or has not closed it yet: serving the volume without a \
                     cache on disk"
                );
                return Ok(None);
            }
            Err(error) => return Err(failed("lock", &error)),
        };
        match probe(&folder) {
            Err(error) if is_full(&error) => {}
            probed => probed.map_err(|error| failed("write to", &error))?,
        }
        Ok(Some(Used { _lock: lock, folder, max_bytes: self.max_bytes }))
    }
}

fn has_folders(path: &Path) -> bool {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
}

/// What is kept of an object.
struct Entry {
    /// Its path, as SlateDB knows it.
    object: String,
    /// Its length, as it is kept. None if that makes no sense.
    length: Option<u64>,
    /// The folder of its parts.
    path: PathBuf,
}

/// All that a folder has.
fn entries(folder: &Path) -> Vec<Entry> {
    /// What SlateDB keeps of an object besides its parts.
    const HEAD: &str = "_head";
    /// What the names of both begin with.
    const OURS: &[u8] = b"_";
    let mut entries = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(path) = folders.pop() {
        let Ok(found) = std::fs::read_dir(&path) else { continue };
        let mut has_files = false;
        for entry in found.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => has_files |= entry.file_name().as_encoded_bytes().starts_with(OURS),
            }
        }
        if let (true, Ok(object)) = (has_files && path != folder, path.strip_prefix(folder)) {
            let head = std::fs::read(path.join(HEAD)).unwrap_or_default();
            let head: Option<serde_json::Value> = serde_json::from_slice(&head).ok();
            let length = head.and_then(|head| head.get("size")?.as_u64());
            entries.push(Entry { object: object.to_string_lossy().into_owned(), length, path });
        }
    }
    entries
}

/// Whether files can be made there: later on, a part that can't be kept is only fetched again.
fn probe(folder: &Path) -> io::Result<()> {
    let path = folder.join(".probe");
    let written = std::fs::write(&path, b"probe");
    written.and(std::fs::remove_file(&path))
}

impl Used {
    /// Removes what is kept of objects that the store does not have, or has with another length.
    pub(crate) async fn verify(&self, location: &Location) -> object_store::Result<()> {
        let folder = self.folder.clone();
        let entries = tokio::task::spawn_blocking(move || entries(&folder));
        let entries = entries.await.unwrap_or_default();
        let store = location.database_store();
        let folders: BTreeSet<&str> =
            entries.iter().filter_map(|entry| Some(entry.object.rsplit_once('/')?.0)).collect();
        let mut lengths = HashMap::new();
        for folder in folders {
            let mut listed = store.list(Some(&folder.into()));
            while let Some(object) = listed.try_next().await? {
                lengths.insert(object.location.to_string(), object.size);
            }
        }
        for Entry { object, length, path } in entries {
            if length.is_none() || lengths.get(&object).copied() != length {
                tracing::info!(object, "dropping what the cache on disk has of an object");
                let removing = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(path));
                // One that stays is found wrong by its checksums, or serves nobody.
                let _removed = removing.await;
            }
        }
        Ok(())
    }

    /// What SlateDB is told.
    pub(crate) fn settings(used: Option<&Self>) -> ObjectStoreCacheOptions {
        let Some(Self { folder, max_bytes, .. }) = used else {
            return ObjectStoreCacheOptions::default();
        };
        ObjectStoreCacheOptions {
            root_folder: Some(folder.clone()),
            max_cache_size_bytes: Some(usize::try_from(*max_bytes).unwrap_or(usize::MAX)),
            part_size_bytes: DiskCache::PART,
            // Tables of what was just written, and of what was merged.
            cache_on_flush: true,
            cache_on_compaction: true,
            ..ObjectStoreCacheOptions::default()
        }
    }
}
