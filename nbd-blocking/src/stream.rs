//! Sockets as the engine's transports and listeners.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::export::PeerAddr;
use nbd_engine::server::{Accepted, Listen};
use nbd_engine::{Transport, net};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use crate::reactor;

/// A non-blocking stream socket, to be used on the thread of [`reactor::block_on`].
#[derive(Debug)]
pub(crate) struct Stream {
    socket: Arc<OwnedFd>,
    /// The turn in which there was nothing more to read.
    drained: Option<u64>,
    /// The turn in which there was no room to write.
    full: Option<u64>,
}

impl Stream {
    pub(crate) fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        net::tune_tcp(&stream)?;
        Ok(Self::new(stream.into()))
    }

    pub(crate) fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        net::tune_unix(&stream);
        Ok(Self::new(stream.into()))
    }

    fn new(socket: OwnedFd) -> Self {
        Self { socket: Arc::new(socket), drained: None, full: None }
    }
}

/// Runs a call that may not block, unless it had nothing to do in this turn already.
fn attempt<T>(
    socket: &Arc<OwnedFd>,
    events: PollFlags,
    in_vain: &mut Option<u64>,
    mut call: impl FnMut() -> rustix::io::Result<T>,
) -> Poll<io::Result<T>> {
    if *in_vain != Some(reactor::turn()) {
        loop {
            match call() {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    *in_vain = Some(reactor::turn());
                    break;
                }
                result => return Poll::Ready(result.map_err(Into::into)),
            }
        }
    }
    reactor::wait_for(socket, events);
    Poll::Pending
}

impl Transport for Stream {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&*self.socket, buffer, RecvFlags::empty())?.0)
    }

    fn is_peer_gone(&self) -> bool {
        nbd_engine::is_socket_peer_gone(&*self.socket)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_read_vectored(cx, &mut [IoSliceMut::new(buffer)])
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, drained, .. } = &mut *self;
        let wanted: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let result =
            attempt(socket, PollFlags::IN, drained, || rustix::io::readv(&**socket, buffers));
        if matches!(result, Poll::Ready(Ok(count)) if count < wanted && count > 0) {
            // A short read took all there was: asking again before the socket says so would be in vain.
            *drained = Some(reactor::turn());
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, full, .. } = &mut *self;
        attempt(socket, PollFlags::OUT, full, || {
            // A peer that is gone is an error, not a signal to the whole process.
            let mut nothing = SendAncillaryBuffer::default();
            rustix::net::sendmsg(&**socket, slices, &mut nothing, SendFlags::NOSIGNAL)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.socket, Shutdown::Write).map_err(Into::into))
    }
}

/// A non-blocking listening socket of either kind.
#[derive(Debug)]
pub(crate) struct Listener {
    kind: Kind,
    /// The same socket, to wait for.
    socket: Arc<OwnedFd>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
    #[cfg(target_os = "linux")]
    Vsock(net::VsockListener),
}

impl Listener {
    pub(crate) fn tcp(listener: TcpListener) -> io::Result<Self> {
        let socket = Arc::new(listener.try_clone()?.into());
        Ok(Self { kind: Kind::Tcp(listener), socket })
    }

    pub(crate) fn unix(listener: UnixListener) -> io::Result<Self> {
        let socket = Arc::new(listener.try_clone()?.into());
        Ok(Self { kind: Kind::Unix(listener), socket })
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn vsock(listener: net::VsockListener) -> io::Result<Self> {
        let socket = Arc::new(listener.as_fd().try_clone_to_owned()?);
        Ok(Self { kind: Kind::Vsock(listener), socket })
    }

    fn try_accept(&self) -> io::Result<Accepted<Stream>> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                Ok(Accepted::new(Stream::tcp(stream)?, address))
            }
            Kind::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                let peer = PeerAddr::unix(&stream);
                Ok(Accepted::new(Stream::unix(stream)?, peer))
            }
            #[cfg(target_os = "linux")]
            Kind::Vsock(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok(Accepted::new(Stream::new(stream.into()), peer))
            }
        }
    }
}

impl Listen for Listener {
    type Transport = Stream;

    async fn accept(&mut self) -> io::Result<Accepted<Stream>> {
        poll_fn(|_| match self.try_accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                reactor::wait_for(&self.socket, PollFlags::IN);
                Poll::Pending
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                reactor::wait_for(&self.socket, PollFlags::IN);
                Poll::Pending
            }
            result => Poll::Ready(result),
        })
        .await
    }
}
