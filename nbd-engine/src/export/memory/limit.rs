//! How much memory there is to take.

use std::fs;

/// The limit where the platform does not say what is available.
const UNKNOWN: u64 = 4 << 30;

/// Seven eighths of the memory that is available to this process now, in bytes: what the kernel believes that can be
/// had without swapping, and not more than the control group may have.
pub(super) fn default_limit() -> u64 {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo(&text));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse().ok());
    let bytes: Option<u64> = available.into_iter().chain(group).min();
    bytes.map_or(UNKNOWN, |bytes| bytes / 8 * 7)
}

/// The bytes that a text like that of `/proc/meminfo` calls available.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kibibytes() {
        let text = "MemTotal:       49368168 kB\nMemAvailable:   48101180 kB\n";
        assert_eq!(meminfo(text), Some(48_101_180 * 1024));
        assert_eq!(meminfo("MemTotal: 1 kB\n"), None);
        assert_eq!(meminfo("MemAvailable: many\n"), None);
    }

    #[test]
    fn some_memory_is_always_available() {
        assert!(default_limit() > 0);
    }
}
