//! Clients: connecting, and what comes from the engine. On smol there is `smol::client`, which is the same.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use async_io::Async;
use nbd_engine::{AnyTransport, Socket};

pub use nbd_engine::client::{
    Address, AllocationFlags, BlockSize, BlockSizeInfo, BufResult, Bytes, Chunk, ClientConfig,
    ClientStatistics, Command, CommandError, CommandType, ConnectionEvent, ContextExtents,
    ContextRefusal, Entered, Error, ErrorCode, ExportDetails, Extent, Flags, GaveUp, Handshake,
    InfoType, InvalidRequest, Limits, Listing, LostReason, NoSession, OptionCode, OptionError,
    OptionReplyType, Pending, Reconnect, RequestStatistics, StatusRun, SubmitError,
    TransmissionFlags, Uri, UriError,
};

#[cfg(feature = "async-std")]
pub use crate::async_std::client::{BlockStatusRange, Client, Cursor, Negotiation};

/// How a client of one of these runtimes reaches servers, and runs over streams: both wait for sockets by async-io.
macro_rules! connector {
    ($runtime:ident) => {
        impl nbd_engine::client::Connector for $runtime {
            type Runtime = Self;
            const DRIVE_MODE: nbd_engine::client::DriveMode =
                nbd_engine::client::DriveMode::Spawned;

            fn runtime(&self) -> Self {
                *self
            }

            async fn connect_tcp(
                &self,
                address: std::net::SocketAddr,
            ) -> std::io::Result<nbd_engine::AnyTransport> {
                crate::client::connect_tcp(address).await
            }

            fn adopt_unix(
                &self,
                socket: std::os::unix::net::UnixStream,
            ) -> std::io::Result<nbd_engine::AnyTransport> {
                crate::client::adopt_unix(socket)
            }
        }

        impl nbd_engine::client::CurrentRuntime for $runtime {
            fn current() -> Self {
                Self
            }
        }

        impl<S> nbd_engine::client::TransportFrom<S> for $runtime
        where
            S: futures_io::AsyncRead + futures_io::AsyncWrite + Unpin + Send + 'static,
        {
            fn transport_from(&self, stream: S) -> nbd_engine::AnyTransport {
                Box::new(nbd_engine::Plain(stream))
            }
        }
    };
}

pub(crate) use connector;

pub(crate) async fn connect_tcp(address: SocketAddr) -> io::Result<AnyTransport> {
    let stream = Async::<TcpStream>::connect(address).await?;
    nbd_engine::net::tune_tcp(&stream)?;
    Ok(Box::new(Socket(stream)))
}

pub(crate) fn adopt_unix(socket: UnixStream) -> io::Result<AnyTransport> {
    Ok(Box::new(Socket(Async::new(socket)?)))
}
