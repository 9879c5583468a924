//! A disk in memory returns what threads free, measured in a process that does nothing else: the only test in its file.
#![cfg(target_os = "linux")]

use std::fs;
use std::sync::{Barrier, Mutex};
use std::thread;

use nbd_engine::export::{CanTrim, CanWrite, Memory};

const MIB: u64 = 1 << 20;

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn resident_memory_follows_what_a_disk_holds_whatever_threads_free_it() {
    const THREADS: u64 = 4;
    const PART: u64 = 32 * MIB;
    // What the threads themselves take, and what the disk keeps at most.
    const SLACK: u64 = 12 * MIB;
    let disk = Memory::new(2 * THREADS * PART).unwrap();
    let barrier = Barrier::new(THREADS as usize);
    let failures = Mutex::new(Vec::new());
    let before = resident();
    let check = |held: u64, when: &str| {
        if barrier.wait().is_leader() {
            let (resident, bound) = (resident(), before + held + SLACK);
            if disk.allocated_bytes() != held || resident > bound {
                let allocated = disk.allocated_bytes();
                let found =
                    format!("{when}: {resident} of {bound} resident, {allocated} allocated");
                // A panic here would leave the others waiting.
                failures.lock().unwrap().push(found);
            }
        }
        barrier.wait();
    };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (disk, check) = (&disk, &check);
            scope.spawn(move || {
                let data = vec![7; MIB as usize];
                for round in 0..3 {
                    let own = (round % 2 * THREADS + thread) * PART;
                    for at in (own..own + PART).step_by(data.len()) {
                        disk.write(&data, at, false).unwrap();
                    }
                    check(THREADS * PART, "full");
                    // Another thread's, every second page.
                    let other = (round % 2 * THREADS + (thread + 1) % THREADS) * PART;
                    for at in (other..other + PART).step_by(2 * Memory::PAGE_SIZE as usize) {
                        disk.trim(at, Memory::PAGE_SIZE, false).unwrap();
                    }
                    check(THREADS * PART / 2, "half of it trimmed");
                    disk.trim(other, PART, false).unwrap();
                    check(0, "trimmed");
                }
            });
        }
    });
    assert_eq!(failures.into_inner().unwrap(), Vec::<String>::new());
}
