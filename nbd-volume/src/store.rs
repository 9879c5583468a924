//! The object store, with an account of what it was asked for and of its failures.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, io};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
    UploadPart,
};
use tokio::time::Instant;

use crate::error::{chain, rooted};
use crate::folder::InFolder;
use crate::outage::Outage;

/// What a store was asked for. What the client library repeats by itself counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Requests that write an object or a part of one.
    pub puts: u64,
    /// Bytes of those.
    pub put_bytes: u64,
    /// Requests that read an object, a part of one, or its metadata.
    pub gets: u64,
    /// Bytes of those, as far as they were asked for.
    pub get_bytes: u64,
    /// Requests that list objects.
    pub lists: u64,
    /// Requests that delete an object.
    pub deletes: u64,
}

/// A store that remembers its failures.
#[derive(Debug)]
pub(crate) struct Watched {
    inner: Arc<dyn ObjectStore>,
    record: Arc<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// Which store that is.
    store: String,
    puts: AtomicU64,
    put_bytes: AtomicU64,
    gets: AtomicU64,
    get_bytes: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    /// The failures since something of the kind succeeded, by kind.
    outages: [Mutex<Outage>; Kind::COUNT],
}

/// Kinds of requests, of which a store may fail some and not others: one that is full, is read-only by now, or lacks a
/// permission.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    Delete,
}

impl Kind {
    const COUNT: usize = 3;

    /// What is said of requests of the kind when they fail, and when they succeed again.
    const fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Read => ("requests to", "answers again"),
            Self::Write => ("writes to", "takes writes again"),
            Self::Delete => ("deletions in", "deletes again"),
        }
    }
}

impl Watched {
    /// A store that is called `name` in the log.
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, name: &str) -> Self {
        let record = Record { store: name.to_owned(), ..Record::default() };
        Self { inner, record: Arc::new(record) }
    }

    /// The same store with the same account, in which the directory at `path`, which is `prefix`, stays the one that it is.
    pub(crate) fn in_folder(&self, path: &FilePath, prefix: &Path) -> io::Result<Self> {
        let inner = InFolder::open(Arc::clone(&self.inner), path, prefix)?;
        let inner = inner.map_or_else(|| Arc::clone(&self.inner), |inner| Arc::new(inner) as _);
        Ok(Self { inner, record: Arc::clone(&self.record) })
    }

    /// What the store was asked for.
    pub(crate) fn traffic(&self) -> Traffic {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let record = &self.record;
        Traffic {
            puts: get(&record.puts),
            put_bytes: get(&record.put_bytes),
            gets: get(&record.gets),
            get_bytes: get(&record.get_bytes),
            lists: get(&record.lists),
            deletes: get(&record.deletes),
        }
    }

    /// The latest failure that a client may have waited for, for so long until now, unless something of its kind succeeded
    /// since.
    pub(crate) fn failure_within(&self, duration: Duration) -> Option<String> {
        let failure = |kind| self.record.outage(kind).failure().cloned();
        let failures = [failure(Kind::Write), failure(Kind::Read)].into_iter().flatten();
        let (at, text) = failures.max_by_key(|(at, _)| *at)?;
        (at.elapsed() <= duration).then_some(text)
    }
}

