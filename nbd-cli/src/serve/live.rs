//! The exports of a running server, which can be replaced by others.

mod exchange;
#[cfg(test)]
mod tests;

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_engine::export::{
    ClientInfo, ExportEntry, ExportMap, Exports, FileId, ListedExport, Lookup, OverlayFile,
    Refusal, Tracker, Withdrawal,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, RwLockWriteGuard};

use self::exchange::{Pending, close};
use super::backend;
use super::config::{Backend, Config, Export};
use super::control::Bitmaps;
use super::folder::Folder;
use super::shared::{Files, shared_overlay};
use super::volumes;
use crate::exit::Failure;
use crate::output::quoted;

pub(super) use self::exchange::HandedOver;

/// What is served at the moment. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Live(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// For look-ups: what [`Self::disks`] has.
    served: std::sync::RwLock<Arc<Served>>,
    /// Locked by one change as a whole.
    disks: Mutex<Vec<Arc<Disk>>>,
    /// Held for writing while volumes are closed and about to be opened anew: clients that ask for one wait.
    exchange: RwLock<()>,
    bitmaps: Bitmaps,
    /// Nothing is served any more.
    ended: AtomicBool,
}

/// What clients find.
#[derive(Debug, Default)]
struct Served {
    /// Exports with names of their own, which go before files of the same name.
    map: ExportMap,
    folders: Vec<Arc<Disk>>,
    /// Those that another server may take over.
    volumes: Vec<Arc<Disk>>,
    /// All.
    disks: Vec<Arc<Disk>>,
    /// The names of those whose contents end with this process.
    in_memory: Vec<String>,
}

/// An export, and what it is made of.
#[derive(Debug)]
struct Disk {
    export: Export,
    what: What,
    opened: Arc<Opened>,
}

/// What clients get.
#[derive(Debug)]
enum What {
    Entry(ExportEntry),
    /// Each file of a directory.
    Files(Arc<Folder>),
}

/// What stays the same as long as an export's clients stay.
#[derive(Debug)]
struct Opened {
    /// Whether changes can be recorded.
    tracked: bool,
    /// By what, unless it is read-only.
    tracker: Option<Arc<Tracker>>,
    /// Disconnects the clients.
    withdrawal: Withdrawal,
    /// The volume, if it is one. Another export may go on with it.
    volume: Option<Arc<volumes::Open>>,
    /// The files of its overlays.
    overlays: Vec<OverlayFile>,
}

/// What a change did, for the log.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changes {
    /// Names of exports.
    pub(super) added: Vec<String>,
    /// Those whose clients stay.
    pub(super) altered: Vec<String>,
    /// Those that were opened anew, and whose clients are disconnected.
    pub(super) replaced: Vec<String>,
    pub(super) removed: Vec<String>,
    /// Keys of the file that are no export's, and whose other values are in force. Earlier servers report none.
    #[serde(default)]
    pub(crate) settings: Vec<String>,
    /// Keys of the file whose values come into force when the server is restarted. Earlier servers report none.
    #[serde(default)]
    pub(crate) restart: Vec<String>,
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (verb, names) in self.named() {
            if !names.is_empty() {
                write!(f, "{separator}{verb} {names:?}")?;
                separator = ", ";
            }
        }
        if separator.is_empty() {
            f.write_str("no export has changed")?;
        }
        if self.settings.is_empty() {
            return Ok(());
        }
        write!(f, "; in force: {}", self.settings.join(", "))
    }
}

