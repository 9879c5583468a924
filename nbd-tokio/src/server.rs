//! A server on tokio.

use std::io;
use std::path::Path;
use std::sync::Arc;

use nbd_engine::export::{Exports, Peer, PeerAddr};
use nbd_engine::net::{self, LocalAddr};
use nbd_engine::server::{
    ConnectionError, Listen, Listening, Outcome, ServerConfig, ServerState, admit_and_serve, listen,
};
use nbd_engine::{Plain, Runtime, Transport};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs, UnixListener, UnixStream, lookup_host};
use tokio::runtime::Handle;

use crate::runtime::Tokio;
use crate::stream::{self, Stream, Tcp, Unix};
#[cfg(target_os = "linux")]
use {crate::stream::Vsock, tokio::io::unix::AsyncFd};

/// An NBD server. Cheap to clone: clones are the same server.
///
/// It listens on any number of sockets and runs each connection as a task; besides it serves streams that you bring. It
/// installs no signal handlers and prints nothing; what happens is told to [`tracing`](https://docs.rs/tracing).
///
/// # Streams of yours
/// [`serve_tcp`](Self::serve_tcp), [`serve_unix`](Self::serve_unix) and [`serve_stream`](Self::serve_stream) return `Ok`
/// when the connection ended in order, whoever ended it:
/// - the client disconnected, or gave up the negotiation, because its export was refused, for example;
/// - the client closed the stream between two messages, and all its requests were answered;
/// - the server shut down, or the export did (`ESHUTDOWN`), and all requests in flight were answered.
///
/// To learn which of these it was, use [`on_close`](crate::export::ExportEntry::on_close). Everything else is a
/// [`ConnectionError`]. Two of them come before the client is sent a byte: [`ServerFull`](ConnectionError::ServerFull)
/// when there is no room for one more connection within [`ServerConfig::with_admission_timeout`], and
/// [`ShuttingDown`](ConnectionError::ShuttingDown) when the server has begun to shut down.
///
/// The server can't end an accept loop of yours, which is to return when [`shutdown_begun`](Self::shutdown_begun) is
/// ready:
///
/// ```no_run
/// # async fn accept_loop(server: nbd_tokio::Server, listener: tokio::net::TcpListener) -> std::io::Result<()> {
/// loop {
///     let stream = tokio::select! {
///         () = server.shutdown_begun() => return Ok(()),
///         accepted = listener.accept() => accepted?.0,
///     };
///     let server = server.clone();
///     tokio::spawn(async move {
///         if let Err(error) = server.serve_tcp(stream).await {
///             eprintln!("{error}");
///         }
///     });
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Server {
    service: Arc<ServerState>,
}

impl Server {
    /// A server of these exports with the default configuration.
    pub fn new(exports: impl Exports) -> Self {
        Self::with_config(exports, ServerConfig::default())
    }

    /// A server of these exports.
    pub fn with_config(exports: impl Exports, config: ServerConfig) -> Self {
        Self { service: ServerState::new(exports, config) }
    }

    /// The same server for oldstyle clients: what listens by way of this clone, and what is served by it, offers the
    /// export of that name without a choice; an empty name is that of the default export. Other clones stay newstyle.
    ///
    /// An oldstyle connection has no TLS, no structured replies and no metadata contexts, and newstyle clients can't be
    /// expected to cope with it. Connections are closed at once if there is no such export, or if it needs more.
    #[must_use]
    pub fn oldstyle(&self, export: impl Into<String>) -> Self {
        Self { service: self.service.oldstyle(export) }
    }

