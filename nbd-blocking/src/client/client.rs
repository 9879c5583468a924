//! A client with blocking methods.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use nbd_engine::client as engine;

use super::connect::{self, Peer};
use super::{
    BlockStatusRange, BufResult, Bytes, Chunk, ClientConfig, Command, ContextExtents, Error,
    ExportDetails, Flags, InvalidRequest, Uri, wait,
};
use crate::reactor::{Threads, block_on};

/// An export on a server, to be read and written by blocking calls. Cheap to clone: clones are the same client. Share it
/// among as many threads as you like; their requests run side by side and are answered in any order.
///
/// There is no thread behind it: of the threads that wait for their requests, one waits for the socket on behalf of all.
/// To keep many requests in flight from a single thread, [submit](Self::submit_read_into) them and wait later.
///
/// When the last clone and the last [`Pending`](super::Pending) request are gone, the client disconnects, without waiting for
/// anything: the server finds a connection that is cut off where a request was sent in part. [`disconnect`](Self::disconnect)
/// waits for what is in flight, and ends in order.
///
/// ```
/// use nbd_blocking::client::ClientConfig;
/// use nbd_blocking::export::{ExportMap, Memory};
/// use nbd_blocking::{Client, Server};
///
/// let server = Server::new(ExportMap::new().with("disk", Memory::new(1 << 30)?)?);
/// let listening = server.listen_tcp("127.0.0.1:0")?;
///
/// let uri = listening.local_addr().uri("disk")?;
/// let client = Client::connect_with(&uri, &ClientConfig::default())?;
/// client.write_all_at(b"hello", 4096)?;
/// let mut found = [0; 5];
/// client.read_exact_at(&mut found, 4096)?;
/// assert_eq!(&found, b"hello");
/// # server.shut_down();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client(pub(super) engine::Client<Threads>);

/// # Connecting
impl Client {
    /// Connects to the export that a URI names, with the default configuration.
    ///
    /// # Errors
    /// [`Error::Uri`] when the text is no NBD URI; otherwise those of [`connect_with`](Self::connect_with).
    pub fn connect(uri: &str) -> Result<Self, Error> {
        wait(engine::Client::connect(uri)).map(Self)
    }

    /// Connects to the export that a URI names.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server can't be reached, [`Error::Refused`] when it does not have the export,
    /// [`Error::Protocol`] when it breaks the protocol or speaks another one, [`Error::TimedOut`] after
    /// [`ClientConfig::connect_timeout`], [`Error::Unsupported`] for what this build can't do, [`Error::Local`] when
    /// the thread gets no event descriptor, and for TLS `Error::Tls` and `Error::TlsSetup`.
    pub fn connect_with(uri: &Uri, config: &ClientConfig) -> Result<Self, Error> {
        wait(engine::Client::connect_with(uri, config)).map(Self)
    }

    /// A client over a TCP stream of yours, for the export of this name; an empty name is that of the default export.
    /// There is one connection, however many are configured.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn over_tcp(stream: TcpStream, export: &str, config: &ClientConfig) -> Result<Self, Error> {
        Self::over(connect::tcp(stream)?, export, config)
    }

    /// The same over a Unix stream.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn over_unix(
        stream: UnixStream,
        export: &str,
        config: &ClientConfig,
    ) -> Result<Self, Error> {
        Self::over(connect::unix(stream)?, export, config)
    }

    /// The same over any pair of blocking byte streams (pipes, a serial line, a process), with two threads that carry the
    /// bytes. One object for both directions, such as a TLS stream, takes [`over_duplex`](Self::over_duplex).
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn over_stream(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        export: &str,
        config: &ClientConfig,
    ) -> Result<Self, Error> {
        Self::over(connect::stream(reader, writer)?, export, config)
    }

    /// The same over a non-blocking stream that is one object for both directions, such as a TLS stream of yours. See
    /// [`Server::serve_duplex`](crate::Server::serve_duplex) for what is required of it; `socket` gives the socket below
    /// it.
    ///
    /// Nobody calls what ends the stream's own protocol, such as TLS's `close_notify`: the stream is flushed and dropped
    /// in the end, with the last clone of the client. Without `close_notify` the server may take the end for a cut, so
    /// wrap the stream in a type of yours whose `Drop` sends it (of rustls: `conn.send_close_notify()`, then
    /// `conn.write_tls(&mut sock)`). Say by [`with_stream_in_tls`](ClientConfig::with_stream_in_tls) that it is TLS.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub fn over_duplex<S: Read + Write + Send + 'static>(
        stream: S,
        socket: impl FnOnce(&S) -> BorrowedFd<'_>,
        export: &str,
        config: &ClientConfig,
    ) -> Result<Self, Error> {
        Self::over(connect::duplex(stream, socket)?, export, config)
    }

    fn over(peer: Peer, export: &str, config: &ClientConfig) -> Result<Self, Error> {
        let Peer { transport, name } = peer;
        wait(engine::Client::over_transport(Threads, transport, name, export, config)).map(Self)
    }
}

