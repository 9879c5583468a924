//! What a read gives back.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use nbd_proto::wire::ErrorCode;

use super::memory::Page;
use super::pool::Pool;
use super::{ExportError, Result};

/// Bytes that an export shares instead of copying them. They must not change while they are shared.
#[derive(Clone, Debug)]
pub(crate) enum Shared {
    /// Reference-counted bytes of any origin.
    Bytes(Bytes),
    /// The part of a page from `start` to `end`, which lies inside of it. Costs no allocation.
    Slice { page: Page, start: usize, end: usize },
}

impl Shared {
    /// The part `range` of a page. Nothing if it does not lie inside of the page.
    pub(crate) fn page(page: Page, range: Range<usize>) -> Self {
        let inside = range.start <= range.end && range.end <= page.len();
        let Range { start, end } = if inside { range } else { 0..0 };
        Self::Slice { page, start, end }
    }

    /// The bytes.
    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Slice { page, start, end } => &page[*start..*end],
        }
    }

    /// How many there are.
    #[inline]
    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Slice { start, end, .. } => *end - *start,
        }
    }
}

/// A part of a body, in the order of the export's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// This many bytes of the body's own buffer, next after the earlier ones.
    Buffer(usize),
    /// Bytes shared by the export.
    Shared(Shared),
    /// This many zeroes, which take no memory, nor room on the wire where the client agreed to that.
    Hole(usize),
}

impl Piece {
    /// Bytes of the export that the piece stands for.
    #[inline]
    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Buffer(length) | Self::Hole(length) => *length,
            Self::Shared(shared) => shared.len(),
        }
    }

    /// Whether the piece stands for nothing.
    pub(crate) const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The data of a read: a list of pieces. A body is reused for later requests, so that its buffer is allocated once.
#[derive(Debug, Default)]
pub struct Body {
    /// Grows and is kept; all of it is initialised, so that it can be lent without clearing it again.
    buffer: Vec<u8>,
    filled: usize,
    pieces: Vec<Piece>,
    length: usize,
    pool: Option<Arc<Pool>>,
    flags: ReadFlags,
}

/// What else a client says of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadFlags {
    /// The client wants the data in one piece (`NBD_CMD_FLAG_DF`): holes are sent as zeroes, so that an export need not
    /// look for them.
    pub dont_fragment: bool,
}

impl Body {
    /// Buffers above this many bytes go back to the connection after use, smaller ones stay with the body.
    const MAX_KEPT: usize = 16 << 10;

    /// A body that takes its large buffers from a connection's pool.
    pub(crate) fn with_pool(pool: Arc<Pool>) -> Self {
        Self { pool: Some(pool), ..Self::default() }
    }

    /// Bytes of memory that `length` bytes of data take at most.
    pub(crate) const fn cost(length: usize) -> usize {
        if length > Self::MAX_KEPT { Pool::rounded(length) } else { length }
    }

    /// Bytes of memory that the body holds: its own buffer, and what the export shares.
    pub(crate) fn held(&self) -> usize {
        let shared = self.pieces.iter().filter(|piece| matches!(piece, Piece::Shared(_)));
        self.buffer.len() + shared.map(Piece::len).sum::<usize>()
    }

    /// Bytes of the buffer, which stays with the body after use if it is small.
    pub(crate) const fn buffer_size(&self) -> usize {
        self.buffer.len()
    }

