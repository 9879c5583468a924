//! Objects that are disks by themselves, such as an image in a bucket or on a web server, for reading.
//!
//! An object is read by [requests for ranges](fetch) of parts of 64 KiB. Parts that somebody waits for, and those that
//! will soon be read in sequence, are [scheduled](schedule): neighbours come by one request. What came is kept in a
//! bounded [cache](parts). Each reply is compared with [what the object was](identity) when it was opened.

mod export;
mod fetch;
mod identity;
mod options;
mod parts;
mod read;
mod schedule;

use std::fmt;
use std::sync::Arc;

use object_store::{Attribute, GetOptions, GetRange, GetResult, ObjectStoreExt as _};
use tokio::runtime::Handle;

use crate::error::chain;
use crate::replies::body;
use crate::{Error, Location};
use identity::Identity;
pub use options::ObjectOptions;
use parts::PART;
use read::Shared;

/// An object of a store, or a file of a web server, as a disk that can only be read. Clones are the same disk.
///
/// It is an [`AsyncExport`](nbd_engine::export::AsyncExport). The futures of its requests can be driven by any
/// runtime; what waits for the store runs on the tokio runtime in which the object was opened, so that this has to last.
///
/// An object that changes while it is open is no disk any more: every reply is compared with the ETag, the time of
/// the last change and the size that the object had when it was opened, as far as the store reports them. When they
/// differ all requests fail with `EIO`, from then on. An object of 0 bytes is a disk of 0 bytes.
///
/// A read that is dropped leaves nothing undone: what it asked the store for goes to the cache. Nothing has to be
/// closed.
#[derive(Clone)]
pub struct Object(Arc<Shared>);

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({}, {} bytes)", self.0.location, self.0.identity.size())
    }
}

impl Object {
    /// Opens an object, by a request for its first 64 KiB. The location is one of
    /// [`Location::of_object`], or has the name of an object as its prefix.
    ///
    /// Has to be awaited in a tokio runtime. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::Refused`], [`Error::NoRanges`] and [`Error::Compressed`], and [`Error::Store`] when
    /// the store does not answer. A request that failed is repeated twice, not for as long as later ones.
    pub async fn open(location: &Location, options: &ObjectOptions) -> Result<Self, Error> {
        let store = location.store();
        let first = GetOptions { range: Some(GetRange::Bounded(0..PART)), ..GetOptions::default() };
        let first = async {
            let result = store.get_opts(location.prefix(), first).await?;
            let (identity, encoding) = (Identity::of(&result.meta), compression(&result));
            Ok((identity, encoding, body(result, PART).await?))
        };
        let (identity, encoding, bytes) = match first.await {
            Ok(opened) => opened,
            // There is no range of an object without bytes, and stores have different words for that.
            Err(error) => match without_bytes(location).await {
                Some(identity) => (identity, None, bytes::Bytes::new()),
                None => return Err(cannot_open(location, &error)),
            },
        };
        let url = || location.url().to_owned();
        if let Some(encoding) = encoding {
            return Err(Error::Compressed { url: url(), encoding });
        }
        if i64::try_from(identity.size()).is_err() {
            let reason = format!(
                "the server says that it has {} bytes, which are more than a disk can have, 2^63 - 1",
                identity.size()
            );
            return Err(Error::Store { url: url(), doing: "open", reason });
        }
        let expected = PART.min(identity.size());
        if bytes.len() as u64 != expected {
            let came = match bytes.len() as u64 > PART {
                true => "more bytes".to_owned(),
                false => format!("{} bytes", bytes.len()),
            };
            let reason = format!("{came} came where {expected} were asked for");
            return Err(Error::Store { url: url(), doing: "open", reason });
        }
        if identity.size() == 0 {
            tracing::warn!(object = %location, "the object is empty: it is a disk of 0 bytes");
        }
        if !identity.tells_changes() {
            tracing::warn!(
                object = %location,
                "the server reports neither an ETag nor the time of the last change: a change of the object may go unnoticed"
            );
        }
        let shared = Shared::new(location, identity, options, Handle::current());
        shared.parts.insert(0, bytes);
        Ok(Self(Arc::new(shared)))
    }

    /// Where the object lies: as it was given to [`open`](Self::open).
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.0.location
    }
}

/// What an object is that can be found to have no bytes. Some servers refuse to be asked for that alone, such as those of a
/// URL that is signed for reading, and are asked for all of it.
async fn without_bytes(location: &Location) -> Option<Identity> {
    let (store, path) = (location.store(), location.prefix());
    let meta = match store.head(path).await {
        Ok(meta) => meta,
        // Of which the beginning is looked at.
        Err(_) => store.get_opts(path, GetOptions::default()).await.ok()?.meta,
    };
    (meta.size == 0).then(|| Identity::of(&meta))
}

/// How the bytes of a reply are compressed, if they are: ranges are then of what is compressed.
fn compression(reply: &GetResult) -> Option<String> {
    let encoding = reply.attributes.get(&Attribute::ContentEncoding)?;
    let mut encodings = encoding.split(',').map(str::trim);
    // Clients of S3 that sign what they send in pieces leave "aws-chunked" behind, which says nothing of the object.
    let is_compressed = |encoding: &str| {
        !["", "identity", "aws-chunked"].iter().any(|plain| encoding.eq_ignore_ascii_case(plain))
    };
    encodings.find(|one| is_compressed(one)).map(|one| one.escape_debug().to_string())
}

/// What keeps an object from being opened, in words.
fn cannot_open(location: &Location, error: &object_store::Error) -> Error {
    use object_store::Error as Kind;
    let url = location.url().to_owned();
    match error {
        Kind::NotFound { .. } => Error::NoObject { url },
        Kind::NotSupported { .. } => Error::NoRanges { url },
        _ if chain(error).contains("non-partial response") => Error::NoRanges { url },
        _ => Error::store(&url, "open", error),
    }
}
