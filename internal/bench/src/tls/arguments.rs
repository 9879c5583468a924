//! The command line, and what it asks for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::args::{nbd_program, parse_seconds, select};
use crate::servers::{Server, catalogue};
use crate::workload::{WORKLOADS, Workload};

/// Arguments of `tls`.
#[derive(Debug, Args)]
pub struct TlsArgs {
    /// The project's `nbd` program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    pub nbd: Option<PathBuf>,
    /// Only these servers.
    #[arg(long, value_name = "SERVER", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only these workloads.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "read-1m-qd4,write-1m-qd4,read-4k-qd32,write-4k-qd32"
    )]
    pub workload: Vec<String>,
    /// Seconds of each run.
    #[arg(long, default_value = "0.5", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// How often each run is repeated.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Without TLS: what the same servers do in the clear.
    #[arg(long)]
    pub plain: bool,
    /// Print JSON in place of tables.
    #[arg(long)]
    pub json: bool,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct TlsPlan {
    /// The project's program, which makes the certificates.
    pub nbd: PathBuf,
    /// The servers, as they are without TLS.
    pub servers: Vec<Server>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// How long each run takes.
    pub duration: Duration,
    /// How often each run is repeated.
    pub rounds: u32,
    /// Whether nothing is encrypted.
    pub plain: bool,
}

impl TlsArgs {
    /// What is to be run; an unknown name is an error that lists the known ones.
    ///
    /// # Errors
    /// That.
    pub fn plan(&self, own: &Path) -> Result<TlsPlan, String> {
        let nbd = nbd_program(self.nbd.as_deref(), own);
        let mut servers = catalogue(own, &nbd);
        servers.retain(|server| server.clone().with_tls(Path::new("")).is_some());
        let servers = select("server", servers, &self.only, |server| &server.name)?;
        let workloads =
            select("workload", WORKLOADS.to_vec(), &self.workload, |workload| workload.name)?;
        Ok(TlsPlan {
            nbd,
            servers,
            workloads,
            duration: self.seconds,
            rounds: self.rounds,
            plain: self.plain,
        })
    }
}
