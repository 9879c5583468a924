//! The memory that this process may use.
//!
//! The kernel's limits hold each by themselves, so the smallest counts: the limits of the process's control group and
//! of all its parents (`memory.max` and `memory.high`, or `memory.limit_in_bytes`), those that `ulimit -v` and
//! `ulimit -d` set, and the machine. All of it changes while the process runs, so nothing is remembered here: a call
//! reads a handful of small files, which takes about 0.1 ms, and callers remember what they need.

mod cgroup;

use std::fs;
use std::path::Path;

/// What is taken to be there where the platform does not report anything.
const UNKNOWN: u64 = 4 << 30;

/// One limit on memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit {
    /// Bytes that may be in use in all.
    total: u64,
    /// Bytes that may still be allocated now.
    available: u64,
}

impl Limit {
    /// A limit of which `used` bytes are in use.
    const fn new(total: u64, used: u64) -> Self {
        Self { total, available: total.saturating_sub(used) }
    }
}

/// Bytes of memory that may still be allocated now, without swapping and without the out-of-memory killer: the least
/// that any limit leaves. Page cache that the kernel can drop counts as available. 0 when a limit is reached.
pub(crate) fn available() -> u64 {
    limits(Path::new("/")).iter().map(|limit| limit.available).min().unwrap_or(UNKNOWN)
}

/// Bytes of memory that the process may use in all: the smallest limit, whatever is in use. Never more than the machine
/// has.
pub(crate) fn total() -> u64 {
    limits(Path::new("/")).iter().map(|limit| limit.total).min().unwrap_or(UNKNOWN)
}

/// All limits on this process. `/proc` and what is mounted are looked for below `root`.
fn limits(root: &Path) -> Vec<Limit> {
    let read = |name: &str| fs::read_to_string(root.join("proc").join(name)).unwrap_or_default();
    let mut limits = cgroup::limits(root, &read("self/cgroup"), &read("self/mountinfo"));
    limits.extend(machine(&read("meminfo")));
    limits.extend(resource_limits(&read("self/status")));
    limits
}

/// The machine's memory, from a text like that of `/proc/meminfo`.
fn machine(meminfo: &str) -> Option<Limit> {
    let available = kibibytes(meminfo, "MemAvailable:")?;
    let total = kibibytes(meminfo, "MemTotal:").unwrap_or(available);
    Some(Limit { total, available })
}

/// What `ulimit -v` and `ulimit -d` allow. `status` is a text like that of `/proc/self/status`.
#[cfg(target_os = "linux")]
fn resource_limits(status: &str) -> impl Iterator<Item = Limit> {
    use rustix::process::{Resource, getrlimit};
    let limits = [(Resource::As, "VmSize:"), (Resource::Data, "VmData:")];
    limits
        .map(|(resource, used)| resource_limit(getrlimit(resource).current, status, used))
        .into_iter()
        .flatten()
}

/// What other platforms report would have to be read in other ways.
#[cfg(not(target_os = "linux"))]
const fn resource_limits(_status: &str) -> Vec<Limit> {
    Vec::new()
}

/// A resource limit, `None` if there is none, and what the line `name` of `/proc/self/status` counts against it.
#[cfg(target_os = "linux")]
fn resource_limit(limit: Option<u64>, status: &str, name: &str) -> Option<Limit> {
    Some(Limit::new(limit?, kibibytes(status, name).unwrap_or(0)))
}

/// The bytes of a line such as `MemTotal:  1024 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_memory_is_read_in_kibibytes() {
        let text = "MemTotal:       49368168 kB\nMemAvailable:   48101180 kB\n";
        let expected = Limit { total: 49_368_168 * 1024, available: 48_101_180 * 1024 };
        assert_eq!(machine(text), Some(expected));
        assert_eq!(machine("MemTotal: 1 kB\n"), None);
        assert_eq!(machine("MemAvailable: many\n"), None);
        assert_eq!(machine("MemAvailable: 36028797018963968 kB\n"), None, "more than 64 bits");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_resource_limit_is_less_what_is_in_use() {
        let status = "VmPeak:\t 9 kB\nVmSize:\t    3 kB\nVmData:\t    1 kB\n";
        let limit = |limit, name| resource_limit(limit, status, name);
        let expected = Limit { total: 4096, available: 1024 };
        assert_eq!(limit(Some(4096), "VmSize:"), Some(expected));
        assert_eq!(limit(Some(1024), "VmSize:"), Some(Limit { total: 1024, available: 0 }));
        assert_eq!(limit(None, "VmSize:"), None);
        assert_eq!(limit(Some(7), "missing:"), Some(Limit { total: 7, available: 7 }));
    }

    #[test]
    fn this_process_may_use_some_memory_and_no_more_than_the_machine_has() {
        let (available, total) = (available(), total());
        assert!(available > 0 && total > 0);
        if let Some(machine) = fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(machine)
        {
            assert!(total <= machine.total);
        }
    }

    #[test]
    fn the_smallest_of_all_limits_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let smallest = |of: fn(Limit) -> u64| limits(root.path()).into_iter().map(of).min();
        write("proc/meminfo", "MemTotal: 8192 kB\nMemAvailable: 4096 kB\n");
        assert_eq!(smallest(|limit| limit.total), Some(8192 << 10));
        assert_eq!(smallest(|limit| limit.available), Some(4096 << 10));
        write("proc/self/cgroup", "0::/a\n");
        write("proc/self/mountinfo", "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        write("sys/fs/cgroup/a/memory.max", "1048576\n");
        write("sys/fs/cgroup/a/memory.current", "4096\n");
        assert_eq!(smallest(|limit| limit.total), Some(1 << 20));
        assert_eq!(smallest(|limit| limit.available), Some((1 << 20) - 4096));
    }

    /// What a process reports that a shell starts after it ran `setup`.
    #[cfg(target_os = "linux")]
    fn reported_after(setup: &str) -> (u64, u64) {
        let this = std::env::current_exe().unwrap();
        let test = "memory_limit::tests::the_limits_of_a_process_are_reported";
        let script = format!(r#"{setup} && exec "$0" --exact {test} --ignored --nocapture"#);
        let output = std::process::Command::new("sh").arg("-c").arg(script).arg(this).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |name| text.split_once(name)?.1.split_whitespace().next()?.parse().ok();
        let numbers = number("total=").zip(number("available="));
        numbers.unwrap_or_else(|| panic!("{setup}: {output:?}"))
    }

    #[test]
    #[ignore = "run by the tests of limits, in processes that have some"]
    fn the_limits_of_a_process_are_reported() {
        println!("\ntotal={} available={}", total(), available());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_limit_of_the_address_space_counts() {
        let (total, available) = reported_after("ulimit -v 700000");
        assert_eq!(total, 700_000 << 10);
        assert!((1..total).contains(&available), "{available}");
        assert_eq!(reported_after("ulimit -d 300000").0, 300_000 << 10);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_limit_of_a_real_control_group_counts() {
        let Some(group) = nbd_testkit::cgroup::MemoryGroup::require(512 << 20) else { return };
        let (total, available) = reported_after(&group.enter());
        assert_eq!(total, 512 << 20);
        assert!((256 << 20..512 << 20).contains(&available), "{available}");
    }
}
