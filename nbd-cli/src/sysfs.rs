//! What the kernel says of block devices.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{major, makedev, minor};

/// A block device, by its number.
#[derive(Debug)]
pub(crate) struct Device {
    number: u64,
    /// Of the device itself.
    folder: PathBuf,
    /// Of the disk that it is a part of, if it is one.
    whole: Option<PathBuf>,
}

impl Device {
    pub(crate) fn new(number: u64) -> Self {
        Self::under(Path::new("/sys/dev/block"), number)
    }

    fn under(devices: &Path, number: u64) -> Self {
        let name = format!("{}:{}", major(number), minor(number));
        let folder = devices.join(name);
        let whole = match folder.join("partition").exists() {
            true => fs::canonicalize(&folder).ok().and_then(|path| Some(path.parent()?.to_owned())),
            false => None,
        };
        Self { number, folder, whole }
    }

    /// Its number as the kernel writes it, such as `8:1`.
    pub(crate) fn number(&self) -> String {
        format!("{}:{}", major(self.number), minor(self.number))
    }

    /// The number of the disk that it is a part of; `None` for what is no part.
    pub(crate) fn whole(&self) -> Option<u64> {
        number_in(self.whole.as_ref()?)
    }

    /// The numbers of the devices of which the device mapper, a RAID or a cache makes it, or what it is a part of.
    pub(crate) fn made_of(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.disk().join("slaves")).into_iter().flatten();
        entries.filter_map(|entry| number_in(&entry.ok()?.path())).collect()
    }

    /// The first sector of a part, in units of 512 bytes.
    pub(crate) fn start(&self) -> Option<String> {
        text(&self.folder.join("start"))
    }

    /// The file behind a loop device, or behind one that this is a part of.
    pub(crate) fn backing_file(&self) -> Option<PathBuf> {
        let path = fs::read_to_string(self.disk().join("loop/backing_file")).ok()?;
        Some(path.trim_end_matches('\n').into())
    }

    /// What the kernel says of the whole disk by this name; `None` if it says nothing.
    pub(crate) fn about_disk(&self, name: &str) -> Option<String> {
        text(&self.disk().join(name))
    }

    fn disk(&self) -> &Path {
        self.whole.as_ref().unwrap_or(&self.folder)
    }
}

/// The number of the device that has that folder.
fn number_in(folder: &Path) -> Option<u64> {
    let text = fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim_end().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Files as the kernel has them: a disk with a part, and a loop device with one.
    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("disk/dev", "8:16\n"),
            ("disk/serial", " S3R14L \n"),
            ("disk/wwid", "\n"),
            ("disk/part/dev", "8:17\n"),
            ("disk/part/partition", "1\n"),
            ("disk/part/start", "2048\n"),
            ("loop/dev", "7:300\n"),
            ("loop/loop/backing_file", "/images/a disk \n"),
            ("loop/part/dev", "259:1\n"),
            ("loop/part/partition", "2\n"),
            ("loop/part/start", "4096\n"),
            ("raid/dev", "9:0\n"),
            ("raid/part/dev", "259:2\n"),
            ("raid/part/partition", "1\n"),
        ] {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let [disk, device, raid] = ["disk", "loop", "raid"].map(|name| tree.path().join(name));
        fs::create_dir(raid.join("slaves")).unwrap();
        symlink("../../disk/part", raid.join("slaves/part")).unwrap();
        symlink("../../loop", raid.join("slaves/loop")).unwrap();
        for (number, folder) in [
            ("9:0", &raid),
            ("259:2", &raid.join("part")),
            ("8:16", &disk),
            ("8:17", &disk.join("part")),
            ("7:300", &device),
            ("259:1", &device.join("part")),
        ] {
            symlink(folder, tree.path().join(number)).unwrap();
        }
        tree
    }

    #[test]
    fn a_disk_and_its_part_are_told_apart_and_know_the_same_of_the_disk() {
        let tree = tree();
        let device = |major, minor| Device::under(tree.path(), makedev(major, minor));
        let (disk, part) = (device(8, 16), device(8, 17));
        assert_eq!((disk.number(), part.number()), ("8:16".into(), "8:17".into()));
        assert_eq!((disk.whole(), part.whole()), (None, Some(makedev(8, 16))));
        assert_eq!((disk.start(), part.start()), (None, Some("2048".into())));
        for device in [&disk, &part] {
            assert_eq!(device.about_disk("serial").as_deref(), Some("S3R14L"));
            assert_eq!(device.about_disk("wwid"), None, "it says nothing");
            assert_eq!(device.about_disk("model"), None, "there is no such file");
            assert_eq!(device.backing_file(), None);
        }
        let unknown = device(1, 2);
        assert_eq!(
            (unknown.whole(), unknown.start(), unknown.about_disk("dev")),
            (None, None, None)
        );
    }

    #[test]
    fn a_loop_device_and_its_part_lie_on_the_same_file() {
        let tree = tree();
        for (major, minor, whole) in [(7, 300, None), (259, 1, Some(makedev(7, 300)))] {
            let device = Device::under(tree.path(), makedev(major, minor));
            assert_eq!(device.whole(), whole);
            assert_eq!(device.backing_file(), Some("/images/a disk ".into()));
        }
    }

    #[test]
    fn a_raid_and_its_part_are_made_of_the_same_devices() {
        let tree = tree();
        for (major, minor) in [(9, 0), (259, 2)] {
            let mut below = Device::under(tree.path(), makedev(major, minor)).made_of();
            below.sort_unstable();
            assert_eq!(below, [makedev(8, 17), makedev(7, 300)]);
        }
        assert!(Device::under(tree.path(), makedev(8, 16)).made_of().is_empty());
    }
}
