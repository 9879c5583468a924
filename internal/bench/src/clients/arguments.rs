//! The command lines of `client` and `drive`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::catalogue::{Client, Ours, catalogue};
use crate::args::{Op, nbd_program, parse_block, parse_depth, parse_seconds, select};
use crate::load::{Load, Order};
use crate::servers::{self, NBDKIT, Server, Storage};
use crate::workload::{SEED, WORKLOADS, Workload};

/// The servers that clients are measured on, unless others are named.
const SERVERS: [&str; 2] = [NBDKIT, "nbd-blocking"];

/// Arguments of `client`.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The project's `nbd` program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    pub nbd: Option<PathBuf>,
    /// Only these clients.
    #[arg(long, value_name = "CLIENT", value_delimiter = ',')]
    pub only: Vec<String>,
    /// The servers to measure on: any of those of `compare` with a disk in memory.
    #[arg(long, value_name = "SERVER", value_delimiter = ',', default_values_t = SERVERS.map(String::from))]
    pub server: Vec<String>,
    /// Only these workloads.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub workload: Vec<String>,
    /// Seconds of each run.
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// How often each run is repeated.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Print JSON in place of tables.
    #[arg(long)]
    pub json: bool,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct ClientPlan {
    /// The clients, in the order of the tables.
    pub clients: Vec<Client>,
    /// The servers.
    pub servers: Vec<Server>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// How long each run takes.
    pub duration: Duration,
    /// How often each run is repeated.
    pub rounds: u32,
}

impl ClientArgs {
    /// What is to be run; an unknown name is an error that lists the known ones.
    pub fn plan(&self, own: &Path) -> Result<ClientPlan, String> {
        let mut servers = servers::catalogue(own, &nbd_program(self.nbd.as_deref(), own));
        servers.retain(|server| server.storage == Storage::Memory);
        Ok(ClientPlan {
            clients: select("client", catalogue(), &self.only, |client| client.name())?,
            servers: select("server", servers, &self.server, |server| &server.name)?,
            workloads: select("workload", WORKLOADS.to_vec(), &self.workload, |item| item.name)?,
            duration: self.seconds,
            rounds: self.rounds,
        })
    }
}

/// Arguments of `drive`.
#[derive(Debug, Args)]
pub struct DriveArgs {
    /// The client.
    #[arg(value_enum)]
    pub client: Ours,
    /// The Unix socket of the server.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// The export to ask for.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub export: String,
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
    /// Seed of the random offsets.
    #[arg(long, default_value_t = SEED)]
    pub seed: u64,
}

impl DriveArgs {
    /// The load.
    pub fn load(&self) -> Load {
        let unbounded = self.seconds.is_none() && self.requests.is_none();
        Load {
            direction: self.op.into(),
            order: Order::Random,
            block: self.block,
            depth: self.depth,
            duration: if unbounded { Some(Duration::from_secs(2)) } else { self.seconds },
            requests: self.requests,
            seed: self.seed,
            verify: None,
        }
    }
}
