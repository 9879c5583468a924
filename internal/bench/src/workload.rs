//! The workloads that servers are compared by.

use std::time::Duration;

use crate::load::{Direction, Load, Order};

/// Bytes of each disk.
pub const DISK_SIZE: usize = 256 * 1024 * 1024;

/// Seed of the random offsets: the same for every server and every run.
pub const SEED: u64 = 0x6e62_6420_6265_6e63;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// A named load.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// What it is called on the command line and in tables.
    pub name: &'static str,
    /// READ or WRITE.
    pub direction: Direction,
    /// Bytes of each request.
    pub block: u32,
    /// Requests in flight.
    pub depth: usize,
}

/// All of them. Small requests in numbers show what a request costs, large ones what a byte costs,
/// and one at a time shows how long a server takes to wake up and answer.
pub const WORKLOADS: [Workload; 6] = [
    workload("read-4k-qd32", Direction::Read, 4 * KIB, 32),
    workload("write-4k-qd32", Direction::Write, 4 * KIB, 32),
    workload("read-1m-qd4", Direction::Read, MIB, 4),
    workload("write-1m-qd4", Direction::Write, MIB, 4),
    workload("read-4k-qd1", Direction::Read, 4 * KIB, 1),
    workload("write-4k-qd1", Direction::Write, 4 * KIB, 1),
];

const fn workload(name: &'static str, direction: Direction, block: u32, depth: usize) -> Workload {
    Workload { name, direction, block, depth }
}

impl Workload {
    /// What it is, for people.
    pub fn title(&self) -> String {
        let Self { name, depth, block, direction } = self;
        let command = match direction {
            Direction::Read => "READ",
            Direction::Write => "WRITE",
        };
        let block = block / 1024;
        format!("{name}: {command} of {block} KiB at random, {depth} in flight")
    }

    /// The load at random offsets for some time.
    pub fn load(&self, duration: Duration) -> Load {
        Load {
            direction: self.direction,
            order: Order::Random,
            block: self.block,
            depth: self.depth,
            duration: Some(duration),
            requests: None,
            seed: SEED,
            verify: None,
        }
    }
}

/// Writes the whole disk once, so that no server is measured while it allocates.
pub fn touch(size: u64) -> Load {
    Load {
        direction: Direction::Write,
        order: Order::Sequential,
        block: MIB,
        depth: 4,
        duration: None,
        requests: Some(size / u64::from(MIB)),
        seed: SEED,
        verify: None,
    }
}
