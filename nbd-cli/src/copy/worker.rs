//! One thread of a copy: keeps requests in flight on a connection to each side.
//!
//! Whatever comes first is dealt with first: what was read is written at once, out of the buffer that it was read into,
//! which then serves for the next read. Files are read and written in between, while servers work on what they were asked.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use nbd_blocking::Client;
use nbd_blocking::client::{BufResult, Bytes, Error, Flags, Pending};

use super::activity::{Activity, Step};
use super::disk::Disk;
use super::error::CopyError;
use super::feed::{Feed, Job};
use super::plan::Piece;
use super::progress::Progress;
use super::record::Record;
use super::sink::{Drained, InOrder};
use super::team::Ends;
use super::zeroes;
use crate::exit::Failure;

/// Where one thread reads.
#[derive(Debug)]
pub(super) enum Source {
    Server(Client),
    Disk(Disk),
    /// The feed brings the data.
    Stream,
}

/// Where one thread writes.
#[derive(Debug)]
pub(super) enum Destination {
    Server(Client),
    Disk(Disk),
    Stream(InOrder),
    Nowhere,
}

/// What all threads of a copy share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) feed: Feed,
    pub(super) progress: Progress,
    pub(super) source: String,
    pub(super) destination: String,
    /// How many requests each thread keeps in flight.
    pub(super) requests: usize,
    /// The longest of them.
    pub(super) request_size: usize,
    /// Blocks of this many bytes that are zero are not written as data; 0 turns that off.
    pub(super) sparse: usize,
    /// Zeroes are there already.
    pub(super) skip_zeroes: bool,
    /// Zeroes take up space.
    pub(super) allocated: bool,
    /// How many bytes are where they belong, or were compared.
    pub(super) count: AtomicU64,
    /// Where it is recorded which these are.
    pub(super) record: Option<Arc<Record>>,
}

impl Shared {
    /// The bytes from an offset on are where they belong, or were compared.
    pub(super) fn done(&self, offset: u64, bytes: u64) {
        self.count.fetch_add(bytes, Ordering::Relaxed);
        self.progress.add(bytes);
        if let Some(record) = &self.record {
            record.done(offset, bytes);
        }
    }

    /// The bytes before an offset were copied earlier.
    pub(super) fn begins_at(&self, offset: u64) {
        self.count.fetch_add(offset, Ordering::Relaxed);
        self.progress.begins_at(offset);
    }

    /// Whether each byte was dealt with once.
    ///
    /// # Errors
    /// A fault of ours, which must not pass for a copy.
    pub(super) fn check(&self, size: u64) -> Result<(), Failure> {
        match self.count.load(Ordering::Relaxed) {
            count if count == size => Ok(()),
            count => Err(Failure::failed(format!(
                "a fault of nbd: {count} bytes of {size} were dealt with; please report it"
            ))),
        }
    }
}

/// A request that lends a buffer.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    offset: u64,
    length: u64,
    writes: bool,
}

