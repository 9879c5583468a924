//! The engine's client as asynchronous adapters give it, waited for.
//!
//! An adapter says how a thread of no runtime waits for a future ([`BlockOn`]), and makes clients:
//!
//! ```ignore
//! impl BlockOn for MyRuntime {
//!     fn block_on<F: Future>(&self, future: F) -> F::Output {
//!         my_runtime::block_on(future)
//!     }
//! }
//!
//! fn connect(&self, uri: &Uri, options: &Options) -> Result<Box<dyn ClientUnderTest>, Error> {
//!     let client = MyRuntime.block_on(my_runtime::Client::connect_with(uri, options))?;
//!     Ok(Waited::boxed(client, MyRuntime))
//! }
//! ```

use std::future::Future;
use std::ops::Deref;

use nbd_engine::client::{
    Bytes, Client, ContextExtents, Error, ExportDetails, Flags, Haggling, Handshake, Lent, Listing,
    Negotiated, Pending,
};
use nbd_engine::{AnyTransport, Transport};

use crate::client::{ClientUnderTest, HagglingUnderTest, InFlight};

/// A runtime that can be waited for. Cheap to clone.
pub trait BlockOn: Clone + Send + Sync + 'static {
    /// Runs a future to its end on this thread, with the runtime's time and sockets.
    fn block_on<F: Future>(&self, future: F) -> F::Output;
}

/// A client of an asynchronous adapter.
pub struct Waited<C, B> {
    client: C,
    runtime: B,
}

impl<C, B> Waited<C, B>
where
    C: Deref<Target = Client> + Clone + Send + Sync + 'static,
    B: BlockOn,
{
    /// The adapter's client, on its runtime.
    pub fn boxed(client: C, runtime: B) -> Box<dyn ClientUnderTest> {
        Box::new(Self { client, runtime })
    }

    fn in_flight(&self, pending: Pending<Lent>) -> Box<dyn InFlight> {
        Box::new(WaitedPending { pending, runtime: self.runtime.clone() })
    }

    fn wait<R>(&self, future: impl Future<Output = R>) -> R {
        self.runtime.block_on(future)
    }
}

impl<C, B> ClientUnderTest for Waited<C, B>
where
    C: Deref<Target = Client> + Clone + Send + Sync + 'static,
    B: BlockOn,
{
    fn export(&self) -> &Negotiated {
        &self.client
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

    fn read(&self, offset: u64, length: usize) -> Result<Bytes, Error> {
        self.wait(self.client.read(offset, length))
    }

    fn read_into(&self, buffer: Vec<u8>, offset: u64) -> Lent {
        self.wait(self.client.read_into(buffer, offset))
    }

    fn write_at(&self, data: &[u8], offset: u64, flags: Flags) -> Result<(), Error> {
        self.wait(self.client.write_at_with(data, offset, flags))
    }

    fn write(&self, data: Bytes, offset: u64) -> Result<(), Error> {
        self.wait(self.client.write(data, offset))
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

    fn resize(&self, size: u64) -> Result<(), Error> {
        self.wait(self.client.resize(size))
    }

    fn disconnect(&self) {
        self.wait(self.client.disconnect());
    }

    fn start_read(&self, buffer: Vec<u8>, offset: u64, flags: Flags) -> Box<dyn InFlight> {
        self.in_flight(self.client.submit_read_with(buffer, offset, flags))
    }

    fn start_write(&self, data: Vec<u8>, offset: u64, flags: Flags) -> Box<dyn InFlight> {
        self.in_flight(self.client.submit_write_from(data, offset, flags))
    }

    fn start_flush(&self) -> Box<dyn InFlight> {
        Box::new(WaitedPending {
            pending: self.client.submit_flush(),
            runtime: self.runtime.clone(),
        })
    }

    fn again(&self) -> Box<dyn ClientUnderTest> {
        Self::boxed(self.client.clone(), self.runtime.clone())
    }
}

struct WaitedPending<R, B> {
    pending: Pending<R>,
    runtime: B,
}

impl<B: BlockOn> InFlight for WaitedPending<Lent, B> {
    fn is_done(&self) -> bool {
        self.pending.is_done()
    }

    fn wait(self: Box<Self>) -> Lent {
        self.runtime.block_on(self.pending)
    }
}

impl<B: BlockOn> InFlight for WaitedPending<Result<(), Error>, B> {
    fn is_done(&self) -> bool {
        self.pending.is_done()
    }

    fn wait(self: Box<Self>) -> Lent {
        (Vec::new(), self.runtime.block_on(self.pending))
    }
}

/// A client of an asynchronous adapter that has entered no export yet.
pub struct WaitedHaggling<B, T = AnyTransport> {
    haggling: Haggling<T>,
    runtime: B,
}

impl<B: BlockOn, T: Transport + 'static> WaitedHaggling<B, T> {
    /// The adapter's, on its runtime.
    pub fn boxed(haggling: Haggling<T>, runtime: B) -> Box<dyn HagglingUnderTest> {
        Box::new(Self { haggling, runtime })
    }
}

impl<B: BlockOn, T: Transport + 'static> HagglingUnderTest for WaitedHaggling<B, T> {
    fn handshake(&self) -> Handshake {
        self.haggling.handshake()
    }

    fn is_structured(&self) -> bool {
        self.haggling.is_structured()
    }

    fn is_extended(&self) -> bool {
        self.haggling.is_extended()
    }

    fn list(&mut self) -> Result<Vec<Listing>, Error> {
        self.runtime.block_on(self.haggling.list())
    }

    fn info(&mut self, export: &str) -> Result<ExportDetails, Error> {
        self.runtime.block_on(self.haggling.info(export))
    }

    fn list_meta_contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<String>, Error> {
        self.runtime.block_on(self.haggling.list_meta_contexts(export, queries))
    }

    fn abort(self: Box<Self>) -> Result<(), Error> {
        self.runtime.block_on(self.haggling.abort())
    }
}
