//! The command line of `nbd serve`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nbd_engine::export::BlockSize;

use super::block_size;
use crate::quantity::{self, Timeout};

/// Serve disks until interrupted.
///
/// Without arguments it serves a memory disk of 1 GiB on 127.0.0.1:10809. When it listens it prints one URI a line on
/// standard output, for clients such as qemu-img, nbdinfo and nbdcopy. SIGTERM, SIGINT, SIGQUIT or SIGHUP lets requests in
/// flight finish and exits; a second one other than SIGHUP exits at once. With TLS, and without a controlling terminal,
/// SIGHUP has the certificates or keys read again instead.
///
/// Sockets that systemd's socket activation hands over (LISTEN_FDS) are taken instead; nothing is printed then, and the
/// server ends with the process that started it, unless that is systemd:
/// nbd info [ nbd serve disk.img ], and the same with nbdinfo and nbdcopy.
///
/// Exit status: 0 after an orderly end, 3 if requests were cut off at the end of --drain-timeout, 64 if the command line is
/// at fault, 70 after a fault of nbd itself, 1 if anything else is; 128 and its number after a second signal.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// TCP port; 0 takes a free one
    #[arg(short, long, value_name = "PORT", value_parser = quantity::port)]
    pub(crate) port: Option<u16>,

    /// Address to listen on, IPv4 or IPv6, or a name such as localhost, which stands for all of its addresses; can be
    /// given several times [default: 127.0.0.1]
    #[arg(short, long = "ip-addr", value_name = "ADDR")]
    pub(crate) ip_addr: Vec<String>,

    /// Listen on a Unix socket (and on TCP only if a port or address is given, too)
    #[arg(short = 'U', long, value_name = "PATH")]
    pub(crate) unix: Option<PathBuf>,

    /// Listen on a virtual machine socket: a port, 0 for a free one, for clients on the host and on this machine; with CID:
    /// in front of it, on that context identifier of this machine only
    #[cfg(target_os = "linux")]
    #[arg(long, value_name = "[CID:]PORT")]
    pub(crate) vsock: Option<super::places::Vsock>,

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

    /// Listen on a Unix socket of that path for nbd bitmap, which starts, clears and stops such records while the server
    /// runs; only this user can use it
    #[arg(long, value_name = "PATH", conflicts_with = "read_only")]
    pub(crate) control: Option<PathBuf>,

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

    /// Refuse clients that do not ask for the size constraints
    #[arg(long, requires = "block_size")]
    pub(crate) block_size_required: bool,

    /// Speak the oldstyle protocol, wherever it listens, and serve the one export that there is: for very old clients
    ///
    /// There is no choice of exports, no structured replies, no metadata contexts and no TLS.
    #[arg(long, conflicts_with_all = ["block_size_required", "track", "control", "allocation_depth"])]
    pub(crate) oldstyle: bool,

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

    /// Log connections that end badly on standard error; twice: log all of them
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// What to serve: PATH or file:PATH for a file or block device, memory:SIZE for a disk in memory (512, 4k, 1M, 10G,
    /// 1T). With NAME= in front it is exported under that name; clients that give no name get the first
    ///
    /// What comes before the first = is a name, unless the word begins with /, ./, ../, file: or memory:. A file whose
    /// name has a = in it is ./a=b.img, or disk=a=b.img.
    #[arg(value_name = "[NAME=]BACKEND", default_value = "memory:1G")]
    pub(crate) backends: Vec<OsString>,
}

impl Arguments {
    /// How long a client may be idle while others wait; `None` for as long as it likes. The only client of a server of
    /// one connection is meant to keep it.
    pub(crate) fn idle_limit(&self) -> Option<Duration> {
        let only_one = self.max_connections == 1;
        let default = if only_one { Timeout::Never } else { Timeout::After(IDLE) };
        self.idle_timeout.unwrap_or(default).duration()
    }
}

/// How long a client may be idle by default.
const IDLE: Duration = Duration::from_secs(60);

/// The adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuntimeName {
    /// Tasks on tokio
    Tokio,
    /// Tasks on async-std
    #[cfg(feature = "async-std")]
    AsyncStd,
    /// A thread for each connection
    Blocking,
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
        assert_eq!(parse(&[]).idle_limit(), Some(IDLE));
        assert_eq!(parse(&["--max-connections", "2"]).idle_limit(), Some(IDLE));
        assert_eq!(parse(&["--max-connections", "1"]).idle_limit(), None);
        let given = parse(&["--max-connections", "1", "--idle-timeout", "5s"]);
        assert_eq!(given.idle_limit(), Some(Duration::from_secs(5)));
        assert_eq!(parse(&["--idle-timeout", "never"]).idle_limit(), None);
    }

    #[test]
    fn the_stall_timeout_can_be_set_and_switched_off() {
        assert_eq!(parse(&[]).stall_timeout, Timeout::After(Duration::from_secs(60)));
        assert_eq!(parse(&["--stall-timeout", "never"]).stall_timeout, Timeout::Never);
        let given = parse(&["--stall-timeout", "5m"]);
        assert_eq!(given.stall_timeout, Timeout::After(Duration::from_secs(300)));
    }
}
