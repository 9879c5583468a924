//! Requests that are longer than the server takes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use nbd_engine::client::{ClientConfig, Error, Flags, InvalidRequest};
use nbd_engine::export::{
    self, AnyExport, BlockSize, CanWrite, Export, ExportError, ExportMap, Memory, WithBlockSize,
};
use nbd_engine::server::ServerConfig;
use nbd_testkit::{Pattern, assert_same_bytes, cases};

use crate::{ClientSetup, SOON, Setup};

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

/// A disk whose writes wait until the scenario lets them, and all but the first ones for a read.
#[derive(Clone)]
struct Turns {
    disk: Arc<Memory>,
    /// Writes that need no read.
    first: usize,
    state: Arc<(Mutex<Turn>, Condvar)>,
}

#[derive(Default)]
struct Turn {
    open: bool,
    read: bool,
    begun: usize,
}

impl Turns {
    fn new(size: usize, first: usize) -> Self {
        let disk = Arc::new(Memory::new(size as u64).expect("it is small"));
        Self { disk, first, state: Arc::default() }
    }

    fn change(&self, change: impl FnOnce(&mut Turn)) {
        change(&mut self.state.0.lock().expect("no panic while it is held"));
        self.state.1.notify_all();
    }

    /// How many writes have begun.
    fn begun(&self) -> usize {
        self.state.0.lock().expect("no panic while it is held").begun
    }
}

impl Export for Turns {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> export::Result<()> {
        self.change(|turn| turn.read = true);
        self.disk.read(buffer, offset)
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }
}

impl CanWrite for Turns {
    fn write(&self, data: &[u8], offset: u64, fua: bool) -> export::Result<()> {
        let (state, changed) = &*self.state;
        let mut turn = state.lock().expect("no panic while it is held");
        turn.begun += 1;
        let is_first = turn.begun <= self.first;
        let waits = |turn: &mut Turn| !turn.open || !is_first && !turn.read;
        let waited = changed.wait_timeout_while(turn, SOON, waits);
        if waited.expect("no panic while it is held").1.timed_out() {
            return Err(ExportError::io("nobody read"));
        }
        self.disk.can_write().expect("memory is written").write(data, offset, fua)
    }
}

/// Bytes of a part.
const PART: usize = 4096;

fn with_turns(turns: &Turns, servers: Setup) -> crate::Server {
    let size = BlockSize::new(BLOCK as u32, 4096, PART as u32).expect("they are sizes");
    let disk = AnyExport::new(WithBlockSize::new(turns.clone(), size).required(true));
    let exports = ExportMap::new().with("", disk).expect("a short name");
    servers.serve_with(exports, ServerConfig::default())
}

/// What is asked for later does not wait for all of a long request, however many requests may be in flight.
pub fn others_go_between_the_parts_of_a_long_request(clients: ClientSetup, servers: Setup) {
    cases(4, |random| {
        let in_flight = 1 + random.below(4) as usize;
        let parts = 2 * in_flight + 3 + random.below(20) as usize;
        let turns = Turns::new((parts + 1) * PART, in_flight + 2);
        let server = with_turns(&turns, servers);
        let config = ClientConfig::new().with_max_in_flight(in_flight as u32);
        let client = clients.connect(server.endpoint(), &config).expect("the server is there");
        let data = Pattern(random.next()).bytes(0, parts * PART);
        let long = client.start_write(0, data.clone(), Flags::empty());
        let short = client.start_read((parts * PART) as u64, vec![0; PART], Flags::empty());
        turns.change(|turn| turn.open = true);
        short.wait().1.expect("a read");
        long.wait().1.expect("a long write");
        assert_eq!(turns.begun(), parts);
        assert_same_bytes(&client.read(0, data.len(), Flags::empty()).expect("a read"), &data, "it");
        drop(client);
        server.stop();
    });
}

/// What is left of a long request is not sent once nobody waits for it, and the client goes on.
pub fn the_rest_of_a_long_request_is_dropped_with_it(clients: ClientSetup, servers: Setup) {
    cases(4, |random| {
        let in_flight = 1 + random.below(4) as usize;
        let parts = 2 * in_flight + 3 + random.below(20) as usize;
        let turns = Turns::new((parts + 1) * PART, parts);
        let server = with_turns(&turns, servers);
        let config = ClientConfig::new().with_max_in_flight(in_flight as u32);
        let client = clients.connect(server.endpoint(), &config).expect("the server is there");
        let long = client.start_write(0, vec![1; parts * PART], Flags::empty());
        drop(long);
        turns.change(|turn| turn.open = true);
        let read = client.read((parts * PART) as u64, PART, Flags::empty());
        assert_same_bytes(&read.expect("a read"), &[0; PART], "what was not written");
        client.disconnect();
        assert!(turns.begun() <= in_flight, "{} of {parts}, {in_flight}", turns.begun());
        server.stop();
    });
}
