//! What all connections of a server hold together. One test, since it measures the whole process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nbd_blocking::ServerConfig;
use nbd_engine::export::{CanWrite, Export, ExportMap, Result};
use nbd_suite::Served;
use nbd_testkit::SOON;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Mode, RawClient, Request, unless_late};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// A disk without memory, which counts its work.
#[derive(Default)]
struct Disk {
    inline: bool,
    work: AtomicUsize,
}

impl Export for Disk {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        self.work.fetch_add(1, Ordering::Relaxed);
        buffer.fill(7);
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        self.inline
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }
}

impl CanWrite for Disk {
    fn write(&self, _data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        self.work.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn serve(inline: bool, config: ServerConfig) -> (Served, Arc<Disk>) {
    let disk = Arc::new(Disk { inline, ..Disk::default() });
    let exports = ExportMap::new().with("", Arc::clone(&disk)).unwrap();
    (Served::start(exports, config), disk)
}

/// Waits until the process holds what it holds.
fn wait_for_rest() {
    let mut earlier = 0;
    wait_until("the server comes to rest", SOON, || {
        std::thread::sleep(Duration::from_millis(100));
        let now = ALLOCATOR.current_usage();
        core::mem::replace(&mut earlier, now) == now
    });
}

#[test]
fn a_server_holds_no_more_than_its_bound_and_idle_connections_next_to_nothing() {
    for inline in [true, false] {
        many_that_do_not_read_are_held_within_the_bound(inline);
        idle_connections_give_their_buffers_back(inline);
    }
}

/// Each client asks for as much as one may and reads nothing, or sends most of a large payload: all of them together
/// are held within the bound, and one that behaves is served meanwhile.
fn many_that_do_not_read_are_held_within_the_bound(inline: bool) {
    const CLIENTS: usize = 30;
    const BOUND: usize = 96 * MIB;
    /// What a connection holds besides: its thread's buffers, headers, slots; and the client's side of it.
    const EACH: usize = 400 << 10;

    // Half of it is what the one that behaves may stand still on a busy machine: the server looks so often.
    let crowded = Duration::from_secs(5);
    // Who moves nothing while others wait has this part of it.
    let stuck = crowded / 5;
    let config = ServerConfig::new()
        .with_max_connections(CLIENTS + 2)
        .with_max_buffer_memory(Some(BOUND as u64))
        .with_crowded_timeout(crowded);
    let (served, _disk) = serve(inline, config);
    let mut working = RawClient::go_in(Mode::Structured, served.endpoint());
    let held = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let payload = Request { length: 32 << 20, ..Request::write(0, &[1; 100_000]) };
    let clients: Vec<_> = (0..CLIENTS)
        .map(|index| {
            // Some may be given up before they have sent all of it.
            unless_late(stuck, || {
                let mut client = RawClient::go_in(Mode::Simple, served.endpoint());
                if index % 3 == 0 {
                    client.wire().send(&payload.encode(Mode::Simple, 1));
                } else {
                    client.send_all(&[Request::read(0, 32 << 20), Request::read(0, 32 << 20)]);
                }
                client
            })
        })
        .collect();
    // Small requests don't wait for anybody.
    for round in 0..50 {
        working.read(round * 4096, 4096);
        working.write(round * 4096, &[1; 4096]);
    }
    // Large ones wait until those that are in the way have been given up.
    working.read(0, 32 << 20);
    working.write(0, &vec![1; 32 << 20]);
    let grown = ALLOCATOR.peak_usage() - held;
    // The working client holds 32 MiB and its reply itself.
    let bound = BOUND + CLIENTS * EACH + 3 * (32 << 20);
    assert!(grown < bound, "inline {inline}: {} MiB of {}", grown / MIB, bound / MIB);
    drop(clients);
    working.finish();
}

/// Clients that behaved, and are idle now, hold next to nothing.
fn idle_connections_give_their_buffers_back(inline: bool) {
    const CLIENTS: usize = 8;
    let config = ServerConfig::new().with_crowded_timeout(Duration::from_millis(200));
    let (served, disk) = serve(inline, config);
    let before = ALLOCATOR.current_usage();
    let mut clients: Vec<_> =
        (0..CLIENTS).map(|_| RawClient::go_in(Mode::Structured, served.endpoint())).collect();
    for client in &mut clients {
        let reads: Vec<_> = (0..64).map(|index| Request::read(index << 20, 16 << 10)).collect();
        client.send_all(&reads);
        client.drain();
        client.send_all(&vec![Request::read(0, MIB as u64); 16]);
        client.drain();
        client.send_all(&vec![Request::write(0, &vec![1; 300_000]); 4]);
        client.drain();
    }
    assert!(disk.work.load(Ordering::Relaxed) >= CLIENTS * (64 + 16 + 4));
    wait_until("idle connections give their buffers back", SOON, || {
        std::thread::sleep(Duration::from_millis(50));
        ALLOCATOR.current_usage().saturating_sub(before) < CLIENTS * (256 << 10)
    });
    wait_for_rest();
    for client in &mut clients {
        client.read(0, MIB as u64);
    }
    clients.into_iter().for_each(RawClient::finish);
}
