//! The keys of an export.
//!
//! The comment of each field is its entry in `docs/configuration.md`, as those of the other keys.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::layers::Layer;
use super::model::is_false;
use super::words::{BlockSizes, Period, Size, VolumeCache};

/// An export has exactly one of `file`, `memory`, `directory`, `volume` and `object`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Export {
    /// The name by which clients ask for it; no two exports have the same. That of a `directory` is a prefix: clients ask
    /// for `NAME/FILE`, or, if it is empty, for `FILE`.
    #[cfg_attr(test, schemars(extend("cli" = "NAME=BACKEND, --export-name")))]
    pub(crate) name: String,

    /// Path of a file or block device.
    #[cfg_attr(test, schemars(extend("cli" = "file:PATH", "kind" = "path")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,

    /// Size of a disk in memory, which is lost at the end.
    #[cfg_attr(test, schemars(extend("cli" = "memory:SIZE")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Size>,

    /// Path of a directory, each regular file in which is an export by its name, whenever clients ask: no links, devices,
    /// directories or names that begin with a dot, and no file that has an `[[export]]` of its own. All other keys apply
    /// to each file by itself.
    #[cfg_attr(test, schemars(extend("cli" = "dir:PATH", "kind" = "path")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<PathBuf>,

    /// URL of a volume on object storage, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or
    /// `file:///DIRECTORY`; with `@SNAPSHOT` behind it, one of its snapshots, for reading. See [volumes](volumes.md).
    #[cfg_attr(test, schemars(extend("cli" = "volume:URL")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<String>,

    /// URL of an object that is a disk by itself, for reading: `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `az://CONTAINER/KEY`,
    /// `https://HOST/PATH` or `http://HOST/PATH`. See [volumes](volumes.md#an-object-as-a-disk).
    #[cfg_attr(test, schemars(extend("cli" = "URL")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,

    /// How much memory a server of one volume takes: its caches, what is not uploaded yet, what is being fetched and merged,
    /// some tens of MiB of requests in flight and the program. At least `192M`; `640M` if it is missing. Each further volume
    /// takes as much again. For an object, its cache of what was read: at least `32M`; `256M` if it is missing. What
    /// clients receive comes on top of that.
    #[cfg_attr(test, schemars(extend("cli" = "--volume-memory")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_memory: Option<Size>,

    /// A directory on a local disk in which parts of a volume are kept for reading, and how much they may take, at least `64M`:
    /// `DIR:SIZE`. They outlive the server.
    #[cfg_attr(test, schemars(extend("cli" = "--volume-cache")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_cache: Option<VolumeCache>,

    /// Refuse to start when another server has the volume open and is alive, instead of taking the volume over.
    #[cfg_attr(test, schemars(extend("cli" = "--volume-exclusive")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) volume_exclusive: bool,

    /// For how long a volume is served without a look at who writes it, from `1s` to `10m`; `10s` if it is missing. A server
    /// that takes it over from one that crashed waits for as long. The store is asked five times as often: a short one
    /// costs requests.
    #[cfg_attr(test, schemars(extend("cli" = "--volume-lease")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_lease: Option<Period>,

    /// Text for people who list the exports.
    #[cfg_attr(test, schemars(extend("cli" = "--description")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,

    /// Refuse to write; a file is opened for reading only.
    #[cfg_attr(test, schemars(extend("cli" = "--read-only")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) read_only: bool,

    /// Let clients resize it, if it can be resized: memory and regular files. A client that makes a disk smaller takes
    /// the rest from all of them.
    #[cfg_attr(test, schemars(extend("cli" = "--resize")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) resize: bool,

    /// Layers around it, the first one nearest to the disk: each is a word as on the command line, or a table with a key
    /// that is the layer's name. See [layers](layers.md).
    #[cfg_attr(test, schemars(extend("cli" = "--layer")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<Layer>,

    /// Names under which it is recorded what clients change from the start on, each as the metadata context
    /// `qemu:dirty-bitmap:NAME`, for incremental backups.
    #[cfg_attr(test, schemars(extend("cli" = "--track")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) track: Vec<String>,

    /// Offer the metadata context `qemu:allocation-depth`.
    #[cfg_attr(test, schemars(extend("cli" = "--allocation-depth")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) allocation_depth: bool,

    /// Size constraints to announce to clients and to enforce, `MIN[:PREFERRED[:MAX]]`: the smallest unit, a power of
    /// two up to 64k; the preferred one, a power of two from 512; the longest payload. The disk is cut to a multiple of
    /// the first.
    #[cfg_attr(test, schemars(extend("cli" = "--block-size")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block_size: Option<BlockSizes>,

    /// Refuse clients that do not ask for the size constraints; needs `block-size`.
    #[cfg_attr(test, schemars(extend("cli" = "--block-size-required")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) block_size_required: bool,

    /// Hide it from clients that do not encrypt, and refuse it to them.
    #[cfg_attr(test, schemars(extend("cli" = "--tls-only")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) tls_only: bool,
}