    /// Forgets the content, and parts with the buffer when it is large.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.filled = 0;
        self.length = 0;
        self.flags = ReadFlags::default();
        if self.buffer.len() > Self::MAX_KEPT {
            self.part_with_buffer();
        }
    }

    /// Forgets the content and frees all memory.
    pub(crate) fn free(&mut self) {
        self.clear();
        self.buffer = Vec::new();
        self.pieces = Vec::new();
    }

    fn part_with_buffer(&mut self) {
        let buffer = core::mem::take(&mut self.buffer);
        if let Some(pool) = &self.pool {
            pool.give_back(buffer);
        }
    }

    /// Makes the buffer hold `length` bytes, those that are in use included. `None` if there is no memory for them.
    fn grow(&mut self, length: usize) -> Option<()> {
        match &self.pool {
            Some(pool) if length > Self::MAX_KEPT => {
                let mut larger = pool.take(length)?;
                larger[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
                if self.buffer.len() > Self::MAX_KEPT {
                    self.part_with_buffer();
                }
                self.buffer = larger;
            }
            _ => {
                self.buffer.try_reserve_exact(length - self.buffer.len()).ok()?;
                self.buffer.resize(length, 0);
            }
        }
        Some(())
    }

    /// Appends `length` bytes of the body's own buffer and lends them to be filled. What stands in them is arbitrary
    /// (data of an earlier request of the same connection), so every byte must be written.
    ///
    /// # Errors
    /// `ENOMEM` if there is no memory for them.
    pub fn fill(&mut self, length: usize) -> Result<&mut [u8]> {
        let start = self.filled;
        let end = start.checked_add(length).ok_or_else(no_memory)?;
        if self.buffer.len() < end {
            self.grow(end).ok_or_else(no_memory)?;
        }
        self.filled = end;
        self.push(Piece::Buffer(length));
        Ok(&mut self.buffer[start..end])
    }

    /// Appends bytes that the export shares instead of copying them. They must not change while they are shared, which
    /// is until the reply is sent.
    pub fn share_bytes(&mut self, bytes: impl Into<Bytes>) {
        self.share(Shared::Bytes(bytes.into()));
    }

    /// Appends the part `range` of a page that the export shares, which costs no allocation. Nothing if the range does
    /// not lie inside of the page.
    pub fn share_page(&mut self, page: Page, range: Range<usize>) {
        self.share(Shared::page(page, range));
    }

    /// Appends bytes that the export shares.
    pub(crate) fn share(&mut self, shared: Shared) {
        self.push(Piece::Shared(shared));
    }

    /// What else the client says of the read that this body is for.
    #[must_use]
    pub const fn flags(&self) -> ReadFlags {
        self.flags
    }

    pub(crate) const fn set_flags(&mut self, flags: ReadFlags) {
        self.flags = flags;
    }

    /// A copy of the content, holes as zeroes; for tests of exports.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.length);
        let mut buffer = self.buffer();
        for piece in &self.pieces {
            match piece {
                Piece::Buffer(length) => {
                    let (own, rest) = buffer.split_at(*length);
                    bytes.extend_from_slice(own);
                    buffer = rest;
                }
                Piece::Shared(shared) => bytes.extend_from_slice(shared.as_slice()),
                Piece::Hole(length) => bytes.resize(bytes.len() + length, 0),
            }
        }
        bytes
    }

    /// Appends `length` zeroes.
    pub fn hole(&mut self, length: usize) {
        self.push(Piece::Hole(length));
    }

    /// Takes back the latest piece, for an attempt that did not succeed; does nothing without one.
    pub fn take_back(&mut self) {
        if let Some(piece) = self.pieces.pop() {
            self.length -= piece.len();
            if let Piece::Buffer(length) = piece {
                self.filled -= length;
            }
        }
    }

    fn push(&mut self, piece: Piece) {
        // An export may say what it likes; the length is compared with what was asked for.
        self.length = self.length.saturating_add(piece.len());
        self.pieces.push(piece);
    }

    /// Bytes of all pieces, holes included.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is there.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The pieces, in order.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The body's own buffer as far as [`fill`](Self::fill) has handed it out, to fill it piece by piece.
    #[must_use]
    pub fn buffer(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// The body's own buffer as far as [`fill`](Self::fill) has handed it out, to fill it piece by piece.
    pub fn buffer_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.filled]
    }

    /// Takes the own buffer out while the body is used otherwise.
    pub(crate) fn take_buffer(&mut self) -> TakenBuffer {
        TakenBuffer { buffer: core::mem::take(&mut self.buffer), filled: self.filled }
    }

    /// Takes the buffer back, unless a new one has come into being.
    pub(crate) fn return_buffer(&mut self, taken: TakenBuffer) {
        if self.buffer.is_empty() {
            self.buffer = taken.buffer;
        }
    }

    /// Calls `visit` with the slices that make up `range` of the content, until it returns `false`. Holes are left out:
    /// the core sends them by itself.
    pub(crate) fn slices<'a>(
        &'a self,
        range: Range<usize>,
        mut visit: impl FnMut(IoSlice<'a>) -> bool,
    ) {
        if let [Piece::Shared(shared)] = self.pieces.as_slice() {
            if let Some(bytes) = shared.as_slice().get(range) {
                visit(IoSlice::new(bytes));
            }
            return;
        }
        let mut buffer_start = 0;
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.len();
            let (from, to) = (range.start.max(start), range.end.min(end));
            let bytes = match piece {
                Piece::Buffer(length) => {
                    let bytes = &self.buffer[buffer_start..buffer_start + length];
                    buffer_start += length;
                    Some(bytes)
                }
                Piece::Shared(shared) if from < to => Some(shared.as_slice()),
                Piece::Shared(_) | Piece::Hole(_) => None,
            };
            if let Some(bytes) = bytes
                && from < to
                && !visit(IoSlice::new(&bytes[from - start..to - start]))
            {
                return;
            }
            start = end;
            if start >= range.end {
                return;
            }
        }
    }
}

