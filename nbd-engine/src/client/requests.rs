//! What a client can ask for, waited for at once. [`submit`](super::submit) has the same without waiting.

use bytes::Bytes;
use nbd_proto::Command;

use super::client::{Client, Data, Shared};
use super::completion::{Findings, Outcome};
use super::pending::Pending;
use super::{Error, Flags};

/// A buffer that was lent to a request, and how that went.
pub type BufResult = (Vec<u8>, Result<(), Error>);

/// # Requests
///
/// Offsets and lengths are in bytes, and have to be multiples of the export's minimum block size
/// ([`ExportDetails::block_size`](super::ExportDetails::block_size)), which is 1 for most exports. What is longer than
/// the server takes at once is split, with several parts in flight at the same time, between which other requests are sent.
/// What is about no bytes of the export succeeds without being sent. [Flags](Flags) that mean nothing to a request are an
/// [`Error::Invalid`].
///
/// The methods on slices have the names and the order of arguments of [`FileExt`](std::os::unix::fs::FileExt). Those on
/// buffers that the client owns meanwhile neither copy nor allocate; their offset comes first, their flags last. Each
/// has a `submit_` method of the same arguments, which does not wait.
///
/// Futures do nothing until they are polled. **Cancel-safety:** dropping a future never harms the client, whose other
/// requests go on. A request that was not sent by then is not sent any more, nor is what is left of one that was split; one
/// that was sent may be carried out, or not, or in part, at once or [later](#requests-that-are-given-up): that matters for
/// those that change the export.
///
/// # Requests that are given up
///
/// NBD has no means to take back what was sent. A request whose future was dropped, or that [timed out](Error::TimedOut), is
/// in flight until the server answers it, and the server may carry it out at any time until then. Requests in flight have
/// no order: a write that was given up can replace what a later one has written in the same place, and has flushed. Until
/// it is over, what that range holds is unknown, so don't write there, or rely on it.
///
/// So it is better not to give up what changes the export, but to wait for it somewhere else: `select!` or a time limit
/// around `&mut pending` leaves the [`Pending`] request there to be waited for again, in a task of its own for example.
/// (Where the [callers drive](super::DriveMode::Caller), go on to wait for it: the others wait for whoever drives.)
/// [`disconnect`](Self::disconnect) waits for what was given up by dropping, too; and where
/// [statistics](super::ClientConfig::with_statistics) are kept, a dropped request is
/// [in flight](super::RequestStatistics::in_flight) until it is answered, or until it [times out](Error::TimedOut).
///
/// ```
/// use nbd_engine::client::{Client, Error, Flags};
/// use std::pin::pin;
///
/// # async fn example<C>(client: Client<C>, tick: impl Future<Output = ()>) -> Result<(), Error> {
/// let mut write = client.submit_write(0, vec![1; 4096], Flags::empty());
/// match futures_util::future::select(&mut write, pin!(tick)).await {
///     futures_util::future::Either::Left((result, _)) => result?,
///     // It takes long, and is still in flight: nothing else may write there until this is over.
///     futures_util::future::Either::Right(_) => write.await?,
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// All requests fail with [`Error::Invalid`] for what makes no sense on this export, [`Error::Command`] when the server
/// fails, [`Error::TimedOut`] after [`ClientConfig::request_timeout`](super::ClientConfig::with_request_timeout),
/// [`Error::Lost`] with the connection, and [`Error::Disconnected`] after [`disconnect`](Self::disconnect). A client that
/// [reconnects](super::Reconnect) sends them again instead, and fails with [`Error::Lost`] once it has given up, or when that
/// would not be safe.
impl<C> Client<C> {
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the export, none past it. Gives how many. The data is
    /// copied once; [`read_into`](Self::read_into) does without.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        let count = self.up_to_the_end(buffer.len(), offset);
        self.read_exact_at(&mut buffer[..count], offset).await?;
        Ok(count)
    }

    /// Reads `buffer.len()` bytes. The data is copied once; [`read_into`](Self::read_into) does without.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        if buffer.is_empty() {
            return Ok(());
        }
        let command = Ok(Command::read(offset, buffer.len() as u64));
        let data = Data::Reused(buffer.len());
        let (staged, index, result) = self.submit(command, data, Findings::None, to_reused).await;
        if result.is_ok() {
            buffer.copy_from_slice(&staged[..buffer.len()]);
        }
        self.shared.connections[index].handle.free.return_buffer(staged);
        result
    }

    /// Writes up to `data.len()` bytes; fewer only at the end of the export, none past it. Gives how many. The data is
    /// copied once; [`write`](Self::write) does without.
    ///
    /// The write may have been done, or not, or in part, when the future is dropped, or [may be done
    /// later](#requests-that-are-given-up).
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, Error> {
        let count = self.up_to_the_end(data.len(), offset);
        if count == 0 && !data.is_empty() {
            return Ok(0);
        }
        self.write_all_at(&data[..count], offset).await?;
        Ok(count)
    }

    /// Writes all of `data`. It is copied once; [`write`](Self::write) does without.
    ///
    /// The write may have been done, or not, or in part, when the future is dropped, or [may be done
    /// later](#requests-that-are-given-up).
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn write_all_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.submit_copied(data, offset).await
    }

    /// Reads `length` bytes, which are held in memory at once.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn read(&self, offset: u64, length: usize, flags: Flags) -> Result<Bytes, Error> {
        self.submit_read(offset, length, flags).await
    }

    /// Reads `buffer.len()` bytes into a buffer that is lent to the client meanwhile: no copy, and no allocation. The
    /// buffer comes back with its length in any case, but with anything in it unless the read succeeded.
    ///
    /// Cancel-safe, but the buffer is lost.
    pub async fn read_into(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult {
        self.submit_read_into(offset, buffer, flags).await
    }

    /// Writes all of `data`, uncopied. With [`Flags::FUA`] the data is durable before this is ready.
    ///
    /// The write may have been done, or not, or in part, when the future is dropped, or [may be done
    /// later](#requests-that-are-given-up).
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn write(
        &self,
        offset: u64,
        data: impl Into<Bytes>,
        flags: Flags,
    ) -> Result<(), Error> {
        self.submit_write(offset, data, flags).await
    }

    /// Writes out of a buffer that is lent to the client meanwhile, and comes back: no copy, and no allocation. It comes
    /// back empty if the request timed out ([`Error::TimedOut`]) and `sent` says that the server may still get it: then
    /// the data is kept for that.
    ///
    /// The write may have been done, or not, or in part, or [may be done later](#requests-that-are-given-up), when the future
    /// is dropped, and the buffer is lost.
    pub async fn write_from(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult {
        self.submit_write_from(offset, buffer, flags).await
    }

    /// Makes everything durable whose write was ready before this was called, on any connection. Fails if the server
    /// fails to do so on any of those that wrote since their last successful flush; what was written since then has to be
    /// taken for lost. With [`Error::InDoubt`] when a connection was [replaced](super::Reconnect) that had acknowledged
    /// changes; this is reported once by each clone of the client.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn flush(&self) -> Result<(), Error> {
        self.submit_flush().await
    }

    /// Tells the server that a range is no longer needed: what it reads as afterwards is up to the server.
    ///
    /// The range may have been trimmed, or not, or in part, when the future is dropped, or [may be
    /// later](#requests-that-are-given-up).
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.submit_trim(offset, length, flags).await
    }

    /// Writes zeroes without sending them. [`Flags::NO_HOLE`] leaves the range allocated, [`Flags::FAST_ZERO`] has it
    /// fail with `NBD_ENOTSUP` unless that is faster than a write.
    ///
    /// The zeroes may have been written, or not, or in part, when the future is dropped, or [may be
    /// later](#requests-that-are-given-up).
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn write_zeroes(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.submit_write_zeroes(offset, length, flags).await
    }

    /// Tells the server that a range will be read soon.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub async fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.submit_cache(offset, length).await
    }

    /// Changes the size of the export to `size` bytes. Requests about the part that comes or goes must not be in flight.
    ///
    /// The size may have changed, or not, when the future is dropped, or [may change later](#requests-that-are-given-up);
    /// [`size`](Self::size) is right once the server has
    /// answered.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client has several connections, of which the others would not learn the new
    /// size; [`Error::Invalid`] when the server does not offer it, for more than 2^63 - 1 bytes, or for a size that is
    /// no multiple of the minimum block size; [`Error::NotSubmitted`] when other requests are in the way; otherwise
    /// those of all [requests](#requests).
    pub async fn resize(&self, size: u64) -> Result<(), Error> {
        if self.connections() > 1 {
            let what = "only a client of one connection can resize the export";
            return Err(Error::Unsupported { address: self.peer().into(), what });
        }
        let command = Ok(Command::resize(size));
        self.submit(command, Data::None, Findings::None, into_result).await
    }

    /// How many of `wanted` bytes lie between an offset and the end.
    fn up_to_the_end(&self, wanted: usize, offset: u64) -> usize {
        let left = self.size().saturating_sub(offset);
        usize::try_from(left).map_or(wanted, |left| left.min(wanted))
    }

    fn submit_copied(&self, data: &[u8], offset: u64) -> Pending<Result<(), Error>> {
        let command = Ok(Command::write(offset, data.len() as u64));
        let data = Data::Copied(data);
        self.submit(command, data, Findings::None, |shared, index, outcome| {
            let (staged, _, result) = to_reused(shared, index, outcome);
            shared.connections[index].handle.free.return_buffer(staged);
            result
        })
    }
}

/// A buffer out of a free list, and which connection's.
fn to_reused(_: &Shared, index: usize, outcome: Outcome) -> (Vec<u8>, usize, Result<(), Error>) {
    let Outcome { buffer, result, .. } = outcome;
    (buffer.into_vec(), index, result.map_err(|error| *error))
}

pub(super) fn to_buffer(_: &Shared, _: usize, outcome: Outcome) -> BufResult {
    let Outcome { buffer, result, .. } = outcome;
    (buffer.into_vec(), result.map_err(|error| *error))
}

pub(super) fn into_result(_: &Shared, _: usize, outcome: Outcome) -> Result<(), Error> {
    outcome.into_result()
}