impl Record {
    fn outage(&self, kind: Kind) -> MutexGuard<'_, Outage> {
        self.outages[kind as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a request ended. That an object is there already, is not there, or was not changed is no failure, and what
    /// a store can't do at all tells nothing of how it is.
    async fn noted<T>(&self, kind: Kind, request: impl Future<Output = Result<T>>) -> Result<T> {
        let began = Instant::now();
        self.note(kind, began, request.await)
    }

    /// The same of what has ended.
    fn note<T>(&self, kind: Kind, began: Instant, result: Result<T>) -> Result<T> {
        let store = &self.store;
        let (requests, again) = kind.texts();
        match &result {
            Err(Error::NotImplemented { .. }) => {}
            Ok(_)
            | Err(
                Error::NotFound { .. }
                | Error::AlreadyExists { .. }
                | Error::Precondition { .. }
                | Error::NotModified { .. },
            ) => {
                let lasted = self.outage(kind).ended(Instant::now());
                if let Some(lasted) = lasted {
                    tracing::warn!("{store} {again}, after {} s", lasted.as_secs());
                }
            }
            Err(error) => {
                let reason = rooted(store, chain(error));
                let is_news = self.outage(kind).goes_on(began, Instant::now(), &reason);
                if is_news {
                    tracing::warn!("{requests} {store} fail, and are repeated: {reason}");
                }
            }
        }
        result
    }

    fn count(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        Record::count(&self.record.puts, 1);
        Record::count(&self.record.put_bytes, payload.content_length() as u64);
        self.record.noted(Kind::Write, self.inner.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Record::count(&self.record.puts, 1);
        let upload = self
            .record
            .noted(Kind::Write, self.inner.put_multipart_opts(location, options))
            .await?;
        Ok(Box::new(WatchedUpload { inner: upload, record: Arc::clone(&self.record) }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        Record::count(&self.record.gets, 1);
        let head = options.head;
        let result = self.record.noted(Kind::Read, self.inner.get_opts(location, options)).await?;
        if !head {
            Record::count(&self.record.get_bytes, result.range.end - result.range.start);
        }
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        Record::count(&self.record.gets, 1);
        let bytes = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        Record::count(&self.record.get_bytes, bytes);
        self.record.noted(Kind::Read, self.inner.get_ranges(location, ranges)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (record, began) = (Arc::clone(&self.record), Instant::now());
        let deleted = self.inner.delete_stream(locations);
        deleted
            .map(move |result| {
                Record::count(&record.deletes, 1);
                record.note(Kind::Delete, began, result)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        Record::count(&self.record.lists, 1);
        let (record, began) = (Arc::clone(&self.record), Instant::now());
        self.inner.list(prefix).map(move |result| record.note(Kind::Read, began, result)).boxed()
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        Record::count(&self.record.lists, 1);
        let (record, began) = (Arc::clone(&self.record), Instant::now());
        let listed = self.inner.list_with_offset(prefix, offset);
        listed.map(move |result| record.note(Kind::Read, began, result)).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        Record::count(&self.record.lists, 1);
        self.record.noted(Kind::Read, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        Record::count(&self.record.puts, 1);
        self.record.noted(Kind::Write, self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        Record::count(&self.record.puts, 1);
        self.record.noted(Kind::Write, self.inner.rename_opts(from, to, options)).await
    }
}

/// An upload whose parts count.
#[derive(Debug)]
struct WatchedUpload {
    inner: Box<dyn MultipartUpload>,
    record: Arc<Record>,
}

#[async_trait]
impl MultipartUpload for WatchedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        Record::count(&self.record.puts, 1);
        Record::count(&self.record.put_bytes, data.content_length() as u64);
        let record = Arc::clone(&self.record);
        let part = self.inner.put_part(data);
        Box::pin(async move { record.noted(Kind::Write, part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        Record::count(&self.record.puts, 1);
        self.record.noted(Kind::Write, self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
mod tests {
    use nbd_testkit::cases;

    use super::*;

    /// Whatever else succeeds: a store that can be read may be full, or read-only by now.
    #[test]
    fn an_outage_goes_on_until_something_of_its_kind_succeeds() {
        cases(100, |random| {
            let watched = Watched::new(Arc::new(object_store::memory::InMemory::new()), "s");
            // Of reads, and of writes: what is deleted, nobody waits for.
            let mut latest = [None, None];
            for number in 0..20 {
                let kind = random.of(&[Kind::Read, Kind::Write, Kind::Delete]);
                let fails = random.one_in(2).then(|| format!("failure {number:02}"));
                let result = match fails.clone() {
                    Some(text) => Err(Error::Generic { store: "s", source: text.into() }),
                    None => Ok(()),
                };
                drop(watched.record.note(kind, Instant::now(), result));
                if let Some(latest) = latest.get_mut(kind as usize) {
                    *latest = fails;
                }
                let expected = latest.iter().flatten().max();
                match (expected, watched.failure_within(Duration::from_secs(60))) {
                    (None, None) => {}
                    (Some(text), Some(failure)) => assert!(failure.contains(text), "{failure}"),
                    (expected, found) => panic!("{expected:?} {found:?}"),
                }
            }
        });
    }
}
