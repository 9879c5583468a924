//! The files of a directory as exports.

mod open;
#[cfg(test)]
mod tests;

use core::fmt;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::aside::Aside;
use super::{
    AnyExport, ClientInfo, Export, ExportEntry, Exports, File, ListedExport, Lookup, Refusal,
    Withdrawal,
};
use crate::Throttle;

/// Each file of a directory as an export by its name; what is there counts at the moment that a client asks.
///
/// Regular files directly in the directory are exported, and nothing else: no links, no devices, pipes or sockets,
/// nothing in directories below or of other file systems that are mounted there, and no file whose name begins with a
/// dot. A name that is a link, or becomes one at whatever moment, leads to no other file. Files whose names are not
/// UTF-8 can't be exported, and are left out of the list with a message in the log. The list has the first 10,000 names
/// in order; the other files are found by their names.
///
/// All clients of a file, by whichever of its hard links, share one [`File`], and the layers that
/// [`with_layers`](Self::with_layers) puts around it, for as long as any of them uses it. A file that is replaced by
/// another one of the same name stays with those that use it.
///
/// Files can be [left out](Self::leave_out), such as those that a program exports in another way, and all of them
/// [withdrawn](Self::withdraw) from their clients.
///
/// File systems are asked on threads of their own, of which there are 16 at most, so that one that hangs holds up
/// neither a runtime nor other clients. The empty name names no file.
///
/// ```no_run
/// use nbd_engine::export::{Directory, Export, Tracked};
/// use std::sync::Arc;
///
/// let files = Directory::open("/srv/disks")?
///     .with_layers(|file, _name| Ok(Arc::new(Tracked::new(file)) as Arc<dyn Export>));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Directory {
    inner: Arc<Inner>,
    read_only: bool,
    layers: Option<Arc<Layers>>,
}

struct Inner {
    folder: OwnedFd,
    path: PathBuf,
    /// The file system that it is on.
    device: u64,
    files: Mutex<Files>,
    /// Of messages about names that are not UTF-8.
    unfit: Throttle,
    aside: Aside,
}

/// Which files are open, and which must not be.
#[derive(Default)]
struct Files {
    in_use: HashMap<FileId, InUse>,
    left_out: HashSet<FileId>,
    /// Whether no client may use any file.
    withdrawn: bool,
}

/// A file that clients use, unless they are gone by now.
struct InUse {
    export: Weak<dyn Export>,
    withdrawal: Withdrawal,
}

type Layers = dyn Fn(File, &str) -> Result<Arc<dyn Export>, String> + Send + Sync;

/// A file of the system, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file that the metadata are of.
    #[must_use]
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Threads that ask the file system at a time.
const MAX_LOOKUPS: usize = 16;

/// Names in a list at most.
const MAX_LISTED: usize = 10_000;

impl Directory {
    /// The files of the directory at that path. Blocks while the system opens it.
    ///
    /// # Errors
    /// When there is no directory at the path, or it can't be read.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let folder = open::folder(path)?;
        let device = fs::File::from(folder.try_clone()?).metadata()?.dev();
        let inner = Inner {
            folder,
            path: path.to_owned(),
            device,
            files: Mutex::default(),
            unfit: Throttle::new(),
            aside: Aside::new("nbd-lookup", MAX_LOOKUPS),
        };
        Ok(Self { inner: Arc::new(inner), read_only: false, layers: None })
    }

    /// Whether the files are opened for reading alone. Default: no.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Has `layers` called with each file that is opened and its name: what it returns is exported.
    ///
    /// # Errors
    /// An error of `layers` is the text that the client is refused with; this method itself does not fail.
    #[must_use]
    pub fn with_layers(
        mut self,
        layers: impl Fn(File, &str) -> Result<Arc<dyn Export>, String> + Send + Sync + 'static,
    ) -> Self {
        self.layers = Some(Arc::new(layers));
        self
    }

    /// The path that it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Leaves these files out from now on, by whichever name, and no others: clients neither find them nor see them
    /// listed, and those that use one are disconnected as by a [`Withdrawal`].
    ///
    /// Blocks while another thread opens a file of the directory.
    pub fn leave_out(&self, files: impl IntoIterator<Item = FileId>) {
        let mut known = self.inner.files();
        known.left_out = files.into_iter().collect();
        let Files { in_use, left_out, .. } = &*known;
        let gone = in_use.iter().filter(|(file, _)| left_out.contains(file));
        gone.for_each(|(_, one)| one.withdrawal.withdraw());
    }

    /// Has all clients of the files disconnected as by a [`Withdrawal`], and those that still find one.
    ///
    /// Blocks while another thread opens a file of the directory.
    pub fn withdraw(&self) {
        let mut known = self.inner.files();
        known.withdrawn = true;
        known.in_use.values().for_each(|one| one.withdrawal.withdraw());
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Exports for Directory {
    async fn list(&self, _client: &ClientInfo) -> Result<Vec<ListedExport>, Refusal> {
        let inner = Arc::clone(&self.inner);
        self.ask(move || inner.list()).await
    }

    async fn find(&self, lookup: &Lookup<'_>) -> Result<ExportEntry, Refusal> {
        if !open::is_name(lookup.name) {
            return Err(Refusal::Unknown);
        }
        let (inner, name) = (Arc::clone(&self.inner), lookup.name.to_owned());
        let (read_only, layers) = (self.read_only, self.layers.clone());
        self.ask(move || inner.find(&name, read_only, layers.as_deref())).await
    }
}

impl Directory {
    /// Asks the file system, on another thread.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let answer = self.inner.aside.try_run(question);
        let answer = answer.ok_or(Refusal::policy("the file system is busy: try again later"))?;
        answer.await.unwrap_or_else(|| {
            tracing::error!(directory = %self.path().display(), "the program's code panicked when a file was looked up");
            Err(Refusal::panicked())
        })
    }
}

