//! One disk, and one server after the other that is killed.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use nbd_testkit::process::{Background, wait_until};
use nbd_testkit::raw::{RawClient, Wire};
use nbd_testkit::{Endpoint, Random};
use tempfile::TempDir;

use super::disk::{Disk, DiskKind};
use super::load::{Seen, Shared, run};
use super::model::{Landed, Model, Violation};
use super::stamp::SECTOR;
use super::volume::Volume;
use crate::process::{Runtime, serve};

/// Sectors of the disk, of 2 MiB: small, so that requests meet.
const SECTORS: u64 = 4096;

/// Sectors that are read at a time to compare a volume.
const READ: u64 = 1024;

/// How long a server may take to start or to be gone.
const SOON: Duration = Duration::from_secs(60);

/// Which server is killed.
#[derive(Clone, Debug)]
pub enum Server {
    /// The program `nbd` at that path, on that runtime.
    Nbd(PathBuf, Runtime),
    /// Another one: the program and its arguments, in which `SOCKET` and `DISK` stand for the paths.
    Other(PathBuf, Vec<String>),
}

/// What all rounds together have seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Servers that were killed.
    pub kills: u64,
    /// Writes, and zeroes that were written, that were acknowledged.
    pub changes: u64,
    /// Flushes that were acknowledged.
    pub flushes: u64,
    /// Reads whose data was compared.
    pub reads: u64,
    /// What became of the writes in flight.
    pub landed: Landed,
}

/// What is served.
#[derive(Debug)]
enum Served {
    Disk(Disk),
    Volume(Volume),
}

/// A disk whose servers are killed.
#[derive(Debug)]
pub struct Campaign {
    server: Server,
    disk: Served,
    folder: TempDir,
    model: Model,
    summary: Summary,
}

impl Campaign {
    /// With a new disk.
    ///
    /// # Errors
    /// When the disk can't be made, for people.
    pub fn new(server: Server, kind: DiskKind) -> Result<Self, String> {
        let folder = TempDir::new().map_err(|error| error.to_string())?;
        let disk = match (kind, &server) {
            (DiskKind::Volume, Server::Nbd(program, _)) => {
                Served::Volume(Volume::new(program, folder.path(), SECTORS)?)
            }
            (DiskKind::Volume, Server::Other(..)) => return Err("only nbd has volumes".to_owned()),
            _ => {
                let disk = Disk::new(kind, folder.path(), SECTORS);
                Served::Disk(disk.map_err(|error| error.to_string())?)
            }
        };
        let (model, summary) = (Model::new(SECTORS), Summary::default());
        Ok(Self { server, disk, folder, model, summary })
    }

    /// What was seen so far.
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Starts a server, loads it, kills it, and compares the disk.
    ///
    /// # Errors
    /// When the disk, or what the server replied, is not what it has to be.
    ///
    /// # Panics
    /// When the server can't be started, or is silent.
    pub fn round(&mut self, seed: u64) -> Result<(), Violation> {
        let mut random = Random::new(seed);
        let (mut process, endpoint) = self.start();
        let lanes = 1 + random.below(3);
        let killed = AtomicBool::new(false);
        let kill = || {
            if !killed.swap(true, Ordering::SeqCst) {
                process.kill();
            }
        };
        let magnitude = 8 << random.below(7);
        let shared = Shared {
            model: Mutex::new(&mut self.model),
            events: AtomicU64::new(0),
            kill_at: 1 + random.below(magnitude),
            kill: &kill,
            over: AtomicBool::new(false),
        };
        // All of them are connected before any of them is at work.
        let lanes: Vec<_> =
            (0..lanes).map(|_| (RawClient::go_simple(&endpoint), random.next())).collect();
        let results: Vec<Result<Seen, Violation>> = thread::scope(|scope| {
            let shared = &shared;
            let spawn = |(client, seed)| scope.spawn(move || run(shared, client, seed));
            let threads: Vec<_> = lanes.into_iter().map(spawn).collect();
            threads.into_iter().map(|lane| lane.join().expect("no lane panics")).collect()
        });
        kill();
        process.wait_exit(SOON).expect("SIGKILL ends it");
        for result in results {
            let Seen { changes, flushes, reads } = result.map_err(|violation| {
                Violation(format!("{}; the server wrote: {}", violation.0, process.stderr()))
            })?;
            self.summary.changes += changes;
            self.summary.flushes += flushes;
            self.summary.reads += reads;
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<(), Violation> {
        let (cache, medium) = match &self.disk {
            Served::Disk(disk) => {
                let medium = disk.stored().expect("the disk's file can be read");
                let cache = disk.cached().expect("the disk can be read");
                self.model.check_cache(&cache)?;
                (cache, medium)
            }
            // What is in the memory of a server goes with it.
            Served::Volume(_) => {
                let found = self.read_by_a_server();
                (found.clone(), Some(found))
            }
        };
        if let Some(medium) = &medium {
            self.model.check_medium(medium)?;
        }
        let landed = self.model.settle(&cache, medium.as_deref().unwrap_or(&cache));
        let all = &mut self.summary;
        all.kills += 1;
        all.landed.not += landed.not;
        all.landed.partly += landed.partly;
        all.landed.wholly += landed.wholly;
        Ok(())
    }

    /// All of the disk, by the next server, which is killed as well.
    fn read_by_a_server(&self) -> Vec<u8> {
        let (mut process, endpoint) = self.start();
        let mut client = RawClient::go_simple(&endpoint);
        let mut bytes = Vec::new();
        for sector in (0..SECTORS).step_by(READ as usize) {
            bytes.extend(client.read(sector * SECTOR as u64, READ * SECTOR as u64));
        }
        process.kill();
        process.wait_exit(SOON).expect("SIGKILL ends it");
        bytes
    }

    fn start(&self) -> (Background, Endpoint) {
        let socket = self.folder.path().join("nbd.sock");
        let (program, arguments, disk) = match (&self.server, &self.disk) {
            (Server::Nbd(program, runtime), Served::Disk(disk)) => {
                let backend = disk.path().display().to_string();
                return serve(program, *runtime, &socket, &[&backend]);
            }
            (Server::Nbd(program, runtime), Served::Volume(volume)) => {
                return serve(program, *runtime, &socket, &volume.arguments());
            }
            (Server::Other(program, arguments), Served::Disk(disk)) => {
                (program, arguments, disk.path())
            }
            (Server::Other(..), Served::Volume(_)) => unreachable!("refused when it was made"),
        };
        // The one that was killed has left it behind.
        let _gone = fs::remove_file(&socket);
        let paths = [("SOCKET", &*socket), ("DISK", disk)];
        let mut command = Command::new(program);
        for argument in arguments {
            let mut argument = argument.clone();
            for (word, path) in paths {
                argument = argument.replace(word, &path.to_string_lossy());
            }
            command.arg(argument);
        }
        let process = Background::spawn(&mut command).expect("the program is there");
        let endpoint = Endpoint::Unix(socket);
        wait_until("the server listens", SOON, || {
            assert!(process.is_running(), "{command:?} ended: {}", process.stderr());
            Wire::try_connect(&endpoint).is_ok()
        });
        (process, endpoint)
    }
}
