//! `nbd-async-std`'s client on async-std.

use std::future::Future;
use std::os::unix::net;

use ::async_std::os::unix::net::UnixStream;
use nbd_async_std::AsyncStd;

use super::asynchronous::AsyncClient;

/// async-std's global threads.
#[derive(Clone, Copy, Debug)]
pub struct AsyncStdClient;

impl AsyncClient for AsyncStdClient {
    type Connector = AsyncStd;
    type Stream = UnixStream;

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        ::async_std::task::block_on(future)
    }

    fn stream(stream: net::UnixStream) -> UnixStream {
        stream.into()
    }
}
