//! The two directions of a stream, and what happens to the bytes between its ends.

use core::task::Waker;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nbd_testkit::Random;

use super::{Death, Faults};
use crate::plan::{NetPlan, StreamFault, StreamFaultKind};

pub(super) fn lock(conn: &Arc<Mutex<Conn>>) -> MutexGuard<'_, Conn> {
    conn.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream. Direction 0 is from the client to the server.
pub(super) struct Conn {
    pub(super) pipes: [Pipe; 2],
    /// When both ends learn that the stream is broken.
    reset_at: Option<u64>,
    /// Nothing arrives any more.
    silent: bool,
    /// A fault has happened that nobody has been told of yet.
    pub(super) harmed: bool,
    pub(super) random: Random,
}

/// One direction.
pub(super) struct Pipe {
    in_flight: VecDeque<(u64, Item)>,
    received: VecDeque<u8>,
    /// Bytes in flight and received.
    held: usize,
    window: usize,
    written: u64,
    fault: Option<StreamFault>,
    last_arrival: u64,
    /// The end of the stream was written, or has arrived.
    closed: bool,
    ended: bool,
    /// What is written goes nowhere.
    vanishes: bool,
    /// The reading end is gone.
    pub(super) unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Item {
    Bytes(Vec<u8>),
    End,
}

/// Tasks to wake once the stream is not locked any more.
#[derive(Default)]
pub(super) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(super) fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }

    pub(super) fn add(&mut self, waker: Option<Waker>) {
        self.0.extend(waker);
    }
}

/// What a read or write comes to, or the moment to look again (besides being woken).
pub(super) enum Attempt {
    Done(usize),
    Failed(io::ErrorKind),
    Wait(Option<u64>),
}

impl Conn {
    pub(super) fn new(plan: &NetPlan, faults: Faults, seed: u64) -> Self {
        let pipe = |fault| Pipe {
            in_flight: VecDeque::new(),
            received: VecDeque::new(),
            held: 0,
            window: plan.window,
            written: 0,
            fault,
            last_arrival: 0,
            closed: false,
            ended: false,
            vanishes: false,
            unread: false,
            reader: None,
            writer: None,
        };
        let [to_server, to_client] = faults;
        Self {
            pipes: [pipe(to_server), pipe(to_client)],
            reset_at: None,
            silent: false,
            harmed: false,
            random: Random::new(seed),
        }
    }

    fn is_reset(&self, now: u64) -> bool {
        self.reset_at.is_some_and(|at| at <= now)
    }

    /// Whether the peer of `side` will certainly read nothing any more, as far as `side` can know.
    pub(super) fn is_peer_gone(&self, side: usize, now: u64) -> bool {
        self.is_reset(now) || self.pipes[side].unread && !self.silent
    }

    fn reset(&mut self, at: u64) -> Wakers {
        self.reset_at = Some(self.reset_at.map_or(at, |earlier| earlier.min(at)));
        self.all_wakers()
    }

    fn all_wakers(&mut self) -> Wakers {
        let mut wakers = Wakers::default();
        for pipe in &mut self.pipes {
            wakers.add(pipe.reader.take());
            wakers.add(pipe.writer.take());
        }
        wakers
    }

    /// Moves what has arrived by now.
    fn deliver(&mut self, direction: usize, now: u64) {
        if self.silent {
            return;
        }
        let pipe = &mut self.pipes[direction];
        while let Some((at, _)) = pipe.in_flight.front()
            && *at <= now
        {
            match pipe.in_flight.pop_front() {
                Some((_, Item::Bytes(bytes))) => pipe.received.extend(bytes),
                Some((_, Item::End)) => pipe.ended = true,
                None => {}
            }
        }
    }

