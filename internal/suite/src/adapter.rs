//! What the suite asks of an adapter.

use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nbd_engine::export::ExportMap;
use nbd_engine::net::LocalAddr;
use nbd_engine::server::ServerConfig;

use crate::SOON;

/// An adapter that can serve.
pub trait Adapter: Sync {
    /// Starts a server of `exports` at all `places`, on a runtime of its own or on the process's.
    fn start(&self, exports: ExportMap, config: ServerConfig, places: Vec<Place>) -> Started;
}

/// Where connections are to come from.
#[derive(Debug)]
pub enum Place {
    /// A TCP port of the adapter's choice on the loopback address (`listen_tcp`).
    Tcp,
    /// A Unix socket (`listen_unix`).
    Unix(PathBuf),
    /// A TCP listener that is there (`accept_tcp`).
    TcpListener(TcpListener),
    /// A Unix listener that is there (`accept_unix`).
    UnixListener(UnixListener),
    /// No listener, but one stream that is there (`serve_stream`, of the blocking adapter `serve_unix`). Nothing else is
    /// served beside it.
    Stream(UnixStream),
}

/// What can be asked of a running server. Closures, since the adapters' servers have the same methods but no trait.
pub struct Control {
    /// Connections at the moment.
    pub connections: Box<dyn Fn() -> usize + Send>,
    /// Begins to shut down.
    pub shut_down: Box<dyn Fn() + Send>,
}

/// A running server.
pub struct Started {
    /// Where it listens, in the order of the places; nowhere for a stream.
    pub addresses: Vec<LocalAddr>,
    /// The server.
    pub control: Control,
    /// Ends when the server has shut down and its listener is closed.
    pub thread: JoinHandle<()>,
}

impl Started {
    /// Runs a server on a thread of its own. `run` is to say where it listens, and to return when it has shut down.
    ///
    /// # Panics
    /// When the server does not say where it listens.
    pub fn on_a_thread(
        control: Control,
        run: impl FnOnce(mpsc::Sender<Vec<LocalAddr>>) + Send + 'static,
    ) -> Self {
        let (said, addresses) = mpsc::channel();
        let thread = thread::Builder::new().name("server".into()).spawn(move || run(said));
        let thread = thread.expect("a thread for the server");
        let addresses = addresses.recv_timeout(SOON).expect("the server listens");
        Self { addresses, control, thread }
    }
}
