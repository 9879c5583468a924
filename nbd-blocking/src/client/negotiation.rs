//! The negotiation, on threads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use nbd_engine::client as engine;

use super::connect::{self, Peer};
use super::{
    Client, ClientConfig, Entered, Error, ExportDetails, Handshake, InfoType, Listing, Uri, wait,
};
use crate::reactor::Threads;

/// A connection to a server on which no export has been entered yet: the negotiation, one option at a time.
///
/// It answers what there is to know without entering: any number of questions, then [`enter`](Self::enter) or
/// [`abort`](Self::abort). What the server refuses, with [`Error::Refused`], or what can't be asked, with
/// [`Error::InvalidOption`], leaves it as it was: ask again, or for something else. After any other error it is of no use
/// any more. Each question blocks until it is answered, for at most [`ClientConfig::connect_timeout`].
///
/// ```
/// use nbd_blocking::client::{ClientConfig, Error};
/// use nbd_blocking::export::{ExportMap, Memory};
/// use nbd_blocking::{Negotiation, Server};
///
/// let server = Server::new(ExportMap::new().with("disk", Memory::new(1 << 20)?)?);
/// let listening = server.listen_tcp("127.0.0.1:0")?;
///
/// let uri = listening.local_addr().uri("")?;
/// let mut negotiation = Negotiation::connect(&uri, &ClientConfig::new())?;
/// assert!(matches!(negotiation.enter("tape"), Err(Error::Refused { .. })));
/// let exports = negotiation.list()?;
/// let client = negotiation.enter(&exports[0].name)?;
/// assert_eq!(client.size(), 1 << 20);
/// # server.shut_down();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What the [configuration](ClientConfig) asks for is negotiated on connecting: extended headers or structured replies,
/// unless they are switched off there to be asked for by hand.
#[derive(Debug)]
pub struct Negotiation(engine::Negotiation<Threads>);

impl Negotiation {
    /// Connects to a server without entering an export; that of the URI is ignored. Receives the greeting and negotiates
    /// headers.
    ///
    /// # Errors
    /// [`Error::Connect`] when the server can't be reached, [`Error::Protocol`] when it is not an NBD server,
    /// [`Error::Refused`] when it is not one that the configuration accepts, [`Error::TimedOut`], and
    /// [`Error::Unsupported`] for what this build can't do.
    pub fn connect(uri: &Uri, config: &ClientConfig) -> Result<Self, Error> {
        wait(engine::Negotiation::connect(uri, config)).map(Self)
    }

    /// The same over a TCP stream of yours.
    ///
    /// # Errors
    /// See [`connect`](Self::connect).
    pub fn over_tcp(stream: TcpStream, config: &ClientConfig) -> Result<Self, Error> {
        Self::over(connect::tcp(stream)?, config)
    }

    /// The same over a Unix stream of yours.
    ///
    /// # Errors
    /// See [`connect`](Self::connect).
    pub fn over_unix(stream: UnixStream, config: &ClientConfig) -> Result<Self, Error> {
        Self::over(connect::unix(stream)?, config)
    }

    /// The same over any pair of blocking byte streams, with two threads that carry the bytes.
    ///
    /// # Errors
    /// See [`connect`](Self::connect).
    pub fn over_stream(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        config: &ClientConfig,
    ) -> Result<Self, Error> {
        Self::over(connect::stream(reader, writer)?, config)
    }

    /// The same over a non-blocking stream that is one object for both directions, such as a TLS stream of yours. See
    /// [`Server::serve_duplex`](crate::Server::serve_duplex) for what is required of it; `socket` gives the socket below
    /// it.
    ///
    /// Nobody calls what ends the stream's own protocol, such as TLS's `close_notify`: the stream is flushed and
    /// dropped in the end, with the negotiation or the last clone of the client that it gave. Without `close_notify`
    /// the server may take the end for a cut, so wrap the stream in a type of yours whose `Drop` sends it (of rustls:
    /// `conn.send_close_notify()`, then `conn.write_tls(&mut sock)`). Say by
    /// [`with_stream_in_tls`](ClientConfig::with_stream_in_tls) that it is TLS.
    ///
    /// # Errors
    /// See [`connect`](Self::connect).
    pub fn over_duplex<S: Read + Write + Send + 'static>(
        stream: S,
        socket: impl FnOnce(&S) -> BorrowedFd<'_>,
        config: &ClientConfig,
    ) -> Result<Self, Error> {
        Self::over(connect::duplex(stream, socket)?, config)
    }

    fn over(peer: Peer, config: &ClientConfig) -> Result<Self, Error> {
        let Peer { transport, name } = peer;
        wait(engine::Negotiation::over_transport(Threads, transport, name, config)).map(Self)
    }

    /// The server, as errors name it.
    #[must_use]
    pub fn peer(&self) -> &str {
        self.0.peer()
    }

    /// The handshake that the server speaks.
    #[must_use]
    pub const fn handshake(&self) -> Handshake {
        self.0.handshake()
    }

    /// Whether the stream runs over TLS. See [`ExportDetails::is_tls`].
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.is_tls()
    }

    /// Whether structured or extended replies were agreed on.
    #[must_use]
    pub fn is_structured(&self) -> bool {
        self.0.is_structured()
    }

    /// Whether extended headers were agreed on.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.0.is_extended()
    }

    /// Ends the negotiation politely, by `NBD_OPT_ABORT`.
    ///
    /// # Errors
    /// When the server does not take note in time. There is nothing to be done about it.
    pub fn abort(self) -> Result<(), Error> {
        wait(self.0.abort())
    }
}

