//! The server, whichever of the two runtimes it runs on.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::export::{Exports, Peer, PeerAddr};
use nbd_engine::net::{self, LocalAddr};
use nbd_engine::server::{
    ConnectionError, Listen, Listening, Outcome, ServerConfig, ServerState, admit_and_serve, listen,
};
use nbd_engine::{Plain, Runtime, Socket, Transport};

#[cfg(target_os = "linux")]
use crate::stream::Vsock;
use crate::stream::{Tcp, Unix};

/// An NBD server. Cheap to clone: clones are the same server.
///
/// It listens on any number of sockets and runs each connection as a task; besides it serves streams that you bring. It
/// installs no signal handlers and prints nothing; what happens is told to [`tracing`](https://docs.rs/tracing).
///
/// # Streams of yours
/// `serve_tcp`, `serve_unix` and [`serve_stream`](Self::serve_stream) return `Ok`
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
/// # #[cfg(feature = "smol")]
/// # async fn accept_loop(
/// #     server: nbd_async_std::smol::Server,
/// #     listener: smol::net::TcpListener,
/// # ) -> std::io::Result<()> {
/// use smol::future::or;
/// loop {
///     let ended = async { server.shutdown_begun().await; None };
///     let Some(accepted) = or(ended, async { Some(listener.accept().await) }).await else {
///         return Ok(());
///     };
///     let (stream, server) = (accepted?.0, server.clone());
///     smol::spawn(async move {
///         if let Err(error) = server.serve_tcp(stream).await {
///             eprintln!("{error}");
///         }
///     })
///     .detach();
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Server<R> {
    service: Arc<ServerState>,
    runtime: R,
}

impl<R: Runtime + Default> Server<R> {
    /// A server of these exports with the default configuration.
    pub fn new(exports: impl Exports) -> Self {
        Self::with_config(exports, ServerConfig::default())
    }

    /// A server of these exports.
    pub fn with_config(exports: impl Exports, config: ServerConfig) -> Self {
        Self { service: ServerState::new(exports, config), runtime: R::default() }
    }

    /// The same server for oldstyle clients: what listens by way of this clone, and what is served by it, offers the
    /// export of that name without a choice; an empty name is that of the default export. Other clones stay newstyle.
    ///
    /// An oldstyle connection has no TLS, no structured replies and no metadata contexts, and newstyle clients can't be
    /// expected to cope with it. Connections are closed at once if there is no such export, or if it needs more.
    #[must_use]
    pub fn oldstyle(&self, export: impl Into<String>) -> Self {
        Self { service: self.service.oldstyle(export), runtime: self.runtime.clone() }
    }

    /// Listens on a Unix socket path, of at most 107 bytes on Linux. A socket that a dead server left is taken over;
    /// the path is removed when this socket is [closed](Listening::close) or the server shuts down. Serving begins at
    /// once. May block for up to two seconds while other servers start in the same folder.
    ///
    /// # Errors
    /// When a live server listens there, or the path can't be used, with the path in the text; or when the server shuts
    /// down.
    pub fn listen_unix(&self, path: impl AsRef<Path>) -> io::Result<Listening> {
        let (listener, path) = net::bind_unix(path.as_ref(), self.service.config().backlog())?;
        let address = LocalAddr::Unix(path.path().to_owned());
        self.start([(address, (path, Unix(Async::new_nonblocking(listener)?.into())))])
    }

    /// Listens on a virtual machine socket: a port of a context identifier of this machine, such as
    /// [`VSOCK_CID_ANY`](net::VSOCK_CID_ANY); port 0 takes a free one. Serving begins at once.
    ///
    /// # Errors
    /// When the port is taken, or this machine has no such sockets or identifier, with the address in the text; or when the
    /// server shuts down.
    #[cfg(target_os = "linux")]
    pub fn listen_vsock(&self, cid: u32, port: u32) -> io::Result<Listening> {
        let listener = net::bind_vsock(cid, port, self.service.config().backlog())?;
        let (cid, port) = listener.address()?;
        self.start([(LocalAddr::Vsock { cid, port }, Vsock(Async::new_nonblocking(listener)?))])
    }

    /// Listens on what a runtime's resolver found.
    pub(crate) fn listen_resolved(
        &self,
        found: io::Result<impl IntoIterator<Item = SocketAddr>>,
    ) -> io::Result<Listening> {
        let listeners = net::bind_resolved(found, self.service.config().backlog())?;
        let sockets = listeners.into_iter().map(|listener| tcp(Async::new_nonblocking(listener)?));
        self.start(sockets.collect::<io::Result<Vec<_>>>()?)
    }

    pub(crate) fn start_tcp(
        &self,
        listener: impl Into<Arc<Async<TcpListener>>>,
    ) -> io::Result<Listening> {
        self.start([tcp(listener)?])
    }

    pub(crate) fn start_unix(
        &self,
        listener: impl Into<Arc<Async<UnixListener>>>,
    ) -> io::Result<Listening> {
        let listener = listener.into();
        let path = listener.get_ref().local_addr()?.as_pathname().map(Path::to_owned);
        self.start([(LocalAddr::Unix(path.unwrap_or_default()), Unix(listener))])
    }

    fn start<L: Listen + 'static>(
        &self,
        sockets: impl IntoIterator<Item = (LocalAddr, L)>,
    ) -> io::Result<Listening> {
        listen(&self.service, sockets, &self.runtime, |task| {
            self.runtime.spawn(task);
            Ok(())
        })
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
    pub async fn serve_stream_of<T>(
        &self,
        stream: T,
        peer: impl Into<Peer>,
    ) -> Result<(), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send,
    {
        self.serve(Plain(stream), peer.into()).await
    }

    /// Serves one client over a TCP stream of either runtime.
    pub(crate) async fn serve_tcp_socket<T>(&self, stream: T) -> Result<(), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + AsFd + Unpin + Send,
    {
        net::tune_tcp(&stream)?;
        let peer = PeerAddr::tcp(&stream);
        self.serve(Socket(stream), peer).await
    }

    /// Serves one client over a Unix stream of either runtime.
    pub(crate) async fn serve_unix_socket<T>(&self, stream: T) -> Result<(), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + AsFd + Unpin + Send,
    {
        net::tune_unix(&stream);
        let peer = PeerAddr::unix(&stream);
        self.serve(Socket(stream), peer).await
    }

    async fn serve(
        &self,
        transport: impl Transport,
        peer: impl Into<Peer>,
    ) -> Result<(), ConnectionError> {
        admit_and_serve(&self.service, transport, self.runtime.clone(), peer).await
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
fn tcp(listener: impl Into<Arc<Async<TcpListener>>>) -> io::Result<(LocalAddr, Tcp)> {
    let listener = listener.into();
    Ok((LocalAddr::Tcp(listener.get_ref().local_addr()?), Tcp(listener)))
}
