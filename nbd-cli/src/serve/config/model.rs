//! The keys of a configuration, and their defaults.
//!
//! The comment of each field is its entry in `docs/configuration.md`, which a test makes of them; `cli` is the option
//! of the command line that does the same.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::super::sandbox;
use super::export::Export;
use super::source::Source;
#[cfg(target_os = "linux")]
use super::words::VsockAddress;
use super::words::{Cidr, Period, TcpAddress};
use crate::quantity::Timeout;
use crate::serve::metrics::MetricsAddress;

/// All that a server is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// The server as a whole.
    pub(crate) server: Server,

    /// Where it listens. Without any, it takes the sockets that systemd hands over, else listens on 127.0.0.1:10809.
    #[serde(rename = "listen", skip_serializing_if = "Vec::is_empty")]
    pub(crate) listeners: Vec<Listen>,

    /// Which clients may connect. Without any of these keys all may.
    #[serde(skip_serializing_if = "Access::is_default")]
    pub(crate) access: Access,

    /// Whether clients encrypt, and by what.
    #[serde(skip_serializing_if = "Tls::is_default")]
    pub(crate) tls: Tls,

    /// What it serves. A file needs one at least. The first one is the export of clients that give no name.
    #[serde(rename = "export")]
    pub(crate) exports: Vec<Export>,

    /// Where it comes from, for messages.
    #[serde(skip)]
    pub(crate) source: Source,
}

/// The server as a whole.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Server {
    /// What runs the connections: tasks on tokio, or a thread for each connection. A build with the feature `async-std` has
    /// `"async-std"` as well: tasks on that.
    #[cfg_attr(test, schemars(extend("cli" = "--runtime")))]
    pub(crate) runtime: RuntimeName,

    /// Connections at a time, at least 1; when all are taken, more are refused after a second.
    #[cfg_attr(test, schemars(extend("cli" = "--max-connections")))]
    #[serde(deserialize_with = "positive")]
    pub(crate) max_connections: usize,

    /// How long a client may be idle while others wait for a connection; then its connection is closed, and one of them
    /// gets it. By default 60s, but never with `max-connections = 1`.
    #[cfg_attr(test, schemars(extend("cli" = "--idle-timeout")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout: Option<Timeout>,

    /// How long a client may send a request or receive replies at less than 16 KiB/s; then its connection is closed.
    #[cfg_attr(test, schemars(extend("cli" = "--stall-timeout")))]
    pub(crate) stall_timeout: Timeout,

    /// How long requests in flight may take to finish at the end; then they are cut off, and the exit status is 3.
    #[cfg_attr(test, schemars(extend("cli" = "--drain-timeout")))]
    pub(crate) drain_timeout: Period,

    /// Whether clients that are to go are hung up on, once their requests in flight are answered, and get no
    /// `NBD_ESHUTDOWN` for later ones: for clients that connect again by themselves and take that for a fault of the disk,
    /// such as qemu with `reconnect-delay`.
    #[cfg_attr(test, schemars(extend("cli" = "--hang-up")))]
    pub(crate) hang_up: bool,

    /// Path of the control socket, for `nbd status`, `nbd disconnect`, `nbd bitmap`, `nbd export`, `nbd reload` and `nbd
    /// serve --take-over`, which look at the server and change it while it runs; only the user that runs the server can
    /// use it.
    #[cfg_attr(test, schemars(extend("cli" = "--control", "kind" = "path")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control: Option<PathBuf>,

    /// Where metrics are served to Prometheus by HTTP, as `/metrics`: a port of 127.0.0.1, an address with a port, or
    /// `unix:PATH`. There is no authentication.
    #[cfg_attr(test, schemars(extend("cli" = "--metrics")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics: Option<MetricsAddress>,

    /// What is logged on standard error: problems; how connections end badly and which clients are refused as well; all
    /// connections; everything.
    #[cfg_attr(test, schemars(extend("cli" = "--verbose")))]
    pub(crate) log: LogLevel,

    /// Whether the server, once it listens, is confined to its own files and to what serving takes: it can't open other
    /// files, run programs, or connect to anything. `require` fails where the system can't do that, `try` goes on
    /// without. By landlock and seccomp of Linux 5.13 or newer.
    #[cfg_attr(test, schemars(extend("cli" = "--sandbox")))]
    #[serde(skip_serializing_if = "sandbox::Mode::is_off")]
    pub(crate) sandbox: sandbox::Mode,

    /// Whether the server speaks the oldstyle protocol, wherever it listens, and serves the one export that there is:
    /// for very old clients. There is no choice of exports, no structured replies, no metadata contexts and no TLS.
    #[cfg_attr(test, schemars(extend("cli" = "--oldstyle")))]
    pub(crate) oldstyle: bool,
}

