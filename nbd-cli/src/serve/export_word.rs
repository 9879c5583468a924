//! The words of the command line that name an export: `[NAME=]BACKEND`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::config::{Backend, Export};
use super::layers::{self, Layer};
use crate::exit::{Failure, not_utf8};
use crate::output::quoted;
use crate::quantity;

/// The name in front, if there is one, and what is to be served.
pub(super) fn parse(word: &OsStr) -> Result<(Option<&str>, Backend<'_>), Failure> {
    let (name, backend) = split_name(word);
    let name = name.map(|name| name.to_str().ok_or_else(|| not_utf8(name))).transpose()?;
    Ok((name, parse_backend(backend)?))
}

/// The export that a word names, with layers around it, for a server that runs elsewhere: paths are made absolute.
pub(crate) fn export_of(word: &OsStr, layers: &[String]) -> Result<Export, Failure> {
    let (name, backend) = parse(word)?;
    let name = name.unwrap_or_default();
    let mut export = match backend {
        Backend::File(path) => Export::new(name, Backend::File(&absolute(path)?)),
        Backend::Directory(path) => Export::new(name, Backend::Directory(&absolute(path)?)),
        Backend::Memory(_) | Backend::Volume(_) | Backend::Object(_) => Export::new(name, backend),
    };
    export.layers = layers::of_words(layers)?;
    for path in export.layers.iter_mut().filter_map(Layer::path_mut) {
        *path = absolute(path)?;
    }
    Ok(export)
}

/// The path as one that another process can use, and be sent.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path).map_err(|error| {
        Failure::failed(format!(
            "cannot find the current folder, which the path {} begins at: {error}; change to one that is there",
            path.display()
        ))
    })?;
    if path.to_str().is_none() {
        return Err(not_utf8(path.as_os_str()));
    }
    Ok(path)
}

/// How URLs of objects begin.
const OBJECTS: [&str; 8] =
    ["s3://", "s3a://", "gs://", "az://", "abfs://", "azure://", "https://", "http://"];

/// Whether a word means one disk that is no file.
pub(crate) fn is_disk(word: &OsStr) -> bool {
    let kinds = ["memory:", "volume:"];
    kinds.iter().chain(&OBJECTS).any(|start| word.as_bytes().starts_with(start.as_bytes()))
}

/// `NAME=` in front of a backend. What is clearly a backend by itself has no name, so that paths may hold a `=`.
fn split_name(word: &OsStr) -> (Option<&OsStr>, &OsStr) {
    let bytes = word.as_bytes();
    let is_backend = ["file:", "memory:", "dir:", "volume:", "/", "./", "../"]
        .iter()
        .chain(&OBJECTS)
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

fn parse_backend(word: &OsStr) -> Result<Backend<'_>, Failure> {
    if let Some(size) = strip(word, "memory:") {
        return quantity::size(&size.to_string_lossy())
            .map(Backend::Memory)
            .map_err(Failure::Usage);
    }
    if let Some(url) = strip(word, "volume:") {
        return url.to_str().map(Backend::Volume).ok_or_else(|| not_utf8(url));
    }
    if OBJECTS.iter().any(|start| word.as_bytes().starts_with(start.as_bytes())) {
        return word.to_str().map(Backend::Object).ok_or_else(|| not_utf8(word));
    }
    let directory = strip(word, "dir:");
    let path = directory.or_else(|| strip(word, "file:")).unwrap_or(word);
    if path.is_empty() {
        return Err(Failure::usage(format!(
            "{} names nothing to serve: give a path, file:PATH, dir:PATH, memory:SIZE, volume:URL or the URL of an object",
            quoted(word)
        )));
    }
    if directory.is_some() {
        return Ok(Backend::Directory(Path::new(path)));
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
        if text == "file" {
            return Err(Failure::usage(
                "there is no file 'file': a file or a block device is served by its path alone, a directory by dir:PATH",
            ));
        }
        if matches!(text, "curl" | "s3") {
            return Err(Failure::usage(format!(
                "there is no file '{text}': an object is served by its URL alone, such as https://HOST/PATH or s3://BUCKET/KEY"
            )));
        }
        if let Some((kind, _)) = text.split_once(':').filter(|(kind, _)| !kind.contains('/')) {
            if matches!(kind, "s3" | "gs" | "az") {
                return Err(Failure::usage(format!(
                    "there is no file '{text}': for an object give {kind}://BUCKET/KEY, for a volume \
                     volume:{kind}://BUCKET/PREFIX"
                )));
            }
            return Err(Failure::usage(format!(
                "'{kind}:' is not a kind of disk that can be served: give a path, file:PATH, dir:PATH, \
                 memory:SIZE, volume:URL or the URL of an object"
            )));
        }
    }
    Ok(Backend::File(Path::new(path)))
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
        assert_eq!(split("volume:s3://b/a=b"), (None, "volume:s3://b/a=b"));
        assert_eq!(split("https://host/a?b=c"), (None, "https://host/a?b=c"));
        assert_eq!(split("x=https://host/a?b=c"), (Some("x"), "https://host/a?b=c"));
        assert_eq!(split("./a=b.img"), (None, "./a=b.img"));
        assert_eq!(split("file:a=b.img"), (None, "file:a=b.img"));
        assert_eq!(split("disk.img"), (None, "disk.img"));
        assert_eq!(split("dir:a=b"), (None, "dir:a=b"));
        assert_eq!(split("a=dir:b"), (Some("a"), "dir:b"));
    }

    #[test]
    fn backends_are_paths_or_memory() {
        fn parse(text: &str) -> Result<Backend<'_>, Failure> {
            parse_backend(text.as_ref())
        }
        assert_eq!(parse("memory:4k").unwrap(), Backend::Memory(4096));
        assert_eq!(parse("file:memory:4k").unwrap(), Backend::File(Path::new("memory:4k")));
        assert_eq!(parse("volume:s3://b/v@x").unwrap(), Backend::Volume("s3://b/v@x"));
        assert_eq!(parse("s3://b/v").unwrap(), Backend::Object("s3://b/v"));
        assert_eq!(parse("http://h/d?a").unwrap(), Backend::Object("http://h/d?a"));
        assert!(parse("s3:b/v").unwrap_err().text().contains("volume:s3://BUCKET"));
        assert_eq!(parse("x.img").unwrap(), Backend::File(Path::new("x.img")));
        assert_eq!(parse("dir:x").unwrap(), Backend::Directory(Path::new("x")));
        assert_eq!(parse("file:dir:x").unwrap(), Backend::File(Path::new("dir:x")));
        for text in [
            "dir:",
            "memory:",
            "memory:big",
            "file:",
            "",
            "memory",
            "curl",
            "10G",
            "null:",
            "nbd://a/b",
        ] {
            assert!(matches!(parse(text), Err(Failure::Usage(_))), "{text}");
        }
    }

    #[test]
    fn paths_are_bytes_and_names_are_not() {
        let word = OsStr::from_bytes(b"a=caf\xe9=x.img");
        let (name, backend) = split_name(word);
        assert_eq!(name, Some(OsStr::new("a")));
        let path = Path::new(OsStr::from_bytes(b"caf\xe9=x.img"));
        assert_eq!(parse_backend(backend).unwrap(), Backend::File(path));
        let size = OsStr::from_bytes(b"memory:\xe9");
        assert!(matches!(parse_backend(size), Err(Failure::Usage(_))));
    }
}
