//! The server, whichever of the two runtimes it runs on.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use async_channel::Receiver;
use async_io::Async;
use futures_io::{AsyncRead, AsyncWrite};
use nbd_engine::export::Exports;
use nbd_engine::net::{self, LocalAddr};
use nbd_engine::server::{
    ConnectionError, Listen, Outcome, ServerConfig, ServerState, listen, serve,
};
use nbd_engine::{Plain, Runtime};

use crate::stream::{Tcp, Unix};

/// An NBD server. Cheap to clone: clones are the same server.
///
/// It listens on any number of sockets and runs each connection as a task; besides it serves streams that you bring. It
/// installs no signal handlers and prints nothing; what happens is told to [`tracing`](https://docs.rs/tracing).
#[derive(Clone, Debug)]
pub struct Server<R> {
    service: Arc<ServerState>,
    runtime: R,
}

impl<R: Runtime + Default> Server<R> {
    /// A server of these exports with default config.
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

    /// Listens on a Unix socket path. A socket that a dead server left is taken over; the path is removed when the
    /// server shuts down. Serving begins at once.
    ///
    /// # Errors
    /// When a live server listens there, or the path can't be used; the path is in the text.
    pub fn listen_unix(&self, path: impl AsRef<Path>) -> io::Result<Listening> {
        let (listener, path) = net::bind_unix(path.as_ref())?;
        let address = LocalAddr::Unix(path.path().to_owned());
        Ok(self.start((path, Unix(Async::new(listener)?.into())), address))
    }

    pub(crate) fn start_tcp(
        &self,
        listener: impl Into<Arc<Async<TcpListener>>>,
    ) -> io::Result<Listening> {
        let listener = listener.into();
        let address = LocalAddr::Tcp(listener.get_ref().local_addr()?);
        Ok(self.start(Tcp(listener), address))
    }

    pub(crate) fn start_unix(
        &self,
        listener: impl Into<Arc<Async<UnixListener>>>,
    ) -> io::Result<Listening> {
        let listener = listener.into();
        let path = listener.get_ref().local_addr()?.as_pathname().map(Path::to_owned);
        Ok(self.start(Unix(listener), LocalAddr::Unix(path.unwrap_or_default())))
    }

    fn start(&self, listener: impl Listen + 'static, local_addr: LocalAddr) -> Listening {
        let (service, runtime) = (Arc::clone(&self.service), self.runtime.clone());
        let (running, ended) = async_channel::bounded(1);
        self.runtime.spawn(Box::pin(async move {
            let _closed_at_the_end = running;
            listen(service, listener, runtime).await;
        }));
        Listening { local_addr, ended }
    }

    /// Serves one client over any byte stream until it leaves. Set `TCP_NODELAY` on TCP streams. Dropping the future
    /// ends the connection; writes that were under way may or may not have been done.
    ///
    /// # Errors
    /// Why the connection ended, if not by the client's leave.
    pub async fn serve_stream<T>(&self, stream: T) -> Result<(), ConnectionError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send,
    {
        match self.service.admit().await {
            Some(permit) => {
                serve(permit, Plain(stream), self.runtime.clone(), "stream".into()).await
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
    /// Closed when the task that accepts has ended.
    ended: Receiver<Infallible>,
}

impl Listening {
    /// Where: with the port that was got.
    #[must_use]
    pub const fn local_addr(&self) -> &LocalAddr {
        &self.local_addr
    }

    /// Waits until the server shuts down and this socket is closed. Cancel-safe.
    pub async fn join(self) {
        let _closed = self.ended.recv().await;
    }
}
