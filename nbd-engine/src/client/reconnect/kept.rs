//! Acknowledged changes that are kept until they are flushed, to be written again after a lost connection.
//!
//! All connections of a client share them. A new connection may lead to a server that has lost its cache. So once there is
//! one, no connection submits anything; when nothing is in flight on any of them, the first one writes all kept changes again
//! and flushes them; then all go on. So no kept change can overwrite a later one, and no read can see the export without the
//! changes: not even without those that an earlier server had acknowledged, and whose replies were not yet received.

use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use nbd_proto::Command;

use super::super::connection_handle::ConnectionHandle;
use super::Tally;

/// Bytes that a kept change counts for besides its data: about what it takes.
const OVERHEAD: u64 = 128;

/// The changes of one client.
#[derive(Debug)]
pub(in super::super) struct Kept {
    max_bytes: u64,
    state: Mutex<State>,
    /// Whether connections wait for each other.
    waiting: AtomicBool,
    /// Those of all connections, to be woken.
    handles: OnceLock<Vec<Arc<ConnectionHandle>>>,
}

#[derive(Debug)]
struct State {
    /// In the order of their acknowledgements.
    log: VecDeque<Change>,
    /// All changes that were ever acknowledged; the last of the log is the latest of them.
    acknowledged: Tally,
    /// Bytes that the log counts for.
    bytes: u64,
    /// Bytes of changes in flight.
    reserved: u64,
    /// The connection on which a flush is in flight that is to make room.
    flushing: Option<usize>,
    /// A connection waits for room.
    starved: bool,
    /// Set from a new connection on until all kept changes are written again.
    recovering: bool,
    /// The connection that writes them.
    replayer: Option<usize>,
    connections: Vec<Progress>,
}

/// How far a connection is with the recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Requests may be in flight.
    Busy,
    /// Nothing is in flight.
    Drained,
    /// It has ended, and there is no new one yet, or never will be.
    Ended,
}

/// An acknowledged change.
#[derive(Debug)]
struct Change {
    range: Range<u64>,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Data(Bytes),
    Zeroes {
        command: Command,
    },
    Trim,
    /// Something that is not to be written again, and hides what was there before.
    Durable,
}

/// What a connection does next.
#[derive(Debug)]
pub(in super::super) enum Next {
    /// It submits requests.
    Submit,
    /// It submits nothing for the moment.
    Hold,
    /// It carries these out, then flushes, and reports that by [`Kept::recovered`].
    Replay(Vec<(Command, Bytes)>),
}

/// Whether there is room for a change.
#[derive(Debug)]
pub(in super::super) enum Room {
    Reserved(Reservation),
    /// Not yet: the connection is woken when it is worth asking again.
    Wait,
    /// Not before a flush, which this connection is to submit.
    Flush,
}

/// Room for a change in flight. Dropped with its request at the latest, whatever becomes of that: room that nobody gives back
/// would be missing for good.
#[derive(Debug)]
pub(in super::super) struct Reservation {
    kept: Arc<Kept>,
    cost: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.kept.state();
        state.reserved = state.reserved.saturating_sub(self.cost);
        if core::mem::take(&mut state.starved) {
            self.kept.changed(state);
        }
    }
}

impl Kept {
    pub(in super::super) fn new(max_bytes: u64, connections: usize) -> Self {
        let state = State {
            log: VecDeque::new(),
            acknowledged: Tally::default(),
            bytes: 0,
            reserved: 0,
            flushing: None,
            starved: false,
            recovering: false,
            replayer: None,
            connections: vec![Progress::Busy; connections],
        };
        Self {
            max_bytes,
            state: Mutex::new(state),
            waiting: AtomicBool::new(false),
            handles: OnceLock::new(),
        }
    }

