//! One connection that sends requests until its server is killed.
//!
//! It has its own few lines for requests and simple replies, since a reply may be cut anywhere here.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use nbd_testkit::Random;
use nbd_testkit::raw::{Mode, RawClient, Request, cmd_flag, magic};

use super::model::{Model, Moment, Violation};
use super::stamp::{SECTOR, data};

/// How long a server may be silent while requests wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// The longest write, in sectors.
const MAX_WRITE: u64 = 256;

/// The longest read, in sectors, and how many may be in flight: their replies fit a socket's buffer, so that a client that
/// sends meanwhile stops no server.
const MAX_READ: u64 = 64;
const MAX_READS: usize = 2;

/// What the connections of a round share.
pub(super) struct Shared<'a> {
    pub(super) model: Mutex<&'a mut Model>,
    /// Requests sent and replies received so far.
    pub(super) events: AtomicU64,
    /// The event at which the server is killed.
    pub(super) kill_at: u64,
    /// Kills it.
    pub(super) kill: &'a (dyn Fn() + Sync),
    /// It was killed, or something is wrong: nothing is sent any more.
    pub(super) over: AtomicBool,
}

/// What one connection has seen.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) changes: u64,
    pub(super) flushes: u64,
    pub(super) reads: u64,
}

enum Sent {
    Read { first: u64, sectors: u64, moment: Moment },
    Change { request: u64 },
    Flush { moment: Moment },
}

struct Lane<'s, 'a> {
    shared: &'s Shared<'a>,
    client: RawClient,
    random: Random,
    in_flight: HashMap<u64, Sent>,
    cookie: u64,
    seen: Seen,
}

/// Why a connection stops.
enum Stop {
    /// The stream is over, as it has to be after the kill.
    Gone,
    Wrong(Violation),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Wrong(violation)
    }
}

/// Loads the server until it is gone. The client is in transmission with simple replies.
pub(super) fn run(
    shared: &Shared<'_>,
    mut client: RawClient,
    seed: u64,
) -> Result<Seen, Violation> {
    client.wire().set_timeout(PATIENCE);
    let random = Random::new(seed);
    let in_flight = HashMap::new();
    let mut lane = Lane { shared, client, random, in_flight, cookie: 1, seen: Seen::default() };
    let result = lane.run();
    shared.over.store(true, Ordering::SeqCst);
    match result {
        Err(Stop::Wrong(violation)) => Err(violation),
        Ok(()) | Err(Stop::Gone) => Ok(lane.seen),
    }
}

impl Lane<'_, '_> {
    fn run(&mut self) -> Result<(), Stop> {
        let depth = 1 + self.random.below(16) as usize;
        while !self.shared.over.load(Ordering::SeqCst) {
            if self.in_flight.len() < depth && !self.random.one_in(4) || self.in_flight.is_empty() {
                self.send()?;
            } else {
                self.receive()?;
            }
        }
        // What it has answered before the kill counts.
        while !self.in_flight.is_empty() {
            self.receive()?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Stop> {
        let (request, sent) = self.draw();
        self.cookie += 1;
        let bytes = request.encode(Mode::Simple, self.cookie);
        self.in_flight.insert(self.cookie, sent);
        let mut whole = bytes.len();
        let is_last = self.event();
        if is_last && self.random.one_in(2) {
            // Killed in the middle of a request.
            whole = self.random.below(bytes.len() as u64 + 1) as usize;
        }
        let sent = self.client.wire().try_send(&bytes[..whole]);
        if is_last {
            // A moment of which nothing but the machine decides what the server does in it.
            for _ in 0..self.random.below(20_000) {
                core::hint::spin_loop();
            }
            self.kill();
        }
        sent.map_err(|_| Stop::Gone)
    }

    fn draw(&mut self) -> (Request, Sent) {
        let mut model = self.shared.model.lock().unwrap_or_else(PoisonError::into_inner);
        let length = model.len();
        let reads =
            self.in_flight.values().filter(|sent| matches!(sent, Sent::Read { .. })).count();
        let flags = if self.random.one_in(8) { cmd_flag::FUA } else { 0 };
        let offset = |range: &Range<u64>| range.start * SECTOR as u64;
        match self.random.below(16) {
            0 => (Request::flush(), Sent::Flush { moment: model.tick() }),
            1 | 2 if reads < MAX_READS => {
                let range = span(&mut self.random, length, MAX_READ);
                let (first, sectors) = (range.start, range.end - range.start);
                let request = Request::read(offset(&range), sectors * SECTOR as u64);
                (request, Sent::Read { first, sectors, moment: model.tick() })
            }
            3 => {
                let range = span(&mut self.random, length, MAX_WRITE);
                let request = model.zero(range.clone(), flags != 0);
                let bytes = (range.end - range.start) * SECTOR as u64;
                let zeroes = Request::write_zeroes(offset(&range), bytes).flags(flags);
                (zeroes, Sent::Change { request })
            }
            _ => {
                let range = span(&mut self.random, length, MAX_WRITE);
                let request = model.write(range.clone(), flags != 0);
                let bytes = data(request, range.start, range.end - range.start);
                (Request::write(offset(&range), &bytes).flags(flags), Sent::Change { request })
            }
        }
    }

    fn receive(&mut self) -> Result<(), Stop> {
        let header = self.recv(16)?;
        let word = |range: Range<usize>| {
            header[range].iter().fold(0u64, |number, &byte| number << 8 | u64::from(byte))
        };
        let cookie = word(8..16);
        let error = word(4..8);
        let sent = self.in_flight.remove(&cookie);
        let (true, 0, Some(sent)) = (word(0..4) == u64::from(magic::SIMPLE_REPLY), error, sent)
        else {
            let text = format!("a reply has error {error} and cookie {cookie}: {header:x?}");
            return Err(Violation(text).into());
        };
        let bytes = match sent {
            Sent::Read { sectors, .. } => self.recv(sectors as usize * SECTOR)?,
            _ => Vec::new(),
        };
        {
            let mut model = self.shared.model.lock().unwrap_or_else(PoisonError::into_inner);
            match sent {
                Sent::Read { first, moment, .. } => {
                    model.check_read(first, &bytes, moment)?;
                    self.seen.reads += 1;
                }
                Sent::Change { request } => {
                    model.acknowledge(request);
                    self.seen.changes += 1;
                }
                Sent::Flush { moment } => {
                    model.flushed(moment);
                    self.seen.flushes += 1;
                }
            }
        }
        if self.event() {
            self.kill();
        }
        Ok(())
    }

    fn recv(&mut self, length: usize) -> Result<Vec<u8>, Stop> {
        self.client.wire().recv_or_gone(length, "a reply").ok_or(Stop::Gone)
    }

    /// Counts an event; gives whether it is the one at which the server is killed.
    fn event(&self) -> bool {
        self.shared.events.fetch_add(1, Ordering::SeqCst) + 1 == self.shared.kill_at
    }

    fn kill(&self) {
        (self.shared.kill)();
        self.shared.over.store(true, Ordering::SeqCst);
    }
}

/// A run of sectors: short ones are as likely as long ones.
fn span(random: &mut Random, length: u64, max: u64) -> Range<u64> {
    let magnitude = random.below(u64::from(max.ilog2()) + 1);
    let count = 1 + random.below(1 << magnitude);
    let start = random.below(length - count + 1);
    start..start + count
}
