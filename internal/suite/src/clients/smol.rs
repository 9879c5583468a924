//! `nbd-async-std`'s client on smol.

use std::future::Future;
use std::os::unix::net;

use ::smol::net::unix::UnixStream;
use nbd_async_std::smol::Client;
use nbd_async_std::smol::client::haggle;
use nbd_engine::client::{Error, Options, Uri};

use super::asynchronous::{BlockOn, Waited, WaitedHaggling};
use crate::client::{ClientAdapter, ClientUnderTest, HagglingUnderTest};

/// smol's global executor.
#[derive(Clone, Copy, Debug)]
pub struct SmolClient;

impl BlockOn for SmolClient {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        ::smol::block_on(future)
    }
}

impl ClientAdapter for SmolClient {
    fn connect(&self, uri: &Uri, options: &Options) -> Result<Box<dyn ClientUnderTest>, Error> {
        let client = self.block_on(Client::connect_with(uri, options))?;
        Ok(Waited::boxed(client, *self))
    }

    fn over(
        &self,
        stream: net::UnixStream,
        options: &Options,
    ) -> Result<Box<dyn ClientUnderTest>, Error> {
        stream.set_nonblocking(true).expect("a setting");
        let stream = UnixStream::try_from(stream).expect("a stream");
        let client = self.block_on(Client::over(stream, options))?;
        Ok(Waited::boxed(client, *self))
    }

    fn haggle(&self, uri: &Uri, options: &Options) -> Result<Box<dyn HagglingUnderTest>, Error> {
        let haggling = self.block_on(haggle(uri, options))?;
        Ok(WaitedHaggling::boxed(haggling, *self))
    }
}
