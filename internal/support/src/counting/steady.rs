//! What requests cost in memory, once everything has its size.
//!
//! Only the thread that serves the connection is counted, not the client beside it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use nbd_engine::export::{
    AsyncCanFlush, AsyncCanTrim, AsyncCanWrite, AsyncExport, Export, ExportMap, IntoExport, Memory,
    Result, Tracked,
};
use nbd_engine::server::ServerConfig;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Mode, RawClient, Request, Wire, cmd_flag};

use super::{held, peak};

/// Serves one connection on a thread that counts its allocations, and gives the client's end.
pub type Connect = fn(ExportMap, ServerConfig, &'static AtomicUsize) -> Wire;

const MIB: usize = 1 << 20;

/// Where nothing is ever written.
const HOLE: u64 = 1 << 30;

/// A connection to a disk in memory.
struct Session {
    client: RawClient,
    counter: &'static AtomicUsize,
}

impl Session {
    fn new(connect: Connect, mode: Mode) -> Self {
        Self::to(Memory::new(2 << 30).unwrap(), connect, mode)
    }

    fn to<K>(export: impl IntoExport<K>, connect: Connect, mode: Mode) -> Self {
        let exports = ExportMap::new().with("", export).unwrap();
        let counter = Box::leak(Box::default());
        let client = enter(connect(exports, ServerConfig::default(), counter), mode);
        Self { client, counter }
    }

    /// Repeats the requests, so many in flight, until a long run of them costs no allocation. Before that every place
    /// in flight may have to get its buffers.
    #[track_caller]
    fn settles(&mut self, what: &str, in_flight: usize, requests: &[Request]) {
        const RUNS: usize = 20;
        // Thousands of small ones; of large ones as many as can be waited for.
        let bytes: usize = requests.iter().map(|request| request.length as usize).sum();
        let repeats = (64 * MIB / bytes.max(1)).min(2000).div_ceil(requests.len());
        let mut cost = 0;
        for _ in 0..RUNS {
            let before = self.counter.load(Ordering::Relaxed);
            for _ in 0..repeats {
                for batch in requests.chunks(in_flight) {
                    self.client.send_all(batch);
                    self.client.drain().into_iter().for_each(|reply| drop(reply.ok()));
                }
            }
            cost = self.counter.load(Ordering::Relaxed) - before;
            if cost == 0 {
                return;
            }
        }
        panic!("{what}: {cost} allocations in {} requests", repeats * requests.len());
    }
}

fn enter(wire: Wire, mode: Mode) -> RawClient {
    let mut client = RawClient::over(wire);
    let flags = client.read_greeting().flags;
    client.send_client_flags(flags.into());
    match mode {
        Mode::Simple => {}
        Mode::Structured => client.structured_reply().unwrap(),
        Mode::Extended => client.extended_headers().unwrap(),
    }
    client.go("", &[]).unwrap();
    client
}

/// Runs a script in each mode, with short requests and with long ones.
fn in_each_mode(connect: Connect, script: impl Fn(&mut Session, &str, usize)) {
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut session = Session::new(connect, mode);
        for length in [4096, MIB] {
            script(&mut session, &format!("{mode:?}, {length} bytes"), length);
        }
        session.client.finish();
    }
}

/// Writes, one at a time.
pub fn writes_allocate_nothing(connect: Connect) {
    in_each_mode(connect, |session, what, length| {
        session.settles(what, 1, &[Request::write(0, &vec![1; length])]);
    });
}

/// Reads of data and of holes, one at a time.
pub fn reads_allocate_nothing(connect: Connect) {
    in_each_mode(connect, |session, what, length| {
        session.client.write(0, &vec![1; length]);
        session.settles(what, 1, &[Request::read(0, length as u64)]);
        session.settles(what, 1, &[Request::read(HOLE, length as u64)]);
    });
}

/// Trims inside of a page and of holes. A trim that frees pages has the disk allocate others when it is written again.
pub fn flushes_and_trims_allocate_nothing(connect: Connect) {
    in_each_mode(connect, |session, what, length| {
        session.settles(what, 1, &[Request::flush()]);
        session.settles(what, 1, &[Request::write(0, &[1; 9000]), Request::trim(100, 8000)]);
        session.settles(what, 1, &[Request::trim(HOLE, length as u64)]);
    });
}

