//! Volumes on object storage, and objects, as exports.

use core::sync::atomic::{AtomicBool, Ordering};
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use nbd_engine::export::{AnyExport, Withdrawal};
use nbd_volume::inspect as inspect_volume;
use nbd_volume::{DiskCache, Location, Object, ObjectOptions, Options, Volume};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::config::{
    Export, MIN_OBJECT_MEMORY, MIN_VOLUME_CACHE, MIN_VOLUME_MEMORY, Period, Size, VolumeCache,
};
use crate::exit::Failure;
use crate::volume::{failure, located};

// Checked without the library, too.
const _: () = assert!(MIN_VOLUME_MEMORY == Options::MIN_MEMORY);
const _: () = assert!(MIN_OBJECT_MEMORY == ObjectOptions::MIN_MEMORY);
const _: () = assert!(MIN_VOLUME_CACHE == DiskCache::MIN_BYTES);

/// What waits for the stores, whatever runtime the connections are on. There is none unless a volume is served.
static RUNTIME: LazyLock<std::io::Result<Runtime>> = LazyLock::new(|| {
    nbd_volume::reuse_large_buffers();
    Builder::new_multi_thread().thread_name("volume").enable_all().build()
});

fn runtime() -> Result<&'static Runtime, Failure> {
    RUNTIME.as_ref().map_err(|error| {
        Failure::failed(format!("cannot start a runtime: {error}; raise ulimit -u and -n"))
    })
}

/// A volume, or one of its snapshots, by where it lies.
#[derive(Clone, Debug)]
pub(super) struct Place {
    location: Location,
    snapshot: Option<String>,
}

impl Place {
    /// What stands behind `volume:`.
    pub(super) fn of(word: &str) -> Result<Self, Failure> {
        let (location, snapshot) = located(word)?;
        Ok(Self { location, snapshot })
    }

    /// Whether only one server can have it, and once.
    pub(super) fn is_writable(&self) -> bool {
        self.snapshot.is_none()
    }

    /// Whether it is the same, however the URLs are written.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.snapshot == other.snapshot && self.location.is_same_place(&other.location)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.location, f)
    }
}

/// A volume that is served.
pub(super) struct Open {
    volume: Volume,
    place: Place,
    settings: Settings,
    /// Whether it was closed here, rather than lost.
    closed: Arc<AtomicBool>,
}

/// What an open volume can't change.
type Settings = (Option<Size>, Option<VolumeCache>, Option<Period>);

fn settings(export: &Export) -> Settings {
    (export.volume_memory, export.volume_cache.clone(), export.volume_lease)
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.volume, f)
    }
}

/// Volumes that are being closed since nothing serves them any more. One of them is not opened again before.
static CLOSING: Mutex<Vec<(Place, JoinHandle<()>)>> = Mutex::new(Vec::new());

/// Waits for all that is being closed and is meant, which has a bound.
fn settle(is_meant: impl Fn(&Place) -> bool) {
    let taken: Vec<_> = {
        let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
        closing.extract_if(.., |(place, _)| is_meant(place)).collect()
    };
    if let (false, Ok(runtime)) = (taken.is_empty(), runtime()) {
        // What went wrong was logged.
        taken.into_iter().for_each(|(_, task)| drop(runtime.block_on(task)));
    }
}

/// Waits for all volumes that are being closed, before the process ends.
pub(super) fn settle_all() {
    settle(|_| true);
}

/// Whether the volume can be opened. Does not take it over.
pub(super) fn inspect(word: &str, export: &Export) -> Result<(), Failure> {
    let place = Place::of(word)?;
    check_use(&place, export)?;
    let found = inspect_volume(&place.location, place.snapshot.as_deref());
    runtime()?.block_on(found).map_err(failure)
}

/// Whether its cache on disk can be used, as far as that shows before it is opened.
pub(super) fn check_cache(export: &Export) -> Result<(), Failure> {
    options(export).disk_cache.map_or(Ok(()), |cache| cache.check().map_err(failure))
}

/// Whether it can be served as it is to be.
pub(super) fn check_use(place: &Place, export: &Export) -> Result<(), Failure> {
    if place.is_writable() && export.read_only {
        return Err(Failure::usage(format!(
            "to serve a volume is to take it over, for reading, too: make a snapshot (nbd volume snapshot {place} NAME), and \
             serve volume:{place}@NAME"
        )));
    }
    Ok(())
}

