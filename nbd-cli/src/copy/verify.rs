//! Reading both sides again, and comparing them.

use std::collections::HashMap;

use nbd_blocking::Client;
use nbd_blocking::client::{BufResult, Flags, Pending};

use super::activity::{Activity, Step};
use super::disk::first_difference;
use super::error::CopyError;
use super::feed::Job;
use super::team::Ends;
use super::worker::{Destination, Shared, Source};

/// Bytes of one side that came before those of the other.
#[derive(Debug)]
enum Half {
    Source(Vec<u8>),
    Destination(Vec<u8>),
}

#[derive(Debug)]
struct InFlight {
    offset: u64,
    length: u64,
    /// How much of that is compared: a server may be read in whole blocks only.
    compared: usize,
    of_source: bool,
}

/// One thread that compares: with requests in flight to both sides.
#[derive(Debug)]
pub(super) struct Verifier<'a> {
    shared: &'a Shared,
    activity: Activity,
    source: Source,
    destination: Destination,
    pending: Vec<Pending<BufResult>>,
    in_flight: Vec<InFlight>,
    halves: HashMap<u64, Half>,
    spare: Vec<Vec<u8>>,
    /// Every piece was begun with.
    over: bool,
    /// The first difference.
    found: Option<u64>,
}

impl<'a> Verifier<'a> {
    pub(super) fn new(shared: &'a Shared, (source, destination): Ends) -> Self {
        let activity =
            Activity::new((&shared.source, &source), None, (&shared.destination, &destination));
        Self {
            shared,
            activity,
            source,
            destination,
            pending: Vec::new(),
            in_flight: Vec::new(),
            halves: HashMap::new(),
            spare: Vec::new(),
            over: false,
            found: None,
        }
    }

    /// Compares until nothing is left, or a difference is found.
    ///
    /// Pieces are handed out in order, and those that were begun with are compared to the end: of all that the threads
    /// find, the first one is the first difference at all.
    pub(super) fn run(mut self) -> Result<(), CopyError> {
        let result = self.compare();
        if result.is_err() {
            self.shared.feed.stop();
        }
        let names = (&self.shared.source, &self.shared.destination);
        match self.found {
            Some(offset) => Err(CopyError::differs(offset, names.0, names.1)),
            None => result,
        }
    }

    fn compare(&mut self) -> Result<(), CopyError> {
        loop {
            self.fill()?;
            // A half waits for its other one, which is asked for: without a request in flight all is over.
            let Some(at) = self.wait() else { return Ok(()) };
            self.landed(at)?;
        }
    }

    /// Begins with as many pieces as may be in flight.
    fn fill(&mut self) -> Result<(), CopyError> {
        while !self.over && self.in_flight() < self.shared.requests {
            self.over = !self.begin()?;
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.pending.len() + self.halves.len()
    }

    fn wait(&self) -> Option<usize> {
        let flight = self.in_flight.first()?;
        let step = if flight.of_source { Step::Read } else { Step::ReadBack };
        let bytes = (flight.offset, flight.length);
        self.activity.during(step, bytes, || Pending::wait_any(&self.pending))
    }

    fn begin(&mut self) -> Result<bool, CopyError> {
        let Some(Job::Piece(piece)) = self.shared.feed.next(Vec::new)? else { return Ok(false) };
        if piece.zero {
            // Both sides say so.
            self.shared.done(piece.offset, piece.length);
            return Ok(true);
        }
        let (offset, length) = (piece.offset, usize::try_from(piece.length).unwrap_or(usize::MAX));
        match &self.source {
            Source::Server(client) => {
                let client = client.clone();
                self.submit(&client, offset, length, true);
            }
            Source::Disk(disk) => {
                let disk = disk.clone();
                let mut buffer = self.buffer(length);
                let read = || disk.read(&mut buffer, offset);
                let read = self.activity.during(Step::Read, (offset, piece.length), read);
                read.map_err(|error| self.cannot_read(offset, true, &error))?;
                self.arrived(offset, Half::Source(buffer));
            }
            Source::Stream => {}
        }
        match &self.destination {
            Destination::Server(client) => {
                let client = client.clone();
                self.submit(&client, offset, length, false);
            }
            Destination::Disk(disk) => {
                let disk = disk.clone();
                let mut buffer = self.buffer(length);
                let read = || disk.read(&mut buffer, offset);
                let read = self.activity.during(Step::ReadBack, (offset, piece.length), read);
                read.map_err(|error| self.cannot_read(offset, false, &error))?;
                self.arrived(offset, Half::Destination(buffer));
            }
            Destination::Stream(_) | Destination::Nowhere => {}
        }
        Ok(true)
    }

    /// Reads so many bytes, in whole blocks: the side may have more bytes than are compared.
    fn submit(&mut self, client: &Client, offset: u64, compared: usize, of_source: bool) {
        let minimum = usize::try_from(client.export().block_size().minimum()).unwrap_or(1);
        let buffer = self.buffer(compared.next_multiple_of(minimum));
        let length = buffer.len() as u64;
        self.pending.push(client.submit_read_into(offset, buffer, Flags::empty()));
        self.in_flight.push(InFlight { offset, length, compared, of_source });
    }

    fn buffer(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    fn landed(&mut self, at: usize) -> Result<(), CopyError> {
        let InFlight { offset, compared, of_source, .. } = self.in_flight.swap_remove(at);
        let (mut buffer, result) = self.pending.swap_remove(at).wait();
        result.map_err(|error| self.cannot_read(offset, of_source, &error))?;
        buffer.truncate(compared);
        let half = if of_source { Half::Source(buffer) } else { Half::Destination(buffer) };
        self.arrived(offset, half);
        Ok(())
    }

    fn arrived(&mut self, offset: u64, half: Half) {
        let (source, destination) = match (self.halves.remove(&offset), half) {
            (Some(Half::Source(source)), Half::Destination(destination))
            | (Some(Half::Destination(destination)), Half::Source(source)) => (source, destination),
            (_, half) => {
                self.halves.insert(offset, half);
                return;
            }
        };
        if let Some(at) = first_difference(&source, &destination) {
            let found = offset + at as u64;
            self.found = Some(self.found.map_or(found, |before| before.min(found)));
            self.shared.feed.stop();
        }
        self.shared.done(offset, source.len() as u64);
        self.spare.extend([source, destination]);
    }

    fn cannot_read(
        &self,
        offset: u64,
        of_source: bool,
        error: &dyn core::fmt::Display,
    ) -> CopyError {
        let name = if of_source { &self.shared.source } else { &self.shared.destination };
        CopyError::at(offset, format_args!("cannot read {name}"), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::disk::Disk;
    use crate::copy::worker::tests::{Zeroes, shared};

    #[test]
    fn bytes_that_wait_for_those_of_the_other_side_count_as_in_flight() {
        let zeroes = Zeroes::serve();
        let file = tempfile::tempfile().unwrap();
        file.set_len(20).unwrap();
        let disk = Destination::Disk(Disk::new(file, false).unwrap());
        let mut shared = shared(20);
        shared.requests = 2;
        let mut verifier = Verifier::new(&shared, (Source::Server(zeroes.client.clone()), disk));
        verifier.fill().unwrap();
        assert_eq!((verifier.in_flight(), verifier.over), (2, false), "both halves of one piece");
        assert!(verifier.begin().unwrap(), "another piece");
        assert_eq!(verifier.in_flight(), 4);
        assert!(!verifier.begin().unwrap(), "all was begun with");
        verifier.compare().unwrap();
        assert_eq!((verifier.in_flight(), verifier.found), (0, None));
        shared.check(20).unwrap();
    }
}
