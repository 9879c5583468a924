//! The command line of `nbd serve`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nbd_engine::export::BlockSize;
use nbd_engine::proto::wire::DEFAULT_PORT;

#[cfg(target_os = "linux")]
use super::config::VsockAddress;
use super::config::{
    self, BlockSizes, Config, Export, Listen, LogLevel, Period, RuntimeName, Server, Size, Source,
    TcpAddress, VolumeCache,
};
use super::layers;
use super::metrics::MetricsAddress;
use super::{block_size, export_word, sandbox};
use crate::exit::Failure;
use crate::quantity::{self, Timeout};

/// Serve disks until interrupted.
///
/// Without arguments it serves a memory disk of 1 GiB on 127.0.0.1:10809. When it listens it prints one URI a line on
/// standard output, for clients such as qemu-img, nbdinfo and nbdcopy. SIGTERM, SIGINT, SIGQUIT or SIGHUP lets requests in
/// flight finish and exits; a second one other than SIGHUP exits at once. With TLS or --config, and without a controlling
/// terminal, SIGHUP has the certificates or keys and the configuration read again instead.
///
/// Sockets that systemd's socket activation hands over (LISTEN_FDS) are taken instead; nothing is printed then, and the
/// server ends with the process that started it, unless that is systemd:
/// nbd info [ nbd serve disk.img ], and the same with nbdinfo and nbdcopy.
///
/// Exit status: 0 after an orderly end, 3 if requests were cut off at the end of --drain-timeout, 64 if the command line is
/// at fault, 78 if the configuration file is, 70 after a fault of nbd itself, 1 if anything else is; 128 and its number
/// after a second signal.
#[derive(Debug, Args)]
#[command(
    override_usage = "nbd serve [OPTIONS] [[NAME=]BACKEND]...\n       nbd serve --config <FILE> [OPTIONS]"
)]
pub(crate) struct Arguments {
    /// Take everything from a configuration file in TOML: listeners, exports, TLS, limits; see docs/configuration.md
    ///
    /// No option goes with it that says what the server is, so that the file alone says that, and says it again when it
    /// is read again: only --check, --print-config and --verbose, and those about its process.
    #[arg(long, value_name = "FILE", conflicts_with_all = BESIDE_A_FILE.iter().copied())]
    pub(crate) config: Option<PathBuf>,

    /// Check the command line or the configuration file, and that all that it names can be used, and exit: disks, layers'
    /// files, certificates, addresses, sockets; no file is made, nothing is listened on, or opened for writing
    #[arg(long, conflicts_with = "print_config")]
    pub(crate) check: bool,

    /// Print the configuration file that means what the command line, or the configuration file, does, and exit
    #[arg(long)]
    pub(crate) print_config: bool,

    /// TCP port; 0 takes a free one
    #[arg(short, long, value_name = "PORT", value_parser = quantity::port)]
    pub(crate) port: Option<u16>,

    /// Address to listen on, IPv4 or IPv6, or a name such as localhost, which stands for all of its addresses; can be
    /// given several times [default: 127.0.0.1]
    #[arg(short, long = "ip-addr", value_name = "ADDR")]
    pub(crate) ip_addr: Vec<String>,

    /// Listen on a Unix socket (and on TCP only if a port or address is given, too); - for one in a private folder
    #[arg(short = 'U', long, value_name = "PATH")]
    pub(crate) unix: Option<PathBuf>,

