//! What can be wrong with certificates, keys and names, before any connection.

use std::io;
use std::path::{Path, PathBuf};

/// What a file of pre-shared keys is called in errors.
pub(super) const KEYS: &str = "file of pre-shared keys";

/// Why TLS can't be set up. Each text names the file, where there is one, and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can't be read.
    #[error("cannot read the {what} {}: {source}{}", .path.display(), remedy(.what, .path, .source))]
    Unreadable {
        /// What should be in it.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the platform reports.
        source: io::Error,
    },
    /// A file holds nothing that can be used.
    #[error("{} holds no {what} in PEM format: put one into it, or make them by nbd cert", .path.display())]
    Empty {
        /// What should be in it.
        what: &'static str,
        /// Which file.
        path: PathBuf,
    },
    /// A file of pre-shared keys that has none.
    #[error(
        "the file of pre-shared keys {path} is empty; add a user: nbd psk {path} USER",
        path = .0.display()
    )]
    NoKeys(PathBuf),
    /// A file holds something that can't be parsed.
    #[error("{} is no usable {what}: {reason}", .path.display())]
    Malformed {
        /// What should be in it.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A private key that every user of the machine can read.
    #[error(
        "every user of this machine can read the private key {path}; make it private: chmod 600 {path}",
        path = .0.display()
    )]
    KeyIsPublic(PathBuf),
    /// A private key behind a passphrase.
    #[error(
        "the private key {path} is encrypted, and there is nobody to ask for its passphrase; decrypt it to a file of its \
         own: (umask 077; openssl pkey -in {path} -out NEW)",
        path = .0.display()
    )]
    KeyIsEncrypted(PathBuf),
    /// A certificate whose time is over.
    #[error(
        "the certificate {} expired at {end}; replace it, with nbd cert DIR --renew if that has made it, or correct this \
         machine's clock",
        .path.display()
    )]
    Expired {
        /// Which file.
        path: PathBuf,
        /// When.
        end: String,
    },
    /// A certificate whose time has not come.
    #[error(
        "the certificate {} is not valid before {start}; wait, or correct this machine's clock",
        .path.display()
    )]
    NotYetValid {
        /// Which file.
        path: PathBuf,
        /// When.
        start: String,
    },
    /// A key that belongs to another certificate.
    #[error(
        "the private key {} does not belong to the certificate {}: use the two that were made together",
        .key.display(),
        .certificate.display()
    )]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// There are no certificates to check the peer's against.
    #[error(
        "this system has no trusted certificates; name a file with the authority's certificate"
    )]
    NoRoots,
    /// A server name that no certificate can have.
    #[error(
        "'{0}' is neither a host name nor an address, so no certificate can be checked against it"
    )]
    BadHostName(String),
    /// What was asked for contradicts itself, or the cryptography can't do it.
    #[error("TLS can't be set up: {0}")]
    Setup(String),
}

/// What to do about a file that can't be read.
fn remedy(what: &str, path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if what == KEYS => {
            format!("; check the path, or make the file: nbd psk {} USER", path.display())
        }
        io::ErrorKind::NotFound => {
            "; check the folder, or make certificates: nbd cert --help".into()
        }
        io::ErrorKind::PermissionDenied => {
            "; let its reader read it, by its owner, group or mode".into()
        }
        io::ErrorKind::NotADirectory => {
            "; certificates are in a folder, which is to be named rather than a file".into()
        }
        io::ErrorKind::IsADirectory => "; it is a folder: name a file in it".into(),
        _ => String::new(),
    }
}
