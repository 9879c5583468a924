//! `nbd-tokio`, on runtimes of both flavours.

use std::io;

use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;
use nbd_tokio::Server;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Builder;

use super::{control, listened, serve};
use crate::{Adapter, Place, Started};

/// A runtime with one thread, which does everything.
#[derive(Debug)]
pub struct TokioCurrentThread;

/// A runtime with two worker threads.
#[derive(Debug)]
pub struct TokioMultiThread;

impl Adapter for TokioCurrentThread {
    fn start(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
    ) -> io::Result<Started> {
        start(Builder::new_current_thread(), exports, config, places)
    }
}

impl Adapter for TokioMultiThread {
    fn start(
        &self,
        exports: ExportMap,
        config: ServerConfig,
        places: Vec<Place>,
    ) -> io::Result<Started> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2);
        start(builder, exports, config, places)
    }
}

fn start(
    mut builder: Builder,
    exports: ExportMap,
    config: ServerConfig,
    places: Vec<Place>,
) -> io::Result<Started> {
    let server = Server::with_config(exports, config);
    Started::on_a_thread(control!(server), move |said| {
        let runtime = builder.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let tcp = |listener| TcpListener::from_std(listener).expect("a listener");
            let unix = |listener| UnixListener::from_std(listener).expect("a listener");
            let tcp_stream = |stream| TcpStream::from_std(stream).expect("a stream");
            let unix_stream = |stream| UnixStream::from_std(stream).expect("a stream");
            serve!(server, places, said, tcp, unix, tcp_stream, unix_stream);
        });
    })
}
