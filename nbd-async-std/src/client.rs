//! Clients: connecting, and what comes from the engine. On smol there is `smol::client`, which is the same.

use std::io;
use std::marker::PhantomData;
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::os::unix::net::UnixStream;

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::client as engine;
use nbd_engine::client::{Connector, Driving};
use nbd_engine::{AnyTransport, Plain, Runtime, Socket};

pub use nbd_engine::client::{
    Bytes, CommandError, ContextExtents, Disk, Error, ExportDetails, Extent, Flags, Haggling,
    Handshake, Invalid, Lent, Listing, LostReason, Negotiated, Options, Pending, Uri, UriError,
};

/// An NBD client on async-std.
#[cfg(feature = "async-std")]
pub type Client = ClientOn<crate::AsyncStd>;

/// An export on a server, on a runtime `R`: an [engine's client](engine::Client), whose connections are tasks of the
/// runtime. Cheap to clone and to share; all requests are its methods, by [`Deref`].
///
#[cfg_attr(feature = "async-std", doc = "```no_run")]
#[cfg_attr(not(feature = "async-std"), doc = "```ignore")]
/// use nbd_async_std::Client;
/// use nbd_async_std::client::Flags;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # async_std::task::block_on(async {
/// let client = Client::connect("nbd://localhost/disk").await?;
/// let mut sector = [0; 512];
/// client.read_exact_at(&mut sector, 0).await?;
/// client.write_at_with(&sector, 512, Flags::FUA).await?;
/// client.disconnect().await;
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClientOn<R> {
    client: engine::Client,
    runtime: PhantomData<R>,
}

impl<R: Runtime + Default> ClientOn<R> {
    /// Connects to the export that a URI names, with default options. Cancel-safe.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub async fn connect(uri: &str) -> Result<Self, Error> {
        Self::connect_with(&uri.parse()?, &Options::default()).await
    }

    /// Connects to the export that a URI names. Cancel-safe: when dropped, there is no connection.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server can't be reached, [`Error::Refused`] when it does not have the export,
    /// [`Error::TimedOut`] after [`Options::connect_timeout`], [`Error::Unsupported`] for what this build can't do.
    pub async fn connect_with(uri: &Uri, options: &Options) -> Result<Self, Error> {
        engine::Client::connect_by(&Sockets(R::default()), uri, options).await.map(Self::new)
    }

    /// A client over a byte stream of yours, for the export that the options name. Set `TCP_NODELAY` on TCP streams.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    pub async fn over<T>(stream: T, options: &Options) -> Result<Self, Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, runtime, driving) = (Plain(stream), R::default(), Driving::Task);
        engine::Client::over(stream, runtime, driving, "stream", options).await.map(Self::new)
    }

    fn new(client: engine::Client) -> Self {
        Self { client, runtime: PhantomData }
    }
}

impl<R> ClientOn<R> {
    /// The export as a stream of bytes with a position, at its beginning: for code that uses the traits of `futures-io`.
    ///
    #[cfg_attr(feature = "async-std", doc = "```no_run")]
    #[cfg_attr(not(feature = "async-std"), doc = "```ignore")]
    /// # async fn copy(client: nbd_async_std::Client) -> std::io::Result<()> {
    /// use async_std::io::prelude::SeekExt;
    /// use async_std::io::ReadExt;
    /// let mut disk = client.disk();
    /// disk.seek(std::io::SeekFrom::End(-512)).await?;
    /// let mut last = Vec::new();
    /// disk.read_to_end(&mut last).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn disk(&self) -> Disk {
        Disk::new(self.client.clone())
    }
}

impl<R> Deref for ClientOn<R> {
    type Target = engine::Client;

    fn deref(&self) -> &engine::Client {
        &self.client
    }
}

/// A connection to a server on which no export was entered yet: an [engine's](Haggling), to list exports and to
/// look at them. It needs no task, and is the same on both runtimes.
///
/// # Errors
/// As for [`ClientOn::connect_with`].
pub async fn haggle(uri: &Uri, options: &Options) -> Result<Haggling<AnyTransport>, Error> {
    #[cfg(feature = "async-std")]
    let runtime = crate::AsyncStd;
    #[cfg(not(feature = "async-std"))]
    let runtime = crate::smol::Smol;
    Haggling::connect_by(&Sockets(runtime), uri, options).await
}

/// How these runtimes reach servers.
struct Sockets<R>(R);

impl<R: Runtime> Connector for Sockets<R> {
    type Transport = AnyTransport;
    type Runtime = R;
    const DRIVING: Driving = Driving::Task;

    fn runtime(&self) -> R {
        self.0.clone()
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<AnyTransport> {
        let stream = Async::<TcpStream>::connect(address).await?;
        stream.get_ref().set_nodelay(true)?;
        Ok(Box::new(Socket(stream)))
    }

    fn adopt_unix(&self, socket: UnixStream) -> io::Result<AnyTransport> {
        Ok(Box::new(Socket(Async::new(socket)?)))
    }
}
