//! Why a volume can't be opened or managed.

mod words;

use slatedb::object_store;

use crate::names::CUT_OFF;
use words::CREDENTIALS;
pub(crate) use words::{chain, rooted};

/// Why something could not be done with a volume. Each text names the volume's URL and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The URL names no volume or object, or the environment lacks what its store needs.
    #[error("{0}")]
    Location(String),

    /// An argument is out of range, such as a size of 0.
    #[error("{0}")]
    Invalid(String),

    /// There is no volume.
    #[error(
        "there is no volume at {url}: nbd volume list shows which there are, nbd volume create makes one"
    )]
    NotFound {
        /// The URL that has none.
        url: String,
    },

    /// There is no object.
    #[error("there is no object at {url}; nbd serve volume:URL serves a volume")]
    NoObject {
        /// The URL that has none.
        url: String,
    },

    /// The store does not accept the credentials, or they may not do what was asked.
    #[error("the store refuses access to {url}: {reason}; {remedy}")]
    Refused {
        /// The volume or object.
        url: String,
        /// What the store said.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },

    /// The web server sends the object only as a whole.
    #[error(
        "the server of {url} does not give parts of it (Range and 206): download it, and serve the file"
    )]
    NoRanges {
        /// The object.
        url: String,
    },

    /// What the server gives is compressed.
    #[error(
        "{url} is compressed on its server (Content-Encoding: {encoding}), and is no disk as it is: download it, decompress \
         it, and serve the file"
    )]
    Compressed {
        /// The object.
        url: String,
        /// What the server calls the compression.
        encoding: String,
    },

    /// There is a volume already, or the beginning of one.
    #[error(
        "there is a volume at {url} already: choose another URL, or delete it with nbd volume delete"
    )]
    Exists {
        /// The volume.
        url: String,
    },

    /// A volume would lie inside of another one, or does.
    #[error(
        "{url} and the volume at {other} lie inside of each other, and would be deleted together: {remedy}"
    )]
    Nested {
        /// The volume.
        url: String,
        /// The other one.
        other: String,
        /// What to do.
        remedy: &'static str,
    },

    /// There is no snapshot of that name.
    #[error("the volume at {url} has no snapshot '{name}'; nbd volume info lists them")]
    NoSnapshot {
        /// The volume.
        url: String,
        /// The name that was asked for.
        name: String,
    },

    /// There is a snapshot of that name already.
    #[error(
        "the volume at {url} has a snapshot '{name}' already: choose another name, or delete it"
    )]
    SnapshotExists {
        /// The volume.
        url: String,
        /// The name of the snapshot.
        name: String,
    },

    /// The server that has the volume open was asked by way of the store, and failed.
    #[error("the server of {url} ({server}) says: {reason}")]
    Server {
        /// The volume.
        url: String,
        /// The host and process of the server.
        server: String,
        /// What it said.
        reason: String,
    },

    /// The volume was written by a later version of this crate.
    #[error(
        "the volume at {url} has format {found}, and this program knows formats up to {known}: use the version that \
         wrote it, or a later one"
    )]
    Format {
        /// The volume.
        url: String,
        /// The format that it has.
        found: u32,
        /// The latest format that is understood.
        known: u32,
    },

    /// The volume's own records make no sense, or a part of its log is missing.
    #[error("the volume at {url} is damaged: {what}")]
    Damaged {
        /// The volume.
        url: String,
        /// What is wrong.
        what: String,
    },

    /// The store overwrites objects although it was asked not to.
    #[error(
        "the store of {url} does not honour conditional writes (If-None-Match), so that two servers could damage a volume: \
         use a store that does, such as Amazon S3, Google Cloud Storage, Azure, or a recent MinIO"
    )]
    Unconditional {
        /// The volume.
        url: String,
    },

    /// The volume is encrypted, and there is no key.
    #[error(
        "the volume at {url} is encrypted, and there is no key: name the file that holds it in NBD_VOLUME_KEY_FILE"
    )]
    NoKey {
        /// The volume.
        url: String,
    },

    /// The volume is encrypted with another key.
    #[error(
        "the volume at {url} is encrypted with another key than that of the file in NBD_VOLUME_KEY_FILE: name the file that \
         holds its key"
    )]
    WrongKey {
        /// The volume.
        url: String,
    },

    /// The file of a key can't be used.
    #[error("{} can't be the key of a volume: {reason}", path.display())]
    KeyFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },

    /// The directory of the cache on disk can't be used.
    #[error(
        "{} can't be a cache of volumes: {reason}; give a directory on a local disk that this user can write, or none",
        directory.display()
    )]
    Cache {
        /// The directory.
        directory: std::path::PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A server has the volume open, or does not answer what it was asked by way of the store.
    #[error("the volume at {url} is open: {writer} has it; {remedy}")]
    Busy {
        /// The volume.
        url: String,
        /// The host and process of the server.
        writer: String,
        /// What to do.
        remedy: String,
    },

    /// Clones read the volume's objects.
    #[error(
        "the volume at {url} has clones ({clones}), which read data that lies here: delete the clones first"
    )]
    Cloned {
        /// The volume.
        url: String,
        /// How many there are at least.
        clones: usize,
    },

    /// Another server has opened the volume meanwhile.
    #[error("another server has opened the volume at {url}")]
    Fenced {
        /// The volume.
        url: String,
    },

    /// The store failed, or did not answer in time.
    #[error("cannot {doing} {url}: {reason}")]
    Store {
        /// The volume.
        url: String,
        /// What was being done, such as "open".
        doing: &'static str,
        /// What the store said.
        reason: String,
    },
}