    /// Whom to wake.
    pub(in super::super) fn set_handles(&self, handles: Vec<Arc<ConnectionHandle>>) {
        let _only_once = self.handles.set(handles);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether connections wait for each other, so that a waiter has to drive all of them.
    pub(in super::super) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Releases the state, and has every connection look again.
    fn changed(&self, state: MutexGuard<'_, State>) {
        // A connection that needs a flush of another one asks again now, and is starved then.
        let waiting = state.recovering || state.starved;
        self.waiting.store(waiting, Ordering::Release);
        drop(state);
        for handle in self.handles.get().into_iter().flatten() {
            handle.waker.wake();
        }
    }

    /// Reserves room for a change that the connection is about to submit.
    pub(in super::super) fn reserve(self: &Arc<Self>, index: usize, command: &Command) -> Room {
        let mut state = self.state();
        let cost = cost(command);
        let used = state.bytes + state.reserved;
        if used == 0 || used.saturating_add(cost) <= self.max_bytes {
            state.reserved += cost;
            return Room::Reserved(Reservation { kept: Arc::clone(self), cost });
        }
        state.starved = true;
        self.waiting.store(true, Ordering::Release);
        if state.bytes == 0 || state.flushing.is_some() {
            return Room::Wait;
        }
        state.flushing = Some(index);
        Room::Flush
    }

    /// A change was acknowledged. Said before its waiter learns it.
    pub(in super::super) fn acknowledge(&self, command: &Command, data: impl FnOnce() -> Bytes) {
        let what = match *command {
            command if command.flags().contains(super::super::Flags::FUA) => What::Durable,
            Command::Write { .. } => What::Data(data()),
            Command::WriteZeroes { .. } => What::Zeroes { command: *command },
            Command::Trim { .. } => What::Trim,
            _ => What::Durable,
        };
        let range = match *command {
            // What lies behind the new end is gone.
            Command::Resize { size, .. } => size..u64::MAX,
            _ => command.offset()..command.offset().saturating_add(command.length()),
        };
        let mut state = self.state();
        state.acknowledged.add(Tally { requests: 1, bytes: 0 });
        // There is nothing to be hidden. (The log always ends with the latest changes, without a gap.)
        if state.log.is_empty() && matches!(what, What::Durable) {
            return;
        }
        let change = Change { range, what };
        state.bytes += change.cost();
        state.log.push_back(change);
    }

    /// What a flush covers that is submitted now.
    pub(in super::super) fn mark(&self) -> Tally {
        self.state().acknowledged
    }

    /// A flush that covers so much has succeeded, on any connection: so the server promises.
    pub(in super::super) fn flushed(&self, covered: Tally) {
        let mut state = self.state();
        state.forget(covered);
    }

    /// The flush that was to make room has ended. Gives what it had to cover and did not.
    pub(in super::super) fn flush_ended(&self, covered: Tally, succeeded: bool) -> Tally {
        let mut state = self.state();
        let forgotten = state.forget(covered);
        state.flushing = None;
        state.starved = false;
        self.changed(state);
        if succeeded { Tally::default() } else { forgotten }
    }

    /// A connection has ended: it is lost, or the client has disconnected.
    pub(in super::super) fn ended(&self, index: usize) {
        let mut state = self.state();
        state.end(index);
        self.changed(state);
    }

    /// A lost connection is replaced. From now on no connection submits anything before everything is written again.
    pub(in super::super) fn connected(&self, index: usize) {
        let mut state = self.state();
        state.recovering = true;
        state.connections[index] = Progress::Drained;
        self.changed(state);
    }

    /// What a connection does that is connected, and is `idle` if nothing is in flight on it. `size` is the export's.
    pub(in super::super) fn next(&self, index: usize, idle: bool, size: u64) -> Next {
        let mut state = self.state();
        if !state.recovering {
            return Next::Submit;
        }
        if idle && state.connections[index] == Progress::Busy {
            state.connections[index] = Progress::Drained;
        }
        if state.replayer.is_some() || state.connections.contains(&Progress::Busy) {
            return Next::Hold;
        }
        let pieces = pieces(&state.log, size);
        if pieces.is_empty() {
            state.recover();
            self.changed(state);
            return Next::Submit;
        }
        state.replayer = Some(index);
        Next::Replay(pieces)
    }

    /// All kept changes are written again and flushed, or the flush has failed. Gives what it had to cover and did not.
    pub(in super::super) fn recovered(&self, succeeded: bool) -> Tally {
        let mut state = self.state();
        let forgotten = state.recover();
        self.changed(state);
        if succeeded { Tally::default() } else { forgotten }
    }
}

/// Bytes that a change counts for while it is in flight.
fn cost(command: &Command) -> u64 {
    OVERHEAD + command.payload_length()
}

impl State {
    /// Forgets changes that are flushed. Gives how much that is.
    fn forget(&mut self, covered: Tally) -> Tally {
        let mut forgotten = Tally::default();
        let later = self.acknowledged.since(covered).requests as usize;
        while self.log.len() > later
            && let Some(change) = self.log.pop_front()
        {
            self.bytes -= change.cost();
            if let Some(bytes) = change.volatile() {
                forgotten.add(Tally { requests: 1, bytes });
            }
        }
        forgotten
    }