impl Inner {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> Result<Vec<ListedExport>, Refusal> {
        let left_out = self.files().left_out.clone();
        let names = open::names(&self.folder, self.device, &left_out).map_err(|error| {
            tracing::warn!(directory = %self.path.display(), %error, "cannot list a directory");
            Refusal::policy("the directory can't be read")
        })?;
        let (mut names, unfit) = names;
        if unfit > 0 && self.unfit.count().is_some() {
            let directory = self.path.display();
            tracing::warn!(%directory, files = unfit, "left out files whose names are not UTF-8");
        }
        names.sort_unstable();
        if names.len() > MAX_LISTED {
            let (directory, files) = (self.path.display(), names.len() - MAX_LISTED);
            tracing::warn!(%directory, files, "left out files: the list is too long");
            names.truncate(MAX_LISTED);
        }
        names.into_iter().map(|name| Ok(ListedExport::new(name, "")?)).collect()
    }

    fn find(
        &self,
        name: &str,
        read_only: bool,
        layers: Option<&Layers>,
    ) -> Result<ExportEntry, Refusal> {
        let Some(file) = open::file(&self.folder, self.device, name, read_only)
            .map_err(|error| self.refusal(name, &error))?
        else {
            return Err(Refusal::Unknown);
        };
        let metadata = file.metadata().map_err(|error| self.refusal(name, &error))?;
        let id = FileId::of(&metadata);
        let mut files = self.files();
        if files.left_out.contains(&id) {
            return Err(Refusal::Unknown);
        }
        let (export, withdrawal) = match files.known(id) {
            Some(known) => known,
            None => {
                let path = self.path.join(name);
                let file = File::from_std_at(file, &path)
                    .map_err(|error| self.refusal(name, &error.into()))?;
                let export: Arc<dyn Export> = match layers {
                    Some(layers) => layers(file, name).map_err(|text| {
                        tracing::warn!(name, error = text, "cannot export a file");
                        Refusal::policy(text)
                    })?,
                    None => Arc::new(file),
                };
                let withdrawal = files.add(id, &export);
                (export, withdrawal)
            }
        };
        let entry = ExportEntry::new(name, AnyExport::from_shared(export))?;
        Ok(entry.with_withdrawal(&withdrawal))
    }

    /// The client learns no more than that it can't have the file; the log has the rest.
    fn refusal(&self, name: &str, error: &io::Error) -> Refusal {
        tracing::warn!(directory = %self.path.display(), name, %error, "cannot open a file");
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Refusal::policy("the server is not permitted to open the file")
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                Refusal::policy("the file is on a read-only file system")
            }
            _ => Refusal::policy("the file can't be opened"),
        }
    }
}

impl Files {
    /// The file as clients use it already, unless it is being withdrawn from them.
    fn known(&self, id: FileId) -> Option<(Arc<dyn Export>, Withdrawal)> {
        let one = self.in_use.get(&id)?;
        let export = one.export.upgrade().filter(|_| !one.withdrawal.is_withdrawn())?;
        Some((export, one.withdrawal.clone()))
    }

    /// One more file in use; those that nobody uses any more go.
    fn add(&mut self, id: FileId, export: &Arc<dyn Export>) -> Withdrawal {
        let withdrawal = Withdrawal::new();
        if self.withdrawn {
            withdrawal.withdraw();
        }
        self.in_use.retain(|_, one| one.export.strong_count() > 0);
        let one = InUse { export: Arc::downgrade(export), withdrawal: withdrawal.clone() };
        self.in_use.insert(id, one);
        withdrawal
    }
}