    /// Listen on a virtual machine socket: a port, 0 for a free one, for clients on the host and on this machine; with CID:
    /// in front of it, on that context identifier of this machine only
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "[CID:]PORT", value_parser = VsockAddress::parse)]
    pub(crate) vsock: Option<VsockAddress>,

    /// Refuse to write; files are opened for reading only
    #[arg(short, long)]
    pub(crate) read_only: bool,

    /// Name of an export that has none of its own [default: empty]
    #[arg(short, long, value_name = "NAME")]
    pub(crate) export_name: Option<String>,

    /// Text for people who list the exports
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,

    /// Let clients resize disks that can be resized: memory and regular files
    ///
    /// Off by default, since a client that makes a disk smaller takes the rest from all of them.
    #[arg(long)]
    pub(crate) resize: bool,

    /// Record what clients change from now on as the metadata context qemu:dirty-bitmap:NAME, for incremental backups;
    /// can be given several times
    ///
    /// Applies to every export. The record lives as long as the server.
    #[arg(long, value_name = "NAME", conflicts_with = "read_only")]
    pub(crate) track: Vec<String>,

    /// Path of the control socket, for nbd status, nbd disconnect, nbd bitmap, nbd export, nbd reload and nbd serve
    /// --take-over, which look at the server and change it while it runs; only the user that runs the server can use it
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,

    /// Put a layer around the exports: read-only, offset:OFFSET,length=LENGTH, partition:N, overlay or overlay:FILE,
    /// rate:BYTES,requests=N, delay:TIME or delay:TIME-TIME, error:ERRNO, log or log:FILE; can be given several times, the
    /// first one is nearest to the disk
    ///
    /// An overlay takes what clients write, in a file or in memory: the disk is only read. Rates are what is carried out
    /// in a second, in all, or of each client with client=BYTES,client-requests=N. Delays and errors concern all requests,
    /// or some: commands=read+write,probability=0.01,seed=7. A log has a line for each request.
    #[arg(long, value_name = "NAME[:...]")]
    pub(crate) layer: Vec<String>,

    /// Serve metrics for Prometheus by HTTP at that address, as /metrics: a port on 127.0.0.1, an address with a port, or
    /// unix:PATH
    ///
    /// There is no authentication: whoever reaches the address sees the names of exports and how they are used. SIGUSR1
    /// logs a summary in any case.
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<MetricsAddress>,

    /// Offer the metadata context qemu:allocation-depth
    #[arg(short = 'A', long)]
    pub(crate) allocation_depth: bool,

    /// Size constraints to announce to clients and to enforce: the smallest unit, the preferred one and the longest payload,
    /// such as 512, 4k:64k or 512:4k:1M
    ///
    /// The first is a power of two up to 64k, the second a power of two from 512. Disks are cut to a multiple of the
    /// first.
    #[arg(long, value_name = "MIN[:PREFERRED[:MAX]]", value_parser = block_size::parse)]
    pub(crate) block_size: Option<BlockSize>,

    /// How much memory each volume may take, at least 192M, and the cache of each object, at least 32M [default: 640M for
    /// a volume, 256M for an object]
    ///
    /// For a volume that is all that a server of it takes, with some tens of MiB of requests in flight. For an object, what
    /// clients receive comes on top.
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    pub(crate) volume_memory: Option<u64>,

    /// A directory on a local disk in which parts of each volume are kept for reading, and how much those of one volume may
    /// take, at least 64M, such as /var/cache/nbd:20G
    #[arg(long, value_name = "DIR:SIZE", value_parser = VolumeCache::parse)]
    pub(crate) volume_cache: Option<VolumeCache>,

    /// Refuse to start when another server has a volume open and is alive, instead of taking the volume over
    #[arg(long)]
    pub(crate) volume_exclusive: bool,

    /// For how long a volume is served without a look at who writes it, from 1s to 10m [default: 10s]
    ///
    /// A server that takes it over from one that crashed waits for as long. The store is asked five times as often: a short
    /// one costs requests.
    #[arg(long, value_name = "T", value_parser = quantity::duration)]
    pub(crate) volume_lease: Option<Duration>,

    /// Refuse clients that do not ask for the size constraints
    #[arg(long, requires = "block_size")]
    pub(crate) block_size_required: bool,

    /// Speak the oldstyle protocol, wherever it listens, and serve the one export that there is: for very old clients
    ///
    /// There is no choice of exports, no structured replies, no metadata contexts and no TLS.
    #[arg(long, conflicts_with_all = ["block_size_required", "track", "allocation_depth"])]
    pub(crate) oldstyle: bool,

    #[command(flatten)]
    pub(crate) access: super::access::AccessArguments,

    #[command(flatten)]
    pub(crate) process: super::process::ProcessArguments,

    #[cfg(feature = "tls")]
    #[command(flatten)]
    pub(crate) tls: super::tls::TlsArguments,

    /// What runs the connections
    #[arg(long, value_enum, default_value_t = RuntimeName::Tokio)]
    pub(crate) runtime: RuntimeName,

    /// Connections at a time; when all are taken, more are refused after a second
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = quantity::positive)]
    pub(crate) max_connections: usize,

    /// How long a client may be idle while others wait for a connection; then its connection is closed, and one of them
    /// gets it. A duration such as 30s or 5m, or never
    ///
    /// [default: 60s, but never with --max-connections 1]
    #[arg(long, value_name = "T", value_parser = quantity::timeout)]
    pub(crate) idle_timeout: Option<Timeout>,

    /// How long a client may send a request or receive replies at less than 16 KiB/s; then its connection is closed. A
    /// duration such as 30s or 5m, or never
    ///
    /// A client that holds memory while others wait for some has 10s at most, 2s if it moves nothing at all.
    #[arg(long, value_name = "T", default_value = "60s", value_parser = quantity::timeout)]
    pub(crate) stall_timeout: Timeout,

    /// How long requests in flight may take to finish at the end, such as 500ms, 10s or 1m; then they are cut off, and the
    /// exit status is 3
    #[arg(long, value_name = "T", default_value = "10s", value_parser = quantity::duration)]
    pub(crate) drain_timeout: Duration,

    /// Hang up on clients at the end, once their requests in flight are answered, rather than answer later ones with
    /// NBD_ESHUTDOWN
    ///
    /// For clients that connect again by themselves and take that error for a fault of the disk, such as qemu with
    /// reconnect-delay.
    #[arg(long)]
    pub(crate) hang_up: bool,

    /// Confine the server, once it listens, to its own files and to what serving takes: it can't open other files, run
    /// programs, or connect to anything
    ///
    /// By landlock and seccomp of Linux 5.13 or newer. Without MODE, or with require, it is an error if the system can't do
    /// that; with try it is a warning. A server that was confined stays so: reloading can't add files or addresses.
    #[arg(
        long,
        value_enum,
        value_name = "MODE",
        num_args = 0..=1,
        require_equals = true,
        default_value = "off",
        hide_default_value = true,
        default_missing_value = "require"
    )]
    pub(crate) sandbox: sandbox::Mode,

    /// Log connections that end badly, and clients that are refused, on standard error; twice: log all of them
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// What to serve: PATH or file:PATH for a file or block device, memory:SIZE for a disk in memory (512, 4k, 1M, 10G,
    /// 1T), dir:PATH for each file of a directory, volume:URL or volume:URL@SNAPSHOT for a volume on object storage,
    /// s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY or https://HOST/PATH for an object that is a disk, for reading.
    /// With NAME= in front it is exported under that name; clients that give no name get the first
    ///
    /// What comes before the first = is a name, unless the word begins with /, ./, ../, file:, memory:, dir:, volume: or a
    /// URL. A file whose name has a = in it is ./a=b.img, or disk=a=b.img. The files of a directory are exported by their names,
    /// as they come and go, with NAME= as NAME/FILE; links, devices, directories below and hidden files are not. Volumes
    /// and objects take a program that was built with the feature volume; the last server that opens a volume takes it over.
    #[arg(value_name = "[NAME=]BACKEND", default_value = "memory:1G")]
    pub(crate) backends: Vec<OsString>,
}

