//! What a request costs in allocations: nothing.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::AtomicUsize;

use nbd_support::counting::{Counting, count_this_thread};
use nbd_testkit::raw::Wire;
use nbd_tokio::export::ExportMap;
use nbd_tokio::{Server, ServerConfig};
use tokio::net::UnixStream;
use tokio::runtime::Builder;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn connect(exports: ExportMap, config: ServerConfig, counter: &'static AtomicUsize) -> Wire {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let server = Server::with_config(exports, config);
    std::thread::spawn(move || {
        // One thread does it all, so that its count is the whole.
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        count_this_thread(counter);
        runtime.block_on(async { server.serve_stream(UnixStream::from_std(ours).unwrap()).await })
    });
    Wire::from_unix(theirs)
}

nbd_support::allocation_suite!(connect);
