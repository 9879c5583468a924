//! Clients on threads: connecting, blocking methods, and the traits of `std::io`.

mod connect;
mod disk;
mod haggling;
mod pending;

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nbd_engine::client as engine;
use nbd_engine::client::Driving;

pub use disk::Disk;
pub use haggling::Haggling;
pub use nbd_engine::client::{
    Bytes, CommandError, ContextExtents, Error, ExportDetails, Extent, Flags, Handshake, Invalid,
    Lent, Listing, LostReason, Negotiated, Options, Uri, UriError,
};
pub use pending::{Outcome, Pending};

use crate::pump;
use crate::reactor::{Threads, block_on};
use crate::stream::Stream;
use connect::Sockets;

/// An export on a server, to be read and written by blocking calls. Cheap to clone: clones are the same client. Share it
/// among as many threads as you like; their requests run side by side and are answered in any order.
///
/// There is no thread behind it: of the threads that wait for their requests, one waits for the socket on behalf of all.
/// To keep many requests in flight from a single thread, [submit](Self::submit_read) them and wait later.
///
/// Offsets and lengths are in bytes, and have to be multiples of the export's minimum block size
/// ([`block_size`](Negotiated::block_size)), which is 1 for most. What is longer than the server takes at once is split.
/// The getters are those of [`Negotiated`].
///
/// ```
/// use nbd_blocking::export::{ExportMap, Memory};
/// use nbd_blocking::{Client, Server};
///
/// let server = Server::new(ExportMap::new().with("disk", Memory::new(1 << 30)?)?);
/// let listening = server.listen_tcp("127.0.0.1:0")?;
///
/// let client = Client::connect(&format!("nbd://{}/disk", listening.local_addr()))?;
/// client.write_at(b"hello", 4096)?;
/// let mut found = [0; 5];
/// client.read_exact_at(&mut found, 4096)?;
/// assert_eq!(&found, b"hello");
/// # server.shut_down();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// All requests fail with [`Error::Invalid`] for what makes no sense on this export, [`Error::Command`] when the server
/// fails, [`Error::TimedOut`] after [`Options::request_timeout`], [`Error::Lost`] with the connection,
/// [`Error::Disconnected`] after [`disconnect`](Self::disconnect), and [`Error::Local`] when no event descriptor can be
/// had for a thread's first call.
#[derive(Clone, Debug)]
pub struct Client(engine::Client);

fn wait<R>(future: impl Future<Output = Result<R, Error>>) -> Result<R, Error> {
    block_on(future).unwrap_or_else(|error| Err(Error::Local(Arc::new(error))))
}

