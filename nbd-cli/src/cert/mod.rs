//! `nbd cert`: makes an authority with a server's and a client's certificate.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use nbd_engine::tls::CertificateInfo;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;

use crate::exit::Failure;
use crate::{json, output};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Make the certificates that TLS needs: an authority, a server and a client, in one go.
///
/// DIR gets ca-cert.pem, ca-key.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem, the names that
/// nbdkit, libnbd and qemu use, too. The server needs ca-cert.pem and its own two files; a client ca-cert.pem, and its own
/// two files where the server verifies clients. Keep ca-key.pem apart: its owner can make further certificates.
///
/// Each further client gets a certificate by --add-client. Keys are readable by their owner alone: a server that runs as
/// another user, as packaged ones do, needs its key to be given to that user or group.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  nbd cert /etc/pki/nbd --name disks.example.org --name 192.0.2.7
  nbd serve --tls require --tls-certificates /etc/pki/nbd disk.img
  nbd info --tls-certificates /etc/pki/nbd nbds://disks.example.org/
  nbd cert /etc/pki/nbd --renew
  nbd cert /etc/pki/nbd --add-client alice")]
pub(crate) struct Arguments {
    /// The folder, which is made if need be
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// A host name or an address by which clients reach the server; may be repeated. By default localhost, 127.0.0.1, ::1
    /// and this machine's host name; with --renew, those of the old certificate
    #[arg(long = "name", value_name = "NAME", value_parser = host)]
    names: Vec<String>,

    /// The name in the client's certificate, for `nbd serve --tls-allow` [default: client; with --renew, that of the old
    /// certificate]
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    client: Option<String>,

    /// How many days the server's and the client's certificate are valid; the authority's is valid ten times as long
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,

    /// Replace the server's and the client's files by new ones of the same authority, with the same owners and
    /// permissions; with --add-client, those of that client. Certificates that have expired are renewed all the same
    #[arg(long)]
    renew: bool,

    /// Make a certificate for one more client of the authority in DIR, and nothing else. The folder DIR/NAME gets the
    /// three files that this client needs: ca-cert.pem, client-cert.pem and client-key.pem
    #[arg(long, value_name = "NAME", value_parser = client_name, conflicts_with_all = ["names", "client"])]
    add_client: Option<String>,

    /// Write JSON: the folder, and the names in the certificates
    #[arg(long)]
    json: bool,
}

/// `nbd cert`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let folder = Folder { path: &arguments.directory, replace: arguments.renew };
    if let Some(client) = &arguments.add_client {
        return add_client(arguments, &folder, client);
    }
    let names = match (arguments.names.is_empty(), arguments.renew) {
        (false, _) => arguments.names.clone(),
        (true, true) => folder.names_in("server-cert.pem")?,
        (true, false) => default_names(),
    };
    let of_client = match (&arguments.client, arguments.renew) {
        (Some(name), _) => vec![name.clone()],
        (None, true) => folder.names_in("client-cert.pem")?,
        (None, false) => vec!["client".to_owned()],
    };
    let server = params(names.clone(), arguments.days, ExtendedKeyUsagePurpose::ServerAuth)?;
    let client = params(of_client.clone(), arguments.days, ExtendedKeyUsagePurpose::ClientAuth)?;
    let issuer = if arguments.renew {
        folder.authority()?
    } else {
        folder.make()?;
        folder.make_authority(arguments.days.saturating_mul(10))?
    };
    folder.issue("server", &server, &issuer)?;
    folder.issue("client", &client, &issuer)?;
    output::write(|out| {
        if arguments.json {
            let document = json!({
                "authority": folder.shown("ca-cert.pem"),
                "server": folder.json("server", &names),
                "client": folder.json("client", &of_client),
                "days": arguments.days,
            });
            return Ok(json::write(out, &document)?);
        }
        writeln!(out, "server certificate for {}", names.join(", "))?;
        writeln!(out, "client certificate for {}", of_client.join(", "))?;
        let shown = folder.path.display();
        writeln!(out, "serve with: nbd serve --tls require --tls-certificates {shown} ...")?;
        Ok(())
    })
}

/// One more client of the authority in `folder`.
fn add_client(arguments: &Arguments, folder: &Folder<'_>, name: &str) -> Result<(), Failure> {
    let names = vec![name.to_owned()];
    let client = params(names.clone(), arguments.days, ExtendedKeyUsagePurpose::ClientAuth)?;
    let issuer = folder.authority()?;
    let authority = folder.path.join("ca-cert.pem");
    let authority =
        fs::read_to_string(&authority).map_err(|error| cannot("read", &authority, &error))?;
    let path = folder.path.join(name);
    let own = Folder { path: &path, replace: arguments.renew };
    if !arguments.renew {
        own.make()?;
    }
    own.write("ca-cert.pem", &authority, 0o644)?.publish()?;
    own.issue("client", &client, &issuer)?;
    output::write(|out| {
        if arguments.json {
            let document = json!({
                "authority": own.shown("ca-cert.pem"),
                "client": own.json("client", &names),
                "days": arguments.days,
            });
            return Ok(json::write(out, &document)?);
        }
        writeln!(out, "client certificate for {name}")?;
        writeln!(out, "connect with: nbd info --tls-certificates {} nbds://...", path.display())?;
        Ok(())
    })
}

