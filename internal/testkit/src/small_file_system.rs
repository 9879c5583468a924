//! File systems that are soon full, for tests that run as root.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::SOON;
use crate::peers::skip;
use crate::process::{Finished, run};

/// A file system in memory that has little room; it goes when this is dropped.
#[derive(Debug)]
pub struct SmallFileSystem(TempDir);

impl SmallFileSystem {
    /// One of so many MiB. `None` where it can't be mounted: what needs it is [skipped](skip), which fails in CI.
    #[track_caller]
    pub fn mount(mib: usize) -> Option<Self> {
        let folder = TempDir::new().expect("a folder to mount on");
        let mounted = mount(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"], folder.path());
        if !mounted.status.success() {
            skip(&format!("what a full device leads to, as mounting failed: {}", mounted.stderr));
            return None;
        }
        Some(Self(folder))
    }

    /// Where a file of it is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Changes what it was mounted with, such as `ro` or `size=8m`.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        mount(&["-o", &options], self.0.path()).success();
    }
}

fn mount(words: &[&str], folder: &Path) -> Finished {
    run(Command::new("mount").args(words).arg(folder), SOON)
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _unmounted = run(Command::new("umount").arg("--lazy").arg(self.0.path()), SOON);
    }
}
