//! What an interrupted copy has got done: a small file, which is there as long as the destination is not complete.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use nbd_blocking::Client;
use serde_json::{Value, json};

use super::durable::{Durable, no_place};
use super::open::{self, Kind, Side, cannot};
use super::{identity, samples};
use crate::exit::Failure;
use crate::target::Place;
use crate::units;

/// Bytes of the destination after which the record is brought up to date, by default. What was copied since is copied again.
const STEP: u64 = 256 << 20;

/// A record's format.
const VERSION: u64 = 1;

/// The record of a copy that is under way.
pub(super) struct Record {
    path: PathBuf,
    /// What the copy is from and to.
    sides: Value,
    /// Bytes of the source.
    size: u64,
    destination: Durable,
    marks: Mutex<Marks>,
    /// Held by whoever brings the record up to date, so that a later one has more.
    writing: Mutex<Writing>,
    /// Nothing more is begun.
    ends: AtomicBool,
}

/// Whether the record may be written.
#[derive(Debug, PartialEq, Eq)]
enum Writing {
    Open,
    /// A signal has had it written, and said what is in it.
    Closed,
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
    /// Why the destination could not be flushed. A system reports that once, so that no later flush says anything about
    /// what was written before.
    flush_failure: Option<String>,
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

/// Where the record of a file is.
pub(super) fn path_of(destination: &Path) -> PathBuf {
    let mut path = OsString::from(destination);
    path.push(".nbd-copy");
    path.into()
}

/// Where the record may be.
#[derive(Debug)]
pub(super) struct Paths {
    /// Beside the destination, if that is local.
    pub(super) beside: Option<PathBuf>,
    /// Where the caller says.
    pub(super) wanted: Option<PathBuf>,
}

impl Paths {
    /// Beside a file, where every copy to it finds it; and where the caller says for a server, beside which there is nothing,
    /// and for a block device, since the folder of its path is in memory, and gone after a restart.
    fn of(self, to: &Side) -> Result<PathBuf, Failure> {
        let name = &to.name;
        match (self, to.is_regular()) {
            (Self { wanted: None, beside: Some(beside) }, true) => Ok(beside),
            (_, true) => Err(Failure::usage(format!(
                "--record: the record of {name} is beside it, where every copy to it finds it; leave the option out"
            ))),
            (Self { wanted: Some(wanted), .. }, false) => Ok(wanted),
            (Self { wanted: None, .. }, false) => {
                let what = if to.client().is_some() { "a server" } else { "a block device" };
                Err(Failure::usage(format!(
                    "--resume: no record stays beside {name}, {what}; say where to keep it by --record FILE"
                )))
            }
        }
    }
}

/// What is said of a source that has no positions.
fn no_middle(name: &str) -> Failure {
    Failure::usage(format!("--resume: {name} can't be read from the middle on"))
}

/// Refuses what can't be gone on with, before anything is opened: the other end of a pipe may never be.
pub(super) fn refuse_streams(source: &Place, destination: &Place) -> Result<(), Failure> {
    if open::path(source)?.is_some_and(open::is_stream) {
        return Err(no_middle(&source.to_string()));
    }
    if open::path(destination)?.is_some_and(open::is_stream) {
        return Err(no_place(&destination.to_string()));
    }
    Ok(())
}

impl Record {
    /// The record of a copy that goes on where it was interrupted, if it was.
    ///
    /// # Errors
    /// When it was a copy of something else.
    pub(super) fn resume(paths: Paths, source: &Side, to: &Side) -> Result<Self, Failure> {
        let destination = Durable::of(to)?;
        let path = paths.of(to)?;
        let size = source.size().ok_or_else(|| no_middle(&source.name))?;
        let this = match &to.kind {
            // A file's size is that of the source later on.
            Kind::Disk { disk, .. } => {
                identity::of(&disk.file).map_err(|error| cannot("use", &to.name, &error))?
            }
            _ => about(to)?,
        };
        let sides = json!({ "source": about(source)?, "destination": this });
        let mut marks = Marks::default();
        if let Some(recorded) = read(&path)? {
            let differs = |side: &str, name: &str, difference: &str| {
                Failure::failed(format!(
                    "cannot go on with the copy: the {side} {name} is not the one that {} is about: {difference}; remove \
                     that file to begin anew",
                    path.display()
                ))
            };
            let is_same = |side: &str| identity::is_same(&recorded[side], &sides[side]);
            let difference = |side: &str| identity::difference(&recorded[side], &sides[side]);
            if !is_same("source") {
                return Err(differs("source", &source.name, &difference("source")));
            }
            let copied = recorded["copied"].as_u64().filter(|copied| *copied <= size);
            if !is_same("destination") {
                return Err(differs("destination", &to.name, &difference("destination")));
            }
            let whole = !to.is_regular() || to.size() == Some(size);
            match copied {
                // It was interrupted before the destination had its size.
                Some(0) => {}
                Some(copied) if whole => {
                    // Other copies remove the record of a file; whatever else writes to it does not.
                    if !samples::agree(source, to, copied)? {
                        return Err(Failure::failed(format!(
                            "cannot go on with the copy: {} and {} differ in what was copied according to {}: one of \
                             them was written to since; remove that file to begin anew",
                            source.name,
                            to.name,
                            path.display()
                        )));
                    }
                    (marks.reach, marks.recorded) = (copied, copied);
                }
                Some(_) => {
                    let difference = identity::sizes(size, to.size().unwrap_or(0));
                    return Err(differs("destination", &to.name, &difference));
                }
                None => {
                    let difference = format!("it records no number of up to {size} copied bytes");
                    return Err(differs("destination", &to.name, &difference));
                }
            }
        }
        let marks = Mutex::new(marks);
        let (writing, ends) = (Mutex::new(Writing::Open), AtomicBool::new(false));
        let record = Self { path, sides, size, destination, marks, writing, ends };
        record.write(record.marks().reach)?;
        Ok(record)
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more connection to a server is about to write.
    pub(super) fn joins(&self, client: &Client) {
        self.destination.joins(client);
    }

    /// Where the copy goes on: everything before is durable.
    pub(super) fn reach(&self) -> u64 {
        self.marks().reach
    }

    /// A range is where it belongs. From time to time that is recorded.
    pub(super) fn done(&self, offset: u64, length: u64) {
        let mut marks = self.marks();
        marks.add(offset, length);
        let is_due = |marks: &Marks| marks.reach - marks.recorded >= STEP;
        let due = is_due(&marks);
        drop(marks);
        if !due {
            return;
        }
        // No thread waits for another one that is about to write it.
        let mut writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !is_due(&self.marks()) {
            return;
        }
        // A failed flush ends the copy by `check`. Without the record it begins earlier, which is no reason to fail.
        if let Err(error) = self.update(&mut writing) {
            tracing::warn!("{}", error.text());
        }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes durable what is done, and records it.
    fn update(&self, writing: &mut Writing) -> Result<(), Failure> {
        if *writing == Writing::Closed {
            return Ok(());
        }
        let reach = self.reach();
        self.flush()?;
        self.write(reach)?;
        self.marks().recorded = reach;
        Ok(())
    }

    /// Fails if the destination could not be flushed at any time.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let failure = self.marks().flush_failure.clone();
        failure.map_or(Ok(()), |text| Err(Failure::failed(text)))
    }

    /// Makes what was written durable.
    pub(super) fn flush(&self) -> Result<(), Failure> {
        self.check()?;
        self.destination.flush().map_err(|error| {
            let text = format!("cannot flush what {} is about: {error}", self.path.display());
            Failure::failed(self.marks().flush_failure.get_or_insert(text).clone())
        })
    }

    /// The copy has failed: records what is done and durable. After a flush that failed nothing more is known of that than
    /// what was recorded before.
    pub(super) fn interrupted(&self) -> Result<(), Failure> {
        self.update(&mut self.writing())
    }

    /// The same when a signal ends the copy, at whatever moment. From now on nothing is begun; and afterwards the record
    /// stays as it is, so that what is said of it remains true.
    pub(super) fn ends(&self) -> Result<(), Failure> {
        self.ends.store(true, Ordering::Relaxed);
        let mut writing = self.writing();
        // What is in flight is finished by then, and is made durable by the second flush.
        let result = self.flush().and_then(|()| self.update(&mut writing));
        *writing = Writing::Closed;
        result
    }

    /// Whether a signal ends the copy, so that nothing more is to be begun.
    pub(super) fn is_ending(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Where a copy begins that goes on after an earlier one: the message for its user.
    pub(super) fn continues(&self) -> Option<String> {
        let after = self.after(self.reach())?;
        Some(format!("going on with the interrupted copy after {after}"))
    }

    /// What becomes of a copy that has failed, or that a signal ends, if its command is given again; `None` if it begins
    /// anew.
    pub(super) fn hint(&self) -> Option<String> {
        let after = self.after(self.marks().recorded)?;
        Some(format!("the same command goes on after {after}"))
    }

    /// So many bytes of all, unless there are none.
    fn after(&self, bytes: u64) -> Option<String> {
        let (done, all) = (units::bytes(bytes), units::bytes(self.size));
        (bytes > 0).then(|| format!("{done} of {all}"))
    }

    /// What was copied is not what it should be: the next copy begins anew.
    pub(super) fn restart(&self) -> Result<(), Failure> {
        let writing = self.writing();
        if *writing == Writing::Closed {
            return Ok(());
        }
        *self.marks() = Marks::default();
        self.write(0)
    }

    /// The copy is complete, and durable.
    pub(super) fn complete(&self) -> Result<(), Failure> {
        remove(&self.path)
    }

    fn write(&self, copied: u64) -> Result<(), Failure> {
        let mut record = json!({ "nbd copy": VERSION, "copied": copied });
        if let (Some(record), Some(sides)) = (record.as_object_mut(), self.sides.as_object()) {
            record.extend(sides.clone());
        }
        let new = new_path_of(&self.path);
        let replaced = || -> io::Result<()> {
            // Of a copy that was killed, as it wrote it.
            remove_if_there(&new)?;
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            writeln!(file, "{record:#}")?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        let replaced = replaced().inspect_err(|_| {
            // That of a full disk is empty. The former record stays as it is.
            let _best_effort = remove_if_there(&new);
        });
        let synced = replaced.and_then(|()| File::open(folder_of(&self.path))?.sync_all());
        synced.map_err(|error| cannot("write", &self.path.display().to_string(), &error))
    }
}

/// A copy from the beginning makes an earlier record wrong.
pub(super) fn remove(path: &Path) -> Result<(), Failure> {
    for path in [path, &new_path_of(path)] {
        remove_if_there(path)
            .map_err(|error| cannot("remove", &path.display().to_string(), &error))?;
    }
    Ok(())
}

/// Where a record is written before it takes the place of the former one.
fn new_path_of(record: &Path) -> PathBuf {
    let mut path = OsString::from(record);
    path.push(".new");
    path.into()
}

/// The folder that a file is in: for a name alone, that of this process.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Bytes of a record, and more.
const MAX_LENGTH: u64 = 1 << 20;

fn read(path: &Path) -> Result<Option<Value>, Failure> {
    let name = path.display().to_string();
    let mut text = Vec::new();
    let mut read = || -> io::Result<()> {
        // A pipe or a device may give no end, or nothing.
        let metadata = fs::metadata(path)?;
        if metadata.is_file() || metadata.is_dir() {
            File::open(path)?.take(MAX_LENGTH).read_to_end(&mut text)?;
        }
        Ok(())
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|error| cannot("read", &name, &error))?,
    }
    let record: Option<Value> = serde_json::from_slice(&text).ok();
    match record.filter(|record| record["nbd copy"].as_u64() == Some(VERSION)) {
        Some(record) => Ok(Some(record)),
        None => Err(Failure::failed(format!(
            "{name} is no record of an interrupted copy that this nbd knows; move it elsewhere, or remove it to begin anew"
        ))),
    }
}

/// What is known of the source, to be recognised later. Data of a server or of a block device may change without a trace.
fn about(source: &Side) -> Result<Value, Failure> {
    let known = match &source.kind {
        Kind::Disk { disk, size, regular } => {
            let about = || -> io::Result<Value> {
                let metadata = disk.file.metadata()?;
                let mut about = identity::of(&disk.file)?;
                about["size"] = (*size).into();
                // The time of a change can't be set by programs, as that of a modification can. That of a block device is
                // about its path, not about what is in it.
                if *regular {
                    about["changed"] =
                        format!("{}.{:09}", metadata.ctime(), metadata.ctime_nsec()).into();
                }
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
mod tests;
