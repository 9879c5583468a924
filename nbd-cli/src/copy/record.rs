//! What an interrupted copy has got done: a small file beside the destination, which is there as long as that is not complete.

use core::fmt;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use super::disk::Disk;
use super::open::{Kind, Side, cannot};
use crate::exit::Failure;

/// Bytes of the destination after which the record is brought up to date, by default. What was copied since is copied again.
const STEP: u64 = 256 << 20;

/// A record's format.
const VERSION: u64 = 1;

/// The record of a copy that is under way.
pub(super) struct Record {
    path: PathBuf,
    /// What the copy is from and to.
    sides: Value,
    destination: Disk,
    marks: Mutex<Marks>,
}

/// What of the destination is complete.
#[derive(Debug, Default)]
struct Marks {
    /// Everything below.
    reach: u64,
    /// Ranges behind that, which do not touch each other, by their starts.
    beyond: BTreeMap<u64, u64>,
    /// What the record says.
    recorded: u64,
    /// The record is being written.
    busy: bool,
}

impl Marks {
    fn add(&mut self, offset: u64, length: u64) {
        self.beyond.insert(offset, offset + length);
        while let Some(entry) = self.beyond.first_entry()
            && *entry.key() <= self.reach
        {
            self.reach = self.reach.max(entry.remove());
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Where the record of a destination is.
pub(super) fn path_of(destination: &Path) -> PathBuf {
    let mut path = OsString::from(destination);
    path.push(".nbd-copy");
    path.into()
}

impl Record {
    /// The record of a copy that goes on where it was interrupted, if it was.
    ///
    /// # Errors
    /// When it was a copy of something else.
    pub(super) fn resume(path: PathBuf, source: &Side, to: &Side) -> Result<Self, Failure> {
        let Kind::Disk { disk, regular: true, .. } = &to.kind else {
            return Err(Failure::usage(format!(
                "--resume: {} is no file, beside which a record could be kept",
                to.name
            )));
        };
        let size = source.size().ok_or_else(|| {
            Failure::usage(format!("--resume: {} can't be read from the middle on", source.name))
        })?;
        let inode = identity(&disk.file).map_err(|error| cannot("use", &to.name, &error))?;
        let sides = json!({ "source": about(source)?, "destination": inode });
        let mut marks = Marks::default();
        if let Some(recorded) = read(&path)? {
            let differs = |what: &str, name: &str| {
                Failure::failed(format!(
                    "cannot go on with the copy: {what} {name} is not the one that {} is about; remove that file to begin \
                     anew",
                    path.display()
                ))
            };
            if recorded["source"] != sides["source"] {
                return Err(differs("the source", &source.name));
            }
            let copied = recorded["copied"].as_u64().filter(|copied| *copied <= size);
            let whole = disk.file.metadata().is_ok_and(|metadata| metadata.len() == size);
            match copied.filter(|_| recorded["destination"] == sides["destination"]) {
                // It was interrupted before the destination had its size.
                Some(0) => {}
                Some(copied) if whole => (marks.reach, marks.recorded) = (copied, copied),
                _ => return Err(differs("the destination", &to.name)),
            }
        }
        let destination = disk.clone();
        let record = Self { path, sides, destination, marks: Mutex::new(marks) };
        record.write(record.marks().reach)?;
        Ok(record)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the copy goes on: everything before is durable.
    pub(super) fn reach(&self) -> u64 {
        self.marks().reach
    }

    /// A range is where it belongs. From time to time that is recorded.
    pub(super) fn done(&self, offset: u64, length: u64) {
        let mut marks = self.marks();
        marks.add(offset, length);
        let due = marks.reach - marks.recorded >= STEP;
        if !due || core::mem::replace(&mut marks.busy, true) {
            return;
        }
        let reach = marks.reach;
        drop(marks);
        // Without it the copy begins earlier, which is no reason to fail.
        if let Err(error) = self.save(reach) {
            tracing::warn!("{error:?}");
        }
        let mut marks = self.marks();
        (marks.recorded, marks.busy) = (reach, false);
    }

    /// The copy has failed: records what is done.
    pub(super) fn interrupted(&self) -> Result<(), Failure> {
        let reach = self.reach();
        self.save(reach)
    }

    /// The copy is complete, and durable.
    pub(super) fn complete(&self) -> Result<(), Failure> {
        remove(&self.path)
    }

    fn save(&self, reach: u64) -> Result<(), Failure> {
        // What is recorded must be there after a power cut.
        let name = self.path.display().to_string();
        self.destination.flush().map_err(|error| cannot("flush what is before", &name, &error))?;
        self.write(reach)
    }

    fn write(&self, copied: u64) -> Result<(), Failure> {
        let mut record = json!({ "nbd copy": VERSION, "copied": copied });
        if let (Some(record), Some(sides)) = (record.as_object_mut(), self.sides.as_object()) {
            record.extend(sides.clone());
        }
        let written = || -> io::Result<()> {
            let folder = match self.path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            writeln!(file, "{record:#}")?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            File::open(folder)?.sync_all()
        };
        written().map_err(|error| cannot("write", &self.path.display().to_string(), &error))
    }
}

/// A copy from the beginning makes an earlier record wrong.
pub(super) fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(cannot("remove", &path.display().to_string(), &error))
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<Value>, Failure> {
    let name = path.display().to_string();
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| cannot("read", &name, &error))?,
    };
    let record: Option<Value> = serde_json::from_slice(&text).ok();
    match record.filter(|record| record["nbd copy"].as_u64() == Some(VERSION)) {
        Some(record) => Ok(Some(record)),
        None => Err(Failure::failed(format!(
            "{name} is no record of an interrupted copy that this nbd knows; move it elsewhere, or remove it to begin anew"
        ))),
    }
}

fn identity(file: &File) -> io::Result<Value> {
    let metadata = file.metadata()?;
    Ok(json!({ "device": metadata.dev(), "inode": metadata.ino() }))
}

/// What is known of the source, to be recognised later. A server's data may change without a trace.
fn about(source: &Side) -> Result<Value, Failure> {
    let known = match &source.kind {
        Kind::Disk { disk, size, .. } => {
            let about = || -> io::Result<Value> {
                let metadata = disk.file.metadata()?;
                let mut about = identity(&disk.file)?;
                about["size"] = (*size).into();
                about["modified"] =
                    format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec()).into();
                Ok(about)
            };
            about().map_err(|error| cannot("use", &source.name, &error))?
        }
        Kind::Server { target, client, .. } => json!({
            "server": target.name(),
            "size": client.size(),
            "name": client.export().canonical_name(),
            "description": client.export().description(),
        }),
        Kind::Stream(_) | Kind::Null => Value::Null,
    };
    Ok(known)
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn marks_reach_as_far_as_there_is_no_gap() {
        cases(50, |random| {
            let mut pieces = Vec::new();
            let mut end = 0;
            for _ in 0..random.below(40) {
                let length = 1 + random.below(9);
                pieces.push((end, length));
                end += length;
            }
            let (mut marks, mut done) = (Marks::default(), vec![false; end as usize]);
            while !pieces.is_empty() {
                let (offset, length) =
                    pieces.swap_remove(random.below(pieces.len() as u64) as usize);
                marks.add(offset, length);
                done[offset as usize..(offset + length) as usize].fill(true);
                let gap = done.iter().position(|done| !done).unwrap_or(done.len());
                assert_eq!(marks.reach, gap as u64);
            }
            assert!(marks.beyond.is_empty());
        });
    }
}
