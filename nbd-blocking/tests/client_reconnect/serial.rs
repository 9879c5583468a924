//! A server that breaks connections where its export says so.

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nbd_blocking::Server;
use nbd_blocking::client::Reconnect;
use nbd_blocking::export::{Export, ExportMap};

/// Breaks connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Breaker(Arc<Mutex<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    open: Vec<UnixStream>,
    refused: bool,
}

impl Breaker {
    /// Breaks all connections: nothing more is sent on them.
    pub(crate) fn break_all(&self) {
        for stream in self.0.lock().unwrap().open.drain(..) {
            let _closed = stream.shutdown(Shutdown::Both);
        }
    }

    /// From now on each new connection is closed at once, as if there were no server.
    pub(crate) fn refuse(&self) {
        self.0.lock().unwrap().refused = true;
    }

    /// Whether a connection may go on.
    fn admit(&self, stream: &UnixStream) -> bool {
        let streams = &mut *self.0.lock().unwrap();
        streams.open.push(stream.try_clone().unwrap());
        !streams.refused
    }
}

/// Serves an export until the test ends. Gives the URI, and the folder of the socket, to be kept.
pub(crate) fn serve(export: impl Export, breaker: &Breaker) -> (String, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let exports = ExportMap::new().with("", export).unwrap();
    let server = Server::new(exports);
    let breaker = breaker.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            if breaker.admit(&stream) {
                let server = server.clone();
                thread::spawn(move || server.serve_unix(stream));
            } else {
                breaker.break_all();
            }
        }
    });
    (format!("nbd+unix:///?socket={}", path.display()), folder)
}

/// One that tries again soon.
pub(crate) fn reconnect() -> Reconnect {
    Reconnect::new().with_delays(Duration::from_millis(1), Duration::from_millis(10)).with_seed(3)
}
