//! Where the work comes from: a plan of a disk, or a stream.

use core::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::CopyError;
use super::plan::{Piece, Plan};
use crate::patient::Patient;

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
    Stream(Mutex<Stream>),
}

/// A source that can only be read from its beginning to its end.
pub(super) struct Stream {
    file: Patient<File>,
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
        Self::Stream(Mutex::new(Stream { file: Patient(file), name, at: 0, limit, over: false }))
    }

    /// The next job. Only a stream takes a buffer, of which it fills as much as it can.
    pub(super) fn next(&self, buffer: impl FnOnce() -> Vec<u8>) -> Result<Option<Job>, CopyError> {
        match self {
            Self::Plan(plan) => Ok(lock(plan).next().map(Job::Piece)),
            Self::Stream(stream) => lock(stream).next(buffer),
        }
    }

    /// Hands out nothing more.
    pub(super) fn stop(&self) {
        match self {
            Self::Plan(plan) => lock(plan).stop(),
            Self::Stream(stream) => lock(stream).over = true,
        }
    }

    /// How much of a stream was read.
    pub(super) fn streamed(&self) -> u64 {
        match self {
            Self::Plan(..) => 0,
            Self::Stream(stream) => lock(stream).at,
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
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
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
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