/// # The export and the connections
impl Client {
    /// What this client has done so far, its clones included. `None` unless it was asked for by
    /// [`ClientConfig::with_statistics`](crate::client::ClientConfig::with_statistics). A flush counts once for each
    /// connection that it is sent on.
    #[must_use]
    pub fn statistics(&self) -> Option<engine::ClientStatistics> {
        self.0.statistics()
    }

    /// What the server said of the export, and what was agreed about it.
    #[must_use]
    pub fn export(&self) -> &ExportDetails {
        self.0.export()
    }

    /// The size of the export in bytes; changes by [`resize`](Self::resize) alone.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// The server and the export, as errors name them.
    #[must_use]
    pub fn peer(&self) -> &str {
        self.0.peer()
    }

    /// How many connections were made, those that are being replaced, or are lost for good, included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.connections()
    }

    /// Whether requests are taken: not after a [disconnect](Self::disconnect), nor once the last connection was lost, as
    /// far as is known. One that is being [replaced](super::Reconnect) takes requests, which wait for the new one.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.0.is_connected()
    }

    /// Whether a command makes sense for this export, without asking the server. It may be of any length, none
    /// included.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(&self, command: &Command) -> Result<(), InvalidRequest> {
        self.0.check(command)
    }

    /// Disconnects softly: takes no more requests, waits for those in flight, then sends `NBD_CMD_DISC`. How long it
    /// blocks is up to the requests in flight, and to their [deadline](ClientConfig::with_request_timeout).
    pub fn disconnect(&self) {
        // Without an event descriptor, dropping the client has to do.
        let _disconnected = block_on(self.0.disconnect());
    }
}

