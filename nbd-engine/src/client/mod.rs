//! Clients: an export on a server, read and written from threads or tasks.
//!
//! Most people use the `Client` of an adapter, which connects by a [`Uri`] and is this module's otherwise.
//!
//! - [`Haggling`] is a connection before an export is entered: it lists exports and looks at them.
//! - [`Client`] is an export that was entered, over one connection or several. Its methods come in two kinds: futures
//!   (`read_at`, `write`, `flush`, ...), and `submit_` methods that give a [`Pending`] request, of which any number can be
//!   in flight. What was agreed on is to be had from [`Negotiated`], to which it derefs.
//! - [`Disk`] is a client with a position, for code that reads, writes and seeks.
//! - [`Options`] are choices and deadlines, [`Error`] says what went wrong, and for each request of a lost connection
//!   whether it had been sent.
//!
//! # Who drives
//!
//! Each connection has a session: a poll function that takes requests out of a queue, writes them in one gathered write,
//! reads as it writes, puts data where it belongs, and tells whoever asked. Where tasks are cheap, one drives it
//! ([`Driving::Task`]). On threads nobody does: those who wait for their requests do it in turn ([`Driving::Callers`]),
//! so that a reply costs no hop from one thread to another.
//!
//! The data of a request belongs to it until the reply is there. So a future can be dropped at any time without harm to
//! the stream, and who lends a `Vec` ([`Client::read_into`], [`Client::submit_write_from`]) gets it back: no copy, no
//! allocation.
//!
//! # For adapters
//!
//! An adapter says how to connect, by a [`Connector`], and brings time and tasks, by a [`Runtime`](crate::Runtime). Over a
//! stream that is connected already there is [`Client::over`]:
//!
//! ```
//! use nbd_engine::client::{Client, Driving, Error, Flags, Options};
//! use nbd_engine::{Plain, Runtime};
//!
//! # async fn example<S, R: Runtime>(stream: S, runtime: R) -> Result<(), Error>
//! # where S: futures_io::AsyncRead + futures_io::AsyncWrite + Unpin + Send + 'static {
//! let mut options = Options::default();
//! options.export = Some("disk".into());
//! let client = Client::over(Plain(stream), runtime, Driving::Task, "my server", &options).await?;
//!
//! let (buffer, result) = client.read_into(vec![0; 4096], 0).await;
//! result?;
//! client.write(buffer.into(), 4096).await?;
//! let zeroes = client.submit_write_zeroes(8192, 4096, Flags::FUA);
//! let trim = client.submit_trim(12288, 4096, Flags::empty());
//! zeroes.await?;
//! trim.await?;
//! client.disconnect().await;
//! # Ok(())
//! # }
//! ```

mod connect;
mod details;
mod disk;
mod error;
mod haggling;
mod handle;
mod invalid;
mod lead;
mod link;
mod negotiated;
mod options;
mod pending;
mod requests;
mod session;
mod ticket;
mod timer;
mod transfer;

pub use connect::Connector;
pub use details::{ExportDetails, Handshake, Listing};
pub use disk::Disk;
pub use error::{Error, LostReason};
pub use haggling::{Entered, Haggling};
pub use handle::{Client, Driving};
pub use invalid::Invalid;
pub use negotiated::Negotiated;
pub use options::Options;
pub use pending::Pending;
pub use requests::{ContextExtents, Lent};

pub use bytes::Bytes;
pub use nbd_proto::client::CommandError;
pub use nbd_proto::wire::CommandFlags as Flags;
pub use nbd_proto::{Extent, Uri, UriError};
