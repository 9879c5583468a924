//! Requests.

use std::thread;

use nbd_engine::client::{Error, Flags, Options};
use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::Settings;

use crate::exports::{Disk, Gate, Way};
use crate::{ClientSetup, Setup};

const SIZE: u64 = 1 << 20;

/// Every command, and what it does to the disk; then the client leaves, and takes no more requests.
pub fn every_command_does_what_it_says(clients: ClientSetup, servers: Setup) {
    let server = servers.serve(Memory::new(SIZE).expect("it is small"));
    let mut options = Options::default();
    options.contexts.push("base:allocation".into());
    let client = clients.connect(server.endpoint(), &options).expect("the server is there");
    assert_eq!(client.export().size(), SIZE);
    assert!(client.export().is_extended() && client.export().has_context("base:allocation"));

    client.write_at(&[1; 4096], 4096, Flags::FUA).expect("a write");
    client.write(vec![2; 4096].into(), 8192).expect("a write");
    let (lent, written) = client.start_write(vec![3; 4096], 12288, Flags::empty()).wait();
    written.expect("a write");
    assert_eq!(lent.len(), 4096, "the buffer comes back");
    client.flush().expect("a flush");
    client.start_flush().wait().1.expect("a flush");

    let mut found = [9; 8192];
    client.read_exact_at(&mut found, 0).expect("a read");
    assert_eq!((found[..4096].to_vec(), found[4096]), (vec![0; 4096], 1));
    let count = client.read_at(&mut found, SIZE - 512).expect("a read at the end");
    assert_eq!(count, 512);
    assert_eq!(client.read(8192, 4096).expect("a read"), vec![2; 4096]);
    let (lent, read) = client.read_into(vec![0; 4096], 12288);
    read.expect("a read");
    assert_eq!(lent, [3; 4096]);
    let (lent, read) = client.start_read(vec![0; 4096], 12288, Flags::DF).wait();
    read.expect("a read");
    assert_eq!(lent, [3; 4096]);

    client.trim(4096, 4096, Flags::empty()).expect("a trim");
    client.write_zeroes(8192, 4096, Flags::NO_HOLE).expect("zeroes");
    client.cache(0, SIZE).expect("a cache");
    assert_eq!(client.read(8192, 4096).expect("a read"), vec![0; 4096]);
    let status = client.block_status(0, SIZE, Flags::empty()).expect("a block status");
    assert_eq!(&*status[0].context, "base:allocation");
    assert_eq!(status[0].extents.iter().map(|extent| extent.length).sum::<u64>(), SIZE);

    assert!(matches!(client.read(SIZE, 1), Err(Error::Invalid(_))));
    assert!(client.is_connected());
    client.disconnect();
    assert!(!client.is_connected());
    assert!(matches!(client.flush(), Err(Error::Disconnected { .. })));
    server.stop();
}

/// A client is shared by threads: each finds what it wrote.
pub fn requests_from_several_threads(clients: ClientSetup, servers: Setup) {
    let server = servers.serve(Memory::new(SIZE).expect("it is small"));
    let client = clients.client(&server);
    thread::scope(|scope| {
        for thread in 0..8_u8 {
            let client = client.again();
            scope.spawn(move || {
                for round in 0..50 {
                    let (offset, byte) = (u64::from(thread) * 65536, thread.wrapping_add(round));
                    client.write_at(&[byte; 4096], offset, Flags::empty()).expect("a write");
                    assert_eq!(client.read(offset, 4096).expect("a read"), vec![byte; 4096]);
                }
            });
        }
    });
    drop(client);
    server.stop();
}

/// Who gives a request up, on its way or not, disturbs nobody.
pub fn a_request_that_is_given_up_harms_no_other(clients: ClientSetup, servers: Setup) {
    let disk = Disk::new(SIZE);
    let exports = ExportMap::new().with_handle("", None, Way::Workers.of(&disk));
    let server = servers.serve_with(exports, Settings::default());
    let client = clients.client(&server);
    disk.gate.close();
    let on_its_way = client.start_read(vec![0; 4096], 0, Flags::empty());
    let kept = client.start_read(vec![0; 4096], 4096, Flags::empty());
    disk.gate.wait_for(2);
    drop(on_its_way);
    drop(client.start_read(vec![0; 4096], 8192, Flags::empty()));
    disk.gate.open();
    kept.wait().1.expect("it was not given up");
    client.read(Gate::END, 4096).expect("the client goes on");
    drop(client);
    server.stop();
}
