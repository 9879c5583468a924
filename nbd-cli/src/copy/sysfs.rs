//! What the kernel says of block devices.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{major, makedev, minor};

/// A block device, by its number.
#[derive(Debug)]
pub(super) struct Device {
    number: u64,
    /// Of the device itself.
    folder: PathBuf,
    /// Of the disk that it is a part of, if it is one.
    whole: Option<PathBuf>,
}

impl Device {
    pub(super) fn new(number: u64) -> Self {
        let name = format!("{}:{}", major(number), minor(number));
        let folder = Path::new("/sys/dev/block").join(name);
        let whole = match folder.join("partition").exists() {
            true => fs::canonicalize(&folder).ok().and_then(|path| Some(path.parent()?.to_owned())),
            false => None,
        };
        Self { number, folder, whole }
    }

    /// Its number as the kernel writes it, such as `8:1`.
    pub(super) fn number(&self) -> String {
        format!("{}:{}", major(self.number), minor(self.number))
    }

    /// The number of the disk that it is a part of; `None` for what is no part.
    pub(super) fn whole(&self) -> Option<u64> {
        let text = fs::read_to_string(self.whole.as_ref()?.join("dev")).ok()?;
        let (major, minor) = text.trim_end().split_once(':')?;
        Some(makedev(major.parse().ok()?, minor.parse().ok()?))
    }

    /// The first sector of a part, in units of 512 bytes.
    pub(super) fn start(&self) -> Option<String> {
        text(&self.folder.join("start"))
    }

    /// The file behind a loop device, or behind one that this is a part of.
    pub(super) fn backing_file(&self) -> Option<PathBuf> {
        let path = fs::read_to_string(self.disk().join("loop/backing_file")).ok()?;
        Some(path.trim_end_matches('\n').into())
    }

    /// What the kernel says of the whole disk by this name; `None` if it says nothing.
    pub(super) fn about_disk(&self, name: &str) -> Option<String> {
        text(&self.disk().join(name))
    }

    fn disk(&self) -> &Path {
        self.whole.as_ref().unwrap_or(&self.folder)
    }
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned)
}
