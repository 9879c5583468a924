//! The folder of an authority, or of one of its clients.

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nbd_engine::net::{folder_of, link_end};
use nbd_engine::tls::CertificateInfo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;

use super::set_validity;
use crate::exit::Failure;
use crate::output::{shell_option, shell_path};
use crate::path_error;

/// Where the files go.
pub(super) struct Folder<'a> {
    pub(super) path: &'a Path,
    /// Whether files take the place of others.
    pub(super) replace: bool,
    /// What to do where it is in use already.
    pub(super) remedy: Remedy<'a>,
}

/// What to do where a folder has certificates already.
#[derive(Clone, Copy)]
pub(super) enum Remedy<'a> {
    /// It is that of an authority.
    Authority,
    /// It is that of a client, of the authority in the folder.
    Client(&'a Path, &'a str),
}

impl fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority => f.write_str(
                "choose another folder, keep its authority and make new certificates by --renew, or make one for a further \
                 client by --add-client NAME",
            ),
            Self::Client(authority, name) => write!(
                f,
                "choose another name for another client, or make a new certificate for this one: nbd cert {} --renew \
                 {}",
                shell_path(authority),
                shell_option("--add-client", name.as_ref())
            ),
        }
    }
}

/// What is in it.
pub(super) const FILES: [&str; 6] = [
    "ca-cert.pem",
    "ca-key.pem",
    "server-cert.pem",
    "server-key.pem",
    "client-cert.pem",
    "client-key.pem",
];

