//! Random requests of several threads over several connections that break at random, against what a client may rely on.
//!
//! Each thread has blocks of its own, a clone of the client, and knows for each block what it wrote, so that there is no
//! doubt about order. The disk has no other clients, and its crashes lose whatever was not flushed.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nbd_blocking::Client;
use nbd_blocking::client::{ClientConfig, Error, Flags, Reconnect};
use nbd_support::bounded;
use nbd_support::volatile::Volatile;
use nbd_testkit::{Random, cases};

use super::chaos::{Chaos, Plan};

const BLOCK: usize = 512;
/// Blocks of one thread.
const BLOCKS: usize = 32;
const THREADS: usize = 3;
const ROUNDS: usize = 60;

/// What was written to a block, the latest last: the number that fills it. Only the part since it was last known to be
/// durable counts.
type History = Vec<u64>;

struct Owner {
    client: Client,
    disk: Arc<Volatile>,
    first: usize,
    blocks: Vec<History>,
    random: Random,
    keeps: bool,
    next: u64,
}

fn filled(value: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
    block
}

impl Owner {
    fn offset(&self, block: usize) -> u64 {
        ((self.first + block) * BLOCK) as u64
    }

    /// Some blocks in a row, and others that do not overlap them.
    fn ranges(&mut self) -> Vec<(usize, usize)> {
        let mut ranges = Vec::new();
        let mut block = self.random.below(8) as usize;
        while block < BLOCKS {
            let length = (1 + self.random.below(6) as usize).min(BLOCKS - block);
            ranges.push((block, length));
            block += length + self.random.below(8) as usize;
        }
        ranges
    }

    /// Several changes at once. All succeed: the client does not give up.
    fn write(&mut self) {
        let mut requests = Vec::new();
        for (block, length) in self.ranges() {
            let (offset, bytes) = (self.offset(block), (length * BLOCK) as u64);
            let flags = if self.random.one_in(4) { Flags::FUA } else { Flags::empty() };
            self.next += 1;
            let (value, request) = match self.random.below(8) {
                0 => (0, self.client.submit_write_zeroes(offset, bytes, flags)),
                1 => (0, self.client.submit_trim(offset, bytes, flags)),
                _ => {
                    let data = filled(self.next).repeat(length);
                    (self.next, self.client.submit_write(offset, data, flags))
                }
            };
            requests.push((request, block..block + length, value, flags));
        }
        for (request, blocks, value, flags) in requests {
            request.wait().expect("a change is sent again until it is answered");
            for history in &mut self.blocks[blocks] {
                if !flags.is_empty() {
                    history.clear();
                }
                history.push(value);
            }
        }
    }

    /// Several reads at once.
    fn read(&mut self) {
        let requests: Vec<_> = self
            .ranges()
            .into_iter()
            .map(|(block, length)| {
                let buffer = vec![1; length * BLOCK];
                (block, self.client.submit_read_into(self.offset(block), buffer, Flags::empty()))
            })
            .collect();
        for (first, request) in requests {
            let (found, result) = request.wait();
            result.expect("a read is sent again until it is answered");
            for (index, found) in found.chunks_exact(BLOCK).enumerate() {
                let history = &self.blocks[first + index];
                let latest = history.last().into_iter();
                let allowed: Vec<_> =
                    if self.keeps { latest.collect() } else { history.iter().collect() };
                let fits = allowed.iter().any(|value| *found == filled(**value));
                let number = u64::from_le_bytes(found[..8].try_into().unwrap());
                assert!(fits, "block {} is {number}, not of {allowed:?}", first + index);
            }
        }
    }

    fn flush(&mut self) {
        match self.client.flush() {
            Ok(()) => {
                for (index, history) in self.blocks.iter_mut().enumerate() {
                    let latest = *history.last().unwrap();
                    let durable = self.disk.durable((self.first + index) * BLOCK, BLOCK);
                    assert!(durable == filled(latest), "block {index} is flushed: {latest}");
                    *history = vec![latest];
                }
            }
            Err(Error::InDoubt { requests, bytes, .. }) => {
                assert!(!self.keeps, "nothing is in doubt that is kept");
                assert!(requests > 0 && bytes >= requests * BLOCK as u64, "{requests} {bytes}");
                self.write_again();
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Everything that is not known to be durable, as it should be.
    fn write_again(&mut self) {
        for index in 0..BLOCKS {
            let latest = *self.blocks[index].last().unwrap();
            if self.blocks[index].len() > 1 {
                let offset = self.offset(index);
                self.client.write(offset, filled(latest).to_vec(), Flags::empty()).unwrap();
            }
        }
    }

    fn run(&mut self) {
        for _ in 0..ROUNDS {
            match self.random.below(8) {
                0..4 => self.write(),
                4..7 => self.read(),
                _ => self.flush(),
            }
        }
    }
}

fn run(random: &mut Random, reconnect: Reconnect) {
    let connections = 1 + random.below(4) as usize;
    let keeps = reconnect.kept_writes().is_some();
    let disk = Volatile::new(THREADS * BLOCKS * BLOCK);
    let plan = Plan { max_bytes: 60_000, crash_one_in: 1 + random.below(3) };
    let chaos = Chaos::new(&disk, plan, random.next());
    let reconnect = reconnect
        .with_seed(random.next())
        .with_delays(Duration::from_micros(100), Duration::from_millis(2))
        .with_max_resends(u32::MAX);
    let config = ClientConfig::new()
        .with_connections(connections)
        .with_max_in_flight(1 + random.below(16) as u32)
        .with_reconnect(reconnect);
    // The first connection must live long enough to be entered.
    let uri = chaos.uri().parse().unwrap();
    let client = loop {
        match Client::connect_with(&uri, &config) {
            Ok(client) => break client,
            Err(Error::Connect { .. } | Error::Protocol { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let owners: Vec<_> = (0..THREADS)
        .map(|index| Owner {
            client: client.clone(),
            disk: Arc::clone(&disk),
            first: index * BLOCKS,
            blocks: vec![vec![0]; BLOCKS],
            random: Random::new(random.next()),
            keeps,
            next: (index as u64 + 1) << 32,
        })
        .collect();
    let owners: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = owners
            .into_iter()
            .map(|mut owner| {
                scope.spawn(move || {
                    owner.run();
                    owner
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(disk.crashes() > 0, "the server crashed meanwhile");
    chaos.calm_down();
    for mut owner in owners {
        owner.read();
        // One that reports what is in doubt, and one that covers what was written again.
        (0..2).for_each(|_| owner.flush());
        chaos.crash();
        owner.read();
        assert!(owner.blocks.iter().all(|history| history.len() == 1), "all is flushed");
    }
    client.disconnect();
}

#[test]
fn a_flush_fails_that_does_not_cover_everything() {
    bounded(|| cases(6, |random| run(random, Reconnect::new())));
}

#[test]
fn kept_writes_are_there_again_after_each_crash() {
    bounded(|| {
        cases(6, |random| {
            // Room for a few writes, or for all.
            let max_bytes = [4096, 16384, 1 << 20][random.below(3) as usize];
            let reconnect = Reconnect::new().with_kept_writes(max_bytes);
            run(random, reconnect);
        });
    });
}
