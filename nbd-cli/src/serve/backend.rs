//! From a configuration to exports.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use nbd_engine::counted;
use nbd_engine::export::{
    self, AnyExport, Export as _, ExportEntry, File, InvalidName, Memory, Missing, OpenError,
    OverlayFile, ReadOnly, Tracked, Tracker, WithAllocationDepth, WithBlockSize, overlay_summary,
};
use rustix::fs::{Access, access};

use super::check::Findings;
use super::config::{Backend, Config, Export, Size, Source};
use super::denied;
use super::folder::Folder;
use super::layers::{Base, Layer, check_files, has_overlay, put_around};
use super::shared::Files;
use super::volumes;
use crate::exit::Failure;
use crate::output::{quoted, shell_path};

/// Finds out whether everything can be opened, without opening it for writing.
pub(super) fn inspect(config: &Config, findings: &mut Findings) {
    let mut files = Files::default();
    for (index, export) in config.exports.iter().enumerate() {
        let mut found = Findings::default();
        found.take_warned(files.add(export, config));
        found.take(inspect_one(config, export));
        inspect_layers(export, &mut found);
        findings.blame(found, &config.source, &format!("export.{index}"));
    }
}

fn inspect_one(config: &Config, export: &Export) -> Result<(), Failure> {
    let mut for_reading = export.clone();
    // Files that layers write are not made.
    for_reading.layers.retain_mut(|layer| Layer::path_mut(layer).is_none());
    let path = match export.backend().map_err(Failure::Usage)? {
        Backend::File(path) => path,
        Backend::Directory(path) => return Folder::open(path, export, config).map(drop),
        Backend::Memory(_) => return open(&for_reading, config).map(drop),
        // Opening it would take it over.
        Backend::Volume(url) => {
            return volumes::inspect(url, export).and_then(|()| volumes::check_cache(export));
        }
        Backend::Object(_) => return open(&for_reading, config).map(drop),
    };
    if is_only_read(export) {
        // An overlay that is left out lets nothing through to it.
        for_reading.read_only = true;
        return open(&for_reading, config).map(drop);
    }
    // One that is missing may be made, unlike one that is only read.
    File::options().read_only(true).open(path).map_err(|error| cannot_open(&error))?;
    for_reading.read_only = true;
    open(&for_reading, config)?;
    access(path, Access::WRITE_OK).map_err(|error| {
        let shown = quoted(path.as_os_str());
        let remedy = config.source.word("--read-only", "read-only = true");
        Failure::failed(format!("cannot write {shown}: {error}; serve it with {remedy}"))
    })
}

/// The files that layers write. What is wrong with the disk itself is reported elsewhere.
fn inspect_layers(export: &Export, found: &mut Findings) {
    match export.backend() {
        Ok(Backend::File(path)) => {
            if let Ok(file) = File::options().read_only(true).open(path) {
                check_files(Box::new(file), &export.layers, Base::of(path), found);
            }
        }
        Ok(Backend::Memory(size)) => {
            if let Ok(memory) = Memory::new(size) {
                check_files(Box::new(memory), &export.layers, Base::default(), found);
            }
        }
        _ => {}
    }
}

/// Refuses overlay files that are in use, where that is by the server that is to be replaced: they are not handed over.
pub(super) fn refuse_overlays_in_use(config: &Config) -> Result<(), Failure> {
    for (index, export) in config.exports.iter().enumerate() {
        for layer in &export.layers {
            let Layer::Overlay(Some(path)) = layer else { continue };
            // What else is wrong with it is reported when it is opened.
            if overlay_summary(path).is_ok_and(|summary| summary.is_in_use) {
                let failure = Failure::failed(format!(
                    "the overlay {} is in use, and a server does not hand over its overlay files: end it, then start this \
                     one without --take-over",
                    quoted(path.as_os_str())
                ));
                return Err(config.source.blame(&format!("export.{index}"), failure));
            }
        }
    }
    Ok(())
}

/// The entry by which clients find an export that is open.
pub(super) fn entry(export: &Export, handle: AnyExport) -> Result<ExportEntry, Failure> {
    let entry = ExportEntry::new(export.name.as_str(), handle).map_err(invalid)?;
    with_settings(entry, export)
}

fn invalid(error: InvalidName) -> Failure {
    Failure::usage(error.to_string())
}

/// The entry with what the export's configuration says of it, besides its name.
pub(super) fn with_settings(
    mut entry: ExportEntry,
    export: &Export,
) -> Result<ExportEntry, Failure> {
    if let Some(description) = &export.description {
        entry = entry.with_description(description.as_str()).map_err(invalid)?;
    }
    if export.tls_only {
        entry = entry.with_tls_required();
    }
    if !export.resize {
        entry = entry.without_resize();
    }
    Ok(entry)
}

/// Whether clients can't change the disk itself.
pub(super) fn is_only_read(export: &Export) -> bool {
    export.read_only || has_overlay(&export.layers)
}

