//! What is done with overlay files while they are not served.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::super::sealed::Sealed;
use super::super::{Kind, Part, Store};
use super::{BaseStamp, Header, InFile, Opened, OverlayError, Problem, State, in_use};
use crate::export::{
    CanExtents, CanFlush, CanWrite, CanWriteZeroes, Export, ExportError, File, OpenError, ZeroMode,
};
use crate::net::{folder_of, link_end};

/// Makes an empty overlay file at a path at which there is none; or in place of the one that there is, if
/// [replaced](replace).
pub(super) fn create(path: &Path, header: &Header) -> Result<(), Problem> {
    let temporary = write_new(path, header)?;
    // A link does not replace what another process has made meanwhile.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    sync_folder(path)
}

/// Puts an empty overlay in place of the one that there is, which nobody needs any more: at once, or, where there is no
/// room for a second file, by emptying that one, so that an interruption leaves a file without content. `file` is the one
/// that there is.
fn replace(path: &Path, file: &fs::File, header: &Header) -> Result<(), Problem> {
    // The file behind a link, which would have what it had before and be locked no longer.
    let path = &link_end(path);
    let temporary = match write_new(path, header) {
        Ok(temporary) => temporary,
        Err(Problem::Io(error)) if is_full(&error) => return empty(file, header),
        Err(problem) => return Err(problem),
    };
    let renamed = fs::rename(&temporary, path);
    if renamed.is_err() {
        let _still_there = fs::remove_file(&temporary);
    }
    renamed?;
    sync_folder(path)
}

/// Empties an overlay file in place: an interruption leaves a file without content.
pub(super) fn empty(file: &fs::File, header: &Header) -> Result<(), Problem> {
    file.set_len(0)?;
    file.write_all_at(&header.encode(), 0)?;
    file.set_len(header.data_offset() + header.size)?;
    Ok(file.sync_all()?)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A new file beside the path, with everything that an empty overlay has, durable.
fn write_new(path: &Path, header: &Header) -> Result<PathBuf, Problem> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".new-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(&header.encode())?;
        file.set_len(header.data_offset() + header.size)?;
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(temporary),
        Err(error) => {
            let _never_there = fs::remove_file(&temporary);
            Err(error.into())
        }
    }
}

fn sync_folder(path: &Path) -> Result<(), Problem> {
    fs::File::open(folder_of(path))?.sync_all()?;
    Ok(())
}

/// What an overlay file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverlaySummary {
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes of a block.
    pub block: u64,
    /// Bytes of the blocks that the overlay has: of one in use, as of its last flush.
    pub present: u64,
    /// Whether a commit was interrupted, and has to be run again.
    pub is_committing: bool,
    /// Whether a server or another command uses the file at the moment.
    pub is_in_use: bool,
}

/// What an overlay file says of itself, whether it is in use or not. Blocks while it is read.
///
/// # Errors
/// When the file is no overlay, is damaged, or can't be read.
pub fn overlay_summary(path: impl AsRef<Path>) -> Result<OverlaySummary, OverlayError> {
    let path = path.as_ref();
    let summary = || -> Result<_, Problem> {
        let (opened, is_in_use) = Opened::look(path)?;
        let (blocks, header) = (opened.blocks()?, opened.header);
        opened.check_length(opened.file.metadata()?.len())?;
        Ok(OverlaySummary {
            is_in_use,
            size: header.size,
            block: blocks.block(),
            present: blocks.present_bytes(),
            is_committing: header.state == State::Committing,
        })
    };
    summary().map_err(|problem| OverlayError::new(path, problem))
}

/// Finds out whether [`Overlay::in_file`](super::Overlay::in_file) would succeed with the base of `stamp`, and changes
/// nothing. Gives what [`Overlay::stamp`](super::Overlay::stamp) would be then. Blocks while the file is read.
///
/// # Errors
/// Those of [`Overlay::in_file`](super::Overlay::in_file). One that is in use has no other fault.
pub fn check_overlay(path: impl AsRef<Path>, stamp: &BaseStamp) -> Result<BaseStamp, OverlayError> {
    let path = path.as_ref();
    let header = check(path, stamp).map_err(|problem| OverlayError::makes(path, problem))?;
    Ok(header.stamp())
}

