//! Clients that don't go on. That deadlines are not too early is shown by what is still alive when something else has
//! ended by one.

use std::time::Duration;

use nbd_engine::export::{Export, ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_testkit::raw::{Cmd, Mode, RawClient, Request, in_time};

use crate::exports::{Disk, Gate, Way};
use crate::{Server, Setup};

/// Soon for a deadline, and long for a request that is carried out at once.
const SHORT: Duration = Duration::from_millis(400);

const LONG: Duration = Duration::from_secs(1000);

fn memory() -> ExportMap {
    let disk = Memory::new(64 << 20).expect("it is small");
    ExportMap::new().with("", disk).expect("a short name")
}

/// The same, full of data.
fn full() -> ExportMap {
    let disk = Memory::new(64 << 20).expect("it is small");
    let writes = disk.can_write().expect("it is not read-only");
    writes.write(&vec![1; 16 << 20], 0, false).expect("there is memory");
    ExportMap::new().with("", disk).expect("a short name")
}

/// A client whose request ends after so many bytes.
fn begun(server: &Server, request: &Request, bytes: usize) -> RawClient {
    in_time(SHORT, || {
        let mut client = server.client(Mode::Simple);
        client.wire().send(&request.encode(Mode::Simple, 1)[..bytes]);
        client
    })
}

/// A header or a payload that the client does not finish is given up, whether it is to be dropped or not; clients that
/// send nothing, or wait for a slow disk, stay.
pub fn requests_that_are_never_finished_are_given_up(setup: Setup) {
    let config = ServerConfig::new().with_stall_timeout(SHORT).with_crowded_timeout(LONG);
    let disk = Disk::new(1 << 20);
    disk.gate.close();
    let exports = memory().with("slow", Way::Workers.of(&disk)).expect("a short name");
    let server = setup.serve_with(exports, config);
    let mut quiet = server.client(Mode::Simple);
    let mut waiting = RawClient::negotiate(server.endpoint());
    waiting.go("slow", &[]).expect("it is there");
    let waits = waiting.send(&Request::read(0, 512));
    disk.gate.wait_for(1);

    let write = Request::write(0, &[1; 100_000]);
    let refused = Request::write(1 << 40, &[1; 100_000]);
    for (request, bytes) in [(&write, 27), (&write, 28), (&write, 5000), (&write, 90_000)]
        .into_iter()
        .chain([(&refused, 28), (&refused, 50_000)])
    {
        begun(&server, request, bytes).wire().expect_eof();
    }

    quiet.read(0, 512);
    disk.gate.open();
    waiting.reply_to(waits).ok();
    quiet.finish();
    waiting.finish();
    server.stop();
}

/// Replies that nobody takes are given up.
pub fn replies_that_are_never_received_are_given_up(setup: Setup) {
    let config = ServerConfig::new().with_stall_timeout(SHORT).with_crowded_timeout(LONG);
    let server = setup.serve_with(full(), config);
    let mut quiet = server.client(Mode::Simple);
    let mut client = server.client(Mode::Simple);
    client.send_all(&[Request::read(0, 16 << 20), Request::read(0, 16 << 20)]);
    server.wait_for_connections(1);
    quiet.read(0, 512);
    quiet.finish();
    drop(client);
    server.stop();
}

/// A client that has disconnected, or closed its side, has less time to take what it is owed.
pub fn clients_that_have_disconnected_are_given_up_sooner(setup: Setup) {
    let config = ServerConfig::new().with_stall_timeout(LONG).with_crowded_timeout(SHORT);
    let server = setup.serve_with(full(), config);
    let mut unread = server.client(Mode::Simple);
    let reads = [Request::read(0, 16 << 20), Request::read(0, 16 << 20)];
    unread.send_all(&reads);
    let mut disconnected = server.client(Mode::Simple);
    disconnected.send_all(&reads);
    disconnected.send(&Request::new(Cmd::DISC, 0, 0));
    let mut closed = server.client(Mode::Simple);
    closed.send_all(&reads);
    closed.wire().shutdown_write();
    server.wait_for_connections(1);
    unread.drain().into_iter().for_each(|reply| drop(reply.ok()));
    unread.finish();
    drop((disconnected, closed));
    server.stop();
}

/// An idle client gives its place to one that found none, and keeps it as long as nobody wants it.
pub fn an_idle_client_makes_room_for_another(setup: Setup) {
    let config = ServerConfig::new()
        .with_max_connections(2)
        .with_admission_timeout(LONG)
        .with_crowded_timeout(SHORT)
        .with_idle_timeout(Some(SHORT));
    let disk = Disk::new(1 << 20);
    disk.gate.close();
    let exports = ExportMap::new().with("", Way::Workers.of(&disk)).expect("a short name");
    let server = setup.serve_with(exports, config);
    let mut idle = server.client(Mode::Simple);
    let mut busy = server.client(Mode::Simple);
    let read = busy.send(&Request::read(0, 512));
    disk.gate.wait_for(1);
    // It has been idle for longer than that once a client in its place has been given up.
    let mut third = RawClient::connect(server.endpoint());
    third.read_greeting();
    idle.wire().expect_eof();
    drop(third);
    server.wait_for_connections(1);
    // Nobody wants a place: these two stay, however long they are idle.
    let mut fourth = server.client(Mode::Simple);
    disk.gate.open();
    busy.reply_to(read).ok();
    fourth.read(Gate::END, 512);
    fourth.finish();
    busy.finish();
    server.stop();
}

/// Clients of a disk that hangs, as many as there are and however many requests they have sent, hold up nobody else's
/// requests, neither while they are there nor when they are gone.
pub fn a_hanging_disk_holds_up_no_other_export(setup: Setup) {
    for way in [Way::Workers, Way::Async] {
        let hanging = Disk::new(1 << 20);
        hanging.gate.close();
        let exports = ExportMap::new()
            .with("hanging", way.of(&hanging))
            .expect("a short name")
            .with("", Way::Workers.of(&Disk::new(1 << 20)))
            .expect("a short name");
        let server = setup.serve_with(exports, ServerConfig::default());
        let mut greedy: Vec<_> = (0..4)
            .map(|_| {
                let mut client = RawClient::negotiate(server.endpoint());
                client.go("hanging", &[]).expect("it is there");
                client
            })
            .collect();
        for (client, start) in greedy.iter_mut().zip(0_u64..) {
            let read = |index: u64| Request::read((start * 16 + index) * 512, 512);
            client.send_all(&(0..16).map(read).collect::<Vec<_>>());
        }
        // That is all threads that there are, but for those that are kept for others.
        hanging.gate.wait_for_at_least(16);
        let works = || {
            let mut other = server.client(Mode::Simple);
            other.write(0, &[1; 4096]);
            other.call(&Request::flush()).ok();
            other.read(0, 100_000);
            other.finish();
        };
        works();
        drop(greedy);
        works();
        hanging.gate.open();
        server.stop();
    }
}
