//! `nbd cert`: makes an authority with a server's and a client's certificate.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::exit::Failure;
use crate::output;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Make the certificates that TLS needs: an authority, a server and a client, in one go.
///
/// DIR gets ca-cert.pem, ca-key.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem, the names that
/// nbdkit, libnbd and qemu use, too. The server needs ca-cert.pem and its own two files; a client ca-cert.pem, and its own
/// two files where the server verifies clients. Keep ca-key.pem apart: its owner can make further certificates.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nbd cert /etc/pki/nbd --name disks.example.org --name 192.0.2.7
  nbd serve --tls require --tls-certificates /etc/pki/nbd disk.img
  nbd info --tls-certificates /etc/pki/nbd nbds://disks.example.org/
  nbd cert /etc/pki/nbd --renew")]
pub(crate) struct Arguments {
    /// The folder, which is made if need be
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// A host name or an address by which clients reach the server; may be repeated. By default localhost, 127.0.0.1, ::1
    /// and this machine's host name
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,

    /// The name in the client's certificate, for `nbd serve --tls-allow`
    #[arg(long, value_name = "NAME", default_value = "client")]
    client: String,

    /// How many days the server's and the client's certificate are valid; the authority's is valid ten times as long
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,

    /// Replace the server's and the client's files by new ones of the same authority
    #[arg(long)]
    renew: bool,
}

/// `nbd cert`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = Folder { path: &arguments.directory, replace: arguments.renew };
    let names = if arguments.names.is_empty() { default_names() } else { arguments.names.clone() };
    let server = params(names.clone(), arguments.days, ExtendedKeyUsagePurpose::ServerAuth)?;
    let client = params(
        vec![arguments.client.clone()],
        arguments.days,
        ExtendedKeyUsagePurpose::ClientAuth,
    )?;
    let issuer = if arguments.renew {
        folder.authority()?
    } else {
        folder.refuse_if_used()?;
        let failed = |error| cannot("make the folder", folder.path, &error);
        fs::create_dir_all(folder.path).map_err(failed)?;
        folder.make_authority(arguments.days.saturating_mul(10))?
    };
    folder.issue("server", &server, &issuer)?;
    folder.issue("client", &client, &issuer)?;
    output::write(|out| {
        writeln!(out, "server certificate for {}", names.join(", "))?;
        writeln!(out, "client certificate for {}", arguments.client)?;
        let shown = folder.path.display();
        writeln!(out, "serve with: nbd serve --tls require --tls-certificates {shown} ...")?;
        Ok(())
    })
}

/// The names by which a server on this machine is reached from it.
fn default_names() -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if !host.is_empty() && !names.contains(&host) {
        names.push(host);
    }
    names
}

fn not_made(error: rcgen::Error) -> Failure {
    Failure::failed(format!("cannot make certificates: {error}"))
}

/// A certificate for these names from an hour ago, for the sake of clocks that are late, for so many days.
fn params(
    names: Vec<String>,
    days: u32,
    purpose: ExtendedKeyUsagePurpose,
) -> Result<CertificateParams, Failure> {
    let first = names.first().cloned().unwrap_or_default();
    let mut params = CertificateParams::new(names)
        .map_err(|error| Failure::usage(format!("a name can't be in a certificate: {error}")))?;
    params.distinguished_name.push(DnType::CommonName, first);
    // GnuTLS needs the former, and qemu insists on both.
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, days);
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - DAY / 24).into();
    params.not_after = (now + DAY * days).into();
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {what} {}: {error}", path.display()))
}

fn random_number() -> io::Result<u32> {
    let mut bytes = [0; 4];
    // So few bytes are never cut short.
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Where the files go.
struct Folder<'a> {
    path: &'a Path,
    replace: bool,
}

const FILES: [&str; 6] = [
    "ca-cert.pem",
    "ca-key.pem",
    "server-cert.pem",
    "server-key.pem",
    "client-cert.pem",
    "client-key.pem",
];

impl Folder<'_> {
    /// Before anything is written: no file of the same name is there.
    fn refuse_if_used(&self) -> Result<(), Failure> {
        for name in FILES {
            let path = self.path.join(name);
            if path.symlink_metadata().is_ok() {
                return Err(Failure::failed(format!(
                    "{} is there already; choose another folder, or keep its authority and make new \
                     certificates by --renew",
                    path.display()
                )));
            }
        }
        Ok(())
    }

    fn make_authority(&self, days: u32) -> Result<Issuer<'static, KeyPair>, Failure> {
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
        self.write("ca-key.pem", &key.serialize_pem(), 0o600)?;
        self.write("ca-cert.pem", &certificate.pem(), 0o644)?;
        Ok(Issuer::new(params, key))
    }

    /// The authority that is there.
    fn authority(&self) -> Result<Issuer<'static, KeyPair>, Failure> {
        let read = |name: &str| {
            let path = self.path.join(name);
            fs::read_to_string(&path).map_err(|error| cannot("read", &path, &error))
        };
        let (certificate, key) = (read("ca-cert.pem")?, read("ca-key.pem")?);
        let key = KeyPair::from_pem(&key);
        let issuer = key.and_then(|key| Issuer::from_ca_cert_pem(&certificate, key));
        issuer.map_err(|error| {
            let path = self.path.display();
            Failure::failed(format!("cannot use the authority in {path}: {error}"))
        })
    }

    fn issue(
        &self,
        name: &str,
        params: &CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<(), Failure> {
        let key = KeyPair::generate().map_err(not_made)?;
        let certificate = params.signed_by(&key, issuer).map_err(not_made)?;
        self.write(&format!("{name}-key.pem"), &key.serialize_pem(), 0o600)?;
        self.write(&format!("{name}-cert.pem"), &certificate.pem(), 0o644)
    }

    /// Writes a file whole or not at all, with its mode from the start.
    fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), Failure> {
        let path = self.path.join(name);
        let target =
            if self.replace { self.path.join(format!(".{name}.new")) } else { path.clone() };
        let written = (|| {
            let mut options = OpenOptions::new();
            options.write(true).mode(mode);
            if self.replace {
                options.create(true).truncate(true);
            } else {
                options.create_new(true);
            }
            let mut file = options.open(&target)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            if self.replace { fs::rename(&target, &path) } else { Ok(()) }
        })();
        written.map_err(|error| cannot("write", &path, &error))
    }
}
