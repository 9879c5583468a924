//! `nbd cert`: makes an authority with a server's and a client's certificate.

mod folder;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose};
use serde_json::json;

use self::folder::{FILES, Folder, Remedy, cannot};
use crate::exit::Failure;
use crate::output::{shell_option, shell_path};
use crate::{json, output, quantity};

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
    #[arg(long, value_name = "NAME", value_parser = certificate_name)]
    client: Option<String>,

    /// How many days the server's and the client's certificate are valid; the authority's is valid ten times as long
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = |text: &str| quantity::within(text, 1..=36_500_u32))]
    days: u32,

    /// Replace the server's and the client's files by new ones of the same authority, with the same owners and
    /// permissions; with --add-client, those of that client. Clients that were added are named at the end, and stay as
    /// they are. Certificates that have expired are renewed all the same
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
    let remedy = Remedy::Authority;
    let folder = Folder { path: &arguments.directory, replace: arguments.renew, remedy };
    if let Some(client) = &arguments.add_client {
        return add_client(arguments, &folder, client);
    }
    // Without one there is nothing to be renewed, whatever else is missing.
    let authority = if arguments.renew { Some(folder.authority()?) } else { None };
    let names = match (arguments.names.is_empty(), arguments.renew) {
        (false, _) => arguments.names.clone(),
        (true, true) => folder.names_in("server-cert.pem", "--name NAME")?,
        (true, false) => default_names(),
    };
    let of_client = match (&arguments.client, arguments.renew) {
        (Some(name), _) => vec![name.clone()],
        (None, true) => folder.names_in("client-cert.pem", "--client NAME")?,
        (None, false) => vec!["client".to_owned()],
    };
    let server = params(names.clone(), arguments.days, ExtendedKeyUsagePurpose::ServerAuth)?;
    let client = params(of_client.clone(), arguments.days, ExtendedKeyUsagePurpose::ClientAuth)?;
    let issuer = match authority {
        Some(authority) => authority,
        None => {
            folder.make()?;
            folder.make_authority(arguments.days.saturating_mul(10))?
        }
    };
    // Each has its files, which have to be brought to it.
    let others = if arguments.renew { folder.clients()? } else { Vec::new() };
    folder.issue("server", &server, &issuer)?;
    folder.issue("client", &client, &issuer)?;
    output::write(|out| {
        if arguments.json {
            let document = json!({
                "authority": folder.shown("ca-cert.pem"),
                "server": folder.json("server", &names),
                "client": folder.json("client", &of_client),
                "days": arguments.days,
                "not-renewed": others,
            });
            return Ok(json::write(out, &document)?);
        }
        writeln!(out, "server certificate for {}", names.join(", "))?;
        writeln!(out, "client certificate for {}", of_client.join(", "))?;
        let shown = shell_path(folder.path);
        writeln!(out, "serve with: nbd serve --tls-certificates {shown} --tls-verify-peer ...")?;
        for other in &others {
            let folder = shell_path(folder.path);
            let option = shell_option("--add-client", other.as_ref());
            writeln!(
                out,
                "not renewed: client {other}; renew it with: nbd cert {folder} --renew {option}"
            )?;
        }
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
    if arguments.renew && !path.exists() {
        return Err(Failure::failed(format!(
            "there is no client {name} in {}: make its certificate without --renew",
            folder.path.display()
        )));
    }
    let remedy = Remedy::Client(folder.path, name);
    let own = Folder { path: &path, replace: arguments.renew, remedy };
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
        let shown = shell_path(&path);
        writeln!(out, "connect with: nbd info --tls-certificates {shown} nbds://...")?;
        Ok(())
    })
}

/// The name of a client, which is that of its folder.
fn client_name(text: &str) -> Result<String, String> {
    certificate_name(text)?;
    if text.is_empty() || text.starts_with('.') || text.contains('/') || FILES.contains(&text) {
        return Err(
            "it is the name of a folder as well: choose one without '/' that begins with no dot"
                .into(),
        );
    }
    Ok(text.to_owned())
}

/// A name that fits into a certificate, whose names are of ASCII.
fn certificate_name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("give a name".into());
    }
    match text.chars().find(|c| !matches!(c, ' '..='~')) {
        Some(c) if c.is_control() => Err(format!(
            "it has a control character, {}: choose a name that can be shown",
            c.escape_default()
        )),
        Some(c) => Err(format!(
            "it has the character '{c}', and names in certificates are of letters, digits and marks of ASCII: choose \
             another one"
        )),
        None => Ok(text.to_owned()),
    }
}

/// A host name, perhaps with a `*` for its first label, or an address.
fn host(text: &str) -> Result<String, String> {
    if text.chars().any(|c| !c.is_ascii() && c.is_alphanumeric()) {
        return Err("a certificate has host names in ASCII: give the form that DNS has, which begins with xn--".into());
    }
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
    // One that can't be in a certificate is no name for clients.
    if self::host(&host).is_ok() && !names.contains(&host) {
        names.push(host);
    }
    names
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
