//! Reads whose reply is shown chunk by chunk.

use core::ops::Range;

use bytes::Bytes;
use nbd_proto::Command;
use nbd_proto::client::CommandError;

use super::client::{Client, Data, Shared};
use super::completion::{Findings, Outcome};
use super::pending::Pending;
use super::{Error, Flags, split};

/// A part of what was read (section "Structured reply types").
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Chunk {
    /// Data.
    #[non_exhaustive]
    Data {
        /// Its offset in the export.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Zeroes that the server did not send, since it has a hole there.
    #[non_exhaustive]
    Hole {
        /// Its offset in the export.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Something could not be read: at an [offset](CommandError::offset) of the export, or the server does not say where.
    Error(CommandError),
}

impl Chunk {
    /// Where it lies in the export; `None` for an error without an offset.
    #[must_use]
    pub const fn offset(&self) -> Option<u64> {
        match self {
            Self::Data { offset, .. } | Self::Hole { offset, .. } => Some(*offset),
            Self::Error(error) => error.offset,
        }
    }
}

/// The chunks of a read while its data lies in the request's buffer.
#[derive(Debug)]
pub(super) struct Chunks {
    /// Where the read begins in the export.
    offset: u64,
    marks: Vec<Mark>,
    /// What the whole read comes to if nothing but errors arrived.
    failure: Option<Box<Error>>,
}

/// A chunk. Positions are counted from the read's own offset.
#[derive(Debug)]
enum Mark {
    Data(Range<u64>),
    Hole(Range<u64>),
    Error(CommandError),
}

impl Chunks {
    const fn new(offset: u64) -> Self {
        Self { offset, marks: Vec::new(), failure: None }
    }

    /// Forgets what arrived: the read is sent again.
    pub(super) fn clear(&mut self) {
        self.marks.clear();
        self.failure = None;
    }

    /// Data is about to arrive. That of a chunk comes in pieces, each of which is announced with all that is still to
    /// come.
    pub(super) fn data(&mut self, range: Range<u64>) {
        let announced = match self.marks.last() {
            Some(Mark::Data(last)) => last.end == range.end && last.start <= range.start,
            _ => false,
        };
        if !announced {
            self.marks.push(Mark::Data(range));
        }
    }

    pub(super) fn hole(&mut self, range: Range<u64>) {
        self.marks.push(Mark::Hole(range));
    }

    pub(super) fn error(&mut self, error: CommandError) {
        self.marks.push(Mark::Error(error));
    }

    /// A part of the read has failed.
    pub(super) fn failed(&mut self, error: impl FnOnce() -> Error) {
        self.failure.get_or_insert_with(|| Box::new(error()));
    }

    /// Why a part of the read has failed.
    pub(super) fn failure(&self) -> Option<&Error> {
        self.failure.as_deref()
    }

    /// The chunks, unless there is nothing but errors.
    fn finish(self, data: &Bytes) -> Result<Vec<Chunk>, Error> {
        let Self { offset, marks, failure } = self;
        let has_content = marks.iter().any(|mark| !matches!(mark, Mark::Error(_)));
        if let Some(error) = failure.filter(|_| !has_content) {
            return Err(*error);
        }
        let chunk = |mark| match mark {
            // The range lies in a buffer, and thus in memory.
            Mark::Data(Range { start, end }) => Chunk::Data {
                offset: offset + start,
                data: data.slice(start as usize..end as usize),
            },
            Mark::Hole(Range { start, end }) => {
                Chunk::Hole { offset: offset + start, length: end - start }
            }
            Mark::Error(error) => Chunk::Error(error),
        };
        let mut chunks: Vec<_> = marks.into_iter().map(chunk).collect();
        chunks.sort_by_key(|chunk| chunk.offset().unwrap_or(u64::MAX));
        Ok(chunks)
    }
}

fn into_chunks(_: &Shared, _: usize, outcome: Outcome) -> Result<Vec<Chunk>, Error> {
    outcome.result.map_err(|error| *error)?;
    match outcome.findings {
        Findings::Chunks(chunks) => chunks.finish(&outcome.buffer.into_vec().into()),
        _ => Ok(Vec::new()),
    }
}

impl<C> Client<C> {
    /// Reads `length` bytes and shows how the server sent them: data, holes, and errors at offsets, sorted by offset;
    /// errors without an offset come last. Where some of it can't be read, the rest is there. Without
    /// [structured replies](super::ExportDetails::is_structured) there is one chunk of data, or several for a long read.
    /// With [`Flags::DF`] the server sends one chunk of data, or none.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As for [`read`](Self::read) if nothing of it could be read.
    pub async fn read_chunks(
        &self,
        offset: u64,
        length: usize,
        flags: Flags,
    ) -> Result<Vec<Chunk>, Error> {
        self.submit_read_chunks(offset, length, flags).await
    }

    /// Submits what [`read_chunks`](Self::read_chunks) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_read_chunks(
        &self,
        offset: u64,
        length: usize,
        flags: Flags,
    ) -> Pending<Result<Vec<Chunk>, Error>> {
        let command = split::with_flags(Command::read(offset, length as u64), flags);
        let findings = Findings::Chunks(Chunks::new(offset));
        self.submit(command, Data::New(length), findings, into_chunks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_one_chunk_are_one_and_chunks_are_sorted() {
        let mut chunks = Chunks::new(7);
        for range in [100..200, 300..400, 350..400, 399..400, 0..100] {
            chunks.data(range);
        }
        chunks.hole(200..300);
        let chunks = chunks.finish(&vec![0; 400].into()).unwrap();
        let offsets: Vec<_> = chunks.iter().map(Chunk::offset).collect();
        assert_eq!(offsets, [Some(7), Some(107), Some(207), Some(307)]);
        assert_eq!(chunks[2], Chunk::Hole { offset: 207, length: 100 });
    }
}
