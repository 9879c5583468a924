//! A file or a block device for whoever connects.
//!
//! ```text
//! truncate -s 1G disk.img
//! cargo run --features async-std --example async_std_file_server disk.img [ADDRESS:PORT or SOCKET PATH]
//! ```

use std::error::Error;
use std::time::Duration;

use nbd_async_std::export::{ExportEntry, ExportMap, File};
use nbd_async_std::{Server, ServerConfig};

#[async_std::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which file? async_std_file_server FILE [PLACE]")?;
    let place = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());

    // Holes are reported to clients, trimmed ranges become holes, a flush is an fdatasync. What the page cache has is
    // read on the connection's own task; the rest is done by threads beside it, and no thread of async-std is held up.
    let file = File::open(&path)?;
    // The same disk under two names, the second of which can't be written.
    let viewed = File::options().read_only(true).open(&path)?;
    let disk = ExportEntry::new("disk", file)?.with_description(format!("{path}, to use"))?;
    let view = ExportEntry::new("view", viewed)?.with_description(format!("{path}, to look at"))?;
    let exports = ExportMap::new().with_entry(disk).with_entry(view);

    // All bounds and deadlines have defaults. These suit a server that strangers can reach.
    let config =
        ServerConfig::new().with_max_connections(16).with_handshake_timeout(Duration::from_secs(5));
    let server = Server::with_config(exports, config);

    let listening = if place.contains('/') {
        server.listen_unix(place)?
    } else {
        server.listen_tcp(&place).await?
    };
    for name in ["disk", "view"] {
        println!("{:#}", listening.local_addr().uri(name)?);
    }
    server.wait().await; // Nobody calls `shut_down` here: until the process is killed.
    Ok(())
}
