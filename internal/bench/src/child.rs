//! A server as a child process: started, waited for, ended by its process id.

use std::fs;
use std::io::{self, Error, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nbd_testkit::process::Background;
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::load::Connection;
use crate::mode::Mode;
use crate::servers::{Server, Storage};
use crate::workload::DISK_SIZE;

/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(10);
/// How long a server may take to end after SIGTERM, before it is killed.
const END: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(5);

/// A server that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    child: Background,
    socket: PathBuf,
    export: String,
    /// How to encrypt, with a server that wants that.
    tls: Option<Arc<ClientConfig>>,
    /// Holds the socket; goes after the process.
    _private: TempDir,
    /// Holds the disk's file.
    _disk: Option<TempDir>,
}

impl Running {
    /// Starts `server` and waits until its socket takes a connection.
    pub fn start(server: &Server) -> io::Result<Self> {
        // `NotFound` is to mean that there is no such program, and nothing else.
        let no_place = |error: Error| Error::other(format!("no place for its files: {error}"));
        let private = tempfile::Builder::new().prefix("nbd-bench").tempdir().map_err(no_place)?;
        let socket = private.path().join("socket");
        let (disk, file) = match server.storage {
            Storage::Memory => (None, None),
            Storage::File => {
                let (disk, file) = make_disk().map_err(no_place)?;
                (Some(disk), Some(file))
            }
        };
        let mut command: Command = server.command(&socket, file.as_deref());
        let child = Background::spawn(&mut command)?;
        let export = server.export.clone();
        let mut running = Self { child, socket, export, tls: None, _private: private, _disk: disk };
        running.wait_until_it_listens()?;
        Ok(running)
    }

    /// Has connections encrypted from now on.
    pub fn use_tls(&mut self, config: Arc<ClientConfig>) {
        self.tls = Some(config);
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A new connection in the transmission phase.
    pub fn connect(&self, mode: Mode) -> io::Result<Connection> {
        let stream = UnixStream::connect(&self.socket)?;
        match &self.tls {
            None => Connection::negotiate(stream, &self.export, mode),
            Some(config) => {
                Connection::negotiate_tls(stream, &self.export, mode, Arc::clone(config))
            }
        }
    }

    /// The export to ask for.
    pub fn export(&self) -> &str {
        &self.export
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the server said last, for a message on why it failed.
    pub fn complaint(&self) -> String {
        match self.child.stderr().lines().last() {
            Some(line) => line.trim().chars().take(200).collect(),
            None => "it said nothing".into(),
        }
    }

    fn wait_until_it_listens(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + START;
        while UnixStream::connect(&self.socket).is_err() {
            if !self.child.is_running() {
                let status = self.child.wait_exit(END);
                let status = status.map_or_else(String::new, |status| format!(" ({status})"));
                let complaint = self.complaint();
                return Err(Error::other(format!("it ended at once{status}: {complaint}")));
            }
            if Instant::now() > deadline {
                return Err(Error::new(ErrorKind::TimedOut, "it does not listen"));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Running {
    /// Asks it to end, so that it cleans up; it is killed when it does not.
    fn drop(&mut self) {
        if self.child.is_running() {
            self.child.terminate();
            let _status = self.child.wait_exit(END);
        }
    }
}

/// A file without holes in a memory file system, so that no disk is measured.
fn make_disk() -> io::Result<(TempDir, PathBuf)> {
    let disk = tempfile::Builder::new().prefix("nbd-bench").tempdir_in("/dev/shm")?;
    let path = disk.path().join("disk");
    fs::write(&path, vec![0x5a; DISK_SIZE])?;
    Ok((disk, path))
}