/// Opens an export that is one disk, and no volume, with the layers around it.
pub(super) fn open(export: &Export, config: &Config) -> Result<Disk, Failure> {
    match export.backend().map_err(Failure::Usage)? {
        Backend::Volume(_) => Err(Failure::failed("a volume has no layers")),
        Backend::Object(url) => {
            let export = volumes::open_object(url, export.volume_memory)?;
            Ok(Disk::plain(export))
        }
        Backend::Memory(size) => {
            let memory = Memory::new(size).map_err(|error| Failure::usage(error.to_string()))?;
            match export.read_only {
                true => wrapped(ReadOnly::new(memory), Base::default(), export, config),
                false => wrapped(memory, Base::default(), export, config),
            }
        }
        Backend::File(path) => {
            let file = File::options().read_only(is_only_read(export)).open(path);
            let file = file.map_err(|error| match error.missing() {
                // An empty one is not what is to be read.
                Some(Missing::File) if is_only_read(export) => {
                    let shown = quoted(path.as_os_str());
                    Failure::failed(format!("cannot open {shown}: no such file; check the path"))
                }
                _ => cannot_open(&error),
            })?;
            wrapped(file, Base::of(path), export, config)
        }
        Backend::Directory(_) => Err(Failure::failed("a directory is no disk")),
    }
}

/// The error with the command that makes what is missing.
fn cannot_open(error: &OpenError) -> Failure {
    let remedy = match (error.missing(), error.path()) {
        (Some(Missing::File), Some(path)) => format!(": truncate -s 1G {}", shell_path(path)),
        (Some(Missing::Directory(path)), _) => format!(": mkdir -p {}", shell_path(path)),
        (None, Some(path)) if error.kind() == ErrorKind::IsADirectory => of_directory(path),
        _ => denied::why(error.kind()),
    };
    match error.path().filter(|_| denied::is_by_sandbox(error.kind())) {
        // It is about no permission of the file.
        Some(path) => Failure::failed(format!("cannot open {}{remedy}", quoted(path.as_os_str()))),
        None => Failure::failed(format!("{error}{remedy}")),
    }
}

/// What to give for a directory.
fn of_directory(path: &Path) -> String {
    // As `nbd_volume` names it.
    match (path.join("nbd-volume.json").exists(), std::path::absolute(path)) {
        (true, Ok(path)) => {
            format!(", or, for the volume in it: volume:file://{}", shell_path(&path))
        }
        _ => format!(", or, to serve each file in it: dir:{}", shell_path(path)),
    }
}

/// What clients get, and what is kept of it besides.
pub(super) struct Disk {
    /// The disk with the layers around it.
    pub(super) export: AnyExport,
    /// What records changes.
    pub(super) tracker: Option<Arc<Tracker>>,
    /// The files of its overlays, to be flushed at the end.
    pub(super) overlays: Vec<OverlayFile>,
}

impl Disk {
    const fn plain(export: AnyExport) -> Self {
        Self { export, tracker: None, overlays: Vec::new() }
    }
}

/// The disk with the layers around it that its configuration asks for.
fn wrapped(
    disk: impl export::Export,
    base: Base,
    export: &Export,
    config: &Config,
) -> Result<Disk, Failure> {
    let tracked = config.is_tracked(export);
    let plain = export.layers.is_empty() && export.block_size.is_none();
    if !tracked && !export.allocation_depth && plain {
        return Ok(Disk::plain(AnyExport::new(disk)));
    }
    let word = match export.backend().map_err(Failure::Usage)? {
        Backend::File(path) | Backend::Directory(path) => path.display().to_string(),
        Backend::Memory(size) => format!("memory:{}", Size(size)),
        Backend::Volume(url) => format!("volume:{url}"),
        Backend::Object(url) => url.to_owned(),
    };
    let (mut disk, overlays) = layered(disk, base, export, &config.source, &word)?;
    let mut tracker = None;
    if tracked && disk.can_write().is_some() {
        let layer = Tracked::new(disk);
        tracker = Some(Arc::clone(layer.tracker()));
        disk = Box::new(layer);
    }
    Ok(Disk { export: AnyExport::new(disk), tracker, overlays })
}

/// The disk with all layers but the one that records changes, and the files of its overlays. Messages call it `word`.
pub(super) fn layered(
    disk: impl export::Export,
    base: Base,
    export: &Export,
    source: &Source,
    word: &str,
) -> Result<(Box<dyn export::Export>, Vec<OverlayFile>), Failure> {
    let (mut disk, overlays) = put_around(Box::new(disk), &export.layers, base)?;
    if export.read_only {
        // An overlay can be written whatever it lies over.
        disk = Box::new(ReadOnly::new(disk));
    }
    if let Some(sizes) = export.block_size {
        let layer = WithBlockSize::new(disk, sizes.0).required(export.block_size_required);
        check_tail(&layer, source, word)?;
        disk = Box::new(layer);
    }
    if export.allocation_depth {
        disk = Box::new(WithAllocationDepth::new(disk));
    }
    Ok((disk, overlays))
}

/// Says so when the end of a disk can't be reached in whole blocks, and refuses one of which nothing is left.
fn check_tail<E: export::Export>(
    layer: &WithBlockSize<E>,
    source: &Source,
    word: &str,
) -> Result<(), Failure> {
    let option = source.word("--block-size", "block-size");
    let (cut, block) = (layer.cut_off(), layer.block_size().minimum());
    if cut > 0 && layer.size() == 0 {
        return Err(Failure::usage(format!(
            "'{word}' has {}, fewer than a block of {block}: give a smaller {option}",
            counted(cut, "byte")
        )));
    }
    if cut > 0 {
        tracing::warn!(
            "the end of '{word}', {}, is not served, since its size is no multiple of the block size, {block}: give a \
             {option} that divides it to serve all",
            counted(cut, "byte")
        );
    }
    Ok(())
}