fn options(export: &Export) -> Options {
    let mut options = Options::default();
    if let Some(Size(bytes)) = export.volume_memory {
        options = options.with_memory(bytes);
    }
    if let Some(VolumeCache { directory, size: Size(bytes) }) = export.volume_cache.clone() {
        options.disk_cache = Some(DiskCache::new(directory, bytes));
    }
    if let Some(Period(lease)) = export.volume_lease {
        options.lease = lease;
    }
    options.exclusive = export.volume_exclusive;
    options
}

/// Opens a volume, which takes it over from another server, or a snapshot. Not to be called in a runtime.
pub(super) fn open(word: &str, export: &Export) -> Result<Open, Failure> {
    let place = Place::of(word)?;
    check_use(&place, export)?;
    settle(|closing| closing.is_same(&place));
    let options = options(export);
    let runtime = runtime()?;
    let volume = match &place.snapshot {
        None => runtime.block_on(Volume::open(&place.location, &options)),
        Some(name) => runtime.block_on(Volume::open_snapshot(&place.location, name, &options)),
    };
    let (volume, settings) = (volume.map_err(failure)?, settings(export));
    Ok(Open { volume, place, settings, closed: Arc::default() })
}

/// Opens an object, for reading.
pub(super) fn open_object(url: &str, memory: Option<Size>) -> Result<AnyExport, Failure> {
    let location = Location::of_object(url).map_err(failure)?;
    let mut options = ObjectOptions::default();
    if let Some(Size(bytes)) = memory {
        options = options.with_memory(bytes);
    }
    let object = runtime()?.block_on(Object::open(&location, &options)).map_err(failure)?;
    Ok(AnyExport::new(object))
}

impl Open {
    /// As clients get it.
    pub(super) fn export(&self) -> AnyExport {
        AnyExport::new(self.volume.clone())
    }

    /// Whether it is that one, and can still be used.
    pub(super) fn serves(&self, place: &Place) -> bool {
        self.place.is_same(place) && !self.volume.is_lost()
    }

    /// Whether it was opened for writing, and can still be written.
    pub(super) fn is_written(&self) -> bool {
        self.place.is_writable() && !self.volume.is_lost()
    }

    /// Whether it was closed here.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether it need not be opened anew for such an export.
    pub(super) fn has_settings_of(&self, export: &Export) -> bool {
        self.settings == settings(export)
    }

    /// Has clients disconnected when another server takes the volume over, or it fails. Then `lost` is called, unless it
    /// was closed here.
    pub(super) fn withdraw_when_lost(
        &self,
        withdrawal: &Withdrawal,
        lost: impl FnOnce() + Send + 'static,
    ) {
        let (volume, withdrawal) = (self.volume.clone(), withdrawal.clone());
        let closed = Arc::clone(&self.closed);
        if let Ok(runtime) = runtime() {
            runtime.spawn(async move {
                volume.until_lost().await;
                withdrawal.withdraw();
                if !closed.load(Ordering::Acquire) {
                    lost();
                }
            });
        }
    }

    /// Flushes and closes volumes, at the same time: it takes no longer than for the slowest one, and has a bound. Not to be
    /// called in a runtime.
    pub(super) fn close_all<'a>(open: impl Iterator<Item = &'a Self>) -> Result<(), Failure> {
        let marked = open.inspect(|open| open.closed.store(true, Ordering::Release));
        let volumes: Vec<Volume> = marked.map(|open| open.volume.clone()).collect();
        if volumes.is_empty() {
            return Ok(());
        }
        let runtime = runtime()?;
        let close = |volume: Volume| runtime.spawn(async move { volume.close().await });
        let closing: Vec<_> = volumes.into_iter().map(close).collect();
        let mut outcome = Ok(());
        for task in closing {
            let closed = match runtime.block_on(task) {
                Ok(closed) => closed.map_err(|error| error.to_string()),
                Err(error) => Err(format!("a volume was not closed: {error}")),
            };
            outcome = outcome.and(closed);
        }
        outcome.map_err(Failure::failed)
    }
}

impl Drop for Open {
    /// One that is served no longer. At the end of the server it is closed before, so that a failure is reported.
    fn drop(&mut self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Ok(runtime) = runtime() {
            let volume = self.volume.clone();
            let task = runtime.spawn(async move {
                if let Err(error) = volume.close().await {
                    tracing::error!("{error}");
                }
            });
            let mut closing = CLOSING.lock().unwrap_or_else(PoisonError::into_inner);
            closing.retain(|(_, task)| !task.is_finished());
            closing.push((self.place.clone(), task));
        }
    }
}