impl Changes {
    /// What was done, each with the names of the exports.
    pub(crate) const fn named(&self) -> [(&'static str, &Vec<String>); 4] {
        [
            ("added", &self.added),
            ("altered", &self.altered),
            ("replaced", &self.replaced),
            ("removed", &self.removed),
        ]
    }
}

/// Other exports, all of them open but for volumes, which are not served yet.
pub(super) struct Prepared<'a> {
    live: &'a Live,
    current: MutexGuard<'a, Vec<Arc<Disk>>>,
    /// In their order. What is not open yet is in `volumes`.
    next: Vec<Option<Arc<Disk>>>,
    volumes: Vec<Pending>,
    /// The files that are exports by themselves.
    named: HashSet<FileId>,
    changes: Changes,
    warnings: Vec<Failure>,
    /// Clients of volumes that were closed wait until the change is made, or is not.
    waiting: Option<RwLockWriteGuard<'a, ()>>,
}

/// What there is of an export that is to be served.
enum Next {
    Open(Arc<Disk>),
    /// A volume, and what has it open now, with other settings.
    Volume(Option<Arc<Disk>>),
}

impl Live {
    /// Opens everything that is to be served but the volumes, which another server may have: `Reload::open_volumes` does
    /// that when all else that may fail is done.
    pub(super) fn open(config: &Config) -> Result<Self, Failure> {
        let shared = Shared {
            served: std::sync::RwLock::default(),
            disks: Mutex::default(),
            exchange: RwLock::default(),
            bitmaps: Bitmaps::new(Vec::new()),
            ended: AtomicBool::new(false),
        };
        let live = Self(Arc::new(shared));
        let prepared = live.prepare(config)?;
        prepared.warn();
        prepared.commit();
        Ok(live)
    }

    /// Serves nothing any more. What clients wrote is in overlay files and in the stores of volumes, and disks are let go, so
    /// that the next server can have them and request logs get their last lines. To be called when no client is left: whatever
    /// else holds a disk, such as a request that was cut off, is not waited for.
    ///
    /// # Errors
    /// When a file or a store does not take what was not flushed.
    pub(super) fn end(&self) -> Result<(), Failure> {
        self.0.ended.store(true, Ordering::Release);
        let served = self.served();
        let disks = served.disks.clone();
        drop(served);
        self.serve(&[]);
        // A change that waits for something at this moment is not waited for, and comes to nothing.
        if let Ok(mut current) = self.0.disks.try_lock() {
            current.clear();
        }
        self.0.bitmaps.replace(Vec::new());
        let flushed = disks.iter().map(|disk| disk.flush_overlays());
        let flushed = flushed.fold(Ok(()), Result::and);
        flushed.and(close(&disks))
    }

    /// The bitmaps of all exports.
    pub(super) fn bitmaps(&self) -> &Bitmaps {
        &self.0.bitmaps
    }

    /// Opens what is to be served from now on, as far as it is not served already, and is no volume. Nothing changes yet, and
    /// no other change begins meanwhile.
    ///
    /// # Errors
    /// When an export can't be opened, or would lose bitmaps.
    pub(super) fn prepare(&self, config: &Config) -> Result<Prepared<'_>, Failure> {
        let current = self.0.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let blame =
            |index: usize| move |failure| config.source.blame(&format!("export.{index}"), failure);
        let mut files = Files::default();
        let mut warnings = Vec::new();
        // Before anything is opened, or made.
        for (index, export) in config.exports.iter().enumerate() {
            let warning = files.add(export, config).map_err(blame(index))?;
            warnings.extend(warning.map(blame(index)));
        }
        let earlier = by_name(&current);
        let mut changes = Changes::default();
        let mut next = Vec::with_capacity(config.exports.len());
        let mut volumes = Vec::new();
        for (index, export) in config.exports.iter().enumerate() {
            let earlier = earlier.get(&export.label()).copied();
            match changes.disk(self, &current, earlier, export, config).map_err(blame(index))? {
                Next::Open(disk) => next.push(Some(disk)),
                Next::Volume(earlier) => {
                    next.push(None);
                    let tracked = config.is_tracked(export);
                    volumes.push(Pending { index, export: export.clone(), tracked, earlier });
                }
            }
        }
        let staying: HashSet<_> = config.exports.iter().map(Export::label).collect();
        let gone = current.iter().map(|disk| disk.export.label());
        let gone = gone.filter(|name| !staying.contains(name)).map(Cow::into_owned);
        changes.removed = gone.collect();
        changes.removed.sort();
        let named = files.ids();
        let live = self;
        Ok(Prepared { live, current, next, volumes, named, changes, warnings, waiting: None })
    }

    fn served(&self) -> Arc<Served> {
        Arc::clone(&self.0.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Has clients find these from now on.
    fn serve(&self, disks: &[Arc<Disk>]) -> Arc<Served> {
        let served = Arc::new(Served::of(disks));
        *self.0.served.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&served);
        served
    }

    /// The names of the exports whose contents end with this process.
    pub(super) fn in_memory(&self) -> Vec<String> {
        self.served().in_memory.clone()
    }

    /// The names and sizes of the exports as they are now; of files of directories those that clients use.
    pub(super) fn sizes(&self) -> Vec<(String, u64)> {
        let served = self.served();
        let entries = served.map.entries().iter();
        let named = entries.map(|entry| (entry.name().to_owned(), entry.export().size()));
        let files = served.folders.iter().flat_map(|folder| folder.in_use());
        let files = files.filter(|(name, _)| served.names(name).is_none());
        named.chain(files).collect()
    }
}

