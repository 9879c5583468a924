//! The names of objects as SlateDB knows them.
//!
//! SlateDB makes some paths of what a path looks like as a text, and some by appending to the path. The former encodes
//! characters that stores had better not have (`%`, `~`, `#`, everything beyond ASCII, ...) once more, the latter does
//! not. A volume below a prefix with one of them would have its objects in two places, one of which may be another
//! volume's. So SlateDB is given paths without such characters, and its requests are translated on their way to the store:
//! all objects of a volume lie below the very prefix that its URL names.

use core::ops::Range;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use nbd_engine::counted;
use object_store::path::{Path, PathPart};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

use crate::error::chain;
use crate::fences::{self, FENCE, Fences};
use crate::store::Watched;

/// Objects of a database never change: one that ends before what is asked of it was cut off. SlateDB, which repeats what
/// may pass, is not to ask for that again and again.
fn for_good(error: Error) -> Error {
    let text = chain(&error);
    // What a directory, what disks in memory, and what object servers say.
    let says = ["range was invalid", "Invalid range", "status code: 416"];
    match says.iter().any(|words| text.contains(words)) {
        true => Error::NotSupported { source: format!("{CUT_OFF}: {text}").into() },
        false => error,
    }
}

/// An error for a table, or a part of the log, that is too short to be one. SlateDB takes it for an empty part of the log,
/// by which a writer fences others, and what it held for never written.
fn check_length(object: &ObjectMeta, fences: Fences) -> Result<()> {
    const SHORTEST: u64 = 11;
    let is_table = object.location.extension() == Some("sst");
    let is_cut = is_table && (1..SHORTEST).contains(&object.size);
    match is_cut || fences.is_emptied(object) {
        true => {
            let text =
                format!("{CUT_OFF}: {} has {} left", object.location, counted(object.size, "byte"));
            Err(Error::NotSupported { source: text.into() })
        }
        false => Ok(()),
    }
}

/// What is said of such an object.
pub(crate) const CUT_OFF: &str = "an object was cut off";

/// What begins a part of a path that is written otherwise than it is, and what begins a byte that is.
const MARK: char = '=';

/// Whether a byte is left as it is by all ways to make a path.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b' ' | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'+'
                | b','
                | b'-'
                | b'.'
                | b':'
                | b';'
                | b'='
                | b'@'
                | b'_'
        )
}

/// A path for SlateDB. Different paths have different ones, and those of plain characters are their own, unless a part
/// begins with the mark.
pub(crate) fn safe(path: &Path) -> Path {
    translated(path, encoded)
}

/// The path that is meant by one of SlateDB's.
pub(crate) fn real(path: &Path) -> Path {
    translated(path, |part| decoded(part).unwrap_or_else(|| part.to_owned()))
}

fn encoded(part: &str) -> String {
    if !part.starts_with(MARK) && part.bytes().all(is_plain) {
        return part.to_owned();
    }
    let mut safe = String::from(MARK);
    for byte in part.bytes() {
        match is_plain(byte) && byte != MARK as u8 {
            true => safe.push(char::from(byte)),
            false => safe.push_str(&format!("{MARK}{byte:02X}")),
        }
    }
    safe
}

/// What is meant by a part of a path. None if it is no other part's.
fn decoded(part: &str) -> Option<String> {
    let mut bytes = part.strip_prefix(MARK)?.bytes();
    let mut real = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != MARK as u8 {
            real.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        real.push(u8::try_from(high << 4 | low).ok()?);
    }
    String::from_utf8(real)
        .ok()
        .filter(|real| encoded(real) == part && PathPart::parse(real).is_ok())
}

fn translated(path: &Path, part: impl FnMut(&str) -> String) -> Path {
    let translated = path.as_ref().split('/').map(part).collect::<Vec<_>>().join("/");
    // A part is as it may be after the translation, too.
    Path::parse(translated).unwrap_or_else(|_| path.clone())
}

