//! The places that a server has for itself: its sockets, the files that it makes, and those that it reads. No two of them can
//! be the same, however they are spelled.
//!
//! The start, a check and a reload all ask [`faults`], before anything is opened or made: a server that found out by itself
//! would take its own socket for that of another server, or have lost it by then. What several exports share is judged by
//! [`Files`](super::shared::Files).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nbd_engine::proto::wire::DEFAULT_PORT;
#[cfg(feature = "tls")]
use nbd_engine::tls::default_server_directory as default_folder;

use super::config::{Address, Backend, Config, TcpAddress};
use super::identity::Identity;
use super::metrics::MetricsAddress;
use super::places::addresses;
use super::process::ProcessArguments;
use super::shared::written_by;
use crate::exit::Failure;
use crate::output::quoted;

/// What is of this run of the command, and no part of the configuration.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    /// The configuration file.
    file: Option<PathBuf>,
    /// That of the process id.
    pid_file: Option<PathBuf>,
    /// The control socket of the server that is to be replaced.
    take_over: Option<PathBuf>,
    /// Whether a configuration that names no listener stands for the default one.
    listens: bool,
}

impl Run {
    /// `given` says whether sockets were handed over, and `file` is the configuration file.
    pub(super) fn of(process: &ProcessArguments, given: bool, file: Option<&Path>) -> Self {
        Self {
            file: file.map(Path::to_owned),
            pid_file: process.pid_file.clone(),
            take_over: process.take_over.clone(),
            listens: process.listens_by_default(given),
        }
    }

    /// The same once it serves: the server that was replaced has no sockets any more.
    pub(super) fn serving(self) -> Self {
        Self { take_over: None, ..self }
    }
}

/// What a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// A socket for clients.
    Listener,
    Control,
    Metrics,
    /// The control socket of another server, which becomes this one's.
    Replaced,
    PidFile,
    /// A file that a layer writes.
    Layer,
    /// A file or a directory that is served.
    Disk,
    /// A file that is only read.
    Read,
}

impl Use {
    /// Whether one place can't be both.
    const fn excludes(self, other: Self) -> bool {
        !matches!(
            (self, other),
            // Judged with what else exports share.
            (Self::Layer | Self::Disk, Self::Layer | Self::Disk)
                // Nothing is lost by serving or reading what is read.
                | (Self::Read, Self::Read | Self::Disk)
                | (Self::Disk, Self::Read)
                | (Self::Control, Self::Replaced)
                | (Self::Replaced, Self::Control)
        )
    }
}

/// A place that the server has for itself.
#[derive(Debug)]
struct Claim {
    used: Use,
    /// In words.
    what: String,
    path: PathBuf,
    /// The key of the configuration that names it; the command line does otherwise.
    key: Option<String>,
}

impl Claim {
    fn new(used: Use, what: impl Into<String>, path: &Path) -> Self {
        Self { used, what: what.into(), path: path.to_owned(), key: None }
    }

