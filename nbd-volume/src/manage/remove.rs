//! Removing volumes and snapshots.

use core::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

use super::info::{close, latest, own_writer};
use super::nesting::check_empty;
use super::{PATIENCE, mailbox};
use crate::database;
use crate::folder::{FOLDERS, Use};
use crate::layout::{DESCRIPTOR, Descriptor};
use crate::patience::{patiently, too_late, within};
use crate::records::descriptor;
use crate::{Error, Location, manifest};

/// Deletes a volume with all of its snapshots, or the beginning of one, and all else that the store lists below its prefix,
/// whoever has put it there. In a local directory its folders are removed, too, as far as nothing else is in them. One
/// that is encrypted can be deleted without its key, and one that is damaged: then it may take some two minutes to find
/// out that no server has it open.
///
/// Has to be awaited in a tokio runtime. Not cancel-safe, but it can be called again.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Busy`] when a server has it open, or crashed: its volume has to be opened and closed
/// once; [`Error::Cloned`] when clones use its data; [`Error::Nested`] when another volume lies below it;
/// [`Error::Refused`] or [`Error::Store`] when the store does not answer, ten minutes for all of its objects.
pub async fn delete(location: &Location) -> Result<(), Error> {
    let descriptor = descriptor(location, PATIENCE).await?;
    location.check_access(Use::Remove, PATIENCE).await?;
    let server = match open_by(location, &descriptor).await {
        Ok(server) => server,
        // Nobody can have that open.
        Err(_) if remnant(location).await?.is_some() => None,
        // Who has it open can't be read, but whether somebody answers.
        Err(Error::NoKey { .. } | Error::WrongKey { .. } | Error::Damaged { .. }) => {
            let server = "a server that has it open";
            let is_open = mailbox::is_alive(location, server, SILENCE).await?;
            is_open.then(|| server.to_owned())
        }
        Err(error) => return Err(error),
    };
    if let Some(writer) = server {
        return Err(Error::Busy {
            url: location.url().to_owned(),
            writer,
            remedy: "end that server first; if it crashed, serve the volume once and end that server in order".into(),
        });
    }
    delete_closed(location).await
}

/// How long a server that has a volume open may take to say so: it looks for requests once in a fifth of its lease, which
/// is ten minutes at most.
const SILENCE: Duration = Duration::from_secs(125);

/// The server that has the volume open, or crashed.
async fn open_by(location: &Location, descriptor: &Descriptor) -> Result<Option<String>, Error> {
    let database = latest(location, descriptor).await?;
    let writer = own_writer(location, descriptor, &database).await;
    close(database).await;
    let writer = writer?.filter(|writer| writer.open);
    Ok(writer.map(|writer| format!("process {} on {}", writer.pid, writer.host)))
}

/// Deletes a volume that no server has open.
async fn delete_closed(location: &Location) -> Result<(), Error> {
    let admin = database::admin(location);
    let checkpoints = within(location, "read", PATIENCE, admin.list_checkpoints(None)).await;
    if !matches!(checkpoints, Err(Error::Damaged { .. })) {
        let checkpoints = checkpoints?;
        // Snapshots have names, and readers' checkpoints expire.
        let of_clones =
            checkpoints.iter().filter(|one| one.name.is_none() && one.expire_time.is_none());
        let clones = of_clones.count();
        if clones > 0 {
            return Err(Error::Cloned { url: location.url().to_owned(), clones });
        }
    }
    check_empty(location).await?;
    if let Err(error) = within(location, "delete", PATIENCE * 10, admin.delete_db(true)).await {
        // SlateDB takes it for no database.
        let Some(objects) = remnant(location).await? else { return Err(error) };
        for object in &objects {
            remove_object(location, object).await?;
        }
    }
    remove_object(location, &location.object(DESCRIPTOR)).await?;
    if let Some(folder) = location.folder() {
        remove_folders(&folder);
    }
    Ok(())
}

/// What there is of a database that was made, or deleted, in part: that has no manifest. None of one that has.
async fn remnant(location: &Location) -> Result<Option<Vec<Path>>, Error> {
    let store = location.store();
    let objects = store.list(Some(location.prefix())).map_ok(|object| object.location);
    let listed = tokio::time::timeout(PATIENCE, objects.try_collect::<Vec<_>>()).await;
    let listed = listed.map_err(|_| too_late(location, "list", PATIENCE))?;
    let mut objects = listed.map_err(|error| Error::store(location.url(), "list", &error))?;
    let folder_of = |object: &Path| {
        let mut below = object.prefix_match(location.prefix())?;
        below.next().map(|part| part.as_ref().to_owned())
    };
    objects.retain(|object| folder_of(object).is_some_and(|name| FOLDERS.contains(&&*name)));
    let has_manifest =
        objects.iter().any(|object| folder_of(object).as_deref() == Some(manifest::FOLDER));
    Ok((!has_manifest).then_some(objects))
}

async fn remove_object(location: &Location, object: &Path) -> Result<(), Error> {
    let store = location.store();
    patiently(location, "delete", PATIENCE, async || match store.delete(object).await {
        Err(object_store::Error::NotFound { .. }) => Ok(()),
        result => result,
    })
    .await
}

/// Removes the folders of a volume, as far as they are empty: files that the store does not list may lie there.
fn remove_folders(folder: &std::path::Path) {
    remove_unfinished(folder, |object| [DESCRIPTOR, mailbox::REQUEST].contains(&object));
    for name in FOLDERS {
        let folder = folder.join(name);
        // The objects of a database end so.
        remove_unfinished(&folder, |object| {
            [".sst", ".manifest", ".compactions", ".boundary"]
                .iter()
                .any(|end| object.ends_with(end))
        });
        // What is not there, or is not empty, stays as it is.
        let _removed = std::fs::remove_dir(folder);
    }
    let _removed = std::fs::remove_dir(folder);
}

/// Removes files that were to become one of these objects, and that a process which was killed has left: the store gives
/// them the object's name with `#` and a number behind it, and does not list them.
fn remove_unfinished(folder: &std::path::Path, is_ours: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some((object, number)) = name.to_str().and_then(|name| name.rsplit_once('#')) else {
            continue;
        };
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && is_ours(object) {
            // What can't be removed stays, with its folder.
            let _removed = std::fs::remove_file(entry.path());
        }
    }
}

/// Deletes a snapshot. Whether a server serves it can't be known. One that does goes on until data that nothing else needs
/// is collected, a day later or more; then reads of that data fail, and those of other data go on. Clones of it stay.
///
/// Has to be awaited in a tokio runtime. Not cancel-safe: one that is dropped may have deleted it.
///
/// # Errors
/// [`Error::NotFound`] and [`Error::NoSnapshot`] when there is none, [`Error::Refused`] or [`Error::Store`] when the
/// store does not answer, a minute for each step.
pub async fn delete_snapshot(location: &Location, name: &str) -> Result<(), Error> {
    descriptor(location, PATIENCE).await?;
    location.check_access(Use::Write, PATIENCE).await?;
    let checkpoint = super::find_snapshot(location, name, PATIENCE).await?;
    let admin = database::admin(location);
    within(location, "delete a snapshot of", PATIENCE, admin.delete_checkpoint(checkpoint.id)).await
}
