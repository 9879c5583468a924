//! The limits of control groups, of both versions.
//!
//! `/proc/self/cgroup` has the group's path in a hierarchy, `/proc/self/mountinfo` where which part of a hierarchy is
//! mounted. In a container the two need not fit together: the path may be the host's, or lead out of the namespace by
//! `..`; then the mount point itself is the closest group that can be seen.

use std::fs;
use std::path::{Path, PathBuf};

use super::Limit;

/// The files of a version that limits and what is in use stand in.
struct Version {
    limits: &'static [&'static str],
    used: &'static str,
    /// Entries of `memory.stat` that count page cache, which the kernel drops when memory is short: the group's and
    /// its children's.
    cache: [&'static str; 2],
    /// An entry of `memory.stat` that has the smallest limit of all parents, those included that can't be seen.
    parents: Option<&'static str>,
}

const V1: Version = Version {
    limits: &["memory.limit_in_bytes"],
    used: "memory.usage_in_bytes",
    cache: ["total_inactive_file", "total_active_file"],
    parents: Some("hierarchical_memory_limit"),
};

/// Above `memory.high` a group isn't killed, but slowed down until it hardly runs.
const V2: Version = Version {
    limits: &["memory.max", "memory.high"],
    used: "memory.current",
    cache: ["inactive_file", "active_file"],
    parents: None,
};

/// The limits of the control group of a process and of its parents, as far as they can be seen. `cgroup` and
/// `mountinfo` are the texts of the files of these names in `/proc/self`; what is mounted is looked for below `root`.
pub(super) fn limits(root: &Path, cgroup: &str, mountinfo: &str) -> Vec<Limit> {
    let mounts = mountinfo.lines().filter_map(Mount::parse);
    let mut limits = Vec::new();
    for mount in mounts {
        let Some(path) = path(cgroup, &mount.version) else { continue };
        // Absolute as it is, it would replace the root.
        let top = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
        let mut group = mount.directory(&top, Path::new(path));
        // A group that ended, or is of another namespace, can't be seen.
        if !group.is_dir() {
            group.clone_from(&top);
        }
        for group in group.ancestors().take_while(|group| group.starts_with(&top)) {
            limits.extend(mount.version.limits(group));
        }
    }
    limits
}

/// The process's path in the hierarchy that has the memory controller of that version.
fn path<'a>(cgroup: &'a str, version: &Version) -> Option<&'a str> {
    cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = match version.parents {
            Some(_) => controllers.split(',').any(|controller| controller == "memory"),
            None => number == "0" && controllers.is_empty(),
        };
        found.then_some(path)
    })
}

/// Where a hierarchy is mounted.
struct Mount {
    version: Version,
    /// The group that is mounted.
    group: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Reads a line of `/proc/self/mountinfo`; `None` for other file systems, controllers and what makes no sense.
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (group, point) = (unescape(fields.next()?), unescape(fields.next()?));
        let mut fields = file_system.split(' ');
        let (kind, options) = (fields.next()?, fields.nth(1).unwrap_or_default());
        let version = match kind {
            "cgroup2" => V2,
            "cgroup" if options.split(',').any(|option| option == "memory") => V1,
            _ => return None,
        };
        Some(Self { version, group: group.into(), point: point.into() })
    }

    /// The directory of the group `path`, in what is mounted at `top`.
    fn directory(&self, top: &Path, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.group) {
            // Nothing above of what is mounted is there to be found.
            Ok(below) if !below.components().any(|part| part.as_os_str() == "..") => {
                // To join nothing would leave a slash at the end.
                below.iter().fold(top.to_path_buf(), |path, part| path.join(part))
            }
            _ => top.to_path_buf(),
        }
    }
}

impl Version {
    /// The limits of one group.
    fn limits(&self, group: &Path) -> Option<Limit> {
        let read = |name: &str| fs::read_to_string(group.join(name)).ok();
        let stat = read("memory.stat").unwrap_or_default();
        let entry = |name: &str| -> Option<u64> {
            let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            value.trim().parse().ok()
        };
        // What is no number is "max".
        let own = self.limits.iter().filter_map(|name| read(name)?.trim().parse().ok());
        let total = own.chain(self.parents.and_then(entry)).min()?;
        let used: u64 = read(self.used).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let cache = self.cache.iter().filter_map(|name| entry(name)).fold(0, u64::saturating_add);
        Some(Limit::new(total, used.saturating_sub(cache)))
    }
}

