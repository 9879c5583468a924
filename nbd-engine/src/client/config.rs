//! How a client behaves.

use core::time::Duration;

use nbd_proto::Limits;
use nbd_proto::client::{Config, Goal};
use nbd_proto::wire::InfoType;

use super::Reconnect;

#[cfg(feature = "tls")]
use crate::tls::{ClientTlsMode, TlsClient};

/// What a client asks for, its deadlines and its bounds: for those who connect.
///
/// ```
/// use nbd_engine::client::ClientConfig;
/// use std::time::Duration;
///
/// let config = ClientConfig::new()
///     .with_contexts(["base:allocation"])
///     .with_connections(4)
///     .with_request_timeout(Some(Duration::from_secs(60)));
/// assert_eq!(config.connections(), 4);
/// ```
#[derive(Clone, Debug)]
pub struct ClientConfig {
    contexts: Vec<String>,
    extended_headers: bool,
    structured_replies: bool,
    oldstyle: bool,
    connections: usize,
    connect_timeout: Duration,
    request_timeout: Option<Duration>,
    busy_poll: Option<Duration>,
    stream_in_tls: bool,
    statistics: bool,
    reconnect: Option<Reconnect>,
    #[cfg(feature = "tls")]
    tls: Option<(ClientTlsMode, TlsClient)>,
    limits: Limits,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            contexts: Vec::new(),
            extended_headers: true,
            structured_replies: true,
            oldstyle: true,
            connections: 1,
            connect_timeout: Duration::from_secs(30),
            request_timeout: None,
            busy_poll: None,
            stream_in_tls: false,
            statistics: false,
            reconnect: None,
            #[cfg(feature = "tls")]
            tls: None,
            limits: Limits::DEFAULT,
        }
    }
}

