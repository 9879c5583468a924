//! From the words of the command line to exports.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nbd_engine::export::{
    AnyExport, Export, ExportEntry, ExportMap, File, InvalidName, Memory, Missing, OpenError,
    ReadOnly, Tracked, Tracker, WithAllocationDepth, WithBlockSize,
};
use nbd_engine::proto::wire::is_valid_string;

use super::Arguments;
use crate::exit::{Failure, not_utf8};
use crate::output::{quoted, shell_path};
use crate::quantity;

/// What is to be served.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) exports: ExportMap,
    /// Those of the exports, in order.
    pub(super) names: Vec<String>,
    /// Those of the exports whose changes are recorded.
    pub(super) trackers: Vec<Arc<Tracker>>,
    /// Those of the exports that live in memory, and end with the process.
    pub(super) in_memory: Vec<String>,
}

/// Opens everything that is to be served.
pub(super) fn open(arguments: &Arguments) -> Result<Opened, Failure> {
    let mut exports = ExportMap::new();
    let (mut names, mut trackers) = (Vec::<String>::new(), Vec::new());
    let mut in_memory = Vec::new();
    let mut taken = HashSet::new();
    let mut files = Files::default();
    if let Some(description) = &arguments.description {
        check_string("description", description)?;
    }
    if arguments.oldstyle && arguments.backends.len() > 1 {
        let text = "oldstyle clients get the one export that there is: leave out the others";
        return Err(Failure::usage(text));
    }
    for word in &arguments.backends {
        let (name, backend) = split_name(word);
        let name = name.map(|name| name.to_str().ok_or_else(|| not_utf8(name))).transpose()?;
        let name = name.or(arguments.export_name.as_deref()).unwrap_or_default().to_owned();
        check_string("export name", &name)?;
        if !taken.insert(name.clone()) {
            let backend = backend.to_string_lossy();
            return Err(Failure::usage(format!(
                "two exports are called '{name}': give each its own name, such as first={backend}"
            )));
        }
        let backend_text = backend.to_string_lossy();
        let backend = Backend::parse(backend)?;
        match &backend {
            Backend::File(path) => files.add(path, &name, arguments)?,
            Backend::Memory(_) => in_memory.push(name.clone()),
        }
        let (handle, tracker) = backend.open(&backend_text, arguments)?;
        trackers.extend(tracker);
        let invalid = |error: InvalidName| Failure::usage(error.to_string());
        let mut entry = ExportEntry::new(name.as_str(), handle).map_err(invalid)?;
        if let Some(description) = &arguments.description {
            entry = entry.with_description(description.as_str()).map_err(invalid)?;
        }
        #[cfg(feature = "tls")]
        if arguments.tls.tls_only.contains(&name) {
            entry = entry.with_tls_required();
        }
        exports = exports.with_entry(entry);
        names.push(name);
    }
    #[cfg(feature = "tls")]
    if let Some(name) = arguments.tls.tls_only.iter().find(|name| !names.contains(name)) {
        return Err(Failure::usage(format!("--tls-only {name} names no export that is served")));
    }
    Ok(Opened { exports, names, trackers, in_memory })
}

/// The files that are served, by what they are whatever their paths.
#[derive(Default)]
struct Files(HashMap<Identity, String>);

/// A file or block device.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    File { device: u64, inode: u64 },
    BlockDevice(u64),
}

impl Files {
    /// The export of that name is this file. Each export records changes and knows its size by itself, so that what is
    /// written or resized through another export of the file would be missed.
    fn add(&mut self, path: &Path, name: &str, arguments: &Arguments) -> Result<(), Failure> {
        // Opening it reports what is wrong with it.
        let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
        let identity = if metadata.file_type().is_block_device() {
            Identity::BlockDevice(metadata.rdev())
        } else {
            Identity::File { device: metadata.dev(), inode: metadata.ino() }
        };
        let Some(other) = self.0.insert(identity, name.to_owned()) else { return Ok(()) };
        if arguments.read_only {
            return Ok(());
        }
        let same = format!(
            "the exports '{other}' and '{name}' are the same file, {}",
            quoted(path.as_os_str())
        );
        let needs_one = [
            (
                !arguments.track.is_empty(),
                "--track records only what is written through the same export",
            ),
            (
                arguments.control().is_some(),
                "nbd bitmap (--control) records only what is written through the same export",
            ),
            (arguments.resize, "--resize changes the size of one export only"),
        ];
        if let Some((_, why)) = needs_one.iter().find(|(given, _)| *given) {
            return Err(Failure::usage(format!("{same}, and {why}: export the file once")));
        }
        tracing::warn!("{same}: what clients write to one of them changes the other");
        Ok(())
    }
}

