//! The engine's client as asynchronous adapters have it, waited for.
//!
//! An adapter says how a thread of no runtime waits for a future, and which connector and streams are its own:
//!
//! ```ignore
//! impl AsyncClient for YoursClient {
//!     type Connector = my_runtime::Yours;
//!     type Stream = my_runtime::UnixStream;
//!
//!     fn block_on<F: Future>(&self, future: F) -> F::Output {
//!         my_runtime::block_on(future)
//!     }
//!
//!     fn stream(stream: std::os::unix::net::UnixStream) -> my_runtime::UnixStream {
//!         stream.into()
//!     }
//! }
//! ```

use std::future::Future;
use std::os::unix::net::UnixStream;

use nbd_engine::client::{
    BufResult, Bytes, Chunk, Client, ClientConfig, ContextExtents, CurrentRuntime, Error,
    ExportDetails, Flags, Handshake, InfoType, Listing, Negotiation, Pending, StatusRun,
    TransportFrom, Uri,
};

use crate::client::{ClientAdapter, ClientUnderTest, InFlight, NegotiationUnderTest};

/// An asynchronous adapter. Cheap to clone.
pub trait AsyncClient: Clone + Send + Sync + 'static {
    /// Its connector.
    type Connector: CurrentRuntime + TransportFrom<Self::Stream>;
    /// Its Unix streams.
    type Stream: Send + 'static;

    /// Runs a future to its end on this thread, with the runtime's time and sockets.
    fn block_on<F: Future>(&self, future: F) -> F::Output;

    /// Runs a future that waits for sockets by itself, rather than for what tasks do.
    fn run<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.block_on(future)
    }

    /// A non-blocking stream as the runtime's. Called on the runtime.
    fn stream(stream: UnixStream) -> Self::Stream;
}

impl<A: AsyncClient> ClientAdapter for A {
    fn connect(&self, uri: &Uri, config: &ClientConfig) -> Result<Box<dyn ClientUnderTest>, Error> {
        let (uri, config) = (uri.clone(), config.clone());
        let connecting = async move { Client::connect_with(&uri, &config).await };
        Ok(Waited::boxed(self.run(connecting)?, self))
    }

    fn over(
        &self,
        stream: UnixStream,
        export: &str,
        config: &ClientConfig,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        stream.set_nonblocking(true).expect("a setting");
        let (export, config) = (export.to_owned(), config.clone());
        let connecting = async move { Client::over(A::stream(stream), &export, &config).await };
        Ok(Waited::boxed(self.run(connecting)?, self))
    }

    fn negotiate(
        &self,
        uri: &Uri,
        config: &ClientConfig,
    ) -> Result<Box<dyn NegotiationUnderTest>, Error> {
        let (uri, config) = (uri.clone(), config.clone());
        let connecting = async move { Negotiation::connect(&uri, &config).await };
        Ok(WaitedNegotiation::boxed(self.run(connecting)?, self))
    }

    fn negotiate_over(
        &self,
        stream: UnixStream,
        config: &ClientConfig,
    ) -> Result<Box<dyn NegotiationUnderTest>, Error> {
        stream.set_nonblocking(true).expect("a setting");
        let config = config.clone();
        let connecting = async move { Negotiation::over(A::stream(stream), &config).await };
        Ok(WaitedNegotiation::boxed(self.run(connecting)?, self))
    }
}

/// A client of an asynchronous adapter.
struct Waited<A: AsyncClient> {
    client: Client<A::Connector>,
    runtime: A,
}

impl<A: AsyncClient> Waited<A> {
    fn boxed(client: Client<A::Connector>, runtime: &A) -> Box<dyn ClientUnderTest> {
        Box::new(Self { client, runtime: runtime.clone() })
    }

    fn in_flight(&self, pending: Pending<BufResult>) -> Box<dyn InFlight> {
        Box::new(WaitedPending { pending, runtime: self.runtime.clone() })
    }

    fn wait<R>(&self, future: impl Future<Output = R>) -> R {
        self.runtime.block_on(future)
    }
}