impl Folder<'_> {
    /// A file in it, for programs.
    pub(super) fn shown(&self, file: &str) -> String {
        self.path.join(file).to_string_lossy().into_owned()
    }

    /// A certificate and its key, for programs. Their names are the same everywhere; this way nobody has to know them.
    pub(super) fn json(&self, name: &str, names: &[String]) -> serde_json::Value {
        json!({
            "names": names,
            "certificate": self.shown(&format!("{name}-cert.pem")),
            "key": self.shown(&format!("{name}-key.pem")),
        })
    }

    /// Makes the folder, unless it is there without any of the files.
    pub(super) fn make(&self) -> Result<(), Failure> {
        self.refuse_if_used()?;
        fs::create_dir_all(self.path).map_err(|error| cannot("make the folder", self.path, &error))
    }

    /// Before anything is written: no file of the same name is there.
    fn refuse_if_used(&self) -> Result<(), Failure> {
        for name in FILES {
            let path = self.path.join(name);
            if path.symlink_metadata().is_ok() {
                return Err(Failure::failed(format!(
                    "{} is there already; {}",
                    path.display(),
                    self.remedy
                )));
            }
        }
        Ok(())
    }

    pub(super) fn make_authority(&self, days: u32) -> Result<Issuer<'static, KeyPair>, Failure> {
        let key = KeyPair::generate().map_err(not_made)?;
        let mut params = CertificateParams::default();
        // A name of its own, so that one authority isn't mistaken for another.
        let number = random_number().map_err(|error| cannot("name", self.path, &error))?;
        let name = format!("nbd certificate authority {number:08x}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, days);
        let certificate = params.self_signed(&key).map_err(not_made)?;
        self.write("ca-key.pem", &key.serialize_pem(), 0o600)?.publish()?;
        self.write("ca-cert.pem", &certificate.pem(), 0o644)?.publish()?;
        Ok(Issuer::new(params, key))
    }

    /// The names of the clients that have a folder in it, in order.
    pub(super) fn clients(&self) -> Result<Vec<String>, Failure> {
        let cannot_read = |error: io::Error| cannot("read", self.path, &error);
        let mut clients = Vec::new();
        for entry in fs::read_dir(self.path).map_err(cannot_read)? {
            let entry = entry.map_err(cannot_read)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if super::client_name(&name).is_ok() && entry.path().join("client-cert.pem").is_file() {
                clients.push(name);
            }
        }
        clients.sort();
        Ok(clients)
    }

    /// The names in a certificate that is there; `flag` is what gives others.
    pub(super) fn names_in(&self, file: &str, flag: &str) -> Result<Vec<String>, Failure> {
        let path = self.path.join(file);
        if !path.exists() {
            let (folder, dir) = (self.path.display(), shell_path(self.path));
            return Err(Failure::failed(format!(
                "{folder} has no {file} to be renewed: for a new one give what is to stand in it, nbd cert {dir} --renew {flag}"
            )));
        }
        let found = CertificateInfo::from_file(&path);
        let names = found.map_err(|error| Failure::failed(error.to_string()))?.names;
        if names.is_empty() {
            let path = path.display();
            return Err(Failure::failed(format!(
                "{path} has no names: give what is to stand in a new one, {flag}"
            )));
        }
        Ok(names)
    }

    /// The authority that is there.
    pub(super) fn authority(&self) -> Result<Issuer<'static, KeyPair>, Failure> {
        let read = |name: &str, what: &str| {
            let path = self.path.join(name);
            let (folder, dir) = (self.path.display(), shell_path(self.path));
            let is_there = |name: &str| self.path.join(name).exists();
            fs::read_to_string(&path).map_err(|error| {
                Failure::failed(match error.kind() {
                    io::ErrorKind::NotFound if !is_there("ca-cert.pem") && !is_there("ca-key.pem") => format!(
                        "there is no authority in {folder}: name the folder that has ca-cert.pem and ca-key.pem, or make \
                         one with nbd cert {dir}"
                    ),
                    io::ErrorKind::NotFound => format!(
                        "{folder} has no {name}, {what}: give this command where the authority's certificate and key are, \
                         or copy {name} there for the time of this command"
                    ),
                    _ => format!("cannot read {}: {}", path.display(), path_error::why(&error)),
                })
            })
        };
        let certificate = read("ca-cert.pem", "the authority's certificate")?;
        let key = read("ca-key.pem", "the key by which the authority signs certificates")?;
        let info = CertificateInfo::from_file(&self.path.join("ca-cert.pem"));
        let info = info.map_err(|error| Failure::failed(error.to_string()))?;
        if info.valid_until < SystemTime::now() {
            return Err(Failure::failed(format!(
                "the authority in {} has expired, so that nobody would accept its certificates: make a new one in another \
                 folder, and give its ca-cert.pem to all clients",
                self.path.display()
            )));
        }
        if key.contains("ENCRYPTED") {
            let path = self.path.join("ca-key.pem");
            let path = path.display();
            return Err(Failure::failed(format!(
                "{path} is encrypted, and there is nobody to ask for its passphrase; decrypt it for the time of this \
                 command: (umask 077; openssl pkey -in {path} -out NEW)"
            )));
        }
        let key = KeyPair::from_pem(&key);
        let issuer = key.and_then(|key| Issuer::from_ca_cert_pem(&certificate, key));
        issuer.map_err(|error| {
            let path = self.path.display();
            Failure::failed(format!(
                "cannot use the authority in {path}: {error}; restore its ca-cert.pem and ca-key.pem, or make a new one \
                 in another folder"
            ))
        })
    }

    pub(super) fn issue(
        &self,
        name: &str,
        params: &CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<(), Failure> {
        let key = KeyPair::generate().map_err(not_made)?;
        let certificate = params.signed_by(&key, issuer).map_err(not_made)?;
        let key = self.write(&format!("{name}-key.pem"), &key.serialize_pem(), 0o600)?;
        let certificate = self.write(&format!("{name}-cert.pem"), &certificate.pem(), 0o644)?;
        // One right after the other: a server that reads the two in between finds that they do not match, and reads them
        // again.
        key.publish()?;
        certificate.publish()
    }

    /// Writes a file whole, with its mode from the start. One that replaces another has the mode and the owner of that.
    pub(super) fn write(&self, name: &str, text: &str, mode: u32) -> Result<Written, Failure> {
        let path = self.path.join(name);
        // What is a link stays one.
        let path = if self.replace { link_end(&path) } else { path };
        let written = (|| {
            let mut options = OpenOptions::new();
            options.write(true).mode(mode);
            if !self.replace {
                let mut file = options.create_new(true).open(&path)?;
                file.write_all(text.as_bytes())?;
                file.sync_all()?;
                return Ok(None);
            }
            let temporary = folder_of(&path).join(format!(".{name}.new"));
            let mut file = options.create(true).truncate(true).open(&temporary)?;
            if let Ok(old) = fs::metadata(&path) {
                let new = file.metadata()?;
                if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
                    fchown(&file, Some(old.uid()), Some(old.gid()))?;
                }
                file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
            }
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            Ok(Some(temporary))
        })();
        let temporary = written.map_err(|error| cannot("write", &path, &error))?;
        Ok(Written { path, temporary })
    }
}

/// A file that is written, and has yet to take the place of the one before if there was one.
#[must_use]
pub(super) struct Written {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl Written {
    pub(super) fn publish(self) -> Result<(), Failure> {
        let Some(temporary) = self.temporary else { return Ok(()) };
        fs::rename(temporary, &self.path).map_err(|error| cannot("write", &self.path, &error))
    }
}

fn not_made(error: rcgen::Error) -> Failure {
    Failure::failed(format!("cannot make certificates: {error}"))
}

pub(super) fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {what} {}: {}", path.display(), path_error::why(error)))
}

fn random_number() -> io::Result<u32> {
    let mut bytes = [0; 4];
    // So few bytes are never cut short.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}
