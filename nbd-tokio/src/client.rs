//! Clients on tokio: connecting, and what tokio's own traits need.

use std::io::{self, SeekFrom};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nbd_engine::client as engine;
use nbd_engine::client::{Connector, CurrentRuntime, DriveMode, TransportFrom};
use nbd_engine::{AnyTransport, Plain};
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;

pub use nbd_engine::client::{
    Address, AllocationFlags, BlockSize, BlockSizeInfo, BufResult, Bytes, Chunk, ClientConfig,
    ClientStatistics, Command, CommandError, CommandType, ConnectionEvent, ContextExtents,
    ContextRefusal, Entered, Error, ErrorCode, ExportDetails, Extent, Flags, GaveUp, Handshake,
    InfoType, InvalidRequest, Limits, Listing, LostReason, NoSession, OptionCode, OptionError,
    OptionReplyType, Pending, Reconnect, RequestStatistics, StatusRun, SubmitError,
    TransmissionFlags, Uri, UriError,
};

use crate::runtime::Tokio;
use crate::stream::{self, Stream};

/// An export on a server, on tokio: the [engine's client](engine::Client), whose connections are tasks of the runtime on
/// which it was made. Cheap to clone and to share.
///
/// [`Client::connect`](engine::Client::connect) and [`connect_with`](engine::Client::connect_with) take a URI,
/// [`over`](engine::Client::over) a byte stream with tokio's traits. They panic outside of a tokio runtime.
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
/// client.write(512, sector.to_vec(), Flags::FUA).await?;
/// client.disconnect().await;
/// # Ok(())
/// # }
/// ```
pub type Client = engine::Client<Tokio>;

/// A connection to a server on which no export has been entered yet, on tokio: the [engine's](engine::Negotiation).
///
/// ```no_run
/// use nbd_tokio::client::{ClientConfig, Error};
/// use nbd_tokio::{Client, Negotiation};
///
/// # async fn example() -> Result<Client, Error> {
/// let config = ClientConfig::new().with_connections(4);
/// let mut negotiation = Negotiation::connect(&"nbd://localhost".parse()?, &config).await?;
/// let exports = negotiation.list().await?;
/// # let chosen = &exports[0];
/// negotiation.enter(&chosen.name).await
/// # }
/// ```
pub type Negotiation = engine::Negotiation<Tokio>;

/// The status of a range, run by run, on tokio: the [engine's](engine::BlockStatusRange).
pub type BlockStatusRange = engine::BlockStatusRange<Tokio>;

impl Connector for Tokio {
    type Runtime = Self;
    const DRIVE_MODE: DriveMode = DriveMode::Spawned;

    fn runtime(&self) -> Self {
        self.clone()
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<AnyTransport> {
        let stream = TcpStream::connect(address).await?;
        nbd_engine::net::tune_tcp(&stream)?;
        Ok(Box::new(stream::tcp(stream)))
    }

    fn adopt_unix(&self, socket: std::os::unix::net::UnixStream) -> io::Result<AnyTransport> {
        Ok(Box::new(stream::unix(UnixStream::from_std(socket)?)))
    }
}

impl CurrentRuntime for Tokio {
    fn current() -> Self {
        Self(Handle::current())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TransportFrom<S> for Tokio {
    fn transport_from(&self, stream: S) -> AnyTransport {
        Box::new(Plain(Stream::new(stream)))
    }
}

/// An export as a stream of bytes with a position, for code that uses tokio's traits. See
/// [the engine's](engine::Cursor) for its rules. The methods of those traits need tokio's feature `io-util`.
///
/// ```no_run
/// # async fn copy(client: nbd_tokio::Client) -> std::io::Result<()> {
/// use tokio::io::{AsyncReadExt, AsyncSeekExt};
/// let mut cursor = nbd_tokio::Cursor::new(client);
/// cursor.seek(std::io::SeekFrom::End(-512)).await?;
/// let mut last = Vec::new();
/// cursor.read_to_end(&mut last).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Cursor {
    inner: engine::Cursor<Tokio>,
    seek: Option<u64>,
}

impl Cursor {
    /// The beginning of the export.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self { inner: engine::Cursor::new(client), seek: None }
    }

    /// The client.
    #[must_use]
    pub const fn client(&self) -> &Client {
        self.inner.client()
    }

    /// Where the next byte is read or written, in bytes from the beginning of the export.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.inner.position()
    }

    /// The engine's cursor, which has the traits of `futures-io`.
    #[must_use]
    pub fn into_inner(self) -> engine::Cursor<Tokio> {
        self.inner
    }
}

impl AsyncRead for Cursor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.initialize_unfilled();
        let count = ready!(futures_io::AsyncRead::poll_read(Pin::new(&mut self.inner), cx, room))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Cursor {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        futures_io::AsyncWrite::poll_write(Pin::new(&mut self.inner), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures_io::AsyncWrite::poll_flush(Pin::new(&mut self.inner), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures_io::AsyncWrite::poll_close(Pin::new(&mut self.inner), cx)
    }
}

impl AsyncSeek for Cursor {
    fn start_seek(mut self: Pin<&mut Self>, target: SeekFrom) -> io::Result<()> {
        let position = self.inner.seek_to(target)?;
        self.seek = Some(position);
        Ok(())
    }

    fn poll_complete(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let position = self.seek.take().unwrap_or(self.inner.position());
        Poll::Ready(Ok(position))
    }
}
