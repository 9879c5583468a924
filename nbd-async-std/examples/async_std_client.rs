//! Fetches an export into a file, with a few reads in flight at a time.
//!
//! ```text
//! cargo run --features async-std --example async_std_client URI FILE
//! ```
//!
//! A server to try it on: `cargo run --features async-std --example async_std_memory_server`.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;

use nbd_async_std::Client;
use nbd_async_std::client::Flags;

/// Bytes of one read.
const LENGTH: u64 = 256 << 10;
/// Reads in flight.
const DEPTH: usize = 16;

#[async_std::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [_, uri, path] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: async_std_client URI FILE".into());
    };
    let client = Client::connect(uri).await?;
    let file = File::create(path)?;
    file.set_len(client.size())?;

    let mut in_flight = VecDeque::new();
    let mut spare = vec![Vec::new(); DEPTH];
    let mut next = 0;
    loop {
        // A read takes a buffer along and brings it back, so that there are no more buffers than reads in flight.
        while next < client.size()
            && let Some(mut buffer) = spare.pop()
        {
            let length = LENGTH.min(client.size() - next);
            buffer.resize(length as usize, 0);
            in_flight.push_back((next, client.submit_read_into(next, buffer, Flags::empty())));
            next += length;
        }
        // The server may answer in any order; the file is written from its beginning to its end.
        let Some((offset, read)) = in_flight.pop_front() else { break };
        let (buffer, result) = read.await;
        result?;
        file.write_all_at(&buffer, offset)?;
        spare.push(buffer);
    }

    client.disconnect().await;
    println!("{} bytes of {uri} are in {path}", client.size());
    Ok(())
}
