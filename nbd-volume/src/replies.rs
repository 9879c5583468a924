//! Bodies of replies that are read as a whole. A store may send without end, and an object of ours may be replaced by
//! anything: more than what is expected is not received.

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{Error, GetResult, ObjectStore, ObjectStoreExt as _, Result, UpdateVersion};

/// Bytes of one of our own objects beside the database, at most: all of them are a few hundred bytes long.
const MAX_RECORD: u64 = 64 << 10;

/// The body of a reply, or the first `max + 1` bytes of a longer one.
pub(crate) async fn body(reply: GetResult, max: u64) -> Result<Bytes> {
    let max = usize::try_from(max).unwrap_or(usize::MAX);
    let mut chunks = reply.into_stream();
    let mut bytes = BytesMut::new();
    while bytes.len() <= max
        && let Some(chunk) = chunks.next().await
    {
        bytes.extend_from_slice(&chunk?);
    }
    bytes.truncate(max.saturating_add(1));
    Ok(bytes.freeze())
}

/// One of our own objects, with what tells its versions apart. None if there is none; its beginning if it is much longer
/// than any that we write.
pub(crate) async fn record(
    store: &dyn ObjectStore,
    path: &Path,
) -> Result<Option<(Bytes, UpdateVersion)>> {
    match store.get(path).await {
        Ok(reply) => {
            let (e_tag, version) = (reply.meta.e_tag.clone(), reply.meta.version.clone());
            let bytes = body(reply, MAX_RECORD).await?;
            Ok(Some((bytes, UpdateVersion { e_tag, version })))
        }
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