#[derive(Debug)]
pub(super) struct Worker<'a> {
    shared: &'a Shared,
    activity: Activity,
    source: Source,
    destination: Destination,
    /// Reads and writes with a buffer, and what they are, at the same indices.
    pending: Vec<Pending<BufResult>>,
    in_flight: Vec<InFlight>,
    /// Writes of zeroes and of parts of buffers.
    plain: Vec<Pending<Result<(), Error>>>,
    ranges: Vec<(u64, u64)>,
    spare: Vec<Vec<u8>>,
    /// For servers that have to be sent their zeroes.
    nothing: Bytes,
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared, (source, destination): Ends) -> Self {
        let (given, to) = (shared.feed.moves(), (&*shared.destination, &destination));
        let activity = Activity::new((&shared.source, &source), given, to);
        Self {
            shared,
            activity,
            source,
            destination,
            pending: Vec::new(),
            in_flight: Vec::new(),
            plain: Vec::new(),
            ranges: Vec::new(),
            spare: Vec::new(),
            nothing: Bytes::new(),
        }
    }

    /// Copies until nothing is left. Everything that was begun is done when this returns, unless it fails.
    pub(super) fn run(mut self) -> Result<(), CopyError> {
        self.copy().map_err(|error| {
            // The others need not go on.
            self.shared.feed.stop();
            error.first(self.failed())
        })
    }

    /// Of the requests that have failed and were not looked at, the one that is nearest to the beginning. A connection
    /// that is lost fails all of its requests at a time.
    fn failed(&mut self) -> Option<CopyError> {
        let mut first: Option<CopyError> = None;
        let mut note = |error: CopyError| first = Some(error.first(first.take()));
        let pending: Vec<_> = self.pending.drain(..).zip(self.in_flight.drain(..)).collect();
        for (pending, InFlight { offset, writes, .. }) in pending {
            if pending.is_done()
                && let (_, Err(error)) = pending.wait()
            {
                note(match writes {
                    false => self.cannot_read(offset, &error),
                    true => self.cannot_write(offset, &error),
                });
            }
        }
        let plain: Vec<_> = self.plain.drain(..).zip(self.ranges.drain(..)).collect();
        for (pending, (offset, _)) in plain {
            if pending.is_done()
                && let Err(error) = pending.wait()
            {
                note(self.cannot_write(offset, &error));
            }
        }
        first
    }

    fn copy(&mut self) -> Result<(), CopyError> {
        let mut over = false;
        loop {
            while !over && self.in_flight() < self.shared.requests {
                over = !self.begin()?;
            }
            self.collect()?;
            if self.plain.len() > self.shared.requests {
                self.wait_plain()?;
            } else if let Some(at) = self.wait_pending() {
                self.landed(at)?;
            } else if self.plain.is_empty() {
                if over {
                    return Ok(());
                }
            } else {
                self.wait_plain()?;
            }
        }
    }

    fn in_flight(&self) -> usize {
        let held = match &self.destination {
            Destination::Stream(stream) => stream.held(),
            _ => 0,
        };
        self.pending.len() + self.plain.len() + held
    }

    /// Begins with the next job; `false` if there is none.
    fn begin(&mut self) -> Result<bool, CopyError> {
        let shared = self.shared;
        if shared.record.as_ref().is_some_and(|record| record.is_ending()) {
            return Ok(false);
        }
        if shared.feed.is_stream() {
            // Reading may take its time.
            self.send();
            self.collect()?;
        }
        let mut buffer = shared.feed.is_stream().then(|| self.buffer(shared.request_size));
        let next = || shared.feed.next(|| buffer.take().unwrap_or_default());
        let job = self.activity.during(Step::Next, (0, 0), next)?;
        match job {
            None => return Ok(false),
            Some(Job::Loaded { offset, buffer }) => self.store(offset, buffer)?,
            Some(Job::Piece(piece)) if piece.zero => self.zero(piece.offset, piece.length)?,
            Some(Job::Piece(piece)) => self.load(piece)?,
        }
        Ok(true)
    }

    fn load(&mut self, Piece { offset, length, .. }: Piece) -> Result<(), CopyError> {
        let mut buffer = self.buffer(usize::try_from(length).unwrap_or(usize::MAX));
        match &self.source {
            Source::Server(client) => {
                let read = client.submit_read_into(offset, buffer, Flags::empty());
                self.push(read, InFlight { offset, length, writes: false });
                Ok(())
            }
            Source::Disk(disk) => {
                let read = || disk.read(&mut buffer, offset);
                let read = self.activity.during(Step::Read, (offset, length), read);
                read.map_err(|error| self.cannot_read(offset, &error))?;
                self.store(offset, buffer)?;
                self.send();
                Ok(())
            }
            Source::Stream => Ok(()),
        }
    }

    /// Has the destination's server begin with what it was asked.
    fn send(&self) {
        if let Destination::Server(client) = &self.destination {
            client.send_submitted();
        }
    }

    fn push(&mut self, pending: Pending<BufResult>, flight: InFlight) {
        self.pending.push(pending);
        self.in_flight.push(flight);
    }

    fn buffer(&mut self, length: usize) -> Vec<u8> {
        match self.spare.pop() {
            None => vec![0; length],
            Some(mut buffer) => {
                buffer.resize(length, 0);
                buffer
            }
        }
    }

    /// Takes the outcome of a request with a buffer.
    fn landed(&mut self, at: usize) -> Result<(), CopyError> {
        let flight = self.in_flight.swap_remove(at);
        let (buffer, result) = self.pending.swap_remove(at).wait();
        match (flight.writes, result) {
            (false, Ok(())) => self.store(flight.offset, buffer),
            (true, Ok(())) => {
                self.spare.push(buffer);
                self.shared.done(flight.offset, flight.length);
                Ok(())
            }
            (false, Err(error)) => Err(self.cannot_read(flight.offset, &error)),
            (true, Err(error)) => Err(self.cannot_write(flight.offset, &error)),
        }
    }

    /// Takes the outcomes of those plain requests that are done.
    fn collect(&mut self) -> Result<(), CopyError> {
        let mut at = 0;
        while at < self.plain.len() {
            match self.plain[at].is_done() {
                true => self.plain_landed(at)?,
                false => at += 1,
            }
        }
        Ok(())
    }

    /// Waits for one of the requests with a buffer. While none is answered, this is so of any.
    fn wait_pending(&self) -> Option<usize> {
        let flight = self.in_flight.first()?;
        let step = if flight.writes { Step::Write } else { Step::Read };
        let wait = || Pending::wait_any(&self.pending);
        self.activity.during(step, (flight.offset, flight.length), wait)
    }

    fn wait_plain(&mut self) -> Result<(), CopyError> {
        let Some(&range) = self.ranges.first() else { return Ok(()) };
        let wait = || Pending::wait_any(&self.plain);
        let done = self.activity.during(Step::Write, range, wait);
        done.map_or(Ok(()), |at| self.plain_landed(at))
    }

    fn plain_landed(&mut self, at: usize) -> Result<(), CopyError> {
        let (offset, length) = self.ranges.swap_remove(at);
        let result = self.plain.swap_remove(at).wait();
        result.map_err(|error| self.cannot_write(offset, &error))?;
        self.shared.done(offset, length);
        Ok(())
    }

    /// Writes what was read: all of it, or what is not zero.
    fn store(&mut self, offset: u64, mut buffer: Vec<u8>) -> Result<(), CopyError> {
        if let Destination::Server(client) = &self.destination {
            let minimum = usize::try_from(client.export().block_size().minimum()).unwrap_or(1);
            let whole = buffer.len() - buffer.len() % minimum;
            if whole < buffer.len() {
                let rest = buffer.split_off(whole);
                self.patch(offset + whole as u64, &rest, minimum)?;
            }
        }
        if self.shared.sparse == 0 || buffer.is_empty() {
            return self.store_all(offset, buffer);
        }
        match zeroes::runs(&buffer, self.shared.sparse)[..] {
            [(_, false)] => self.store_all(offset, buffer),
            [(_, true)] => {
                let length = buffer.len() as u64;
                self.spare.push(buffer);
                self.zero(offset, length)
            }
            ref runs => self.store_parts(offset, buffer, runs),
        }
    }

    fn store_all(&mut self, offset: u64, buffer: Vec<u8>) -> Result<(), CopyError> {
        let length = buffer.len() as u64;
        match &mut self.destination {
            Destination::Server(client) => {
                let write = client.submit_write_from(offset, buffer, Flags::empty());
                self.push(write, InFlight { offset, length, writes: true });
                return Ok(());
            }
            Destination::Stream(stream) => {
                let write = || stream.data(offset, buffer);
                let drained = self.activity.during(Step::Write, (offset, length), write);
                return self.drained(drained);
            }
            Destination::Disk(disk) => {
                let write = || disk.write(&buffer, offset);
                let result = self.activity.during(Step::Write, (offset, length), write);
                result.map_err(|error| self.cannot_write(offset, &error))?;
            }
            Destination::Nowhere => {}
        }
        self.spare.push(buffer);
        self.shared.done(offset, length);
        Ok(())
    }

    fn store_parts(
        &mut self,
        offset: u64,
        buffer: Vec<u8>,
        runs: &[(Range<usize>, bool)],
    ) -> Result<(), CopyError> {
        let span = |range: &Range<usize>| (offset + range.start as u64, range.len() as u64);
        for (range, _) in runs.iter().filter(|(_, zero)| *zero) {
            let (at, length) = span(range);
            self.zero(at, length)?;
        }
        let data = runs.iter().filter(|(_, zero)| !zero).map(|(range, _)| range);
        match &self.destination {
            Destination::Server(client) => {
                let bytes = Bytes::from(buffer);
                for range in data {
                    let part = bytes.slice(range.clone());
                    self.plain.push(client.submit_write(span(range).0, part, Flags::empty()));
                    self.ranges.push(span(range));
                }
            }
            Destination::Disk(disk) => {
                for range in data {
                    let (at, length) = span(range);
                    let write = || disk.write(&buffer[range.clone()], at);
                    let result = self.activity.during(Step::Write, (at, length), write);
                    result.map_err(|error| self.cannot_write(at, &error))?;
                    self.shared.done(at, length);
                }
                self.spare.push(buffer);
            }
            // Nothing is gained there by telling zeroes from data.
            Destination::Stream(_) | Destination::Nowhere => {}
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<(), CopyError> {
        match &mut self.destination {
            Destination::Stream(stream) => {
                let write = || stream.zeroes(offset, length);
                let drained = self.activity.during(Step::Write, (offset, length), write);
                return self.drained(drained);
            }
            Destination::Server(client) if !self.shared.skip_zeroes => {
                if client.export().can_write_zeroes() {
                    let mut flags = Flags::empty();
                    flags.set(Flags::NO_HOLE, self.shared.allocated);
                    self.plain.push(client.submit_write_zeroes(offset, length, flags));
                    self.ranges.push((offset, length));
                    return Ok(());
                }
                self.send_zeroes(offset, length);
                return Ok(());
            }
            Destination::Disk(disk) if !self.shared.skip_zeroes => {
                let write = || disk.zero(offset, length);
                let result = self.activity.during(Step::Write, (offset, length), write);
                result.map_err(|error| self.cannot_write(offset, &error))?;
            }
            Destination::Server(_) | Destination::Disk(_) | Destination::Nowhere => {}
        }
        self.shared.done(offset, length);
        Ok(())
    }

    /// Sends zeroes as data, all out of the same buffer.
    fn send_zeroes(&mut self, offset: u64, length: u64) {
        let Destination::Server(client) = &self.destination else { return };
        if self.nothing.is_empty() {
            self.nothing = vec![0; self.shared.request_size].into();
        }
        let mut at = offset;
        while at < offset + length {
            let count = (offset + length - at).min(self.nothing.len() as u64);
            let data = self.nothing.slice(..usize::try_from(count).unwrap_or(usize::MAX));
            self.plain.push(client.submit_write(at, data, Flags::empty()));
            self.ranges.push((at, count));
            at += count;
        }
    }

    /// Writes the last bytes of a source that fill only a part of the destination's smallest block. The rest of the block
    /// stays as it is.
    fn patch(&mut self, offset: u64, data: &[u8], minimum: usize) -> Result<(), CopyError> {
        let Destination::Server(client) = &self.destination else { return Ok(()) };
        let mut block = vec![0; minimum];
        let patch = || {
            client.read_exact_at(&mut block, offset)?;
            block[..data.len()].copy_from_slice(data);
            client.write_at(&block, offset)
        };
        let patched = self.activity.during(Step::Write, (offset, data.len() as u64), patch);
        patched.map_err(|error| self.cannot_write(offset, &error))?;
        self.shared.done(offset, data.len() as u64);
        Ok(())
    }

    fn drained(&mut self, drained: std::io::Result<Drained>) -> Result<(), CopyError> {
        let Drained { bytes, buffers } = drained.map_err(|error| {
            let at = match &self.destination {
                Destination::Stream(stream) => stream.position(),
                _ => 0,
            };
            self.cannot_write(at, &error)
        })?;
        self.spare.extend(buffers);
        // What a stream has taken is never recorded.
        self.shared.done(0, bytes);
        Ok(())
    }

    fn cannot_read(&self, offset: u64, error: &dyn core::fmt::Display) -> CopyError {
        CopyError::at(offset, format_args!("cannot read {}", self.shared.source), error)
    }

    fn cannot_write(&self, offset: u64, error: &dyn core::fmt::Display) -> CopyError {
        CopyError::at(offset, format_args!("cannot write {}", self.shared.destination), error)
    }
}

#[cfg(test)]
pub(super) mod tests;
