//! The values that are looked up: files, and the exports of servers.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc;
use std::time::Duration;

use clap_complete::PathCompleter;
use clap_complete::engine::{CompletionCandidate, ValueCompleter};
use nbd_blocking::Negotiation;
use nbd_blocking::client::{ClientConfig, Listing, Uri};

use crate::output::printable;

/// How long a server may take to list its exports, until the person at the shell goes on without.
const PATIENCE: Duration = Duration::from_secs(2);

/// The exports that are offered, at most: more don't fit a screen.
const MAX_EXPORTS: usize = 1000;

/// What URIs begin with.
const SCHEMES: &[(&str, &str)] = &[
    ("nbd://", "TCP"),
    ("nbd+unix:///?socket=", "Unix socket"),
    #[cfg(feature = "tls")]
    ("nbds://", "TLS over TCP"),
    #[cfg(feature = "tls")]
    ("nbds+unix:///?socket=", "TLS over a Unix socket"),
];

/// A server's URI, or the words of a command between brackets.
pub(super) fn server(current: &OsStr) -> Vec<CompletionCandidate> {
    match current.to_str() {
        Some(text) if text.contains("://") => uri(text),
        // The first words of an empty line are URIs; files follow in case that it is a word of a command.
        _ => server_or_path(current),
    }
}

/// A server's URI, or a file.
pub(super) fn server_or_path(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(text) = current.to_str() else { return paths(current) };
    if text.contains("://") {
        return uri(text);
    }
    let schemes = SCHEMES.iter().filter(|(scheme, _)| scheme.starts_with(text));
    let schemes =
        schemes.map(|(scheme, help)| CompletionCandidate::new(*scheme).help(Some((*help).into())));
    schemes.chain(paths(current)).collect()
}

/// What `nbd serve` serves: `[NAME=]BACKEND`.
pub(super) fn backend(current: &OsStr) -> Vec<CompletionCandidate> {
    let bytes = current.as_bytes();
    // The value of an option, which has candidates of its own, is no name.
    if bytes.starts_with(b"-") {
        return Vec::new();
    }
    let by_itself: [&[u8]; 5] = [b"/", b"./", b"../", b"file:", b"dir:"];
    let named = !by_itself.iter().any(|start| bytes.starts_with(start));
    let name = bytes.iter().position(|byte| *byte == b'=').filter(|_| named).map_or(0, |i| i + 1);
    let kinds: [&[u8]; 2] = [b"file:", b"dir:"];
    let kind = kinds.iter().find(|kind| bytes[name..].starts_with(kind));
    let kind = name + kind.map_or(0, |kind| kind.len());
    let (prefix, rest) = bytes.split_at(kind);
    let mut candidates = paths(OsStr::from_bytes(rest));
    if kind == name {
        let kinds = [
            ("memory:", "a disk in memory"),
            ("file:", "a file or block device"),
            ("dir:", "each file of a directory"),
            #[cfg(feature = "volume")]
            ("volume:", "a volume on object storage"),
            #[cfg(feature = "volume")]
            ("https://", "a file of a web server, for reading"),
            #[cfg(feature = "volume")]
            ("s3://", "an object in a bucket, for reading"),
        ];
        let kinds = kinds.into_iter().filter(|(word, _)| word.as_bytes().starts_with(rest));
        let kinds =
            kinds.map(|(word, help)| CompletionCandidate::new(word).help(Some(help.into())));
        candidates.extend(kinds);
    }
    let prefix = OsStr::from_bytes(prefix);
    candidates.into_iter().map(|candidate| candidate.add_prefix(prefix)).collect()
}

/// What `nbd info` can be asked for.
pub(super) fn feature(current: &OsStr) -> Vec<CompletionCandidate> {
    among(current, crate::info::features().map(|name| (name.to_owned(), "")))
}

/// The layers of `nbd serve`, with a colon behind those that need a value.
pub(super) fn layer(current: &OsStr) -> Vec<CompletionCandidate> {
    among(current, crate::serve::layers())
}

