//! Many at once.

use std::collections::VecDeque;
use std::thread;

use nbd_engine::client::{Flags, ClientConfig};
use nbd_testkit::{Pattern, assert_same_bytes};

use crate::{ClientSetup, Setup};

const PATTERN: Pattern = Pattern(3);

/// A client is shared by threads: each finds what it wrote.
pub fn requests_from_several_threads(clients: ClientSetup, servers: Setup) {
    let server = servers.serve_disk();
    let client = clients.client(&server);
    thread::scope(|scope| {
        for thread in 0..8_u8 {
            let client = client.again();
            scope.spawn(move || {
                for round in 0..50 {
                    let (offset, byte) = (u64::from(thread) * 65536, thread.wrapping_add(round));
                    client.write_all_at(&[byte; 4096], offset).expect("a write");
                    assert_eq!(client.read(offset, 4096, Flags::empty()).expect("a read"), vec![byte; 4096]);
                }
            });
        }
    });
    drop(client);
    server.stop();
}

/// More requests than may be in flight wait for their turn, and all are answered.
pub fn more_requests_than_may_be_in_flight(clients: ClientSetup, servers: Setup) {
    const COUNT: u64 = 200;
    let server = servers.serve_disk();
    let config = ClientConfig::new().with_max_in_flight(8);
    let client = clients.connect(server.endpoint(), &config).expect("the server is there");
    let writes: Vec<_> = (0..COUNT)
        .map(|index| {
            client.start_write(index * 4096, PATTERN.bytes(index * 4096, 4096), Flags::empty())
        })
        .collect();
    for write in writes {
        write.wait().1.expect("a write");
    }
    let read = |index| (index, client.start_read(index * 4096, vec![0; 4096], Flags::empty()));
    let mut reads: VecDeque<_> = (0..COUNT).map(read).collect();
    // The last ones first.
    while let Some((index, read)) = reads.pop_back() {
        let (found, result) = read.wait();
        result.expect("a read");
        assert_same_bytes(&found, &PATTERN.bytes(index * 4096, 4096), "a read");
    }
    drop(client);
    server.stop();
}

/// Two hundred clients at once, of which each finds what the one before it wrote.
pub fn two_hundred_clients(clients: ClientSetup, servers: Setup) {
    const COUNT: usize = 200;
    let server = servers.serve_disk();
    let all: Vec<_> = (0..COUNT).map(|_| clients.client(&server)).collect();
    server.wait_for_connections(COUNT);
    let data = |index: usize| Pattern(index as u64).bytes(0, 4096);
    let writes: Vec<_> = (0_u64..)
        .zip(&all)
        .map(|(index, client)| {
            client.start_write(index * 4096, data(index as usize), Flags::empty())
        })
        .collect();
    for write in writes {
        write.wait().1.expect("a write");
    }
    for (index, client) in all.iter().enumerate() {
        let neighbour = (index + COUNT - 1) % COUNT;
        let found = client.read(neighbour as u64 * 4096, 4096, Flags::empty()).expect("a read");
        assert_same_bytes(&found, &data(neighbour), "a neighbour's write");
    }
    // All leave at once.
    thread::scope(|scope| {
        for clients in all.chunks(COUNT / 4) {
            scope.spawn(|| clients.iter().for_each(|client| client.disconnect()));
        }
    });
    server.stop();
}
