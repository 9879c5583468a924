//! The keys of a configuration, and their defaults.
//!
//! The comment of each field is its entry in `docs/configuration.md`, which a test makes of them; `cli` is the option
//! of the command line that does the same.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::super::layers::Layer;
use super::super::sandbox;
use super::source::Source;
#[cfg(target_os = "linux")]
use super::words::VsockAddress;
use super::words::{BlockSizes, Cidr, Period, Size, TcpAddress, VolumeCache};
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
    /// What runs the connections: tasks on tokio, or a thread for each connection.
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

    /// What is logged on standard error: problems; how connections end badly as well; all connections; everything.
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

    /// Refuse clients that do not show a certificate of the authority in `ca-cert.pem`; with `mode = "on"` that is for
    /// exports with `tls-only`.
    #[cfg_attr(test, schemars(extend("cli" = "--tls-verify-peer")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) verify_peer: bool,

    /// Refuse clients whose certificate, or user, has no name that matches one of these patterns, such as
    /// `*.example.org`.
    #[cfg_attr(test, schemars(extend("cli" = "--tls-allow")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) allow: Vec<String>,
}

/// An export has exactly one of `file`, `memory`, `directory`, `volume` and `object`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Export {
    /// The name by which clients ask for it; no two exports have the same. That of a `directory` is a prefix: clients ask
    /// for `NAME/FILE`, or, if it is empty, for `FILE`.
    #[cfg_attr(test, schemars(extend("cli" = "NAME=BACKEND, --export-name")))]
    pub(crate) name: String,

    /// Path of a file or block device.
    #[cfg_attr(test, schemars(extend("cli" = "file:PATH", "kind" = "path")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,

    /// Size of a disk in memory, which is lost at the end.
    #[cfg_attr(test, schemars(extend("cli" = "memory:SIZE")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Size>,

    /// Path of a directory, each regular file in which is an export by its name, whenever clients ask: no links, devices,
    /// directories or names that begin with a dot, and no file that has an `[[export]]` of its own. All other keys apply
    /// to each file by itself.
    #[cfg_attr(test, schemars(extend("cli" = "dir:PATH", "kind" = "path")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    directory: Option<PathBuf>,

    /// URL of a volume on object storage, `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or
    /// `file:///DIRECTORY`; with `@SNAPSHOT` behind it, one of its snapshots, for reading. See [volumes](volumes.md).
    #[cfg_attr(test, schemars(extend("cli" = "volume:URL")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    volume: Option<String>,

    /// URL of an object that is a disk by itself, for reading: `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `az://CONTAINER/KEY`,
    /// `https://HOST/PATH` or `http://HOST/PATH`. See [volumes](volumes.md#an-object-as-a-disk).
    #[cfg_attr(test, schemars(extend("cli" = "URL")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,

    /// How much memory a server of one volume takes: its caches, what is not uploaded yet, what is being merged and the
    /// program. At least `128M`; `640M` if it is missing. Each further volume takes as much again. For an object, its cache
    /// of what was read: at least `32M`; `256M` if it is missing. What clients send and receive comes on top.
    #[cfg_attr(test, schemars(extend("cli" = "--volume-memory")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_memory: Option<Size>,

    /// A directory on a local disk in which parts of a volume are kept for reading, and how much they may take, at least `64M`:
    /// `DIR:SIZE`. They outlive the server.
    #[cfg_attr(test, schemars(extend("cli" = "--volume-cache")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_cache: Option<VolumeCache>,

    /// Refuse to start when another server has the volume open and is alive, instead of taking the volume over.
    #[cfg_attr(test, schemars(extend("cli" = "--volume-exclusive")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) volume_exclusive: bool,

    /// For how long a volume is served without a look at who writes it, from `1s` to `10m`; `10s` if it is missing. A server
    /// that takes it over from one that crashed waits for as long. The store is asked five times as often: a short one
    /// costs requests.
    #[cfg_attr(test, schemars(extend("cli" = "--volume-lease")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) volume_lease: Option<Period>,

    /// Text for people who list the exports.
    #[cfg_attr(test, schemars(extend("cli" = "--description")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,

    /// Refuse to write; a file is opened for reading only.
    #[cfg_attr(test, schemars(extend("cli" = "--read-only")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) read_only: bool,

    /// Let clients resize it, if it can be resized: memory and regular files. A client that makes a disk smaller takes
    /// the rest from all of them.
    #[cfg_attr(test, schemars(extend("cli" = "--resize")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) resize: bool,

    /// Layers around it, the first one nearest to the disk: each is a word as on the command line, or a table with a key
    /// that is the layer's name. See [layers](layers.md).
    #[cfg_attr(test, schemars(extend("cli" = "--layer")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<Layer>,

    /// Names under which it is recorded what clients change from the start on, each as the metadata context
    /// `qemu:dirty-bitmap:NAME`, for incremental backups.
    #[cfg_attr(test, schemars(extend("cli" = "--track")))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) track: Vec<String>,

    /// Offer the metadata context `qemu:allocation-depth`.
    #[cfg_attr(test, schemars(extend("cli" = "--allocation-depth")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) allocation_depth: bool,

    /// Size constraints to announce to clients and to enforce, `MIN[:PREFERRED[:MAX]]`: the smallest unit, a power of
    /// two up to 64k; the preferred one, a power of two from 512; the longest payload. The disk is cut to a multiple of
    /// the first.
    #[cfg_attr(test, schemars(extend("cli" = "--block-size")))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block_size: Option<BlockSizes>,

    /// Refuse clients that do not ask for the size constraints; needs `block-size`.
    #[cfg_attr(test, schemars(extend("cli" = "--block-size-required")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) block_size_required: bool,

    /// Hide it from clients that do not encrypt, and refuse it to them.
    #[cfg_attr(test, schemars(extend("cli" = "--tls-only")))]
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) tls_only: bool,
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
    /// How connections end badly as well.
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

