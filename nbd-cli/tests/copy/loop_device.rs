//! Block devices, for tests that run as root.

use std::path::Path;
use std::process::Command;

use nbd_testkit::process::run;
use tempfile::{NamedTempFile, TempPath};

use crate::support::SOON;

/// A block device on a file of its own; both go when it is dropped.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub(crate) path: String,
    file: TempPath,
}

impl LoopDevice {
    /// Whether there can be any; says so if not.
    pub(crate) fn are_possible() -> bool {
        let possible = rustix::process::geteuid().is_root()
            && Path::new("/dev/loop-control").exists()
            && Self::try_new(&[0; 512]).is_ok();
        if !possible {
            eprintln!(
                "SKIPPED: copies of block devices, as loop devices need root and /dev/loop-control"
            );
        }
        possible
    }

    /// A device that holds these bytes, a multiple of 512.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self::try_new(bytes).unwrap()
    }

    /// The file that it lies on.
    #[allow(dead_code, reason = "not every test is interested")]
    pub(crate) fn file(&self) -> String {
        self.file.display().to_string()
    }

    fn try_new(bytes: &[u8]) -> Result<Self, String> {
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(512), "whole sectors");
        // Not open here: it would be taken for what a server in this process serves.
        let file = NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&file, bytes).unwrap();
        let finished = run(losetup().args(["--find", "--show"]).arg(&file), SOON);
        match finished.status.success() {
            true => Ok(Self { path: finished.stdout.trim().to_owned(), file }),
            false => Err(finished.stderr),
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _detached = run(losetup().arg("--detach").arg(&self.path), SOON);
    }
}

fn losetup() -> Command {
    let mut command = Command::new("losetup");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}