fn check_string(what: &str, text: &str) -> Result<(), Failure> {
    if is_valid_string(text.as_bytes()) {
        return Ok(());
    }
    Err(Failure::usage(format!("the {what} has more than 4096 bytes, or a NUL among them")))
}

/// `NAME=` in front of a backend. What is clearly a backend by itself has no name, so that paths may hold a `=`.
fn split_name(word: &OsStr) -> (Option<&OsStr>, &OsStr) {
    let bytes = word.as_bytes();
    let is_backend = ["file:", "memory:", "/", "./", "../"]
        .iter()
        .any(|start| bytes.starts_with(start.as_bytes()));
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(index) if !is_backend => {
            (Some(OsStr::from_bytes(&bytes[..index])), OsStr::from_bytes(&bytes[index + 1..]))
        }
        _ => (None, word),
    }
}

fn strip<'a>(word: &'a OsStr, prefix: &str) -> Option<&'a OsStr> {
    word.as_bytes().strip_prefix(prefix.as_bytes()).map(OsStr::from_bytes)
}

#[derive(Debug, PartialEq, Eq)]
enum Backend {
    File(PathBuf),
    Memory(u64),
}

impl Backend {
    fn parse(word: &OsStr) -> Result<Self, Failure> {
        if let Some(size) = strip(word, "memory:") {
            return quantity::size(&size.to_string_lossy())
                .map(Self::Memory)
                .map_err(Failure::Usage);
        }
        let path = strip(word, "file:").unwrap_or(word);
        if path.is_empty() {
            return Err(Failure::usage(format!(
                "{} names nothing to serve: give a path, file:PATH or memory:SIZE",
                quoted(word)
            )));
        }
        // What looks like a slip is one only if there is no such file; no slip has other bytes than text.
        if path == word
            && !Path::new(path).exists()
            && let Some(text) = word.to_str()
        {
            if quantity::size(text).is_ok() || text == "memory" {
                let size = if text == "memory" { "1G" } else { text };
                return Err(Failure::usage(format!(
                    "there is no file '{text}': for a disk in memory give memory:{size}"
                )));
            }
            if let Some((kind, _)) = text.split_once(':').filter(|(kind, _)| !kind.contains('/')) {
                return Err(Failure::usage(format!(
                    "'{kind}:' is not a kind of disk that can be served: give a path, file:PATH or memory:SIZE"
                )));
            }
        }
        Ok(Self::File(path.into()))
    }

    /// `word` is what names it on the command line.
    fn open(self, word: &str, arguments: &Arguments) -> Result<Layers, Failure> {
        match self {
            Self::Memory(size) => {
                let memory =
                    Memory::new(size).map_err(|error| Failure::usage(error.to_string()))?;
                if arguments.read_only {
                    wrapped(ReadOnly::new(memory), word, arguments)
                } else {
                    wrapped(memory, word, arguments)
                }
            }
            Self::File(path) => {
                let file = File::options().read_only(arguments.read_only).open(path);
                let file = file.map_err(|error| cannot_open(&error))?;
                wrapped(file, word, arguments)
            }
        }
    }
}

/// The error with the command that makes what is missing.
fn cannot_open(error: &OpenError) -> Failure {
    let remedy = match (error.missing(), error.path()) {
        (Some(Missing::File), Some(path)) => format!(": truncate -s 1G {}", shell_path(path)),
        (Some(Missing::Directory(path)), _) => format!(": mkdir -p {}", shell_path(path)),
        _ => String::new(),
    };
    Failure::failed(format!("{error}{remedy}"))
}

