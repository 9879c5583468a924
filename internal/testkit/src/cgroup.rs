//! Control groups with a memory limit, for programs under test.
//!
//! To make one takes rights that a test has in few places: elsewhere the test says so and is skipped.

use std::fs;
use std::path::{Path, PathBuf};

/// The folders and files of version 1 and 2 of control groups. Where both are there, one of them has the controller.
const HIERARCHIES: [(&str, &str); 2] =
    [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];

/// A control group, removed when it is dropped: after the programs in it.
#[derive(Debug)]
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// A group with a limit in bytes, or nothing if the test is to return because there can't be one.
    pub fn require(limit: u64) -> Option<Self> {
        static COUNT: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        let name = format!("nbd-test-{}-{number}", std::process::id());
        let group = HIERARCHIES.iter().find_map(|(top, file)| {
            let group = Self(Path::new(top).join(&name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(file), limit.to_string()).ok()?;
            Some(group)
        });
        if group.is_none() {
            eprintln!("skipped: no control group with a memory limit can be made here");
        }
        group
    }

    /// A shell command that moves the shell, and what it becomes, into the group.
    pub fn enter(&self) -> String {
        format!("echo $$ > '{}'", self.0.join("cgroup.procs").display())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // A process that was just reaped may be in it for a moment longer.
        for _ in 0..100 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(core::time::Duration::from_millis(10));
                }
                _ => return,
            }
        }
    }
}