/// What an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend<'a> {
    /// A file or block device.
    File(&'a Path),
    /// A disk in memory of so many bytes.
    Memory(u64),
    /// A volume on object storage: its URL, and `@SNAPSHOT` for a snapshot.
    Volume(&'a str),
    /// An object that is a disk by itself: its URL.
    Object(&'a str),
    /// Each file of a directory.
    Directory(&'a Path),
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

impl Export {
    /// An export of that name, with the defaults.
    pub(crate) fn new(name: impl Into<String>, backend: Backend<'_>) -> Self {
        let mut export = Self { name: name.into(), ..Self::default() };
        match backend {
            Backend::File(path) => export.file = Some(path.to_owned()),
            Backend::Memory(size) => export.memory = Some(Size(size)),
            Backend::Volume(url) => export.volume = Some(url.to_owned()),
            Backend::Object(url) => export.object = Some(url.to_owned()),
            Backend::Directory(path) => export.directory = Some(path.to_owned()),
        }
        export
    }

    /// What it is.
    ///
    /// # Errors
    /// A text that says so when it is not exactly one thing, as in a file that was not checked.
    pub(crate) fn backend(&self) -> Result<Backend<'_>, String> {
        let file = self.file.as_deref().map(Backend::File);
        let memory = self.memory.map(|size| Backend::Memory(size.0));
        let directory = self.directory.as_deref().map(Backend::Directory);
        let volume = self.volume.as_deref().map(Backend::Volume);
        let object = self.object.as_deref().map(Backend::Object);
        let mut backends = [file, memory, directory, volume, object].into_iter().flatten();
        match (backends.next(), backends.next()) {
            (Some(backend), None) => Ok(backend),
            _ => {
                Err("an export needs exactly one of file, memory, directory, volume and object"
                    .into())
            }
        }
    }

    /// Whether it is each file of a directory rather than one disk.
    pub(crate) const fn is_directory(&self) -> bool {
        self.directory.is_some()
    }

    /// What it is called among all exports: the name, with a `/` behind that of a directory, which is a prefix.
    pub(crate) fn label(&self) -> Cow<'_, str> {
        match self.is_directory() {
            true => format!("{}/", self.name).into(),
            false => Cow::Borrowed(&self.name),
        }
    }
}

impl Config {
    /// All paths in it.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let single = [&mut self.server.control, &mut self.tls.certificates, &mut self.tls.psk];
        let listeners = self.listeners.iter_mut().map(|listen| &mut listen.unix);
        let exports = self.exports.iter_mut().flat_map(|export| {
            let layers = export.layers.iter_mut().filter_map(Layer::path_mut);
            export.file.iter_mut().chain(&mut export.directory).chain(layers)
        });
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
const fn is_false(flag: &bool) -> bool {
    !*flag
}

fn positive<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let number = usize::deserialize(deserializer)?;
    match number {
        0 => Err(serde::de::Error::custom("give a number of at least 1")),
        number => Ok(number),
    }
}
