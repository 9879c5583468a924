//! Tokio's streams and listeners as the engine's.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nbd_engine::export::PeerAddr;
use nbd_engine::server::{Accepted, Listen};
use nbd_engine::{Socket, net};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// One of tokio's byte streams, with the traits of `futures-io`.
#[derive(Debug)]
pub(crate) struct Stream<T> {
    stream: T,
    scattered: Option<Scattered<T>>,
}

/// How a stream is read into several slices at once, for which tokio has no trait: whether it is ready, and the read.
type Scattered<T> = (
    fn(&T, &mut Context<'_>) -> Poll<io::Result<()>>,
    fn(&T, &mut [IoSliceMut<'_>]) -> io::Result<usize>,
);

impl<T> Stream<T> {
    /// A stream of which nothing else is known.
    pub(crate) const fn new(stream: T) -> Self {
        Self { stream, scattered: None }
    }
}

/// A TCP stream as the engine's.
pub(crate) fn tcp(stream: TcpStream) -> Socket<Stream<TcpStream>> {
    let scattered = Some((TcpStream::poll_read_ready as _, TcpStream::try_read_vectored as _));
    Socket(Stream { stream, scattered })
}

/// A Unix stream as the engine's.
pub(crate) fn unix(stream: UnixStream) -> Socket<Stream<UnixStream>> {
    let scattered = Some((UnixStream::poll_read_ready as _, UnixStream::try_read_vectored as _));
    Socket(Stream { stream, scattered })
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
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
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