fn check(path: &Path, stamp: &BaseStamp) -> Result<Header, Problem> {
    let may = |path: &Path, access: Access| -> Result<(), Problem> {
        Ok(rustix::fs::access(path, access).map_err(io::Error::from)?)
    };
    if !path.try_exists()? {
        let header = Header::new(stamp, InFile::BLOCK.trailing_zeros());
        header.check_size()?;
        let end = link_end(path);
        let folder = folder_of(&end);
        fs::read_dir(folder)?;
        may(folder, Access::WRITE_OK | Access::EXEC_OK)?;
        return Ok(header);
    }
    let (opened, is_in_use) = Opened::look(path)?;
    if opened.header.state == State::Committing {
        return Err(Problem::Committing);
    }
    let header = opened.fit(stamp, is_in_use)?;
    if header == opened.header {
        opened.blocks()?;
        opened.check_length(opened.file.metadata()?.len())?;
    }
    may(path, Access::WRITE_OK)?;
    match is_in_use {
        true => Err(in_use(&opened.file)?),
        false => Ok(header),
    }
}

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// Bytes of data that were written to the base.
    pub data: u64,
    /// Bytes of it that were zeroed.
    pub zeroes: u64,
}

/// Writes what an overlay file has to its base, a file or block device, and empties the overlay.
///
/// A commit that is interrupted, at whatever moment, is finished by running it again; until then the overlay is not
/// served. It is refused while the overlay is in use; nobody else may use the base. Blocks until all is written and
/// durable.
///
/// # Errors
/// When the overlay is in use, damaged, or does not belong to the base as it is; when a file can't be read or written.
pub fn commit_overlay(
    overlay: impl AsRef<Path>,
    base: impl AsRef<Path>,
) -> Result<Committed, OverlayError> {
    let (path, base) = (overlay.as_ref(), base.as_ref());
    commit(path, base).map_err(|problem| OverlayError::new(path, problem).commits())
}

fn commit(path: &Path, base_path: &Path) -> Result<Committed, Problem> {
    let opened = Opened::open(path)?;
    let base = File::open(base_path).map_err(|error| not_writable(base_path, &error))?;
    let header = opened.header;
    if header.state == State::InUse {
        opened.fit(&stamp(&base, base_path)?, false)?;
        // One that is damaged stays as it is.
        opened.blocks()?;
        opened.check_length(opened.file.metadata()?.len())?;
        // From here on the base is in between, and the overlay has all that it lacks.
        let committing = Header { state: State::Committing, ..header };
        opened.file.write_all_at(&committing.encode(), 0)?;
        opened.file.sync_all()?;
    } else if base.size() != header.size {
        return Err(Problem::OtherSize { own: header.size, base: base.size() });
    }
    let file = opened.file.try_clone()?;
    let store = InFile::new(opened, path)?;
    let mut committed = Committed::default();
    let failed = |error| Problem::Commit { base: base_path.to_owned(), error };
    for part in store.blocks().parts(0, header.size) {
        if part.kind == Kind::Present {
            copy(&store, &base, part, &mut committed, failed)?;
        }
    }
    CanFlush::flush(&base).map_err(failed)?;
    let empty = Header::new(&stamp(&base, base_path)?, header.shift);
    drop(store);
    // The lock is that of the old file, which goes with it.
    replace(path, &file, &empty)?;
    Ok(committed)
}

/// What a base is now. The time of modification of a block device's node has nothing to do with its content.
fn stamp(base: &File, path: &Path) -> Result<BaseStamp, Problem> {
    let metadata = fs::metadata(path)?;
    let modified = if metadata.is_file() { Some(metadata.modified()?) } else { None };
    Ok(BaseStamp::new(base, modified)?)
}

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;

/// A base that can't be opened for a commit, to which a base that is read-only is of no use.
fn not_writable(base: &Path, error: &OpenError) -> Problem {
    let why = match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            "its file system or device is read-only; make it writable first"
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied; allow this user to read and write it"
        }
        _ => return Problem::Base(error.to_string()),
    };
    Problem::Base(format!("cannot commit to '{}': {why}", base.display()))
}

