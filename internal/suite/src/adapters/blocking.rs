//! `nbd-blocking`.

use std::io;

use nbd_blocking::{Listening, Server};
use nbd_engine::export::ExportMap;
use nbd_engine::server::{ConnectionError, ServerConfig};

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
        let control = control!(
            server,
            |server, place| listen(server, place).expect("a listener").map(drop),
            serve_stream
        );
        Started::on_a_thread(control, move |said| {
            let mut all = Vec::new();
            assert!(!server.is_shutting_down());
            for place in places {
                match listen(&server, place) {
                    Ok(Ok(listening)) => all.push(listening),
                    Ok(Err(error)) => {
                        return said.send(Err(error)).expect("the suite waits for it");
                    }
                    Err(stream) => {
                        said.send(Ok(Vec::new())).expect("the suite waits for it");
                        return serve_stream(&server, stream).expect("a proper session");
                    }
                }
            }
            let listened = all.iter().map(|one| listened!(one, core::convert::identity)).collect();
            said.send(Ok(listened)).expect("the suite waits for it");
            server.wait();
            assert!(server.is_shutting_down());
        })
    }
}

/// Listens at a place; a stream is given back.
fn listen(server: &Server, place: Place) -> Result<io::Result<Listening>, Place> {
    Ok(match place {
        Place::Text(text) => server.listen_tcp(&*text),
        Place::Host(host, port) => server.listen_tcp((&*host, port)),
        Place::Addresses(addresses) => server.listen_tcp(&addresses[..]),
        Place::Unix(path) => server.listen_unix(path),
        Place::TcpListener(listener) => server.accept_tcp(listener),
        Place::UnixListener(listener) => server.accept_unix(listener),
        stream => return Err(stream),
    })
}

fn serve_stream(server: &Server, place: Place) -> Result<(), ConnectionError> {
    match place {
        Place::TcpStream(stream) => server.serve_tcp(stream),
        Place::UnixStream(stream) => server.serve_unix(stream),
        Place::Stream(stream) => {
            server.serve_stream(stream.try_clone().expect("a descriptor"), stream)
        }
        listener => panic!("{listener:?} is no stream"),
    }
}
