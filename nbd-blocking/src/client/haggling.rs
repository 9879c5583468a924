//! Looking around on a server, on threads.

use nbd_engine::client as engine;
use nbd_engine::client::Driving;

use super::connect::Sockets;
use super::{Client, Error, ExportDetails, Handshake, Listing, Options, Uri, wait};
use crate::reactor::Threads;
use crate::stream::Stream;

/// A connection to a server on which no export was entered yet: to list exports, and to look at them.
///
/// It is of no use any more once a method has failed with anything else than [`Error::Refused`] and
/// [`Error::Invalid`]. Each is bounded by [`Options::connect_timeout`].
#[derive(Debug)]
pub struct Haggling(engine::Haggling<Stream>);

impl Haggling {
    /// Connects to a server. The URI's export is ignored.
    ///
    /// # Errors
    /// See [`Client::connect_with`].
    pub fn connect(uri: &Uri, options: &Options) -> Result<Self, Error> {
        wait(engine::Haggling::connect_by(&Sockets, uri, options)).map(Self)
    }

    /// The handshake that the server speaks.
    #[must_use]
    pub fn handshake(&self) -> Handshake {
        self.0.handshake()
    }

    /// Whether the stream runs over TLS.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.0.is_tls()
    }

    /// Whether structured or extended replies were agreed on.
    #[must_use]
    pub const fn is_structured(&self) -> bool {
        self.0.is_structured()
    }

    /// Whether extended headers were agreed on.
    #[must_use]
    pub const fn is_extended(&self) -> bool {
        self.0.is_extended()
    }

    /// The exports that the server lists; there may be others.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not list its exports.
    pub fn list(&mut self) -> Result<Vec<Listing>, Error> {
        wait(self.0.list())
    }

    /// What the server tells of an export without entering it.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, or the server only tells those who enter.
    pub fn info(&mut self, export: &str) -> Result<ExportDetails, Error> {
        wait(self.0.info(export))
    }

    /// The metadata contexts of an export that match any of the queries; all that there are, without queries.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, [`Error::Invalid`] when headers without metadata contexts were
    /// agreed.
    pub fn list_meta_contexts(
        &mut self,
        export: &str,
        queries: &[impl AsRef<str> + Sync],
    ) -> Result<Vec<String>, Error> {
        wait(self.0.list_meta_contexts(export, queries))
    }

    /// Enters an export, with those of the options' metadata contexts that it has.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let this client into the export. The connection is left then.
    pub fn enter(self, export: &str, options: &Options) -> Result<Client, Error> {
        wait(async {
            let entered = self.0.enter(export, &options.contexts).await?;
            engine::Client::new(vec![entered], Threads, Driving::Callers, options).map(Client)
        })
    }

    /// Leaves the server politely.
    ///
    /// # Errors
    /// When the server does not take note in time. There is nothing to be done about it.
    pub fn abort(self) -> Result<(), Error> {
        wait(self.0.abort())
    }
}
