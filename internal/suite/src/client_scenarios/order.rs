//! Requests side by side.

use nbd_engine::client::Flags;
use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;
use nbd_testkit::{Pattern, assert_same_bytes};

use crate::exports::{Disk, Gate, Way};
use crate::{ClientSetup, Setup};

const PATTERN: Pattern = Pattern(3);

/// Replies are told as they come, in whatever order that is, among many others.
pub fn replies_come_in_any_order(clients: ClientSetup, servers: Setup) {
    for way in Way::CONCURRENT {
        let disk = Disk::new(1 << 20);
        let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
        let server = servers.serve_with(exports, ServerConfig::default());
        let client = clients.client(&server);
        client.write_all_at(&PATTERN.bytes(0, 1 << 20), 0).expect("a write");
        disk.gate.close();
        let mut slow: Vec<_> = (0..4)
            .map(|index| {
                let read = client.start_read(index * 8192, vec![0; 512], Flags::empty());
                let data = PATTERN.bytes(index * 8192 + 4096, 512);
                (index, read, client.start_write(index * 8192 + 4096, data, Flags::empty()))
            })
            .collect();
        disk.gate.wait_for(8);
        let quick: Vec<_> = (0..40)
            .map(|index| {
                let offset = Gate::END + index * 4096;
                (offset, client.start_read(offset, vec![0; 4096], Flags::empty()))
            })
            .collect();
        for (offset, read) in quick {
            let (found, result) = read.wait();
            result.expect("a read");
            assert_same_bytes(&found, &PATTERN.bytes(offset, 4096), "a quick read");
        }
        for at in [2, 0, 1, 0] {
            assert!(slow.iter().all(|(_, read, write)| !read.is_done() && !write.is_done()));
            let (index, read, write) = slow.remove(at);
            disk.gate.release(index * 8192 + 4096);
            write.wait().1.expect("a write");
            disk.gate.release(index * 8192);
            let (found, result) = read.wait();
            result.expect("a read");
            assert_same_bytes(&found, &PATTERN.bytes(index * 8192, 512), "a slow read");
        }
        drop(client);
        server.stop();
    }
}
