//! What is done with overlay files while they are not served.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::sealed::Sealed;
use super::super::{Kind, Part, Store};
use super::{BaseStamp, Header, InFile, Opened, OverlayError, Problem, State};
use crate::export::{CanExtents, CanFlush, CanWrite, CanWriteZeroes, Export, File, ZeroMode};

/// Makes an empty overlay file at a path at which there is none; or in place of the one that there is, if
/// [replaced](replace).
pub(super) fn create(path: &Path, header: &Header) -> Result<(), Problem> {
    let temporary = write_new(path, header)?;
    // A link does not replace what another process has made meanwhile.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    sync_folder(path)
}

/// Puts an empty overlay in place of the one that there is, at once.
fn replace(path: &Path, header: &Header) -> Result<(), Problem> {
    let temporary = write_new(path, header)?;
    let renamed = fs::rename(&temporary, path);
    if renamed.is_err() {
        let _still_there = fs::remove_file(&temporary);
    }
    renamed?;
    sync_folder(path)
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
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
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
    /// Bytes of the blocks that the overlay has.
    pub present: u64,
    /// Whether a commit was interrupted, and has to be run again.
    pub is_committing: bool,
}

/// What an overlay file says of itself. Blocks while it is read.
///
/// # Errors
/// When the file is no overlay, is damaged or in use, or can't be read.
pub fn overlay_summary(path: impl AsRef<Path>) -> Result<OverlaySummary, OverlayError> {
    let path = path.as_ref();
    let summary = || -> Result<_, Problem> {
        let opened = Opened::open(path)?;
        let (blocks, header) = (opened.blocks()?, opened.header);
        Ok(OverlaySummary {
            size: header.size,
            block: blocks.block(),
            present: blocks.present_bytes(),
            is_committing: header.state == State::Committing,
        })
    };
    summary().map_err(|problem| OverlayError::new(path, problem))
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
    commit(path, base).map_err(|problem| OverlayError::new(path, problem))
}

fn commit(path: &Path, base_path: &Path) -> Result<Committed, Problem> {
    let opened = Opened::open(path)?;
    let base = File::open(base_path).map_err(|error| Problem::Base(error.to_string()))?;
    let header = opened.header;
    if header.state == State::InUse {
        header.check_base(&stamp(&base, base_path)?)?;
        // From here on the base is in between, and the overlay has all that it lacks.
        let committing = Header { state: State::Committing, ..header };
        opened.file.write_all_at(&committing.encode(), 0)?;
        opened.file.sync_all()?;
    } else if base.size() != header.size {
        return Err(Problem::OtherSize { own: header.size, base: base.size() });
    }
    let store = InFile::new(opened)?;
    let mut committed = Committed::default();
    for part in store.blocks().parts(0, header.size) {
        if part.kind == Kind::Present {
            copy(&store, &base, part, &mut committed)?;
        }
    }
    CanFlush::flush(&base)?;
    let empty = Header::new(&stamp(&base, base_path)?, header.shift);
    // The lock is that of the old file, which goes with it.
    replace(path, &empty)?;
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

/// Copies a part to the base, holes as zeroes.
fn copy(store: &InFile, base: &File, part: Part, committed: &mut Committed) -> Result<(), Problem> {
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
            CanWriteZeroes::write_zeroes(base, at, length, ZeroMode::default())?;
            committed.zeroes += length;
        } else {
            let buffer = &mut buffer[..length as usize];
            store.data().read(buffer, at)?;
            CanWrite::write(base, buffer, at, false)?;
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
        replace(path, &opened.header)
    };
    discard().map_err(|problem| OverlayError::new(path, problem))
}
