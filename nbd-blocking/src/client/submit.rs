//! Requests that are not waited for.

use super::{BufResult, Bytes, Chunk, Client, ContextExtents, Error, Flags, Pending};

/// # Requests that are not waited for
///
/// Each of these does what the method without `submit_` does. It is sent together with all others that were submitted,
/// once any thread waits for any request of this client, or by [`send_submitted`](Self::send_submitted).
impl Client {
    /// Submits what [`read`](Self::read) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_read(
        &self,
        offset: u64,
        length: usize,
        flags: Flags,
    ) -> Pending<Result<Bytes, Error>> {
        Pending(self.0.submit_read(offset, length, flags))
    }

    /// Submits what [`read_into`](Self::read_into) does.
    ///
    /// ```
    /// # use nbd_blocking::export::{ExportMap, Memory};
    /// # use nbd_blocking::{Client, Server};
    /// # use std::collections::VecDeque;
    /// # let server = Server::new(ExportMap::new().with("", Memory::new(1 << 20)?)?);
    /// # let listening = server.listen_tcp("127.0.0.1:0")?;
    /// # let client = Client::connect(&listening.local_addr().uri("")?.to_string())?;
    /// use nbd_blocking::client::{Flags, Pending};
    /// // Reads the export with 32 requests in flight, each with a buffer that is used again.
    /// let mut in_flight = VecDeque::new();
    /// for offset in (0..client.size()).step_by(4096) {
    ///     let buffer = match in_flight.len() {
    ///         32 => {
    ///             let (buffer, result) = in_flight.pop_front().map(Pending::wait).unwrap();
    ///             result?;
    ///             buffer
    ///         }
    ///         _ => vec![0; 4096],
    ///     };
    ///     in_flight.push_back(client.submit_read_into(offset, buffer, Flags::empty()));
    /// }
    /// for pending in in_flight {
    ///     pending.wait().1?;
    /// }
    /// # server.shut_down();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_read_into(
        &self,
        offset: u64,
        buffer: Vec<u8>,
        flags: Flags,
    ) -> Pending<BufResult> {
        Pending(self.0.submit_read_into(offset, buffer, flags))
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
        Pending(self.0.submit_read_chunks(offset, length, flags))
    }

    /// Submits what [`write`](Self::write) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_write(
        &self,
        offset: u64,
        data: impl Into<Bytes>,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_write(offset, data, flags))
    }

    /// Submits what [`write_from`](Self::write_from) does.
    pub fn submit_write_from(
        &self,
        offset: u64,
        buffer: Vec<u8>,
        flags: Flags,
    ) -> Pending<BufResult> {
        Pending(self.0.submit_write_from(offset, buffer, flags))
    }

    /// Submits what [`flush`](Self::flush) does. Writes that are still pending are not covered.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_flush(&self) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_flush())
    }

    /// Submits what [`trim`](Self::trim) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_trim(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_trim(offset, length, flags))
    }

    /// Submits what [`write_zeroes`](Self::write_zeroes) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_write_zeroes(offset, length, flags))
    }

    /// Submits what [`cache`](Self::cache) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_cache(&self, offset: u64, length: u64) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_cache(offset, length))
    }

    /// Submits what [`block_status`](Self::block_status) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<Vec<ContextExtents>, Error>> {
        Pending(self.0.submit_block_status(offset, length, flags))
    }

    /// Begins to send what was submitted, as far as the socket takes it at once. There is no need to, unless you do
    /// something else for a while before you wait.
    pub fn send_submitted(&self) {
        self.0.send_submitted();
    }
}
