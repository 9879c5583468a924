//! What a client can make a server hold by asking for maps of a huge disk, and by not reading them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nbd_engine::server::ServerConfig;
use nbd_suite::Served;
use nbd_suite::exports::{ASKED, HUGE, Striped};
use nbd_testkit::SOON;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{RawClient, Request};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// 2^53 extents, of which each request might have all: in two contexts, of 4096 extents with 16 bytes each at most.
#[test]
fn a_client_that_asks_for_maps_and_reads_none_is_held_within_the_limits() {
    const REQUESTS: u64 = 200;
    /// What the limit allows, as vectors that grow hold it; the session's buffers; the client. All the replies together
    /// have twice as much.
    const BOUND: usize = 12 * MIB;

    for way in Striped::WAYS {
        let mut limits = nbd_engine::proto::Limits::DEFAULT;
        limits.max_in_flight_bytes = MIB as u64;
        limits.max_in_flight = REQUESTS as u32;
        let config = ServerConfig::new().with_limits(limits);
        let served = Served::start(Striped::exports(way), config);
        let mut client = RawClient::negotiate(served.endpoint());
        client.extended_headers().unwrap();
        client.set_meta_context("", &["base:allocation", "x-stripes:1024"]).unwrap();
        client.go("", &[]).unwrap();
        let asked = || ASKED.load(Ordering::Relaxed);
        let before = asked();
        let held = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let requests: Vec<_> =
            (0..REQUESTS).map(|at| Request::block_status(at * 512, HUGE - at * 512)).collect();
        // At once: small messages take much of the socket's room.
        client.send_all(&requests);
        // Quiet for a while means that the server waits for the client. Were it merely slow, less would be shown.
        let mut earlier = before;
        wait_until("the server comes to rest", SOON, || {
            std::thread::sleep(Duration::from_millis(50));
            let now = asked();
            now > before && core::mem::replace(&mut earlier, now) == now
        });
        let (served_by_now, grown) = (asked() - before, ALLOCATOR.peak_usage() - held);
        assert!(served_by_now < REQUESTS as usize / 4, "{way:?}: {served_by_now} maps for nobody");
        assert!(grown < BOUND, "{way:?}: {} KiB", grown >> 10);
        // All are answered once the client reads.
        let replies = client.drain();
        assert_eq!(replies.len(), REQUESTS as usize);
        for reply in replies {
            let status = reply.ok().status;
            assert_eq!(status.len(), 2);
            assert!(status.iter().all(|status| status.total() >= 4096 * 512 - 512), "progress");
        }
        client.finish();
    }
}
