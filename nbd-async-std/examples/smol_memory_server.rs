//! A disk in memory for whoever connects, on smol: what differs from async-std is one path.
//!
//! ```text
//! cargo run --example smol_memory_server [ADDRESS:PORT or SOCKET PATH]
//! ```
//!
//! It prints its URI; try `nbdinfo URI` or `qemu-io -f raw URI -c 'write -P 7 0 64k'`.

use std::error::Error;

use nbd_async_std::export::{ExportMap, Memory};
use nbd_async_std::smol::Server;

fn main() -> Result<(), Box<dyn Error>> {
    let exports = ExportMap::new().with("", Memory::new(1 << 30)?)?;
    let place = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    smol::block_on(async {
        let server = Server::new(exports);
        let listening = if place.contains('/') {
            server.listen_unix(place)?
        } else {
            server.listen_tcp(&place).await?
        };
        println!("{:#}", listening.local_addr().uri("")?);
        server.wait().await; // Nobody calls `shut_down` here: until the process is killed.
        Ok(())
    })
}
