//! Threads, jobs and pieces together.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nbd_proto::Command;

use super::super::budget::{Account, BufferBudget};
use super::super::dispatch::Work;
use super::*;
use crate::export::{CanWrite, CanWriteZeroes, Fua, Result, ZeroMode};

/// A far bound on what must happen.
const SOON: Duration = Duration::from_secs(30);

/// A disk whose zeroes take as long as the test wants.
#[derive(Default)]
struct Slow {
    gate: Mutex<Gate>,
    changed: Condvar,
    pieces: AtomicUsize,
    /// Pieces that were done before the latest read.
    pieces_before_read: AtomicUsize,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    inside: usize,
    threads: HashSet<std::thread::ThreadId>,
    ranges: Vec<(u64, u64)>,
}

impl Slow {
    fn closed() -> Arc<Self> {
        let slow = Self::default();
        slow.gate.lock().unwrap().closed = true;
        Arc::new(slow)
    }

    fn open(&self) {
        self.gate.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    fn inside(&self) -> usize {
        self.gate.lock().unwrap().inside
    }

    fn pass(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.inside += 1;
        gate.threads.insert(std::thread::current().id());
        while gate.closed {
            gate = self.changed.wait_timeout(gate, SOON).unwrap().0;
        }
        gate.inside -= 1;
    }
}

impl Export for Slow {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<()> {
        self.pass();
        self.pieces_before_read.store(self.pieces.load(Ordering::Relaxed), Ordering::Relaxed);
        buffer.fill(0);
        Ok(())
    }

    fn can_write(&self) -> Option<&dyn CanWrite> {
        Some(self)
    }

    fn can_write_zeroes(&self) -> Option<&dyn CanWriteZeroes> {
        Some(self)
    }
}

impl CanWrite for Slow {
    fn write(&self, _data: &[u8], _offset: u64, _fua: bool) -> Result<()> {
        Ok(())
    }