/// The name of a client, which is that of its folder.
fn client_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('.') || text.contains('/') || FILES.contains(&text) {
        return Err(
            "it is the name of a folder as well: choose one without '/' that begins with no dot"
                .into(),
        );
    }
    Ok(text.to_owned())
}

/// A host name, perhaps with a `*` for its first label, or an address.
fn host(text: &str) -> Result<String, String> {
    let labels = text.strip_prefix("*.").unwrap_or(text);
    let is_label = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    if text.parse::<IpAddr>().is_ok() || labels.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    Err("it is no host name such as disks.example.org, and no address such as 192.0.2.7 or ::1"
        .into())
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
    /// A file in it, for programs.
    fn shown(&self, file: &str) -> String {
        self.path.join(file).to_string_lossy().into_owned()
    }

    /// A certificate and its key, for programs. Their names are the same everywhere; this way nobody has to know them.
    fn json(&self, name: &str, names: &[String]) -> serde_json::Value {
        json!({
            "names": names,
            "certificate": self.shown(&format!("{name}-cert.pem")),
            "key": self.shown(&format!("{name}-key.pem")),
        })
    }

    /// Makes the folder, unless it is there without any of the files.
    fn make(&self) -> Result<(), Failure> {
        self.refuse_if_used()?;
        fs::create_dir_all(self.path).map_err(|error| cannot("make the folder", self.path, &error))
    }

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
        self.write("ca-key.pem", &key.serialize_pem(), 0o600)?.publish()?;
        self.write("ca-cert.pem", &certificate.pem(), 0o644)?.publish()?;
        Ok(Issuer::new(params, key))
    }

    /// The names in a certificate that is there.
    fn names_in(&self, file: &str) -> Result<Vec<String>, Failure> {
        let path = self.path.join(file);
        let found = CertificateInfo::from_file(&path);
        let names = found.map_err(|error| Failure::failed(error.to_string()))?.names;
        if names.is_empty() {
            let path = path.display();
            return Err(Failure::failed(format!(
                "{path} has no names: give them by --name or --client"
            )));
        }
        Ok(names)
    }

    /// The authority that is there.
    fn authority(&self) -> Result<Issuer<'static, KeyPair>, Failure> {
        let read = |name: &str| {
            let path = self.path.join(name);
            fs::read_to_string(&path).map_err(|error| {
                let remedy =
                    "certificates are renewed where the authority's certificate and key are";
                Failure::failed(format!("cannot read {}: {error}; {remedy}", path.display()))
            })
        };
        let (certificate, key) = (read("ca-cert.pem")?, read("ca-key.pem")?);
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
        let key = self.write(&format!("{name}-key.pem"), &key.serialize_pem(), 0o600)?;
        let certificate = self.write(&format!("{name}-cert.pem"), &certificate.pem(), 0o644)?;
        // One right after the other: a server that reads the two in between finds that they do not match, and reads them
        // again.
        key.publish()?;
        certificate.publish()
    }

    /// Writes a file whole, with its mode from the start. One that replaces another has the mode and the owner of that.
    fn write(&self, name: &str, text: &str, mode: u32) -> Result<Written, Failure> {
        let path = self.path.join(name);
        let written = (|| {
            let mut options = OpenOptions::new();
            options.write(true).mode(mode);
            if !self.replace {
                let mut file = options.create_new(true).open(&path)?;
                file.write_all(text.as_bytes())?;
                file.sync_all()?;
                return Ok(None);
            }
            let temporary = self.path.join(format!(".{name}.new"));
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
struct Written {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl Written {
    fn publish(self) -> Result<(), Failure> {
        let Some(temporary) = self.temporary else { return Ok(()) };
        fs::rename(temporary, &self.path).map_err(|error| cannot("write", &self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicBool, Ordering};

    use clap::Parser;
    use nbd_engine::tls::{ClientCertificates, TlsClient, TlsServer};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn cert(words: &[&str]) -> Result<(), String> {
        let command = Command::try_parse_from([&["cert"], words].concat());
        let arguments = command.map_err(|error| error.to_string())?.arguments;
        run(&arguments).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn renewed_certificates_have_the_names_and_the_permissions_of_the_old_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki");
        let shown = path.to_str().unwrap();
        let names = ["--name", "disks.example.org", "--name", "192.0.2.7", "--client", "backup"];
        cert(&[&[shown], &names[..]].concat()).unwrap();
        let key = path.join("server-key.pem");
        let before = fs::read(&key).unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        cert(&[shown, "--renew"]).unwrap();
        let of = |file: &str| CertificateInfo::from_file(&path.join(file)).unwrap().names;
        assert_eq!(of("server-cert.pem"), ["disks.example.org", "192.0.2.7"]);
        assert_eq!(of("client-cert.pem"), ["backup"]);
        assert_ne!(fs::read(&key).unwrap(), before);
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o640);
        cert(&[shown, "--renew", "--name", "other.example.org"]).unwrap();
        assert_eq!(of("server-cert.pem"), ["other.example.org"]);
        assert_eq!(of("client-cert.pem"), ["backup"]);
        assert!(fs::read_dir(&path).unwrap().count() == FILES.len(), "nothing else is left behind");

        fs::remove_file(path.join("ca-key.pem")).unwrap();
        let error = cert(&[shown, "--renew"]).unwrap_err();
        assert!(error.contains("where the authority's certificate and key are"), "{error}");
    }

    /// Of the authority in a folder.
    fn end(folder: &Path, name: &str, purpose: ExtendedKeyUsagePurpose) {
        let folder = Folder { path: folder, replace: true };
        let mut params = params(vec!["disks.example.org".into()], 1, purpose).unwrap();
        params.not_after = (SystemTime::now() - DAY / 48).into();
        folder.issue(name, &params, &folder.authority().unwrap()).unwrap();
    }

    #[test]
    fn certificates_that_have_expired_are_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki");
        let shown = path.to_str().unwrap();
        cert(&[shown]).unwrap();
        end(&path, "server", ExtendedKeyUsagePurpose::ServerAuth);
        end(&path, "client", ExtendedKeyUsagePurpose::ClientAuth);
        let server = || TlsServer::from_directory(&path, ClientCertificates::Off);
        assert!(server().unwrap_err().to_string().contains("expired"));
        cert(&[shown, "--renew"]).unwrap();
        server().unwrap();
        let names = CertificateInfo::from_file(&path.join("server-cert.pem")).unwrap().names;
        assert_eq!(names, ["disks.example.org"]);
    }

    #[test]
    fn an_authority_that_has_expired_makes_no_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki");
        let shown = path.to_str().unwrap();
        cert(&[shown]).unwrap();
        let ca = Folder { path: &path, replace: true };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_after = (SystemTime::now() - DAY / 48).into();
        let certificate = params.self_signed(&key).unwrap();
        ca.write("ca-key.pem", &key.serialize_pem(), 0o600).unwrap().publish().unwrap();
        ca.write("ca-cert.pem", &certificate.pem(), 0o644).unwrap().publish().unwrap();
        for words in [&["--renew"][..], &["--add-client", "alice"]] {
            let error = cert(&[&[shown], words].concat()).unwrap_err();
            assert!(error.contains("has expired"), "{error}");
        }
    }

    #[test]
    fn further_clients_have_folders_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki");
        let shown = path.to_str().unwrap();
        cert(&[shown, "--add-client", "alice"]).unwrap_err();
        cert(&[shown]).unwrap();
        for name in ["alice", "bob"] {
            cert(&[shown, "--add-client", name]).unwrap();
            let own = path.join(name);
            let names = CertificateInfo::from_file(&own.join("client-cert.pem")).unwrap().names;
            assert_eq!(names, [name]);
            TlsClient::builder().directory(&own).build().unwrap();
            assert_eq!(fs::metadata(own.join("client-key.pem")).unwrap().mode() & 0o777, 0o600);
        }
        let key = path.join("alice/client-key.pem");
        let before = fs::read(&key).unwrap();
        let error = cert(&[shown, "--add-client", "alice"]).unwrap_err();
        assert!(error.contains("there already"), "{error}");
        assert_eq!(fs::read(&key).unwrap(), before);
        cert(&[shown, "--add-client", "alice", "--renew"]).unwrap();
        assert_ne!(fs::read(&key).unwrap(), before);
        for name in ["", ".", "..", ".x", "a/b", "/etc", "ca-key.pem"] {
            cert(&[shown, "--add-client", name]).unwrap_err();
        }
    }

    /// Whenever a server reads them, and however often: it finds a certificate and its own key.
    #[test]
    fn a_pair_is_complete_for_those_who_read_it_while_it_is_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki");
        let shown = path.to_str().unwrap();
        cert(&[shown]).unwrap();
        let server = TlsServer::from_directory(&path, ClientCertificates::Off).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..40 {
                    if let Err(error) = cert(&[shown, "--renew"]) {
                        done.store(true, Ordering::Relaxed);
                        panic!("{error}");
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                server.reload().unwrap();
                TlsClient::builder().directory(&path).build().unwrap();
            }
        });
    }

    #[test]
    fn an_encrypted_key_of_the_authority_is_refused_with_the_way_to_decrypt_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pki");
        let shown = path.to_str().unwrap();
        cert(&[shown]).unwrap();
        let key =
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHs\n-----END ENCRYPTED PRIVATE KEY-----\n";
        fs::write(path.join("ca-key.pem"), key).unwrap();
        let error = cert(&[shown, "--renew"]).unwrap_err();
        assert!(error.contains("ca-key.pem") && error.contains("openssl pkey -in"), "{error}");
    }

    #[test]
    fn names_that_no_client_could_use_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().to_str().unwrap();
        for name in ["", "a b", "a/b", "[::1]", "fe80::1%eth0", ".", "a..b", "*"] {
            cert(&[shown, "--name", name]).unwrap_err();
        }
        cert(&[shown, "--client", ""]).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        for name in ["localhost", "*.example.org", "my_host", "::1"] {
            host(name).unwrap();
        }
    }
}
