//! Looking at volumes.

use futures_util::TryStreamExt;
use slatedb::DbReaderMode;

use super::PATIENCE;
use crate::database::{self, Database};
use crate::encryption;
use crate::fences::Fences;
use crate::folder::Use;
use crate::layout::{DESCRIPTOR, Descriptor, WriterRecord};
use crate::patience::{too_late, within};
use crate::records::{descriptor, size, writer};
use crate::{Error, Location, Options, manifest, wal};

/// What is known of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Where it lies.
    pub url: String,
    /// Its size in bytes, as clients see it. None for one that is encrypted, without its key or with another one.
    pub size: Option<u64>,
    /// Bytes of a block.
    pub block_size: u32,
    /// The format that it has in the store.
    pub format: u32,
    /// Whether its data is encrypted by this crate.
    pub encrypted: bool,
    /// Bytes of the objects below its prefix: of the data, of what was overwritten and is not collected yet, and of
    /// what only snapshots have. What a clone shares with its origin counts there.
    pub stored: u64,
    /// How many objects those are.
    pub objects: u64,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Who has it open, or had it open last. None if nobody ever had, and without the key.
    pub writer: Option<Writer>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970 by the clock of the server that made it.
    pub created: i64,
}

/// A server that has a volume open, or had.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Writer {
    /// The name of its machine.
    pub host: String,
    /// The process there.
    pub process: u32,
    /// Whether it has not closed the volume: it runs, or it crashed.
    pub open: bool,
    /// When it opened or closed the volume, in seconds since 1970 by its clock.
    pub since: u64,
}

/// What is known of a volume. Lists all of its objects, which takes a request for each 1000, and disturbs no server.
///
/// Has to be awaited in a tokio runtime. Cancel-safe.
///
/// # Errors
/// [`Error::NotFound`], [`Error::Format`] and [`Error::Damaged`] when there is no volume that can be read,
/// [`Error::Refused`] or [`Error::Store`] when the store does not answer, a minute for each step.
pub async fn info(location: &Location) -> Result<Info, Error> {
    let descriptor = descriptor(location, PATIENCE).await?;
    location.check_access(Use::Read, PATIENCE).await?;
    let (size, writer) = match read(location, &descriptor).await {
        Ok((size, writer)) => (Some(size), writer),
        Err(Error::NoKey { .. } | Error::WrongKey { .. }) => (None, None),
        Err(Error::Damaged { url, what }) => {
            let names = match snapshots(location).await {
                Ok(snapshots) => Vec::from_iter(snapshots.into_iter().map(|one| one.name)),
                // That it is damaged is what there is to say.
                Err(_) => Vec::new(),
            };
            let has = match names.is_empty() {
                true => String::new(),
                false => format!("; it has the snapshots {}", names.join(", ")),
            };
            return Err(Error::Damaged { url, what: what + &has });
        }
        Err(error) => return Err(error),
    };
    let snapshots = snapshots(location).await?;
    let store = location.store();
    let listing = store
        .list(Some(location.prefix()))
        .try_fold((0, 0), async |(bytes, count), object| Ok((bytes + object.size, count + 1)));
    let listed = tokio::time::timeout(PATIENCE, listing);
    let listed = listed.await.map_err(|_| too_late(location, "list", PATIENCE))?;
    let (stored, objects) = listed.map_err(|error| Error::store(location.url(), "list", &error))?;
    Ok(Info {
        url: location.url().to_owned(),
        size,
        block_size: descriptor.block_size,
        format: descriptor.format,
        encrypted: descriptor.encryption.is_some(),
        stored,
        objects,
        snapshots,
        writer: writer.map(|writer| Writer {
            host: writer.host,
            process: writer.pid,
            open: writer.open,
            since: writer.since,
        }),
    })
}

/// The snapshots of a volume, oldest first.
async fn snapshots(location: &Location) -> Result<Vec<Snapshot>, Error> {
    let admin = database::admin(location);
    let checkpoints = within(location, "read", PATIENCE, admin.list_checkpoints(None)).await?;
    let named = checkpoints.into_iter().filter_map(|checkpoint| {
        let created = checkpoint.create_time.timestamp();
        checkpoint.name.map(|name| Snapshot { name, created })
    });
    let mut snapshots: Vec<Snapshot> = named.collect();
    snapshots.sort_by_key(|snapshot| snapshot.created);
    Ok(snapshots)
}

