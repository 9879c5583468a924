//! Limits.

use std::sync::Arc;
use std::time::Duration;

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_testkit::raw::{Mode, RawClient, Request, Wire, flag};

use crate::exports::{Disk, Gate, Way};
use crate::{Server, Setup, Transport};

/// A server of a disk behind a closed gate.
#[track_caller]
fn serve_gated(setup: &Setup, way: Way, config: ServerConfig) -> (Server, Arc<Disk>) {
    let disk = Disk::new(16 << 20);
    disk.gate.close();
    let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
    (setup.serve_with(exports, config), disk)
}

/// One connection more than may be waits, unanswered, until another one ends.
pub fn connections_above_the_limit_wait(setup: Setup) {
    let config = ServerConfig::new()
        .with_max_connections(2)
        .with_admission_timeout(Duration::from_secs(3600));
    let disk = Disk::new(1 << 20);
    let exports = ExportMap::new().with("", Way::Workers.of(&disk)).expect("a short name");
    let server = setup.serve_with(exports, config);
    let [first, second] = [(); 2].map(|()| server.client(Mode::Simple));
    let mut third = RawClient::connect(server.endpoint());
    let mut fourth = RawClient::connect(server.endpoint());
    third.wire().expect_silence();
    fourth.wire().expect_silence();
    server.wait_for_connections(2);
    first.finish();
    third.read_greeting();
    fourth.wire().expect_silence();
    // Not only those that leave properly make room.
    drop(second);
    fourth.read_greeting();
    drop((third, fourth));
    server.stop();
}

/// Connections above the limit are closed once the server has been full for a while, and the others are served on.
pub fn connections_above_the_limit_are_refused(setup: Setup) {
    let config = ServerConfig::new().with_max_connections(2).with_admission_timeout(Duration::from_millis(1));
    let disk = Disk::new(1 << 20);
    let exports = ExportMap::new().with("", Way::Workers.of(&disk)).expect("a short name");
    let server = setup.serve_with(exports, config);
    let [first, mut second] = [(); 2].map(|()| server.client(Mode::Simple));
    for _ in 0..10 {
        Wire::connect(server.endpoint()).drain_to_eof();
    }
    second.write(0, b"all is well");
    first.finish();
    server.wait_for_connections(1);
    let mut third = server.client(Mode::Simple);
    assert_eq!(third.read(0, 11), b"all is well");
    third.finish();
    second.finish();
    server.stop();
}

/// With room for one connection, no client is told that several to an export are consistent.
pub fn one_connection_is_not_announced_as_several(setup: Setup) {
    for (connections, announced) in [(1, false), (2, true)] {
        let config = ServerConfig::new().with_max_connections(connections);
        let disk = Memory::new(1 << 20).expect("it is small");
        let exports = ExportMap::new().with("", disk).expect("a short name");
        let server = setup.serve_with(exports, config);
        let client = server.client(Mode::Simple);
        assert_eq!(client.has_flag(flag::CAN_MULTI_CONN), announced);
        client.finish();
        server.stop();
    }
}

/// A listener that waits for a client takes nobody's place: with room for one connection, any of the listeners gives it.
pub fn listeners_share_the_limit(setup: Setup) {
    let config = ServerConfig::new().with_max_connections(1);
    let exports = ExportMap::new()
        .with("", Memory::new(1 << 20).expect("it is small"))
        .expect("a short name");
    let dir = tempfile::tempdir().expect("a folder for the socket");
    let mut places =
        [Transport::Tcp, Transport::Unix].map(|transport| setup.place(transport, &dir));
    if setup.transport() == Transport::Unix {
        places.reverse();
    }
    let server = setup.serve_at(exports, config, places.into(), dir);
    server.wait_for_connections(0);
    for (round, endpoint) in (0..).zip(server.endpoints().iter().chain(server.endpoints())) {
        let mut only = RawClient::go_simple(endpoint);
        assert_eq!(only.read(0, 1), [round], "what came by the other listener is there");
        only.write(0, &[round + 1]);
        only.finish();
        server.wait_for_connections(0);
    }
    server.stop();
}

/// So many requests are carried out at once, and not one more; the rest follow as replies are sent.
pub fn requests_in_flight_are_limited(setup: Setup) {
    for way in Way::CONCURRENT {
        let mut limits = nbd_engine::proto::Limits::DEFAULT;
        limits.max_in_flight = 4;
        let config = ServerConfig::new().with_limits(limits);
        let (server, disk) = serve_gated(&setup, way, config);
        let mut client = server.client(Mode::Structured);
        let requests: Vec<_> = (0..40).map(|index| Request::read(index * 512, 512)).collect();
        client.send_all(&requests);
        // The first four wait, each that is let go on lets the next one in.
        let mut waiting = disk.gate.wait_for(4);
        for _ in 4..requests.len() {
            disk.gate.release(waiting[0]);
            client.next_reply().expect("a reply").ok();
            let next = disk.gate.wait_for(4);
            assert!(!next.contains(&waiting[0]));
            waiting = next;
        }
        disk.gate.open();
        client.drain();
        assert_eq!(disk.gate.most_at_work(), 4);
        client.finish();
        server.stop();
    }
}

/// Requests whose data is more than may be held wait, and one that is alone may exceed the limit.
pub fn bytes_in_flight_are_limited(setup: Setup) {
    for way in Way::CONCURRENT {
        let mut limits = nbd_engine::proto::Limits::DEFAULT;
        limits.max_in_flight_bytes = 1 << 20;
        let config = ServerConfig::new().with_limits(limits);
        let (server, disk) = serve_gated(&setup, way, config);
        let mut client = server.client(Mode::Structured);
        let half = |index: u64| Request::read(index * 512, 512 << 10);
        let requests: Vec<_> = (0..10).map(half).collect();
        client.send_all(&requests);
        disk.gate.wait_for(2);
        disk.gate.open();
        assert_eq!(client.drain().len(), requests.len());
        assert_eq!(disk.gate.most_at_work(), 2);
        client.read(0, 3 << 20);
        client.write(0, &vec![1; 3 << 20]);
        client.finish();
        server.stop();
    }
}

/// A request is in flight until its reply has left, so that a client that does not read stops itself: of all that it
/// asks for, only what the sockets' buffers take is read from the disk.
pub fn replies_that_are_not_read_count_as_in_flight(setup: Setup) {
    const READS: usize = 64;
    for way in Way::CONCURRENT {
        let mut limits = nbd_engine::proto::Limits::DEFAULT;
        limits.max_in_flight = 4;
        let config = ServerConfig::new().with_limits(limits);
        let (server, disk) = serve_gated(&setup, way, config);
        disk.gate.open();
        let mut client = server.client(Mode::Simple);
        client.send_all(&vec![Request::read(Gate::END, 1 << 20); READS]);
        // Others are served meanwhile, which also gives the server the time to do wrong.
        let mut other = server.client(Mode::Simple);
        for _ in 0..200 {
            other.read(Gate::END, 512);
        }
        let begun = disk.gate.begun() - 200;
        assert!(
            begun < READS / 2,
            "{begun} of {READS} reads were done for a client that reads none"
        );
        for _ in 0..READS {
            client.next_reply().expect("all are answered in the end").ok();
        }
        client.finish();
        other.finish();
        server.stop();
    }
}
