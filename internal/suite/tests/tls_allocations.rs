//! What TLS costs in allocations: one for each record, received or sent, which rustls makes and nobody can spare it. Nothing
//! else, once everything has its size.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use nbd_blocking::Server;
use nbd_blocking::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_suite::require_tls;
use nbd_support::counting::{Counting, count_this_thread};
use nbd_testkit::raw::{Opt, RawClient, Request, Wire, handshake, trusting};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Plaintext of a record.
const RECORD: u64 = 16 << 10;

/// A client in transmission, and the allocations of the thread that serves it.
fn connected() -> (RawClient, &'static AtomicUsize) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = require_tls(ServerConfig::default(), folder.path());
    let disk = Memory::new(64 << 20).expect("it is small");
    let exports = ExportMap::new().with("", disk).expect("a short name");
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    let server = Server::with_config(exports, config);
    let counter: &'static AtomicUsize = Box::leak(Box::default());
    std::thread::spawn(move || {
        count_this_thread(counter);
        server.serve_unix(ours)
    });
    let mut client = RawClient::over(Wire::from_unix(theirs));
    client.read_greeting();
    client.send_client_flags(handshake::FIXED_NEWSTYLE);
    client.option(Opt::STARTTLS, &[]).expect("it is offered");
    let config = trusting(&folder.path().join("ca-cert.pem"));
    client.wire().start_tls(config, "localhost").expect("a handshake");
    client.go("", &[]).expect("it is there");
    (client, counter)
}

/// Repeats a request of so many records, until a run of it costs no more allocations than that.
#[track_caller]
fn settles(what: &str, counter: &AtomicUsize, records: u64, mut request: impl FnMut()) {
    const RUNS: usize = 20;
    const REQUESTS: u64 = 20;
    let mut found = 0;
    for _ in 0..RUNS {
        let before = counter.load(Ordering::Relaxed);
        (0..REQUESTS).for_each(|_| request());
        found = counter.load(Ordering::Relaxed) - before;
        if found as u64 <= records * REQUESTS {
            return;
        }
    }
    panic!("{what}: {found} allocations for {REQUESTS} requests of {records} records");
}

#[test]
fn a_record_costs_one_allocation_and_nothing_else_does() {
    let (mut client, counter) = connected();
    for length in [512, 4096, RECORD, 1 << 20] {
        let data = vec![7; length as usize];
        // The header goes into a record of its own before those that are full.
        let data_records = 1 + length.div_ceil(RECORD);
        settles("a write", counter, data_records + 1, || client.write(0, &data));
        settles("a read", counter, 1 + data_records, || drop(client.read(0, length)));
    }
    settles("a flush", counter, 2, || {
        let cookie = client.send(&Request::flush());
        client.reply_to(cookie).ok();
    });
    client.finish();
}
