//! `nbd-tokio`'s client, on runtimes of both flavours.

use std::future::{Future, pending};
use std::os::unix::net::UnixStream;
use std::sync::{LazyLock, mpsc};
use std::thread;

use nbd_engine::client::{Error, Options, Uri};
use nbd_tokio::{Client, client};
use tokio::runtime::{Builder, Handle};

use super::asynchronous::{BlockOn, Waited, WaitedHaggling};
use crate::client::{ClientAdapter, ClientUnderTest, HagglingUnderTest};

/// A runtime with one thread, which runs the connections.
#[derive(Debug)]
pub struct TokioClientCurrentThread;

/// A runtime with two worker threads.
#[derive(Debug)]
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

#[derive(Clone)]
struct On(&'static Handle);

impl BlockOn for On {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(future)
    }
}

impl On {
    fn connect(self, uri: &Uri, options: &Options) -> Result<Box<dyn ClientUnderTest>, Error> {
        let client = self.block_on(Client::connect_with(uri, options))?;
        Ok(Waited::boxed(client, self))
    }

    fn over(
        self,
        stream: UnixStream,
        options: &Options,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        stream.set_nonblocking(true).expect("a setting");
        let client = self.block_on(async {
            let stream = tokio::net::UnixStream::from_std(stream).expect("a stream");
            Client::over(stream, options).await
        })?;
        Ok(Waited::boxed(client, self))
    }

    fn haggle(self, uri: &Uri, options: &Options) -> Result<Box<dyn HagglingUnderTest>, Error> {
        let haggling = self.block_on(client::haggle(uri, options))?;
        Ok(WaitedHaggling::boxed(haggling, self))
    }
}

/// What both flavours do alike.
macro_rules! on {
    ($adapter:ident, $runtime:ident) => {
        impl ClientAdapter for $adapter {
            fn connect(
                &self,
                uri: &Uri,
                options: &Options,
            ) -> Result<Box<dyn ClientUnderTest>, Error> {
                On(&$runtime).connect(uri, options)
            }

            fn over(
                &self,
                stream: UnixStream,
                options: &Options,
            ) -> Result<Box<dyn ClientUnderTest>, Error> {
                On(&$runtime).over(stream, options)
            }

            fn haggle(
                &self,
                uri: &Uri,
                options: &Options,
            ) -> Result<Box<dyn HagglingUnderTest>, Error> {
                On(&$runtime).haggle(uri, options)
            }
        }
    };
}

on!(TokioClientCurrentThread, CURRENT_THREAD);
on!(TokioClientMultiThread, MULTI_THREAD);
