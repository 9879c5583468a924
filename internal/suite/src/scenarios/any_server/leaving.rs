//! Ways to leave.

use nbd_testkit::Pattern;
use nbd_testkit::raw::{Mode, RawClient, Request};

use crate::Setup;

/// A client that has said all it has to say, without a disconnect, still gets its replies.
pub fn half_closed_clients_get_all_replies(setup: Setup) {
    let server = setup.serve_disk();
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut client = server.client(mode);
        let mut requests = vec![Request::write(0, &Pattern(1).bytes(0, 100_000))];
        requests.extend((0..50).map(|index| Request::read(index * 512, 4096)));
        client.send_all(&requests);
        client.wire().half_close();
        assert_eq!(client.drain().len(), requests.len());
        client.wire().expect_eof();
    }
    server.stop();
}

/// A client that is gone in the middle of something takes nothing and nobody with it.
pub fn clients_that_vanish_leave_others_alone(setup: Setup) {
    let server = setup.serve_disk();
    let mut witness = server.client(Mode::Structured);
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        // In a payload, short and long, before and behind the point from which it is received straight to its place.
        for (length, sent) in [(1000, 500), (300_000, 10), (300_000, 200_000)] {
            let mut client = server.client(mode);
            let write = Request::write(0, &vec![0xee; length]).encode(mode, 1);
            client.wire().send(&write[..write.len() - length + sent]);
        }
        // With replies on the way that nobody reads: on TCP that is a reset.
        let mut client = server.client(mode);
        client.send_all(&vec![Request::read(0, 65_536); 20]);
        drop(client);
        // With nothing at all on the way, and at the beginning.
        drop(server.client(mode));
        drop(RawClient::connect(server.endpoint()));
        witness.read(0, 4096);
    }
    server.wait_for_connections(1);
    witness.finish();
    server.stop();
}
