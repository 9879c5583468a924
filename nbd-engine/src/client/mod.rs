//! Clients: an export on a server, read and written from threads or tasks.
//!
//! Most programs use the `Client` of an adapter, which is this module's [`Client`] on that adapter's runtime, or on threads
//! one with blocking methods.
//!
//! - [`Client`] is an export that was entered, over one connection or several. Its methods come in two kinds: futures
//!   (`read_at`, `write`, `flush`, ...), and `submit_` methods that give a [`Pending`] request, of which any number can be
//!   in flight. [`Client::export`] has what was agreed.
//! - [`Negotiation`] is a connection before an export is entered: it lists exports and looks at them, one option at a time,
//!   and then enters one of them.
//! - [`Entered`] is a connection on which an export was entered, for something else than a client: a kernel, for example.
//! - [`Cursor`] is a client with a position, for code that reads, writes and seeks.
//! - [`ClientConfig`] has choices and deadlines, [`Error`] says what went wrong, and for each request of a lost connection
//!   whether it had been sent.
//!
//! # Who drives
//!
//! Each connection has a session: a poll function that takes requests out of a queue, writes them in one gathered write,
//! reads as it writes, puts data where it belongs, and wakes the waiters. Where tasks are cheap, one drives it
//! ([`DriveMode::Spawned`]). On threads those who wait for their requests do it in turn ([`DriveMode::Caller`]), so that a
//! reply costs no hop from one thread to another.
//!
//! The data of a request belongs to it until the reply is there. So a future can be dropped at any time without harm to
//! the stream, and a `Vec` that is lent to a request ([`Client::read_into`], [`Client::write_from`]) comes back: no copy,
//! no allocation.
//!
//! # Lost connections
//!
//! By default a connection that is lost stays lost, and [`Error::Lost`] says of each of its requests whether it may have been
//! carried out. With [`ClientConfig::with_reconnect`] the client replaces it: see [`Reconnect`].
//!
//! # For adapters
//!
//! An adapter says how to connect, by a [`Connector`] with time and tasks, its [`Runtime`](crate::Runtime). Clients are
//! made by [`Client::connect_by`], and over a stream that is connected already by [`Client::over_transport`]. With a
//! [`CurrentRuntime`] there are [`Client::connect`] and others without a connector:
//!
//! ```
//! use nbd_engine::client::{Client, ClientConfig, Connector, Error, Flags};
//! use nbd_engine::Plain;
//!
//! # async fn example<S, C: Connector>(stream: S, connector: C) -> Result<(), Error>
//! # where S: futures_io::AsyncRead + futures_io::AsyncWrite + Unpin + Send + 'static {
//! let (stream, config) = (Box::new(Plain(stream)), ClientConfig::new());
//! let client = Client::over_transport(connector, stream, "my server", "disk", &config).await?;
//!
//! let (buffer, result) = client.read_into(0, vec![0; 4096], Flags::empty()).await;
//! result?;
//! client.write(4096, buffer, Flags::empty()).await?;
//! let zeroes = client.submit_write_zeroes(8192, 4096, Flags::FUA);
//! let trim = client.submit_trim(12288, 4096, Flags::empty());
//! zeroes.await?;
//! trim.await?;
//! client.disconnect().await;
//! # Ok(())
//! # }
//! ```

mod buffer;
mod chunks;
#[expect(clippy::module_inception, reason = "the file holds the type of this name")]
mod client;
mod completion;
mod config;
mod connect;
mod connection_handle;
mod connector;
mod cursor;
mod details;
mod entered;
mod error;
mod free_list;
mod leader_follower;
#[cfg(test)]
mod manual;
mod negotiation;
mod pending;
mod ready;
mod reconnect;
mod request_state;
mod requests;
mod session;
mod split;
mod statistics;
mod status;
mod status_range;
mod status_walk;
mod submit;
mod timer;
#[cfg(feature = "tls")]
mod tls;
mod wait_any;
mod wait_queue;

pub use chunks::Chunk;
pub use client::Client;
pub use config::ClientConfig;
pub use connector::{Connector, CurrentRuntime, DriveMode, TransportFrom};
pub use cursor::Cursor;
pub use details::{ExportDetails, Handshake, Listing};
pub use entered::Entered;
pub use error::{Error, LostReason};
pub use negotiation::Negotiation;
pub use pending::Pending;
pub use reconnect::{ConnectionEvent, GaveUp, Reconnect};
pub use requests::BufResult;
pub use statistics::{ClientStatistics, RequestStatistics};
pub use status::ContextExtents;
pub use status_range::{BlockStatusRange, StatusRun};

pub use bytes::Bytes;
pub use nbd_proto::client::{CommandError, OptionError, SubmitError};
pub use nbd_proto::wire::CommandFlags as Flags;
pub use nbd_proto::wire::{
    AllocationFlags, BlockSizeInfo, CommandType, ErrorCode, InfoType, OptionCode, OptionReplyType,
    TransmissionFlags,
};
pub use nbd_proto::{
    Address, BlockSize, Command, ContextRefusal, Extent, InvalidRequest, Limits, NoSession,
    SelectedContext, Uri, UriError,
};