/// What to do about an object that can't be read.
const REMEDY: &str = "; restore that object, such as from the bucket's versions or a backup; snapshots that do without it can be \
                      served";

/// What is wrong, for who says by himself what to do.
pub(crate) fn without_remedy(mut what: String) -> String {
    if what.ends_with(REMEDY) {
        what.truncate(what.len() - REMEDY.len());
    }
    what
}

/// What SlateDB says when it has panicked over the bytes of an object, such as one that is cut off: its tasks that read
/// objects do nothing else.
const PANICKED: &str = "task panicked unexpectedly";

/// What SlateDB says when the bytes of a manifest make no sense.
const UNDECODABLE: &str = "generic transactional object";

impl Error {
    /// A failure of SlateDB's while doing something.
    pub(crate) fn database(url: &str, doing: &'static str, error: &slatedb::Error) -> Self {
        use slatedb::{CloseReason, ErrorKind};
        if error.kind() == ErrorKind::Closed(CloseReason::Fenced) {
            return Self::Fenced { url: url.to_owned() };
        }
        let reason = rooted(url, chain(error));
        let is_damage = [CUT_OFF, PANICKED, UNDECODABLE].iter().any(|text| reason.contains(text));
        if error.kind() == ErrorKind::Data || is_damage {
            return Self::Damaged { url: url.to_owned(), what: reason + REMEDY };
        }
        Self::Store { url: url.to_owned(), doing, reason }
    }

    /// A local file or folder that can't be used.
    pub(crate) fn of_folder(
        url: &str,
        doing: &'static str,
        path: &std::path::Path,
        error: std::io::Error,
    ) -> Self {
        let path = path.display();
        let remedy = remedy_of_directory(&error).unwrap_or("have its owner allow that");
        Self::Store {
            url: url.to_owned(),
            doing,
            reason: format!("{path} can't be used: {error}; {remedy}"),
        }
    }

    /// A failure of the store's while doing something.
    pub(crate) fn store(url: &str, doing: &'static str, error: &object_store::Error) -> Self {
        use object_store::Error as Kind;
        let reason = rooted(url, chain(error));
        // Those of listings have no kind of their own.
        let is_refused =
            matches!(error, Kind::PermissionDenied { .. } | Kind::Unauthenticated { .. })
                || ["status code: 401", "status code: 403"]
                    .iter()
                    .any(|text| reason.contains(text));
        let url = url.to_owned();
        if is_refused {
            let remedy = match url.starts_with("http") {
                true => {
                    "no credentials are sent to web servers: give a URL that is signed, or the bucket's, such as s3://BUCKET/KEY"
                }
                false => CREDENTIALS,
            };
            return Self::Refused { url, reason, remedy };
        }
        if let Some(remedy) = of_directory(error) {
            let reason = reason.trim_start_matches("Generic LocalFileSystem error: ");
            return Self::Store { url, doing, reason: format!("{reason}; {remedy}") };
        }
        let reason = match is_of_another_region(&reason) && !url.starts_with("http") {
            true => format!("{reason}; set AWS_REGION to the region of the bucket"),
            false => reason,
        };
        Self::Store { url, doing, reason }
    }
}

