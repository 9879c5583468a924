//! The order of replies, and what waits for what.

use std::sync::Arc;

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::{Ending, Metrics, ServerConfig};
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Cmd, Mode, RawClient, Request};
use nbd_testkit::{Pattern, assert_same_bytes, cases};

use crate::exports::{Disk, Gate, Way};
use crate::{SOON, Server, Setup};

/// A server of a disk behind a closed gate, whose first MiB holds a pattern.
#[track_caller]
fn serve_gated(setup: &Setup, way: Way) -> (Server, Arc<Disk>) {
    let disk = Disk::new(1 << 20);
    let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
    let server = setup.serve_with(exports, ServerConfig::default());
    let mut client = server.client(Mode::Simple);
    client.write(0, &PATTERN.bytes(0, 1 << 20));
    client.finish();
    disk.gate.close();
    (server, disk)
}

const PATTERN: Pattern = Pattern(9);

#[track_caller]
fn check(data: &[u8], offset: u64) {
    assert_same_bytes(data, &PATTERN.bytes(offset, data.len()), "what was read");
}

/// Replies leave as the requests are done, in whatever order that is.
pub fn replies_come_in_any_order(setup: Setup) {
    for way in Way::CONCURRENT {
        let (server, disk) = serve_gated(&setup, way);
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let mut client = server.client(mode);
            let offsets: Vec<u64> = (0..8).map(|index| index * 4096).collect();
            let requests: Vec<_> = offsets.iter().map(|at| Request::read(*at, 512)).collect();
            let cookies = client.send_all(&requests);
            disk.gate.wait_for(offsets.len());
            for index in [7, 0, 3, 4, 1, 6, 5, 2] {
                disk.gate.release(offsets[index]);
                let reply = client.next_reply().expect("a reply");
                assert_eq!(reply.cookie, cookies[index], "no other request is done");
                check(&reply.data(), offsets[index]);
            }
            client.finish();
        }
        server.stop();
    }
}

/// While one request waits, others of the same connection are received, carried out and answered, large ones, too.
pub fn a_slow_request_holds_up_no_other(setup: Setup) {
    for way in Way::CONCURRENT {
        let (server, disk) = serve_gated(&setup, way);
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let mut client = server.client(mode);
            let slow = client.send(&Request::read(0, 1000));
            let slow_write = client.send(&Request::write(4096, &PATTERN.bytes(4096, 1000)));
            disk.gate.wait_for(2);
            for round in 0..20 {
                let offset = Gate::END + round * 10_000;
                check(&client.read(offset, 50_000), offset);
                client.write(offset, &PATTERN.bytes(offset, 100_000));
            }
            client.call(&Request::flush()).ok();
            disk.gate.release(4096);
            client.reply_to(slow_write).ok();
            disk.gate.release(0);
            check(&client.reply_to(slow).data(), 0);
            client.finish();
        }
        server.stop();
    }
}

/// While all requests of one export wait, another export, of any kind, is as quick as ever.
pub fn a_slow_export_holds_up_no_other(setup: Setup) {
    for way in Way::CONCURRENT {
        let slow = Disk::new(1 << 20);
        let exports = ExportMap::new()
            .with("slow", way.of(&slow))
            .expect("a short name")
            .with("inline", Memory::new(1 << 20).expect("it is small"))
            .expect("a short name")
            .with("workers", Way::Workers.of(&Disk::new(1 << 20)))
            .expect("a short name")
            .with("async", Way::Async.of(&Disk::new(1 << 20)))
            .expect("a short name");
        let server = setup.serve_with(exports, ServerConfig::default());
        slow.gate.close();
        let enter = |name| {
            let mut client = RawClient::negotiate(server.endpoint());
            client.go(name, &[]).expect("it is there");
            client
        };
        // Fewer than there are workers.
        let mut waiting: Vec<_> = (0..8).map(|_| enter("slow")).collect();
        for (index, client) in waiting.iter_mut().enumerate() {
            client.send(&Request::read(index as u64 * 512, 512));
        }
        slow.gate.wait_for(8);
        for name in ["inline", "workers", "async"] {
            let mut client = enter(name);
            for round in 0..10 {
                client.write(round * 1000, &PATTERN.bytes(0, 1000));
                client.read(round * 500, 100_000);
            }
            client.finish();
        }
        slow.gate.open();
        for mut client in waiting {
            client.drain().remove(0).ok();
            client.finish();
        }
        server.stop();
    }
}