/// A listener has exactly one of these keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Listen {
    /// `HOST:PORT`, where the host is an address of IPv4, of IPv6 in brackets, or a name, which stands for all
    /// of its addresses. Without a port it is 10809; port 0 takes a free one.
    #[cfg_attr(test, schemars(extend("cli" = "--ip-addr, --port")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<TcpAddress>,

    /// Path of a Unix socket.
    #[cfg_attr(test, schemars(extend("cli" = "--unix", "kind" = "path")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    unix: Option<PathBuf>,

    /// Virtual machine socket, `PORT` or `CID:PORT`: for clients on the host and on this machine, or on that context
    /// identifier of this machine only. Port 0 takes a free one.
    #[cfg(target_os = "linux")]
    #[cfg_attr(test, schemars(extend("cli" = "--vsock")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    vsock: Option<VsockAddress>,

    /// Take the sockets that systemd's socket activation hands over, beside the other listeners, and fail if there are
    /// none.
    #[serde(skip_serializing_if = "is_false")]
    activation: bool,
}

/// Others are disconnected before they are sent a byte. Rules about addresses concern clients by TCP, and refuse clients of
/// other kinds but Unix sockets, such as vsock; rules about users and groups concern clients of Unix sockets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Access {
    /// Addresses and networks, such as `10.0.0.0/8`, `fd00::/8` or `192.0.2.7`: clients of others are refused. IPv4 clients
    /// of an IPv6 socket count as IPv4 clients.
    #[cfg_attr(test, schemars(extend("cli" = "--allow")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow: Vec<Cidr>,

    /// Addresses and networks whose clients are refused, even if `allow` has them.
    #[cfg_attr(test, schemars(extend("cli" = "--deny")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) deny: Vec<Cidr>,

    /// Users, by their name in `/etc/passwd` or their number: clients of Unix sockets that are of another one, and of none
    /// of the groups of `allow-group`, are refused.
    #[cfg_attr(test, schemars(extend("cli" = "--allow-user")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow_user: Vec<String>,

    /// The same by effective group, by its name in `/etc/group` or its number.
    #[cfg_attr(test, schemars(extend("cli" = "--allow-group")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow_group: Vec<String>,
}

/// Without `certificates` and `psk` the first of `~/.pki/nbd`, `~/.pki/nbdkit`, `/etc/pki/nbd` and others is taken
/// that has a certificate.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Tls {
    /// Whether clients cannot, can or must encrypt. By default `require` if a certificate or keys are given, else
    /// `off`.
    #[cfg_attr(test, schemars(extend("cli" = "--tls")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<TlsMode>,

    /// Folder with `server-cert.pem` and `server-key.pem`, and with `ca-cert.pem` to verify clients.
    #[cfg_attr(test, schemars(extend("cli" = "--tls-certificates", "kind" = "path")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificates: Option<PathBuf>,

    /// File with pre-shared keys, in place of certificates.
    #[cfg_attr(test, schemars(extend("cli" = "--tls-psk", "kind" = "path")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) psk: Option<PathBuf>,

    /// Refuse clients that do not show a certificate of the authority in `ca-cert.pem`; with `mode = "on"` all who
    /// encrypt, whichever export they want, and nobody else, which takes exports with `tls-only`.
    #[cfg_attr(test, schemars(extend("cli" = "--tls-verify-peer")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) verify_peer: bool,

    /// Refuse clients whose certificate, or user, has no name that matches one of these patterns, such as
    /// `*.example.org`.
    #[cfg_attr(test, schemars(extend("cli" = "--tls-allow")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow: Vec<String>,
}

/// The adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RuntimeName {
    /// Tasks on tokio
    #[default]
    Tokio,
    /// Tasks on async-std
    #[cfg(feature = "async-std")]
    #[cfg_attr(test, schemars(skip))]
    AsyncStd,
    /// A thread for each connection
    Blocking,
}

impl RuntimeName {
    /// Bound on the connections at a time. What writes the log has room for 4096 threads, and panics in one more: the
    /// server would end. Others than those of connections, and those that are just ending, need some.
    pub(crate) const fn max_connections(self) -> usize {
        match self {
            Self::Blocking => 3000,
            Self::Tokio => usize::MAX,
            #[cfg(feature = "async-std")]
            Self::AsyncStd => usize::MAX,
        }
    }
}

/// What is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogLevel {
    /// Warnings and errors.
    #[default]
    Warn,
    /// How connections end badly, and which clients are refused, as well.
    Info,
    /// All connections.
    Debug,
    /// Everything.
    Trace,
}

