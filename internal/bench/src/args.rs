//! The command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nbd_testkit::Pattern;

use crate::clients::{ClientArgs, DriveArgs};
use crate::compare::Plan;
use crate::copying::CopyArgs;
use crate::load::{Direction, Load, MAX_DEPTH, Order};
use crate::mode::Mode;
use crate::modes::ModesArgs;
use crate::servers::{Server, catalogue};
use crate::tls::TlsArgs;
#[cfg(feature = "volume")]
use crate::volumes::VolumeArgs;
use crate::workload::{SEED, WORKLOADS};
use crate::yardstick::Tuning;

/// Compares NBD servers, and holds them against one that does the least possible work.
#[derive(Debug, Parser)]
#[command(name = "nbd-bench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all workloads on all servers and print tables.
    Compare(CompareArgs),
    /// Hold our clients against libnbd, on the same servers.
    Client(ClientArgs),
    /// Hold `nbd copy` against nbdcopy.
    Copy(CopyArgs),
    /// Hold structured and extended replies against simple ones, on our servers.
    Modes(ModesArgs),
    /// Hold our servers against others with TLS 1.3 and AES-128-GCM, and against the cipher alone.
    Tls(TlsArgs),
    /// Hold volumes on object storage against SlateDB alone.
    #[cfg(feature = "volume")]
    Volume(VolumeArgs),
    /// Load a server that runs already.
    Load(LoadArgs),
    /// Load a server that runs already by one of our clients.
    Drive(DriveArgs),
    /// Be the yardstick server, until killed.
    Yardstick(YardstickArgs),
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The project's `nbd` program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    pub nbd: Option<PathBuf>,
    /// Only these servers.
    #[arg(long, value_name = "SERVER", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only these workloads.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub workload: Vec<String>,
    /// One more server; `{socket}` and `{file}` stand for paths, words are split at spaces.
    #[arg(long, value_name = "NAME=COMMAND...")]
    pub extra: Vec<String>,
    /// The export to ask the extra servers for.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub extra_export: String,
    /// Seconds of each run.
    #[arg(long, default_value = "2", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// How often each run is repeated.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Print JSON in place of tables.
    #[arg(long)]
    pub json: bool,
    /// Draw the medians into this file as well.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// READ or WRITE, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Op {
    /// Read.
    Read,
    /// Write; what was on the export is lost.
    Write,
}

/// Arguments of `load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// The Unix socket of the server.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// The export to ask for.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,
    /// How replies are to come.
    #[arg(long, value_enum, default_value = "simple")]
    pub mode: Mode,
    /// Encrypt; the file has the certificate of the authority that issued the server's, which is `localhost`.
    #[arg(long, value_name = "FILE")]
    pub tls: Option<PathBuf>,
    /// What to do.
    #[arg(long, value_enum, default_value = "read")]
    pub op: Op,
    /// Bytes of each request.
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = parse_block)]
    pub block: u32,
    /// Requests in flight.
    #[arg(long, default_value = "32", value_parser = parse_depth)]
    pub depth: usize,
    /// Stop after this many seconds [default: 2, unless --requests is given].
    #[arg(long, value_parser = parse_seconds)]
    pub seconds: Option<Duration>,
    /// Stop after this many requests.
    #[arg(long, value_name = "NUMBER")]
    pub requests: Option<u64>,
    /// One block after the other, not at random.
    #[arg(long)]
    pub sequential: bool,
    /// Seed of the random offsets.
    #[arg(long, default_value_t = SEED)]
    pub seed: u64,
    /// Write data that depends on offset and SEED, or expect it in what is read. Slow.
    #[arg(long, value_name = "SEED")]
    pub verify: Option<u64>,
    /// Set SO_SNDBUF of the generator's socket.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub send_buffer: Option<usize>,
    /// Process id of the server, to count its CPU time.
    #[arg(long)]
    pub pid: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `yardstick`.
