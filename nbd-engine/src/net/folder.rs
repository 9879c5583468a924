//! The lock of a folder, for those who replace what lies in it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

/// How long another process may hold a folder's lock. It holds it for a few system calls.
pub const FOLDER_LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// The folder that a path is in: `.` for a name alone.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where a path leads once symbolic links at its end are followed, whether or not a file is there: a file is replaced or
/// made there, and not at the link.
#[must_use]
pub fn link_end(path: &Path) -> PathBuf {
    /// As many links as the kernel follows.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// Takes a folder's lock, which servers take before they replace or remove a socket in it; it is released when the
/// descriptor is closed. It is advisory, and nothing is written. Waits for another one that has it, for so long at most;
/// this blocks the thread.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] if another program keeps the lock, and those of opening the folder.
pub fn lock_folder(folder: &Path, timeout: Duration) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let start = Instant::now();
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::WOULDBLOCK) if start.elapsed() >= timeout => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another program locks it"));
            }
            Err(Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(2)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The device and the inode of what is at a path.
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes what is at a path if it is still the file of that device and inode, and not that of another process, which may
/// replace it meanwhile: so this happens under the folder's [lock](lock_folder), as far as that can be taken within
/// [`FOLDER_LOCK_TIMEOUT`], for which it may block. What can't be removed stays.
pub fn remove_file_of(path: &Path, file: (u64, u64)) {
    let _lock = lock_folder(folder_of(path), FOLDER_LOCK_TIMEOUT);
    if identity(path).is_ok_and(|found| found == file) {
        // Nothing depends on it: it is stale then, as after a crash.
        let _removed = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering};
    use std::fs;

    use super::*;

    /// Each puts a file of its own at a path and removes it, as servers do that replace each other: nobody removes
    /// another's.
    #[test]
    fn nobody_removes_what_another_has_put_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let names = AtomicU32::new(0);
        let put = || {
            let own = folder.path().join(names.fetch_add(1, Ordering::Relaxed).to_string());
            fs::write(&own, "x").unwrap();
            let file = identity(&own).unwrap();
            let _lock = lock_folder(folder.path(), Duration::from_secs(60)).unwrap();
            fs::rename(&own, &path).unwrap();
            file
        };
        let mut file = put();
        for _ in 0..500 {
            let next = thread::scope(|scope| {
                let successor = scope.spawn(put);
                remove_file_of(&path, file);
                successor.join().unwrap()
            });
            assert_eq!(identity(&path).unwrap(), next);
            file = next;
        }
        remove_file_of(&path, file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
