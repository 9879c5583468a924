//! `nbd-async-std` on async-std.

use std::io;

use async_std::net::{TcpListener, TcpStream};
use async_std::os::unix::net::{UnixListener, UnixStream};
use nbd_async_std::{Listening, Server};
use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;

use super::{asynchronous, control, listened};
use crate::{Adapter, Place, Started};

/// async-std's global threads.
#[derive(Debug)]
pub struct AsyncStd;

impl Adapter for AsyncStd {
    fn start(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
    ) -> io::Result<Started> {
        let server = Server::with_config(exports, config);
        let control = control!(
            server,
            |server, place| ::async_std::task::block_on(listen_to_more(server, place)),
            |server, place| ::async_std::task::block_on(serve_stream(server, place))
        );
        Started::on_a_thread(control, move |said| {
            ::async_std::task::block_on(live(server, places, said))
        })
    }
}

asynchronous!(TcpListener::from, UnixListener::from, TcpStream::from, UnixStream::from);