impl Prepared<'_> {
    /// Logs what is to be considered of all this.
    pub(super) fn warn(&self) {
        self.warnings.iter().for_each(|warning| tracing::warn!("{}", warning.text()));
    }

    /// Serves these from now on, but for volumes that were not opened. Clients of exports that stay notice nothing; those of
    /// exports that are gone or opened anew are disconnected in order.
    pub(super) fn commit(self) -> Changes {
        let Self { live, mut current, next, named, changes, waiting, .. } = self;
        if live.0.ended.load(Ordering::Acquire) {
            return changes;
        }
        let next: Vec<_> = next.into_iter().flatten().collect();
        let served = live.serve(&next);
        for folder in &served.folders {
            if let What::Files(files) = &folder.what {
                files.leave_out(named.iter().copied());
            }
        }
        let trackers = next.iter().filter_map(|disk| disk.opened.tracker.clone());
        live.0.bitmaps.replace(trackers.collect());
        let earlier = core::mem::replace(&mut *current, next);
        let now = by_name(&current);
        for disk in earlier {
            match now.get(&disk.export.label()) {
                Some(later) if Arc::ptr_eq(&later.opened, &disk.opened) => later.stop_after(&disk),
                _ => disk.withdraw(),
            }
        }
        current.iter().for_each(|disk| disk.start_bitmaps());
        drop(waiting);
        changes
    }
}

fn by_name(disks: &[Arc<Disk>]) -> HashMap<Cow<'_, str>, &Arc<Disk>> {
    disks.iter().map(|disk| (disk.export.label(), disk)).collect()
}

impl Served {
    fn of(disks: &[Arc<Disk>]) -> Self {
        let mut served = Self { disks: disks.to_vec(), ..Self::default() };
        for disk in disks {
            if disk.export.is_in_memory() {
                served.in_memory.push(disk.export.name.clone());
            }
            if disk.opened.volume.is_some() {
                served.volumes.push(Arc::clone(disk));
            }
            match &disk.what {
                What::Entry(entry) => served.map = served.map.with_entry(entry.clone()),
                What::Files(_) => served.folders.push(Arc::clone(disk)),
            }
        }
        served
    }

    /// Whether that is a volume that another server has taken over, or that has failed.
    fn is_lost(&self, entry: &ExportEntry) -> bool {
        self.volumes.iter().any(|disk| {
            matches!(&disk.what, What::Entry(volume) if volume.name() == entry.name())
                && disk.opened.withdrawal.is_withdrawn()
        })
    }

