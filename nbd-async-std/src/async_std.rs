//! async-std's tasks, listeners and names.

use std::io;
use std::time::Duration;

use ::async_std::net::{TcpListener, TcpStream, ToSocketAddrs};
use ::async_std::os::unix::net::{UnixListener, UnixStream};
use nbd_engine::server::{ConnectionError, Listening};
use nbd_engine::{BoxFuture, Runtime};

use crate::{server, stream};

/// The runtime of [`Server`] and [`Client`](crate::Client): async-std's global threads, started when first used.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "its only value names a global runtime")]
pub struct AsyncStd;

impl Runtime for AsyncStd {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        stream::sleep(duration)
    }

    fn spawn(&self, task: BoxFuture) {
        // Tasks run on their own; nobody waits for the handle.
        drop(::async_std::task::spawn(task));
    }
}

/// Clients on async-std.
pub(crate) mod client {
    use nbd_engine::client as engine;

    use super::AsyncStd;

    /// An export on a server, on async-std: the [engine's client](engine::Client), whose connections are tasks of the
    /// runtime. Cheap to clone and to share.
    ///
    /// [`Client::connect`](engine::Client::connect) and [`connect_with`](engine::Client::connect_with) take a URI,
    /// [`over`](engine::Client::over) a byte stream with the traits of `futures-io`.
    ///
    /// ```no_run
    /// use nbd_async_std::Client;
    /// use nbd_async_std::client::Flags;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # async_std::task::block_on(async {
    /// let client = Client::connect("nbd://localhost/disk").await?;
    /// let mut sector = [0; 512];
    /// client.read_exact_at(&mut sector, 0).await?;
    /// client.write(512, sector.to_vec(), Flags::FUA).await?;
    /// client.disconnect().await;
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    pub type Client = engine::Client<AsyncStd>;

    /// A connection to a server on which no export has been entered yet: the [engine's](engine::Negotiation).
    ///
    /// ```no_run
    /// use nbd_async_std::client::{ClientConfig, Error};
    /// use nbd_async_std::{Client, Negotiation};
    ///
    /// # async fn example() -> Result<Client, Error> {
    /// let config = ClientConfig::new().with_connections(4);
    /// let mut negotiation = Negotiation::connect(&"nbd://localhost".parse()?, &config).await?;
    /// let exports = negotiation.list().await?;
    /// # let chosen = &exports[0];
    /// negotiation.enter(&chosen.name).await
    /// # }
    /// ```
    pub type Negotiation = engine::Negotiation<AsyncStd>;

    /// An export as a stream of bytes with a position, for code that uses the traits of `futures-io`: the
    /// [engine's](engine::Cursor).
    ///
    /// ```no_run
    /// # async fn copy(client: nbd_async_std::Client) -> std::io::Result<()> {
    /// use async_std::io::{ReadExt, prelude::SeekExt};
    /// let mut cursor = nbd_async_std::Cursor::new(client);
    /// cursor.seek(std::io::SeekFrom::End(-512)).await?;
    /// let mut last = Vec::new();
    /// cursor.read_to_end(&mut last).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub type Cursor = engine::Cursor<AsyncStd>;

    /// The status of a range, run by run: the [engine's](engine::BlockStatusRange).
    pub type BlockStatusRange = engine::BlockStatusRange<AsyncStd>;
}

crate::client::connector!(AsyncStd);

/// An NBD server on async-std. See [`server::Server`] for the methods that it shares with other runtimes.
pub type Server = server::Server<AsyncStd>;

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
    pub async fn listen_tcp(&self, address: impl ToSocketAddrs) -> io::Result<Listening> {
        self.listen_resolved(address.to_socket_addrs().await)
    }

    /// Accepts connections from a TCP listener of yours.
    ///
    /// # Errors
    /// When it can't be made non-blocking, when the system does not report its address, or when the server shuts down.
    pub fn accept_tcp(&self, listener: TcpListener) -> io::Result<Listening> {
        self.start_tcp(async_io::Async::new(std::net::TcpListener::try_from(listener)?)?)
    }

    /// Accepts connections from a Unix listener of yours, whose path stays yours, too.
    ///
    /// # Errors
    /// When it can't be made non-blocking, when the system does not report its address, or when the server shuts down.
    pub fn accept_unix(&self, listener: UnixListener) -> io::Result<Listening> {
        let listener = std::os::unix::net::UnixListener::try_from(listener)?;
        self.start_unix(async_io::Async::new(listener)?)
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
