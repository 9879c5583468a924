//! `nbd-async-std`'s client on async-std.

use std::future::Future;
use std::os::unix::net;

use ::async_std::os::unix::net::UnixStream;
use nbd_async_std::Client;
use nbd_async_std::client::haggle;
use nbd_engine::client::{Error, Options, Uri};

use super::asynchronous::{BlockOn, Waited, WaitedHaggling};
use crate::client::{ClientAdapter, ClientUnderTest, HagglingUnderTest};

/// async-std's global threads.
#[derive(Clone, Copy, Debug)]
pub struct AsyncStdClient;

impl BlockOn for AsyncStdClient {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        ::async_std::task::block_on(future)
    }
}

impl ClientAdapter for AsyncStdClient {
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
        let stream = UnixStream::from(stream);
        let client = self.block_on(Client::over(stream, options))?;
        Ok(Waited::boxed(client, *self))
    }

    fn haggle(&self, uri: &Uri, options: &Options) -> Result<Box<dyn HagglingUnderTest>, Error> {
        let haggling = self.block_on(haggle(uri, options))?;
        Ok(WaitedHaggling::boxed(haggling, *self))
    }
}
