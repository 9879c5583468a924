//! A store that delays, fails, and loses replies.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use nbd_testkit::Random;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
    Result,
};

/// The way of one server to a store that several may share: it can be cut, as by a crash of that server.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    random: Mutex<Random>,
    pub(crate) faults: Faults,
    /// Nothing gets through any more, and nothing is answered.
    cut: AtomicBool,
    /// Every request fails.
    away: AtomicBool,
    /// Every request that writes fails.
    read_only: AtomicBool,
    /// Milliseconds that each put takes.
    pub(crate) slow_puts: AtomicU64,
    /// An object can't be replaced by a condition.
    pub(crate) no_updates: AtomicBool,
    /// Replies have memory of their own, as those of a store elsewhere.
    pub(crate) copies: AtomicBool,
    /// Requests that write which got through.
    pub(crate) puts: AtomicU64,
    /// What was read: which object, and where the part ends that was asked for.
    pub(crate) gets: Mutex<Vec<(Path, u64)>>,
}

/// How often things go wrong: one in so many, or never for 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) fails: u64,
    pub(crate) loses_reply: u64,
    /// Milliseconds that a request or its reply takes at most.
    pub(crate) delay: u64,
    /// The body of a reply breaks off.
    pub(crate) cuts: u64,
}

impl Faulty {
    pub(crate) fn new(inner: &Arc<dyn ObjectStore>, random: Random, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::clone(inner),
            random: Mutex::new(random),
            faults,
            cut: AtomicBool::new(false),
            away: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            slow_puts: AtomicU64::new(0),
            no_updates: AtomicBool::new(false),
            copies: AtomicBool::new(false),
            puts: AtomicU64::new(0),
            gets: Mutex::default(),
        })
    }

    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Release);
    }

    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Ordering::Release);
    }

    fn one_in(&self, count: u64) -> bool {
        count > 0 && self.random.lock().unwrap().below(count) == 0
    }

    async fn pass(&self) -> Result<()> {
        if self.faults.delay > 0 {
            let delay = self.random.lock().unwrap().below(self.faults.delay + 1);
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if self.cut.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
        if self.away.load(Ordering::Acquire) {
            return Err(failure("the store is away"));
        }
        Ok(())
    }

    /// A request goes to the store.
    async fn before(&self) -> Result<()> {
        self.pass().await?;
        match self.one_in(self.faults.fails) {
            true => Err(failure("the request was lost")),
            false => Ok(()),
        }
    }

    /// The same of one that writes.
    async fn before_write(&self) -> Result<()> {
        self.before().await?;
        match self.read_only.load(Ordering::Acquire) {
            true => Err(failure("the store is read-only")),
            false => Ok(()),
        }
    }

    /// Its reply comes back.
    async fn after<T>(&self, result: Result<T>) -> Result<T> {
        self.pass().await?;
        match self.one_in(self.faults.loses_reply) {
            true => Err(failure("the reply was lost")),
            false => result,
        }
    }
}

fn failure(text: &'static str) -> Error {
    Error::Generic { store: "faulty", source: text.into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a faulty store")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.before_write().await?;
        if matches!(options.mode, PutMode::Update(_)) && self.no_updates.load(Ordering::Acquire) {
            return Err(Error::NotImplemented {
                operation: "put_opts".into(),
                implementer: "faulty".into(),
            });
        }
        let slow = Duration::from_millis(self.slow_puts.load(Ordering::Acquire));
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        self.puts.fetch_add(1, Ordering::Relaxed);
        let result = self.inner.put_opts(path, payload, options).await;
        self.after(result).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.before_write().await?;
        let result = self.inner.put_multipart_opts(path, options).await;
        self.after(result).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if let Some(GetRange::Bounded(range)) = &options.range {
            self.gets.lock().unwrap().push((path.clone(), range.end));
        }
        self.before().await?;
        let result = self.inner.get_opts(path, options).await;
        let result = self.after(result).await?;
        let (is_cut, is_copied) =
            (self.one_in(self.faults.cuts), self.copies.load(Ordering::Acquire));
        if !is_cut && !is_copied {
            return Ok(result);
        }
        let (meta, range, attributes) =
            (result.meta.clone(), result.range.clone(), result.attributes.clone());
        let extensions = result.extensions.clone();
        let mut bytes = Bytes::copy_from_slice(&result.bytes().await?);
        if !is_cut {
            let stream = futures_util::stream::iter([Ok(bytes)]);
            let payload = object_store::GetResultPayload::Stream(stream.boxed());
            return Ok(GetResult { payload, meta, range, attributes, extensions });
        }
        let random = self.random.lock().unwrap().below(2 * bytes.len() as u64 + 1);
        bytes.truncate(random as usize / 2);
        // With an error, or without one.
        let broken = random.is_multiple_of(2).then(|| Err(failure("the reply broke off")));
        let stream = futures_util::stream::iter([Ok(bytes)].into_iter().chain(broken));
        let payload = object_store::GetResultPayload::Stream(stream.boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let ends = ranges.iter().map(|range| (path.clone(), range.end));
        self.gets.lock().unwrap().extend(ends);
        self.before().await?;
        let result = self.inner.get_ranges(path, ranges).await;
        self.after(result).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.cut.load(Ordering::Acquire) {
            true => futures_util::stream::pending().boxed(),
            false => self.inner.delete_stream(paths),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.cut.load(Ordering::Acquire) {
            return futures_util::stream::pending().boxed();
        }
        let listed = self.inner.list(prefix);
        // One that breaks off, rather than one that lies about what there is: no store does that.
        if self.away.load(Ordering::Acquire) || self.one_in(self.faults.fails) {
            let error = futures_util::stream::once(async { Err(failure("the listing broke off")) });
            return listed.take(1).chain(error).boxed();
        }
        listed
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.before().await?;
        let result = self.inner.list_with_delimiter(prefix).await;
        self.after(result).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.before_write().await?;
        let result = self.inner.copy_opts(from, to, options).await;
        self.after(result).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.before_write().await?;
        let result = self.inner.rename_opts(from, to, options).await;
        self.after(result).await
    }
}
