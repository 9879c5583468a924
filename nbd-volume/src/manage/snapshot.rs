//! Snapshots, clones and sizes of volumes that a server may have open.

use core::time::Duration;

use slatedb::Checkpoint;
use slatedb::CloneSourceSpec;

use super::mailbox::{self, Request};
use super::{PATIENCE, info};
use crate::database;
use crate::encryption;
use crate::folder::Use;
use crate::layout::Descriptor;
use crate::patience::within;
use crate::records::descriptor;
use crate::{Error, Location, Options, Volume};

/// The snapshot of that name.
pub(crate) async fn find_snapshot(
    location: &Location,
    name: &str,
    patience: Duration,
) -> Result<Checkpoint, Error> {
    let admin = database::admin(location);
    let found = within(location, "read", patience, admin.list_checkpoints(Some(name))).await?;
    found
        .into_iter()
        .find(|one| one.name.as_deref() == Some(name))
        .ok_or_else(|| Error::NoSnapshot { url: location.url().to_owned(), name: name.to_owned() })
}

/// Whether a snapshot may have that name.
pub(crate) async fn check_new_snapshot(
    location: &Location,
    name: &str,
    patience: Duration,
) -> Result<(), Error> {
    if matches!(name, "" | "." | "..")
        || name.len() > 200
        || name.contains(['@', '/'])
        || name.contains(char::is_control)
    {
        return Err(Error::Invalid(format!(
            "'{}' can't be the name of a snapshot: give 1 to 200 bytes without '@', '/' and control \
             characters, other than '.' and '..'",
            name.escape_debug()
        )));
    }
    match find_snapshot(location, name, patience).await {
        Err(Error::NoSnapshot { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            Err(Error::SnapshotExists { url: location.url().to_owned(), name: name.to_owned() })
        }
    }
}

/// Does something to a volume: by the server that has it open, or by opening it for a moment.
async fn ask(location: &Location, request: Request) -> Result<(), Error> {
    // Without the key it is not known whether a server has it.
    encryption::of(location, &descriptor(location, PATIENCE).await?)?;
    let info = info(location).await?;
    if let Some(writer) = info.writer.filter(|writer| writer.open) {
        let who = format!("process {} on {}", writer.process, writer.host);
        return mailbox::ask(location, request, &who).await;
    }
    let options = Options { object_cache: 8 << 20, cache: 1 << 20, ..Options::default() };
    let volume = Volume::open(location, &options).await?;
    let done = request.carry_out(&volume).await;
    let closed = volume.close().await;
    done.and(closed)
}

/// Makes a snapshot of a volume. A server that has it open makes it, after it has uploaded everything that it had
/// answered; it looks for such requests once in a fifth of its [lease](Options::lease). The name is one of
/// [`Volume::snapshot`].
///
/// Has to be awaited in a tokio runtime. Not cancel-safe: one that is dropped may have made it.
///
/// # Errors
/// As [`inspect`](super::inspect); [`Error::SnapshotExists`]; [`Error::Invalid`] when the name can't be one of a snapshot;
/// [`Error::Server`] when the server can't make it; [`Error::Busy`] when the server that has the volume open does not
/// answer for two minutes.
pub async fn snapshot(location: &Location, name: &str) -> Result<(), Error> {
    descriptor(location, PATIENCE).await?;
    location.check_access(Use::Write, PATIENCE).await?;
    check_new_snapshot(location, name, PATIENCE).await?;
    ask(location, Request::Snapshot { name: name.to_owned() }).await
}

/// Changes the size of a volume, from 1 to 2^63 - 1 bytes. What is cut off is gone, and reads as zeroes if the volume
/// grows again. A server that has it open does it; its clients keep the size that they know unless they asked for
/// `RESIZE`.
///
/// Has to be awaited in a tokio runtime. Not cancel-safe: one that is dropped may have changed the size, or begun to.
///
/// # Errors
/// As [`inspect`](super::inspect); [`Error::Invalid`] when the size is out of range; [`Error::Server`] when the server
/// fails; [`Error::Busy`] when the server that has the volume open does not answer for two minutes.
pub async fn resize(location: &Location, size: u64) -> Result<(), Error> {
    super::NewVolume::of_size(size).check()?;
    descriptor(location, PATIENCE).await?;
    location.check_access(Use::Write, PATIENCE).await?;
    ask(location, Request::Resize { size }).await
}

/// Makes a new volume of what another one, or a snapshot of it, holds. Copies nothing but what was written lately:
/// the new one reads the other one's objects, which can't be deleted before it. It has the other one's block size and
/// key.
///
/// Has to be awaited in a tokio runtime. Not cancel-safe: one that is dropped may leave a part, which can be deleted,
/// and a snapshot `clone-...` of the other one.
///
/// # Errors
/// [`Error::Invalid`] when they are in different stores, [`Error::Exists`] when there is a volume at `to`,
/// [`Error::Nested`] when there is one above or below it, [`Error::NoSnapshot`]; the rest as [`snapshot`].
pub async fn clone(from: &Location, snapshot: Option<&str>, to: &Location) -> Result<(), Error> {
    if !from.is_same_store(to) {
        return Err(Error::Invalid(format!(
            "{to} is in another store than {from}, and a clone shares its origin's objects: choose a URL in the same one, or \
             copy the volume with nbd copy"
        )));
    }
    let origin = descriptor(from, PATIENCE).await?;
    from.check_access(Use::Write, PATIENCE).await?;
    let id = super::create::new_id()?;
    // A server's latest data is in its log, which is not part of what a clone sees: a snapshot is.
    let passing = format!("clone-{id}");
    let name = match snapshot {
        Some(name) => name,
        None => {
            ask(from, Request::Snapshot { name: passing.clone() }).await?;
            &passing
        }
    };
    let made = clone_snapshot(from, name, to, Descriptor { id, ..origin }).await;
    if snapshot.is_none() {
        let removed = super::delete_snapshot(from, &passing).await;
        return made.and(removed);
    }
    made
}

async fn clone_snapshot(
    from: &Location,
    name: &str,
    to: &Location,
    descriptor: Descriptor,
) -> Result<(), Error> {
    let checkpoint = find_snapshot(from, name, PATIENCE).await?;
    super::create::store_new(to, &descriptor).await?;
    let admin = database::admin(to);
    let source = CloneSourceSpec::with_checkpoint(from.database(), checkpoint.id);
    let cloning =
        admin.create_clone_builder_from_source(source).with_system_clock(database::clock()).build();
    within(to, "make a clone at", PATIENCE, cloning).await
}