/// An export with the layers around it, and that which records changes.
type Layers = (AnyExport, Option<Arc<Tracker>>);

/// The export with the layers around it that the arguments ask for.
fn wrapped(export: impl Export, word: &str, arguments: &Arguments) -> Result<Layers, Failure> {
    let Arguments { allocation_depth, block_size, block_size_required, .. } = arguments;
    let tracked = !arguments.track.is_empty() || arguments.control().is_some();
    if !tracked && !allocation_depth && block_size.is_none() {
        return Ok((AnyExport::new(export), None));
    }
    let mut export: Box<dyn Export> = Box::new(export);
    if let Some(sizes) = block_size {
        let layer = WithBlockSize::new(export, *sizes).required(*block_size_required);
        check_tail(&layer, word)?;
        export = Box::new(layer);
    }
    if *allocation_depth {
        export = Box::new(WithAllocationDepth::new(export));
    }
    let mut tracker = None;
    if tracked && export.can_write().is_some() {
        let layer = Tracked::new(export);
        tracker = Some(Arc::clone(layer.tracker()));
        export = Box::new(layer);
    }
    Ok((AnyExport::new(export), tracker))
}

/// Says so when the end of a disk can't be reached in whole blocks, and refuses one of which nothing is left.
fn check_tail<E: Export>(layer: &WithBlockSize<E>, word: &str) -> Result<(), Failure> {
    let (cut, block) = (layer.cut_off(), layer.block_size().minimum());
    if cut > 0 && layer.size() == 0 {
        return Err(Failure::usage(format!(
            "'{word}' has {cut} bytes, fewer than a block of {block}: give a smaller --block-size"
        )));
    }
    if cut > 0 {
        tracing::warn!(
            "the last {cut} bytes of '{word}' are not served, since its size is no multiple of the block size, {block}: \
             give a --block-size that divides it to serve all"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(word: &str) -> (Option<&str>, &str) {
        let (name, backend) = split_name(word.as_ref());
        (name.and_then(OsStr::to_str), backend.to_str().unwrap())
    }

    #[test]
    fn names_are_split_off_unless_the_word_is_a_backend_by_itself() {
        assert_eq!(split("a=memory:1G"), (Some("a"), "memory:1G"));
        assert_eq!(split("=disk.img"), (Some(""), "disk.img"));
        assert_eq!(split("memory:1G"), (None, "memory:1G"));
        assert_eq!(split("./a=b.img"), (None, "./a=b.img"));
        assert_eq!(split("file:a=b.img"), (None, "file:a=b.img"));
        assert_eq!(split("disk.img"), (None, "disk.img"));
    }

    #[test]
    fn backends_are_paths_or_memory() {
        let parse = |text: &str| Backend::parse(text.as_ref());
        assert_eq!(parse("memory:4k").unwrap(), Backend::Memory(4096));
        assert_eq!(parse("file:memory:4k").unwrap(), Backend::File("memory:4k".into()));
        assert_eq!(parse("x.img").unwrap(), Backend::File("x.img".into()));
        for text in ["memory:", "memory:big", "file:", "", "memory", "10G", "null:", "nbd://a/b"] {
            assert!(matches!(parse(text), Err(Failure::Usage(_))), "{text}");
        }
    }

    #[test]
    fn paths_are_bytes_and_names_are_not() {
        let word = OsStr::from_bytes(b"a=caf\xe9=x.img");
        let (name, backend) = split_name(word);
        assert_eq!(name, Some(OsStr::new("a")));
        let path = PathBuf::from(OsStr::from_bytes(b"caf\xe9=x.img"));
        assert_eq!(Backend::parse(backend).unwrap(), Backend::File(path));
        let size = OsStr::from_bytes(b"memory:\xe9");
        assert!(matches!(Backend::parse(size), Err(Failure::Usage(_))));
    }
}
