//! What the engine asks of a byte stream.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

use futures_io::{AsyncRead, AsyncWrite};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

/// A byte stream to a peer.
///
/// Any stream will do; sockets do better with [`try_read`](Self::try_read), and with `poll_read_vectored` and
/// `poll_write_vectored` that really are vectored.
///
/// A stream may hold back what it was given until `poll_flush`, which the engine calls whenever it has nothing more to
/// send, in the handshake of TLS, too. As long as that is pending, the peer counts as one that does not take its replies,
/// and bytes that leave meanwhile are not seen: a server disconnects the client after
/// [`stall_timeout`](crate::server::ServerConfig::with_stall_timeout). So what such a stream holds back should be little.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {
    /// Reads what is there at this moment, without a promise to wake anybody later. The engine asks a few times before
    /// it goes to sleep, since the next request of a busy client is often there before a sleeper could be woken.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there, which is all that the default says.
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let _ = buffer;
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whether it is known that the peer will never read anything that is written, as opposed to having closed only its
    /// writing side: what is being done for it can be given up. The default never knows.
    fn is_peer_gone(&self) -> bool {
        false
    }

    /// The connected socket, in non-blocking mode, that carries exactly the bytes of this stream, for those that take
    /// over the connection; `None` where there is none, as inside of TLS, which is all that the default says.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What [`Transport::is_peer_gone`] can say of a connected socket: a Unix peer that has closed it, a TCP peer that has
/// reset the connection or no longer answers.
#[must_use]
pub fn is_socket_peer_gone(socket: impl AsFd) -> bool {
    let mut sockets = [PollFd::new(&socket, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut sockets, Some(&now)), Ok(count) if count > 0)
        && sockets[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Writes what a socket takes at this moment, without a promise to wake anybody later. A runtime may learn that there is room
/// only when there is much of it, which a peer that reads slowly makes but now and then.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when it takes nothing, and those of the socket.
pub fn try_send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::net::send(socket, bytes, flags)?)
}

/// A stream of whatever kind.
pub type AnyTransport = Box<dyn Transport>;

impl Transport for AnyTransport {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (**self).try_read(buffer)
    }

    fn is_peer_gone(&self) -> bool {
        (**self).is_peer_gone()
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        (**self).socket()
    }
}

/// A stream without anything special to it.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "a newtype: there is nothing to add")]
pub struct Plain<T>(pub T);

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for Plain<T> {}

/// A connected socket of whatever runtime: read without the runtime's leave where that is welcome. Closing it closes the
/// writing side alone, so that what the peer still has to say can be read.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "a newtype: there is nothing to add")]
pub struct Socket<T>(pub T);

impl<T: AsyncRead + AsyncWrite + AsFd + Unpin + Send> Transport for Socket<T> {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Some runtimes ask the socket only after their event loop has had its turn.
        Ok(rustix::net::recv(&self.0, buffer, RecvFlags::DONTWAIT)?.0)
    }

    fn is_peer_gone(&self) -> bool {
        is_socket_peer_gone(&self.0)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

impl<T: AsFd> Socket<T> {
    fn close(&self) -> io::Result<()> {
        match rustix::net::shutdown(&self.0, Shutdown::Write) {
            // A peer that was quicker, and left with something unread.
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

mod forward {
    //! [`Plain`] and [`Socket`] are what they hold.

    use core::pin::Pin;
    use core::task::{Context, Poll};
    use std::io::IoSlice;

    use super::{AsFd, AsyncRead, AsyncWrite, IoSliceMut, Plain, Socket, io};

    /// `$close` is how the wrapper is closed.
    macro_rules! forward {
        ($wrapper:ident, ($($bound:path),*), $close:expr) => {
            impl<T: AsyncRead + Unpin> AsyncRead for $wrapper<T> {
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

            impl<T: AsyncWrite + Unpin $(+ $bound)*> AsyncWrite for $wrapper<T> {
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

                fn poll_flush(
                    mut self: Pin<&mut Self>,
                    cx: &mut Context<'_>,
                ) -> Poll<io::Result<()>> {
                    Pin::new(&mut self.0).poll_flush(cx)
                }

                fn poll_close(
                    mut self: Pin<&mut Self>,
                    cx: &mut Context<'_>,
                ) -> Poll<io::Result<()>> {
                    $close(&mut self, cx)
                }
            }
        };
    }

    forward!(Plain, (), |plain: &mut Plain<T>, cx: &mut Context<'_>| {
        Pin::new(&mut plain.0).poll_close(cx)
    });
    // By itself, since async-io's own method, for one, leaves the writing side open.
    forward!(Socket, (AsFd), |socket: &mut Socket<T>, _| Poll::Ready(socket.close()));
}
