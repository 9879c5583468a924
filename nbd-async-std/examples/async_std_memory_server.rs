//! A disk in memory for whoever connects, with a task for each client.
//!
//! ```text
//! cargo run --features async-std --example async_std_memory_server [ADDRESS:PORT or SOCKET PATH]
//! ```
//!
//! It prints its URI; try `nbdinfo URI` or `qemu-io -f raw URI -c 'write -P 7 0 64k'`. Ctrl-C ends it.

use std::error::Error;

use nbd_async_std::Server;
use nbd_async_std::export::{ExportMap, Memory};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[async_std::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Sparse: pages are allocated when they are written and freed when they are trimmed. The export without a name is
    // what clients get that ask for none.
    let exports = ExportMap::new().with("", Memory::new(1 << 30)?)?;
    let server = Server::new(exports);

    // Port 0 takes a free one. A Unix socket's path has a slash in it here.
    let place = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listening = if place.contains('/') {
        server.listen_unix(place)?
    } else {
        server.listen_tcp(&place).await?
    };
    println!("{:#}", listening.local_addr().uri("")?);

    // Clients are served already, by tasks of the server's. async-std has no signals, but a server can be told to shut
    // down from any thread.
    let (stop, mut signals) = (server.clone(), Signals::new([SIGINT, SIGTERM])?);
    std::thread::spawn(move || {
        signals.forever().next();
        stop.shut_down();
    });
    server.wait().await; // Requests in flight are answered; later ones get ESHUTDOWN.
    listening.join().await; // The socket is closed, and its path removed.
    Ok(())
}
