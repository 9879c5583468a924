//! From the words of the command line to exports.

use std::path::{Path, PathBuf};

use nbd_engine::export::{
    Export, ExportMap, File, Handle, Memory, ReadOnly, Tracked, WithAllocationDepth, WithBlockSize,
};
use nbd_engine::proto::wire::is_valid_string;

use super::Arguments;
use crate::exit::Failure;
use crate::quantity;

/// Opens everything that is to be served.
pub(super) fn open(arguments: &Arguments) -> Result<(ExportMap, Vec<String>), Failure> {
    let mut exports = ExportMap::new();
    let mut names: Vec<String> = Vec::new();
    if let Some(description) = &arguments.description {
        check_string("description", description)?;
    }
    if arguments.oldstyle && arguments.backends.len() > 1 {
        let text = "oldstyle clients get the one export that there is: leave out the others";
        return Err(Failure::usage(text));
    }
    for word in &arguments.backends {
        let (name, backend) = split_name(word);
        let name = name.or(arguments.export_name.as_deref()).unwrap_or_default().to_owned();
        check_string("export name", &name)?;
        if names.contains(&name) {
            return Err(Failure::usage(format!(
                "two exports are called '{name}': give each its own name, such as first={backend}"
            )));
        }
        let handle = Backend::parse(backend)?.open(arguments)?;
        exports = exports.with_handle(name.as_str(), arguments.description.clone(), handle);
        names.push(name);
    }
    Ok((exports, names))
}

fn check_string(what: &str, text: &str) -> Result<(), Failure> {
    if is_valid_string(text.as_bytes()) {
        return Ok(());
    }
    Err(Failure::usage(format!("the {what} has more than 4096 bytes, or a NUL among them")))
}

/// `NAME=` in front of a backend. What is clearly a backend by itself has no name, so that paths may hold a `=`.
fn split_name(word: &str) -> (Option<&str>, &str) {
    let is_backend =
        ["file:", "memory:", "/", "./", "../"].iter().any(|start| word.starts_with(start));
    match word.split_once('=') {
        Some((name, backend)) if !is_backend => (Some(name), backend),
        _ => (None, word),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Backend {
    File(PathBuf),
    Memory(u64),
}

impl Backend {
    fn parse(text: &str) -> Result<Self, Failure> {
        if let Some(size) = text.strip_prefix("memory:") {
            return quantity::size(size).map(Self::Memory).map_err(Failure::Usage);
        }
        let path = text.strip_prefix("file:").unwrap_or(text);
        if path.is_empty() {
            return Err(Failure::usage(format!(
                "'{text}' names nothing to serve: give a path, file:PATH or memory:SIZE"
            )));
        }
        // What looks like a slip is one only if there is no such file.
        if path == text && !Path::new(path).exists() {
            if quantity::size(text).is_ok() || text == "memory" {
                let size = if text == "memory" { "1G" } else { text };
                return Err(Failure::usage(format!(
                    "there is no file '{text}': for a disk in memory say memory:{size}"
                )));
            }
            if let Some((kind, _)) = text.split_once(':').filter(|(kind, _)| !kind.contains('/')) {
                return Err(Failure::usage(format!(
                    "'{kind}:' is no kind of disk that can be served: give a path, file:PATH or memory:SIZE"
                )));
            }
        }
        Ok(Self::File(path.into()))
    }

    fn open(self, arguments: &Arguments) -> Result<Handle, Failure> {
        match self {
            Self::Memory(size) => {
                let memory =
                    Memory::new(size).map_err(|error| Failure::usage(error.to_string()))?;
                if arguments.read_only {
                    wrapped(ReadOnly::new(memory), arguments)
                } else {
                    wrapped(memory, arguments)
                }
            }
            Self::File(path) => {
                let file = File::options().read_only(arguments.read_only).open(path);
                wrapped(file.map_err(|error| Failure::failed(error.to_string()))?, arguments)
            }
        }
    }
}

/// The export with the layers around it that the arguments ask for.
fn wrapped(export: impl Export, arguments: &Arguments) -> Result<Handle, Failure> {
    let Arguments { track, allocation_depth, block_size, block_size_required, .. } = arguments;
    if track.is_empty() && !allocation_depth && block_size.is_none() {
        return Ok(Handle::new(export));
    }
    let mut export: Box<dyn Export> = Box::new(export);
    if let Some(sizes) = block_size {
        export = Box::new(WithBlockSize::new(export, *sizes).required(*block_size_required));
    }
    if *allocation_depth {
        export = Box::new(WithAllocationDepth::new(export));
    }
    if !track.is_empty() && export.writes().is_some() {
        let tracked = Tracked::new(export);
        for name in track {
            let started = tracked.tracker().start(name);
            started.map_err(|error| Failure::usage(format!("--track '{name}': {error}")))?;
        }
        export = Box::new(tracked);
    }
    Ok(Handle::Blocking(export.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_off_unless_the_word_is_a_backend_by_itself() {
        assert_eq!(split_name("a=memory:1G"), (Some("a"), "memory:1G"));
        assert_eq!(split_name("=disk.img"), (Some(""), "disk.img"));
        assert_eq!(split_name("memory:1G"), (None, "memory:1G"));
        assert_eq!(split_name("./a=b.img"), (None, "./a=b.img"));
        assert_eq!(split_name("file:a=b.img"), (None, "file:a=b.img"));
        assert_eq!(split_name("disk.img"), (None, "disk.img"));
    }

    #[test]
    fn backends_are_paths_or_memory() {
        assert_eq!(Backend::parse("memory:4k").unwrap(), Backend::Memory(4096));
        assert_eq!(Backend::parse("file:memory:4k").unwrap(), Backend::File("memory:4k".into()));
        assert_eq!(Backend::parse("x.img").unwrap(), Backend::File("x.img".into()));
        for text in ["memory:", "memory:big", "file:", "", "memory", "10G", "null:", "nbd://a/b"] {
            assert!(matches!(Backend::parse(text), Err(Failure::Usage(_))), "{text}");
        }
    }
}
