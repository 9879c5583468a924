//! Exports that share their bytes, or a file beside them, so that one would miss what clients write to the other.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use nbd_engine::export::FileId;

use super::backend::is_only_read;
use super::config::{Backend, Config, Export};
use super::identity::Identity;
use super::layers::{Layer, has_overlay};
use super::volumes::Place;
use crate::exit::Failure;
use crate::output::quoted;
use crate::store::Store;

/// The files, directories and volumes that are served, and the files that layers write, by what they are whatever their
/// paths.
#[derive(Default)]
pub(super) struct Files<'a> {
    disks: Vec<Disk<'a>>,
    volumes: Vec<(Place, &'a Export)>,
    /// Those of layers, by the layers.
    beside: HashMap<Identity, (&'static str, &'a Export)>,
}

/// What an export serves.
struct Disk<'a> {
    is: Identity,
    /// `None` for a directory.
    store: Option<Store>,
    export: &'a Export,
}

impl Disk<'_> {
    /// Whether the other one lies on this, as a loop device lies on a file, or a partition on its disk; or this on that.
    /// `None` if they have nothing to do with each other.
    fn is_below(&self, other: &Self) -> Option<bool> {
        let (one, other) = self.store.as_ref().zip(other.store.as_ref())?;
        one.overlaps(other).then(|| other.lies_on(one))
    }
}

/// Whether an export shows a part of its disk, so that another part may be another export.
fn has_part(layers: &[Layer]) -> bool {
    layers.iter().any(|layer| matches!(layer, Layer::Offset { .. } | Layer::Partition(_)))
}

/// What two exports are told that share their bytes, as `shared` says: an error where one would miss the changes of the
/// other, and a warning where one can be written.
fn judge_shared(
    shared: &str,
    kind: &str,
    both: [&Export; 2],
    config: &Config,
) -> Result<Option<Failure>, Failure> {
    if both.iter().all(|one| is_only_read(one)) {
        return Ok(None);
    }
    let word = |option, key| config.source.word(option, key);
    let needs_one = [
        (
            both.iter().any(|one| has_overlay(&one.layers)),
            "an overlay",
            "needs a disk that does not change",
        ),
        (
            both.iter().any(|one| !one.track.is_empty()),
            word("--track", "track"),
            "records only what is written through the same export",
        ),
        (
            both.iter().any(|one| config.is_tracked(one)),
            word("nbd bitmap (--control)", "nbd bitmap (control)"),
            "records only what is written through the same export",
        ),
        (
            both.iter().any(|one| one.resize),
            word("--resize", "resize"),
            "changes the size of one export only",
        ),
    ];
    if let Some((_, what, why)) = needs_one.iter().find(|(given, ..)| *given) {
        return Err(Failure::usage(format!("{shared}, and {what} {why}: export the {kind} once")));
    }
    Ok(Some(Failure::failed(format!(
        "{shared}: what clients write to one of them changes the other"
    ))))
}

impl<'a> Files<'a> {
    /// One more export. Gives a warning if there is something to consider.
    pub(super) fn add(
        &mut self,
        export: &'a Export,
        config: &Config,
    ) -> Result<Option<Failure>, Failure> {
        self.add_layers(export, config)?;
        self.add_disk(export, config)
    }

    /// An overlay is for one disk, and what is a disk is no file of a layer. Several exports may share a request log.
    fn add_layers(&mut self, export: &'a Export, config: &Config) -> Result<(), Failure> {
        for layer in &export.layers {
            let Some((what, path)) = written_by(layer) else { continue };
            let shown = quoted(path.as_os_str());
            let mut earlier = None;
            for identity in Identity::of_path(path) {
                if let Some(disk) = self.disks.iter().find(|disk| disk.is == identity) {
                    return Err(disk_and_layer(disk.export, what, export, &shown));
                }
                earlier = self.beside.insert(identity, (what, export)).or(earlier);
            }
            let Some((other, before)) = earlier else { continue };
            let text = match (other, what) {
                (LOG, LOG) => continue,
                (OVERLAY, OVERLAY) if core::ptr::eq(before, export) => {
                    format!(
                        "{} has the overlay {shown} twice: leave out one of them",
                        export.noun()
                    )
                }
                (OVERLAY, OVERLAY) => {
                    let remedy = config.source.word(
                        "give each its own in a configuration file (--config), or leave out the file to keep them in \
                         memory",
                        "give each its own file",
                    );
                    format!(
                        "{} would both write to the overlay {shown}, and an overlay is for one disk: \
                         {remedy}",
                        before.nouns(export)
                    )
                }
                _ => format!(
                    "{shown} is {other} of {} and {what} of {}: give each its own file",
                    before.noun(),
                    export.noun()
                ),
            };
            return Err(Failure::usage(text));
        }
        Ok(())
    }

