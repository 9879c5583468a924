//! Opening a file of a directory and nothing else.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::FileId;

/// Bytes of a file's name.
const LONGEST_NAME: usize = 255;

/// Opens a directory to look into.
pub(super) fn folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Whether a file that is exported can have that name.
pub(super) fn is_name(name: &str) -> bool {
    // A first dot rules out `.` and `..`, too.
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= LONGEST_NAME
        && bytes[0] != b'.'
        && !bytes.contains(&b'/')
        && !bytes.contains(&0)
}

/// A regular file of the directory; `None` if there is none of that name.
pub(super) fn file(
    folder: &OwnedFd,
    device: u64,
    name: &str,
    read_only: bool,
) -> io::Result<Option<fs::File>> {
    if !is_name(name) || regular(folder, device, name)?.is_none() {
        return Ok(None);
    }
    // It may have become something else by now. What opens is looked at again; what has no effect but to be opened, a
    // pipe for instance, does not wait.
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match beneath(folder, name, flags) {
        Ok(opened) => opened,
        Err(errno) if is_absent(errno) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let status = rustix::fs::fstat(&opened)?;
    let is_regular = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
    if !is_regular || status.st_dev != device {
        return Ok(None);
    }
    rustix::fs::fcntl_setfl(&opened, rustix::fs::fcntl_getfl(&opened)? - OFlags::NONBLOCK)?;
    Ok(Some(opened.into()))
}

/// Opens a name in the directory, and nowhere else, whatever the name has become.
fn beneath(folder: &OwnedFd, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve) {
        // A kernel before 5.6, or a sandbox that does not know the call.
        Err(Errno::NOSYS | Errno::PERM) => plainly(folder, name, flags),
        result => result,
    }
}

/// The same without `openat2`: a name without a slash is in the directory, and `O_NOFOLLOW` follows no link that it may
/// be. The file system is compared by the caller.
fn plainly(folder: &OwnedFd, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

/// The name is not there, or is nothing that is exported.
const fn is_absent(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NXIO | Errno::ISDIR | Errno::NODEV
    )
}

/// The regular file of that name, if it is one, on the file system of the directory.
fn regular(folder: impl AsFd, device: u64, name: &str) -> io::Result<Option<FileId>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(status) => {
            let kind = FileType::from_raw_mode(status.st_mode);
            let fits = kind == FileType::RegularFile && status.st_dev == device;
            Ok(fits.then_some(FileId { device, inode: status.st_ino }))
        }
        Err(errno) if is_absent(errno) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The names of the files that can be exported, and how many files there are besides whose names can't be.
pub(super) fn names(
    folder: &OwnedFd,
    device: u64,
    left_out: &HashSet<FileId>,
) -> io::Result<(Vec<String>, usize)> {
    // One that was removed would look empty.
    if rustix::fs::fstat(folder)?.st_nlink == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    let (mut names, mut unfit) = (Vec::new(), 0);
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
            continue;
        }
        match entry.file_name().to_str() {
            Ok(name) if is_name(name) => {
                let file = regular(folder, device, name)?;
                if file.is_some_and(|file| !left_out.contains(&file)) {
                    names.push(name.to_owned());
                }
            }
            Ok(_) => {}
            Err(_) => unfit += 1,
        }
    }
    Ok((names, unfit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The way that is taken where there is no `openat2` opens the same.
    #[test]
    fn without_openat2_no_link_is_followed_either() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", temporary.path().join("link")).unwrap();
        let folder = folder(temporary.path()).unwrap();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        for open in [beneath, plainly] {
            open(&folder, "file", flags).unwrap();
            assert_eq!(open(&folder, "link", flags).unwrap_err(), Errno::LOOP);
        }
        assert_eq!(beneath(&folder, "..", OFlags::RDONLY).unwrap_err(), Errno::XDEV);
    }
}
