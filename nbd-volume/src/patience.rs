//! How long the store may take.

use core::future::Future;
use core::time::Duration;

use object_store::Error as Kind;
use tokio::time::timeout;

use crate::{Error, Location};

/// Awaits something that SlateDB does, for so long at most.
pub(crate) async fn within<T>(
    location: &Location,
    doing: &'static str,
    patience: Duration,
    future: impl Future<Output = Result<T, slatedb::Error>>,
) -> Result<T, Error> {
    match timeout(patience, future).await {
        Ok(result) => result.map_err(|error| Error::database(location.url(), doing, &error)),
        Err(_) => Err(too_late(location, doing, patience)),
    }
}

pub(crate) fn too_late(location: &Location, doing: &'static str, patience: Duration) -> Error {
    let failure = location.watched().failure();
    let failure = failure.as_deref().unwrap_or("the store does not answer, or is too slow");
    Error::Store {
        url: location.url().to_owned(),
        doing,
        reason: format!("gave up after {patience:?}: {failure}"),
    }
}

/// Repeats a request to the store until it succeeds, for so long at most. What would fail again in the same way is
/// not repeated.
pub(crate) async fn patiently<T>(
    location: &Location,
    doing: &'static str,
    patience: Duration,
    mut request: impl AsyncFnMut() -> object_store::Result<T>,
) -> Result<T, Error> {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);
    let repeating = async {
        let mut pause = FIRST;
        loop {
            let error = match request().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if let Kind::NotFound { .. }
            | Kind::AlreadyExists { .. }
            | Kind::Precondition { .. }
            | Kind::InvalidPath { .. }
            | Kind::NotSupported { .. }
            | Kind::NotImplemented { .. }
            | Kind::PermissionDenied { .. }
            | Kind::Unauthenticated { .. }
            | Kind::UnknownConfigurationKey { .. } = error
            {
                return Err(Error::store(location.url(), doing, &error));
            }
            tracing::info!(volume = %location, %error, "cannot {doing} the volume, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    };
    match timeout(patience, repeating).await {
        Ok(result) => result,
        Err(_) => Err(too_late(location, doing, patience)),
    }
}