impl<A: AsyncClient> ClientUnderTest for Waited<A> {
    fn export(&self) -> &ExportDetails {
        self.client.export()
    }

    fn connections(&self) -> usize {
        self.client.connections()
    }

    fn is_connected(&self) -> bool {
        self.client.is_connected()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.wait(self.client.read_at(buffer, offset))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.wait(self.client.read_exact_at(buffer, offset))
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, Error> {
        self.wait(self.client.write_at(data, offset))
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.wait(self.client.write_all_at(data, offset))
    }

    fn read(&self, offset: u64, length: usize, flags: Flags) -> Result<Bytes, Error> {
        self.wait(self.client.read(offset, length, flags))
    }

    fn read_into(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult {
        self.wait(self.client.read_into(offset, buffer, flags))
    }

    fn read_chunks(&self, offset: u64, length: usize, flags: Flags) -> Result<Vec<Chunk>, Error> {
        self.wait(self.client.read_chunks(offset, length, flags))
    }

    fn write(&self, offset: u64, data: Vec<u8>, flags: Flags) -> Result<(), Error> {
        self.wait(self.client.write(offset, data, flags))
    }

    fn write_from(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> BufResult {
        self.wait(self.client.write_from(offset, buffer, flags))
    }

    fn flush(&self) -> Result<(), Error> {
        self.wait(self.client.flush())
    }

    fn trim(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.wait(self.client.trim(offset, length, flags))
    }

    fn write_zeroes(&self, offset: u64, length: u64, flags: Flags) -> Result<(), Error> {
        self.wait(self.client.write_zeroes(offset, length, flags))
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.wait(self.client.cache(offset, length))
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        flags: Flags,
    ) -> Result<Vec<ContextExtents>, Error> {
        self.wait(self.client.block_status(offset, length, flags))
    }

    fn block_status_range(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        window: u64,
    ) -> Result<Vec<StatusRun>, Error> {
        let runs = self.client.block_status_range(context, offset, length);
        let mut runs = runs.with_window(window).joined();
        self.wait(async {
            let mut found = Vec::new();
            while let Some(run) = runs.next().await {
                found.push(run?);
            }
            Ok(found)
        })
    }

    fn resize(&self, size: u64) -> Result<(), Error> {
        self.wait(self.client.resize(size))
    }

    fn disconnect(&self) {
        self.wait(self.client.disconnect());
    }

    fn start_read(&self, offset: u64, buffer: Vec<u8>, flags: Flags) -> Box<dyn InFlight> {
        self.in_flight(self.client.submit_read_into(offset, buffer, flags))
    }

    fn start_write(&self, offset: u64, data: Vec<u8>, flags: Flags) -> Box<dyn InFlight> {
        self.in_flight(self.client.submit_write_from(offset, data, flags))
    }

    fn start_flush(&self) -> Box<dyn InFlight> {
        let (pending, runtime) = (self.client.submit_flush(), self.runtime.clone());
        Box::new(WaitedPending { pending, runtime })
    }

    fn again(&self) -> Box<dyn ClientUnderTest> {
        Self::boxed(self.client.clone(), &self.runtime)
    }
}

struct WaitedPending<R, A> {
    pending: Pending<R>,
    runtime: A,
}

impl<A: AsyncClient> InFlight for WaitedPending<BufResult, A> {
    fn is_done(&self) -> bool {
        self.pending.is_done()
    }

    fn wait(self: Box<Self>) -> BufResult {
        self.runtime.block_on(self.pending)
    }
}

impl<A: AsyncClient> InFlight for WaitedPending<Result<(), Error>, A> {
    fn is_done(&self) -> bool {
        self.pending.is_done()
    }

    fn wait(self: Box<Self>) -> BufResult {
        (Vec::new(), self.runtime.block_on(self.pending))
    }
}

/// A client of an asynchronous adapter that has entered no export yet. It has no task, so that each question is one.
struct WaitedNegotiation<A: AsyncClient> {
    /// With the question meanwhile.
    negotiation: Option<Negotiation<A::Connector>>,
    runtime: A,
}

impl<A: AsyncClient> WaitedNegotiation<A> {
    fn boxed(negotiation: Negotiation<A::Connector>, runtime: &A) -> Box<dyn NegotiationUnderTest> {
        Box::new(Self { negotiation: Some(negotiation), runtime: runtime.clone() })
    }

    fn get(&self) -> &Negotiation<A::Connector> {
        self.negotiation.as_ref().expect("nothing is asked at the moment")
    }

    fn client(
        &self,
        entered: Result<Client<A::Connector>, Error>,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        Ok(Waited::boxed(entered?, &self.runtime))
    }
}

/// Asks on the runtime; the future brings the negotiation back.
macro_rules! ask {
    ($this:ident, |$negotiation:ident| $ask:expr) => {{
        let mut $negotiation = $this.negotiation.take().expect("nothing is asked at the moment");
        let (negotiation, answer) = $this.runtime.run(async move {
            let answer = $ask.await;
            ($negotiation, answer)
        });
        $this.negotiation = Some(negotiation);
        answer
    }};
}

fn owned(queries: &[&str]) -> Vec<String> {
    queries.iter().map(|query| (*query).to_owned()).collect()
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

impl<A: AsyncClient> NegotiationUnderTest for WaitedNegotiation<A> {
    fn peer(&self) -> String {
        self.get().peer().to_owned()
    }

    fn handshake(&self) -> Handshake {
        self.get().handshake()
    }

    fn is_tls(&self) -> bool {
        self.get().is_tls()
    }

    fn is_structured(&self) -> bool {
        self.get().is_structured()
    }

    fn is_extended(&self) -> bool {
        self.get().is_extended()
    }

    fn list(&mut self) -> Result<Vec<Listing>, Error> {
        ask!(self, |negotiation| negotiation.list())
    }

    fn info(&mut self, export: &str) -> Result<ExportDetails, Error> {
        let export = export.to_owned();
        ask!(self, |negotiation| negotiation.info(&export))
    }

    fn info_with(&mut self, export: &str, items: &[InfoType]) -> Result<ExportDetails, Error> {
        let (export, items) = (export.to_owned(), items.to_vec());
        ask!(self, |negotiation| negotiation.info_with(&export, &items))
    }

    fn structured_replies(&mut self) -> Result<(), Error> {
        ask!(self, |negotiation| negotiation.structured_replies())
    }

    fn extended_headers(&mut self) -> Result<(), Error> {
        ask!(self, |negotiation| negotiation.extended_headers())
    }

    fn list_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error> {
        let (export, queries) = (export.to_owned(), owned(queries));
        ask!(self, |negotiation| negotiation.list_meta_contexts(&export, &borrowed(&queries)))
    }

    fn set_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error> {
        let (export, queries) = (export.to_owned(), owned(queries));
        ask!(self, |negotiation| negotiation.set_meta_contexts(&export, &borrowed(&queries)))
    }

    fn enter(&mut self, export: &str) -> Result<Box<dyn ClientUnderTest>, Error> {
        let export = export.to_owned();
        let entered = ask!(self, |negotiation| negotiation.enter(&export));
        self.client(entered)
    }

    fn go(&mut self, export: &str, items: &[InfoType]) -> Result<Box<dyn ClientUnderTest>, Error> {
        let (export, items) = (export.to_owned(), items.to_vec());
        let entered = ask!(self, |negotiation| negotiation.go(&export, &items));
        self.client(entered)
    }

    fn export_name(&mut self, export: &str) -> Result<Box<dyn ClientUnderTest>, Error> {
        let export = export.to_owned();
        let entered = ask!(self, |negotiation| negotiation.export_name(&export));
        self.client(entered)
    }

    fn abort(mut self: Box<Self>) -> Result<(), Error> {
        let negotiation = self.negotiation.take().expect("nothing is asked at the moment");
        self.runtime.run(negotiation.abort())
    }
}