    /// Whether nothing is left that this server serves.
    fn is_all_lost(&self) -> bool {
        self.folders.is_empty() && self.map.entries().iter().all(|entry| self.is_lost(entry))
    }

    /// The export that has that name by itself.
    fn names(&self, name: &str) -> Option<&ExportEntry> {
        self.map.get(name).filter(|entry| entry.name() == name)
    }
}

impl Changes {
    /// The disk for an export: the one that there is, if it is the same one.
    fn disk(
        &mut self,
        live: &Live,
        current: &[Arc<Disk>],
        earlier: Option<&Arc<Disk>>,
        export: &Export,
        config: &Config,
    ) -> Result<Next, Failure> {
        let tracked = config.is_tracked(export);
        let Some(earlier) = earlier else {
            self.added.push(export.label().into_owned());
            return Disk::next(live, current, export, config);
        };
        // A volume that was closed here, and could not be opened again, is to be tried again.
        let is_open = !earlier.opened.volume.as_ref().is_some_and(|volume| volume.is_closed());
        if is_open && earlier.export == *export && earlier.opened.tracked == tracked {
            return Ok(Next::Open(Arc::clone(earlier)));
        }
        if is_open && earlier.is_same_disk(export, tracked) {
            self.altered.push(export.label().into_owned());
            return earlier.altered(export).map(Next::Open);
        }
        let bitmaps =
            earlier.opened.tracker.as_ref().map(|tracker| tracker.names()).unwrap_or_default();
        if !bitmaps.is_empty() {
            return Err(Failure::usage(format!(
                "to change {} is to open it anew, by which its bitmaps would be lost ({}): stop them first, by \
                 nbd bitmap or without a change but that of track, or start the server anew",
                export.noun(),
                bitmaps.join(", ")
            )));
        }
        if earlier.export.is_in_memory() && export.has_memory() {
            return Err(Failure::usage(format!(
                "to change {} is to open it anew, by which what it holds in memory would be lost: give the other one \
                 another name, or remove this one first",
                export.noun()
            )));
        }
        if let Some(path) = shared_overlay(&earlier.export.layers, &export.layers) {
            return Err(Failure::usage(format!(
                "to change {} is to open it anew, and its overlay {} is in use until it is gone and its clients have left: \
                 remove it first, by nbd export or a reload without it, and add it again, or start the server anew",
                export.noun(),
                quoted(path.as_os_str())
            )));
        }
        self.replaced.push(export.label().into_owned());
        Disk::next(live, current, export, config)
    }
}

impl Disk {
    /// What is to be opened is opened, but for a volume that is not open yet.
    fn next(
        live: &Live,
        current: &[Arc<Self>],
        export: &Export,
        config: &Config,
    ) -> Result<Next, Failure> {
        match export.backend() {
            Ok(Backend::Volume(url)) => Self::of_volume(live, current, url, export, config),
            _ => Self::open(export, config).map(Next::Open),
        }
    }

    fn open(export: &Export, config: &Config) -> Result<Arc<Self>, Failure> {
        let withdrawal = Withdrawal::new();
        let (what, tracker, overlays) = match export.backend() {
            Ok(Backend::Directory(path)) => {
                (What::Files(Arc::new(Folder::open(path, export, config)?)), None, Vec::new())
            }
            _ => {
                let disk = backend::open(export, config)?;
                let entry = backend::entry(export, disk.export)?.with_withdrawal(&withdrawal);
                (What::Entry(entry), disk.tracker, disk.overlays)
            }
        };
        let tracked = config.is_tracked(export);
        let opened = Arc::new(Opened { tracked, tracker, withdrawal, volume: None, overlays });
        Ok(Arc::new(Self { export: export.clone(), what, opened }))
    }

