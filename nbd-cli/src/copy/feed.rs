//! Where the work comes from: a plan of a disk, or a stream.

use core::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::CopyError;
use super::moves::{CountedStream, Moves};
use super::plan::{Piece, Plan};

/// What there is to do next.
#[derive(Debug)]
pub(super) enum Job {
    /// To be copied.
    Piece(Piece),
    /// To be written: it was read already.
    Loaded { offset: u64, buffer: Vec<u8> },
}

/// Shared by all that copy.
#[derive(Debug)]
pub(super) enum Feed {
    Plan(Mutex<Plan>),
    Stream(Mutex<Stream>, Moves),
}

/// A source that can only be read from its beginning to its end.
pub(super) struct Stream {
    file: CountedStream,
    name: String,
    at: u64,
    /// What the destination holds.
    limit: Option<u64>,
    over: bool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("name", &self.name)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Feed {
    pub(super) fn plan(plan: Plan) -> Self {
        Self::Plan(Mutex::new(plan))
    }

    pub(super) fn stream(file: File, name: String, limit: Option<u64>) -> Self {
        let file = CountedStream::new(file);
        let moves = file.moves().clone();
        Self::Stream(Mutex::new(Stream { file, name, at: 0, limit, over: false }), moves)
    }

    /// The next job. Only a stream takes a buffer, of which it fills as much as it can.
    pub(super) fn next(&self, buffer: impl FnOnce() -> Vec<u8>) -> Result<Option<Job>, CopyError> {
        match self {
            Self::Plan(plan) => Ok(lock(plan).next().map(Job::Piece)),
            Self::Stream(stream, _) => lock(stream).next(buffer),
        }
    }

    /// Hands out nothing more.
    pub(super) fn stop(&self) {
        match self {
            Self::Plan(plan) => lock(plan).stop(),
            Self::Stream(stream, _) => lock(stream).over = true,
        }
    }

    /// How often a stream has given something.
    pub(super) fn moves(&self) -> Option<Moves> {
        match self {
            Self::Plan(_) => None,
            Self::Stream(_, moves) => Some(moves.clone()),
        }
    }

    /// How much of a stream was read.
    pub(super) fn streamed(&self) -> u64 {
        match self {
            Self::Plan(..) => 0,
            Self::Stream(stream, _) => lock(stream).at,
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(..))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    fn next(&mut self, buffer: impl FnOnce() -> Vec<u8>) -> Result<Option<Job>, CopyError> {
        if self.over {
            return Ok(None);
        }
        let mut buffer = buffer();
        let offset = self.at;
        let count = fill(&mut self.file, &mut buffer)
            .map_err(|error| CopyError::at(offset, format!("cannot read {}", self.name), error))?;
        self.over = count < buffer.len();
        buffer.truncate(count);
        let end = offset + count as u64;
        if let Some(limit) = self.limit.filter(|limit| end > *limit) {
            let text =
                format!("{} does not end there, and the destination has no more room", self.name);
            return Err(CopyError::new(limit, text));
        }
        self.at = end;
        Ok((count > 0).then_some(Job::Loaded { offset, buffer }))
    }
}

/// Reads until the buffer is full or the stream ends.
pub(super) fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use nbd_testkit::cases;

    use super::*;

    #[test]
    fn a_stream_is_handed_out_in_order_up_to_its_end_or_that_of_the_room() {
        cases(300, |random| {
            let length = random.below(40) as usize;
            let bytes: Vec<u8> = (1..=length as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            file.rewind().unwrap();
            let any = random.below(50);
            let limit = random.of(&[None, Some(0), Some(length as u64), Some(any)]);
            let feed = Feed::stream(file, "it".into(), limit);
            assert!(feed.is_stream());
            let size = 1 + random.below(12) as usize;
            let stop = random.one_in(4).then(|| random.below(5));
            let (mut found, mut jobs) = (Vec::new(), 0);
            let failure = loop {
                if stop == Some(jobs) {
                    feed.stop();
                }
                jobs += 1;
                match feed.next(|| vec![0; size]) {
                    Err(error) => break Some(error.offset),
                    Ok(None) => break None,
                    Ok(Some(Job::Loaded { offset, buffer })) => {
                        assert_eq!(offset, found.len() as u64);
                        assert!(!buffer.is_empty(), "a job is about some bytes");
                        found.extend(buffer);
                    }
                    Ok(Some(Job::Piece(piece))) => panic!("a stream has no {piece:?}"),
                }
            };
            assert_eq!(feed.streamed(), found.len() as u64);
            assert_eq!(found, bytes[..found.len()]);
            match failure {
                Some(offset) => {
                    assert_eq!(Some(offset), limit);
                    assert!(offset < length as u64 && found.len() as u64 <= offset);
                }
                None if stop.is_some_and(|stop| stop < jobs) => {}
                None => assert!(
                    found.len() == length && limit.is_none_or(|limit| limit >= length as u64)
                ),
            }
            assert!(failure.is_some() || feed.next(Vec::new).unwrap().is_none(), "it is over");
        });
    }

    #[test]
    fn a_read_that_is_interrupted_is_tried_again_and_one_that_fails_is_not() {
        /// Gives these, one after the other, and then its end.
        struct Reads(Vec<Result<u8, ErrorKind>>);

        impl Read for Reads {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    return Ok(0);
                }
                buffer[0] = self.0.remove(0)?;
                Ok(1)
            }
        }

        let mut buffer = [0; 4];
        let interrupted = Err(ErrorKind::Interrupted);
        let mut reads = Reads(vec![Ok(1), interrupted, interrupted, Ok(2)]);
        assert_eq!(fill(&mut reads, &mut buffer).unwrap(), 2);
        assert_eq!(buffer, [1, 2, 0, 0]);
        let mut reads = Reads(vec![Ok(1), Err(ErrorKind::BrokenPipe), Ok(2)]);
        assert_eq!(fill(&mut reads, &mut buffer).unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut reads = Reads(vec![Ok(1); 5]);
        assert_eq!(fill(&mut reads, &mut buffer).unwrap(), 4, "it is full");
    }
}
