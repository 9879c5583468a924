//! What a server counts is what its clients saw.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nbd_engine::export::{ExportError, ExportMap, Memory};
use nbd_engine::metrics::{ErrorKind, RequestKind};
use nbd_engine::proto::wire::ErrorCode;
use nbd_engine::server::{Ending, Metrics, MetricsSnapshot, RequestMetrics, ServerConfig};
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Cmd, Errno, Mode, RawClient, Request, cmd_flag};
use nbd_testkit::{Random, cases};

use crate::exports::{Disk, Scripted, Way};
use crate::{SOON, Setup};

/// What clients saw of the requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    requests: u64,
    /// Those that reach the export.
    valid: u64,
    bytes: u64,
    errors: BTreeMap<ErrorKind, u64>,
}

type Tally = BTreeMap<RequestKind, Seen>;

const fn error_kind(error: Errno) -> ErrorKind {
    match error {
        Errno::EPERM => ErrorKind::Eperm,
        Errno::EIO => ErrorKind::Eio,
        Errno::ENOMEM => ErrorKind::Enomem,
        Errno::EINVAL => ErrorKind::Einval,
        Errno::ENOSPC => ErrorKind::Enospc,
        Errno::EOVERFLOW => ErrorKind::Eoverflow,
        Errno::ENOTSUP => ErrorKind::Enotsup,
        Errno::ESHUTDOWN => ErrorKind::Eshutdown,
        _ => ErrorKind::Other,
    }
}

/// A random request: its kind, whether it is valid, its length, and its bytes.
fn request(random: &mut Random, extents: bool) -> (RequestKind, bool, u64, Request) {
    const END: u64 = Scripted::SIZE;
    let valid = !random.one_in(4);
    let longest = if random.one_in(8) { 128 << 10 } else { 9000 };
    let empty = random.one_in(12);
    let length = if empty { 0 } else { 1 + random.below(longest) };
    let offset = if valid { random.below(END - length) } else { END - length + 1 };
    let kinds = if extents { 8 } else { 7 };
    let reaches = valid && !empty;
    match random.below(kinds) {
        0 | 1 => (RequestKind::Read, reaches, length, Request::read(offset, length)),
        2 => {
            let payload = vec![7; length as usize];
            (RequestKind::Write, reaches, length, Request::write(offset, &payload))
        }
        3 => (RequestKind::Flush, true, 0, Request::flush()),
        4 => (RequestKind::Trim, reaches, length, Request::trim(offset, length)),
        5 => {
            let fast = if random.one_in(3) { cmd_flag::FAST_ZERO } else { 0 };
            let request = Request::write_zeroes(offset, length).flags(fast);
            (RequestKind::WriteZeroes, reaches, length, request)
        }
        6 => {
            let unknown = Cmd(20 + random.below(60_000) as u16);
            (RequestKind::Unknown, false, 0, Request::new(unknown, offset, length))
        }
        _ => (RequestKind::BlockStatus, reaches, length, Request::block_status(offset, length)),
    }
}

/// Sends random requests, several at a time, and notes what becomes of them.
fn load(client: &mut RawClient, random: &mut Random, tally: &mut Tally) {
    let extents = client.mode() != Mode::Simple && !client.contexts().is_empty();
    for _ in 0..4 + random.below(8) {
        let requests: Vec<_> =
            (0..1 + random.below(24)).map(|_| request(random, extents)).collect();
        let sent: Vec<_> = requests.iter().map(|(.., request)| request.clone()).collect();
        let cookies = client.send_all(&sent);
        for ((kind, valid, length, _), cookie) in requests.into_iter().zip(cookies) {
            let reply = client.reply_to(cookie);
            let seen = tally.entry(kind).or_default();
            seen.requests += 1;
            seen.valid += u64::from(valid);
            match reply.error() {
                None => seen.bytes += length,
                Some(error) => *seen.errors.entry(error_kind(error)).or_default() += 1,
            }
        }
    }
}

fn of_metrics(metrics: &RequestMetrics) -> Seen {
    Seen {
        requests: metrics.requests,
        valid: metrics.latencies.count(),
        bytes: metrics.bytes,
        errors: metrics.errors.clone(),
    }
}

