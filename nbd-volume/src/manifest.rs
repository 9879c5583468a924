//! The manifest of a volume: which tables and parts of the log it has.
//!
//! SlateDB makes a new database where it finds none, in place of one whose manifest is gone, and says of one that it can't
//! decode neither where it is nor that it is damaged. So it is looked at first.

use core::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::ObjectStore as _;
use slatedb::manifest::VersionedManifest;

use crate::database;
use crate::error::without_remedy;
use crate::patience::{patiently, within};
use crate::{Error, Location};

/// Where SlateDB has manifests.
pub(crate) const FOLDER: &str = "manifest";

/// The latest one.
///
/// # Errors
/// [`Error::Damaged`] when there is none, or it makes no sense; what the store says if it can't be looked at.
pub(crate) async fn latest(
    location: &Location,
    patience: Duration,
) -> Result<VersionedManifest, Error> {
    let admin = database::admin(location);
    let reason = match within(location, "read", patience, admin.read_manifest(None)).await {
        Ok(Some(manifest)) => return Ok(manifest),
        Ok(None) => None,
        Err(Error::Damaged { what, .. }) => Some(without_remedy(what)),
        Err(error) => return Err(error),
    };
    let folder = format!("{}/{FOLDER}", location.url().trim_end_matches('/'));
    let what = match (newest(location, patience).await?, reason) {
        (Some(name), Some(reason)) => format!(
            "{folder}/{name}, its newest manifest, can't be read: {reason}; restore it, such as from the bucket's versions"
        ),
        _ => format!(
            "it has no manifest in {folder}: restore that, such as from the bucket's versions; if the volume was not made to \
             its end, and nobody is about to make it, nbd volume delete removes what there is"
        ),
    };
    Err(Error::Damaged { url: location.url().to_owned(), what })
}

/// The name of the newest object.
async fn newest(location: &Location, patience: Duration) -> Result<Option<String>, Error> {
    let (store, folder) = (location.database_store(), location.database().join(FOLDER));
    let list = async || {
        let listed = store.list(Some(&folder));
        let name = |object: object_store::ObjectMeta| object.location.filename().map(str::to_owned);
        listed.map_ok(name).try_collect::<Vec<_>>().await
    };
    let listed = patiently(location, "read the manifest of", patience, list).await?;
    Ok(listed.into_iter().flatten().filter(|name| name.ends_with(".manifest")).max())
}