    fn fua(&self) -> Fua {
        Fua::Native
    }
}

impl CanWriteZeroes for Slow {
    fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<()> {
        self.pass();
        assert!(mode.fua, "without a flush each piece has to be durable");
        self.gate.lock().unwrap().ranges.push((offset, length));
        self.pieces.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct Client {
    lane: Lane,
    export: Arc<dyn Export>,
    completions: Arc<Completions>,
}

impl Client {
    fn new(workers: &Workers, export: &Arc<Slow>) -> Self {
        let export: Arc<dyn Export> = Arc::clone(export) as _;
        Self { lane: workers.lane(&export), export, completions: Arc::default() }
    }

    fn submit(&self, command: Command) {
        let (export, completions) = (Arc::clone(&self.export), Arc::clone(&self.completions));
        self.lane.submit(Job::new(0, command, export, Work::default(), completions, None));
    }

    fn read(&self) {
        self.submit(Command::read(0, 512));
    }

    fn zero(&self, length: u64) {
        self.submit(Command::write_zeroes(5000, length).with_fua().with_no_hole());
    }

    fn gone(&self) {
        let budget = Arc::new(BufferBudget::new(0, 1, 0));
        self.completions.abandon(Account::new(budget).split_off(0));
    }

    #[track_caller]
    fn expect(&self, count: usize) {
        let mut all = Vec::new();
        wait_until(|| {
            let mut some = Vec::new();
            self.completions.take(&mut some);
            all.extend(some);
            all.len() >= count
        });
        assert_eq!(all.len(), count);
        assert!(all.iter().all(|completion| completion.result.is_ok()));
    }
}

#[track_caller]
fn wait_until(mut reached: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn stuck_exports_delay_no_other_even_when_their_clients_are_gone() {
    let workers = Workers::new(4);
    let stuck: Vec<_> = (0..5).map(|_| Slow::closed()).collect();
    let greedy: Vec<_> =
        stuck.iter().flat_map(|export| [(); 2].map(|()| Client::new(&workers, export))).collect();
    for client in &greedy {
        (0..64).for_each(|_| client.read());
    }
    wait_until(|| stuck.iter().all(|export| export.inside() >= 2));
    let other = Client::new(&workers, &Arc::default());
    other.read();
    other.read();
    other.expect(2);
    for client in greedy {
        client.gone();
        drop(client);
    }
    let later = Client::new(&workers, &Arc::default());
    later.read();
    later.expect(1);
    let occupied: usize = stuck.iter().map(|export| export.inside()).sum();
    assert!(occupied <= 4 + 2 * stuck.len(), "{occupied} threads are stuck");
    stuck.iter().for_each(|export| export.open());
}

#[test]
fn long_commands_run_in_pieces_that_cover_the_range() {
    let workers = Workers::new(2);
    let disk = Arc::new(Slow::default());
    let client = Client::new(&workers, &disk);
    client.zero(10 << 30);
    client.expect(1);
    let ranges = &disk.gate.lock().unwrap().ranges;
    assert!(ranges.len() > 10);
    let mut offset = 5000;
    for (start, length) in ranges {
        assert_eq!(*start, offset);
        offset += length;
        assert!(offset.is_multiple_of(1 << 20) || offset == 5000 + (10 << 30));
    }
    assert_eq!(offset, 5000 + (10 << 30));
}

#[test]
fn a_long_command_stops_when_its_client_is_gone() {
    let workers = Workers::new(2);
    let disk = Slow::closed();
    let client = Client::new(&workers, &disk);
    client.zero(1 << 39);
    wait_until(|| disk.inside() == 1);
    client.gone();
    drop(client);
    disk.open();
    // The thread that was at work on it is free again once it has noticed.
    wait_until(|| workers.pool.lock().idle == 1);
    assert_eq!(disk.pieces.load(Ordering::Relaxed), 1);
}

#[test]
fn another_connections_request_is_carried_out_between_the_pieces() {
    let workers = Workers::new(1);
    let disk = Slow::closed();
    let [greedy, modest] = [(); 2].map(|()| Client::new(&workers, &disk));
    (0..8).for_each(|_| greedy.zero(1 << 39));
    wait_until(|| disk.inside() == 1);
    modest.read();
    disk.open();
    modest.expect(1);
    let earlier = disk.pieces_before_read.load(Ordering::Relaxed);
    assert!(earlier <= 2, "{earlier} pieces came first: one was at work, one had its turn");
    greedy.gone();
}

#[test]
fn jobs_side_by_side_get_threads_and_no_more_than_are_allowed() {
    let workers = Workers::new(8);
    let disk = Slow::closed();
    let clients = [(); 3].map(|()| Client::new(&workers, &disk));
    for client in &clients {
        (0..20).for_each(|_| client.read());
    }
    wait_until(|| disk.inside() == 8);
    disk.open();
    clients.iter().for_each(|client| client.expect(20));
    assert!(disk.gate.lock().unwrap().threads.len() <= 8);
}

#[test]
fn without_any_thread_connections_carry_out_their_own_requests() {
    let workers = Workers::with_spawn(4, |_| Err(io::ErrorKind::WouldBlock.into()));
    let disk = Arc::new(Slow::default());
    let clients = [(); 3].map(|()| Client::new(&workers, &disk));
    for count in 1..=20 {
        for client in &clients {
            client.read();
            client.zero(count << 30);
            client.expect(2);
        }
    }
    let gate = disk.gate.lock().unwrap();
    let zeroed: u64 = gate.ranges.iter().map(|(_, length)| length).sum();
    assert_eq!(zeroed >> 30, 3 * (1..=20).sum::<u64>());
    assert_eq!(gate.threads, HashSet::from([std::thread::current().id()]));
    let metrics = workers.metrics();
    assert_eq!((metrics.threads, metrics.busy, metrics.waiting), (0, 0, 0));
}
