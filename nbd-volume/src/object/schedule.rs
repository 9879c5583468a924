//! Which parts are to be asked for, and by which requests.

use core::ops::Range;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use super::parts::bytes_of;

/// What became of a part: its bytes, or why they did not come.
pub(super) type Outcome = Result<Bytes, Arc<str>>;

/// Reports what became of a part; dropped without that when its request was not carried out.
pub(super) type Arrived = watch::Sender<Option<Outcome>>;

/// Waits for a part.
pub(super) type Arrival = watch::Receiver<Option<Outcome>>;

/// Parts that are waited for, each once, however many wait for it.
#[derive(Debug)]
pub(super) struct Schedule {
    /// Those that no request asks for yet.
    waiting: BTreeMap<u64, Arrived>,
    /// The order in which requests begin: what clients wait for, and then what is read ahead. Either may name parts that
    /// wait no longer.
    wanted: VecDeque<u64>,
    ahead: VecDeque<u64>,
    /// Those that a request asks for.
    in_flight: HashMap<u64, Arrival>,
    requests: usize,
    max_requests: usize,
    max_parts: usize,
}

/// Neighbouring parts that are to be asked for, in their order, and the first bytes of them.
#[derive(Debug)]
pub(super) struct Run {
    parts: VecDeque<(u64, Arrived)>,
    received: BytesMut,
}

impl Schedule {
    /// A schedule for so many requests at a time, each for at most so many parts; at least one of either.
    pub(super) fn new(max_requests: usize, max_parts: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            wanted: VecDeque::new(),
            ahead: VecDeque::new(),
            in_flight: HashMap::new(),
            requests: 0,
            max_requests: max_requests.max(1),
            max_parts: max_parts.max(1),
        }
    }

    /// The part is waited for.
    pub(super) fn want(&mut self, part: u64) -> Arrival {
        if let Some(arrival) = self.in_flight.get(&part) {
            return arrival.clone();
        }
        self.wanted.push_back(part);
        let new = || watch::channel(None).0;
        self.waiting.entry(part).or_insert_with(new).subscribe()
    }

    /// The part will soon be waited for. Does nothing when more wait already than all requests together would ask for.
    pub(super) fn prepare(&mut self, part: u64) {
        let enough = self.waiting.len() >= self.max_requests.saturating_mul(self.max_parts);
        if enough || self.in_flight.contains_key(&part) || self.waiting.contains_key(&part) {
            return;
        }
        self.ahead.push_back(part);
        self.waiting.insert(part, watch::channel(None).0);
    }

    /// The next request to begin: for the part that has waited longest, and its neighbours that wait as well. None if no
    /// part waits, or as many requests as may be are carried out. To be [finished](Self::finished).
    pub(super) fn next(&mut self) -> Option<Run> {
        if self.requests == self.max_requests {
            return None;
        }
        let first = loop {
            let part = self.wanted.pop_front().or_else(|| self.ahead.pop_front())?;
            if self.waiting.contains_key(&part) {
                break part;
            }
        };
        let is_waiting = |part: &u64| self.waiting.contains_key(part);
        // What is behind comes first: disks are read upwards.
        let after = (first..).take(self.max_parts).take_while(is_waiting).count();
        let room = self.max_parts - after;
        let before = (0..first).rev().take(room).take_while(is_waiting).count();
        let parts = first - before as u64..first + after as u64;
        let run =
            parts.filter_map(|part| self.waiting.remove(&part).map(|arrived| (part, arrived)));
        let run: VecDeque<_> = run.collect();
        for (part, arrived) in &run {
            self.in_flight.insert(*part, arrived.subscribe());
        }
        self.requests += 1;
        Some(Run { parts: run, received: BytesMut::new() })
    }

    /// No request asks for the part any more.
    pub(super) fn arrived(&mut self, part: u64) {
        self.in_flight.remove(&part);
    }

    /// A request is over, and asks for none of the parts that it is left with any more.
    pub(super) fn finished(&mut self, run: &Run) {
        for (part, _) in &run.parts {
            self.in_flight.remove(part);
        }
        self.requests -= 1;
    }
}

