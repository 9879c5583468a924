//! A client as a stream of bytes with a position.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io::{self, SeekFrom};

use futures_io::{AsyncRead, AsyncSeek, AsyncWrite};

use super::{BufResult, Client, Error, Flags, Pending};

/// Bytes that one call reads or writes at most: what has to be copied while the caller waits.
const MAX_LENGTH: usize = 1 << 20;

/// An export with a position in it, for code that reads, writes and seeks.
///
/// What is read and written has to be aligned as for the [`Client`] itself; most exports take any byte. Each read is a
/// request: put a buffer of some 256 KiB around it, or copy in pieces of that size.
///
/// A write is sent at once and waited for by the next call; flushing waits for it, and then has the server make
/// everything durable if it [can](super::ExportDetails::can_flush). Writes at the end of the export fail with
/// [`io::ErrorKind::StorageFull`]. A call moves at most 1 MiB.
///
/// Reading, writing and flushing are cancel-safe: a read that is given up moves nothing, and a write that was given up
/// before it was ready was not begun. The error of a write that was sent is reported by the next call.
#[derive(Debug)]
pub struct Cursor<C> {
    client: Client<C>,
    position: u64,
    reading: Option<Pending<BufResult>>,
    writing: Option<Pending<BufResult>>,
    flushing: Option<Pending<Result<(), Error>>>,
    /// The buffer of the last request, to be used for the next.
    spare: Vec<u8>,
}

impl<C> Cursor<C> {
    /// The beginning of the export.
    #[must_use]
    pub const fn new(client: Client<C>) -> Self {
        let (reading, writing, flushing) = (None, None, None);
        Self { client, position: 0, reading, writing, flushing, spare: Vec::new() }
    }

    /// The client.
    #[must_use]
    pub const fn client(&self) -> &Client<C> {
        &self.client
    }

    /// Where the next byte is read or written, in bytes from the beginning of the export.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Bytes from the position to the end, if they are fewer than `wanted`.
    fn at_most(&self, wanted: usize) -> usize {
        let left = self.client.size().saturating_sub(self.position);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted).min(MAX_LENGTH)
    }

    fn buffer(&mut self, length: usize) -> Vec<u8> {
        let mut buffer = core::mem::take(&mut self.spare);
        buffer.resize(length, 0);
        buffer
    }

    /// Waits for the write that was sent.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(writing) = &mut self.writing else { return Poll::Ready(Ok(())) };
        let (buffer, result) = ready!(Pin::new(writing).poll(cx));
        self.writing = None;
        self.spare = buffer;
        Poll::Ready(result.map_err(Into::into))
    }

    /// The position that a seek leads to.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] before the beginning, or above 2^64 - 1. Past the end is fine, as for files.
    pub fn seek_to(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.client.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        let position = position.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "a seek before the beginning")
        })?;
        if position != self.position {
            self.reading = None;
            self.position = position;
        }
        Ok(position)
    }
}

impl<C> Unpin for Cursor<C> {}

impl<C> AsyncRead for Cursor<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_written(cx))?;
        let wanted = this.at_most(buffer.len());
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let reading = match &mut this.reading {
            Some(reading) => reading,
            None => {
                let staging = this.buffer(wanted);
                this.reading.insert(this.client.submit_read_into(
                    this.position,
                    staging,
                    Flags::empty(),
                ))
            }
        };
        let (data, result) = ready!(Pin::new(reading).poll(cx));
        this.reading = None;
        // A caller that gave up a read may come back with a smaller buffer.
        let count = data.len().min(buffer.len());
        if result.is_ok() {
            buffer[..count].copy_from_slice(&data[..count]);
            this.position += count as u64;
        }
        this.spare = data;
        Poll::Ready(result.map(|()| count).map_err(Into::into))
    }
}

impl<C> AsyncWrite for Cursor<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(this.poll_written(cx))?;
        this.reading = None;
        let count = this.at_most(bytes.len());
        if count == 0 {
            return Poll::Ready(if bytes.is_empty() { Ok(0) } else { Err(full(&this.client)) });
        }
        let mut buffer = this.buffer(count);
        buffer.copy_from_slice(&bytes[..count]);
        let mut writing = this.client.submit_write_from(this.position, buffer, Flags::empty());
        // Sent at once; a mistake of the caller shows at once, too.
        if let Poll::Ready((buffer, result)) = Pin::new(&mut writing).poll(cx) {
            this.spare = buffer;
            result?;
        } else {
            this.writing = Some(writing);
        }
        this.position += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_written(cx))?;
        if !this.client.export().can_flush() {
            return Poll::Ready(Ok(()));
        }
        let flushing = this.flushing.get_or_insert_with(|| this.client.submit_flush());
        let result = ready!(Pin::new(flushing).poll(cx));
        this.flushing = None;
        Poll::Ready(result.map_err(Into::into))
    }

    /// Flushes. The client goes on.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

impl<C> AsyncSeek for Cursor<C> {
    fn poll_seek(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        target: SeekFrom,
    ) -> Poll<io::Result<u64>> {
        Poll::Ready(self.seek_to(target))
    }
}

/// There is no room behind the end.
fn full<C>(client: &Client<C>) -> io::Error {
    let text = format!("the end of the export, at {}, was reached", client.size());
    io::Error::new(io::ErrorKind::StorageFull, text)
}