/// Fails if any count of the later one is below that of the earlier one.
#[track_caller]
fn assert_grown(earlier: &MetricsSnapshot, later: &MetricsSnapshot) {
    let (a, b) = (&earlier.connections, &later.connections);
    assert!(a.accepted <= b.accepted && a.refused <= b.refused);
    assert!(a.ended.iter().all(|(ending, count)| *count <= b.ended[ending]));
    assert!(b.ended.values().sum::<u64>() + b.current == b.accepted);
    assert!(earlier.received_bytes <= later.received_bytes, "received");
    assert!(earlier.sent_bytes <= later.sent_bytes, "sent");
    assert!(earlier.tls_handshakes <= later.tls_handshakes);
    for (name, export) in &earlier.exports {
        for (kind, a) in &export.requests {
            let b = &later.exports[name].requests[kind];
            assert!(a.requests <= b.requests && a.bytes <= b.bytes, "{kind:?}: {a:?} {b:?}");
            assert!(a.errors.iter().all(|(error, count)| *count <= b.errors[error]), "{kind:?}");
            let mut buckets = a.latencies.cumulative().zip(b.latencies.cumulative());
            assert!(buckets.all(|((_, a), (_, b))| a <= b), "{kind:?}");
            assert!(b.latencies.count() <= b.requests, "{kind:?}: {b:?}");
        }
    }
}

/// A disk with errors of all kinds, by the number of the call.
fn failing(way: Way, every: u64) -> ExportMap {
    let calls = AtomicU64::new(0);
    let disk = Scripted::new(way).doing(move |_| {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        let code = match (call % every, call / every % 6) {
            (1.., _) => return Ok(()),
            (_, 0) => ErrorCode::EIO,
            (_, 1) => ErrorCode::ENOSPC,
            (_, 2) => ErrorCode::ENOMEM,
            (_, 3) => ErrorCode::EOVERFLOW,
            (_, 4) => ErrorCode::ENOTSUP,
            _ => ErrorCode(4711),
        };
        Err(ExportError::new(code, "as the scenario says"))
    });
    disk.share().1
}

/// Random requests, valid and invalid ones, on an export that fails now and then, by clients that come and go in all
/// modes: in the end the server has counted what they saw, and meanwhile no count goes down.
pub fn what_is_counted_is_what_clients_saw(setup: Setup) {
    cases(1, |random| {
        for way in Scripted::WAYS {
            let metrics = Metrics::new();
            let config = ServerConfig::default().with_metrics(&metrics);
            let server = setup.serve_with(failing(way, 5 + random.below(20)), config);
            let done = Arc::new(AtomicBool::new(false));
            let scraper = {
                let (metrics, done) = (metrics.clone(), Arc::clone(&done));
                std::thread::spawn(move || {
                    let mut earlier = metrics.snapshot();
                    while !done.load(Ordering::Relaxed) {
                        let later = metrics.snapshot();
                        assert_grown(&earlier, &later);
                        earlier = later;
                        std::thread::yield_now();
                    }
                    earlier
                })
            };
            let (mut tally, mut finished, mut hung_up) = (Tally::new(), 0, 0);
            for _ in 0..2 {
                let mut clients = [Mode::Simple, Mode::Structured, Mode::Extended]
                    .map(|mode| server.client(mode));
                for client in &mut clients {
                    load(client, random, &mut tally);
                }
                for client in clients {
                    if random.one_in(2) {
                        // Some errors of the export are not those that the specification suggests.
                        let _remarks = client.leave();
                        finished += 1;
                    } else {
                        drop(client);
                        hung_up += 1;
                    }
                }
            }
            server.stop();
            done.store(true, Ordering::Relaxed);
            let during = scraper.join().expect("no count went down");
            let snapshot = metrics.snapshot();
            assert_grown(&during, &snapshot);

            let export = &snapshot.exports[""];
            let counted: Tally =
                export.requests.iter().map(|(kind, it)| (*kind, of_metrics(it))).collect();
            assert_eq!(counted, tally, "{way:?}");
            assert!(export.requests.values().all(|it| it.in_flight == 0));
            assert_eq!((export.connections, snapshot.connections.current), (0, 0));
            assert_eq!(snapshot.connections.ended[&Ending::Disconnected], finished);
            // A stream of TLS that ends without a word was cut off.
            let encrypted = setup.transport() == crate::Transport::Tls;
            let cut = if encrypted { Ending::Transport } else { Ending::HungUp };
            assert_eq!(snapshot.connections.ended[&cut], hung_up);
            let written = tally.get(&RequestKind::Write).map_or(0, |seen| seen.bytes);
            let read = tally.get(&RequestKind::Read).map_or(0, |seen| seen.bytes);
            assert!(snapshot.received_bytes > written && snapshot.sent_bytes > read);
            assert_eq!(snapshot.tls_handshakes, if encrypted { 6 } else { 0 });
            assert!(metrics.connections().is_empty());
        }
    });
}

