//! What it costs to keep writes until they are flushed: rates of a client that does not reconnect, of one that reports
//! doubt, and of ones that keep so many bytes at most.
//!
//! ```text
//! cargo run --release -p nbd-bench --example kept_writes -- nbd+unix:///?socket=PATH
//! ```
//!
//! It overwrites the export, of 256 MiB or more.

use std::collections::VecDeque;
use std::error::Error;
use std::time::Instant;

use nbd_blocking::Client;
use nbd_blocking::client::{self, ClientConfig, Flags, Pending, Reconnect, Uri};
use nbd_engine::client::Bytes;
use nbd_testkit::Random;

const MIB: u64 = 1 << 20;

/// What the writes of a run lie in.
const EXPORT: u64 = 256 * MIB;

/// Writes in flight.
const DEPTH: usize = 16;

/// Runs of each case, in turn with the others. The median of them is shown.
const ROUNDS: usize = 5;

/// Sequential writes and random ones: their length, and how many there are.
const LOADS: [(&str, u64, u64); 2] =
    [("sequential, 1 MiB each", MIB, 512), ("random, 4 KiB each", 4 << 10, 32 << 10)];

/// Clients: how they reconnect, and how many bytes they keep.
const CLIENTS: [(&str, bool, Option<u64>); 6] = [
    ("without reconnection", false, None),
    ("reconnects, reports doubt", true, None),
    ("keeps up to 64 MiB", true, Some(64 * MIB)),
    ("keeps up to 16 MiB", true, Some(16 * MIB)),
    ("keeps up to 1 MiB", true, Some(MIB)),
    ("keeps one write", true, Some(0)),
];

fn main() -> Result<(), Box<dyn Error>> {
    let uri: Uri = std::env::args().nth(1).ok_or("which server? kept_writes URI")?.parse()?;
    for (load, length, count) in LOADS {
        let mut rates = CLIENTS.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for ((_, reconnects, kept), rates) in CLIENTS.iter().zip(&mut rates) {
                let client = connect(&uri, *reconnects, *kept)?;
                // A client that writes one by one is only to be compared, not to take minutes.
                let count = if *kept == Some(0) { count / 16 } else { count };
                rates.push(run(&client, length, count)?);
                client.disconnect();
            }
        }
        println!("{load}, {DEPTH} in flight, one flush at the end:");
        for ((client, ..), rates) in CLIENTS.iter().zip(&mut rates) {
            rates.sort_by(f64::total_cmp);
            let median = rates[ROUNDS / 2];
            let (low, high) = (rates[0], rates[ROUNDS - 1]);
            println!("  {client:26} {median:8.1} MiB/s ({low:.1} to {high:.1})");
        }
    }
    Ok(())
}

fn connect(uri: &Uri, reconnects: bool, kept: Option<u64>) -> Result<Client, Box<dyn Error>> {
    let mut config = ClientConfig::new();
    if reconnects {
        let reconnect = Reconnect::new();
        config = config.with_reconnect(match kept {
            Some(bytes) => reconnect.with_kept_writes(bytes),
            None => reconnect,
        });
    }
    let client = Client::connect_with(uri, &config)?;
    if client.size() < EXPORT || !client.export().can_flush() {
        return Err(format!("{uri} has less than {} MiB, or can't be flushed", EXPORT / MIB).into());
    }
    Ok(client)
}

/// MiB per second.
fn run(client: &Client, length: u64, count: u64) -> Result<f64, Box<dyn Error>> {
    let data = Bytes::from(vec![7; length as usize]);
    let mut random = Random::new(1);
    let mut pending: VecDeque<Pending<Result<(), client::Error>>> = VecDeque::new();
    let start = Instant::now();
    for number in 0..count {
        let slot =
            if length < MIB { random.below(EXPORT / length) } else { number % (EXPORT / length) };
        if pending.len() == DEPTH
            && let Some(write) = pending.pop_front()
        {
            write.wait()?;
        }
        pending.push_back(client.submit_write(slot * length, data.clone(), Flags::empty()));
    }
    for write in pending {
        write.wait()?;
    }
    client.flush()?;
    Ok((count * length) as f64 / MIB as f64 / start.elapsed().as_secs_f64())
}
