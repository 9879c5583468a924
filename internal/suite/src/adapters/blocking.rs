//! `nbd-blocking`.

use std::io;

use nbd_blocking::Server;
use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;

use super::{control, listened};
use crate::{Adapter, Place, Started};

/// Threads.
#[derive(Debug)]
pub struct Blocking;

impl Adapter for Blocking {
    fn start(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
    ) -> io::Result<Started> {
        let server = Server::with_config(exports, config);
        Started::on_a_thread(control!(server), move |said| {
            let nothing = || said.send(Ok(Vec::new())).expect("the suite waits for it");
            let mut all = Vec::new();
            for place in places {
                let listening = match place {
                    Place::Text(text) => server.listen_tcp(&*text),
                    Place::Host(host, port) => server.listen_tcp((&*host, port)),
                    Place::Addresses(addresses) => server.listen_tcp(&addresses[..]),
                    Place::Unix(path) => server.listen_unix(path),
                    Place::TcpListener(listener) => server.accept_tcp(listener),
                    Place::UnixListener(listener) => server.accept_unix(listener),
                    Place::TcpStream(stream) => {
                        nothing();
                        return server.serve_tcp(stream).expect("a proper session");
                    }
                    Place::UnixStream(stream) => {
                        nothing();
                        return server.serve_unix(stream).expect("a proper session");
                    }
                    Place::Stream(stream) => {
                        nothing();
                        let reader = stream.try_clone().expect("a descriptor");
                        return server.serve_stream(reader, stream).expect("a proper session");
                    }
                };
                match listening {
                    Ok(listening) => all.push(listening),
                    Err(error) => return said.send(Err(error)).expect("the suite waits for it"),
                }
            }
            let listened = all.iter().map(|one| listened!(one, core::convert::identity)).collect();
            said.send(Ok(listened)).expect("the suite waits for it");
            server.wait();
            for one in all {
                one.join();
            }
        })
    }
}
