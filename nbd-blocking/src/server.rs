//! A server on threads.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::BorrowedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use nbd_engine::Transport;
use nbd_engine::export::{Exports, Peer, PeerAddr, TlsIdentity};
use nbd_engine::net::{self, LocalAddr};
use nbd_engine::server::{
    ConnectionError, Listen, Outcome, ServerConfig, ServerState, admit_and_serve, listen,
};

use crate::duplex::Duplex;
use crate::park::park_on;
use crate::pump;
use crate::reactor::{Threads, block_on};
use crate::stream::{Listener, Stream};

/// An NBD server. Cheap to clone: clones are the same server.
///
/// It listens on any number of sockets, each with a thread that accepts, and runs each connection on a thread of its
/// own; besides it serves streams that you bring. It installs no signal handlers and prints nothing; what happens is
/// told to [`tracing`](https://docs.rs/tracing). `tracing-subscriber`'s registry of spans has room for
/// 4096 threads of a process and panics in one more: with such a subscriber, allow no more than some 3000 connections.
///
/// # Streams of yours
/// [`serve_tcp`](Self::serve_tcp), [`serve_unix`](Self::serve_unix), [`serve_stream`](Self::serve_stream) and
/// [`serve_duplex`](Self::serve_duplex) return `Ok`
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
/// The server can't end an accept loop of yours, which is to ask [`is_shutting_down`](Self::is_shutting_down) after each
/// connection; the thread that calls [`shut_down`](Self::shut_down) connects once more, so that the loop notices.
/// [`accept_tcp`](Self::accept_tcp) and [`accept_unix`](Self::accept_unix) do without.
///
/// ```no_run
/// # fn accept_loop(server: &nbd_blocking::Server, listener: &std::net::TcpListener) -> std::io::Result<()> {
/// for stream in listener.incoming() {
///     if server.is_shutting_down() {
///         break;
///     }
///     let (stream, server) = (stream?, server.clone());
///     std::thread::spawn(move || {
///         if let Err(error) = server.serve_tcp(stream) {
///             eprintln!("{error}");
///         }
///     });
/// }
/// # Ok(())
/// # }
/// # fn end(server: &nbd_blocking::Server, address: std::net::SocketAddr) {
/// // To end it, from another thread:
/// server.shut_down();
/// let _woken = std::net::TcpStream::connect(address);
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
    /// once.
    ///
    /// Unlike [`TcpListener::bind`], it listens on all addresses that a name resolves to, or that the list has:
    /// `localhost` is 127.0.0.1 and ::1. Port 0 takes a free port, the same for all of them. An address whose family this
    /// machine does not have is left out as long as there is another one.
    ///
    /// # Errors
    /// When there is no port, when the name is unknown, when one of the addresses can't be listened on, with the address
    /// in the text, when no thread can be started, or when the server shuts down. Then nothing is listened on.
    pub fn listen_tcp(&self, address: impl ToSocketAddrs) -> io::Result<Listening> {
        let backlog = self.service.config().backlog();
        let listeners = net::bind_resolved(address.to_socket_addrs(), backlog)?;
        self.start(listeners.into_iter().map(tcp).collect::<io::Result<Vec<_>>>()?)
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
        self.start([(address, (path, Listener::unix(listener)?))])
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
        self.start([(LocalAddr::Vsock { cid, port }, Listener::vsock(listener)?)])
    }

    /// Accepts connections from a TCP listener of yours.
    ///
    /// # Errors
    /// When it can't be made non-blocking, when no thread can be started, or when the server shuts down.
    pub fn accept_tcp(&self, listener: TcpListener) -> io::Result<Listening> {
        listener.set_nonblocking(true)?;
        self.start([tcp(listener)?])
    }

    /// Accepts connections from a Unix listener of yours, whose path stays yours, too.
    ///
    /// # Errors
    /// When it can't be made non-blocking, when no thread can be started, or when the server shuts down.
    pub fn accept_unix(&self, listener: UnixListener) -> io::Result<Listening> {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
        self.start([(LocalAddr::Unix(path.unwrap_or_default()), Listener::unix(listener)?)])
    }

    fn start<L: Listen + 'static>(
        &self,
        sockets: impl IntoIterator<Item = (LocalAddr, L)>,
    ) -> io::Result<Listening> {
        let spawn = |task| {
            // Who waits for the end of the server is not to find that this thread still has its exports.
            let state = Arc::downgrade(&self.service);
            let run = move || {
                if let Err(error) = block_on(task)
                    && let Some(state) = state.upgrade()
                {
                    state.fail(format_args!("a listener's thread cannot wait for events: {error}"));
                }
            };
            std::thread::Builder::new().name("nbd-listener".into()).spawn(run).map(drop)
        };
        listen(&self.service, sockets, &Threads, spawn).map(Listening)
    }

    /// Serves one client over a TCP stream of yours, on this thread, until it disconnects. Exports and the log learn of
    /// the peer's address.
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](Server#streams-of-yours).
    pub fn serve_tcp(&self, stream: TcpStream) -> Result<(), ConnectionError> {
        let peer = PeerAddr::tcp(&stream);
        self.run(Stream::tcp(stream)?, peer)
    }

    /// Serves one client over a Unix stream of yours, on this thread, until it disconnects. Exports and the log learn of
    /// the peer's process.
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](Server#streams-of-yours).
    pub fn serve_unix(&self, stream: UnixStream) -> Result<(), ConnectionError> {
        let peer = PeerAddr::unix(&stream);
        self.run(Stream::unix(stream)?, peer)
    }

    /// Serves one client over any pair of blocking byte streams (pipes, a serial line, a process), on this thread and two
    /// more that carry the bytes, until it disconnects. Sockets are better served by the methods named after them, and
    /// one object for both directions, such as a TLS stream, by [`serve_duplex`](Self::serve_duplex).
    ///
    /// The client learns of the end as the writer is dropped; a [`TcpStream`] or a [`UnixStream`] is shut down, since the
    /// reader, which may be a clone of it, lives on in a read that is under way. Of other types that share what they
    /// write to, shut it down when this returns. Of TLS the same holds as for [`serve_duplex`](Self::serve_duplex).
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](Server#streams-of-yours).
    pub fn serve_stream(
        &self,
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Result<(), ConnectionError> {
        let (stream, pumps) = pump::connect(reader, writer)?;
        let result = self.run(Stream::unix(stream)?, "stream");
        // After a failure nothing more need be carried, and the stream may be stuck.
        if result.is_ok() {
            pumps.finish();
        }
        result
    }

    /// Serves one client over a non-blocking stream that is one object for both directions, such as a TLS stream of
    /// yours, on this thread, until it disconnects. `socket` gives the socket below it, which is made non-blocking, and
    /// set up as by [`serve_tcp`](Self::serve_tcp); exports and the log learn of its peer. The stream may be borrowed: pass `&mut stream`.
    ///
    /// Of the stream this is required:
    /// - No method blocks. They give [`io::ErrorKind::WouldBlock`] where they would, and then are called again.
    /// - [`Read::read`] gives that only if the stream holds nothing that it could give. It may hold the beginning of what
    ///   it can't decode yet. What makes it go on is that the socket becomes readable.
    /// - [`Write::write`] may keep what it takes in a buffer. [`Write::flush`] sends that, and whatever else the stream
    ///   has to send by itself, and is called after writes and before each wait.
    ///
    /// They may move bytes in the other direction, too, as those of rustls do. Any other error ends the connection. A
    /// TLS handshake may be made before, or by these calls; then it counts towards the
    /// [handshake timeout](ServerConfig::with_handshake_timeout).
    ///
    /// When this returns, the stream is flushed and open: if its protocol has an end of its own, such as TLS's
    /// `close_notify`, send that, then close the socket.
    ///
    /// The stream counts as plain, even if it runs inside of TLS: [`serve_duplex_in_tls`](Self::serve_duplex_in_tls)
    /// serves one as what it is.
    ///
    /// ```no_run
    /// use std::os::fd::AsFd;
    /// # use std::io::{Read, Result, Write};
    /// # struct TlsStream { socket: std::net::TcpStream }
    /// # impl Read for TlsStream { fn read(&mut self, _: &mut [u8]) -> Result<usize> { Ok(0) } }
    /// # impl Write for TlsStream {
    /// #     fn write(&mut self, _: &[u8]) -> Result<usize> { Ok(0) }
    /// #     fn flush(&mut self) -> Result<()> { Ok(()) }
    /// # }
    ///
    /// # fn example(server: nbd_blocking::Server, tls: TlsStream) {
    /// // Of rustls, a `StreamOwned` and `|tls| tls.sock.as_fd()`.
    /// let ended = server.serve_duplex(tls, |tls| tls.socket.as_fd());
    /// # }
    /// ```
    ///
    /// # Errors
    /// When the connection did not end in order, or did not begin, since the server is full or shuts down: see
    /// [streams of yours](Server#streams-of-yours).
    pub fn serve_duplex<S: Read + Write + Send>(
        &self,
        stream: S,
        socket: impl FnOnce(&S) -> BorrowedFd<'_>,
    ) -> Result<(), ConnectionError> {
        let stream = Duplex::new(stream, socket)?;
        let peer = stream.peer().clone();
        self.run(stream, peer)
    }

    /// The same for a stream that runs inside of TLS, of whose client `identity` is what it proved in the handshake, or
    /// [the default](TlsIdentity::default) if it showed nothing. Exports learn of it, and those
    /// [that require TLS](crate::export::ExportEntry::with_tls_required) are open to the client, also on a server whose
    /// clients must use TLS: see [`Peer::with_tls`].
    ///
    /// # Errors
    /// As [`serve_duplex`](Self::serve_duplex), and `ConnectionError::NotAllowed` for a client whose identity is not on
    /// the list of the server's configuration for TLS.
    pub fn serve_duplex_in_tls<S: Read + Write + Send>(
        &self,
        stream: S,
        socket: impl FnOnce(&S) -> BorrowedFd<'_>,
        identity: TlsIdentity,
    ) -> Result<(), ConnectionError> {
        let stream = Duplex::new(stream, socket)?;
        let peer = Peer::new(stream.peer().clone()).with_tls(identity);
        self.run(stream, peer)
    }

    fn run(&self, transport: impl Transport, peer: impl Into<Peer>) -> Result<(), ConnectionError> {
        block_on(admit_and_serve(&self.service, transport, Threads, peer))?
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
    /// An accept loop of your own asks this after each connection that it accepts.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.service.is_shutting_down()
    }

    /// Blocks until the server was told to [shut down](Self::shut_down), its sockets are closed, so that their addresses can
    /// be bound again and the paths are removed, and no connection is left; gives how it ended.
    pub fn wait(&self) -> Outcome {
        park_on(self.service.ended())
    }
}

/// A TCP listener as the engine's, with its address.
fn tcp(listener: TcpListener) -> io::Result<(LocalAddr, Listener)> {
    Ok((LocalAddr::Tcp(listener.local_addr()?), Listener::tcp(listener)?))
}

/// The sockets that one call made a server listen on. Cheap to clone: clones refer to the same sockets. Dropping it
/// closes nothing.
#[derive(Clone, Debug)]
pub struct Listening(nbd_engine::server::Listening);

/// The sockets of another adapter's server, for a thread that waits for their end.
impl From<nbd_engine::server::Listening> for Listening {
    fn from(listening: nbd_engine::server::Listening) -> Self {
        Self(listening)
    }
}

impl Listening {
    /// The first address that is listened on, with its actual port.
    #[must_use]
    pub fn local_addr(&self) -> &LocalAddr {
        self.0.local_addr()
    }

    /// All addresses that are listened on, with their actual ports: several for a host name or a list.
    #[must_use]
    pub fn local_addrs(&self) -> &[LocalAddr] {
        self.0.local_addrs()
    }

    /// Stops listening here, while the server, its other listeners and its connections go on. The path of a Unix socket
    /// that the server bound is removed, unless another socket has taken its place. A client that was not admitted yet,
    /// since the server is full, is disconnected.
    ///
    /// Blocks until the sockets are closed, so that the addresses can be bound again; not at all if they are already.
    pub fn close(&self) {
        park_on(self.0.close());
    }

    /// Blocks until the sockets are closed: by [`close`](Self::close), or since the server shuts down.
    pub fn join(&self) {
        park_on(self.0.join());
    }
}
