//! Certificates and keys from files, checked as far as that is possible without a peer.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::Validity;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsError;

const CERTIFICATE: &str = "certificate";
const KEY: &str = "private key";

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { what, path: path.to_owned(), source };
    fs::read(path).map_err(unreadable)
}

fn malformed(what: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError::Malformed { what, path: path.to_owned(), reason }
}

/// What is wrong with a file that has none of `what`.
fn nothing_in(what: &'static str, path: &Path, content: &[u8]) -> TlsError {
    let text = String::from_utf8_lossy(content);
    let malformed = |reason: String| malformed(what, path, reason);
    let is_key = |line: &str| {
        let digits = line.trim_end().split_once(':').map(|(_, digits)| digits);
        digits.is_some_and(|digits| {
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    };
    if text.lines().any(is_key) && !text.contains("-----BEGIN ") {
        return malformed(
            "it has pre-shared keys, which are named by --tls-psk FILE or tls-psk-file=FILE".into(),
        );
    }
    if what == KEY && text.contains("-----BEGIN CERTIFICATE-----") {
        return malformed("it has a certificate rather than its key".into());
    }
    if what == CERTIFICATE && text.contains("PRIVATE KEY-----") {
        return malformed("it has a key rather than a certificate".into());
    }
    TlsError::Empty { what, path: path.to_owned() }
}

/// All certificates of a file, of which there is one at least.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let malformed = |reason: String| malformed(CERTIFICATE, path, reason);
    let pem = read(CERTIFICATE, path)?;
    let found = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| malformed(error.to_string()))?;
    if found.is_empty() {
        return Err(nothing_in(CERTIFICATE, path, &pem));
    }
    Ok(found)
}

/// When the first certificate of a file is valid.
fn validity(path: &Path, found: &[CertificateDer<'_>]) -> Result<Validity, TlsError> {
    let malformed = |reason: String| malformed(CERTIFICATE, path, reason);
    let first = found.first().ok_or_else(|| malformed("it is empty".into()))?;
    let (_, certificate) =
        X509Certificate::from_der(first).map_err(|error| malformed(error.to_string()))?;
    Ok(certificate.validity().clone())
}

/// All certificates of a file, the first of which must be valid now.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = read_certificates(path)?;
    let validity = validity(path, &found)?;
    let now = x509_parser::time::ASN1Time::now();
    if now > validity.not_after {
        let end = validity.not_after.to_string();
        return Err(TlsError::Expired { path: path.to_owned(), end });
    }
    if now < validity.not_before {
        let start = validity.not_before.to_string();
        return Err(TlsError::NotYetValid { path: path.to_owned(), start });
    }
    Ok(found)
}

/// What the first certificate of a PEM file says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateInfo {
    /// What a peer that shows it is known by: the subject's alternative names, or its common name where there are none.
    pub names: Vec<String>,
    /// The end of its validity. It may be over.
    pub valid_until: SystemTime,
}

impl CertificateInfo {
    /// Reads a file, and blocks meanwhile. The certificate may have expired, or not be valid yet.
    ///
    /// # Errors
    /// A file that can't be read, or holds no certificate.
    pub fn from_file(path: &Path) -> Result<Self, TlsError> {
        let found = read_certificates(path)?;
        let end = validity(path, &found)?.not_after.timestamp();
        let seconds = Duration::from_secs(end.unsigned_abs());
        let valid_until =
            if end < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
        Ok(Self {
            names: super::identity::identity(&found).names,
            valid_until: valid_until.unwrap_or(UNIX_EPOCH),
        })
    }
}

/// A private key that not everybody can read.
fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read(KEY, path)?;
    let mode = fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o004 != 0 {
        return Err(TlsError::KeyIsPublic(path.to_owned()));
    }
    // The latter within a key of the older formats.
    if [&b"-----BEGIN ENCRYPTED PRIVATE KEY-----"[..], b"Proc-Type: 4,ENCRYPTED"]
        .iter()
        .any(|mark| pem.windows(mark.len()).any(|window| window == *mark))
    {
        return Err(TlsError::KeyIsEncrypted(path.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => nothing_in(KEY, path, &pem),
        error => malformed(KEY, path, error.to_string()),
    })
}

/// Further readings of a pair that does not match, and the pause before each: somebody may be replacing the two files,
/// one right after the other.
const RETRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// A certificate with its key, and with those that lead to an authority. Files that are being replaced are read again
/// until both are new.
pub(super) fn identity(
    provider: &CryptoProvider,
    certificate_path: &Path,
    key_path: &Path,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let mut result = pair(provider, certificate_path, key_path);
    for _ in 0..RETRIES {
        if !matches!(result, Err(TlsError::KeyMismatch { .. })) {
            break;
        }
        thread::sleep(PAUSE);
        result = pair(provider, certificate_path, key_path);
    }
    result
}

/// The two files as they are now.
fn pair(
    provider: &CryptoProvider,
    certificate_path: &Path,
    key_path: &Path,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates(certificate_path)?;
    let signing_key = provider.key_provider.load_private_key(key(key_path)?);
    let signing_key = signing_key.map_err(|error| TlsError::Malformed {
        what: KEY,
        path: key_path.to_owned(),
        reason: error.to_string(),
    })?;
    let certified = CertifiedKey::new(chain, signing_key);
    match certified.keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(TlsError::KeyMismatch {
                key: key_path.to_owned(),
                certificate: certificate_path.to_owned(),
            })
        }
        // Not every kind of key can tell its public part.
        Ok(()) | Err(_) => Ok(Arc::new(certified)),
    }
}

/// The authorities of a file.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Malformed {
            what: CERTIFICATE,
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// The authorities that this system trusts.
pub(super) fn system_authorities() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(roots) }
}

/// Whether a file is there; an error other than that it is not counts as yes, to be reported when it is read.
pub(super) fn exists(path: &Path) -> bool {
    !matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
