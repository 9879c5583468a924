//! A disk in memory for whoever connects, with a thread for each client.
//!
//! ```text
//! cargo run --example memory_server [ADDRESS:PORT or SOCKET PATH]
//! ```
//!
//! It prints its URI; try `nbdinfo URI` or `qemu-io -f raw URI -c 'write -P 7 0 64k'`. Ctrl-C ends it.

use std::error::Error;

use nbd_blocking::Server;
use nbd_blocking::export::{ExportMap, Memory};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> Result<(), Box<dyn Error>> {
    // Sparse: pages are allocated when they are written and freed when they are trimmed. The export without a name is
    // what clients get that ask for none.
    let exports = ExportMap::new().with("", Memory::new(1 << 30)?)?;
    let server = Server::new(exports);

    // Port 0 takes a free one. A Unix socket's path has a slash in it here.
    let place = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let listening =
        if place.contains('/') { server.listen_unix(place)? } else { server.listen_tcp(&place)? };
    println!("{:#}", listening.local_addr().uri("")?);

    // Clients are served already, on threads of the server's. This one is free to wait for the end.
    Signals::new([SIGINT, SIGTERM])?.forever().next();
    server.shut_down();
    server.wait(); // Requests in flight are answered; later ones get ESHUTDOWN.
    listening.join(); // The socket is closed, and its path removed.
    Ok(())
}
