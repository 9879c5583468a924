//! The client inside of the machine.

use std::error::Error;
use std::io::{self, Write as _};

use nbd_blocking::Client;
use nbd_blocking::client::Flags;

use crate::plan::{BATCH, Write, flush_before};

/// Writes until the machine ends. Each line says what is durable: `FUA N` the write of that number, `FLUSH N` all writes up
/// to that number.
pub(crate) fn run(uri: &str, seed: u64) -> Result<(), Box<dyn Error>> {
    let client = Client::connect(uri)?;
    let mut first = 0;
    loop {
        let writes = (first..first + BATCH).map(|number| Write::of(seed, number));
        let submitted: Vec<_> = writes
            .map(|write| {
                let flags = if write.fua { Flags::FUA } else { Flags::empty() };
                let pending = client.submit_write(write.offset(), write.data(seed), flags);
                (write, pending)
            })
            .collect();
        for (write, pending) in submitted {
            pending.wait()?;
            if write.fua {
                say(&format!("FUA {}", write.number))?;
            }
        }
        first += BATCH;
        // What is not flushed may be lost, and shall be.
        if flush_before(seed, first) {
            client.flush()?;
            say(&format!("FLUSH {}", first - 1))?;
        }
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
