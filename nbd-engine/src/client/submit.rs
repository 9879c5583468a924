//! What a client can ask for, without waiting: any number of requests can be in flight.

use bytes::Bytes;
use nbd_proto::Command;

use super::buffer::Buffer;
use super::client::{Client, Data};
use super::completion::Findings;
use super::pending::Pending;
use super::requests::{BufResult, into_result, to_buffer};
use super::{Error, Flags, split};

/// # Requests that are not waited for
///
/// Each of these does what the method without `submit_` does.
impl<C> Client<C> {
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
        let command = split::with_flags(Command::read(offset, length as u64), flags);
        self.submit(command, Data::New(length), Findings::None, |_, _, outcome| {
            outcome.result.map_err(|error| *error)?;
            Ok(outcome.buffer.into_vec().into())
        })
    }

    /// Submits what [`read_into`](Self::read_into) does: keep some of these in flight.
    pub fn submit_read_into(
        &self,
        offset: u64,
        buffer: Vec<u8>,
        flags: Flags,
    ) -> Pending<BufResult> {
        let command = split::with_flags(Command::read(offset, buffer.len() as u64), flags);
        self.submit(command, Data::Given(Buffer::Owned(buffer)), Findings::None, to_buffer)
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
        let data = data.into();
        let command = split::with_flags(Command::write(offset, data.len() as u64), flags);
        self.submit(command, Data::Given(Buffer::Shared(data)), Findings::None, into_result)
    }

    /// Submits what [`write_from`](Self::write_from) does.
    pub fn submit_write_from(
        &self,
        offset: u64,
        buffer: Vec<u8>,
        flags: Flags,
    ) -> Pending<BufResult> {
        let command = split::with_flags(Command::write(offset, buffer.len() as u64), flags);
        self.submit(command, Data::Given(Buffer::Owned(buffer)), Findings::None, to_buffer)
    }

    /// Submits what [`flush`](Self::flush) does. Writes that are still pending are not covered.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_flush(&self) -> Pending<Result<(), Error>> {
        self.submit_flushes(into_result)
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
        self.submit_range(Command::trim(offset, length), flags)
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
        self.submit_range(Command::write_zeroes(offset, length), flags)
    }

    /// Submits what [`cache`](Self::cache) does.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn submit_cache(&self, offset: u64, length: u64) -> Pending<Result<(), Error>> {
        self.submit_range(Command::cache(offset, length), Flags::empty())
    }

    fn submit_range(&self, command: Command, flags: Flags) -> Pending<Result<(), Error>> {
        let command = split::with_flags(command, flags);
        self.submit(command, Data::None, Findings::None, into_result)
    }
}