impl Run {
    /// The bytes that are still to come of an object that has that size.
    pub(super) fn missing(&self, size: u64) -> Range<u64> {
        let ends = self.parts.front().zip(self.parts.back());
        let parts = ends.map_or(0..0, |((first, _), (last, _))| *first..*last + 1);
        let bytes = bytes_of(&parts, size);
        bytes.start + self.received.len() as u64..bytes.end
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Takes bytes that came from the beginning of a chunk, up to the end of the first part; that is returned when it is
    /// complete.
    pub(super) fn take(&mut self, chunk: &mut Bytes, size: u64) -> Option<(u64, Arrived, Bytes)> {
        let (part, _) = self.parts.front()?;
        let bytes = bytes_of(&(*part..*part + 1), size);
        let length = (bytes.end - bytes.start) as usize;
        self.received.reserve(length - self.received.len());
        let taken = chunk.split_to(chunk.len().min(length - self.received.len()));
        self.received.extend_from_slice(&taken);
        if self.received.len() < length {
            return None;
        }
        let bytes = core::mem::take(&mut self.received).freeze();
        self.pop().map(|(part, arrived)| (part, arrived, bytes))
    }

    /// Gives up the first part.
    pub(super) fn pop(&mut self) -> Option<(u64, Arrived)> {
        self.received.clear();
        self.parts.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use nbd_testkit::cases;

    use super::*;

    fn parts(run: &Run) -> Vec<u64> {
        run.parts.iter().map(|(part, _)| *part).collect()
    }

    #[test]
    fn neighbours_come_by_one_request_and_what_clients_wait_for_comes_first() {
        let mut schedule = Schedule::new(1, 4);
        schedule.prepare(100);
        let _waits: Vec<Arrival> = [7, 3, 5, 4, 6].map(|part| schedule.want(part)).into();
        // The oldest one, and then what is behind it.
        let run = schedule.next().unwrap();
        assert_eq!(parts(&run), [4, 5, 6, 7]);
        // One at a time.
        assert!(schedule.next().is_none());
        schedule.finished(&run);
        let run = schedule.next().unwrap();
        assert_eq!(parts(&run), [3]);
        schedule.finished(&run);
        let run = schedule.next().unwrap();
        assert_eq!(parts(&run), [100]);
        schedule.finished(&run);
        assert!(schedule.next().is_none());
    }

    #[test]
    fn each_part_that_is_waited_for_is_asked_for_once_within_the_bounds() {
        cases(200, |random| {
            let (max_requests, max_parts) =
                (1 + random.below(4) as usize, 1 + random.below(8) as usize);
            let mut schedule = Schedule::new(max_requests, max_parts);
            let mut in_flight: Vec<Run> = Vec::new();
            let mut waits: HashMap<u64, Arrival> = HashMap::new();
            let mut drained = false;
            for step in 0.. {
                drained |= step > 200;
                match random.below(3) {
                    0 if !drained => {
                        let part = random.below(40);
                        if random.below(4) == 0 {
                            schedule.prepare(part);
                        } else {
                            waits.insert(part, schedule.want(part));
                        }
                    }
                    1 => {
                        if let Some(run) = schedule.next() {
                            assert!((1..=max_parts).contains(&run.parts.len()));
                            assert!(parts(&run).windows(2).all(|pair| pair[0] + 1 == pair[1]));
                            in_flight.push(run);
                            let all: Vec<u64> = in_flight.iter().flat_map(parts).collect();
                            assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
                            assert!(in_flight.len() <= max_requests);
                        }
                    }
                    _ if !in_flight.is_empty() => {
                        let index = random.below(in_flight.len() as u64) as usize;
                        let mut run = in_flight.swap_remove(index);
                        for _ in 0..random.below(run.parts.len() as u64 + 1) {
                            let (part, arrived) = run.pop().unwrap();
                            schedule.arrived(part);
                            arrived.send_replace(Some(Ok(Bytes::new())));
                        }
                        schedule.finished(&run);
                    }
                    _ if drained && schedule.waiting.is_empty() => break,
                    _ => {}
                }
            }
            // Whoever waits has an outcome, or knows that there will be none.
            for (part, wait) in waits {
                assert!(wait.borrow().is_some() || wait.has_changed().is_err(), "{part}");
            }
            assert!(schedule.in_flight.is_empty() && schedule.requests == 0);
        });
    }
}
