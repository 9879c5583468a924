//! Many connections.

use nbd_testkit::raw::{Mode, Request, flag};
use nbd_testkit::{Pattern, assert_same_bytes};

use crate::Setup;

/// What one connection wrote and another flushed, a third one reads (`CAN_MULTI_CONN`).
pub fn writes_are_visible_to_all_connections_after_a_flush(setup: Setup) {
    let server = setup.serve_disk();
    let mut clients = [Mode::Simple, Mode::Structured, Mode::Extended].map(|mode| server.client(mode));
    if !clients[0].has_flag(flag::CAN_MULTI_CONN) {
        return;
    }
    for round in 0..30 {
        let [writer, flusher, reader] = [0, 1, 2].map(|index| (round + index) % 3);
        let data = Pattern(round as u64).bytes(0, 50_000);
        clients[writer].write(1000, &data);
        if clients[flusher].has_flag(flag::SEND_FLUSH) {
            clients[flusher].call(&Request::flush()).ok();
        }
        assert_same_bytes(&clients[reader].read(1000, 50_000), &data, "another one's write");
    }
    for client in clients {
        client.finish();
    }
    server.stop();
}

/// Two hundred clients at once, each with requests of its own under way.
pub fn two_hundred_connections(setup: Setup) {
    const COUNT: usize = 200;
    let server = setup.serve_disk();
    let modes = [Mode::Simple, Mode::Structured, Mode::Extended];
    let mut clients: Vec<_> = (0..COUNT).map(|index| server.client(modes[index % 3])).collect();
    server.wait_for_connections(COUNT);
    let place = |index: usize| index as u64 * 4096;
    let data = |index: usize| Pattern(index as u64).bytes(0, 4096);
    for _ in 0..3 {
        for (index, client) in clients.iter_mut().enumerate() {
            client.send(&Request::write(place(index), &data(index)));
        }
        for client in &mut clients {
            client.drain().remove(0).ok();
        }
        // Each looks at its neighbour's.
        for (index, client) in clients.iter_mut().enumerate() {
            client.send(&Request::read(place((index + 1) % COUNT), 4096));
        }
        for (index, client) in clients.iter_mut().enumerate() {
            let found = client.drain().remove(0).data();
            assert_same_bytes(&found, &data((index + 1) % COUNT), "a neighbour's write");
        }
    }
    for client in clients {
        client.finish();
    }
    server.stop();
}