    /// Listens on a TCP address, such as `"127.0.0.1:10809"`, `("localhost", DEFAULT_PORT)` or a list. Serving begins at
    /// once, on this runtime. Cancel-safe: dropped before it is ready, nothing listens.
    ///
    /// Unlike [`TcpListener::bind`], it listens on all addresses that a name resolves to, or that the list has:
    /// `localhost` is 127.0.0.1 and ::1. Port 0 takes a free port, the same for all of them. An address whose family this
    /// machine does not have is left out as long as there is another one.
    ///
    /// # Errors
    /// When there is no port, when the name is unknown, or when one of the addresses can't be listened on, with the
    /// address in the text; or when the server shuts down. Then nothing is listened on.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn listen_tcp(&self, address: impl ToSocketAddrs) -> io::Result<Listening> {
        let found = lookup_host(address).await;
        let listeners = net::bind_resolved(found, self.service.config().backlog())?;
        let sockets = listeners.into_iter().map(|listener| tcp(TcpListener::from_std(listener)?));
        self.start(sockets.collect::<io::Result<Vec<_>>>()?)
    }

    /// Listens on a Unix socket path, of at most 107 bytes on Linux. A socket that a dead server left is taken over;
    /// the path is removed when this socket is [closed](Listening::close) or the server shuts down. Serving begins at
    /// once, on this runtime. May block for up to two seconds while other servers start in the same folder.
    ///
    /// # Errors
    /// When a live server listens there, or the path can't be used, with the path in the text; or when the server shuts
    /// down.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen_unix(&self, path: impl AsRef<Path>) -> io::Result<Listening> {
        let (listener, path) = net::bind_unix(path.as_ref(), self.service.config().backlog())?;
        let address = LocalAddr::Unix(path.path().to_owned());
        self.start([(address, (path, Unix(UnixListener::from_std(listener)?)))])
    }

    /// Listens on a virtual machine socket: a port of a context identifier of this machine, such as
    /// [`VSOCK_CID_ANY`](net::VSOCK_CID_ANY); port 0 takes a free one. Serving begins at once, on this runtime.
    ///
    /// # Errors
    /// When the port is taken, or this machine has no such sockets or identifier, with the address in the text; or when the
    /// server shuts down.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[cfg(target_os = "linux")]
    pub fn listen_vsock(&self, cid: u32, port: u32) -> io::Result<Listening> {
        let listener = net::bind_vsock(cid, port, self.service.config().backlog())?;
        let (cid, port) = listener.address()?;
        #[allow(
            deprecated,
            reason = "it is for objects that don't own their descriptor, and unsafe code would do no better here"
        )]
        let listener = Vsock(AsyncFd::new(listener)?);
        self.start([(LocalAddr::Vsock { cid, port }, listener)])
    }

    /// Accepts connections from a TCP listener of yours.
    ///
    /// # Errors
    /// When the system does not report its address, or when the server shuts down.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn accept_tcp(&self, listener: TcpListener) -> io::Result<Listening> {
        self.start([tcp(listener)?])
    }

    /// Accepts connections from a Unix listener of yours, whose path stays yours, too.
    ///
    /// # Errors
    /// When the system does not report its address, or when the server shuts down.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn accept_unix(&self, listener: UnixListener) -> io::Result<Listening> {
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
        self.start([(LocalAddr::Unix(path.unwrap_or_default()), Unix(listener))])
    }

    fn start<L: Listen + 'static>(
        &self,
        sockets: impl IntoIterator<Item = (LocalAddr, L)>,
    ) -> io::Result<Listening> {
        let runtime = Tokio(Handle::current());
        listen(&self.service, sockets, &runtime, |task| {
            runtime.spawn(task);
            Ok(())
        })
    }

    /// Serves one client over a TCP stream of yours until it disconnects. Exports and the log learn of the peer's
    /// address. Dropping the future ends the connection; writes that were under way may or may not have been done.
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](Server#streams-of-yours).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn serve_tcp(&self, stream: TcpStream) -> Result<(), ConnectionError> {
        net::tune_tcp(&stream)?;
        let peer = PeerAddr::tcp(&stream);
        self.serve(stream::tcp(stream), peer).await
    }

    /// Serves one client over a Unix stream of yours until it disconnects. Exports and the log learn of the peer's
    /// process. Dropping the future ends the connection; writes that were under way may or may not have been done.
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](Server#streams-of-yours).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn serve_unix(&self, stream: UnixStream) -> Result<(), ConnectionError> {
        net::tune_unix(&stream);
        let peer = PeerAddr::unix(&stream);
        self.serve(stream::unix(stream), peer).await
    }

    /// Serves one client over any byte stream, such as a TLS stream of yours, until it disconnects. Sockets are better
    /// served by the methods named after them: of the peer of a stream nothing is known. Dropping the future ends the
    /// connection; writes that were under way may or may not have been done.
    ///
    /// The stream counts as plain, even if it runs inside of TLS: [`serve_stream_of`](Self::serve_stream_of) serves one
    /// as what it is.
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](Server#streams-of-yours).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn serve_stream<T>(&self, stream: T) -> Result<(), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.serve_stream_of(stream, "stream").await
    }

    /// The same for a client of which you know more: its address, or what it proved by TLS, if the stream runs inside of
    /// TLS already, as a [`Peer`].
    ///
    /// # Errors
    /// As [`serve_stream`](Self::serve_stream), and `ConnectionError::NotAllowed` for a client whose identity is not on
    /// the list of the server's configuration for TLS.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn serve_stream_of<T>(
        &self,
        stream: T,
        peer: impl Into<Peer>,
    ) -> Result<(), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.serve(Plain(Stream::new(stream)), peer.into()).await
    }

    async fn serve(
        &self,
        transport: impl Transport,
        peer: impl Into<Peer>,
    ) -> Result<(), ConnectionError> {
        admit_and_serve(&self.service, transport, Tokio(Handle::current()), peer).await
    }

    /// Connections at the moment, those that wait for room not among them.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.service.connections()
    }

    /// Gives the server another configuration, in force for connections that begin from now on, see
    /// [`ServerState::reconfigure`](nbd_engine::server::ServerState::reconfigure).
    pub fn reconfigure(&self, config: ServerConfig) {
        self.service.reconfigure(config);
    }

    /// Begins to shut down: stops listening, lets requests in flight finish within
    /// [`ServerConfig::drain_timeout`], answers later ones with `ESHUTDOWN`. Returns at once; see [`wait`](Self::wait).
    pub fn shut_down(&self) {
        self.service.shut_down();
    }

    /// Whether the server was told to [shut down](Self::shut_down).
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.service.is_shutting_down()
    }

    /// Is ready once the server was told to [shut down](Self::shut_down), by whichever clone; at once if it was already.
    /// It is what ends an accept loop of your own. Cancel-safe.
    pub async fn shutdown_begun(&self) {
        self.service.shutdown_begun().await;
    }

    /// Waits until the server was told to [shut down](Self::shut_down), its sockets are closed, so that their addresses can
    /// be bound again and the paths are removed, and no connection is left; gives how it ended. Cancel-safe. It takes the
    /// runtime that the server listens on to run meanwhile.
    pub async fn wait(&self) -> Outcome {
        self.service.ended().await
    }
}

/// A TCP listener as the engine's, with its address.
fn tcp(listener: TcpListener) -> io::Result<(LocalAddr, Tcp)> {
    Ok((LocalAddr::Tcp(listener.local_addr()?), Tcp(listener)))
}
