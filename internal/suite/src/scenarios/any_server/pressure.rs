//! A client that does not read.

use nbd_testkit::raw::{Mode, Request};
use nbd_testkit::{Pattern, assert_same_bytes};

use crate::Setup;

/// It is not served any further, others are, and it gets everything when it reads at last.
pub fn a_client_that_does_not_read_is_held_back(setup: Setup) {
    const READS: usize = 40;
    let server = setup.serve_disk();
    let length = 512 << 10;
    let data = Pattern(5).bytes(0, length);
    let mut other = server.client(Mode::Simple);
    other.write(0, &data);
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut client = server.client(mode);
        client.send_all(&vec![Request::read(0, length as u64); READS]);
        for _ in 0..20 {
            assert_same_bytes(&other.read(0, 4096), &data[..4096], "another client's read");
        }
        for _ in 0..READS {
            let reply = client.next_reply().expect("all are answered");
            assert_same_bytes(&reply.data(), &data, "a reply that waited");
        }
        client.finish();
    }
    other.finish();
    server.stop();
}
