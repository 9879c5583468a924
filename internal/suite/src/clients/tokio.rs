//! `nbd-tokio`'s client, on runtimes of both flavours.

use std::future::{Future, pending};
use std::os::unix::net::UnixStream;
use std::sync::{LazyLock, mpsc};
use std::thread;

use nbd_tokio::Tokio;
use tokio::runtime::{Builder, Handle};

use super::asynchronous::AsyncClient;

/// A runtime with one thread, which runs the connections.
#[derive(Clone, Copy, Debug)]
pub struct TokioClientCurrentThread;

/// A runtime with two worker threads.
#[derive(Clone, Copy, Debug)]
pub struct TokioClientMultiThread;

static CURRENT_THREAD: LazyLock<Handle> = LazyLock::new(|| run(Builder::new_current_thread));
static MULTI_THREAD: LazyLock<Handle> = LazyLock::new(|| {
    run(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2);
        builder
    })
});

/// Runs a runtime on a thread that ends with the process: others wait by its handle.
fn run(builder: fn() -> Builder) -> Handle {
    let (told, handle) = mpsc::channel();
    let thread = thread::Builder::new().name("tokio".into()).spawn(move || {
        let runtime = builder().enable_all().build().expect("a runtime");
        told.send(runtime.handle().clone()).expect("somebody waits for it");
        runtime.block_on(pending::<()>());
    });
    thread.expect("a thread for the runtime");
    handle.recv().expect("the runtime runs")
}

/// What both flavours do alike.
macro_rules! on {
    ($adapter:ident, $runtime:ident) => {
        impl AsyncClient for $adapter {
            type Connector = Tokio;
            type Stream = tokio::net::UnixStream;

            fn block_on<F: Future>(&self, future: F) -> F::Output {
                $runtime.block_on(future)
            }

            fn stream(stream: UnixStream) -> tokio::net::UnixStream {
                tokio::net::UnixStream::from_std(stream).expect("a stream")
            }
        }
    };
}

on!(TokioClientCurrentThread, CURRENT_THREAD);
on!(TokioClientMultiThread, MULTI_THREAD);