impl ClientConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The metadata contexts to select, for [`Client::block_status`](super::Client::block_status). Those that the
    /// server does not have are missing from [`ExportDetails::contexts`](super::ExportDetails::contexts). A server may refuse to
    /// select any, as those of this crate do above 16 ([`Limits::max_contexts`](super::Limits::max_contexts)): then there are
    /// none, a warning is logged, and [`ExportDetails::contexts_refused`](super::ExportDetails::contexts_refused) says why.
    /// Default none.
    /// One that is no namespace, colon and leaf of at most 4096 bytes without NUL has connecting fail with
    /// [`Error::InvalidOption`](super::Error::InvalidOption).
    #[must_use]
    pub fn with_contexts(mut self, contexts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.contexts = contexts.into_iter().map(Into::into).collect();
        self
    }

    /// Whether to ask for extended headers. Servers that don't have them are used without. Default `true`.
    #[must_use]
    pub const fn with_extended_headers(mut self, wanted: bool) -> Self {
        self.extended_headers = wanted;
        self
    }

    /// Whether to ask for structured replies, which metadata contexts need. Servers that don't have them are used
    /// without. Default `true`.
    #[must_use]
    pub const fn with_structured_replies(mut self, wanted: bool) -> Self {
        self.structured_replies = wanted;
        self
    }

    /// Whether servers are accepted that speak nothing but the oldstyle handshake. Default `true`.
    #[must_use]
    pub const fn with_oldstyle(mut self, accepted: bool) -> Self {
        self.oldstyle = accepted;
        self
    }

    /// Connections at most, to spread requests over. There is one where the server does not announce
    /// [that it allows several](super::TransmissionFlags::CAN_MULTI_CONN), and over a stream of yours; and there are those that
    /// came about once a further one fails in a way that is [transient](super::Error::is_transient), as on a server that has
    /// no room for more. [`Client::connections`](super::Client::connections) says how many there are. Default 1; zero means 1.
    #[must_use]
    pub const fn with_connections(mut self, connections: usize) -> Self {
        self.connections = if connections == 0 { 1 } else { connections };
        self
    }

    /// How long it may take to connect and enter an export, on each connection, and how long each question of a
    /// [negotiation](super::Negotiation) by hand may take. Default 30 seconds; [`Duration::MAX`] waits without end.
    #[must_use]
    pub const fn with_connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// How long a request may take from its submission to its reply, the time that it waits for a slot or for a new
    /// connection included; then it fails with [`Error::TimedOut`](super::Error::TimedOut). Default `None`, as long as
    /// it takes: a disk may take its time.
    #[must_use]
    pub const fn with_request_timeout(mut self, limit: Option<Duration>) -> Self {
        self.request_timeout = limit;
        self
    }

    /// How long a connection whose server is quick polls for the next reply before it sleeps, which spares both sides the
    /// cost of waking it; zero turns it off. It never happens on a single processor, nor on more connections at a time
    /// than half of the processors. The thread is occupied meanwhile: choose microseconds. Default 30 microseconds with
    /// `nbd-blocking`, and zero on runtimes whose tasks share threads.
    #[must_use]
    pub const fn with_busy_poll(mut self, limit: Duration) -> Self {
        self.busy_poll = Some(limit);
        self
    }

    /// Whether requests are counted, and how long they take: see
    /// [`Client::statistics`](super::Client::statistics). Costs two looks at the clock for each. Default `false`.
    #[must_use]
    pub const fn with_statistics(mut self, counted: bool) -> Self {
        self.statistics = counted;
        self
    }

    pub(crate) const fn statistics(&self) -> bool {
        self.statistics
    }

    /// Whether the stream that is handed to a client or to a negotiation (by `over`, or with `nbd-blocking` by
    /// `over_stream`, `over_duplex`, `over_tcp` or `over_unix`) runs inside of TLS, which
    /// [`ExportDetails::is_tls`](super::ExportDetails::is_tls) then says. Default `false`.
    #[must_use]
    pub const fn with_stream_in_tls(mut self, in_tls: bool) -> Self {
        self.stream_in_tls = in_tls;
        self
    }

    /// Replaces connections that are lost, and sends requests again where that is safe. It has no effect on a client over a
    /// stream of yours, which can't be made anew, nor on the first connection of a client: that fails at once, and the
    /// caller decides whether to connect again. Default: it does not, and what is in flight on a connection fails with it.
    #[must_use]
    pub fn with_reconnect(mut self, reconnect: Reconnect) -> Self {
        self.reconnect = Some(reconnect);
        self
    }

    /// Whether to upgrade to TLS, and whom to trust then. Default: for `nbds://` and `nbds+unix://` as their parameters say,
    /// with the usual folders and the system's authorities for what they leave open; no TLS otherwise. Those URIs always
    /// mean [`ClientTlsMode::Required`], whatever is said here.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, mode: ClientTlsMode, tls: TlsClient) -> Self {
        self.tls = Some((mode, tls));
        self
    }

    #[cfg(feature = "tls")]
    pub(super) const fn tls(&self) -> Option<&(ClientTlsMode, TlsClient)> {
        self.tls.as_ref()
    }

    /// Bounds on what the server can make a connection hold, and on the requests in flight on it. Default
    /// [`Limits::DEFAULT`].
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Requests in flight on one connection; those beyond wait on this side. Sets [`Limits::max_in_flight`], which is
    /// 128 by default; zero means 1.
    #[must_use]
    pub const fn with_max_in_flight(mut self, requests: u32) -> Self {
        self.limits.max_in_flight = if requests == 0 { 1 } else { requests };
        self
    }

    /// See [`with_contexts`](Self::with_contexts).
    #[must_use]
    pub fn contexts(&self) -> &[String] {
        &self.contexts
    }

    /// See [`with_connections`](Self::with_connections).
    #[must_use]
    pub const fn connections(&self) -> usize {
        self.connections
    }

    /// See [`with_connect_timeout`](Self::with_connect_timeout).
    #[must_use]
    pub const fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// See [`with_request_timeout`](Self::with_request_timeout).
    #[must_use]
    pub const fn request_timeout(&self) -> Option<Duration> {
        self.request_timeout
    }

    /// See [`with_reconnect`](Self::with_reconnect).
    #[must_use]
    pub const fn reconnect(&self) -> Option<&Reconnect> {
        self.reconnect.as_ref()
    }

    /// See [`with_limits`](Self::with_limits).
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) const fn is_stream_in_tls(&self) -> bool {
        self.stream_in_tls
    }

    /// How long to poll, on a runtime whose default is `default`.
    pub(super) fn busy_poll(&self, default: Duration) -> Duration {
        self.busy_poll.unwrap_or(default)
    }

    /// The configuration of the protocol's machine: it prepares, and leaves the choice of the export to the engine.
    pub(super) fn protocol(&self) -> Config {
        let mut config = Config::default();
        config.limits = self.limits;
        config.goal = Goal::Prepare;
        config.contexts = self.contexts.clone();
        config.extended_headers = self.extended_headers;
        config.structured_replies = self.structured_replies;
        config.oldstyle = self.oldstyle;
        config.info = INFO.into();
        #[cfg(feature = "tls")]
        if let Some((mode, _)) = &self.tls {
            config.tls = *mode;
        }
        config
    }
}

/// What is asked about an export, on entering and otherwise.
pub(super) const INFO: [InfoType; 3] =
    [InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
