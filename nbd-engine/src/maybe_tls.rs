//! A transport on which TLS can begin.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use futures_io::{AsyncRead, AsyncWrite};

#[cfg(feature = "tls")]
use crate::tls::{TlsError, TlsStream};
use crate::transport::Transport;

/// What a TLS stream holds between the bytes that it was given and those that the transport moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InTransit {
    /// Bytes of a received record whose rest has yet to arrive: nothing of it can be decrypted before.
    pub(crate) incomplete: u64,
    /// Whether ciphertext waits until the transport takes more.
    pub(crate) has_unsent: bool,
    /// Bytes of ciphertext that the transport has taken so far.
    pub(crate) sent: u64,
}

/// A transport as it is, or inside of TLS.
pub(crate) enum MaybeTls<T: Transport> {
    Plain(T),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream<T>>),
    /// The stream is closed: the upgrade failed half-way, or it was given up.
    Broken,
}

#[cfg(feature = "tls")]
impl<T: Transport> MaybeTls<T> {
    /// The TLS stream. The first call begins it, by way of `begin`.
    ///
    /// # Errors
    /// Those of `begin`; the transport must be dropped then.
    pub(crate) fn tls(
        &mut self,
        begin: impl FnOnce(T) -> Result<TlsStream<T>, TlsError>,
    ) -> Result<&mut TlsStream<T>, TlsError> {
        if let Self::Plain(_) = self
            && let Self::Plain(transport) = core::mem::replace(self, Self::Broken)
        {
            *self = Self::Tls(Box::new(begin(transport)?));
        }
        match self {
            Self::Tls(stream) => Ok(stream),
            _ => Err(TlsError::Setup("the connection is broken".into())),
        }
    }

    /// Whether the stream has failed inside of TLS: by an alert, by what breaks TLS, or by an end without a word.
    pub(crate) fn has_failed_in_tls(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.has_failed())
    }
}

impl<T: Transport> MaybeTls<T> {
    /// What TLS has received without a use yet, and what it has not sent; `None` without TLS.
    pub(crate) fn in_transit(&self) -> Option<InTransit> {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Some(stream.in_transit()),
            _ => None,
        }
    }

    /// Gives memory back that an idle connection does not need.
    pub(crate) fn shrink(&mut self) {
        #[cfg(feature = "tls")]
        if let Self::Tls(stream) = self {
            stream.shrink();
        }
    }
}

/// Calls the same for whichever stream there is.
macro_rules! forward {
    ($this:expr, $stream:ident => $call:expr, broken => $broken:expr) => {
        match $this {
            MaybeTls::Plain($stream) => $call,
            #[cfg(feature = "tls")]
            MaybeTls::Tls($stream) => $call,
            MaybeTls::Broken => $broken,
        }
    };
}

fn broken<R>() -> Poll<io::Result<R>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

impl<T: Transport> AsyncRead for MaybeTls<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self.get_mut(), it => Pin::new(it).poll_read(cx, buffer), broken => broken())
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(
            self.get_mut(),
            it => Pin::new(it).poll_read_vectored(cx, slices),
            broken => broken()
        )
    }
}

impl<T: Transport> AsyncWrite for MaybeTls<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self.get_mut(), it => Pin::new(it).poll_write(cx, bytes), broken => broken())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(
            self.get_mut(),
            it => Pin::new(it).poll_write_vectored(cx, slices),
            broken => broken()
        )
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self.get_mut(), it => Pin::new(it).poll_flush(cx), broken => broken())
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self.get_mut(), it => Pin::new(it).poll_close(cx), broken => broken())
    }
}

impl<T: Transport> Transport for MaybeTls<T> {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        forward!(
            self,
            it => it.try_read(buffer),
            broken => Err(io::ErrorKind::NotConnected.into())
        )
    }

    fn is_peer_gone(&self) -> bool {
        forward!(self, it => it.is_peer_gone(), broken => true)
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Plain(stream) => stream.socket(),
            _ => None,
        }
    }
}
