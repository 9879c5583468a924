//! How long the store may take.

use core::future::Future;
use core::time::Duration;

use tokio::time::timeout;

use crate::error::{chain, is_lasting};
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
    let failure = location.watched().failure_within(patience);
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
            if is_lasting(&error) {
                return Err(Error::store(location.url(), doing, &error));
            }
            // Not the error as it is: it may have a URL with a secret in it.
            let error = chain(&error);
            tracing::info!(volume = %location, error, "cannot {doing} the volume, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    };
    match timeout(patience, repeating).await {
        Ok(result) => result,
        Err(_) => Err(too_late(location, doing, patience)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn what_would_fail_again_is_not_repeated() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let location = Location::in_memory("v");
            for (text, repeated, expected) in [
                ("Received redirect without LOCATION, this", false, "AWS_REGION"),
                ("non-2xx status code: 400 Bad Request: <Code>ExpiredToken", false, "ExpiredToken"),
                ("non-2xx status code: 403 Forbidden: no", false, "credentials"),
                ("non-2xx status code: 400 Bad Request: <Code>RequestTimeout", true, "gave up"),
                ("non-2xx status code: 408 Request Timeout: ", true, "gave up"),
                ("non-2xx status code: 429 Too Many Requests: ", true, "gave up"),
                ("non-2xx status code: 503 Service Unavailable: ", true, "gave up"),
                ("connection refused", true, "gave up"),
            ] {
                let mut requests = 0;
                let patience = Duration::from_secs(60);
                let outcome = patiently(&location, "open", patience, async || {
                    requests += 1;
                    Err::<(), _>(failure(text))
                });
                let error = outcome.await.unwrap_err().to_string();
                assert_eq!(requests > 1, repeated, "{text}: {requests} requests");
                assert!(error.contains(expected), "{text}: {error}");
            }
        });
    }
}