/// Requests that the export has not finished are in flight, of their connection and of the export.
pub fn requests_in_flight_are_reported(setup: Setup) {
    for way in Way::CONCURRENT {
        let metrics = Metrics::new();
        let disk = Disk::new(1 << 20);
        let exports = ExportMap::new().with("disk", way.of(&disk)).expect("a short name");
        let server =
            setup.serve_with(exports, ServerConfig::default().with_metrics(&metrics));
        disk.gate.close();
        let mut client = server.client(Mode::Structured);
        let reads: Vec<_> = (0..5).map(|index| Request::read(index * 4096, 4096)).collect();
        let cookies = client.send_all(&reads);
        disk.gate.wait_for(5);
        wait_until("five requests are in flight", SOON, || {
            matches!(&metrics.connections()[..], [only] if only.in_flight == 5 && only.buffer_bytes > 0)
        });
        let status = metrics.connections().remove(0);
        assert_eq!(status.export.as_deref(), Some("disk"));
        assert_eq!((status.requests, status.errors), (5, 0));
        assert!(status.buffer_bytes >= 5 * 4096, "{status:?}");
        let snapshot = metrics.snapshot();
        let reads = &snapshot.exports["disk"].requests[&RequestKind::Read];
        assert_eq!((reads.requests, reads.in_flight, reads.latencies.count()), (5, 5, 0));
        assert_eq!((snapshot.exports["disk"].connections, reads.bytes), (1, 0));
        assert!(snapshot.buffer_bytes <= snapshot.max_buffer_bytes);
        assert!(snapshot.workers.busy <= snapshot.workers.threads);
        assert_eq!(snapshot.workers.busy > 0, way == Way::Workers, "{:?}", snapshot.workers);
        disk.gate.open();
        for cookie in cookies {
            client.reply_to(cookie).ok();
        }
        client.finish();
        server.stop();
        let reads = metrics.snapshot().exports["disk"].requests[&RequestKind::Read].clone();
        assert_eq!((reads.in_flight, reads.latencies.count(), reads.bytes), (0, 5, 5 * 4096));
    }
}

/// A client that is disconnected gets the replies to what it has in flight, and no other client notices.
pub fn a_client_is_disconnected_and_others_stay(setup: Setup) {
    for way in Way::CONCURRENT {
        let metrics = Metrics::new();
        let disk = Disk::new(1 << 20);
        let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
        let server = setup.serve_with(exports, ServerConfig::default().with_metrics(&metrics));
        let mut client = server.client(Mode::Structured);
        let number = metrics.connections()[0].client.connection;
        let mut other = server.client(Mode::Structured);
        disk.gate.close();
        let read = client.send(&Request::read(0, 512));
        disk.gate.wait_for(1);
        assert!(metrics.disconnect(number) && !metrics.disconnect(number + 1000));
        disk.gate.open();
        client.reply_to(read).ok();
        assert!(client.next_reply().is_none(), "the connection is closed");
        other.read(0, 512);
        // An idle one ends as well.
        let number = metrics.connections()[0].client.connection;
        assert!(metrics.disconnect(number));
        assert!(other.next_reply().is_none(), "the connection is closed");
        server.stop();
        assert_eq!(metrics.snapshot().connections.ended[&Ending::ShutDown], 2);
    }
}

/// Requests may be about more bytes than a counter can have: it stays at the most, and the server serves on.
pub fn counters_go_no_further_than_they_can(setup: Setup) {
    cases(3, |random| {
        let metrics = Metrics::new();
        let config = ServerConfig::default().with_metrics(&metrics);
        let size = Memory::MAX_SIZE;
        let exports = ExportMap::new().with("", Memory::new(size).expect("it is empty"));
        let server = setup.serve_with(exports.expect("a short name"), config);
        // One after the other and at once, so that the sums are made in each way.
        let mut clients: Vec<_> =
            (0..1 + random.below(3)).map(|_| server.client(Mode::Extended)).collect();
        let mut sum = 0_u64;
        for _ in 0..4 + random.below(8) {
            let offset = random.below(1 << 20);
            let length = size - offset - random.below(1 << 60);
            let index = random.below(clients.len() as u64) as usize;
            clients[index].call(&Request::block_status(offset, length)).ok();
            sum = sum.saturating_add(length);
            // A request may be counted a moment after its reply is there.
            let counted = || {
                let requests = metrics.snapshot().exports.remove("").unwrap_or_default().requests;
                requests.get(&RequestKind::BlockStatus).is_some_and(|counted| counted.bytes == sum)
            };
            wait_until("it is counted", SOON, counted);
            if random.one_in(4) {
                clients.remove(index).finish();
                clients.push(server.client(Mode::Extended));
            }
        }
        clients.into_iter().for_each(RawClient::finish);
        server.stop();
    });
}
