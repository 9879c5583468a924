//! Clients on tokio: connecting, and what tokio's own traits need.

use std::io::{self, SeekFrom};
use std::net::SocketAddr;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nbd_engine::client as engine;
use nbd_engine::client::{Connector, Driving};
use nbd_engine::{AnyTransport, Plain};
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;

pub use nbd_engine::client::{
    Bytes, CommandError, ContextExtents, Error, ExportDetails, Extent, Flags, Haggling, Handshake,
    Invalid, Lent, Listing, LostReason, Negotiated, Options, Pending, Uri, UriError,
};

use crate::runtime::Tokio;
use crate::stream::{self, Stream};

/// An export on a server, on tokio: an [engine's client](engine::Client), whose connections are tasks of the runtime on
/// which it was made. Cheap to clone and to share; all requests are its methods, by [`Deref`].
///
/// ```no_run
/// use nbd_tokio::Client;
/// use nbd_tokio::client::Flags;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::connect("nbd://localhost/disk").await?;
/// let mut sector = [0; 512];
/// client.read_exact_at(&mut sector, 0).await?;
/// client.write_at_with(&sector, 512, Flags::FUA).await?;
/// client.disconnect().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client(engine::Client);

impl Client {
    /// Connects to the export that a URI names, with default options. Cancel-safe.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect(uri: &str) -> Result<Self, Error> {
        Self::connect_with(&uri.parse()?, &Options::default()).await
    }

    /// Connects to the export that a URI names. Cancel-safe: when dropped, there is no connection.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server can't be reached, [`Error::Refused`] when it does not have the export,
    /// [`Error::TimedOut`] after [`Options::connect_timeout`], [`Error::Unsupported`] for what this build can't do.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn connect_with(uri: &Uri, options: &Options) -> Result<Self, Error> {
        engine::Client::connect_by(&Here::new(), uri, options).await.map(Self)
    }

    /// A client over a byte stream of yours, for the export that the options name. Set `TCP_NODELAY` on TCP streams.
    ///
    /// # Errors
    /// See [`connect_with`](Self::connect_with).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn over<T>(stream: T, options: &Options) -> Result<Self, Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (runtime, driving) = (Here::new().0, Driving::Task);
        let stream = Plain(Stream::new(stream));
        engine::Client::over(stream, runtime, driving, "stream", options).await.map(Self)
    }

    /// The export as a stream of bytes with a position, at its beginning.
    #[must_use]
    pub fn disk(&self) -> Disk {
        Disk { disk: engine::Disk::new(self.0.clone()), seek: None }
    }
}

impl Deref for Client {
    type Target = engine::Client;

    fn deref(&self) -> &engine::Client {
        &self.0
    }
}

/// A connection to a server on which no export was entered yet: an [engine's](Haggling), to list exports and to
/// look at them.
///
/// # Errors
/// As for [`Client::connect_with`].
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn haggle(uri: &Uri, options: &Options) -> Result<Haggling<AnyTransport>, Error> {
    Haggling::connect_by(&Here::new(), uri, options).await
}

/// The runtime that clients are made on.
struct Here(Tokio);

impl Here {
    fn new() -> Self {
        Self(Tokio(Handle::current()))
    }
}

impl Connector for Here {
    type Transport = AnyTransport;
    type Runtime = Tokio;
    const DRIVING: Driving = Driving::Task;

    fn runtime(&self) -> Tokio {
        self.0.clone()
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<AnyTransport> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream::tcp(stream)))
    }

    fn adopt_unix(&self, socket: std::os::unix::net::UnixStream) -> io::Result<AnyTransport> {
        Ok(Box::new(stream::unix(UnixStream::from_std(socket)?)))
    }
}

/// An export as a stream of bytes with a position, for code that uses tokio's traits. See
/// [the engine's](engine::Disk) for its rules.
///
/// ```no_run
/// # async fn copy(client: nbd_tokio::Client) -> std::io::Result<()> {
/// use tokio::io::{AsyncReadExt, AsyncSeekExt};
/// let mut disk = client.disk();
/// disk.seek(std::io::SeekFrom::End(-512)).await?;
/// let mut last = Vec::new();
/// disk.read_to_end(&mut last).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Disk {
    disk: engine::Disk,
    seek: Option<u64>,
}

impl Disk {
    /// The engine's disk, which has the traits of `futures-io`.
    #[must_use]
    pub fn into_inner(self) -> engine::Disk {
        self.disk
    }
}

impl AsyncRead for Disk {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.initialize_unfilled();
        let count = ready!(futures_io::AsyncRead::poll_read(Pin::new(&mut self.disk), cx, room))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Disk {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        futures_io::AsyncWrite::poll_write(Pin::new(&mut self.disk), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures_io::AsyncWrite::poll_flush(Pin::new(&mut self.disk), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures_io::AsyncWrite::poll_close(Pin::new(&mut self.disk), cx)
    }
}

impl AsyncSeek for Disk {
    fn start_seek(mut self: Pin<&mut Self>, target: SeekFrom) -> io::Result<()> {
        let position = self.disk.seek_to(target)?;
        self.seek = Some(position);
        Ok(())
    }

    fn poll_complete(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let position = self.seek.take().unwrap_or(self.disk.position());
        Poll::Ready(Ok(position))
    }
}