    /// Reads at `side` into `buffer`, at most `limit` bytes.
    pub(super) fn read(
        &mut self,
        side: usize,
        now: u64,
        room: usize,
        waker: &Waker,
        mut take: impl FnMut(&[u8]),
    ) -> (Attempt, Wakers) {
        let direction = 1 - side;
        let mut wakers = Wakers::default();
        self.deliver(direction, now);
        // A reset may overtake what has arrived, or not.
        let broken = self.is_reset(now);
        let silent = self.silent;
        let reset_at = self.reset_at;
        let pipe = &mut self.pipes[direction];
        if broken && (pipe.received.is_empty() || self.random.one_in(2)) {
            return (Attempt::Failed(io::ErrorKind::ConnectionReset), wakers);
        }
        let count = room.min(pipe.received.len());
        if count > 0 {
            let (front, back) = pipe.received.as_slices();
            let from_front = count.min(front.len());
            take(&front[..from_front]);
            if count > from_front {
                take(&back[..count - from_front]);
            }
            pipe.received.drain(..count);
            pipe.held -= count;
            wakers.add(pipe.writer.take());
            return (Attempt::Done(count), wakers);
        }
        if pipe.ended || room == 0 {
            return (Attempt::Done(0), wakers);
        }
        pipe.reader = Some(waker.clone());
        let arrival = pipe.in_flight.front().map(|(at, _)| *at).filter(|_| !silent);
        let next = match (arrival, reset_at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        (Attempt::Wait(next), wakers)
    }

    /// Writes at `side`; `bytes` are all that is to be written. `delay` is how long they take.
    pub(super) fn write(
        &mut self,
        side: usize,
        now: u64,
        bytes: &[u8],
        delay: u64,
        waker: &Waker,
    ) -> (Attempt, Wakers) {
        let mut wakers = Wakers::default();
        if self.is_reset(now) {
            return (Attempt::Failed(io::ErrorKind::ConnectionReset), wakers);
        }
        let reset_at = self.reset_at;
        let pipe = &mut self.pipes[side];
        if pipe.closed {
            return (Attempt::Failed(io::ErrorKind::BrokenPipe), wakers);
        }
        if pipe.unread && !self.silent {
            // The first write after the peer's end is answered by a reset.
            let wakers = self.reset(now + delay);
            return (Attempt::Done(bytes.len()), wakers);
        }
        let mut count = bytes.len().min(pipe.window.saturating_sub(pipe.held));
        if count == 0 && !bytes.is_empty() {
            pipe.writer = Some(waker.clone());
            return (Attempt::Wait(reset_at), wakers);
        }
        if pipe.vanishes || self.silent {
            // Until the window is full.
            pipe.held += count;
            return (Attempt::Done(count), wakers);
        }
        let due = pipe.fault.filter(|fault| fault.byte <= pipe.written + count as u64);
        if let Some(fault) = due {
            count = usize::try_from(fault.byte - pipe.written).unwrap_or(0).min(count);
        }
        let arrival = (now + delay).max(pipe.last_arrival);
        pipe.last_arrival = arrival;
        if count > 0 {
            pipe.in_flight.push_back((arrival, Item::Bytes(bytes[..count].to_vec())));
            pipe.written += count as u64;
            pipe.held += count;
            wakers.add(pipe.reader.take());
        }
        if let Some(fault) = due {
            pipe.fault = None;
            wakers.0.extend(self.break_by(side, fault, now, arrival).0);
            if count == 0 {
                // The fault has happened before any byte of this: try again.
                waker.wake_by_ref();
                return (Attempt::Wait(None), wakers);
            }
        }
        (Attempt::Done(count), wakers)
    }

    fn break_by(&mut self, side: usize, fault: StreamFault, now: u64, arrival: u64) -> Wakers {
        self.harmed = true;
        let pipe = &mut self.pipes[side];
        match fault.kind {
            StreamFaultKind::Reset => {
                // What is in flight is lost, or not.
                let at = if self.random.one_in(2) { now } else { arrival };
                self.reset(at)
            }
            StreamFaultKind::End => {
                pipe.in_flight.push_back((arrival, Item::End));
                pipe.vanishes = true;
                self.reset(now + fault.time)
            }
            StreamFaultKind::Silence => {
                self.silent = true;
                self.reset(now + fault.time)
            }
            StreamFaultKind::Stall => {
                pipe.last_arrival = arrival + fault.time;
                Wakers::default()
            }
        }
    }

    /// Closes the writing side of `side`.
    pub(super) fn close(&mut self, side: usize, now: u64) -> Wakers {
        let pipe = &mut self.pipes[side];
        let mut wakers = Wakers::default();
        if !core::mem::replace(&mut pipe.closed, true) && !pipe.vanishes && !self.silent {
            let arrival = now.max(pipe.last_arrival);
            pipe.in_flight.push_back((arrival, Item::End));
            wakers.add(pipe.reader.take());
        }
        wakers
    }

    /// The end at `side` is gone.
    pub(super) fn drop_end(&mut self, side: usize, now: u64) -> Wakers {
        let mut wakers = self.close(side, now);
        let incoming = &mut self.pipes[1 - side];
        incoming.unread = true;
        let unread = !incoming.received.is_empty() || !incoming.in_flight.is_empty();
        wakers.add(incoming.writer.take());
        if unread && !self.silent {
            // As TCP does when a socket is closed with something unread. What was written before may get there, or not.
            let at = self.pipes[side].last_arrival.max(now);
            wakers.0.extend(self.reset(at).0);
        }
        wakers
    }

    /// The process at `side` is gone: its end of the stream does nothing any more.
    pub(super) fn sever(&mut self, side: usize, death: Death, now: u64) -> Wakers {
        match death {
            Death::Closed => {
                let mut wakers = self.drop_end(side, now);
                wakers.0.extend(self.all_wakers().0);
                wakers
            }
            Death::Silent(time) => {
                self.silent = true;
                self.reset(now + u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
            }
        }
    }
}
