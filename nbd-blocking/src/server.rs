//! A server on threads.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use nbd_engine::export::{Exports, PeerAddr};
use nbd_engine::net::{self, LocalAddr};
use nbd_engine::server::{
    ConnectionError, Listen, Outcome, ServerConfig, ServerState, listen, serve,
};

use crate::park::park_on;
use crate::pump;
use crate::reactor::{Threads, block_on};
use crate::stream::{Listener, Stream};

/// An NBD server. Cheap to clone: clones are the same server.
///
/// It listens on any number of sockets, each with a thread that accepts, and runs each connection on a thread of its
/// own; besides it serves streams that you bring. It installs no signal handlers and prints nothing; what happens is
/// told to [`tracing`](https://docs.rs/tracing).
#[derive(Clone, Debug)]
pub struct Server {
    service: Arc<ServerState>,
}

impl Server {
    /// A server of these exports with default config.
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

    /// Listens on a TCP address; port 0 takes a free one. Serving begins at once.
    ///
    /// # Errors
    /// When the address can't be listened on, with the address in the text, or no thread can be started.
    pub fn listen_tcp(
        &self,
        address: impl ToSocketAddrs + std::fmt::Display,
    ) -> io::Result<Listening> {
        self.accept_tcp(net::bind_tcp(address)?)
    }

    /// Listens on a Unix socket path. A socket that a dead server left is taken over; the path is removed when the
    /// server shuts down. Serving begins at once.
    ///
    /// # Errors
    /// When a live server listens there, or the path can't be used; the path is in the text.
    pub fn listen_unix(&self, path: impl AsRef<Path>) -> io::Result<Listening> {
        let (listener, path) = net::bind_unix(path.as_ref())?;
        let address = LocalAddr::Unix(path.path().to_owned());
        self.start((path, Listener::unix(listener)?), address)
    }

    /// Accepts connections from a TCP listener of yours.
    ///
    /// # Errors
    /// When its config can't be changed, or no thread can be started.
    pub fn accept_tcp(&self, listener: TcpListener) -> io::Result<Listening> {
        listener.set_nonblocking(true)?;
        let address = LocalAddr::Tcp(listener.local_addr()?);
        self.start(Listener::tcp(listener)?, address)
    }

    /// Accepts connections from a Unix listener of yours, whose path stays yours, too.
    ///
    /// # Errors
    /// When its config can't be changed, or no thread can be started.
    pub fn accept_unix(&self, listener: UnixListener) -> io::Result<Listening> {
        listener.set_nonblocking(true)?;
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
        let address = LocalAddr::Unix(path.unwrap_or_default());
        self.start(Listener::unix(listener)?, address)
    }

    fn start(
        &self,
        listener: impl Listen + 'static,
        local_addr: LocalAddr,
    ) -> io::Result<Listening> {
        let service = Arc::clone(&self.service);
        let run = move || {
            if let Err(error) = block_on(listen(Arc::clone(&service), listener, Threads)) {
                service.fail(format_args!("a listener's thread cannot wait for events: {error}"));
            }
        };
        let thread = std::thread::Builder::new().name("nbd-listener".into()).spawn(run)?;
        Ok(Listening { local_addr, thread })
    }

    /// Serves one client over a TCP stream of yours, on this thread, until it leaves.
    ///
    /// # Errors
    /// Why the connection ended, if not by the client's leave.
    pub fn serve_tcp(&self, stream: TcpStream) -> Result<(), ConnectionError> {
        let peer = stream.peer_addr().map_or_else(|_| "tcp".into(), PeerAddr::from);
        self.run(Stream::tcp(stream)?, peer)
    }

    /// Serves one client over a Unix stream of yours, on this thread, until it leaves.
    ///
    /// # Errors
    /// Why the connection ended, if not by the client's leave.
    pub fn serve_unix(&self, stream: UnixStream) -> Result<(), ConnectionError> {
        let peer = PeerAddr::unix(&stream);
        self.run(Stream::unix(stream)?, peer)
    }

    /// Serves one client over any pair of byte streams (pipes, a serial line, a process), on this thread and two more
    /// that carry the bytes, until it leaves. Sockets are better served by the methods named after them.
    ///
    /// The client learns of the end as the writer is dropped; a [`TcpStream`] or a [`UnixStream`] is shut down, since the
    /// reader, which may be a clone of it, lives on in a read that is under way. Of other types that share what they
    /// write to, shut it down when this returns.
    ///
    /// # Errors
    /// Why the connection ended, if not by the client's leave.
    pub fn serve_stream(
        &self,
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
    ) -> Result<(), ConnectionError> {
        let (stream, pumps) = pump::connect(reader, writer)?;
        let result = self.run(Stream::unix(stream)?, "stream".into());
        // After a failure nothing more need be carried, and the stream may be stuck.
        if result.is_ok() {
            pumps.finish();
        }
        result
    }

    fn run(&self, stream: Stream, peer: PeerAddr) -> Result<(), ConnectionError> {
        block_on(async {
            match self.service.admit().await {
                Some(permit) => serve(permit, stream, Threads, peer).await,
                None => Ok(()),
            }
        })?
    }

    /// Connections at the moment.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.service.connections()
    }

    /// Begins to shut down: stops listening, lets requests in flight finish within
    /// [`ServerConfig::drain_timeout`], answers later ones with `ESHUTDOWN`. Returns at once; see [`wait`](Self::wait).
    pub fn shut_down(&self) {
        self.service.shut_down();
    }

    /// Waits until the server was told to [shut down](Self::shut_down) and no connection is left; gives how it ended.
    pub fn wait(&self) -> Outcome {
        park_on(async {
            self.service.shutdown_begun().await;
            self.service.drained().await;
        });
        self.service.outcome()
    }
}

/// A socket that a server listens on.
#[derive(Debug)]
pub struct Listening {
    local_addr: LocalAddr,
    thread: JoinHandle<()>,
}

impl Listening {
    /// Where: with the port that was got.
    #[must_use]
    pub const fn local_addr(&self) -> &LocalAddr {
        &self.local_addr
    }

    /// Waits until the server shuts down and this socket is closed.
    pub fn join(self) {
        // After a panic the server has shut down, and `wait` reports it.
        let _panicked = self.thread.join();
    }
}