fn no_memory() -> ExportError {
    ExportError::new(ErrorCode::ENOMEM, "the server has no memory left for the data")
}

/// A body's own buffer, lent out.
#[derive(Debug)]
pub(crate) struct TakenBuffer {
    buffer: Vec<u8>,
    filled: usize,
}

impl TakenBuffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(body: &Body, range: Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::new();
        body.slices(range, |slice| {
            bytes.extend_from_slice(&slice);
            true
        });
        bytes
    }

    #[test]
    fn slices_of_any_range_come_out_in_order() {
        let mut body = Body::default();
        body.fill(2).unwrap().copy_from_slice(b"ab");
        body.share(Shared::Bytes(Bytes::from_static(b"cd")));
        body.fill(1).unwrap().copy_from_slice(b"e");
        body.share(Shared::page(b"xfgx".to_vec().into(), 1..3));
        assert_eq!(body.len(), 7);
        for start in 0..7 {
            for end in start..=7 {
                assert_eq!(collect(&body, start..end), &b"abcdefg"[start..end]);
            }
        }
    }

    #[test]
    fn memory_that_is_not_there_is_an_error_and_leaves_the_body_as_it_was() {
        let mut body = Body::with_pool(Arc::default());
        body.fill(3).unwrap().copy_from_slice(b"abc");
        for length in [isize::MAX as usize, usize::MAX] {
            assert_eq!(body.fill(length).unwrap_err().code(), ErrorCode::ENOMEM);
        }
        assert_eq!(collect(&body, 0..3), b"abc");
        assert_eq!(body.len(), 3);
    }

    #[test]
    fn data_that_is_taken_back_was_never_there() {
        let mut body = Body::default();
        body.fill(2).unwrap().copy_from_slice(b"ab");
        body.fill(3).unwrap().fill(b'x');
        body.take_back();
        body.hole(5);
        body.take_back();
        body.fill(2).unwrap().copy_from_slice(b"cd");
        assert_eq!((body.len(), body.buffer()), (4, &b"abcd"[..]));
        assert_eq!(collect(&body, 0..4), b"abcd");
    }

    #[test]
    fn a_large_buffer_goes_back_to_the_pool_and_a_small_one_is_kept() {
        let pool = Arc::new(Pool::default());
        let mut body = Body::with_pool(Arc::clone(&pool));
        body.fill(4).unwrap().copy_from_slice(b"abcd");
        body.fill(1 << 20).unwrap()[0] = b'e';
        assert_eq!(collect(&body, 0..5), b"abcde");
        let address = body.buffer.as_ptr();
        body.clear();
        assert!(body.buffer.is_empty());
        let taken = pool.take(1 << 20).unwrap();
        assert_eq!(taken.as_ptr(), address);
        body.fill(4096).unwrap();
        body.clear();
        assert_eq!(body.buffer.len(), 4096);
    }
}