/// Blanks and the like stand in `mountinfo` as a backslash and three octal digits.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text: Vec<u8> = parts.next().unwrap_or_default().into();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(byte);
                text.extend(&part.as_bytes()[3..]);
            }
            None => text.extend([b"\\", part.as_bytes()].concat()),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V2_MOUNT: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
    const V1_MOUNT: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    /// A folder with these files, and what is found there.
    fn found(files: &[(&str, &str)], cgroup: &str, mountinfo: &str) -> Option<(u64, u64)> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let limits = limits(root.path(), cgroup, mountinfo);
        let total = limits.iter().map(|limit| limit.total).min()?;
        Some((total, limits.iter().map(|limit| limit.available).min()?))
    }

    #[test]
    fn a_group_of_version_2_has_its_own_limit_and_its_parents() {
        let files = [
            ("sys/fs/cgroup/a/b/memory.max", "900\n"),
            ("sys/fs/cgroup/a/b/memory.high", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "100\n"),
            ("sys/fs/cgroup/a/memory.max", "1000\n"),
            ("sys/fs/cgroup/a/memory.current", "700\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 600\ninactive_file 30\nactive_file 20\n"),
        ];
        assert_eq!(found(&files, "0::/a/b\n", V2_MOUNT), Some((900, 350)));
        assert_eq!(found(&files, "0::/a\n", V2_MOUNT), Some((1000, 350)));
        assert_eq!(found(&files, "0::/a/gone\n", V2_MOUNT), None, "the root has no limit");
    }

    #[test]
    fn high_is_a_limit_too() {
        let files = [("sys/fs/cgroup/memory.max", "900"), ("sys/fs/cgroup/memory.high", "800")];
        assert_eq!(found(&files, "0::/\n", V2_MOUNT), Some((800, 800)));
    }

    #[test]
    fn max_is_no_limit_and_missing_files_are_none() {
        let files = [("sys/fs/cgroup/memory.max", "max\n"), ("sys/fs/cgroup/memory.current", "7")];
        assert_eq!(found(&files, "0::/\n", V2_MOUNT), None);
        assert_eq!(found(&[], "0::/\n", V2_MOUNT), None);
        assert_eq!(found(&[], "", ""), None);
        assert_eq!(found(&files, "1:cpu:/\n", V2_MOUNT), None);
    }

    #[test]
    fn a_group_of_version_1_is_found_by_its_controller() {
        let cgroup = "9:name=systemd:/x\n4:cpu,memory:/a:b\n3:memory_of_others:/y\n0::/\n";
        let files = [
            ("sys/fs/cgroup/memory/a:b/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/a:b/memory.usage_in_bytes", "500\n"),
            (
                "sys/fs/cgroup/memory/a:b/memory.stat",
                "inactive_file 9\ntotal_inactive_file 100\ntotal_active_file 50\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(found(&files, cgroup, V1_MOUNT), Some((1000, 650)));
    }

    #[test]
    fn a_hidden_parents_limit_is_known_from_the_hierarchy() {
        let files = [
            ("m/memory.limit_in_bytes", "9223372036854771712"),
            ("m/memory.usage_in_bytes", "100"),
            ("m/memory.stat", "hierarchical_memory_limit 700\n"),
        ];
        let mountinfo = "1 2 0:3 /docker/id /m rw - cgroup cgroup rw,memory\n";
        assert_eq!(found(&files, "4:memory:/docker/id\n", mountinfo), Some((700, 600)));
    }

    #[test]
    fn both_versions_at_once_are_looked_at() {
        let mountinfo = format!(
            "{V1_MOUNT}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
        );
        let one = ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000");
        assert_eq!(found(&[one], "4:memory:/a\n0::/b\n", &mountinfo), Some((1000, 1000)));
        let two = ("sys/fs/cgroup/unified/b/memory.max", "500");
        assert_eq!(found(&[one, two], "4:memory:/a\n0::/b\n", &mountinfo), Some((500, 500)));
    }

    #[test]
    fn a_part_of_the_hierarchy_that_is_mounted_is_where_the_path_goes_on() {
        let files = [("m/inner/memory.max", "300"), ("m/memory.max", "400")];
        let mountinfo = "1 2 0:3 /a/b /m rw - cgroup2 none rw\n";
        assert_eq!(found(&files, "0::/a/b/inner\n", mountinfo), Some((300, 300)));
        assert_eq!(found(&files, "0::/a/b\n", mountinfo), Some((400, 400)));
    }

    #[test]
    fn paths_of_other_namespaces_lead_to_the_mount_point() {
        let files = [("m/memory.max", "400"), ("memory.max", "1"), ("x/memory.max", "2")];
        let of = |group: &str, path: &str| {
            let mountinfo = format!("1 2 0:3 {group} /m rw - cgroup2 none rw\n");
            found(&files, &format!("0::{path}\n"), &mountinfo)
        };
        assert_eq!(of("/", "/../x"), Some((400, 400)));
        assert_eq!(of("/", "/kubepods/pod1"), Some((400, 400)));
        assert_eq!(of("/kubepods/pod1", "/"), Some((400, 400)));
        assert_eq!(of("/..", "/"), Some((400, 400)));
        assert_eq!(of("/..", "/../x"), Some((400, 400)));
    }

    #[test]
    fn mount_points_may_have_blanks() {
        let files = [("a b\\/memory.max", "400")];
        let mountinfo = "1 2 0:3 / /a\\040b\\134 rw - cgroup2 none rw\n";
        assert_eq!(found(&files, "0::/\n", mountinfo), Some((400, 400)));
    }

    proptest! {
        #[test]
        fn any_text_is_read(cgroup in ".*", mountinfo in "[ -~\\n]*", field in "[\\\\0-9é]*") {
            limits(Path::new("/nonexistent"), &cgroup, &mountinfo);
            unescape(&field);
        }
    }
}
