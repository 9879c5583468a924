//! The same on smol: its tasks, listeners and names.
//!
//! ```
//! use nbd_async_std::export::{ExportMap, Memory};
//! use nbd_async_std::smol::Server;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! smol::block_on(async {
//!     let server = Server::new(ExportMap::new().with("", Memory::new(1 << 30)?)?);
//!     let listening = server.listen_tcp("127.0.0.1:0").await?;
//!     println!("nbd://{}/", listening.local_addr());
//! #   server.shut_down();
//!     server.wait().await; // Until somebody calls server.shut_down().
//!     Ok(())
//! })
//! # }
//! ```
//!
//! Connections run on smol's global executor: one thread, or as many as the environment variable `SMOL_THREADS` says.

use std::io;
use std::time::Duration;

use ::smol::net::unix::UnixListener;
use ::smol::net::{AsyncToSocketAddrs, TcpListener};
use nbd_engine::{BoxFuture, Runtime, net};

use crate::{server, stream};

pub use self::client::{Client, Disk};
pub use crate::server::Listening;

/// Clients on smol: what [`crate::client`] has for async-std.
pub mod client {
    pub use crate::client::{
        Bytes, ClientOn, CommandError, ContextExtents, Disk, Error, ExportDetails, Extent, Flags,
        Haggling, Handshake, Invalid, Lent, Listing, LostReason, Negotiated, Options, Pending, Uri,
        UriError, haggle,
    };

    /// An NBD client on smol. See [`ClientOn`] for its methods.
    ///
    /// ```no_run
    /// use nbd_async_std::smol::Client;
    /// use nbd_async_std::smol::client::Flags;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # smol::block_on(async {
    /// let client = Client::connect("nbd://localhost/disk").await?;
    /// let mut sector = [0; 512];
    /// client.read_exact_at(&mut sector, 0).await?;
    /// client.write_at_with(&sector, 512, Flags::FUA).await?;
    /// client.disconnect().await;
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    pub type Client = ClientOn<super::Smol>;
}

/// The runtime of [`Server`] and [`Client`]: smol's global executor, started when first used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Smol;

impl Runtime for Smol {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        stream::sleep(duration)
    }

    fn spawn(&self, task: BoxFuture) {
        ::smol::spawn(task).detach();
    }
}

/// An NBD server on smol. See [`server::Server`] for the methods that it shares with other runtimes.
pub type Server = server::Server<Smol>;

impl Server {
    /// Listens on a TCP address; port 0 takes a free one. Serving begins at once. Cancel-safe: dropped before it is
    /// ready, nothing listens.
    ///
    /// # Errors
    /// When the address can't be listened on, with the address in the text.
    pub async fn listen_tcp(
        &self,
        address: impl AsyncToSocketAddrs + std::fmt::Display,
    ) -> io::Result<Listening> {
        let place = address.to_string();
        let listener = TcpListener::bind(address).await;
        self.accept_tcp(listener.map_err(|error| net::cannot_listen(place, &error))?)
    }

    /// Accepts connections from a TCP listener of yours.
    ///
    /// # Errors
    /// When its address can't be told.
    pub fn accept_tcp(&self, listener: TcpListener) -> io::Result<Listening> {
        self.start_tcp(listener)
    }

    /// Accepts connections from a Unix listener of yours, whose path stays yours, too.
    ///
    /// # Errors
    /// When its address can't be told.
    pub fn accept_unix(&self, listener: UnixListener) -> io::Result<Listening> {
        self.start_unix(listener)
    }
}
