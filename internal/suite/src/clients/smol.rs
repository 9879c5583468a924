//! `nbd-async-std`'s client on smol.

use std::future::Future;
use std::os::unix::net;

use ::smol::net::unix::UnixStream;
use nbd_async_std::smol::Smol;

use super::asynchronous::AsyncClient;

/// smol's global executor.
#[derive(Clone, Copy, Debug)]
pub struct SmolClient;

impl AsyncClient for SmolClient {
    type Connector = Smol;
    type Stream = UnixStream;

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        ::smol::block_on(future)
    }

    fn stream(stream: net::UnixStream) -> UnixStream {
        stream.try_into().expect("a stream")
    }
}
