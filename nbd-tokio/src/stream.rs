//! Tokio's streams and listeners as the engine's.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use nbd_engine::export::PeerAddr;
use nbd_engine::server::{Accepted, Listen};
use nbd_engine::{Socket, net, try_send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// One of tokio's byte streams, with the traits of `futures-io`.
#[derive(Debug)]
pub(crate) struct Stream<T> {
    stream: T,
    scattered: Option<Scattered<T>>,
    /// How a socket is written to whatever the runtime knows of it.
    try_send: Option<TrySend<T>>,
    /// Since when it takes nothing, as far as the runtime knows, or since when that was so when the socket itself was asked.
    full_since: Option<Instant>,
}

type TrySend<T> = fn(&T, &[u8]) -> io::Result<usize>;

/// After so long the socket itself is asked. Tokio learns that there is room when a third of it is free, which a client that
/// reads slowly may take minutes for; in between it would seem to read nothing.
const FULL: Duration = Duration::from_millis(100);

/// How a stream is read into several slices at once, for which tokio has no trait: whether it is ready, and the read.
type Scattered<T> = (
    fn(&T, &mut Context<'_>) -> Poll<io::Result<()>>,
    fn(&T, &mut [IoSliceMut<'_>]) -> io::Result<usize>,
);

impl<T> Stream<T> {
    /// A stream of which nothing else is known.
    pub(crate) const fn new(stream: T) -> Self {
        Self { stream, scattered: None, try_send: None, full_since: None }
    }

    /// A socket, with its ways of reading and writing.
    fn socket(stream: T, scattered: Scattered<T>) -> Socket<Self>
    where
        T: AsFd,
    {
        let by_itself: TrySend<T> = |stream, bytes| try_send(stream, bytes);
        let (scattered, try_send) = (Some(scattered), Some(by_itself));
        Socket(Self { stream, scattered, try_send, full_since: None })
    }

    /// What became of a write; if the socket has been full for a while, it is asked itself.
    fn wrote(&mut self, written: Poll<io::Result<usize>>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.full_since = None;
            return written;
        }
        let now = Instant::now();
        let since = *self.full_since.get_or_insert(now);
        if now.saturating_duration_since(since) < FULL {
            return written;
        }
        match self.try_send.map(|send| send(&self.stream, bytes)) {
            // There may be room for more.
            Some(Ok(sent)) if sent > 0 => Poll::Ready(Ok(sent)),
            // The runtime finds an error, too.
            _ => {
                self.full_since = Some(now);
                written
            }
        }
    }
}

/// A TCP stream as the engine's.
pub(crate) fn tcp(stream: TcpStream) -> Socket<Stream<TcpStream>> {
    Stream::socket(stream, (TcpStream::poll_read_ready as _, TcpStream::try_read_vectored as _))
}

/// A Unix stream as the engine's.
pub(crate) fn unix(stream: UnixStream) -> Socket<Stream<UnixStream>> {
    Stream::socket(stream, (UnixStream::poll_read_ready as _, UnixStream::try_read_vectored as _))
}

impl<T: AsFd> AsFd for Stream<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<T: AsyncRead + Unpin> futures_io::AsyncRead for Stream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some((poll_ready, try_read)) = self.scattered else {
            let first = buffers.iter_mut().find(|buffer| !buffer.is_empty());
            return self.poll_read(cx, first.map_or(&mut [], |buffer| &mut **buffer));
        };
        loop {
            ready!(poll_ready(&self.stream, cx))?;
            match try_read(&self.stream, buffers) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> futures_io::AsyncWrite for Stream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        let first = slices.iter().find(|slice| !slice.is_empty());
        self.wrote(written, first.map_or(&[], |slice| slice))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

pub(crate) struct Tcp(pub(crate) TcpListener);

impl Listen for Tcp {
    type Transport = Socket<Stream<TcpStream>>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, address) = self.0.accept().await?;
        net::tune_tcp(&stream)?;
        Ok(Accepted::new(tcp(stream), address))
    }
}

#[cfg(target_os = "linux")]
pub(crate) struct Vsock(pub(crate) tokio::io::unix::AsyncFd<net::VsockListener>);

#[cfg(target_os = "linux")]
impl Listen for Vsock {
    type Transport = Socket<Stream<UnixStream>>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(accepted) = ready.try_io(|listener| listener.get_ref().accept()) {
                let (stream, peer) = accepted?;
                return Ok(Accepted::new(unix(UnixStream::from_std(stream)?), peer));
            }
        }
    }
}

pub(crate) struct Unix(pub(crate) UnixListener);

impl Listen for Unix {
    type Transport = Socket<Stream<UnixStream>>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, _) = self.0.accept().await?;
        net::tune_unix(&stream);
        let peer = PeerAddr::unix(&stream);
        Ok(Accepted::new(unix(stream), peer))
    }
}