/// What to do about a failure of a local directory that waiting does not repair. None for others, such as a full disk.
fn of_directory(error: &object_store::Error) -> Option<&'static str> {
    let object_store::Error::Generic { store: "LocalFileSystem", source } = error else {
        return None;
    };
    let mut next: Option<&(dyn core::error::Error + 'static)> = Some(&**source);
    let failed = loop {
        let error = next?;
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            break error;
        }
        next = error.source();
    };
    // Files are made again after others have removed their directory.
    let is_missing = failed.kind() == std::io::ErrorKind::NotFound;
    match is_missing && source.to_string().contains("create dir") {
        true => Some("no directory can be made there: choose another one"),
        false => remedy_of_directory(failed),
    }
}

/// What to do about an error of a local directory that waiting does not repair.
fn remedy_of_directory(error: &std::io::Error) -> Option<&'static str> {
    use rustix::io::Errno;
    match Errno::from_io_error(error)? {
        Errno::ACCESS | Errno::PERM => {
            Some("choose a directory that this user may write, or have its owner allow that")
        }
        Errno::ROFS => Some("the file system is read-only: choose a directory on another one"),
        Errno::NOTDIR | Errno::ISDIR => {
            Some("a file is where a directory is needed, or the reverse: choose another directory")
        }
        Errno::NAMETOOLONG | Errno::INVAL | Errno::LOOP => {
            Some("the file system does not take such a path: choose another directory")
        }
        _ => None,
    }
}

/// Whether a request that failed in this way would fail in the same way again.
pub(crate) fn is_lasting(error: &object_store::Error) -> bool {
    use object_store::Error as Kind;
    match error {
        Kind::NotFound { .. }
        | Kind::AlreadyExists { .. }
        | Kind::Precondition { .. }
        | Kind::InvalidPath { .. }
        | Kind::NotSupported { .. }
        | Kind::NotImplemented { .. }
        | Kind::PermissionDenied { .. }
        | Kind::Unauthenticated { .. }
        | Kind::UnknownConfigurationKey { .. } => true,
        // The rest has no kind of its own.
        _ => {
            let reason = chain(error);
            is_of_another_region(&reason)
                || is_refused_for_good(&reason)
                || of_directory(error).is_some()
        }
    }
}

/// Whether a store of S3 has redirected to its bucket's region without saying where that is.
fn is_of_another_region(reason: &str) -> bool {
    reason.contains("redirect without LOCATION")
}

/// Whether a server has answered that the request is wrong, and not that it came at a wrong time.
fn is_refused_for_good(reason: &str) -> bool {
    const STATUS: &str = "status code: ";
    let Some(start) = reason.find(STATUS) else { return false };
    let status = reason[start + STATUS.len()..].split_whitespace().next().unwrap_or_default();
    let is_passing = ["408", "425", "429"].contains(&status)
        // What S3 says of a connection that was too slow, with status 400.
        || reason.contains("RequestTimeout");
    status.len() == 3 && status.starts_with('4') && !is_passing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_not_be_written_is_not_waited_for() {
        let url = "file:///srv/v";
        for (error, expected) in [
            (rustix::io::Errno::ACCESS, Some("this user may write")),
            (rustix::io::Errno::ROFS, Some("read-only")),
            (rustix::io::Errno::NOTDIR, Some("choose another directory")),
            (rustix::io::Errno::NOSPC, None),
            (rustix::io::Errno::IO, None),
        ] {
            let source: Box<dyn core::error::Error + Send + Sync> =
                Box::new(std::io::Error::from(error));
            let error = object_store::Error::Generic { store: "LocalFileSystem", source };
            assert_eq!(is_lasting(&error), expected.is_some());
            let text = Error::store(url, "write to", &error).to_string();
            assert!(text.contains(expected.unwrap_or(url)), "{text}");
        }
    }
}
