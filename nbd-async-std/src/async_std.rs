//! async-std's tasks, listeners and names.

use std::io;
use std::time::Duration;

use ::async_std::net::{TcpListener, ToSocketAddrs};
use ::async_std::os::unix::net::UnixListener;
use nbd_engine::{BoxFuture, Runtime, net};

use crate::server::{self, Listening};
use crate::stream;

/// The runtime of [`Server`] and [`Client`](crate::Client): async-std's global threads, started when first used.
#[derive(Clone, Copy, Debug, Default)]
pub struct AsyncStd;

impl Runtime for AsyncStd {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        stream::sleep(duration)
    }

    fn spawn(&self, task: BoxFuture) {
        // Tasks run on their own; nobody waits for the handle.
        drop(::async_std::task::spawn(task));
    }
}

/// An NBD server on async-std. See [`server::Server`] for the methods that it shares with other runtimes.
pub type Server = server::Server<AsyncStd>;

impl Server {
    /// Listens on a TCP address; port 0 takes a free one. Serving begins at once. Cancel-safe: dropped before it is
    /// ready, nothing listens.
    ///
    /// # Errors
    /// When the address can't be listened on, with the address in the text.
    pub async fn listen_tcp(
        &self,
        address: impl ToSocketAddrs + std::fmt::Display,
    ) -> io::Result<Listening> {
        let place = address.to_string();
        let listener = TcpListener::bind(address).await;
        self.accept_tcp(listener.map_err(|error| net::cannot_listen(place, &error))?)
    }

    /// Accepts connections from a TCP listener of yours.
    ///
    /// # Errors
    /// When its config can't be changed, or its address can't be told.
    pub fn accept_tcp(&self, listener: TcpListener) -> io::Result<Listening> {
        self.start_tcp(async_io::Async::new(std::net::TcpListener::try_from(listener)?)?)
    }

    /// Accepts connections from a Unix listener of yours, whose path stays yours, too.
    ///
    /// # Errors
    /// When its config can't be changed, or its address can't be told.
    pub fn accept_unix(&self, listener: UnixListener) -> io::Result<Listening> {
        let listener = std::os::unix::net::UnixListener::try_from(listener)?;
        self.start_unix(async_io::Async::new(listener)?)
    }
}
