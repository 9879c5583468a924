//! A volume in a local directory.

use core::time::Duration;
use std::path::Path;
use std::process::Command;

use nbd_testkit::process::run;

use super::stamp::SECTOR;

/// The lease of its servers: each one waits for as long, since the one before did not close the volume.
const LEASE: &str = "--volume-lease=1s";

/// How long it may take to make one.
const SOON: Duration = Duration::from_secs(60);

/// A volume of its own.
#[derive(Debug)]
pub(super) struct Volume {
    backend: String,
}

impl Volume {
    /// Makes one of so many sectors, by that program.
    pub(super) fn new(program: &Path, folder: &Path, sectors: u64) -> Result<Self, String> {
        let url = format!("file://{}/volume", folder.display());
        let size = (sectors * SECTOR as u64).to_string();
        let mut command = Command::new(program);
        let made = run(command.args(["volume", "create", &url, "--size", &size]), SOON);
        match made.status.success() {
            true => Ok(Self { backend: format!("volume:{url}") }),
            false => Err(format!("{command:?}: {}", made.stderr)),
        }
    }

    /// What a server is told to serve, and how.
    pub(super) fn arguments(&self) -> [&str; 2] {
        [LEASE, &self.backend]
    }
}