    /// Whether that export can be had by another entry for what is open already.
    fn is_same_disk(&self, export: &Export, tracked: bool) -> bool {
        // A client that does not encrypt must not stay.
        let closes = export.tls_only && !self.export.tls_only;
        let mut same = self.export.clone();
        same.description.clone_from(&export.description);
        same.tls_only = export.tls_only;
        same.resize = export.resize;
        same.track.clone_from(&export.track);
        // It is about how a volume is opened.
        same.volume_exclusive = export.volume_exclusive;
        !closes && tracked == self.opened.tracked && same == *export
    }

    /// The same disk by another entry.
    fn altered(&self, export: &Export) -> Result<Arc<Self>, Failure> {
        let what = match &self.what {
            What::Entry(entry) => {
                let entry = backend::entry(export, entry.export().clone())?;
                What::Entry(entry.with_withdrawal(&self.opened.withdrawal))
            }
            What::Files(files) => What::Files(Arc::clone(files)),
        };
        Ok(Arc::new(Self { export: export.clone(), what, opened: Arc::clone(&self.opened) }))
    }

    /// Brings what was written into its overlay files.
    fn flush_overlays(&self) -> Result<(), Failure> {
        let flushed = self.opened.overlays.iter().map(|overlay| overlay.flush());
        flushed.fold(Ok(()), Result::and).map_err(|error| {
            Failure::failed(format!(
                "the overlay of {} can't be flushed, and what was written last is lost: {error}",
                self.export.noun()
            ))
        })
    }

    /// Has its clients disconnected in order.
    fn withdraw(&self) {
        self.opened.withdrawal.withdraw();
        if let What::Files(files) = &self.what {
            files.withdraw();
        }
    }

    /// The files of a directory that clients use.
    fn in_use(&self) -> Vec<(String, u64)> {
        match &self.what {
            What::Entry(_) => Vec::new(),
            What::Files(files) => files.in_use(),
        }
    }

    /// Stops the bitmaps that its configuration asked for before, and does not any more.
    fn stop_after(&self, earlier: &Self) {
        let Some(tracker) = &self.opened.tracker else { return };
        for name in earlier.export.track.iter().filter(|name| !self.export.track.contains(name)) {
            // It may have been stopped by nbd bitmap.
            let _was_there = tracker.stop(name);
        }
    }

    /// Starts the bitmaps that its configuration asks for, unless they are there.
    fn start_bitmaps(&self) {
        let Some(tracker) = &self.opened.tracker else { return };
        let names = tracker.names();
        for name in self.export.track.iter().filter(|name| !names.contains(name)) {
            if let Err(error) = tracker.start(name) {
                let export = &self.export.name;
                tracing::error!(export, "cannot record changes as '{name}': {error}");
            }
        }
    }
}

impl Exports for Live {
    async fn list(&self, client: &ClientInfo) -> Result<Vec<ListedExport>, Refusal> {
        let served = self.served();
        let mut listed = served.map.list(client).await?;
        for folder in &served.folders {
            let What::Files(files) = &folder.what else { continue };
            let files = files.list(&folder.export, client).await?;
            listed.extend(files.into_iter().filter(|file| served.names(file.name()).is_none()));
        }
        Ok(listed)
    }

    async fn find(&self, lookup: &Lookup<'_>) -> Result<ExportEntry, Refusal> {
        let mut served = self.served();
        if served.map.get(lookup.name).is_some_and(|entry| served.is_lost(entry)) {
            // It may be closed for a moment.
            drop(self.0.exchange.read().await);
            served = self.served();
        }
        if let Some(entry) = served.map.get(lookup.name) {
            if served.is_lost(entry) {
                return Err(Refusal::shutting_down(
                    "this server does not serve the volume any more: another server has it, or it failed, as the log of this \
                     server says",
                ));
            }
            return Ok(entry.clone());
        }
        for folder in &served.folders {
            let What::Files(files) = &folder.what else { continue };
            match files.find(&folder.export, lookup).await {
                Err(Refusal::Unknown) => {}
                found => return found,
            }
        }
        Err(Refusal::Unknown)
    }
}
