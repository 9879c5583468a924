//! The client of the guide's adapter, `docs/write-an-adapter.md`.

use std::future::{Future, pending};
use std::os::unix::net;
use std::sync::{LazyLock, mpsc};
use std::thread;

use mio::net::UnixStream;
use nbd_engine::client::{
    Client, Connector, Driving, Error, ExportDetails, Haggling, Handshake, Listing, Options, Uri,
};
use nbd_engine::{AnyTransport, Runtime};

use super::asynchronous::{BlockOn, Waited};
use crate::adapters::mio::event_loop::EventLoop;
use crate::adapters::mio::sockets::Socket;
use crate::client::{ClientAdapter, ClientUnderTest, HagglingUnderTest};

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

/// A client, which derefs to the engine's as those of other adapters do.
#[derive(Clone)]
struct Derefs(Client);

impl std::ops::Deref for Derefs {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.0
    }
}

impl BlockOn for MioClient {
    /// What waits for requests may do so on any thread.
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        ::smol::block_on(future)
    }
}

/// Runs on the loop's thread what waits for sockets by itself.
fn on_the_loop<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    EVENT_LOOP.spawn(Box::pin(async move {
        // Nobody waits any more where the scenario has failed.
        let _late = done.send(future.await);
    }));
    result.recv().expect("the loop runs")
}

impl ClientAdapter for MioClient {
    fn connect(&self, uri: &Uri, options: &Options) -> Result<Box<dyn ClientUnderTest>, Error> {
        let (uri, options) = (uri.clone(), options.clone());
        let client =
            on_the_loop(async move { Client::connect_by(&*EVENT_LOOP, &uri, &options).await })?;
        Ok(Waited::boxed(Derefs(client), *self))
    }

    fn over(
        &self,
        stream: net::UnixStream,
        options: &Options,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        stream.set_nonblocking(true).expect("a setting");
        let options = options.clone();
        let client = on_the_loop(async move {
            let stream = UnixStream::from_std(stream);
            let socket = Socket::new(stream, &EVENT_LOOP).expect("a socket");
            let runtime = EVENT_LOOP.runtime();
            Client::over(socket, runtime, Driving::Task, "stream", &options).await
        })?;
        Ok(Waited::boxed(Derefs(client), *self))
    }

    fn haggle(&self, uri: &Uri, options: &Options) -> Result<Box<dyn HagglingUnderTest>, Error> {
        let (uri, options) = (uri.clone(), options.clone());
        let haggling =
            on_the_loop(async move { Haggling::connect_by(&*EVENT_LOOP, &uri, &options).await })?;
        Ok(Box::new(OnTheLoop { haggling: Some(haggling) }))
    }
}

/// A client that has entered no export yet: it has no task, so that each question is one.
struct OnTheLoop {
    /// On the loop meanwhile.
    haggling: Option<Haggling<AnyTransport>>,
}

impl OnTheLoop {
    fn haggling(&self) -> &Haggling<AnyTransport> {
        self.haggling.as_ref().expect("nothing is asked at the moment")
    }

    /// Asks on the loop's thread. The future brings the client back.
    fn ask<T, F>(&mut self, ask: impl FnOnce(Haggling<AnyTransport>) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = (Haggling<AnyTransport>, T)> + Send + 'static,
    {
        let haggling = self.haggling.take().expect("nothing is asked at the moment");
        let (haggling, answer) = on_the_loop(ask(haggling));
        self.haggling = Some(haggling);
        answer
    }
}

impl HagglingUnderTest for OnTheLoop {
    fn handshake(&self) -> Handshake {
        self.haggling().handshake()
    }

    fn is_structured(&self) -> bool {
        self.haggling().is_structured()
    }

    fn is_extended(&self) -> bool {
        self.haggling().is_extended()
    }

    fn list(&mut self) -> Result<Vec<Listing>, Error> {
        self.ask(|mut haggling| async move {
            let answer = haggling.list().await;
            (haggling, answer)
        })
    }

    fn info(&mut self, export: &str) -> Result<ExportDetails, Error> {
        let export = export.to_owned();
        self.ask(|mut haggling| async move {
            let answer = haggling.info(&export).await;
            (haggling, answer)
        })
    }

    fn list_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error> {
        let export = export.to_owned();
        let queries: Vec<_> = queries.iter().map(|query| (*query).to_owned()).collect();
        self.ask(|mut haggling| async move {
            let queries: Vec<_> = queries.iter().map(|query| &**query).collect();
            let answer = haggling.list_meta_contexts(&export, &queries).await;
            (haggling, answer)
        })
    }

    fn abort(mut self: Box<Self>) -> Result<(), Error> {
        let haggling = self.haggling.take().expect("nothing is asked at the moment");
        on_the_loop(haggling.abort())
    }
}