/// A disconnect is received, and the replies to earlier requests still come before the end.
pub fn a_disconnect_waits_for_requests_in_flight(setup: Setup) {
    for_a_client_that_leaves(setup, |client| {
        client.send(&Request::new(Cmd::DISC, 0, 0));
    });
}

/// The end of the client's stream is received, and the replies to earlier requests still come before the end.
pub fn a_half_close_waits_for_requests_in_flight(setup: Setup) {
    for_a_client_that_leaves(setup, |client| client.wire().half_close());
}

fn for_a_client_that_leaves(setup: Setup, leave: impl Fn(&mut RawClient)) {
    for way in Way::CONCURRENT {
        let (server, disk) = serve_gated(&setup, way);
        for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
            let mut client = server.client(mode);
            let read = client.send(&Request::read(512, 1000));
            let data = PATTERN.bytes(4096, 70_000);
            let write = client.send(&Request::write(4096, &data));
            leave(&mut client);
            disk.gate.wait_for(2);
            disk.gate.release(4096);
            client.reply_to(write).ok();
            disk.gate.release(512);
            check(&client.reply_to(read).data(), 512);
            client.wire().expect_eof();
        }
        server.stop();
    }
}

/// A client that sends requests and a disconnect, and closes its stream without a look at the replies, has all carried out:
/// those, too, that had not begun, or were not even received, when the first reply could not be sent.
pub fn a_disconnect_has_all_carried_out_for_a_client_that_reads_no_replies(setup: Setup) {
    for way in Way::CONCURRENT {
        cases(12, |random| {
            let disk = Disk::new(Gate::END);
            disk.gate.close();
            let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
            let metrics = Metrics::new();
            let config = ServerConfig::default()
                .with_metrics(&metrics)
                .with_max_workers(1 + random.below(8) as usize);
            let server = setup.serve_with(exports, config);
            let mode = random.of(&[Mode::Simple, Mode::Structured, Mode::Extended]);
            let mut expected = vec![0; Gate::END as usize];
            // What is on its way when the client closes its stream fits into the buffers of sockets.
            let (mut requests, mut offsets, mut end) = (Vec::new(), Vec::new(), 0);
            let longest = 1 + random.below(2000);
            // What the server takes at once; behind more it does not look for a disconnect.
            while requests.len() < 127 {
                let offset = end + random.below(8);
                let length = 1 + random.below(longest);
                end = offset + length;
                if end > Gate::END {
                    break;
                }
                if random.one_in(8) {
                    requests.push(Request::read(offset, length));
                } else {
                    let data = PATTERN.bytes(offset, length as usize);
                    expected[offset as usize..end as usize].copy_from_slice(&data);
                    requests.push(Request::write(offset, &data));
                }
                offsets.push(offset);
            }
            requests.push(Request::new(Cmd::DISC, 0, 0));
            let mut client = server.client(mode);
            let pieces = 1 + random.below(4) as usize;
            for piece in requests.chunks(requests.len().div_ceil(pieces)) {
                client.send_all(piece);
            }
            disk.gate.wait_for_at_least(1);
            drop(client);
            for _ in 0..random.below(20) {
                disk.gate.release(random.of(&offsets));
            }
            disk.gate.open();
            server.wait_for_connections(0);
            let mut written = vec![0; expected.len()];
            nbd_engine::export::Export::read(&disk.memory, &mut written, 0).expect("memory");
            assert_same_bytes(&written, &expected, "what was written");
            let ended = || metrics.snapshot().connections.ended;
            let count = |(ending, count)| count * u64::from(ending == Ending::Disconnected);
            wait_until("the client has left in order", SOON, || {
                ended().into_iter().map(count).sum::<u64>() == 1
            });
            server.stop();
        });
    }
}
