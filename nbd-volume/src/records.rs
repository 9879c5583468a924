//! What a volume says of itself: reading and storing it.

use core::time::Duration;

use bytes::Bytes;
use object_store::{ObjectStore as _, PutMode, PutOptions};

use crate::database::Database;
use crate::layout::{
    DESCRIPTOR, Descriptor, FORMAT, FormatOnly, SIZE_KEY, Size, WRITER_KEY, WriterRecord,
    is_block_size, is_identity,
};
use crate::patience::{patiently, within};
use crate::replies::record;
use crate::{Error, Location};

/// What the volume is.
pub(crate) async fn descriptor(
    location: &Location,
    patience: Duration,
) -> Result<Descriptor, Error> {
    let url = location.url();
    let damaged = |what: String| Error::Damaged { url: url.to_owned(), what };
    let (store, path) = (location.store(), location.object(DESCRIPTOR));
    let read = patiently(location, "open", patience, async || record(&*store, &path).await).await?;
    let (bytes, _) = read.ok_or_else(|| Error::NotFound { url: url.to_owned() })?;
    let format: FormatOnly = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("{DESCRIPTOR} is not understood: {error}")))?;
    if format.format == 0 || format.format > FORMAT {
        let found = format.format;
        return Err(Error::Format { url: url.to_owned(), found, known: FORMAT });
    }
    let descriptor: Descriptor = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("{DESCRIPTOR} is not understood: {error}")))?;
    if !is_block_size(descriptor.block_size) {
        return Err(damaged(format!("a block size of {} bytes", descriptor.block_size)));
    }
    if !is_identity(&descriptor.id) {
        let id = descriptor.id.escape_debug();
        return Err(damaged(format!("{DESCRIPTOR} has the identity '{id:.80}'")));
    }
    Ok(descriptor)
}

/// Whether the store refuses to overwrite an object when it is asked to: all that keeps two writers apart rests on
/// that.
pub(crate) async fn check_conditional_writes(
    location: &Location,
    descriptor: &Descriptor,
    patience: Duration,
) -> Result<(), Error> {
    match store_descriptor(location, descriptor, patience).await {
        Err(Error::Exists { .. }) => Ok(()),
        // What it has overwritten is the same.
        Ok(()) => Err(Error::Unconditional { url: location.url().to_owned() }),
        Err(error) => Err(error),
    }
}

/// Stores what a volume is, unless there is one.
pub(crate) async fn store_descriptor(
    location: &Location,
    descriptor: &Descriptor,
    patience: Duration,
) -> Result<(), Error> {
    let (store, path) = (location.store(), location.object(DESCRIPTOR));
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    let bytes = encoded(descriptor);
    let url = || location.url().to_owned();
    patiently(location, "write to", patience, async || {
        match store.put_opts(&path, bytes.clone().into(), options.clone()).await {
            Ok(_) => Ok(Ok(())),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(Err(Error::Exists { url: url() })),
            Err(
                object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. },
            ) => Ok(Err(Error::Unconditional { url: url() })),
            // There is nothing else that could be missing.
            Err(object_store::Error::NotFound { .. }) => Ok(Err(Error::Store {
                url: url(),
                doing: "write to",
                reason: "there is no such bucket or container: make it by the store's own tools"
                    .into(),
            })),
            Err(error) => Err(error),
        }
    })
    .await?
}

/// The size of the volume.
pub(crate) async fn size(
    location: &Location,
    database: &Database,
    patience: Duration,
) -> Result<u64, Error> {
    let url = location.url();
    let value = within(location, "open", patience, database.get(SIZE_KEY)).await?;
    let damaged = |what: String| Error::Damaged { url: url.to_owned(), what };
    let value = value
        .ok_or_else(|| damaged("it has no size; was nbd volume create interrupted?".into()))?;
    let Size { size } = serde_json::from_slice(&value)
        .map_err(|error| damaged(format!("its size is not understood: {error}")))?;
    if i64::try_from(size).is_err() || size == 0 {
        return Err(damaged(format!("a size of {size} bytes")));
    }
    Ok(size)
}

/// Who writes, or wrote last.
pub(crate) async fn writer(
    location: &Location,
    database: &Database,
    patience: Duration,
) -> Result<Option<WriterRecord>, Error> {
    let value = within(location, "open", patience, database.get(WRITER_KEY)).await?;
    // What is not understood is from a later version, which may be running.
    Ok(value.map(|value| {
        serde_json::from_slice(&value).unwrap_or_else(|_| WriterRecord {
            volume: String::new(),
            host: "an unknown host".into(),
            pid: 0,
            open: true,
            lease: 0,
            since: 0,
        })
    }))
}

/// Bytes as digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use core::fmt::Write as _;
    let mut digits = String::new();
    for byte in bytes {
        // Writing to a string does not fail.
        let _written = write!(digits, "{byte:02x}");
    }
    digits
}

/// A record as it is stored.
pub(crate) fn encoded(record: &impl serde::Serialize) -> Bytes {
    // Records of texts and numbers can't fail to be written.
    serde_json::to_vec(record).unwrap_or_default().into()
}
