//! A server on tokio.

use std::io;
use std::path::Path;
use std::sync::Arc;

use nbd_engine::Plain;
use nbd_engine::export::Exports;
use nbd_engine::net::{self, LocalAddr};
use nbd_engine::server::{
    ConnectionError, Listen, Outcome, ServerConfig, ServerState, listen, serve,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, ToSocketAddrs, UnixListener};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::runtime::Tokio;
use crate::stream::{Stream, Tcp, Unix};

/// An NBD server. Cheap to clone: clones are the same server.
///
/// It listens on any number of sockets and runs each connection as a task; besides it serves streams that you bring. It
/// installs no signal handlers and prints nothing; what happens is told to [`tracing`](https://docs.rs/tracing).
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

    /// Listens on a TCP address; port 0 takes a free one. Serving begins at once, on this runtime. Cancel-safe: dropped
    /// before it is ready, nothing listens.
    ///
    /// # Errors
    /// When the address can't be listened on, with the address in the text.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn listen_tcp(
        &self,
        address: impl ToSocketAddrs + std::fmt::Display,
    ) -> io::Result<Listening> {
        let place = address.to_string();
        let listener = TcpListener::bind(address).await;
        self.accept_tcp(listener.map_err(|error| net::cannot_listen(place, &error))?)
    }

    /// Listens on a Unix socket path. A socket that a dead server left is taken over; the path is removed when the
    /// server shuts down. Serving begins at once, on this runtime.
    ///
    /// # Errors
    /// When a live server listens there, or the path can't be used; the path is in the text.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen_unix(&self, path: impl AsRef<Path>) -> io::Result<Listening> {
        let (listener, path) = net::bind_unix(path.as_ref())?;
        let address = LocalAddr::Unix(path.path().to_owned());
        Ok(self.start((path, Unix(UnixListener::from_std(listener)?)), address))
    }

    /// Accepts connections from a TCP listener of yours.
    ///
    /// # Errors
    /// When its address can't be told.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn accept_tcp(&self, listener: TcpListener) -> io::Result<Listening> {
        let address = LocalAddr::Tcp(listener.local_addr()?);
        Ok(self.start(Tcp(listener), address))
    }

    /// Accepts connections from a Unix listener of yours, whose path stays yours, too.
    ///
    /// # Errors
    /// When its address can't be told.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn accept_unix(&self, listener: UnixListener) -> io::Result<Listening> {
        let path = listener.local_addr()?.as_pathname().map(Path::to_owned);
        let address = LocalAddr::Unix(path.unwrap_or_default());
        Ok(self.start(Unix(listener), address))
    }

    fn start(&self, listener: impl Listen + 'static, local_addr: LocalAddr) -> Listening {
        let runtime = Tokio(Handle::current());
        let task = tokio::spawn(listen(Arc::clone(&self.service), listener, runtime));
        Listening { local_addr, task }
    }

    /// Serves one client over any byte stream until it leaves. Set `TCP_NODELAY` on TCP streams. Dropping the future
    /// ends the connection; writes that were under way may or may not have been done.
    ///
    /// # Errors
    /// Why the connection ended, if not by the client's leave.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn serve_stream<T>(&self, stream: T) -> Result<(), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match self.service.admit().await {
            Some(permit) => {
                let (stream, runtime) = (Plain(Stream::new(stream)), Tokio(Handle::current()));
                serve(permit, stream, runtime, "stream".into()).await
            }
            None => Ok(()),
        }
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
    /// Cancel-safe.
    pub async fn wait(&self) -> Outcome {
        self.service.shutdown_begun().await;
        self.service.drained().await;
        self.service.outcome()
    }
}

/// A socket that a server listens on.
#[derive(Debug)]
pub struct Listening {
    local_addr: LocalAddr,
    task: JoinHandle<()>,
}

impl Listening {
    /// Where: with the port that was got.
    #[must_use]
    pub const fn local_addr(&self) -> &LocalAddr {
        &self.local_addr
    }

    /// Waits until the server shuts down and this socket is closed. Cancel-safe.
    pub async fn join(self) {
        // After a panic the server has shut down, and `wait` reports it.
        let _panicked = self.task.await;
    }
}