/// The store of a location as SlateDB sees it.
#[derive(Debug)]
pub(crate) struct Translated(Arc<Watched>, Fences);

impl Translated {
    pub(crate) const fn new(store: Arc<Watched>, fences: Fences) -> Self {
        Self(store, fences)
    }

    /// Whether an object is a fence that has bytes.
    async fn is_fence(&self, object: &ObjectMeta) -> Result<bool> {
        if !fences::may_be_fence(object) {
            return Ok(false);
        }
        let found = self.0.get_opts(&object.location, GetOptions::default()).await?;
        Ok(found.bytes().await? == FENCE)
    }
}

impl fmt::Display for Translated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

fn named(object: ObjectMeta) -> ObjectMeta {
    ObjectMeta { location: safe(&object.location), ..object }
}

fn listed(object: ObjectMeta) -> ObjectMeta {
    named(fences::listed(object))
}

#[async_trait]
impl ObjectStore for Translated {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let payload = self.1.stored(location, payload);
        self.0.put_opts(&real(location), payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(&real(location), options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let result = self.0.get_opts(&real(location), options).await.map_err(for_good)?;
        let result = match self.is_fence(&result.meta).await? {
            true => fences::without_bytes(result),
            false => {
                check_length(&result.meta, self.1)?;
                result
            }
        };
        Ok(GetResult { meta: named(result.meta), ..result })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.0.get_ranges(&real(location), ranges).await.map_err(for_good)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let locations = locations.map(|location| Ok(real(&location?))).boxed();
        self.0.delete_stream(locations).map(|location| Ok(safe(&location?))).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix.map(real).as_ref()).map(|object| Ok(listed(object?))).boxed()
    }

    /// The offset is compared with what the store has. SlateDB's are names in one folder, none of which is translated.
    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let objects = self.0.list_with_offset(prefix.map(real).as_ref(), &real(offset));
        objects.map(|object| Ok(listed(object?))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let found = self.0.list_with_delimiter(prefix.map(real).as_ref()).await?;
        Ok(ListResult {
            objects: found.objects.into_iter().map(listed).collect(),
            common_prefixes: found.common_prefixes.iter().map(safe).collect(),
            ..found
        })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(&real(from), &real(to), options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.0.rename_opts(&real(from), &real(to), options).await
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(text).unwrap()
    }

    #[test]
    fn plain_paths_are_their_own() {
        for text in ["volumes/mail", "srv/date=2024-01/a b/v.1", "", "it's/(x)/a@b,c;d:e+f!$&"] {
            assert_eq!(safe(&path(text)), path(text));
            assert_eq!(real(&path(text)), path(text));
        }
        assert_eq!(safe(&path("Bü/%41~=/=x/v")), path("=B=C3=BC/==2541=7E=3D/==3Dx/v"));
    }

    #[test]
    fn what_no_path_of_slatedbs_looks_like_is_left_as_it_is() {
        for text in ["=", "a/=4", "a/=ZZ", "==FF", "==2E", "==2E=2E/x", "==2Fx/==2F", "==00", "=a"]
        {
            assert_eq!(real(&path(text)), path(text));
        }
    }

    proptest! {
        #[test]
        fn a_safe_path_is_left_alone_by_each_way_to_make_paths_and_means_the_same(
            parts in prop::collection::vec("[a~%#=?*'\"{}|\\\\ .:ü€25-]{1,6}|\\PC{1,8}", 1..4),
        ) {
            let text = parts.join("/");
            let Ok(path) = Path::parse(&text) else { return Ok(()) };
            let safe = safe(&path);
            prop_assert_eq!(&Path::from(safe.as_ref()), &safe);
            prop_assert_eq!(&Path::from(format!("{safe}/wal")), &safe.clone().join("wal"));
            prop_assert_eq!(&real(&safe), &path);
            prop_assert_eq!(real(&safe.join("wal")), path.join("wal"));
        }
    }
}
