//! One object that is read and written, such as a TLS stream, as a transport.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::export::PeerAddr;
use nbd_engine::{Transport, net};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::reactor;

/// How long a stream is left alone that takes nothing although its socket does. Most of these wait for the peer, such as
/// in a TLS handshake, and what wakes them is their socket; this is for those that don't.
const RETRY: Duration = Duration::from_millis(100);

/// A non-blocking stream over a socket, to be used on the thread of [`reactor::block_on`].
///
/// Layers such as TLS move bytes in both directions whenever they are called: a write may take what has arrived out of
/// the socket, which then is not readable any more. So the thread sleeps only when the last call of all, after each
/// write, was a read that had nothing to give.
pub(crate) struct Duplex<S> {
    stream: S,
    socket: Arc<OwnedFd>,
    peer: PeerAddr,
    ahead: Ahead,
    /// Wakes the reader that waits. Threads that don't read a client's stream write to it, too.
    reader: Option<Waker>,
    /// The turn in which there was nothing more to read.
    drained: Option<u64>,
    /// The turn in which the stream took nothing more.
    full: Option<u64>,
}

/// What was found by a look whether there is something to read.
#[derive(Default)]
enum Ahead {
    #[default]
    Nothing,
    Byte(u8),
    Failed(io::Error),
}

/// It is never pinned.
impl<S> Unpin for Duplex<S> {}

impl<S: Read + Write> Duplex<S> {
    /// Makes the socket non-blocking, which `socket` finds in the stream, and sets it up if it is a TCP socket.
    pub(crate) fn new(stream: S, socket: impl FnOnce(&S) -> BorrowedFd<'_>) -> io::Result<Self> {
        let socket = Arc::new(socket(&stream).try_clone_to_owned()?);
        rustix::io::ioctl_fionbio(&socket, true)?;
        let peer = PeerAddr::of(&*socket);
        if matches!(peer, PeerAddr::Tcp(_)) {
            net::tune_tcp(&socket)?;
        }
        Ok(Self {
            stream,
            socket,
            peer,
            ahead: Ahead::Nothing,
            reader: None,
            drained: None,
            full: None,
        })
    }

    /// The peer of the socket below the stream.
    pub(crate) const fn peer(&self) -> &PeerAddr {
        &self.peer
    }

    fn read(&mut self, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        settle(|| self.stream.read(buffer))
    }

    /// Reads what follows a byte that was found, if it is there already.
    fn read_behind(&mut self, buffer: &mut [u8]) -> usize {
        if buffer.is_empty() {
            return 0;
        }
        match self.read(buffer) {
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(error)) => {
                self.ahead = Ahead::Failed(error);
                0
            }
            Poll::Pending => 0,
        }
    }

    /// Calls what may send something, unless the stream took nothing more in this turn already.
    fn push<T>(&mut self, mut call: impl FnMut(&mut S) -> io::Result<T>) -> Poll<io::Result<T>> {
        let mut result = Poll::Pending;
        if self.full != Some(reactor::turn()) {
            result = settle(|| call(&mut self.stream));
            if result.is_pending() && self.is_writable() {
                // Either there is room since, or the stream waits for something else.
                result = settle(|| call(&mut self.stream));
            }
            self.look_ahead();
        }
        if result.is_pending() {
            self.full = Some(reactor::turn());
            if self.is_writable() {
                reactor::wake_after(RETRY);
            } else {
                reactor::wait_for(&self.socket, PollFlags::OUT);
            }
        }
        result
    }

    /// Looks whether the stream has got something to read by what was called last, if a reader waits.
    fn look_ahead(&mut self) {
        if self.reader.is_none() {
            return;
        }
        let mut byte = [0];
        let Poll::Ready(found) = self.read(&mut byte) else { return };
        self.ahead = match found {
            Ok(0) => Ahead::Nothing,
            Ok(_) => Ahead::Byte(byte[0]),
            Err(error) => Ahead::Failed(error),
        };
        self.drained = None;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn is_writable(&self) -> bool {
        let mut ready = [PollFd::new(&*self.socket, PollFlags::OUT)];
        poll(&mut ready, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}

/// What a call that does not block comes to.
fn settle<T>(mut call: impl FnMut() -> io::Result<T>) -> Poll<io::Result<T>> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            result => return Poll::Ready(result),
        }
    }
}

impl<S: Read + Write + Send> Transport for Duplex<S> {
    fn is_peer_gone(&self) -> bool {
        nbd_engine::is_socket_peer_gone(&*self.socket)
    }
}

impl<S: Read + Write> AsyncRead for Duplex<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some((first, rest)) = buffer.split_first_mut() else { return Poll::Ready(Ok(0)) };
        let waker = self.reader.take();
        match core::mem::take(&mut self.ahead) {
            Ahead::Byte(byte) => {
                *first = byte;
                return Poll::Ready(Ok(1 + self.read_behind(rest)));
            }
            Ahead::Failed(error) => return Poll::Ready(Err(error)),
            Ahead::Nothing => {}
        }
        if self.drained != Some(reactor::turn()) {
            if let Poll::Ready(result) = self.read(buffer) {
                return Poll::Ready(result);
            }
            // It may have to answer its peer before it can go on.
            if let Poll::Ready(Err(error)) = self.push(S::flush) {
                return Poll::Ready(Err(error));
            }
            if let Poll::Ready(result) = self.read(buffer) {
                return Poll::Ready(result);
            }
            self.drained = Some(reactor::turn());
        }
        let same = waker.filter(|waker| waker.will_wake(cx.waker()));
        self.reader = Some(same.unwrap_or_else(|| cx.waker().clone()));
        reactor::wait_for(&self.socket, PollFlags::IN);
        Poll::Pending
    }
}

impl<S: Read + Write> AsyncWrite for Duplex<S> {
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
        self.push(|stream| match stream.write_vectored(slices)? {
            // Streams with a buffer say so when it is full. A stream that has ended says so again.
            0 => {
                stream.flush()?;
                stream.write_vectored(slices)
            }
            count => Ok(count),
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.push(S::flush)
    }

    /// Leaves the socket open: to close the stream in its own way is up to the caller.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