/// What a configuration file says by itself: all but what is about this run of the command.
const BESIDE_A_FILE: &[&str] = &[
    "port",
    "ip_addr",
    "unix",
    "vsock",
    "read_only",
    "export_name",
    "description",
    "resize",
    "track",
    "control",
    "layer",
    "metrics",
    "allocation_depth",
    "block_size",
    "block_size_required",
    "volume_memory",
    "volume_cache",
    "volume_exclusive",
    "volume_lease",
    "oldstyle",
    "runtime",
    "max_connections",
    "idle_timeout",
    "stall_timeout",
    "drain_timeout",
    "hang_up",
    "sandbox",
    "allow",
    "deny",
    "allow_user",
    "allow_group",
    "backends",
    #[cfg(feature = "tls")]
    "tls",
    #[cfg(feature = "tls")]
    "tls_certificates",
    #[cfg(feature = "tls")]
    "tls_psk",
    #[cfg(feature = "tls")]
    "tls_verify_peer",
    #[cfg(feature = "tls")]
    "tls_allow",
    #[cfg(feature = "tls")]
    "tls_only",
];

impl Arguments {
    /// What the server is to be: what the configuration file says if there is one, otherwise what the command line
    /// does.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let Some(file) = &self.config else {
            let mut config = self.without_file()?;
            self.process.add_to(&mut config)?;
            config::check(&config)?;
            return Ok(config);
        };
        let mut config = config::load(file)?;
        config.server.log = config.server.log.max(LogLevel::of_verbosity(self.verbose));
        self.process.add_to(&mut config)?;
        Ok(config)
    }

    fn without_file(&self) -> Result<Config, Failure> {
        let server = Server {
            runtime: self.runtime,
            max_connections: self.max_connections,
            idle_timeout: self.idle_timeout,
            stall_timeout: self.stall_timeout,
            drain_timeout: Period(self.drain_timeout),
            hang_up: self.hang_up,
            control: self.control.clone(),
            metrics: self.metrics.clone(),
            log: LogLevel::of_verbosity(self.verbose),
            sandbox: self.sandbox,
            oldstyle: self.oldstyle,
        };
        let layers = layers::of_words(&self.layer)?;
        let exports = self.backends.iter().map(|word| {
            let (name, backend) = export_word::parse(word)?;
            let name = name.or(self.export_name.as_deref()).unwrap_or_default();
            let mut export = self.with_options(Export::new(name, backend));
            export.layers.clone_from(&layers);
            Ok(export)
        });
        let exports = exports.collect::<Result<Vec<_>, Failure>>()?;
        let source = Source::CommandLine;
        let config = Config {
            access: self.access.access(),
            server,
            listeners: self.listeners(),
            exports,
            source,
            ..Config::default()
        };
        #[cfg(feature = "tls")]
        let config = self.tls.add_to(config)?;
        Ok(config)
    }

    /// All exports have the same options.
    fn with_options(&self, mut export: Export) -> Export {
        export.description = self.description.clone();
        export.read_only = self.read_only;
        export.resize = self.resize;
        export.track = self.track.clone();
        export.allocation_depth = self.allocation_depth;
        export.block_size = self.block_size.map(BlockSizes);
        export.block_size_required = self.block_size_required;
        export.volume_memory = self.volume_memory.map(Size);
        export.volume_cache = self.volume_cache.clone();
        export.volume_exclusive = self.volume_exclusive;
        export.volume_lease = self.volume_lease.map(Period);
        export
    }

    /// Where to listen: on a Unix socket alone, unless TCP is asked for; on TCP on the loopback address and the
    /// registered port, unless told otherwise. Without any of that it is for the environment to say.
    fn listeners(&self) -> Vec<Listen> {
        let port = self.port.unwrap_or(DEFAULT_PORT);
        let tcp = |host: &str| Listen::tcp(TcpAddress { host: host.to_owned(), port });
        let mut listeners = Vec::from_iter(self.ip_addr.iter().map(|host| tcp(host)));
        if self.port.is_some() && listeners.is_empty() {
            listeners.push(tcp("127.0.0.1"));
        }
        listeners.extend(self.unix.clone().map(Listen::unix));
        #[cfg(target_os = "linux")]
        listeners.extend(self.vsock.map(Listen::vsock));
        listeners
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Serve {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parse(words: &[&str]) -> Arguments {
        let words = ["serve"].iter().chain(words);
        Serve::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).arguments
    }

    #[test]
    fn the_only_client_of_a_server_of_one_connection_keeps_it() {
        assert_eq!(parse(&[]).config().unwrap().server.idle_limit(), Some(Duration::from_secs(60)));
        assert_eq!(
            parse(&["--max-connections", "2"]).config().unwrap().server.idle_limit(),
            Some(Duration::from_secs(60))
        );
        assert_eq!(parse(&["--max-connections", "1"]).config().unwrap().server.idle_limit(), None);
        let given = parse(&["--max-connections", "1", "--idle-timeout", "5s"]);
        assert_eq!(given.config().unwrap().server.idle_limit(), Some(Duration::from_secs(5)));
        assert_eq!(parse(&["--idle-timeout", "never"]).config().unwrap().server.idle_limit(), None);
    }

    #[test]
    fn the_stall_timeout_can_be_set_and_switched_off() {
        assert_eq!(parse(&[]).stall_timeout, Timeout::After(Duration::from_secs(60)));
        assert_eq!(parse(&["--stall-timeout", "never"]).stall_timeout, Timeout::Never);
        let given = parse(&["--stall-timeout", "5m"]);
        assert_eq!(given.stall_timeout, Timeout::After(Duration::from_secs(300)));
    }

    /// A word that an option takes.
    fn sample(argument: &clap::Arg) -> Vec<String> {
        let flag = match (argument.get_long(), argument.get_num_args()) {
            (None, _) => return vec!["memory:1M".into()],
            (Some(long), None) => return vec![format!("--{long}")],
            (Some(long), Some(count)) if !count.takes_values() => return vec![format!("--{long}")],
            (Some(long), _) => format!("--{long}"),
        };
        let possible = argument.get_possible_values();
        let default = match &*flag {
            "--allow" | "--deny" => "::1",
            "--volume-cache" => "d:1G",
            _ => "1",
        };
        let word = possible.first().map_or(default, |value| value.get_name());
        vec![format!("{flag}={word}")]
    }

    /// What is about this run.
    const BESIDES: [&str; 10] = [
        "check",
        "print_config",
        "verbose",
        "take_over",
        "linger",
        "discard_state",
        "pid_file",
        "ready_fd",
        "run",
        "stdio",
    ];

    #[test]
    fn beside_a_file_there_is_nothing_but_what_is_about_this_run() {
        use clap::CommandFactory;
        let mut command = Serve::command();
        command.build();
        let mut conflicting = 0;
        for argument in command.get_arguments() {
            let id = argument.get_id().as_str();
            if ["config", "help"].contains(&id) {
                continue;
            }
            let words = ["serve", "--config", "f"].map(String::from).into_iter();
            let result = Serve::try_parse_from(words.chain(sample(argument)));
            if BESIDES.contains(&id) {
                // Some need another option, or another word than the sample.
                let kind = result.err().map(|error| error.kind());
                assert_ne!(kind, Some(clap::error::ErrorKind::ArgumentConflict), "{id}");
                continue;
            }
            let error = result.err().unwrap_or_else(|| panic!("{id} goes with --config"));
            assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{id}: {error}");
            conflicting += 1;
        }
        assert_eq!(conflicting, BESIDE_A_FILE.len());
    }

    /// The page says the same, option by option.
    #[test]
    fn the_page_names_what_goes_with_a_file() {
        use clap::CommandFactory;
        let page = include_str!("../../../docs/configuration.md");
        let (_, rest) = page.split_once("No option goes with `--config`").unwrap();
        let (sentence, _) = rest.split_once(". ").unwrap();
        let named = sentence.split('`').skip(1).step_by(2).map(String::from);
        let named: std::collections::BTreeSet<_> = named.collect();
        let mut command = Serve::command();
        command.build();
        let beside = command.get_arguments().filter(|argument| {
            let id = argument.get_id().as_str();
            !BESIDE_A_FILE.contains(&id) && !["config", "help"].contains(&id)
        });
        let beside = beside.filter_map(|argument| argument.get_long());
        assert_eq!(named, beside.map(|long| format!("--{long}")).collect());
    }

    #[test]
    fn what_the_words_say_is_what_the_configuration_is() {
        use super::super::config::{Address, Backend};
        let config = parse(&["-p", "5", "-U", "/s", "-r", "a=memory:1M", "-vv", "x.img"]);
        let config = config.config().unwrap();
        let listeners = Vec::from_iter(config.listeners.iter().map(|one| one.address().unwrap()));
        let tcp = TcpAddress { host: "127.0.0.1".into(), port: 5 };
        assert_eq!(listeners, [Address::Tcp(&tcp), Address::Unix("/s".as_ref())]);
        let exports = config.exports.iter().map(|one| (&*one.name, one.backend().unwrap()));
        let expected = [("a", Backend::Memory(1 << 20)), ("", Backend::File("x.img".as_ref()))];
        assert_eq!(Vec::from_iter(exports), expected);
        assert!(config.exports.iter().all(|one| one.read_only));
        assert_eq!(config.server.log, LogLevel::Debug);
        assert!(parse(&[]).config().unwrap().listeners.is_empty());
    }
}
