//! Disks in memory: what the server's process takes, gives back, and does when there is no more.

use nbd_interop::{MIB, assert_serves};
use nbd_testkit::cgroup::MemoryGroup;
use nbd_testkit::matrix;
use nbd_testkit::raw::{Errno, RawClient, Request};
use nbd_testkit::server::{NbdServe, Setup};

matrix! {
    tcp_and_unix: [],
    unix: [
        trimmed_memory_is_freed_whichever_client_trims_it,
        resident_memory_follows_scattered_trims,
        trimmed_memory_serves_writes_at_other_offsets,
        a_limited_address_space_is_no_space_for_clients,
        a_control_groups_limit_is_no_space_for_clients,
        scattered_changes_on_many_bitmaps_cost_bounded_memory,
    ],
}

/// Bytes of a write, far above what goes through the staging buffer.
const PIECE: u64 = 4 * MIB;

/// Bytes of the smallest write that takes memory of its own.
const PAGE: u64 = 16 << 10;

fn write(client: &mut RawClient, start: u64, end: u64) {
    let data = vec![7; PIECE as usize];
    for at in (start..end).step_by(PIECE as usize) {
        client.write(at, &data[..(end - at).min(PIECE) as usize]);
    }
}

fn trim(client: &mut RawClient, start: u64, end: u64) {
    client.call(&Request::trim(start, end - start)).ok();
}

#[track_caller]
fn assert_resident(server: &NbdServe, bound: u64, when: &str) {
    let resident = server.resident();
    assert!(resident <= bound, "{} of {} MiB {when}", resident / MIB, bound / MIB);
}

/// Every connection fills the disk and trims it, and stays.
fn trimmed_memory_is_freed_whichever_client_trims_it(setup: Setup) {
    const SIZE: u64 = 64 * MIB;
    let server = setup.serving("memory:64M");
    assert_serves(&server);
    let before = server.resident();
    let mut clients = Vec::new();
    for count in 1..=12 {
        let mut client = RawClient::go_structured(server.endpoint());
        write(&mut client, 0, SIZE);
        trim(&mut client, 0, SIZE);
        clients.push(client);
        // The frames that are kept, and for each connection the pages that it receives into, its buffers and stack.
        assert_resident(&server, before + 4 * MIB + count * 2 * MIB, "after a trim of everything");
    }
    for client in clients {
        client.finish();
    }
}

/// Half of the pages go, in an order that leaves no two neighbours.
fn resident_memory_follows_scattered_trims(setup: Setup) {
    const SIZE: u64 = 64 * MIB;
    let server = setup.serving("memory:64M");
    assert_serves(&server);
    let before = server.resident();
    let mut client = RawClient::go_structured(server.endpoint());
    write(&mut client, 0, SIZE);
    assert_resident(&server, before + SIZE + 8 * MIB, "when it is full");
    let trims: Vec<_> =
        (0..SIZE).step_by(2 * PAGE as usize).map(|at| Request::trim(at, PAGE)).collect();
    for some in trims.chunks(64) {
        for cookie in client.send_all(some) {
            client.reply_to(cookie).ok();
        }
    }
    assert_resident(&server, before + SIZE / 2 + 12 * MIB, "when half of the pages are left");
    client.finish();
}

/// A disk whose content moves is as large as its content.
fn trimmed_memory_serves_writes_at_other_offsets(setup: Setup) {
    const SIZE: u64 = 64 * MIB;
    let server = setup.serving("memory:4G");
    assert_serves(&server);
    let before = server.resident();
    server.forget_peak();
    for round in 0..4 {
        let mut client = RawClient::go_structured(server.endpoint());
        write(&mut client, 1000 * MIB * round, 1000 * MIB * round + SIZE);
        trim(&mut client, 1000 * MIB * round, 1000 * MIB * round + SIZE);
        client.finish();
    }
    let peak = server.peak_resident();
    assert!(peak <= before + SIZE + 16 * MIB, "{} MiB", peak / MIB);
}

/// Several disks are filled until no more goes in. Fails with ENOSPC, at the latest when `most` bytes are written.
fn fill(server: &NbdServe, exports: &[&str], most: u64) {
    let data = vec![7; MIB as usize];
    let mut written = 0;
    let mut clients = Vec::new();
    for name in exports {
        let mut client = RawClient::negotiate(server.endpoint());
        client.go(name, &[]).unwrap();
        let mut at = 0;
        let error = loop {
            let reply = client.call(&Request::write(at, &data));
            if let Some(error) = reply.error() {
                break error;
            }
            at += MIB;
            written += MIB;
            assert!(written < most, "{} MiB were taken", written / MIB);
        };
        assert_eq!(error, Errno::ENOSPC, "{name} after {} MiB", at / MIB);
        // Up to the last page, so that not even a thread's stack finds room.
        let pages = (at..at + MIB).step_by(PAGE as usize);
        let mut errors =
            pages.map(|at| client.call(&Request::write(at, &data[..PAGE as usize])).error());
        let error = errors.find(Option::is_some).flatten();
        assert!(error.is_none_or(|error| error == Errno::ENOSPC), "{name}: {error:?}");
        clients.push((client, at));
    }
    assert!(written >= most / 8, "{} MiB are all that was taken", written / MIB);
    // What is there can be read, changed and trimmed, by all who are connected; what is trimmed can be used.
    for (client, end) in &mut clients {
        if *end > 0 {
            assert_eq!(client.read(*end - MIB, MIB), data);
            client.write(0, &data);
        }
    }
    let (first, end) = &mut clients[0];
    trim(first, 0, *end);
    write(first, 0, (*end / 2).next_multiple_of(PIECE));
    for (client, _) in clients {
        client.finish();
    }
}

const THREE: [&str; 3] = ["a=memory:4G", "b=memory:4G", "c=memory:4G"];

/// Three exports share what `ulimit -v` leaves; none takes the server down.
fn a_limited_address_space_is_no_space_for_clients(setup: Setup) {
    let limited = setup.serve().prepared_by("ulimit -v 1000000");
    let server = limited.args(THREE).start();
    fill(&server, &["a", "b", "c"], 1000 * MIB);
    assert!(server.is_running());
}

/// The same with a control group, which kills what takes too much.
fn a_control_groups_limit_is_no_space_for_clients(setup: Setup) {
    let Some(group) = MemoryGroup::require(256 * MIB) else { return };
    let server = setup.serve().prepared_by(&group.enter()).args(THREE).start();
    fill(&server, &["a", "b", "c"], 256 * MIB);
    assert!(server.is_running());
    drop(server);
}

/// 64 bitmaps, each of which would have a chunk of bits for each change.
fn scattered_changes_on_many_bitmaps_cost_bounded_memory(setup: Setup) {
    let tracks = (0..64).flat_map(|bitmap| ["--track".to_owned(), format!("b{bitmap}")]);
    let server = setup.serve().args(tracks).arg("memory:16T").start();
    assert_serves(&server);
    let before = server.resident();
    let mut client = RawClient::go_structured(server.endpoint());
    let trims: Vec<_> = (0..8192).map(|at| Request::trim(at << 31, 512)).collect();
    for some in trims.chunks(64) {
        for cookie in client.send_all(some) {
            client.reply_to(cookie).ok();
        }
    }
    assert_resident(&server, before + 64 * MIB + 16 * MIB, "with 64 bitmaps");
    client.finish();
}