    /// Each export records changes and knows its size by itself, so that what is written or resized through another export
    /// of the same file would be missed.
    fn add_disk(
        &mut self,
        export: &'a Export,
        config: &Config,
    ) -> Result<Option<Failure>, Failure> {
        if let Ok(Backend::Volume(url)) = export.backend() {
            return self.add_volume(Place::of(url)?, export).map(|()| None);
        }
        let (Backend::File(path) | Backend::Directory(path)) =
            export.backend().map_err(Failure::Usage)?
        else {
            return Ok(None);
        };
        // Opening it reports what is wrong with it.
        let Ok(metadata) = fs::metadata(path) else { return Ok(None) };
        if let Some((what, other)) =
            Identity::of_path(path).find_map(|identity| self.beside.get(&identity))
        {
            return Err(disk_and_layer(export, what, other, &quoted(path.as_os_str())));
        }
        let disk = Disk { is: Identity::of(&metadata), store: Store::new(&metadata), export };
        let kind = if metadata.is_dir() { "directory" } else { "file" };
        let mut warning = None;
        let shown = || quoted(path.as_os_str());
        for other in &self.disks {
            let nouns = || other.export.nouns(export);
            let (shared, is_sure) = if other.is == disk.is {
                (format!("{} are the same {kind}, {}", nouns(), shown()), true)
            } else if let Some(is_lower) = other.is_below(&disk) {
                let shared = format!(
                    "{} share their bytes: {} lies on the other, or is what that lies on",
                    nouns(),
                    shown()
                );
                // Of one that shows its whole, whatever lies on it is a part.
                let lower = if is_lower { other.export } else { export };
                (shared, !has_part(&lower.layers))
            } else {
                continue;
            };
            let found = judge_shared(&shared, kind, [other.export, export], config);
            match found {
                Err(_) if !is_sure => {
                    let text = format!(
                        "{shared}: unless their parts are apart, what clients write to one of them changes the other"
                    );
                    warning = warning.or(Some(Failure::failed(text)));
                }
                Err(error) => return Err(error),
                Ok(found) => warning = warning.or(found),
            }
        }
        self.disks.push(disk);
        Ok(warning)
    }

    /// A volume has one writer, and the second one would take it away from the first.
    fn add_volume(&mut self, place: Place, export: &'a Export) -> Result<(), Failure> {
        let same = self.volumes.iter().find(|(other, _)| other.is_same(&place));
        if let Some((_, other)) = same.filter(|_| place.is_writable()) {
            return Err(Failure::usage(format!(
                "{} are the same volume, {place}, which has one writer: export it once; a snapshot \
                 (volume:URL@NAME) can be served beside it",
                other.nouns(export)
            )));
        }
        self.volumes.push((place, export));
        Ok(())
    }

    /// Those that are files.
    pub(super) fn ids(&self) -> HashSet<FileId> {
        let files = self.disks.iter().filter_map(|disk| match disk.is {
            Identity::File(id) => Some(id),
            _ => None,
        });
        files.collect()
    }
}

/// The overlay file that an export has and had before, by whatever paths.
pub(super) fn shared_overlay<'a>(before: &[Layer], now: &'a [Layer]) -> Option<&'a Path> {
    let earlier: HashSet<_> = overlays(before).flat_map(Identity::of_path).collect();
    overlays(now).find(|path| Identity::of_path(path).any(|identity| earlier.contains(&identity)))
}

fn overlays(layers: &[Layer]) -> impl Iterator<Item = &Path> {
    layers.iter().filter_map(|layer| match layer {
        Layer::Overlay(path) => path.as_deref(),
        _ => None,
    })
}

/// What a file of a layer is.
const OVERLAY: &str = "the overlay";
const LOG: &str = "the request log";

/// The file of a layer, and what messages call it.
pub(super) fn written_by(layer: &Layer) -> Option<(&'static str, &Path)> {
    match layer {
        Layer::Overlay(Some(path)) => Some((OVERLAY, path)),
        Layer::Log(Some(path)) => Some((LOG, path)),
        _ => None,
    }
}

/// A file that clients would write, and a layer, too.
fn disk_and_layer(disk: &Export, what: &str, layer: &Export, shown: &str) -> Failure {
    Failure::usage(format!(
        "{shown} is the disk of {} and {what} of {}: give each its own file",
        disk.noun(),
        layer.noun()
    ))
}