/// # Requests
///
/// Offsets and lengths are in bytes, and have to be multiples of the export's minimum block size
/// ([`ExportDetails::block_size`]), which is 1 for most exports. What is longer than the server takes at once is split.
/// What is about no bytes of the export succeeds without being sent. [Flags](Flags) that mean nothing to a request are an
/// [`Error::Invalid`]. Each method blocks until the server has answered.
///
/// The methods on slices have the names and the order of arguments of [`FileExt`](std::os::unix::fs::FileExt). Those on
/// buffers that the client owns meanwhile neither copy nor allocate; their offset comes first, their flags last.
///
/// # Requests that are given up
///
/// NBD has no means to take back what was sent. A request that [timed out](Error::TimedOut), or whose
/// [`Pending`](super::Pending) was dropped, is in flight until the server answers it, and the server may carry it out at
/// any time until then. Requests in flight have no order: a write that was given up can replace what a later one has
/// written in the same place, and has flushed. Until it is over, what that range holds is unknown, so don't write there,
/// or rely on it. [`disconnect`](Self::disconnect) waits for what was given up by dropping, too; and where
/// [statistics](ClientConfig::with_statistics) are kept, a dropped request is
/// [in flight](super::RequestStatistics::in_flight) until it is answered.
///
/// # Errors
/// All requests fail with [`Error::Invalid`] for what makes no sense on this export, [`Error::Command`] when the server
/// fails, [`Error::TimedOut`] after [`ClientConfig::request_timeout`], [`Error::Lost`] with the connection,
/// [`Error::Disconnected`] after [`disconnect`](Self::disconnect), and [`Error::Local`] when no event descriptor can be
/// had for a thread's first call.
impl Client {
    /// Reads up to `buffer.len()` bytes; fewer only at the end of the export, none past it. Gives how many. The data is
    /// copied once; [`read_into`](Self::read_into) does without.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        wait(self.0.read_at(buffer, offset))
    }

    /// Reads `buffer.len()` bytes. The data is copied once; [`read_into`](Self::read_into) does without.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        wait(self.0.read_exact_at(buffer, offset))
    }

    /// Writes up to `data.len()` bytes; fewer only at the end of the export, none past it. Gives how many. The data is
    /// copied once; [`write`](Self::write) does without.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, Error> {
        wait(self.0.write_at(data, offset))
    }

    /// Writes all of `data`. It is copied once; [`write`](Self::write) does without.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn write_all_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        wait(self.0.write_all_at(data, offset))
    }

    /// Reads `length` bytes, which are held in memory at once.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn read(&self, offset: u64, length: usize, flags: Flags) -> Result<Bytes, Error> {
        self.submit_read(offset, length, flags).wait()
    }

    /// Reads `buffer.len()` bytes into a buffer that is lent to the client meanwhile: no copy, and no allocation. The
    /// buffer comes back with its length in any case, but with anything in it unless the read succeeded.
    pub fn read_into(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult {
        self.submit_read_into(offset, buffer, flags).wait()
    }

    /// Reads `length` bytes and shows how the server sent them: data, holes, and errors at offsets, sorted by offset;
    /// errors without an offset come last. Where some of it can't be read, the rest is there. Without
    /// [structured replies](ExportDetails::is_structured) there is one chunk of data, or several for a long read. With
    /// [`Flags::DF`] the server sends one chunk of data, or none. Fails as [`read`](Self::read) does if nothing of it
    /// could be read.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn read_chunks(
        &self,
        offset: u64,
        length: usize,
        flags: Flags,
    ) -> Result<Vec<Chunk>, Error> {
        self.submit_read_chunks(offset, length, flags).wait()
    }

    /// Writes all of `data`, uncopied. With [`Flags::FUA`] the data is durable before this returns.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn write(&self, offset: u64, data: impl Into<Bytes>, flags: Flags) -> Result<(), Error> {
        self.submit_write(offset, data, flags).wait()
    }

    /// Writes out of a buffer that is lent to the client meanwhile, and comes back: no copy, and no allocation. It comes
    /// back empty if the request timed out ([`Error::TimedOut`]) and `sent` says that the server may still get it: then
    /// the data is kept for that.
    pub fn write_from(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult {
        self.submit_write_from(offset, buffer, flags).wait()
    }

    /// Makes everything durable whose write had returned before this was called, on any thread. Fails if the server fails
    /// to do so on any of the connections that wrote since their last successful flush; what was written since then has
    /// to be taken for lost. With [`Error::InDoubt`] when a connection was [replaced](super::Reconnect) that had acknowledged
    /// changes; this is reported once by each clone of the client.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn flush(&self) -> Result<(), Error> {
        self.submit_flush().wait()
    }

    /// Tells the server that a range is no longer needed: what it reads as afterwards is up to the server.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.submit_trim(offset, length, flags).wait()
    }

    /// Writes zeroes without sending them. [`Flags::NO_HOLE`] leaves the range allocated, [`Flags::FAST_ZERO`] has it
    /// fail with `NBD_ENOTSUP` unless that is faster than a write.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn write_zeroes(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.submit_write_zeroes(offset, length, flags).wait()
    }

    /// Tells the server that a range will be read soon.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.submit_cache(offset, length).wait()
    }

    /// What the selected metadata contexts say of a range, in the order of [`ExportDetails::contexts`]. The extents may
    /// fall short of the range, or reach past it; [`block_status_range`](Self::block_status_range) asks again from where
    /// they end. [`Flags::REQ_ONE`] asks for a single extent of each context, which does not reach past.
    ///
    /// # Errors
    /// Those of all [requests](#requests).
    pub fn block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.submit_block_status(offset, length, flags).wait()
    }

    /// Asks one selected metadata context about a range of any length, and reports runs that follow each other without a
    /// gap, from the first byte of the range to the last. Offsets and lengths need no alignment.
    ///
    /// ```
    /// # use nbd_blocking::export::{ExportMap, Memory};
    /// # use nbd_blocking::{Client, Server};
    /// use nbd_blocking::client::{AllocationFlags, ClientConfig};
    ///
    /// # let server = Server::new(ExportMap::new().with("", Memory::new(1 << 20)?)?);
    /// # let listening = server.listen_tcp("127.0.0.1:0")?;
    /// # let uri = listening.local_addr().uri("")?;
    /// let config = ClientConfig::new().with_contexts(["base:allocation"]);
    /// let client = Client::connect_with(&uri, &config)?;
    /// let mut holes = 0;
    /// for run in client.block_status_range("base:allocation", 0, client.size()) {
    ///     let run = run?;
    ///     if AllocationFlags::from_bits_retain(run.status as u32).contains(AllocationFlags::HOLE) {
    ///         holes += run.length;
    ///     }
    /// }
    /// assert_eq!(holes, client.size());
    /// # server.shut_down();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// The errors that it gives are those of [`block_status`](Self::block_status), [`Error::NoStatus`] if another context is
    /// selected, or if the server says nothing about a byte, and [`Error::Invalid`] for what reaches past the end.
    pub fn block_status_range(&self, context: &str, offset: u64, length: u64) -> BlockStatusRange {
        BlockStatusRange::new(self.0.block_status_range(context, offset, length))
    }

    /// Changes the size of the export to `size` bytes. Requests about the part that comes or goes must not be in flight.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the client has several connections, of which the others would not learn the new
    /// size; [`Error::Invalid`] when the server does not offer it, for more than 2^63 - 1 bytes, or for a size that is
    /// no multiple of the minimum block size; [`Error::NotSubmitted`] when other requests are in the way; otherwise
    /// those of all [requests](#requests).
    pub fn resize(&self, size: u64) -> Result<(), Error> {
        wait(self.0.resize(size))
    }
}
