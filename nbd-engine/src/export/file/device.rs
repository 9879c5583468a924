//! What the kernel says of devices.

use std::fs;
use std::path::Path;

use crate::net::{folder_of, link_end};

/// Whether a path belongs to a device node: it lies in `/dev` and not in `/dev/shm`, once symbolic links and relative
/// names are resolved. A regular file must not be created there: a mistyped device would become a file in memory. Asks
/// the file system; a path that can't be resolved is taken as it is written.
#[must_use]
pub fn is_device_path(path: &Path) -> bool {
    // A link to a missing file can't be canonicalized, and opening it creates its target.
    let path = link_end(path);
    let parent = folder_of(&path);
    let parent = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
    parent.starts_with("/dev") && !parent.starts_with("/dev/shm")
}

/// What the kernel says of a block device, or of the one that it is a partition of; `false` if it says nothing.
pub(super) fn is_rotational(device: u64) -> bool {
    queue_attribute(device, "rotational").is_some_and(|text| text == "1")
}

/// Whether the kernel says that a block device can write zeroes by itself; `true` if it says nothing.
pub(super) fn zeroes_by_itself(device: u64) -> bool {
    queue_attribute(device, "write_zeroes_max_bytes").is_none_or(|text| text != "0")
}

fn queue_attribute(device: u64, name: &str) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    ["queue", "../queue"].iter().find_map(|queue| {
        let path = format!("/sys/dev/block/{major}:{minor}/{queue}/{name}");
        Some(fs::read_to_string(path).ok()?.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_paths_are_known_however_they_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let link = |name: &str, target: &Path| {
            let link = folder.path().join(name);
            std::os::unix::fs::symlink(target, &link).unwrap();
            link
        };
        let first = link("first", Path::new("/dev/no-such-disk"));
        let relative = link("relative", Path::new("first"));
        let directory = link("directory", Path::new("/dev"));
        let file = link("file", &folder.path().join("missing"));
        let circle = link("circle", Path::new("circle"));
        for path in [
            Path::new("/dev/no-such-disk"),
            Path::new("/dev/no-such-directory/disk"),
            Path::new("/dev/../dev/./no-such-disk"),
            &first,
            &relative,
            &directory.join("no-such-disk"),
        ] {
            assert!(is_device_path(path), "{}", path.display());
        }
        for path in [
            Path::new("/dev/shm/disk"),
            Path::new("/devices/disk"),
            Path::new("/dev"),
            Path::new("disk"),
            Path::new("dev/disk"),
            Path::new(""),
            Path::new("/"),
            &file,
            &circle,
        ] {
            assert!(!is_device_path(path), "{}", path.display());
        }
    }
}
