//! `nbd-tokio`, on runtimes of both flavours.

use std::io;

use nbd_engine::export::ExportMap;
use nbd_engine::server::ServerConfig;
use nbd_tokio::{Listening, Server};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};

use super::{asynchronous, control, listened};
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
    // What is asked from outside has a runtime of its own.
    let runtime = || runtime(&mut Builder::new_current_thread());
    let control = control!(
        server,
        |server, place| runtime().block_on(listen_to_more(server, place)),
        |server, place| runtime().block_on(serve_stream(server, place))
    );
    Started::on_a_thread(control, move |said| {
        self::runtime(&mut builder).block_on(live(server, places, said));
    })
}

fn runtime(builder: &mut Builder) -> Runtime {
    builder.enable_all().build().expect("a runtime")
}

asynchronous!(
    |listener| TcpListener::from_std(listener).expect("a listener"),
    |listener| UnixListener::from_std(listener).expect("a listener"),
    |stream| TcpStream::from_std(stream).expect("a stream"),
    |stream| UnixStream::from_std(stream).expect("a stream")
);
