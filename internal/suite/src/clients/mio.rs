//! The client of the guide's adapter, `docs/write-an-adapter.md`.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::os::unix::net;
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use mio::net::UnixStream;
use nbd_engine::client::{Connector, CurrentRuntime, DriveMode, TransportFrom};
use nbd_engine::{AnyTransport, BoxFuture, Runtime};

use super::asynchronous::AsyncClient;
use crate::adapters::mio::event_loop::EventLoop;
use crate::adapters::mio::sockets::Socket;

/// An event loop with one thread, which runs the connections.
#[derive(Clone, Copy, Debug)]
pub struct MioClient;

/// A loop that ends with the process.
static EVENT_LOOP: LazyLock<EventLoop> = LazyLock::new(|| {
    let (event_loop, poll) = EventLoop::new().expect("an event loop");
    event_loop.spawn(Box::pin(pending()));
    let running = event_loop.clone();
    let thread = thread::Builder::new().name("mio".into());
    thread.spawn(move || running.run(poll)).expect("a thread for the loop");
    event_loop
});

/// The loop as what clients are made for.
#[derive(Clone, Copy, Debug)]
pub struct Mio;

impl Runtime for Mio {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        EVENT_LOOP.sleep(duration)
    }

    fn spawn(&self, task: BoxFuture) {
        EVENT_LOOP.spawn(task);
    }
}

impl Connector for Mio {
    type Runtime = Self;
    const DRIVE_MODE: DriveMode = EventLoop::DRIVE_MODE;

    fn runtime(&self) -> Self {
        *self
    }

    async fn connect_tcp(&self, address: SocketAddr) -> io::Result<AnyTransport> {
        EVENT_LOOP.connect_tcp(address).await
    }

    fn adopt_unix(&self, socket: net::UnixStream) -> io::Result<AnyTransport> {
        EVENT_LOOP.adopt_unix(socket)
    }
}

impl CurrentRuntime for Mio {
    fn current() -> Self {
        Self
    }
}

impl TransportFrom<UnixStream> for Mio {
    fn transport_from(&self, stream: UnixStream) -> AnyTransport {
        Box::new(Socket::new(stream, &EVENT_LOOP).expect("a socket"))
    }
}

impl AsyncClient for MioClient {
    type Connector = Mio;
    type Stream = UnixStream;

    /// What waits for requests may do so on any thread.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        ::smol::block_on(future)
    }

    /// What waits for sockets by itself does so on the loop's thread.
    fn run<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let (done, result) = mpsc::channel();
        EVENT_LOOP.spawn(Box::pin(async move {
            // Nobody waits any more where the scenario has failed.
            let _late = done.send(future.await);
        }));
        result.recv().expect("the loop runs")
    }

    fn stream(stream: net::UnixStream) -> UnixStream {
        UnixStream::from_std(stream)
    }
}
