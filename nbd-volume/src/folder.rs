//! The local directory that a volume is opened in: it has to be usable, and what is read and written goes by the open
//! directory from then on, and not by its path. A store makes directories that are missing, so that what is written behind one
//! that was moved or unmounted would be lost.

use core::ops::Range;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, Result, UploadPart,
};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, fstat, open, stat};
use rustix::io::Errno;

use crate::error::chain;
use crate::layout::DESCRIPTOR;
use crate::{manifest, wal};

/// The directories that SlateDB makes. The first ones are needed by who only reads.
pub(crate) const FOLDERS: [&str; 5] =
    [wal::FOLDER, manifest::FOLDER, "compacted", "compactions", "gc"];
const NEEDED: usize = 3;

/// Those whose files are needed to open a volume at all, and how these end. Of the others each is needed by who reads it.
const NEEDED_FILES: [(&str, &str); 2] = [(wal::FOLDER, "sst"), (manifest::FOLDER, "manifest")];

/// What is to be done with the files of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
    Remove,
}

impl Use {
    /// What opening a volume, or a snapshot of it, takes.
    pub(crate) const fn opening(snapshot: Option<&str>) -> Self {
        match snapshot {
            Some(_) => Self::Read,
            None => Self::Write,
        }
    }

    pub(crate) const fn verb(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write to",
            Self::Remove => "remove",
        }
    }
}

/// Whether this user can use the files of a volume so. Changes nothing. SlateDB would repeat for long what can't succeed. What
/// is not there is for others to report, and what is not a volume's is nobody's concern.
///
/// # Errors
/// The first one that can't be used, and why.
pub(crate) fn check_access(
    folder: &FilePath,
    how: Use,
) -> core::result::Result<(), (PathBuf, io::Error)> {
    let enter = Access::READ_OK | Access::EXEC_OK;
    let folders = if how == Use::Read { enter } else { enter | Access::WRITE_OK };
    check(folder, folders)?;
    let needed = if how == Use::Read { &FOLDERS[..NEEDED] } else { &FOLDERS };
    needed.iter().try_for_each(|name| check(&folder.join(name), folders))?;
    if how == Use::Remove {
        return Ok(());
    }
    check(&folder.join(DESCRIPTOR), Access::READ_OK)?;
    for (name, ending) in NEEDED_FILES {
        for entry in std::fs::read_dir(folder.join(name)).into_iter().flatten().flatten() {
            // Others are not complete.
            if entry.path().extension().is_some_and(|extension| extension == ending) {
                check(&entry.path(), Access::READ_OK)?;
            }
        }
    }
    Ok(())
}

fn check(path: &FilePath, access: Access) -> core::result::Result<(), (PathBuf, io::Error)> {
    match accessat(CWD, path, access, AtFlags::EACCESS) {
        // Some systems refuse the question.
        Err(error @ (Errno::ACCESS | Errno::ROFS)) => Err((path.to_owned(), error.into())),
        _ => Ok(()),
    }
}

/// Where the directories are that this process has open.
const OPEN: &str = "/proc/self/fd/";

/// A directory that is used by its number.
#[derive(Debug)]
struct Folder {
    open: OwnedFd,
    /// Where it was when it was opened.
    path: PathBuf,
    /// Whether its file system counts links, of which one that was removed has none.
    counts_links: bool,
}

impl Folder {
    /// What leads to it as long as it is open.
    fn name(&self) -> String {
        format!("{OPEN}{}", self.open.as_raw_fd())
    }

    /// Fails if it was removed: then nothing can be made in it.
    fn check(&self) -> Result<()> {
        let is_removed = self.counts_links && !has_links(&self.open);
        if is_removed {
            let text = format!("{} was removed", self.path.display());
            return Err(Error::Generic { store: STORE, source: io::Error::other(text).into() });
        }
        Ok(())
    }

    /// The error with the directory by the name that people know.
    fn named(&self, error: Error) -> Error {
        let open = self.name();
        let (open, path) = (open.trim_start_matches('/'), self.path.display().to_string());
        let renamed = |text: &str| {
            // Some are without their first slash: the store begins there.
            let with_slash = text.replace(&format!("/{open}"), &path);
            with_slash.replace(open, &path)
        };
        let source = |error: Box<dyn core::error::Error + Send + Sync>| Renamed {
            text: renamed(&chain(&*error)),
            source: system_error(&*error),
        };
        match error {
            Error::Generic { store, source: error } => {
                Error::Generic { store, source: source(error).into() }
            }
            Error::NotFound { path, source: error } => {
                Error::NotFound { path: renamed(&path), source: source(error).into() }
            }
            Error::AlreadyExists { path, source: error } => {
                Error::AlreadyExists { path: renamed(&path), source: source(error).into() }
            }
            error => error,
        }
    }
}

fn has_links(folder: &OwnedFd) -> bool {
    fstat(folder).is_ok_and(|status| status.st_nlink > 0)
}

/// As the store calls itself.
const STORE: &str = "LocalFileSystem";

/// An error in other words, and what the system said.
#[derive(Debug)]
struct Renamed {
    text: String,
    source: Option<io::Error>,
}

impl fmt::Display for Renamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl core::error::Error for Renamed {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        self.source.as_ref().map(|error| error as _)
    }
}

fn system_error(error: &(dyn core::error::Error + 'static)) -> Option<io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error().map(io::Error::from_raw_os_error);
        }
        next = error.source();
    }
    None
}

/// A store in which the objects of a volume lie in an open directory, wherever that is by now.
#[derive(Clone, Debug)]
pub(crate) struct InFolder {
    inner: Arc<dyn ObjectStore>,
    /// Where the objects lie as they are asked for.
    prefix: Path,
    /// Where they lie by way of the open directory.
    open: Path,
    folder: Arc<Folder>,
}

