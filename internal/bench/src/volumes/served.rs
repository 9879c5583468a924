//! `nbd serve`, as its clients see it.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::process::Background;
use tempfile::TempDir;

use super::arguments::VolumePlan;
use super::run::Problem;
use super::stores::Store;
use crate::load::{Connection, Direction, Load, Order};
use crate::mode::Mode;
use crate::workload::SEED;

/// How long a server may take to begin or to end: it may have to upload what was written.
const LIMIT: Duration = Duration::from_secs(120);

/// A server that runs.
#[derive(Debug)]
pub(super) struct Served {
    server: Background,
    connection: Connection,
    _folder: TempDir,
}

impl Served {
    /// Serves a volume of a store.
    pub(super) fn volume(plan: &VolumePlan, store: &Store, name: &str) -> Result<Self, Problem> {
        let mut arguments = vec![format!("volume:{}", store.url(name))];
        if let Some(bytes) = plan.memory {
            arguments.push(format!("--volume-memory={bytes}"));
        }
        Self::start(&plan.nbd, &arguments, store.environment())
    }

    /// Serves a new file of that size, whose blocks are all there.
    pub(super) fn file(nbd: &Path, folder: &Path, size: u64) -> Result<(TempDir, Self), Problem> {
        let private = tempfile::Builder::new().prefix("nbd-bench").tempdir_in(folder)?;
        let path = private.path().join("disk");
        File::create(&path)?.set_len(size)?;
        let arguments = [format!("file:{}", path.display())];
        let mut served = Self::start(nbd, &arguments, Vec::new())?;
        served.fill(size)?;
        Ok((private, served))
    }

    fn start(
        nbd: &Path,
        arguments: &[String],
        environment: Vec<(&'static str, String)>,
    ) -> Result<Self, Problem> {
        let folder = tempfile::Builder::new().prefix("nbd-bench").tempdir()?;
        let socket = folder.path().join("socket");
        let mut command = Command::new(nbd);
        command.args(["serve", "--unix"]).arg(&socket).args(arguments).envs(environment);
        let server = Background::spawn(&mut command)?;
        if server.next_line(LIMIT).is_none() {
            let (what, why) = (arguments.join(" "), server.stderr());
            return Err(format!("{what} is not served: {}", why.trim()).into());
        }
        let connection = Connection::negotiate(UnixStream::connect(&socket)?, "", Mode::Simple)?;
        Ok(Self { server, connection, _folder: folder })
    }

    /// Writes everything once. Returns requests a second.
    pub(super) fn fill(&mut self, size: u64) -> Result<f64, Problem> {
        self.run(Direction::Write, Order::Sequential, 128 << 10, 8, Err(size >> 17))
    }

    /// Requests a second, for so long or so many. What is written counts when it is in the store.
    pub(super) fn run(
        &mut self,
        direction: Direction,
        order: Order,
        block: u32,
        depth: usize,
        end: Result<Duration, u64>,
    ) -> Result<f64, Problem> {
        let load = Load {
            direction,
            order,
            block,
            depth,
            duration: end.ok(),
            requests: end.err(),
            seed: SEED,
            verify: None,
        };
        let mut outcome = self.connection.run(&load)?;
        if direction == Direction::Write {
            outcome.elapsed += self.connection.flush()?;
        }
        Ok(outcome.rate())
    }

    /// The most memory that it had, in bytes.
    pub(super) fn peak(&self) -> u64 {
        self.server.peak_resident()
    }

    /// Ends it in order, so that the next one need not wait for it.
    pub(super) fn end(self) -> Result<(), Problem> {
        let Self { mut server, connection, .. } = self;
        connection.disconnect()?;
        server.terminate();
        match server.wait_exit(LIMIT) {
            Some(status) if status.success() => Ok(()),
            other => Err(format!("a server ended by {other:?}: {}", server.stderr().trim()).into()),
        }
    }
}
