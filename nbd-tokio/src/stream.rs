//! Tokio's streams and listeners as the engine's.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nbd_engine::server::{Accepted, Listen};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// One of tokio's byte streams, as the engine reads and writes it.
#[derive(Debug)]
pub(crate) struct Stream<T>(pub(crate) T);

impl<T: AsyncRead + Unpin> futures_io::AsyncRead for Stream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<T: AsyncWrite + Unpin> futures_io::AsyncWrite for Stream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

pub(crate) struct Tcp(pub(crate) TcpListener);

impl Listen for Tcp {
    type Transport = Stream<TcpStream>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, address) = self.0.accept().await?;
        // Replies leave at once: the specification asks for it (B-CONV-05).
        stream.set_nodelay(true)?;
        Ok(Accepted { transport: Stream(stream), peer: address.to_string() })
    }
}

pub(crate) struct Unix(pub(crate) UnixListener);

impl Listen for Unix {
    type Transport = Stream<UnixStream>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, _) = self.0.accept().await?;
        Ok(Accepted { transport: Stream(stream), peer: "unix socket".into() })
    }
}
