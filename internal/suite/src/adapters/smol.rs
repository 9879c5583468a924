//! `nbd-async-std` on smol.

use std::io;

use nbd_async_std::smol::{Listening, Server};
use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;
use smol::net::unix::{UnixListener, UnixStream};
use smol::net::{TcpListener, TcpStream};

use super::{asynchronous, control, listened};
use crate::{Adapter, Place, Started};

/// smol's global executor.
#[derive(Debug)]
pub struct Smol;

impl Adapter for Smol {
    fn start(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
    ) -> io::Result<Started> {
        let server = Server::with_config(exports, config);
        let control = control!(
            server,
            |server, place| ::smol::block_on(listen_to_more(server, place)),
            |server, place| ::smol::block_on(serve_stream(server, place))
        );
        Started::on_a_thread(control, move |said| ::smol::block_on(live(server, places, said)))
    }
}

asynchronous!(
    |listener| TcpListener::try_from(listener).expect("a listener"),
    |listener| UnixListener::try_from(listener).expect("a listener"),
    |stream| TcpStream::try_from(stream).expect("a stream"),
    |stream| UnixStream::try_from(stream).expect("a stream")
);