impl InFolder {
    /// That of the local files in `inner`, with the directory that is at `path`, which is `prefix` in the store. None where open
    /// directories have no names.
    ///
    /// # Errors
    /// Those of opening it.
    pub(crate) fn open(
        inner: Arc<dyn ObjectStore>,
        path: &FilePath,
        prefix: &Path,
    ) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = open(path, flags, Mode::empty())?;
        let counts_links = has_links(&open);
        let folder = Folder { open, path: path.to_owned(), counts_links };
        let name = folder.name();
        let is_same = match (stat(&name), fstat(&folder.open)) {
            (Ok(one), Ok(two)) => (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino),
            _ => false,
        };
        if !is_same {
            tracing::warn!(
                "{} is used by its path, and must not be moved: there is no {OPEN}",
                path.display()
            );
            return Ok(None);
        }
        let (prefix, open) = (prefix.clone(), Path::from(name));
        Ok(Some(Self { inner, prefix, open, folder: Arc::new(folder) }))
    }

    fn inside(&self, path: &Path) -> Path {
        moved(path, &self.prefix, &self.open)
    }

    fn outside(&self, path: &Path) -> Path {
        moved(path, &self.open, &self.prefix)
    }

    /// Does something to its end, whoever still waits for it: the number of the directory is another one's once it is closed.
    async fn apart<T: Send + 'static>(
        &self,
        doing: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let folder = Arc::clone(&self.folder);
        let task = tokio::spawn(async move {
            let done = doing.await;
            done.map_err(|error| folder.named(error))
        });
        task.await.unwrap_or_else(|source| Err(Error::JoinError { source }))
    }

    /// The same of what makes something.
    async fn making<T: Send + 'static>(
        &self,
        doing: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.folder.check()?;
        self.apart(doing).await
    }

    fn listed(
        &self,
        listed: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let this = self.clone();
        let outside = move |result: Result<ObjectMeta>| match result {
            Ok(meta) => Ok(ObjectMeta { location: this.outside(&meta.location), ..meta }),
            Err(error) => Err(this.folder.named(error)),
        };
        listed.map(outside).boxed()
    }
}

/// The path with another beginning, if it has that one.
fn moved(path: &Path, from: &Path, to: &Path) -> Path {
    match path.prefix_match(from) {
        Some(rest) => rest.fold(to.clone(), Path::join),
        None => path.clone(),
    }
}

impl fmt::Display for InFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.inner, f)
    }
}

#[async_trait]
impl ObjectStore for InFolder {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let (inner, path) = (Arc::clone(&self.inner), self.inside(location));
        self.making(async move { inner.put_opts(&path, payload, options).await }).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let (inner, path) = (Arc::clone(&self.inner), self.inside(location));
        let upload = self.making(async move { inner.put_multipart_opts(&path, options).await });
        Ok(Box::new(UploadInFolder { upload: Some(upload.await?), store: self.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (inner, path) = (Arc::clone(&self.inner), self.inside(location));
        let mut result = self.apart(async move { inner.get_opts(&path, options).await }).await?;
        result.meta.location = location.clone();
        if let GetResultPayload::File(_, path) = &mut result.payload {
            // For errors alone.
            *path = FilePath::new("/").join(location.as_ref());
        }
        Ok(result)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (inner, path) = (Arc::clone(&self.inner), self.inside(location));
        let ranges = ranges.to_vec();
        self.apart(async move { inner.get_ranges(&path, &ranges).await }).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        const AT_ONCE: usize = 10;
        let this = self.clone();
        let deleted = locations.map(move |location| {
            let this = this.clone();
            async move {
                let location = location?;
                let (inner, path) = (Arc::clone(&this.inner), this.inside(&location));
                this.apart(async move { inner.delete(&path).await }).await?;
                Ok(location)
            }
        });
        deleted.buffered(AT_ONCE).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.inner.list(prefix.map(|prefix| self.inside(prefix)).as_ref()))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.map(|prefix| self.inside(prefix));
        self.listed(self.inner.list_with_offset(prefix.as_ref(), &self.inside(offset)))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (inner, prefix) = (Arc::clone(&self.inner), prefix.map(|prefix| self.inside(prefix)));
        let listing = async move { inner.list_with_delimiter(prefix.as_ref()).await };
        let mut result = self.apart(listing).await?;
        result.objects.iter_mut().for_each(|one| one.location = self.outside(&one.location));
        result.common_prefixes.iter_mut().for_each(|path| *path = self.outside(path));
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let (inner, from, to) = (Arc::clone(&self.inner), self.inside(from), self.inside(to));
        self.making(async move { inner.copy_opts(&from, &to, options).await }).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let (inner, from, to) = (Arc::clone(&self.inner), self.inside(from), self.inside(to));
        self.making(async move { inner.rename_opts(&from, &to, options).await }).await
    }
}

/// An upload into the directory. Its parts go by an open file.
#[derive(Debug)]
struct UploadInFolder {
    /// None once it is complete.
    upload: Option<Box<dyn MultipartUpload>>,
    store: InFolder,
}

impl UploadInFolder {
    fn over() -> Error {
        Error::Generic { store: STORE, source: "the upload is over".into() }
    }
}

#[async_trait]
impl MultipartUpload for UploadInFolder {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match &mut self.upload {
            Some(upload) => upload.put_part(data),
            None => Box::pin(core::future::ready(Err(Self::over()))),
        }
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let mut upload = self.upload.take().ok_or_else(Self::over)?;
        self.store.making(async move { upload.complete().await }).await
    }

    async fn abort(&mut self) -> Result<()> {
        let mut upload = self.upload.take().ok_or_else(Self::over)?;
        self.store.apart(async move { upload.abort().await }).await
    }
}