/// Those of some words that begin as what was typed.
fn among(
    current: &OsStr,
    words: impl Iterator<Item = (String, &'static str)>,
) -> Vec<CompletionCandidate> {
    let words = words.filter(|(word, _)| word.as_bytes().starts_with(current.as_bytes()));
    words
        .map(|(word, help)| {
            CompletionCandidate::new(word).help((!help.is_empty()).then(|| help.into()))
        })
        .collect()
}

fn paths(current: &OsStr) -> Vec<CompletionCandidate> {
    PathCompleter::any().complete(current)
}

/// The path of a Unix socket, or an export of the server.
fn uri(text: &str) -> Vec<CompletionCandidate> {
    if let Some(index) = text.find("socket=") {
        let (prefix, path) = text.split_at(index + "socket=".len());
        let candidates = paths(path.as_ref()).into_iter();
        return candidates.map(|candidate| candidate.add_prefix(prefix)).collect();
    }
    let Some(authority) = text.find("://").map(|index| index + "://".len()) else {
        return Vec::new();
    };
    let Some(slash) = text[authority..].find('/').map(|index| authority + index) else {
        return Vec::new();
    };
    let (server, typed) = text.split_at(slash + 1);
    let Some((server_uri, exports)) = exports(server) else { return Vec::new() };
    let mut candidates = Vec::new();
    for Listing { name, description, .. } in exports.into_iter().take(MAX_EXPORTS) {
        let Some(name) = encoded(&server_uri, &name).filter(|name| name.starts_with(typed)) else {
            continue;
        };
        let help = (!description.is_empty()).then(|| printable(&description).into());
        candidates.push(CompletionCandidate::new(format!("{server}{name}")).help(help));
    }
    candidates
}

/// The name of an export as the last part of a URI.
fn encoded(server: &Uri, name: &str) -> Option<String> {
    let uri = server.clone().with_export(name).ok()?.to_string();
    let (_, rest) = uri.split_once("://")?;
    rest.split_once('/').map(|(_, name)| name.to_owned())
}

/// Asks a server for its exports. One that is slow, or refuses to list them, has none.
fn exports(server: &str) -> Option<(Uri, Vec<Listing>)> {
    let uri: Uri = server.parse().ok()?;
    let (sender, receiver) = mpsc::channel();
    let asked = uri.clone();
    // The bounds of a client are on each answer, and a name look-up has none. What goes on after all of that ends with the
    // process.
    let ask = move || {
        let config =
            ClientConfig::new().with_connect_timeout(PATIENCE).with_request_timeout(Some(PATIENCE));
        let mut negotiation = Negotiation::connect(&asked, &config).ok()?;
        let listings = negotiation.list().ok()?;
        let _disconnected = negotiation.abort();
        sender.send(listings).ok()
    };
    std::thread::Builder::new().spawn(ask).ok()?;
    Some((uri, receiver.recv_timeout(PATIENCE).ok()?))
}

#[cfg(test)]
mod tests {
    use nbd_engine::export::{ExportMap, Memory};

    use super::*;

    fn values(candidates: Vec<CompletionCandidate>) -> Vec<String> {
        let text = |candidate: &CompletionCandidate| candidate.get_value().to_str().map(Into::into);
        candidates.iter().map(|candidate| text(candidate).expect("it is UTF-8")).collect()
    }

    #[test]
    fn the_exports_of_a_server_complete_its_uri() {
        let exports =
            ["alpha", "alter ego", "beta"].into_iter().fold(ExportMap::new(), |exports, name| {
                exports.with(name, Memory::new(4096).unwrap()).unwrap()
            });
        let server = nbd_blocking::Server::new(exports);
        let listening = server.listen_tcp(("127.0.0.1", 0)).unwrap();
        let address = listening.local_addr().to_string();
        let base = if address.contains("://") { address } else { format!("nbd://{address}") };
        let base = base.trim_end_matches('/');
        let found = values(server_or_path(format!("{base}/al").as_ref()));
        assert_eq!(found, [format!("{base}/alpha"), format!("{base}/alter%20ego")]);
        server.shut_down();
        listening.join();
        assert_eq!(values(server_or_path(format!("{base}/al").as_ref())), [""; 0]);
    }

    #[test]
    fn files_complete_where_the_command_line_takes_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, "").unwrap();
        let start = folder.path().join("di").display().to_string();
        let path = path.display().to_string();
        for prefix in ["", "a=", "file:", "a=file:", "dir:", "a=dir:"] {
            let found = values(backend(format!("{prefix}{start}").as_ref()));
            assert_eq!(found, [format!("{prefix}{path}")]);
        }
        let found = values(server(format!("nbd+unix:///a?socket={start}").as_ref()));
        assert_eq!(found, [format!("nbd+unix:///a?socket={path}")]);
        assert_eq!(values(backend("x=mem".as_ref())), ["x=memory:"]);
        assert_eq!(values(server("nbd:".as_ref())), ["nbd://"]);
        // There is no server in these.
        for text in ["nbd://", "nbd://h", "x://y/", "nbd://[/"] {
            assert_eq!(values(server(text.as_ref())), [""; 0], "{text}");
        }
    }
}
