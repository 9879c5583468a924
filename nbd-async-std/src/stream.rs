//! Sockets of async-io, which both runtimes wait by, as the engine's transports and listeners.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_io::{Async, IoSafe, Timer};
use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::server::{Accepted, Listen};
use nbd_engine::{BoxFuture, Transport, net};
use rustix::net::{RecvFlags, Shutdown};

/// Is ready once `duration` has passed.
pub(crate) fn sleep(duration: Duration) -> BoxFuture {
    let timer = Timer::after(duration);
    Box::pin(async move {
        timer.await;
    })
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Socket<T>(Async<T>);

impl<T: IoSafe + io::Read + io::Write + AsFd + Send> Transport for Socket<T> {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.0.get_ref(), buffer, RecvFlags::DONTWAIT)?.0)
    }
}

impl<T: IoSafe + io::Read> AsyncRead for Socket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read_vectored(cx, buffers)
    }
}

impl<T: IoSafe + io::Write + AsFd> AsyncWrite for Socket<T> {
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

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only the writing side, which async-io's own method leaves open.
        Poll::Ready(rustix::net::shutdown(self.0.get_ref(), Shutdown::Write).map_err(Into::into))
    }
}

pub(crate) struct Tcp(pub(crate) Arc<Async<TcpListener>>);

impl Listen for Tcp {
    type Transport = Socket<TcpStream>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, address) = self.0.accept().await?;
        net::tune_tcp(&stream)?;
        Ok(Accepted { transport: Socket(stream), peer: address.to_string() })
    }
}

pub(crate) struct Unix(pub(crate) Arc<Async<UnixListener>>);

impl Listen for Unix {
    type Transport = Socket<UnixStream>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let (stream, _) = self.0.accept().await?;
        net::tune_unix(&stream);
        Ok(Accepted { transport: Socket(stream), peer: "unix socket".into() })
    }
}