/// # Options
///
/// All of these fail with [`Error::Unsupported`] on servers that speak the oldstyle handshake, with
/// [`Error::InvalidOption`] for what must not be sent, such as a name of more than 4096 bytes, and with
/// [`Error::Entered`] once an export was entered.
impl Negotiation {
    /// `NBD_OPT_LIST`: the exports that the server lists; there may be others.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not list its exports, [`Error::Protocol`] when the list takes more than
    /// 128 MiB.
    pub fn list(&mut self) -> Result<Vec<Listing>, Error> {
        wait(self.0.list())
    }

    /// `NBD_OPT_INFO`: what the server says of an export without entering it. On a server with the oldstyle handshake,
    /// what it said of its one export.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, or the server describes it only on entering.
    pub fn info(&mut self, export: &str) -> Result<ExportDetails, Error> {
        wait(self.0.info(export))
    }

    /// `NBD_OPT_INFO` that asks for these items, each at most once. The size and the flags come in any case; others may
    /// come, too.
    ///
    /// # Errors
    /// As for [`info`](Self::info).
    pub fn info_with(&mut self, export: &str, items: &[InfoType]) -> Result<ExportDetails, Error> {
        wait(self.0.info_with(export, items))
    }

    /// `NBD_OPT_STRUCTURED_REPLY`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not have them, [`Error::InvalidOption`] when they are agreed on already.
    pub fn structured_replies(&mut self) -> Result<(), Error> {
        wait(self.0.structured_replies())
    }

    /// `NBD_OPT_EXTENDED_HEADERS`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not have them, [`Error::InvalidOption`] when they are agreed on already.
    pub fn extended_headers(&mut self) -> Result<(), Error> {
        wait(self.0.extended_headers())
    }

    /// `NBD_OPT_LIST_META_CONTEXT`: the metadata contexts of an export that match any of the queries; all that there
    /// are, without queries. (Some servers list none without queries.)
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, [`Error::InvalidOption`] without structured replies or extended
    /// headers.
    pub fn list_meta_contexts(
        &mut self,
        export: &str,
        queries: &[&str],
    ) -> Result<Vec<String>, Error> {
        wait(self.0.list_meta_contexts(export, queries))
    }

    /// `NBD_OPT_SET_META_CONTEXT`: selects the metadata contexts of an export that match any of the queries, in place of
    /// all that were selected before, and gives them; none without queries. They hold if that same export is
    /// entered, in place of those of the [configuration](ClientConfig::with_contexts).
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such export, [`Error::InvalidOption`] without structured replies or extended
    /// headers.
    pub fn set_meta_contexts(
        &mut self,
        export: &str,
        queries: &[&str],
    ) -> Result<Vec<String>, Error> {
        wait(self.0.set_meta_contexts(export, queries))
    }
}

/// # Entering an export
///
/// On success the negotiation is over: its connection is the client's, and every further question fails with
/// [`Error::Entered`]. What the server refuses leaves it as it was.
impl Negotiation {
    /// Enters an export in the best way that the server has: selects the configured metadata contexts, unless others were
    /// selected by hand for this export, and sends `NBD_OPT_GO`, or `NBD_OPT_EXPORT_NAME` to servers that know no other.
    /// Where the server allows it, makes as many [connections](ClientConfig::with_connections) as are configured, each in
    /// the same way as this one.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let this client into the export. (On `NBD_OPT_EXPORT_NAME` it can only
    /// do so by closing the connection.) When this connection has entered the export and a further one fails,
    /// [`Error::Unsupported`] if it finds another export, otherwise an error of [connecting](Client::connect_with); the
    /// negotiation is over then.
    pub fn enter(&mut self, export: &str) -> Result<Client, Error> {
        wait(self.0.enter(export)).map(Client)
    }

    /// `NBD_OPT_GO` that asks for these items, each at most once. No metadata contexts are selected but those that were
    /// selected by hand, and there is this connection only.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server does not let this client into the export, or does not know the option.
    pub fn go(&mut self, export: &str, items: &[InfoType]) -> Result<Client, Error> {
        wait(self.0.go(export, items)).map(Client)
    }

    /// `NBD_OPT_EXPORT_NAME`. No metadata contexts are selected but those that were selected by hand, and there is this
    /// connection only.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server closes the connection, which is how it refuses an export here: the negotiation
    /// is over then. [`Error::InvalidOption`] once extended headers are agreed on.
    pub fn export_name(&mut self, export: &str) -> Result<Client, Error> {
        wait(self.0.export_name(export)).map(Client)
    }

    /// Enters an export as [`enter`](Self::enter) does, by this connection only, and hands over the connection.
    ///
    /// # Errors
    /// As for [`enter`](Self::enter), and [`Error::Unsupported`] when the server sends something that nobody asked for.
    pub fn hand_over(&mut self, export: &str) -> Result<Entered, Error> {
        wait(self.0.hand_over(export)).map(Entered::new)
    }
}