/// What an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend<'a> {
    /// A file or block device.
    File(&'a Path),
    /// A disk in memory of so many bytes.
    Memory(u64),
    /// A volume on object storage: its URL, and `@SNAPSHOT` for a snapshot.
    Volume(&'a str),
    /// An object that is a disk by itself: its URL.
    Object(&'a str),
    /// Each file of a directory.
    Directory(&'a Path),
}

impl Export {
    /// An export of that name, with the defaults.
    pub(crate) fn new(name: impl Into<String>, backend: Backend<'_>) -> Self {
        let mut export = Self { name: name.into(), ..Self::default() };
        match backend {
            Backend::File(path) => export.file = Some(path.to_owned()),
            Backend::Memory(size) => export.memory = Some(Size(size)),
            Backend::Volume(url) => export.volume = Some(url.to_owned()),
            Backend::Object(url) => export.object = Some(url.to_owned()),
            Backend::Directory(path) => export.directory = Some(path.to_owned()),
        }
        export
    }

    /// What it is.
    ///
    /// # Errors
    /// A text that says so when it is not exactly one thing, as in a file that was not checked.
    pub(crate) fn backend(&self) -> Result<Backend<'_>, String> {
        let file = self.file.as_deref().map(Backend::File);
        let memory = self.memory.map(|size| Backend::Memory(size.0));
        let directory = self.directory.as_deref().map(Backend::Directory);
        let volume = self.volume.as_deref().map(Backend::Volume);
        let object = self.object.as_deref().map(Backend::Object);
        let mut backends = [file, memory, directory, volume, object].into_iter().flatten();
        match (backends.next(), backends.next()) {
            (Some(backend), None) => Ok(backend),
            _ => {
                Err("an export needs exactly one of file, memory, directory, volume and object"
                    .into())
            }
        }
    }

    /// Whether it is each file of a directory rather than one disk.
    pub(crate) const fn is_directory(&self) -> bool {
        self.directory.is_some()
    }

    /// Whether it is a disk in memory, or has an overlay there. Overlays of the files of a directory end with their clients in
    /// any case.
    pub(crate) fn has_memory(&self) -> bool {
        let has_overlay = self.layers.iter().any(|layer| matches!(layer, Layer::Overlay(None)));
        !self.is_directory() && (self.memory.is_some() || has_overlay)
    }

    /// Whether what clients write is in this process alone.
    pub(crate) fn is_in_memory(&self) -> bool {
        !self.read_only && self.has_memory()
    }

    /// What it is called among all exports: the name, with a `/` behind that of a directory, which is a prefix.
    pub(crate) fn label(&self) -> Cow<'_, str> {
        match self.is_directory() {
            true => format!("{}/", self.name).into(),
            false => Cow::Borrowed(&self.name),
        }
    }

    /// What messages call it.
    pub(crate) fn noun(&self) -> String {
        noun(&self.label())
    }

    /// What messages call it and another one.
    pub(crate) fn nouns(&self, other: &Self) -> String {
        match (&*self.label(), &*other.label()) {
            ("", _) | (_, "") => format!("{} and {}", self.noun(), other.noun()),
            (one, another) => format!("the exports '{one}' and '{another}'"),
        }
    }

    /// All paths in it.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let layers = self.layers.iter_mut().filter_map(Layer::path_mut);
        self.file.iter_mut().chain(&mut self.directory).chain(layers)
    }
}

/// What messages call an export of that label.
pub(crate) fn noun(label: &str) -> String {
    match label {
        "" => "the default export".to_owned(),
        label => format!("export '{label}'"),
    }
}
