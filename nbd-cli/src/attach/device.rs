//! NBD devices by their names, and what the kernel says of them in `/sys`, `/proc/self/mountinfo` and `/proc/swaps`.

use core::fmt;
use core::str::FromStr;
use std::fs;
use std::path::PathBuf;

/// The device `/dev/nbdN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device(pub(super) u32);

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("/dev/").unwrap_or(text);
        let digits = name.strip_prefix("nbd").filter(|digits| {
            !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
        });
        // The kernel takes no larger ones.
        let index = digits.and_then(|digits| digits.parse().ok()).filter(|index| *index <= 1 << 20);
        let help = || format!("'{text}' is not an NBD device: give one such as /dev/nbd0");
        index.map(Self).ok_or_else(help)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.0)
    }
}

/// Where the kernel's files are. Elsewhere in tests.
#[derive(Clone, Debug)]
pub(super) struct Files {
    sys: PathBuf,
    proc: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self { sys: "/sys".into(), proc: "/proc".into() }
    }
}

/// What is known of a device that is attached. What an older kernel does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Bytes.
    pub(super) size: Option<u64>,
    /// The logical block size, in bytes.
    pub(super) block_size: Option<u64>,
    pub(super) read_only: bool,
    /// What it was attached with: the URI, if this program did.
    pub(super) backend: Option<String>,
    /// The process that attached it, which may have ended.
    pub(super) pid: Option<u32>,
}

impl Files {
    #[cfg(test)]
    pub(super) fn under(folder: &std::path::Path) -> Self {
        Self { sys: folder.join("sys"), proc: folder.join("proc") }
    }

    /// Whether the kernel has NBD devices, configured in whatever way.
    pub(super) fn have_nbd(&self) -> bool {
        self.sys.join("module/nbd").exists() || self.folder(Device(0)).exists()
    }

    fn folder(&self, device: Device) -> PathBuf {
        self.sys.join("block").join(format!("nbd{}", device.0))
    }

    pub(super) fn facts(&self, device: Device) -> Facts {
        let folder = self.folder(device);
        let text = |name: &str| {
            let text = fs::read_to_string(folder.join(name)).ok()?;
            Some(text.trim_end_matches('\n').to_owned())
        };
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        Facts {
            // It is in units of 512 bytes, whatever the block size.
            size: number("size").and_then(|sectors| sectors.checked_mul(512)),
            block_size: number("queue/logical_block_size"),
            read_only: number("ro") == Some(1),
            backend: text("backend").filter(|text| !text.is_empty()),
            pid: number("pid").and_then(|pid| pid.try_into().ok()),
        }
    }

    /// The size of the largest request that the kernel makes of a device, in bytes.
    pub(super) fn max_request(&self, device: Device) -> Option<u64> {
        let text = fs::read_to_string(self.folder(device).join("queue/max_sectors_kb")).ok()?;
        text.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Has the kernel make no larger requests than this, in bytes.
    pub(super) fn set_max_request(&self, device: Device, bytes: u64) -> std::io::Result<()> {
        let path = self.folder(device).join("queue/max_sectors_kb");
        fs::write(path, (bytes / 1024).to_string())
    }

    /// What a device is used for, for people; `None` if nothing is known. An open descriptor does not count.
    pub(super) fn use_of(&self, device: Device) -> Option<String> {
        let folder = self.folder(device);
        let mut disks = vec![(device.to_string(), folder.clone())];
        let prefix = format!("nbd{}p", device.0);
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str()
                && name.starts_with(&prefix)
            {
                disks.push((format!("/dev/{name}"), entry.path()));
            }
        }
        let mounts = fs::read_to_string(self.proc.join("self/mountinfo")).unwrap_or_default();
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        disks.iter().find_map(|(name, folder)| {
            let number = fs::read_to_string(folder.join("dev")).unwrap_or_default();
            if let Some(mount_point) = mount_point(&mounts, number.trim()) {
                return Some(format!("{name} is mounted on {mount_point}"));
            }
            if swaps.lines().any(|line| line.split_whitespace().next() == Some(name)) {
                return Some(format!("{name} is swapped to"));
            }
            let holder = fs::read_dir(folder.join("holders")).ok()?.flatten().next()?;
            let holder = holder.file_name();
            Some(format!("{name} is part of /dev/{}", holder.to_string_lossy()))
        })
    }
}

