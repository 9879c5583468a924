//! What a client can ask for.

use std::sync::Arc;

use bytes::Bytes;
use nbd_proto::Extent;
use nbd_proto::wire::{CommandFlags, CommandType};

use super::handle::{Client, Shared};
use super::invalid::Operation;
use super::pending::Pending;
use super::ticket::{Buffer, Outcome};
use super::{Error, Flags};

/// A buffer that was lent to a request, and how that went.
pub type Lent = (Vec<u8>, Result<(), Error>);

/// What a block status told in one metadata context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextExtents {
    /// The metadata context.
    pub context: Arc<str>,
    /// Runs of bytes, from the request's offset on, each following the one before. The last one may reach past the
    /// range that was asked about; they may also fall short of it.
    pub extents: Vec<Extent>,
}

/// Requests. Offsets and lengths are in bytes, and have to be multiples of the export's minimum block size
/// ([`block_size`](super::Negotiated::block_size)), which is 1 for most. What is longer than the server takes at once is
/// split, with all parts in flight at the same time.
///
/// Futures do nothing until they are polled. **Cancel-safety:** dropping a future never harms the client, whose other
/// requests go on. A request that was not sent by then is not sent any more; one that was may be carried out, or not, or
/// in part, as by a power cut: that matters for those that change the export.
///
/// # Errors
/// All fail with [`Error::Invalid`] for what makes no sense on this export, [`Error::Command`] when the server fails,
/// [`Error::TimedOut`] after [`Options::request_timeout`](super::Options::request_timeout), [`Error::Lost`] with the
/// connection, and [`Error::Disconnected`] after [`disconnect`](Self::disconnect).
impl Client {
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the export, none past it. Gives how many. The data is
    /// copied once; [`read_into`](Self::read_into) does without.
    ///
    /// Cancel-safe.
    pub async fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        let left = self.size().saturating_sub(offset);
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        self.read_exact_at(&mut buffer[..count], offset).await?;
        Ok(count)
    }

    /// Reads `buffer.len()` bytes. The data is copied once; [`read_into`](Self::read_into) does without.
    ///
    /// Cancel-safe.
    pub async fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let (staging, result) = self.start_read(buffer.len(), offset).await;
        if result.is_ok() {
            buffer.copy_from_slice(&staging[..buffer.len()]);
        }
        self.shared.spare.return_buffer(staging);
        result
    }

    fn start_read(&self, length: usize, offset: u64) -> Pending<Lent> {
        if length == 0 {
            return Pending::known((Vec::new(), Ok(())), to_buffer);
        }
        let buffer = Buffer::Owned(self.shared.spare.buffer(length));
        self.submit(operation(CommandType::READ, offset, length as u64), buffer, to_buffer)
    }

    /// Reads `length` bytes.
    ///
    /// Cancel-safe.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes, Error> {
        // Not allocated before it is known that the export has so much.
        let operation = operation(CommandType::READ, offset, length as u64);
        self.check(&operation)?;
        let (buffer, result) = self.submit_read(vec![0; length], offset).await;
        result.map(|()| buffer.into())
    }

    /// Reads `buffer.len()` bytes into a buffer that is lent to the client meanwhile: no copy, and no allocation. The
    /// buffer comes back in any case, but with anything in it unless the read succeeded, and empty if the request timed
    /// out.
    ///
    /// Cancel-safe, but the buffer is lost.
    pub async fn read_into(&self, buffer: Vec<u8>, offset: u64) -> Lent {
        self.submit_read(buffer, offset).await
    }

    /// Submits what [`read_into`](Self::read_into) does, without waiting for it: keep some of these in flight.
    pub fn submit_read(&self, buffer: Vec<u8>, offset: u64) -> Pending<Lent> {
        self.submit_read_with(buffer, offset, Flags::empty())
    }

    /// As [`submit_read`](Self::submit_read), with [`Flags::DF`] or without.
    pub fn submit_read_with(&self, buffer: Vec<u8>, offset: u64, flags: Flags) -> Pending<Lent> {
        if buffer.is_empty() {
            return Pending::known((buffer, Ok(())), to_buffer);
        }
        let length = buffer.len() as u64;
        let operation = Operation::new(CommandType::READ, offset, length, flags);
        self.submit(operation, Buffer::Owned(buffer), to_buffer)
    }

    /// Writes all of `data`. It is copied once; [`write`](Self::write) does without.
    ///
    /// Cancel-safe in so far as the client goes on; the write may have been done, or not, or in part.
    pub async fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.write_at_with(data, offset, Flags::empty()).await
    }

    /// As [`write_at`](Self::write_at); with [`Flags::FUA`] the data is durable before this is ready.
    pub async fn write_at_with(&self, data: &[u8], offset: u64, flags: Flags) -> Result<(), Error> {
        let length = data.len() as u64;
        let operation = Operation::new(CommandType::WRITE, offset, length, flags);
        self.check(&operation)?;
        if data.is_empty() {
            return Ok(());
        }
        let mut buffer = self.shared.spare.buffer(data.len());
        buffer[..data.len()].copy_from_slice(data);
        self.submit(operation, Buffer::Owned(buffer), |shared, outcome| {
            let (buffer, result) = to_buffer(shared, outcome);
            shared.spare.return_buffer(buffer);
            result
        })
        .await
    }

    /// Writes all of `data`, uncopied.
    ///
    /// Cancel-safe in so far as the client goes on; the write may have been done, or not, or in part.
    pub async fn write(&self, data: Bytes, offset: u64) -> Result<(), Error> {
        self.submit_write(data, offset, Flags::empty()).await
    }

    /// Submits what [`write`](Self::write) does, without waiting for it; with [`Flags::FUA`] the data is durable before
    /// it is ready.
    pub fn submit_write(
        &self,
        data: Bytes,
        offset: u64,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        if data.is_empty() {
            return Pending::known(Ok(()), into_result);
        }
        let operation = Operation::new(CommandType::WRITE, offset, data.len() as u64, flags);
        self.submit(operation, Buffer::Shared(data), into_result)
    }

    /// Submits a write out of a buffer that is lent to the client meanwhile, and comes back: no copy, and no allocation.
    /// It comes back empty if the request timed out.
    pub fn submit_write_from(&self, buffer: Vec<u8>, offset: u64, flags: Flags) -> Pending<Lent> {
        if buffer.is_empty() {
            return Pending::known((buffer, Ok(())), to_buffer);
        }
        let operation = Operation::new(CommandType::WRITE, offset, buffer.len() as u64, flags);
        self.submit(operation, Buffer::Owned(buffer), to_buffer)
    }

    /// Makes everything durable whose write was ready before this was called, on any connection. Fails if the server
    /// fails to do so on any of those that wrote since their last successful flush; what was written since then has to be
    /// taken for lost.
    ///
    /// Cancel-safe.
    pub async fn flush(&self) -> Result<(), Error> {
        self.submit_flush().await
    }

    /// Submits what [`flush`](Self::flush) does. Writes that are still pending are not covered.
    pub fn submit_flush(&self) -> Pending<Result<(), Error>> {
        self.submit_flushes(operation(CommandType::FLUSH, 0, 0), into_result)
    }

    /// Tells the server that a range is no longer needed: what it reads as afterwards is up to the server.
    ///
    /// Cancel-safe in so far as the client goes on; the range may have been trimmed, or not, or in part.
    pub async fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.ranged(CommandType::TRIM, offset, length, flags).await
    }

    /// Writes zeroes without sending them. [`Flags::NO_HOLE`] leaves the range allocated, [`Flags::FAST_ZERO`] has it
    /// fail with `NBD_ENOTSUP` unless that is faster than a write.
    ///
    /// Cancel-safe in so far as the client goes on; the zeroes may have been written, or not, or in part.
    pub async fn write_zeroes(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.ranged(CommandType::WRITE_ZEROES, offset, length, flags).await
    }

    /// Tells the server that a range will be read soon.
    ///
    /// Cancel-safe.
    pub async fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.ranged(CommandType::CACHE, offset, length, Flags::empty()).await
    }

    /// Submits a [`trim`](Self::trim).
    pub fn submit_trim(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        self.ranged(CommandType::TRIM, offset, length, flags)
    }

    /// Submits a [`write_zeroes`](Self::write_zeroes).
    pub fn submit_write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        self.ranged(CommandType::WRITE_ZEROES, offset, length, flags)
    }

    fn ranged(
        &self,
        command: CommandType,
        offset: u64,
        length: u64,
        flags: CommandFlags,
    ) -> Pending<Result<(), Error>> {
        let operation = Operation::new(command, offset, length, flags);
        if length == 0
            && let Ok(()) = self.check(&operation)
        {
            return Pending::known(Ok(()), into_result);
        }
        self.submit(operation, Buffer::None, into_result)
    }

    /// What the selected metadata contexts say of a range, in the order of
    /// [`contexts`](super::Negotiated::contexts). The extents may fall short of the range, or reach past it: ask again
    /// from where they end. [`Flags::REQ_ONE`] asks for a single extent of each context, which does not reach past.
    ///
    /// Cancel-safe.
    pub async fn block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.submit_block_status(offset, length, flags).await
    }

    /// Submits what [`block_status`](Self::block_status) does.
    pub fn submit_block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<Vec<ContextExtents>, Error>> {
        let operation = Operation::new(CommandType::BLOCK_STATUS, offset, length, flags);
        self.submit(operation, Buffer::None, |shared, outcome| {
            outcome.result.map_err(|error| *error)?;
            let mut found = outcome.extents;
            let place = |context: &ContextExtents| {
                shared.negotiated.contexts.iter().position(|known| *known == context.context)
            };
            found.sort_by_key(place);
            Ok(found)
        })
    }

    /// Changes the size of the export. Requests about the part that comes or goes must not be in flight.
    ///
    /// Not cancel-safe: when it is dropped, [`size`](super::Negotiated::size) may be wrong from then on.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client has several connections, of which the others would not learn of it.
    pub async fn resize(&self, size: u64) -> Result<(), Error> {
        if self.connections() > 1 {
            let what = "only a client of one connection can resize the export";
            return Err(Error::Unsupported { address: self.peer().into(), what });
        }
        self.submit(operation(CommandType::RESIZE, size, 0), Buffer::None, into_result).await?;
        self.resized(size);
        Ok(())
    }
}

fn operation(command: CommandType, offset: u64, length: u64) -> Operation {
    Operation::new(command, offset, length, CommandFlags::empty())
}

fn to_buffer(_: &Shared, outcome: Outcome) -> Lent {
    let result = outcome.result.map_err(|error| *error);
    (outcome.buffer.into_vec(), result)
}

fn into_result(_: &Shared, outcome: Outcome) -> Result<(), Error> {
    outcome.result.map_err(|error| *error)
}
