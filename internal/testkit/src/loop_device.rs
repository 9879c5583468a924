//! Block devices, for tests that run as root.

use std::path::Path;
use std::process::Command;

use tempfile::{NamedTempFile, TempPath};

use crate::SOON;
use crate::peers::skip;
use crate::process::run;

/// A block device on a file. It goes when it is dropped, and so does a file of its own.
#[derive(Debug)]
pub struct LoopDevice {
    /// Where it is.
    pub path: String,
    file: Option<TempPath>,
}

impl LoopDevice {
    /// Whether there can be any. If not, what needs them is [skipped](skip), which fails in CI.
    #[track_caller]
    pub fn are_possible() -> bool {
        let possible = match rustix::process::geteuid().is_root() {
            true => Self::try_new(&[0; 512]).map(drop),
            false => Err("they take root".to_owned()),
        };
        if let Err(why) = &possible {
            skip(&format!("block devices, as no loop device can be made: {}", why.trim()));
        }
        possible.is_ok()
    }

    /// A device that holds these bytes, a multiple of 512.
    pub fn new(bytes: &[u8]) -> Self {
        Self::try_new(bytes).unwrap()
    }

    /// A device on a file of the caller's.
    pub fn on(file: &Path) -> Self {
        Self::try_on(file).unwrap()
    }

    /// The same; the error is what `losetup` says.
    pub fn try_on(file: &Path) -> Result<Self, String> {
        Ok(Self { path: attach(file)?, file: None })
    }

    /// The file of its own that it lies on.
    pub fn file(&self) -> String {
        self.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default()
    }

    fn try_new(bytes: &[u8]) -> Result<Self, String> {
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(512), "whole sectors");
        // Not open here: it would be taken for what a server in this process serves.
        let file = NamedTempFile::new().unwrap().into_temp_path();
        std::fs::write(&file, bytes).unwrap();
        Ok(Self { path: attach(&file)?, file: Some(file) })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _detached = run(losetup().arg("--detach").arg(&self.path), SOON);
    }
}

/// The path of a new device on a file.
fn attach(file: &Path) -> Result<String, String> {
    if !Path::new("/dev/loop-control").exists() {
        return Err("there is no /dev/loop-control".into());
    }
    let finished = run(losetup().args(["--find", "--show"]).arg(file), SOON);
    match finished.status.success() {
        true => Ok(finished.stdout.trim().to_owned()),
        false => Err(finished.stderr),
    }
}

fn losetup() -> Command {
    let mut command = Command::new("losetup");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}