/// Where the disk with this number (such as `43:0`) is mounted, if it is: the fifth field of a line whose third one is the
/// number, with spaces written as `\040`.
fn mount_point<'a>(mountinfo: &'a str, number: &str) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == number && !number.is_empty()).then_some(())?;
        fields.nth(1)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn devices_are_named_with_their_path_or_without() {
        for (text, index) in [("/dev/nbd0", 0), ("nbd15", 15), ("/dev/nbd1048576", 1 << 20)] {
            assert_eq!(text.parse(), Ok(Device(index)), "{text}");
        }
        for text in
            ["", "nbd", "0", "/dev/sda", "/dev/nbd0p1", "/dev/nbd-1", "/dev/nbd+1", "nbd1048577"]
        {
            assert!(text.parse::<Device>().unwrap_err().contains("/dev/nbd0"), "{text}");
        }
    }

    #[test]
    fn what_the_kernel_says_of_a_device_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::under(folder.path());
        assert!(!files.have_nbd());
        assert_eq!(files.facts(Device(3)), Facts::default());
        for (name, text) in [
            ("size", "2048\n"),
            ("queue/logical_block_size", "4096\n"),
            ("ro", "1\n"),
            ("backend", "nbd://h/a b\n"),
            ("pid", "17\n"),
            ("queue/max_sectors_kb", "128\n"),
        ] {
            write(folder.path(), &format!("sys/block/nbd3/{name}"), text);
        }
        let facts = Facts {
            size: Some(1 << 20),
            block_size: Some(4096),
            read_only: true,
            backend: Some("nbd://h/a b".into()),
            pid: Some(17),
        };
        assert_eq!(files.facts(Device(3)), facts);
        assert_eq!(files.max_request(Device(3)), Some(128 << 10));
        files.set_max_request(Device(3), 64 << 10).unwrap();
        assert_eq!(files.max_request(Device(3)), Some(64 << 10));
    }

    #[test]
    fn a_device_is_in_use_if_it_or_a_partition_of_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::under(folder.path());
        let put = |name: &str, text: &str| write(folder.path(), name, text);
        put("sys/block/nbd1/dev", "43:32\n");
        put("sys/block/nbd1/nbd1p2/dev", "43:34\n");
        put("sys/block/nbd10/dev", "43:320\n");
        let mount = |number: &str| {
            let root = "1 0 8:1 / / rw - ext4 /dev/sda1 rw";
            let line = format!("{root}\n2 1 {number} / /mnt/my\\040disk rw - ext4 /dev/x rw\n");
            put("proc/self/mountinfo", &line);
        };
        assert_eq!(files.use_of(Device(1)), None);
        mount("43:320");
        assert_eq!(files.use_of(Device(1)), None);
        assert_eq!(files.use_of(Device(10)).unwrap(), "/dev/nbd10 is mounted on /mnt/my\\040disk");
        mount("43:34");
        assert_eq!(files.use_of(Device(1)).unwrap(), "/dev/nbd1p2 is mounted on /mnt/my\\040disk");
        mount("8:2");
        put("proc/swaps", "Filename Type Size\n/dev/nbd1p2 partition 1024\n");
        assert_eq!(files.use_of(Device(1)).unwrap(), "/dev/nbd1p2 is swapped to");
        put("proc/swaps", "Filename Type Size\n");
        put("sys/block/nbd1/holders/dm-0", "");
        assert_eq!(files.use_of(Device(1)).unwrap(), "/dev/nbd1 is part of /dev/dm-0");
    }
}
