//! What an adapter brings.

use core::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

use crate::runtime::Runtime;
use crate::transport::AnyTransport;

/// How a client's connections are driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DriveMode {
    /// By a task for each connection, spawned on the runtime.
    Spawned,
    /// By those who wait for requests, in turn: for runtimes where waiting costs a thread anyway.
    ///
    /// One of those who wait drives a connection for all of them. So a [`Pending`](super::Pending) request that was polled has
    /// to be polled whenever its task is woken, until it is done, or to be dropped: one that is only kept, as a `select!`
    /// around `&mut pending` leaves it, holds up the connection's other requests until it is polled again.
    Caller,
}

/// What the engine asks of an adapter to reach servers. Cheap to clone.
pub trait Connector: Clone + Send + Sync + 'static {
    /// Its time and tasks.
    type Runtime: Runtime;

    /// How its clients' connections are driven.
    const DRIVE_MODE: DriveMode;

    /// Its time and tasks.
    fn runtime(&self) -> Self::Runtime;

    /// Connects to a TCP address and turns Nagle's algorithm off, as [`tune_tcp`](crate::net::tune_tcp) does. The
    /// future is dropped when the client gives up, and has to drop the socket then.
    ///
    /// # Errors
    /// When there is no connection. The next address of the server's name is tried; after the last one the client's
    /// connecting fails with it.
    // B-CONV-05
    fn connect_tcp(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<AnyTransport>> + Send;

    /// Takes over a Unix socket that is connected and non-blocking; one of vsock comes as such, too.
    ///
    /// # Errors
    /// When the platform does not let it.
    fn adopt_unix(&self, socket: UnixStream) -> io::Result<AnyTransport>;
}

/// A connector that can be found without being handed over, so that clients have `connect(uri)`.
pub trait CurrentRuntime: Connector {
    /// That of the runtime that the caller runs on, or of a global one.
    ///
    /// # Panics
    /// When there is none, on runtimes that are not global.
    fn current() -> Self;
}

/// A connector whose clients can run over streams of type `S`.
#[diagnostic::on_unimplemented(
    message = "no client of this adapter runs over a `{S}`",
    label = "not a byte stream of this adapter's runtime",
    note = "it takes streams with the runtime's own traits for reading and writing, `Send` and `'static`"
)]
pub trait TransportFrom<S>: Connector {
    /// The stream as the engine reads and writes it.
    fn transport_from(&self, stream: S) -> AnyTransport;
}
