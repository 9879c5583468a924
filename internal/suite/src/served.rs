//! A server for one test, on threads and a Unix socket.

use nbd_blocking::export::{ExportMap, Exports, IntoExport};
use nbd_blocking::{Server, ServerConfig};
use nbd_testkit::Endpoint;
use tempfile::TempDir;

/// A server that shuts down when this is dropped.
#[derive(Debug)]
pub struct Served {
    server: Server,
    endpoint: Endpoint,
    dir: TempDir,
}

impl Served {
    /// Serves one export as the default one.
    pub fn only<K>(export: impl IntoExport<K>) -> Self {
        Self::start(ExportMap::new().with("", export).expect("a server"), ServerConfig::default())
    }

    /// Serves exports.
    pub fn start(exports: impl Exports, config: ServerConfig) -> Self {
        let server = Server::with_config(exports, config);
        let dir = TempDir::new().expect("a server");
        let endpoint = Endpoint::Unix(dir.path().join("new.sock"));
        server.listen_unix(endpoint.socket_path().expect("a server")).expect("a server");
        Self { server, endpoint, dir }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The server itself.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Another listener of the same server, for oldstyle clients.
    pub fn listen_oldstyle(&self, export: &str) -> Endpoint {
        let endpoint = Endpoint::Unix(self.dir.path().join("old.sock"));
        self.server
            .oldstyle(export)
            .listen_unix(endpoint.socket_path().expect("a server"))
            .expect("a server");
        endpoint
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.shut_down();
    }
}