/// Whether clients encrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TlsMode {
    /// No client can
    Off,
    /// Clients can
    On,
    /// All clients must
    Require,
}

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address<'a> {
    /// A host and a port.
    Tcp(&'a TcpAddress),
    /// A path.
    Unix(&'a Path),
    /// A context identifier and a port.
    #[cfg(target_os = "linux")]
    Vsock(VsockAddress),
    /// On the sockets that were handed over.
    Activation,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            runtime: RuntimeName::default(),
            max_connections: 1024,
            idle_timeout: None,
            stall_timeout: Timeout::After(Duration::from_secs(60)),
            drain_timeout: Period(Duration::from_secs(10)),
            hang_up: false,
            control: None,
            metrics: None,
            log: LogLevel::default(),
            sandbox: sandbox::Mode::Off,
            oldstyle: false,
        }
    }
}

/// How long a client may be idle by default.
const IDLE: Duration = Duration::from_secs(60);

impl Server {
    /// How long a client may be idle while others wait; `None` for as long as it likes. The only client of a server of
    /// one connection is meant to keep it.
    pub(crate) fn idle_limit(&self) -> Option<Duration> {
        let only_one = self.max_connections == 1;
        let default = if only_one { Timeout::Never } else { Timeout::After(IDLE) };
        self.idle_timeout.unwrap_or(default).duration()
    }
}

impl LogLevel {
    /// What so many `-v` ask for.
    pub(crate) const fn of_verbosity(count: u8) -> Self {
        match count {
            0 => Self::Warn,
            1 => Self::Info,
            2 => Self::Debug,
            _ => Self::Trace,
        }
    }

    /// As many `-v` as ask for this.
    pub(crate) const fn verbosity(self) -> u8 {
        self as u8
    }
}

impl Listen {
    pub(crate) fn tcp(address: TcpAddress) -> Self {
        Self { tcp: Some(address), ..Self::default() }
    }

    pub(crate) fn unix(path: PathBuf) -> Self {
        Self { unix: Some(path), ..Self::default() }
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn vsock(address: VsockAddress) -> Self {
        Self { vsock: Some(address), ..Self::default() }
    }

    /// Where that is.
    ///
    /// # Errors
    /// A text that says so when it is not exactly one address, as in a file that was not checked.
    pub(crate) fn address(&self) -> Result<Address<'_>, String> {
        let tcp = self.tcp.as_ref().map(Address::Tcp);
        let unix = self.unix.as_deref().map(Address::Unix);
        #[cfg(target_os = "linux")]
        let vsock = self.vsock.map(Address::Vsock);
        #[cfg(not(target_os = "linux"))]
        let vsock = None;
        let activation = self.activation.then_some(Address::Activation);
        let mut addresses = [tcp, unix, vsock, activation].into_iter().flatten();
        match (addresses.next(), addresses.next()) {
            (Some(address), None) => Ok(address),
            _ => {
                Err("a listener needs exactly one of tcp, unix, vsock and activation = true".into())
            }
        }
    }
}

impl Access {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Tls {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Config {
    /// All paths in it.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let single = [&mut self.server.control, &mut self.tls.certificates, &mut self.tls.psk];
        let listeners = self.listeners.iter_mut().map(|listen| &mut listen.unix);
        let exports = self.exports.iter_mut().flat_map(Export::paths_mut);
        let metrics = self.server.metrics.as_mut().and_then(MetricsAddress::path_mut);
        single.into_iter().chain(listeners).flatten().chain(exports).chain(metrics)
    }

    /// Takes relative paths as relative to this folder.
    pub(super) fn resolve(&mut self, folder: &Path) {
        // An empty path stays what it is, an error, rather than become the folder.
        for path in self.paths_mut().filter(|path| !path.as_os_str().is_empty()) {
            *path = folder.join(&*path);
        }
    }

    /// The first path that is no text.
    pub(super) fn path_beyond_utf8(&mut self) -> Option<&Path> {
        self.paths_mut().map(|path| &**path).find(|path| path.to_str().is_none())
    }

    /// Whether anything in it needs TLS.
    #[cfg(not(feature = "tls"))]
    pub(crate) fn asks_for_tls(&self) -> bool {
        let off = Tls { mode: Some(TlsMode::Off), ..Tls::default() };
        let only = self.exports.iter().any(|export| export.tls_only);
        only || !self.tls.is_default() && self.tls != off
    }

    /// Whether changes to that export can be recorded. Those to files of a directory can't, as what is known of a file
    /// ends with its last client.
    pub(crate) fn is_tracked(&self, export: &Export) -> bool {
        !export.is_directory() && (!export.track.is_empty() || self.server.control.is_some())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
pub(super) const fn is_false(flag: &bool) -> bool {
    !*flag
}

fn positive<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let number = usize::deserialize(deserializer)?;
    match number {
        0 => Err(serde::de::Error::custom("give a number of at least 1")),
        number => Ok(number),
    }
}
