//! Volumes on object storage, and objects, as exports.

use std::fmt;
use std::sync::LazyLock;

use nbd_engine::export::{AnyExport, Withdrawal};
use nbd_volume::{DiskCache, Location, Object, ObjectOptions, Options, Volume, info};
use tokio::runtime::{Builder, Runtime};

use super::config::{
    Export, MIN_OBJECT_MEMORY, MIN_VOLUME_CACHE, MIN_VOLUME_MEMORY, Period, Size, VolumeCache,
};
use crate::exit::Failure;
use crate::volume::{failure, location, split_snapshot};

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

/// A volume that is served.
pub(super) struct Open(Volume);

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Whether the volume can be opened. Does not take it over.
pub(super) fn inspect(word: &str) -> Result<(), Failure> {
    let (url, snapshot) = split_snapshot(word);
    let about = runtime()?.block_on(info(&location(url)?));
    let about = about.map_err(|error| Failure::failed(error.to_string()))?;
    match snapshot {
        Some(name) if about.snapshots.iter().all(|one| one.name != name) => {
            Err(Failure::failed(format!("the volume at {url} has no snapshot '{name}'")))
        }
        _ => Ok(()),
    }
}

/// Opens a volume, which takes it over from another server, or a snapshot.
pub(super) fn open(word: &str, export: &Export) -> Result<(AnyExport, Open), Failure> {
    let (url, snapshot) = split_snapshot(word);
    let location = location(url)?;
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
    let opened = match snapshot {
        None if export.read_only => {
            return Err(Failure::usage(format!(
                "to serve a volume is to take it over, for reading, too: make a snapshot (nbd volume snapshot {url} NAME), and \
                 serve volume:{url}@NAME"
            )));
        }
        None => runtime()?.block_on(Volume::open(&location, &options)),
        Some(name) => runtime()?.block_on(Volume::open_snapshot(&location, name, &options)),
    };
    let volume = opened.map_err(|error| Failure::failed(error.to_string()))?;
    Ok((AnyExport::new(volume.clone()), Open(volume)))
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
    /// Has clients disconnected when another server takes the volume over, or it fails.
    pub(super) fn withdraw_when_lost(&self, withdrawal: &Withdrawal) {
        let (volume, withdrawal) = (self.0.clone(), withdrawal.clone());
        if let Ok(runtime) = runtime() {
            runtime.spawn(async move {
                volume.until_lost().await;
                withdrawal.withdraw();
            });
        }
    }

    /// Flushes and closes volumes, at the same time: it takes no longer than for the slowest one, and has a bound.
    pub(super) fn close_all<'a>(open: impl Iterator<Item = &'a Self>) -> Result<(), Failure> {
        let volumes: Vec<Volume> = open.map(|open| open.0.clone()).collect();
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
        if let Ok(runtime) = runtime() {
            let volume = self.0.clone();
            runtime.spawn(async move {
                if let Err(error) = volume.close().await {
                    tracing::error!("{error}");
                }
            });
        }
    }
}
