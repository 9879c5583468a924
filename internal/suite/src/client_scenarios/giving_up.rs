//! Requests that nobody waits for any more.

use std::sync::Arc;
use std::time::Duration;

use nbd_engine::client::{Error, Flags, ClientConfig};
use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;
use nbd_testkit::process::wait_until;
use nbd_testkit::{Pattern, assert_same_bytes};

use crate::client::{ClientUnderTest, InFlight};
use crate::exports::{Disk, Gate, Way};
use crate::{ClientSetup, SOON, Server, Setup};

const SIZE: u64 = 1 << 20;
const PATTERN: Pattern = Pattern(7);

/// A server of a disk behind a closed gate, full of the pattern from the gate's end on.
fn serve_gated(servers: &Setup, way: Way) -> (Server, Arc<Disk>) {
    let disk = Disk::new(SIZE);
    disk.gate.close();
    let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
    (servers.serve_with(exports, ServerConfig::default()), disk)
}

fn fill(client: &dyn ClientUnderTest) {
    let data = PATTERN.bytes(Gate::END, 300_000);
    client.write_all_at(&data, Gate::END).expect("a write");
}

/// The stream is in step: what is asked for is what comes.
#[track_caller]
fn check(client: &dyn ClientUnderTest) {
    for (offset, length) in [(Gate::END, 512), (Gate::END + 1000, 100_000), (Gate::END + 7, 1)] {
        let found = client.read(offset, length, Flags::empty()).expect("the client goes on");
        assert_same_bytes(&found, &PATTERN.bytes(offset, length), "a later read");
    }
}

/// Who gives a request up, on its way or not, disturbs nobody: its reply is taken in and dropped.
pub fn a_request_that_is_given_up_harms_no_other(clients: ClientSetup, servers: Setup) {
    for way in Way::CONCURRENT {
        let (server, disk) = serve_gated(&servers, way);
        let client = clients.client(&server);
        fill(&*client);
        let read = client.start_read(0, vec![0; 65536], Flags::empty());
        let write = client.start_write(4096, vec![1; 50_000], Flags::empty());
        let kept = client.start_read(8192, vec![0; 4096], Flags::empty());
        disk.gate.wait_for(3);
        drop((read, write));
        drop(client.start_read(16384, vec![0; 4096], Flags::empty()));
        check(&*client);
        disk.gate.open();
        kept.wait().1.expect("it was not given up");
        check(&*client);
        drop(client);
        server.stop();
    }
}

/// Makes a request, at that place or the next ones, until one has timed out after it was sent: on a busy machine the
/// first may be too late for that.
fn times_out_on_its_way(request: &dyn Fn(u64) -> Box<dyn InFlight>, at: u64) {
    for at in at..at + 100 {
        match request(at).wait().1 {
            Err(Error::TimedOut { sent: true, .. }) => return,
            Err(Error::TimedOut { sent: false, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    panic!("no request was sent in time");
}

/// A request that takes too long fails, whatever becomes of it, and later ones are answered.
pub fn a_request_that_times_out_harms_no_other(clients: ClientSetup, servers: Setup) {
    for way in Way::CONCURRENT {
        let (server, disk) = serve_gated(&servers, way);
        let config = ClientConfig::new().with_request_timeout(Some(Duration::from_millis(100)));
        let client = clients.connect(server.endpoint(), &config).expect("the server is there");
        fill(&*clients.client(&server));
        let read = |at| client.start_read(at, vec![0; 50_000], Flags::empty());
        let write = |at| client.start_write(at, vec![1; 50_000], Flags::empty());
        times_out_on_its_way(&read, 0);
        times_out_on_its_way(&write, 100);
        disk.gate.open();
        // On a busy machine more may time out.
        let mut found = vec![0; 512];
        wait_until("a read is answered in time", SOON, || {
            match client.read_exact_at(&mut found, Gate::END) {
                Ok(()) => true,
                Err(Error::TimedOut { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        });
        assert_same_bytes(&found, &PATTERN.bytes(Gate::END, 512), "a later read");
        drop(client);
        server.stop();
    }
}
