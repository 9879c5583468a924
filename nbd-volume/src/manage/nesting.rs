//! Volumes don't lie inside of others: one that is deleted takes everything below its prefix with it.

use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt as _};

use super::PATIENCE;
use crate::layout::DESCRIPTOR;
use crate::patience::{patiently, too_late};
use crate::{Error, Location};

/// Refuses a location for a new volume that is above or below another one.
pub(super) async fn check_alone(location: &Location) -> Result<(), Error> {
    if let Some(other) = outer(location).await? {
        return Err(nested(location, &other, "choose a URL that is not below that one"));
    }
    match inner(location).await? {
        Some(other) => Err(nested(location, &other, "choose a URL that is not above that one")),
        None => Ok(()),
    }
}

/// Refuses to delete a volume with another one below it, as earlier versions made them.
pub(super) async fn check_empty(location: &Location) -> Result<(), Error> {
    match inner(location).await? {
        Some(other) => Err(nested(location, &other, "delete that one first, or keep both")),
        None => Ok(()),
    }
}

fn nested(location: &Location, other: &Path, remedy: &'static str) -> Error {
    let other = location.at(other).url().to_owned();
    Error::Nested { url: location.url().to_owned(), other, remedy }
}

/// The volume that this location is inside of.
async fn outer(location: &Location) -> Result<Option<Path>, Error> {
    let store = location.store();
    let parts: Vec<_> = location.prefix().parts().collect();
    for length in 1..parts.len() {
        let folder = Path::from_iter(parts[..length].iter().cloned());
        let descriptor = folder.clone().join(DESCRIPTOR);
        let found = patiently(location, "look around", PATIENCE, async || {
            match store.head(&descriptor).await {
                Ok(_) => Ok(true),
                // Those who may not look there have made no volume there either.
                Err(
                    StoreError::NotFound { .. }
                    | StoreError::PermissionDenied { .. }
                    | StoreError::Unauthenticated { .. },
                ) => Ok(false),
                Err(error) => Err(error),
            }
        });
        if found.await? {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

/// A volume that is inside of this location.
async fn inner(location: &Location) -> Result<Option<Path>, Error> {
    let own = location.object(DESCRIPTOR);
    let store = location.store();
    let mut objects = store.list(Some(location.prefix())).try_filter(|object| {
        let is_other = object.location.filename() == Some(DESCRIPTOR) && object.location != own;
        core::future::ready(is_other)
    });
    let found = tokio::time::timeout(PATIENCE, objects.try_next()).await;
    let found = found.map_err(|_| too_late(location, "list", PATIENCE))?;
    let found = found.map_err(|error| Error::store(location.url(), "list", &error))?;
    Ok(found.map(|object| {
        let parts: Vec<_> = object.location.parts().collect();
        Path::from_iter(parts[..parts.len() - 1].iter().cloned())
    }))
}