    fn by(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// What is wrong if this is where an earlier one is.
    fn beside(&self, earlier: &Self, config: &Config) -> Failure {
        let [first, second] = [earlier, self].map(|claim| quoted(claim.path.as_os_str()));
        let text = match (earlier.used, self.used) {
            (Use::Listener, Use::Listener) => two_listeners(&first, &second),
            _ if first == second => format!(
                "{} and {} are both to be {second}: choose another path for one of them",
                earlier.what, self.what
            ),
            _ => format!(
                "{}, {first}, and {}, {second}, are at one place: choose another path for one of them",
                earlier.what, self.what
            ),
        };
        let of_command_line = [earlier, self]
            .iter()
            .any(|claim| claim.key.is_none() && matches!(claim.used, Use::PidFile | Use::Replaced));
        let key = self.key.as_ref().or(earlier.key.as_ref()).filter(|_| !of_command_line);
        let failure = Failure::usage(text);
        match key {
            Some(key) => config.source.blame(key, failure),
            None => failure,
        }
    }
}

fn two_listeners(first: &str, second: &str) -> String {
    format!("two listeners are at one place, {first} and {second}: leave out one")
}

/// Everything that is at one place with something else of the server itself.
pub(super) fn faults(config: &Config, run: &Run) -> Vec<Failure> {
    let claims = claims(config, run);
    let mut taken: HashMap<Identity, Vec<&Claim>> = HashMap::new();
    let mut faults = Vec::new();
    for claim in &claims {
        let identities = Vec::from_iter(Identity::of_path(&claim.path));
        let earlier = identities.iter().filter_map(|identity| taken.get(identity)).flatten();
        let in_the_way = earlier.copied().find(|earlier| earlier.used.excludes(claim.used));
        faults.extend(in_the_way.map(|earlier| claim.beside(earlier, config)));
        for identity in identities {
            taken.entry(identity).or_default().push(claim);
        }
    }
    faults.extend(metrics_among_clients(config, run));
    #[cfg(target_os = "linux")]
    faults.extend(vsock_twice(config));
    faults
}

/// The first of the [`faults`], for a server that is to start or to change.
///
/// # Errors
/// If there is one.
pub(super) fn refuse(config: &Config, run: &Run) -> Result<(), Failure> {
    faults(config, run).into_iter().next().map_or(Ok(()), Err)
}

/// All places that have a path. What is read comes first, so that it is not that which is blamed.
fn claims(config: &Config, run: &Run) -> Vec<Claim> {
    let mut claims = Vec::new();
    let file = run.file.as_deref();
    claims.extend(file.map(|path| Claim::new(Use::Read, "the configuration file", path)));
    claims.extend(
        files_for_tls(config).iter().map(|path| Claim::new(Use::Read, "a file for TLS", path)),
    );
    for (index, export) in config.exports.iter().enumerate() {
        let key = || format!("export.{index}");
        let (what, served) = match export.backend() {
            Ok(Backend::File(path)) => ("the disk", Some(path)),
            Ok(Backend::Directory(path)) => ("the directory", Some(path)),
            _ => ("", None),
        };
        claims.extend(served.map(|path| {
            Claim::new(Use::Disk, format!("{what} of {}", export.noun()), path).by(key())
        }));
        let written = export.layers.iter().filter_map(written_by);
        claims.extend(written.map(|(what, path)| {
            Claim::new(Use::Layer, format!("{what} of {}", export.noun()), path).by(key())
        }));
    }
    let control = config.server.control.as_deref();
    claims.extend(
        control
            .map(|path| Claim::new(Use::Control, "the control socket", path).by("server.control")),
    );
    for (index, listen) in config.listeners.iter().enumerate() {
        match listen.address() {
            // A private one is in a folder of its own.
            Ok(Address::Unix(path)) if path != Path::new("-") => {
                let claim = Claim::new(Use::Listener, "the socket for clients", path);
                claims.push(claim.by(format!("listen.{index}")));
            }
            _ => {}
        }
    }
    let metrics = config.server.metrics.as_ref().and_then(MetricsAddress::path);
    claims.extend(
        metrics.map(|path| {
            Claim::new(Use::Metrics, "the socket for metrics", path).by("server.metrics")
        }),
    );
    claims.extend(run.take_over.as_deref().map(|path| {
        Claim::new(Use::Replaced, "the control socket of the server that is to be replaced", path)
    }));
    claims.extend(
        run.pid_file
            .as_deref()
            .map(|path| Claim::new(Use::PidFile, "the file of --pid-file", path)),
    );
    // What is empty is refused elsewhere.
    claims.retain(|claim| !claim.path.as_os_str().is_empty());
    claims
}

/// Certificates and keys.
fn files_for_tls(config: &Config) -> Vec<PathBuf> {
    let tls = &config.tls;
    let folder = match (&tls.psk, &tls.certificates) {
        (Some(keys), _) => return vec![keys.clone()],
        (None, Some(folder)) => Some(folder.clone()),
        (None, None) => tls.mode.and_then(|_| default_folder()),
    };
    let names = ["server-cert.pem", "server-key.pem", "ca-cert.pem"];
    folder.iter().flat_map(|folder| names.map(|name| folder.join(name))).collect()
}

#[cfg(not(feature = "tls"))]
const fn default_folder() -> Option<PathBuf> {
    None
}

/// Metrics and clients have listeners of their own, which the system does not let listen at one address.
fn metrics_among_clients(config: &Config, run: &Run) -> Option<Failure> {
    let address = config.server.metrics.as_ref()?;
    let MetricsAddress::Tcp(host, port) = address else { return None };
    let default = TcpAddress { host: "127.0.0.1".into(), port: DEFAULT_PORT };
    let of_clients = config.listeners.iter().filter_map(|listen| match listen.address() {
        Ok(Address::Tcp(address)) => Some(address),
        _ => None,
    });
    let default = (run.listens && config.listeners.is_empty()).then_some(&default);
    // Each takes a free port of its own for 0. Names are looked up only where it comes to that.
    let same_port = of_clients.chain(default).filter(|tcp| *port != 0 && tcp.port == *port);
    let same_port = Vec::from_iter(same_port);
    let found = |host: &str| addresses(host, *port).unwrap_or_default();
    let collide = same_port.iter().any(|tcp| tcp.host == *host)
        || !same_port.is_empty() && {
            let clients: Vec<_> = same_port.iter().flat_map(|tcp| found(&tcp.host)).collect();
            collide(&found(host), &clients)
        };
    let failure = || {
        Failure::usage(format!(
            "metrics are to be served at {address}, where NBD clients connect: choose another address"
        ))
    };
    collide.then(|| config.source.blame("server.metrics", failure()))
}

/// Whether an address of one set can't be listened on beside one of the other. All of them have the same port.
fn collide(one: &[SocketAddr], other: &[SocketAddr]) -> bool {
    // A wildcard of IPv6 takes IPv4 as well, unless there are IPv4 addresses beside it: see `net::bind_tcp`.
    let takes_v4 = |set: &[SocketAddr]| !set.iter().any(SocketAddr::is_ipv4);
    let reaches = |set: &[SocketAddr], wide: SocketAddr, address: SocketAddr| {
        let same_family = wide.is_ipv4() == address.is_ipv4();
        wide.ip().is_unspecified() && (same_family || wide.is_ipv6() && takes_v4(set))
    };
    one.iter()
        .any(|a| other.iter().any(|b| a == b || reaches(one, *a, *b) || reaches(other, *b, *a)))
}

/// All contexts with one port, and one of them.
#[cfg(target_os = "linux")]
fn vsock_twice(config: &Config) -> Option<Failure> {
    use nbd_engine::net::VSOCK_CID_ANY;
    let mut earlier = Vec::new();
    for (index, listen) in config.listeners.iter().enumerate() {
        let Ok(Address::Vsock(address)) = listen.address() else { continue };
        let in_the_way = earlier.iter().find(|other: &&super::config::VsockAddress| {
            let cids = [other.cid, address.cid];
            address.port != 0
                && other.port == address.port
                && (other.cid == address.cid || cids.contains(&VSOCK_CID_ANY))
        });
        if let Some(other) = in_the_way {
            let text = two_listeners(&format!("vsock {other}"), &format!("vsock {address}"));
            let failure = Failure::usage(text);
            return Some(config.source.blame(&format!("listen.{index}"), failure));
        }
        earlier.push(address);
    }
    None
}

#[cfg(test)]
mod tests;
