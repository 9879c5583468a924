//! `nbd-blocking`.

use nbd_blocking::Server;
use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;

use super::control;
use crate::{Adapter, Place, Started};

/// Threads.
#[derive(Debug)]
pub struct Blocking;

impl Adapter for Blocking {
    fn start(&self, exports: ExportMap, config: ServerConfig, places: Vec<Place>) -> Started {
        let server = Server::with_config(exports, config);
        Started::on_a_thread(control!(server), move |said| {
            let mut all = Vec::new();
            for place in places {
                let listening = match place {
                    Place::Tcp => server.listen_tcp("127.0.0.1:0"),
                    Place::Unix(path) => server.listen_unix(path),
                    Place::TcpListener(listener) => server.accept_tcp(listener),
                    Place::UnixListener(listener) => server.accept_unix(listener),
                    Place::Stream(stream) => {
                        said.send(Vec::new()).expect("the suite waits for it");
                        return server.serve_unix(stream).expect("a proper session");
                    }
                };
                all.push(listening.expect("it listens"));
            }
            let addresses = all.iter().map(|one| one.local_addr().clone()).collect();
            said.send(addresses).expect("the suite waits for it");
            server.wait();
            for one in all {
                one.join();
            }
        })
    }
}
