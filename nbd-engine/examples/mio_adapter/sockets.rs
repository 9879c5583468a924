//! mio's sockets as the engine's transports and listeners, and how servers are reached.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::{AsyncRead, AsyncWrite};
use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Token};
use nbd_engine::client::{Connector, DriveMode};
use nbd_engine::export::PeerAddr;
use nbd_engine::server::{Accepted, Listen};
use nbd_engine::{AnyTransport, Transport, net};
use rustix::net::{RecvFlags, Shutdown};

use super::event_loop::EventLoop;

/// A socket that the loop watches.
pub(crate) struct Socket<S> {
    socket: S,
    token: Token,
    event_loop: EventLoop,
}

impl<S: Source> Socket<S> {
    pub(crate) fn new(mut socket: S, event_loop: &EventLoop) -> io::Result<Self> {
        let token = Token(event_loop.new_id());
        let interests = Interest::READABLE | Interest::WRITABLE;
        event_loop.registry().register(&mut socket, token, interests)?;
        Ok(Self { socket, token, event_loop: event_loop.clone() })
    }
}

impl<S> Socket<S> {
    /// Does what does not block. Where it would, the task is woken once that has changed. mio tells of a change once,
    /// in a later turn of this thread, so that none is missed in between.
    fn attempt<T>(
        &mut self,
        cx: &Context<'_>,
        mut attempt: impl FnMut(&mut S) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match attempt(&mut self.socket) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                result => return Poll::Ready(result),
            }
        }
        self.event_loop.state().sockets.insert(self.token, cx.waker().clone());
        Poll::Pending
    }
}

impl<S> Drop for Socket<S> {
    fn drop(&mut self) {
        self.event_loop.state().sockets.remove(&self.token);
    }
}

impl<S: Read + Write + AsFd + Unpin + Send> Transport for Socket<S> {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.socket, buffer, RecvFlags::DONTWAIT)?.0)
    }
}

impl<S: Read + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.attempt(cx, |socket| socket.read(buffer))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.attempt(cx, |socket| socket.read_vectored(buffers))
    }
}

impl<S: Write + AsFd + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.attempt(cx, |socket| socket.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.attempt(cx, |socket| socket.write_vectored(slices))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Only the writing side: the client is still listened to for a moment.
        Poll::Ready(rustix::net::shutdown(&self.socket, Shutdown::Write).map_err(Into::into))
    }
}

impl Listen for Socket<TcpListener> {
    type Transport = Socket<TcpStream>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let accepted = poll_fn(|cx| self.attempt(cx, |listener| listener.accept()));
        let (stream, address) = accepted.await?;
        net::tune_tcp(&stream)?;
        let transport = Socket::new(stream, &self.event_loop)?;
        Ok(Accepted::new(transport, address))
    }
}

impl Listen for Socket<UnixListener> {
    type Transport = Socket<UnixStream>;

    async fn accept(&mut self) -> io::Result<Accepted<Self::Transport>> {
        let accepted = poll_fn(|cx| self.attempt(cx, |listener| listener.accept()));
        let (stream, _) = accepted.await?;
        net::tune_unix(&stream);
        let peer = PeerAddr::unix(&stream);
        let transport = Socket::new(stream, &self.event_loop)?;
        Ok(Accepted::new(transport, peer))
    }
}

impl Connector for EventLoop {
    type Runtime = Self;
    const DRIVE_MODE: DriveMode = DriveMode::Spawned;

    fn runtime(&self) -> Self {
        self.clone()
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<AnyTransport> {
        let mut socket = Socket::new(TcpStream::connect(address)?, self)?;
        poll_fn(|cx| socket.attempt(cx, connected)).await?;
        socket.socket.set_nodelay(true)?;
        Ok(Box::new(socket))
    }

    fn adopt_unix(&self, socket: std::os::unix::net::UnixStream) -> io::Result<AnyTransport> {
        Ok(Box::new(Socket::new(UnixStream::from_std(socket), self)?))
    }
}

/// Whether a stream that is being connected has got there.
fn connected(stream: &mut TcpStream) -> io::Result<()> {
    match stream.take_error()? {
        Some(error) => Err(error),
        None => match stream.peer_addr() {
            Err(error) if error.kind() == ErrorKind::NotConnected => {
                Err(ErrorKind::WouldBlock.into())
            }
            result => result.map(drop),
        },
    }
}
