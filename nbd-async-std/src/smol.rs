//! The same on smol: its tasks, listeners and names.
//!
//! ```
//! use nbd_async_std::export::{ExportMap, Memory};
//! use nbd_async_std::smol::Server;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! smol::block_on(async {
//!     let server = Server::new(ExportMap::new().with("disk", Memory::new(1 << 30)?)?);
//!     let listening = server.listen_tcp("127.0.0.1:0").await?;
//!     println!("{}", listening.local_addr().uri("disk")?);
//! #   server.shut_down();
//!     server.wait().await; // Until somebody calls server.shut_down().
//!     Ok(())
//! })
//! # }
//! ```
//!
//! Connections run on smol's global executor: one thread, or as many as the environment variable `SMOL_THREADS` says.

use std::io;
use std::time::Duration;

use ::smol::net::unix::{UnixListener, UnixStream};
use ::smol::net::{AsyncToSocketAddrs, TcpListener, TcpStream, resolve};
use nbd_engine::{BoxFuture, Runtime};

use crate::{server, stream};

pub use self::client::{Client, Cursor, Negotiation};
// What is of no runtime, so that `nbd_async_std::smol` can stand in place of `nbd_async_std`.
#[cfg(target_os = "linux")]
#[doc(no_inline)]
pub use crate::VSOCK_CID_ANY;
#[cfg(feature = "tls")]
#[doc(no_inline)]
pub use crate::tls;
#[doc(no_inline)]
pub use crate::{
    ConnectionError, DEFAULT_PORT, Limits, Listening, LocalAddr, Outcome, ServerConfig, Stall,
    export, metrics, proto,
};

/// Clients on smol.
pub mod client {
    pub use crate::client::{
        Address, AllocationFlags, BlockSize, BlockSizeInfo, BufResult, Bytes, Chunk, ClientConfig,
        ClientStatistics, Command, CommandError, CommandType, ContextExtents, ContextRefusal,
        Entered, Error, ErrorCode, ExportDetails, Extent, Flags, Handshake, InfoType,
        InvalidRequest, Limits, Listing, LostReason, NoSession, OptionCode, OptionError,
        OptionReplyType, Pending, RequestStatistics, StatusRun, SubmitError, TransmissionFlags,
        Uri, UriError,
    };
    // For clients that come back to their server.
    pub use crate::client::{ConnectionEvent, GaveUp, Reconnect};
    use nbd_engine::client as engine;

    use super::Smol;

    /// An export on a server, on smol: the [engine's client](engine::Client), whose connections are tasks of the
    /// runtime. Cheap to clone and to share.
    ///
    /// [`Client::connect`](engine::Client::connect) and [`connect_with`](engine::Client::connect_with) take a URI,
    /// [`over`](engine::Client::over) a byte stream with the traits of `futures-io`.
    ///
    /// ```no_run
    /// use nbd_async_std::smol::Client;
    /// use nbd_async_std::smol::client::Flags;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # smol::block_on(async {
    /// let client = Client::connect("nbd://localhost/disk").await?;
    /// let mut sector = [0; 512];
    /// client.read_exact_at(&mut sector, 0).await?;
    /// client.write(512, sector.to_vec(), Flags::FUA).await?;
    /// client.disconnect().await;
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    pub type Client = engine::Client<Smol>;

    /// A connection to a server on which no export has been entered yet: the [engine's](engine::Negotiation).
    ///
    /// ```no_run
    /// use nbd_async_std::smol::client::{ClientConfig, Error};
    /// use nbd_async_std::smol::{Client, Negotiation};
    ///
    /// # async fn example() -> Result<Client, Error> {
    /// let config = ClientConfig::new().with_connections(4);
    /// let mut negotiation = Negotiation::connect(&"nbd://localhost".parse()?, &config).await?;
    /// let exports = negotiation.list().await?;
    /// # let chosen = &exports[0];
    /// negotiation.enter(&chosen.name).await
    /// # }
    /// ```
    pub type Negotiation = engine::Negotiation<Smol>;

    /// An export as a stream of bytes with a position, for code that uses the traits of `futures-io`: the
    /// [engine's](engine::Cursor).
    ///
    /// ```no_run
    /// # async fn copy(client: nbd_async_std::smol::Client) -> std::io::Result<()> {
    /// use smol::io::{AsyncReadExt, AsyncSeekExt};
    /// let mut cursor = nbd_async_std::smol::Cursor::new(client);
    /// cursor.seek(std::io::SeekFrom::End(-512)).await?;
    /// let mut last = Vec::new();
    /// cursor.read_to_end(&mut last).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub type Cursor = engine::Cursor<Smol>;

    /// The status of a range, run by run: the [engine's](engine::BlockStatusRange).
    pub type BlockStatusRange = engine::BlockStatusRange<Smol>;
}

crate::client::connector!(Smol);

/// The runtime of [`Server`] and [`Client`]: smol's global executor, started when first used.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "its only value names a global runtime")]
pub struct Smol;

impl Runtime for Smol {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        stream::sleep(duration)
    }

    fn spawn(&self, task: BoxFuture) {
        ::smol::spawn(task).detach();
    }
}

/// An NBD server on smol. See [`server::Server`] for the methods that it shares with other runtimes.
pub type Server = server::Server<Smol>;

impl Server {
    /// Listens on a TCP address, such as `"127.0.0.1:10809"`, `("localhost", DEFAULT_PORT)` or a list. Serving begins at
    /// once. Cancel-safe: dropped before it is ready, nothing listens.
    ///
    /// Unlike [`TcpListener::bind`], it listens on all addresses that a name resolves to, or that the list has:
    /// `localhost` is 127.0.0.1 and ::1. Port 0 takes a free port, the same for all of them. An address whose family this
    /// machine does not have is left out as long as there is another one.
    ///
    /// # Errors
    /// When there is no port, when the name is unknown, or when one of the addresses can't be listened on, with the
    /// address in the text; or when the server shuts down. Then nothing is listened on.
    pub async fn listen_tcp(&self, address: impl AsyncToSocketAddrs) -> io::Result<Listening> {
        self.listen_resolved(resolve(address).await)
    }

    /// Accepts connections from a TCP listener of yours.
    ///
    /// # Errors
    /// When the system does not report its address, or when the server shuts down.
    pub fn accept_tcp(&self, listener: TcpListener) -> io::Result<Listening> {
        self.start_tcp(listener)
    }

    /// Accepts connections from a Unix listener of yours, whose path stays yours, too.
    ///
    /// # Errors
    /// When the system does not report its address, or when the server shuts down.
    pub fn accept_unix(&self, listener: UnixListener) -> io::Result<Listening> {
        self.start_unix(listener)
    }

    /// Serves one client over a TCP stream of yours until it disconnects. Exports and the log learn of the peer's
    /// address. Dropping the future ends the connection; writes that were under way may or may not have been done.
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](server::Server#streams-of-yours).
    pub async fn serve_tcp(&self, stream: TcpStream) -> Result<(), ConnectionError> {
        self.serve_tcp_socket(stream).await
    }

    /// Serves one client over a Unix stream of yours until it disconnects. Exports and the log learn of the peer's
    /// process. Dropping the future ends the connection; writes that were under way may or may not have been done.
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](server::Server#streams-of-yours).
    pub async fn serve_unix(&self, stream: UnixStream) -> Result<(), ConnectionError> {
        self.serve_unix_socket(stream).await
    }
}
