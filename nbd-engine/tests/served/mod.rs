//! A server for one test, on threads and a Unix socket.

use nbd_blocking::export::{ExportMap, Exports, IntoExport};
use nbd_blocking::{Server, ServerConfig};
use nbd_testkit::Endpoint;
use tempfile::TempDir;

pub(crate) struct Served {
    server: Server,
    endpoint: Endpoint,
    dir: TempDir,
}

#[allow(dead_code, reason = "each test uses a part of it")]
impl Served {
    /// Serves one export as the default one.
    pub(crate) fn only<K>(export: impl IntoExport<K>) -> Self {
        Self::start(ExportMap::new().with("", export).unwrap(), ServerConfig::default())
    }

    pub(crate) fn start(exports: impl Exports, config: ServerConfig) -> Self {
        let server = Server::with_config(exports, config);
        let dir = TempDir::new().unwrap();
        let endpoint = Endpoint::Unix(dir.path().join("new.sock"));
        server.listen_unix(endpoint.socket_path().unwrap()).unwrap();
        Self { server, endpoint, dir }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Another listener of the same server, for oldstyle clients.
    pub(crate) fn listen_oldstyle(&self, export: &str) -> Endpoint {
        let endpoint = Endpoint::Unix(self.dir.path().join("old.sock"));
        self.server.oldstyle(export).listen_unix(endpoint.socket_path().unwrap()).unwrap();
        endpoint
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.shut_down();
    }
}