impl Client {
    /// Connects to the export that a URI names, with default options.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn connect(uri: &str) -> Result<Self, Error> {
        Self::connect_with(&uri.parse()?, &Options::default())
    }

    /// Connects to the export that a URI names.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server can't be reached, [`Error::Refused`] when it does not have the export,
    /// [`Error::TimedOut`] after [`Options::connect_timeout`], [`Error::Unsupported`] for what this build can't do.
    pub fn connect_with(uri: &Uri, options: &Options) -> Result<Self, Error> {
        wait(engine::Client::connect_by(&Sockets, uri, options)).map(Self)
    }

    /// A client over a TCP stream of yours, for the export that the options name.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn over_tcp(stream: TcpStream, options: &Options) -> Result<Self, Error> {
        let peer = stream.peer_addr().map_or_else(|_| "tcp".into(), |address| address.to_string());
        Self::over(Stream::tcp(stream), peer, options)
    }

    /// A client over a Unix stream of yours, for the export that the options name.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn over_unix(stream: UnixStream, options: &Options) -> Result<Self, Error> {
        Self::over(Stream::unix(stream), "unix socket".into(), options)
    }

    /// A client over any pair of byte streams (pipes, a serial line, a process), with two threads that carry the bytes.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn over_stream(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        options: &Options,
    ) -> Result<Self, Error> {
        let stream = pump::connect(reader, writer).and_then(|(stream, _)| Stream::unix(stream));
        Self::over(stream, "stream".into(), options)
    }

    fn over(stream: io::Result<Stream>, peer: String, options: &Options) -> Result<Self, Error> {
        let stream = stream.map_err(|error| Error::Local(Arc::new(error)))?;
        let driving = Driving::Callers;
        wait(engine::Client::over(stream, Threads, driving, peer, options)).map(Self)
    }

    /// Reads up to `buffer.len()` bytes; fewer only at the end of the export, none past it. Gives how many. The data is
    /// copied once; [`read_into`](Self::read_into) does without.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        wait(self.0.read_at(buffer, offset))
    }

    /// Reads `buffer.len()` bytes. The data is copied once; [`read_into`](Self::read_into) does without.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        wait(self.0.read_exact_at(buffer, offset))
    }

    /// Reads `length` bytes.
    pub fn read(&self, offset: u64, length: usize) -> Result<Bytes, Error> {
        wait(self.0.read(offset, length))
    }

    /// Reads `buffer.len()` bytes into a buffer that is lent to the client meanwhile: no copy, and no allocation. The
    /// buffer comes back in any case, but with anything in it unless the read succeeded, and empty if it timed out.
    pub fn read_into(&self, buffer: Vec<u8>, offset: u64) -> (Vec<u8>, Result<(), Error>) {
        self.submit_read(buffer, offset).wait()
    }

    /// Writes all of `data`. It is copied once; [`write`](Self::write) does without.
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        wait(self.0.write_at(data, offset))
    }

    /// As [`write_at`](Self::write_at); with [`Flags::FUA`] the data is durable before this returns.
    pub fn write_at_with(&self, data: &[u8], offset: u64, flags: Flags) -> Result<(), Error> {
        wait(self.0.write_at_with(data, offset, flags))
    }

    /// Writes all of `data`, uncopied.
    pub fn write(&self, data: Bytes, offset: u64) -> Result<(), Error> {
        self.submit_write(data, offset, Flags::empty()).wait()
    }

    /// Makes everything durable whose write had returned before this was called, on any thread.
    pub fn flush(&self) -> Result<(), Error> {
        wait(self.0.flush())
    }

    /// Tells the server that a range is no longer needed: what it reads as afterwards is up to the server.
    pub fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        wait(self.0.trim(offset, length, flags))
    }

    /// Writes zeroes without sending them. [`Flags::NO_HOLE`] leaves the range allocated, [`Flags::FAST_ZERO`] has it
    /// fail with `NBD_ENOTSUP` unless that is faster than a write.
    pub fn write_zeroes(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        wait(self.0.write_zeroes(offset, length, flags))
    }

    /// Tells the server that a range will be read soon.
    pub fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        wait(self.0.cache(offset, length))
    }

    /// What the selected metadata contexts say of a range, in the order of [`contexts`](Negotiated::contexts). The
    /// extents may fall short of the range, or reach past it: ask again from where they end. [`Flags::REQ_ONE`] asks for
    /// a single extent of each context, which does not reach past.
    pub fn block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Result<Vec<ContextExtents>, Error> {
        wait(self.0.block_status(offset, length, flags))
    }

    /// Changes the size of the export. Requests about the part that comes or goes must not be in flight.
    pub fn resize(&self, size: u64) -> Result<(), Error> {
        wait(self.0.resize(size))
    }

    /// Leaves the server: takes no more requests, waits for those in flight, then says goodbye.
    pub fn disconnect(&self) {
        // Without an event descriptor, dropping the client has to do.
        let _left = block_on(self.0.disconnect());
    }

    /// Submits what [`read_into`](Self::read_into) does, without waiting for it.
    ///
    /// It is sent together with all others that were submitted, once any thread waits for any request of this client, or
    /// by [`send_submitted`](Self::send_submitted).
    ///
    /// ```
    /// # use nbd_blocking::export::{ExportMap, Memory};
    /// # use nbd_blocking::{Client, Server};
    /// # use std::collections::VecDeque;
    /// # let server = Server::new(ExportMap::new().with("", Memory::new(1 << 20)?)?);
    /// # let listening = server.listen_tcp("127.0.0.1:0")?;
    /// # let client = Client::connect(&format!("nbd://{}", listening.local_addr()))?;
    /// // Reads the export with 32 requests in flight, each with a buffer that is used again.
    /// let mut in_flight = VecDeque::new();
    /// for offset in (0..client.size()).step_by(4096) {
    ///     let buffer = match in_flight.len() {
    ///         32 => {
    ///             let (buffer, result) = in_flight.pop_front().map(nbd_blocking::client::Pending::wait).unwrap();
    ///             result?;
    ///             buffer
    ///         }
    ///         _ => vec![0; 4096],
    ///     };
    ///     in_flight.push_back(client.submit_read(buffer, offset));
    /// }
    /// for pending in in_flight {
    ///     pending.wait().1?;
    /// }
    /// # server.shut_down();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn submit_read(&self, buffer: Vec<u8>, offset: u64) -> Pending<Lent> {
        Pending(self.0.submit_read(buffer, offset))
    }

    /// As [`submit_read`](Self::submit_read), with [`Flags::DF`] or without.
    pub fn submit_read_with(&self, buffer: Vec<u8>, offset: u64, flags: Flags) -> Pending<Lent> {
        Pending(self.0.submit_read_with(buffer, offset, flags))
    }

    /// Submits what [`write`](Self::write) does; with [`Flags::FUA`] it is done once the data is durable.
    pub fn submit_write(
        &self,
        data: Bytes,
        offset: u64,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_write(data, offset, flags))
    }

    /// Submits a write out of a buffer that is lent to the client meanwhile, and comes back: no copy, and no allocation.
    /// It comes back empty if the request timed out.
    pub fn submit_write_from(&self, buffer: Vec<u8>, offset: u64, flags: Flags) -> Pending<Lent> {
        Pending(self.0.submit_write_from(buffer, offset, flags))
    }

    /// Submits a [`flush`](Self::flush). Writes that are still pending are not covered.
    pub fn submit_flush(&self) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_flush())
    }

    /// Submits a [`trim`](Self::trim).
    pub fn submit_trim(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_trim(offset, length, flags))
    }

    /// Submits a [`write_zeroes`](Self::write_zeroes).
    pub fn submit_write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Pending<Result<(), Error>> {
        Pending(self.0.submit_write_zeroes(offset, length, flags))
    }

    /// Submits a [`block_status`](Self::block_status).
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

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections()
    }

    /// Whether requests are taken: not after the server was left, or the last connection was lost, as far as is known.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    /// The export as a stream of bytes with a position, at its beginning.
    #[must_use]
    pub fn disk(&self) -> Disk {
        Disk { client: self.clone(), position: 0 }
    }
}

impl Deref for Client {
    type Target = Negotiated;

    fn deref(&self) -> &Negotiated {
        &self.0
    }
}