/// Copies a part to the base, holes as zeroes. `failed` makes what fails there a problem.
fn copy(
    store: &InFile,
    base: &File,
    part: Part,
    committed: &mut Committed,
    failed: impl Fn(ExportError) -> Problem,
) -> Result<(), Problem> {
    let (mut at, end) = (part.offset, part.offset + part.length);
    let mut buffer = vec![0; CHUNK.min(part.length) as usize];
    while at < end {
        let mut run = None;
        store.data().extents(at, end - at, &mut |first| {
            run = Some(first);
            ControlFlow::Break(())
        })?;
        let zero = run.is_some_and(|run| run.zero);
        let max = if zero { end - at } else { CHUNK };
        let length = run.map_or(CHUNK, |run| run.length).min(end - at).min(max);
        if zero {
            CanWriteZeroes::write_zeroes(base, at, length, ZeroMode::default()).map_err(&failed)?;
            committed.zeroes += length;
        } else {
            let buffer = &mut buffer[..length as usize];
            store.data().read(buffer, at)?;
            CanWrite::write(base, buffer, at, false).map_err(&failed)?;
            committed.data += length;
        }
        at += length;
    }
    Ok(())
}

/// Forgets what an overlay file has: the base shows again, as it was. Blocks while the file is replaced.
///
/// # Errors
/// When the overlay is in use or damaged, when a commit of it was interrupted, or when a file can't be written.
pub fn discard_overlay(path: impl AsRef<Path>) -> Result<(), OverlayError> {
    let path = path.as_ref();
    let discard = || -> Result<_, Problem> {
        let opened = Opened::open(path)?;
        if opened.header.state == State::Committing {
            return Err(Problem::Committing);
        }
        replace(path, &opened.file, &opened.header.of_new_generation())
    };
    discard().map_err(|problem| OverlayError::new(path, problem))
}

#[cfg(test)]
mod tests {
    use super::super::super::Overlay;
    use super::*;

    const SIZE: u64 = 3 * InFile::BLOCK;

    struct Files {
        folder: tempfile::TempDir,
        base: PathBuf,
    }

    impl Files {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let base = folder.path().join("base");
            fs::write(&base, vec![7; SIZE as usize]).unwrap();
            Self { folder, base }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn base(&self) -> File {
            File::options().read_only(true).open(&self.base).unwrap()
        }

        fn stamp(&self) -> BaseStamp {
            stamp(&self.base(), &self.base).unwrap()
        }

        fn open(&self, name: &str) -> Result<Overlay<File, InFile>, OverlayError> {
            Overlay::in_file(self.base(), &self.stamp(), self.path(name))
        }
    }

    #[test]
    fn an_overlay_in_use_can_be_looked_at_and_shows_what_was_flushed() {
        let files = Files::new();
        let (disk, path) = (files.open("o").unwrap(), files.path("o"));
        let write = |offset| disk.can_write().unwrap().write(&[1; 512], offset, false).unwrap();
        write(0);
        disk.can_flush().unwrap().flush().unwrap();
        write(InFile::BLOCK);
        let summary = overlay_summary(&path).unwrap();
        assert_eq!((summary.is_in_use, summary.present), (true, InFile::BLOCK));
        drop(disk);
        let summary = overlay_summary(&path).unwrap();
        assert_eq!((summary.is_in_use, summary.present), (false, 2 * InFile::BLOCK));
        // Whoever looks keeps nobody from opening it.
        drop(files.open("o").unwrap());
    }

    #[test]
    fn who_looks_at_an_overlay_that_is_cut_off_learns_of_it() {
        let files = Files::new();
        drop(files.open("o").unwrap());
        let path = files.path("o");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let whole = file.metadata().unwrap().len();
        for length in (0..whole).rev().step_by(4099) {
            file.set_len(length).unwrap();
            overlay_summary(&path).unwrap_err();
        }
    }

    #[test]
    fn the_file_of_an_overlay_can_be_flushed_while_others_have_the_overlay_and_is_not_held() {
        let files = Files::new();
        let (disk, path) = (files.open("o").unwrap(), files.path("o"));
        let file = disk.file();
        disk.can_write().unwrap().write(&[1; 512], 0, false).unwrap();
        assert_eq!(overlay_summary(&path).unwrap().present, 0);
        file.flush().unwrap();
        assert_eq!(overlay_summary(&path).unwrap().present, InFile::BLOCK);
        drop(disk);
        drop(files.open("o").unwrap());
        file.flush().unwrap();
    }

