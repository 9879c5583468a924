//! One thread of a run: keeps requests in flight on one connection.
//!
//! Each request takes over the buffer of one that was answered: none is allocated once all are in flight.

use std::time::Instant;

use nbd_blocking::Client;
use nbd_blocking::client::{BufResult, Error, Flags, Pending};

use super::plan::random;
use super::run::{Outcomes, Run};

/// Bytes that are written are marked with the number of their request this often, so that no two blocks are the same.
const MARKS: usize = 4096;

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    writes: bool,
    begun: Instant,
}

pub(super) struct Worker<'a> {
    run: &'a Run,
    /// The index of this thread.
    thread: usize,
    client: Client,
    /// Requests, and what they are, at the same indices.
    pending: Vec<Pending<BufResult>>,
    in_flight: Vec<InFlight>,
    spare: Vec<Vec<u8>>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(run: &'a Run, thread: usize, client: Client) -> Self {
        let depth = run.depth;
        Self {
            run,
            thread,
            client,
            pending: Vec::with_capacity(depth),
            in_flight: Vec::with_capacity(depth),
            spare: (0..depth).map(|index| noise(run, thread * depth + index)).collect(),
        }
    }

    /// Sends requests until the run is over, and waits for those that are in flight.
    ///
    /// # Errors
    /// If a request fails on this side. The other threads stop, too.
    pub(super) fn run(mut self) -> Result<Client, Error> {
        let mut now = Instant::now();
        loop {
            while let Some(buffer) = self.spare.pop() {
                let Some((number, request)) = self.run.next(now) else {
                    self.spare.push(buffer);
                    break;
                };
                self.submit(number, request.writes, request.offset, buffer);
            }
            let Some(first) = Pending::wait_any(&self.pending) else { return Ok(self.client) };
            now = Instant::now();
            if let Err(error) = self.take(first, now) {
                self.run.stop();
                return Err(error);
            }
        }
    }

    fn submit(&mut self, number: u64, writes: bool, offset: u64, mut buffer: Vec<u8>) {
        let begun = Instant::now();
        let pending = match writes {
            true => {
                for part in buffer.chunks_mut(MARKS) {
                    let count = part.len().min(8);
                    part[..count].copy_from_slice(&number.to_le_bytes()[..count]);
                }
                self.client.submit_write_from(offset, buffer, Flags::empty())
            }
            false => self.client.submit_read_into(offset, buffer, Flags::empty()),
        };
        self.pending.push(pending);
        self.in_flight.push(InFlight { writes, begun });
    }

    /// Takes the outcomes of all requests that are answered; the first of them has that index.
    fn take(&mut self, first: usize, now: Instant) -> Result<(), Error> {
        let mut tally = self.run.tally(self.thread);
        let mut index = first;
        while index < self.pending.len() {
            if !self.pending[index].is_done() {
                index += 1;
                continue;
            }
            let InFlight { writes, begun } = self.in_flight.swap_remove(index);
            let (buffer, result) = self.pending.swap_remove(index).wait();
            self.spare.push(buffer);
            let tally = &mut *tally;
            let Outcomes { latencies, errors } =
                if writes { &mut tally.writes } else { &mut tally.reads };
            match result {
                Ok(()) => latencies.record(now.saturating_duration_since(begun)),
                Err(error) => {
                    let Error::Command { error: of_server, .. } = &error else { return Err(error) };
                    *errors.entry(of_server.code.to_string()).or_default() += 1;
                    tally.first_error.get_or_insert(error);
                }
            }
        }
        Ok(())
    }
}

/// Bytes that don't compress, which no other buffer has.
fn noise(run: &Run, buffer: usize) -> Vec<u8> {
    let length = run.plan.block;
    if !run.plan.pattern.writes() {
        return vec![0; length];
    }
    let words = length.div_ceil(8) as u64;
    let first = (buffer as u64).wrapping_mul(words);
    let numbers = (0..words).map(|word| random(run.plan.seed, first.wrapping_add(word)));
    let mut bytes: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(length);
    bytes
}
