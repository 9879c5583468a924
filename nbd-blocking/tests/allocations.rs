//! What a request costs in allocations: nothing.

use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;

use nbd_blocking::export::ExportMap;
use nbd_blocking::{Server, ServerConfig};
use nbd_support::counting::{Counting, count_this_thread};
use nbd_testkit::raw::Wire;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn connect(exports: ExportMap, config: ServerConfig, counter: &'static AtomicUsize) -> Wire {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Server::with_config(exports, config);
    std::thread::spawn(move || {
        count_this_thread(counter);
        server.serve_unix(ours)
    });
    Wire::from_unix(theirs)
}

nbd_support::allocation_suite!(connect);
