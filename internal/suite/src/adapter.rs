//! What the suite asks of an adapter.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nbd_engine::export::ExportMap;
use nbd_engine::net::LocalAddr;
use nbd_engine::server::{ConnectionError, ServerConfig};

use crate::SOON;

/// An adapter that can serve.
pub trait Adapter: Sync {
    /// Starts a server of `exports` at all `places`, on a runtime of its own or on the process's.
    ///
    /// # Errors
    /// Those of the first place that can't be listened at; then the server has ended.
    fn start(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
    ) -> io::Result<Started>;
}

/// Where connections are to come from.
#[derive(Debug)]
pub enum Place {
    /// A TCP address as a text, with its port (`listen_tcp`).
    Text(String),
    /// A host and a port (`listen_tcp`).
    Host(String, u16),
    /// A list of TCP addresses (`listen_tcp`).
    Addresses(Vec<SocketAddr>),
    /// A Unix socket (`listen_unix`).
    Unix(PathBuf),
    /// A TCP listener that is there (`accept_tcp`).
    TcpListener(TcpListener),
    /// A Unix listener that is there (`accept_unix`).
    UnixListener(UnixListener),
    /// No listener, but one stream that is there (`serve_tcp`). Nothing else is served beside it.
    TcpStream(TcpStream),
    /// The same with a Unix stream (`serve_unix`).
    UnixStream(UnixStream),
    /// The same with a stream of which the adapter knows nothing (`serve_stream`).
    Stream(UnixStream),
}

/// What can be asked of a running server. Closures, since the adapters' servers have the same methods but no trait.
pub struct Control {
    /// Connections at the moment.
    pub connections: Box<dyn Fn() -> usize + Send + Sync>,
    /// Begins to shut down.
    pub shut_down: Box<dyn Fn() + Send + Sync>,
    /// Listens at one more place.
    pub listen: Box<dyn Fn(Place) -> io::Result<()> + Send + Sync>,
    /// Serves one more stream, on the calling thread, and returns when its connection has ended.
    pub serve: Box<dyn Fn(Place) -> Result<(), ConnectionError> + Send + Sync>,
}

/// What a server made of a place.
pub struct Listened {
    /// Where it listens; nowhere for a stream.
    pub addresses: Vec<LocalAddr>,
    /// Stops listening there, and waits until that is so.
    pub close: Box<dyn Fn() + Send + Sync>,
}

/// A running server.
pub struct Started {
    /// What it listens on, in the order of the places; nothing for a stream.
    pub listening: Vec<Listened>,
    /// The server.
    pub control: Control,
    /// Ends when the server has shut down and its listeners are closed.
    pub thread: JoinHandle<()>,
}

/// Takes what a server listens on, or why it does not.
pub type Said = mpsc::Sender<io::Result<Vec<Listened>>>;

impl Started {
    /// Runs a server on a thread of its own. `run` is to say where it listens, and to return when it has shut down.
    ///
    /// # Errors
    /// What `run` said.
    ///
    /// # Panics
    /// When the server does not say where it listens.
    pub fn on_a_thread(
        control: Control,
        run: impl FnOnce(Said) + Send + 'static,
    ) -> io::Result<Self> {
        let (said, listening) = mpsc::channel();
        let thread = thread::Builder::new().name("server".into()).spawn(move || run(said));
        let thread = thread.expect("a thread for the server");
        let listening = listening.recv_timeout(SOON).expect("the server listens")?;
        Ok(Self { listening, control, thread })
    }
}