/// Reads, writes and flushes, several in flight.
pub fn requests_side_by_side_allocate_nothing(connect: Connect) {
    in_each_mode(connect, |session, what, length| {
        // Each in pages of its own: a page that is written while a reply shares it is copied.
        let data = vec![1; length];
        let at = |place: usize| (place * length.max(MIB)) as u64;
        let writes: Vec<_> = (0..16).map(|place| Request::write(at(place), &data)).collect();
        let reads = (0..16).map(|place| Request::read(at(place), length as u64));
        session.settles(&format!("{what}, written"), 8, &writes);
        session.settles(&format!("{what}, read"), 8, &reads.clone().collect::<Vec<_>>());
        let others = (16..24).map(|place| Request::write(at(place), &data));
        let mixed = reads.zip(others).flat_map(|(read, write)| [read, write, Request::flush()]);
        session.settles(&format!("{what}, both"), 6, &mixed.collect::<Vec<_>>());
    });
}

/// A disk whose work is a future, which waits once in each request, and which has no FUA of its own.
struct Later;

impl Later {
    async fn wait(&self) -> Result<()> {
        let mut first = true;
        poll_fn(|cx| {
            if !core::mem::take(&mut first) {
                return Poll::Ready(Ok(()));
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }
}

impl AsyncExport for Later {
    fn size(&self) -> u64 {
        1 << 30
    }

    async fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        buffer.fill(1);
        self.wait().await
    }

    fn can_write(&self) -> Option<impl AsyncCanWrite> {
        Some(self)
    }

    fn can_flush(&self) -> Option<impl AsyncCanFlush> {
        Some(self)
    }

    fn can_trim(&self) -> Option<impl AsyncCanTrim> {
        Some(self)
    }
}

impl AsyncCanWrite for Later {
    async fn write(&self, _data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        self.wait().await
    }
}

impl AsyncCanFlush for Later {
    async fn flush(&self) -> Result<()> {
        self.wait().await
    }
}

impl AsyncCanTrim for Later {
    async fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> Result<()> {
        self.wait().await
    }
}

/// All commands of an export whose work is a future.
pub fn futures_allocate_nothing(connect: Connect) {
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        // In a layer, which adds nothing to it.
        let mut session = Session::to(Tracked::new(Later), connect, mode);
        let flush = Request::flush();
        for length in [4096, MIB] {
            let write = Request::write(0, &vec![1; length]).flags(cmd_flag::FUA);
            let read = Request::read(0, length as u64);
            let trim = Request::trim(0, length as u64).flags(cmd_flag::FUA);
            let mixed = [write, read, trim, flush.clone()];
            session.settles(&format!("{mode:?}, {length} bytes"), 1, &mixed);
            let eight: Vec<_> = mixed.iter().cycle().take(16).cloned().collect();
            session.settles(&format!("{mode:?}, {length} bytes, side by side"), 8, &eight);
        }
        session.client.finish();
    }
}

/// A disk that counts its reads.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Export for Counting {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        buffer.fill(1);
        Ok(())
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

/// A client asks for gigabytes and reads none of them: the server holds what the limits allow.
pub fn a_client_that_does_not_read_is_held_within_the_limits(connect: Connect) {
    const REQUESTS: usize = 4000;
    /// What the other tests of this process may need meanwhile, and then some.
    const OTHERS: usize = 256 * MIB;

    let mut limits = nbd_engine::proto::Limits::DEFAULT;
    limits.max_in_flight_bytes = 8 << 20;
    let config = ServerConfig::new().with_limits(limits);
    let disk = Arc::new(Counting::default());
    let exports = ExportMap::new().with("", Arc::clone(&disk)).unwrap();
    let counter = Box::leak(Box::default());
    let mut client = enter(connect(exports, config, counter), Mode::Simple);
    let mut bytes = Vec::new();
    for cookie in 0..REQUESTS {
        bytes.extend(Request::read(0, MIB as u64).encode(Mode::Simple, cookie as u64));
    }
    let before = held();
    client.wire().send_until_stuck(&bytes, Duration::from_millis(500));
    // Quiet for a while means that the server waits for the client. Were it merely slow, less would be shown.
    let mut earlier = 0;
    wait_until("the server comes to rest", Duration::from_secs(20), || {
        std::thread::sleep(Duration::from_millis(50));
        let now = disk.0.load(Ordering::Relaxed);
        now > 0 && core::mem::replace(&mut earlier, now) == now
    });
    let (served, grown) = (disk.0.load(Ordering::Relaxed), peak().saturating_sub(before));
    assert!(served < REQUESTS / 10, "{served} MiB were read for a client that does not read");
    assert!(grown < OTHERS, "the server took {} MiB", grown / MIB);
}