    #[test]
    fn an_overlay_that_this_process_has_open_is_not_blamed_on_another_one() {
        let files = Files::new();
        let disk = files.open("o").unwrap();
        let text = files.open("o").unwrap_err().to_string();
        assert!(text.contains("in use by another export of this server"), "{text}");
        drop(disk);
        let file = fs::File::open(files.path("o")).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let text = files.open("o").unwrap_err().to_string();
        assert!(text.contains("end the server or command that uses it"), "{text}");
    }

    /// However it is named, an overlay is one file: it is made, committed and discarded at the end of the links.
    #[test]
    fn links_to_an_overlay_stay_links() {
        nbd_testkit::cases(40, |random| {
            let files = Files::new();
            let mut names = vec![String::from("end/o")];
            fs::create_dir(files.path("end")).unwrap();
            for number in 0..1 + random.below(4) {
                let (name, last) = (format!("link{number}"), names.last().unwrap());
                let target = match random.one_in(2) {
                    true => files.path(last),
                    false => PathBuf::from(last),
                };
                std::os::unix::fs::symlink(target, files.path(&name)).unwrap();
                names.push(name);
            }
            let name = |random: &mut nbd_testkit::Random| {
                names[random.below(names.len() as u64) as usize].clone()
            };
            let mut expected = fs::read(&files.base).unwrap();
            for _ in 0..1 + random.below(4) {
                check_overlay(files.path(&name(random)), &files.stamp()).unwrap();
                let disk = files.open(&name(random)).unwrap();
                let block = random.below(3);
                let byte = random.below(256) as u8;
                let (at, length) = (block * InFile::BLOCK, InFile::BLOCK);
                let data = vec![byte; length as usize];
                disk.can_write().unwrap().write(&data, at, false).unwrap();
                drop(disk);
                if random.one_in(2) {
                    commit_overlay(files.path(&name(random)), &files.base).unwrap();
                    expected[at as usize..][..length as usize].fill(byte);
                } else {
                    discard_overlay(files.path(&name(random))).unwrap();
                }
                for name in &names {
                    assert_eq!(overlay_summary(files.path(name)).unwrap().present, 0, "{name}");
                    let is_link = fs::symlink_metadata(files.path(name)).unwrap().is_symlink();
                    assert_eq!(is_link, name.starts_with("link"), "{name}");
                }
                assert!(fs::read(&files.base).unwrap() == expected);
            }
            let left = fs::read_dir(files.path("end")).unwrap().count();
            assert_eq!(left, 1, "no temporary file stays");
            // What is missing is the folder of the file, and not that of the link.
            fs::remove_dir_all(files.path("end")).unwrap();
            let link = name(random);
            let error = files.open(&link).unwrap_err();
            assert_eq!(
                error.to_string(),
                check_overlay(files.path(&link), &files.stamp()).unwrap_err().to_string()
            );
            assert!(error.path().ends_with("end/o"), "{error}");
        });
    }

    /// A check says of a path what opening it would, and changes nothing.
    #[test]
    fn a_check_finds_what_opening_would() {
        let files = Files::new();
        let (other, held) = (files.path("other"), files.path("held"));
        let new = Header::new(&files.stamp(), InFile::BLOCK.trailing_zeros());
        let wrong = Header { base: BaseStamp { samples: 1, ..files.stamp() }, ..new };
        create(&other, &wrong).unwrap();
        // It has a block.
        let map = fs::OpenOptions::new().write(true).open(&other).unwrap();
        map.write_all_at(&[1], Header::MAP_OFFSET).unwrap();
        create(&files.path("committing"), &Header { state: State::Committing, ..new }).unwrap();
        create(&files.path("short"), &new).unwrap();
        let short = fs::OpenOptions::new().write(true).open(files.path("short")).unwrap();
        short.set_len(new.data_offset()).unwrap();
        fs::create_dir(files.path("folder")).unwrap();
        let open = files.open("held").unwrap();
        let stamp = files.stamp();
        for name in ["other", "committing", "short", "folder", "base", "held", "base/x", "none/x"] {
            let checked = check_overlay(files.path(name), &stamp).unwrap_err();
            assert_eq!(checked.to_string(), files.open(name).unwrap_err().to_string(), "{name}");
            assert_eq!(checked.is_in_use(), name == "held");
        }
        drop(open);
        check_overlay(&held, &stamp).unwrap();
        check_overlay(files.path("new"), &stamp).unwrap();
        assert!(!files.path("new").exists());
    }
}