    fn recover(&mut self) -> Tally {
        self.recovering = false;
        self.replayer = None;
        self.starved = false;
        // What is drained may have something in flight again. So none is drained until the next recovery.
        for connection in &mut self.connections {
            if *connection == Progress::Drained {
                *connection = Progress::Busy;
            }
        }
        self.forget(self.acknowledged)
    }

    /// Nothing is in flight on a connection any more.
    fn end(&mut self, index: usize) {
        self.connections[index] = Progress::Ended;
        self.replayer.take_if(|replayer| *replayer == index);
        self.flushing.take_if(|flushing| *flushing == index);
        // The connection that needs the flush asks again.
        self.starved = false;
    }
}

impl Change {
    fn cost(&self) -> u64 {
        let data = if let What::Data(data) = &self.what { data.len() as u64 } else { 0 };
        OVERHEAD + data
    }

    /// Bytes that a server can lose with its cache; `None` if nothing is to be lost.
    const fn volatile(&self) -> Option<u64> {
        match self.what {
            What::Durable => None,
            _ => Some(self.range.end - self.range.start),
        }
    }
}

/// What is to be written so that all changes are there, each byte once: the latest change of each.
fn pieces(log: &VecDeque<Change>, size: u64) -> Vec<(Command, Bytes)> {
    let mut pieces = Vec::new();
    let mut covered = Covered::default();
    for change in log.iter().rev() {
        let range = change.range.start..change.range.end.min(size);
        covered.add(range, |gap| {
            let (offset, length) = (gap.start, gap.end - gap.start);
            let (command, data) = match &change.what {
                What::Durable => return,
                What::Data(data) => {
                    let start = (offset - change.range.start) as usize;
                    let data = data.slice(start..start + length as usize);
                    (Command::write(offset, length), data)
                }
                What::Zeroes { command } => {
                    let no_hole = command.flags().contains(super::super::Flags::NO_HOLE);
                    let again = Command::write_zeroes(offset, length);
                    (if no_hole { again.with_no_hole() } else { again }, Bytes::new())
                }
                What::Trim => (Command::trim(offset, length), Bytes::new()),
            };
            pieces.push((command, data));
        });
    }
    pieces
}

/// Bytes that were seen: ranges that do not touch, by their starts.
#[derive(Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Adds a range; reports the parts of it that are new.
    fn add(&mut self, range: Range<u64>, mut new: impl FnMut(Range<u64>)) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut next = range.start;
        // From the last one that begins before the range on.
        let first = self.0.range(..=range.start).next_back().map_or(range.start, |(at, _)| *at);
        let touching: Vec<_> = self
            .0
            .range(first..=range.end)
            .map(|(start, end)| *start..*end)
            .filter(|known| known.end >= range.start)
            .collect();
        for known in touching {
            if known.start > next {
                new(next..known.start);
            }
            next = next.max(known.end);
            (start, end) = (start.min(known.start), end.max(known.end));
            self.0.remove(&known.start);
        }
        if next < range.end {
            new(next..range.end);
        }
        self.0.insert(start, end);
    }
}

#[cfg(test)]
mod tests;
