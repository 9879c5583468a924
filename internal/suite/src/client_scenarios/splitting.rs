//! Requests that are longer than the server takes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nbd_engine::client::{Error, Flags, InvalidRequest};
use nbd_engine::export::{
    self, AnyExport, BlockSize, CanWrite, Export, ExportMap, Memory, WithBlockSize,
};
use nbd_engine::server::ServerConfig;
use nbd_testkit::{Pattern, assert_same_bytes};

use crate::{ClientSetup, Setup};

const SIZE: usize = 1 << 20;
/// No multiple of a block, so that pieces have to be shorter.
const MOST: usize = 60_000;
const BLOCK: usize = 512;

/// A disk that notes how long its requests are.
struct Ruler {
    disk: Memory,
    longest: Arc<AtomicUsize>,
    /// Whether writes are aligned to blocks.
    writes: Arc<Mutex<Vec<(u64, usize)>>>,
}

impl Export for Ruler {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> export::Result<()> {
        self.longest.fetch_max(buffer.len(), Ordering::Relaxed);
        self.disk.read(buffer, offset)
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }
}

impl CanWrite for Ruler {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> export::Result<()> {
        self.writes.lock().expect("no panic while it is held").push((offset, data.len()));
        self.disk.can_write().expect("memory is written").write(data, offset, fua)
    }
}

/// Requests above the server's largest payload become several, each of whole blocks, and their data lands in one piece.
pub fn long_requests_are_split(clients: ClientSetup, servers: Setup) {
    let (longest, writes) = (Arc::default(), Arc::default());
    let disk = Ruler {
        disk: Memory::new(SIZE as u64).expect("it is small"),
        longest: Arc::clone(&longest),
        writes: Arc::clone(&writes),
    };
    let size = BlockSize::new(BLOCK as u32, 4096, MOST as u32).expect("they are sizes");
    let disk = AnyExport::new(WithBlockSize::new(disk, size).required(true));
    let exports = ExportMap::new().with("", disk).expect("a short name");
    let server = servers.serve_with(exports, ServerConfig::default());
    let client = clients.client(&server);
    assert_eq!(client.export().block_size(), size);

    let data = Pattern(1).bytes(0, SIZE - BLOCK);
    client.write_all_at(&data, BLOCK as u64).expect("a write");
    assert_same_bytes(&client.read(BLOCK as u64, data.len(), Flags::empty()).expect("a read"), &data, "the data");
    let (found, result) = client.read_into(0, vec![9; SIZE], Flags::empty());
    result.expect("a read");
    assert_same_bytes(&found[BLOCK..], &data, "the data");
    assert_eq!(found[..BLOCK], [0; BLOCK], "the block before it");

    let mut writes = writes.lock().expect("no panic while it is held").clone();
    writes.sort_unstable();
    assert!(writes.len() > SIZE / MOST, "{writes:?}");
    let mut end = BLOCK as u64;
    for (offset, length) in writes {
        assert!(length <= MOST && length % BLOCK == 0 && offset == end, "{offset} {length}");
        end += length as u64;
    }
    assert!((1..=MOST).contains(&longest.load(Ordering::Relaxed)));

    let error = client.write_all_at(&[0; 100], 0).expect_err("it is no whole block");
    assert!(matches!(error, Error::Invalid(InvalidRequest::Misaligned(_))), "{error}");
    drop(client);
    server.stop();
}
