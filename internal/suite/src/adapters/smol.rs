//! `nbd-async-std` on smol.

use std::io;

use nbd_async_std::smol::Server;
use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;
use smol::net::unix::{UnixListener, UnixStream};
use smol::net::{TcpListener, TcpStream};

use super::{control, listened, serve};
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
        Started::on_a_thread(control!(server), move |said| {
            ::smol::block_on(async {
                let tcp = |listener| TcpListener::try_from(listener).expect("a listener");
                let unix = |listener| UnixListener::try_from(listener).expect("a listener");
                let tcp_stream = |stream| TcpStream::try_from(stream).expect("a stream");
                let unix_stream = |stream| UnixStream::try_from(stream).expect("a stream");
                serve!(server, places, said, tcp, unix, tcp_stream, unix_stream);
            });
        })
    }
}