/// What the database says: the size, and who writes.
async fn read(
    location: &Location,
    descriptor: &Descriptor,
) -> Result<(u64, Option<WriterRecord>), Error> {
    let database = latest(location, descriptor).await?;
    let size = size(location, &database, PATIENCE).await?;
    let writer = own_writer(location, descriptor, &database).await?;
    close(database).await;
    Ok((size, writer))
}

/// Who has the volume open, or had it open last: clones have their origin's record, which is none of theirs.
pub(super) async fn own_writer(
    location: &Location,
    descriptor: &Descriptor,
    database: &Database,
) -> Result<Option<WriterRecord>, Error> {
    let writer = writer(location, database, PATIENCE).await?;
    Ok(writer.filter(|writer| writer.volume == descriptor.id || writer.volume.is_empty()))
}

/// Whether a volume, or one of its snapshots, is there, and the location has its key. Opens nothing, changes nothing, and
/// disturbs no server.
///
/// Has to be awaited in a tokio runtime. Cancel-safe.
///
/// # Errors
/// As [`info`] as far as that is found out by a look at the volume's descriptor, its manifest, and a list of its log,
/// [`Error::NoKey`] and [`Error::WrongKey`] for one that is encrypted, and [`Error::NoSnapshot`].
pub async fn inspect(location: &Location, snapshot: Option<&str>) -> Result<(), Error> {
    let descriptor = descriptor(location, PATIENCE).await?;
    location.check_access(Use::opening(snapshot), PATIENCE).await?;
    encryption::of(location, &descriptor)?;
    match snapshot {
        Some(name) => {
            manifest::latest(location, PATIENCE).await?;
            super::find_snapshot(location, name, PATIENCE).await.map(drop)
        }
        None => wal::check(location, &descriptor, PATIENCE).await,
    }
}

/// The database as it is in the store now.
pub(crate) async fn latest(
    location: &Location,
    descriptor: &Descriptor,
) -> Result<Database, Error> {
    let cipher = encryption::of(location, descriptor)?;
    let options = Options { object_cache: 8 << 20, ..Options::default() };
    wal::check(location, descriptor, PATIENCE).await?;
    let (mode, fences) = (DbReaderMode::FollowLatest, Fences::of(descriptor));
    let opening = database::read(location, mode, &options, None, cipher, fences);
    let reader = within(location, "read", PATIENCE, opening).await?;
    Ok(Database::reader(reader, &options))
}

pub(crate) async fn close(database: Database) {
    if let Some(reader) = database.as_reader()
        && let Err(error) = reader.close().await
    {
        tracing::debug!(error = crate::error::chain(&error), "a reader was not closed");
    }
}

/// The volumes at a location and below, in the order of their URLs; none where there is nothing. A request for each
/// folder on the way to them.
///
/// Has to be awaited in a tokio runtime. Cancel-safe.
///
/// # Errors
/// [`Error::Refused`] or [`Error::Store`] when the store can't be listed, or does not answer for a minute.
pub async fn list(location: &Location) -> Result<Vec<Location>, Error> {
    let store = location.store();
    let mut found = Vec::new();
    let mut folders = vec![location.prefix().clone()];
    while let Some(folder) = folders.pop() {
        let listing = store.list_with_delimiter(Some(&folder));
        let listed = tokio::time::timeout(PATIENCE, listing);
        let listed = listed.await.map_err(|_| too_late(location, "list", PATIENCE))?;
        let listed = listed.map_err(|error| Error::store(location.url(), "list", &error))?;
        let is_volume =
            |object: &object_store::ObjectMeta| object.location.filename() == Some(DESCRIPTOR);
        match listed.objects.iter().any(is_volume) {
            // Volumes don't contain others.
            true => found.push(location.at(&folder)),
            false => folders.extend(listed.common_prefixes),
        }
    }
    found.sort_by(|a, b| a.url().cmp(b.url()));
    Ok(found)
}