#[derive(Debug, Args)]
pub struct YardstickArgs {
    /// The Unix socket to listen on; it must not exist.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Size of the disk.
    #[arg(long, default_value = "256M", value_parser = parse_size)]
    pub size: usize,
    /// Bytes of one receive call.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub staging: Option<usize>,
    /// Bytes of staging behind a large payload.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub staging_after_large: Option<usize>,
    /// From how many bytes on a payload is large.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub large: Option<usize>,
    /// Set SO_SNDBUF of the server's sockets.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub send_buffer: Option<usize>,
}

impl From<Op> for Direction {
    fn from(op: Op) -> Self {
        match op {
            Op::Read => Self::Read,
            Op::Write => Self::Write,
        }
    }
}

impl CompareArgs {
    /// What is to be run; an unknown name is an error that lists the known ones.
    pub fn plan(&self, own: &Path) -> Result<Plan, String> {
        let mut servers = catalogue(own, &nbd_program(self.nbd.as_deref(), own));
        for text in &self.extra {
            let mut server = Server::parse_extra(text)?;
            if servers.iter().any(|other| other.name == server.name) {
                return Err(format!("there is a server {} already", server.name));
            }
            server.export.clone_from(&self.extra_export);
            servers.push(server);
        }
        let servers = select("server", servers, &self.only, |server| &server.name)?;
        let workloads =
            select("workload", WORKLOADS.to_vec(), &self.workload, |workload| workload.name)?;
        Ok(Plan { servers, workloads, duration: self.seconds, rounds: self.rounds })
    }
}

impl LoadArgs {
    /// The load.
    pub fn load(&self) -> Load {
        let unbounded = self.seconds.is_none() && self.requests.is_none();
        Load {
            direction: self.op.into(),
            order: if self.sequential { Order::Sequential } else { Order::Random },
            block: self.block,
            depth: self.depth,
            duration: if unbounded { Some(Duration::from_secs(2)) } else { self.seconds },
            requests: self.requests,
            seed: self.seed,
            verify: self.verify.map(Pattern),
        }
    }
}

impl YardstickArgs {
    /// The defaults, with what was asked for.
    pub fn tuning(&self) -> Tuning {
        let default = Tuning::default();
        Tuning {
            staging: self.staging.unwrap_or(default.staging),
            staging_after_large: self.staging_after_large.unwrap_or(default.staging_after_large),
            large: self.large.unwrap_or(default.large),
            send_buffer: self.send_buffer,
        }
    }
}

/// The project's program: the one that was named, or the one beside this program.
pub(crate) fn nbd_program(named: Option<&Path>, own: &Path) -> PathBuf {
    named.map_or_else(|| own.with_file_name("nbd"), Into::into)
}

/// Those of `all` that are named in `wanted`; all of them if nothing is.
pub(crate) fn select<T>(
    what: &str,
    all: Vec<T>,
    wanted: &[String],
    name: impl Fn(&T) -> &str,
) -> Result<Vec<T>, String> {
    for wanted in wanted {
        if !all.iter().any(|item| name(item) == wanted) {
            let known: Vec<&str> = all.iter().map(&name).collect();
            return Err(format!("no {what} {wanted:?}; there are {}", known.join(", ")));
        }
    }
    let chosen = |item: &T| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name(item));
    Ok(all.into_iter().filter(chosen).collect())
}

/// A number of bytes, with k, M or G for powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: usize = digits.parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

pub(crate) fn parse_block(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    let size = u32::try_from(size).ok().filter(|size| (1..=32 << 20).contains(size));
    size.ok_or_else(|| "a request has 1 byte to 32 MiB".into())
}

pub(crate) fn parse_depth(text: &str) -> Result<usize, String> {
    let depth = text.parse().ok().filter(|depth| (1..=MAX_DEPTH).contains(depth));
    depth.ok_or_else(|| format!("from 1 to {MAX_DEPTH}"))
}

pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.01..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "from 0.01 to 3600 seconds".into())
}
