//! How a server behaves towards its clients.

use core::time::Duration;

use nbd_proto::Limits;
use nbd_proto::server::Config;

use super::Metrics;
use super::budget::BufferBudget;
use crate::net::Access;
#[cfg(feature = "tls")]
use crate::tls::{ServerTlsMode, TlsServer};
use crate::{memory_limit, net};

/// What a server offers, its bounds and its deadlines.
///
/// ```
/// use nbd_engine::server::ServerConfig;
/// use std::time::Duration;
///
/// let config = ServerConfig::new()
///     .with_max_connections(16)
///     .with_handshake_timeout(Duration::from_secs(5));
/// assert_eq!(config.max_connections(), 16);
/// ```
///
/// What a peer sees of a bound or a deadline that it reaches:
///
/// | bound | default | the client sees |
/// | --- | --- | --- |
/// | [connections](Self::with_max_connections) | 1024 | the connection is closed after a [second](Self::with_admission_timeout) |
/// | [threads](Self::with_max_workers) | 16, and 2 for each export | slower replies |
/// | [memory for buffers](Self::with_max_buffer_memory) | an eighth of what is available | requests are received later |
/// | [each connection](Self::with_limits) | [`Limits`] | requests are received later |
/// | [handshake](Self::with_handshake_timeout) | 30 s | the connection is closed |
/// | [no progress](Self::with_stall_timeout) | 60 s | the connection is closed |
/// | [no progress while others wait](Self::with_crowded_timeout) | 10 s, 2 s without a byte | the connection is closed |
/// | [idle while others wait for a slot](Self::with_idle_timeout) | 60 s | the connection is closed |
/// | [shutdown](Self::with_drain_timeout) | 10 s | the connection is closed |
///
/// A request that an export never finishes keeps its connection, and the slot: a client that disconnects is owed its replies,
/// and one that vanishes on TCP is only known to be gone after a minute or two. An export that may hang needs a deadline of
/// its own.
///
/// A server holds at most about
///
/// ```text
/// the bound on buffers
///   + max_connections * 400 KiB    receive buffers, options, headers and texts that wait to be sent
///   + what clients of hanging exports had in flight when they went
/// ```
///
/// besides what its exports hold, and a connection that is idle for a few seconds holds at most 256 KiB.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    protocol: Config,
    #[cfg(feature = "tls")]
    tls: Option<TlsServer>,
    max_connections: usize,
    admission_timeout: Duration,
    handshake_timeout: Duration,
    drain_timeout: Duration,
    hang_up: bool,
    stall_timeout: Duration,
    crowded_timeout: Duration,
    min_transfer_rate: u64,
    idle_timeout: Option<Duration>,
    max_workers: usize,
    max_buffer_memory: Option<u64>,
    resize: bool,
    busy_poll: Option<Duration>,
    backlog: u32,
    access: Access,
    metrics: Option<Metrics>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            protocol: Config::default(),
            #[cfg(feature = "tls")]
            tls: None,
            max_connections: 1024,
            admission_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            hang_up: false,
            stall_timeout: Duration::from_secs(60),
            crowded_timeout: Duration::from_secs(10),
            min_transfer_rate: 16 << 10,
            idle_timeout: Some(Duration::from_secs(60)),
            max_workers: 16,
            max_buffer_memory: None,
            resize: true,
            busy_poll: None,
            backlog: net::DEFAULT_BACKLOG,
            access: Access::new(),
            metrics: None,
        }
    }
}

impl ServerConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bounds on what one client can make its connection hold. Default [`Limits::DEFAULT`].
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.protocol.limits = limits;
        self
    }

    /// Which peers may connect; others are disconnected before they are sent a byte. Default: all. Applies to connections
    /// that the server accepts, not to streams that the embedder brings. The adapters have [`Access`] at their roots.
    ///
    /// ```
    /// use nbd_engine::net::Access;
    /// use nbd_engine::server::ServerConfig;
    ///
    /// let config = ServerConfig::new().with_access(Access::new().allow("192.0.2.0/24".parse()?));
    /// # Ok::<(), nbd_engine::net::InvalidNetwork>(())
    /// ```
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Whether structured replies are offered, and with them metadata contexts. Default `true`.
    #[must_use]
    pub const fn with_structured_replies(mut self, offered: bool) -> Self {
        self.protocol.structured_replies = offered;
        self
    }

    /// Whether extended headers are offered. Default `true`.
    #[must_use]
    pub const fn with_extended_headers(mut self, offered: bool) -> Self {
        self.protocol.extended_headers = offered;
        self
    }

    /// Whether clients can, or must, upgrade to TLS before they see an export, and by which certificate. Default: there
    /// is no TLS. With [`ServerTlsMode::Available`] exports that [require
    /// it](crate::export::ExportEntry::with_tls_required) are refused in the clear; everything else is open to all
    /// clients. Oldstyle clients have no TLS.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, mode: ServerTlsMode, tls: TlsServer) -> Self {
        self.protocol.tls = mode;
        self.tls = Some(tls);
        self
    }

    /// Whether a write under extended headers is refused when it lacks `NBD_CMD_FLAG_PAYLOAD_LEN`, as the specification
    /// would have it. Default `false`, since qemu 10 does not set the flag.
    #[must_use]
    pub const fn with_payload_flag_required(mut self, required: bool) -> Self {
        self.protocol.require_payload_flag = required;
        self
    }

    /// Connections at a time. Default 1024; 0 means 1. With 1, no export is announced as one for several connections
    /// of a client (`CAN_MULTI_CONN`).
    #[must_use]
    pub const fn with_max_connections(mut self, count: usize) -> Self {
        self.max_connections = if count == 0 { 1 } else { count };
        self
    }

    /// How long listeners let connections above [the bound](Self::with_max_connections) wait for others to end, counted
    /// from the first of those that wait in a row; then they are closed, so that a client sees that it is refused.
    /// Default 1 second; zero refuses at once, [`Duration::MAX`] waits without end.
    #[must_use]
    pub const fn with_admission_timeout(mut self, timeout: Duration) -> Self {
        self.admission_timeout = timeout;
        self
    }

    /// How long a client may take from connecting to choosing an export, besides a second for each export that was
    /// listed to it. Default 30 seconds; [`Duration::MAX`] waits without end.
    #[must_use]
    pub const fn with_handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How long requests in flight may take once the server shuts down, or the export is
    /// [withdrawn](crate::export::Withdrawal); then their connections are closed. Default 10 seconds; [`Duration::MAX`]
    /// waits without end.
    #[must_use]
    pub const fn with_drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Whether clients are hung up on when the server shuts down, the export is [withdrawn](crate::export::Withdrawal), or
    /// they are to go for another reason. By default their later requests are answered with `NBD_ESHUTDOWN`, as the
    /// specification wants it, by which a client learns that it has to leave. But qemu and the kernel take that for a fault
    /// of the disk. With `true` no more requests are received, and the connection is closed once those that were have been
    /// answered: qemu with `reconnect-delay` connects again then, and sends anew what was not answered.
    ///
    /// What an export itself answers with [`ErrorCode::ESHUTDOWN`](crate::export::ErrorCode::ESHUTDOWN) is passed on in any
    /// case.
    #[must_use]
    pub const fn with_hang_up(mut self, hang_up: bool) -> Self {
        self.hang_up = hang_up;
        self
    }

    /// How long a client may go on too slowly, by the [transfer rate](Self::with_min_transfer_rate), with a request
    /// that it has begun to send, or with replies that wait for it. Time in which the server itself does not run,
    /// stopped by a signal for example, does not count. Default 60 seconds; [`Duration::MAX`] waits without end.
    #[must_use]
    pub const fn with_stall_timeout(mut self, timeout: Duration) -> Self {
        self.stall_timeout = timeout;
        self
    }

    /// What replaces the [stall timeout](Self::with_stall_timeout) for a client that holds buffers while others wait
    /// for some, and for one that has said that it sends no more requests, or closed its side; a client that holds
    /// buffers while others wait and moves not a single byte has a fifth of it. Default 10 seconds; no longer than the
    /// stall timeout in any case.
    #[must_use]
    pub const fn with_crowded_timeout(mut self, timeout: Duration) -> Self {
        self.crowded_timeout = timeout;
        self
    }

    /// Bytes per second below which a transfer counts as stalled. Default 16 KiB; 0 counts a single byte as progress.
    #[must_use]
    pub const fn with_min_transfer_rate(mut self, bytes_per_second: u64) -> Self {
        self.min_transfer_rate = bytes_per_second;
        self
    }

    /// How long a client may be idle while others wait for a slot among the
    /// [connections](Self::with_max_connections). It takes effect up to some seconds later. Default 60 seconds; `None` lets
    /// idle clients stay in any case.
    #[must_use]
    pub const fn with_idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Threads that exports which may block compete for, started when needed. One connection occupies at most three
    /// quarters of them; besides, each export gets two when all are occupied by others. Default 16; 0 means 1.
    #[must_use]
    pub const fn with_max_workers(mut self, count: usize) -> Self {
        self.max_workers = if count == 0 { 1 } else { count };
        self
    }

    /// Bytes of request and reply data that all connections may hold together. `None`, the default, stands for an
    /// eighth of the memory that the process may still use when the server is made (control groups, `ulimit` and the
    /// machine), at most 4 GiB. Never less than twice the longest payload, so that each request can be served.
    ///
    /// Each connection has a small share of its own; the rest is granted in turn, and no connection gets more than is
    /// left for others. A client that has to wait is received later, without an error.
    #[must_use]
    pub const fn with_max_buffer_memory(mut self, bytes: Option<u64>) -> Self {
        self.max_buffer_memory = bytes;
        self
    }

    /// Whether clients may resize exports that [can be resized](crate::export::CanResize). Default `true`: it is for
    /// the export to say. Any client could then cut a disk off that others use, so that a server of disks for many
    /// clients should say no.
    #[must_use]
    pub const fn with_resize(mut self, allowed: bool) -> Self {
        self.resize = allowed;
        self
    }

    /// How long a connection whose client is quick asks for the next request before it goes to sleep, which spares both
    /// sides the cost of waking it. It never happens on a single processor, nor for more connections at a time than
    /// half of the processors. The thread is occupied meanwhile: choose microseconds; zero turns it off. `None`, the
    /// default, stands for 30 microseconds where a connection has a thread of its own, and for not at all where it
    /// shares one with other tasks.
    #[must_use]
    pub const fn with_busy_poll(mut self, limit: Option<Duration>) -> Self {
        self.busy_poll = limit;
        self
    }

    /// Connections to a socket that the system holds until the server accepts them, for sockets that the server binds
    /// itself. Those that come when the queue is full are refused or wait, as the system has it. Default 4096, which is
    /// also the maximum of Linux by default (`net.core.somaxconn`).
    #[must_use]
    pub const fn with_backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Counts requests, connections and bytes here. By default nothing is counted, and no clock is read for requests.
    #[must_use]
    pub fn with_metrics(mut self, metrics: &Metrics) -> Self {
        self.metrics = Some(metrics.clone());
        self
    }

    /// See [`with_limits`](Self::with_limits).
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.protocol.limits
    }

    /// See [`with_max_connections`](Self::with_max_connections).
    #[must_use]
    pub const fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// See [`with_admission_timeout`](Self::with_admission_timeout).
    #[must_use]
    pub const fn admission_timeout(&self) -> Duration {
        self.admission_timeout
    }

    /// See [`with_handshake_timeout`](Self::with_handshake_timeout).
    #[must_use]
    pub const fn handshake_timeout(&self) -> Duration {
        self.handshake_timeout
    }

    /// See [`with_access`](Self::with_access).
    #[must_use]
    pub const fn access(&self) -> &Access {
        &self.access
    }

    /// See [`with_drain_timeout`](Self::with_drain_timeout).
    #[must_use]
    pub const fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// See [`with_hang_up`](Self::with_hang_up).
    #[must_use]
    pub const fn hangs_up(&self) -> bool {
        self.hang_up
    }

    /// See [`with_backlog`](Self::with_backlog).
    #[must_use]
    pub const fn backlog(&self) -> u32 {
        self.backlog
    }

    /// See [`with_metrics`](Self::with_metrics).
    #[must_use]
    pub const fn metrics(&self) -> Option<&Metrics> {
        self.metrics.as_ref()
    }

    #[cfg(feature = "tls")]
    pub(crate) const fn tls(&self) -> Option<&TlsServer> {
        self.tls.as_ref()
    }

    /// Whether all clients must upgrade to TLS.
    pub(crate) fn requires_tls(&self) -> bool {
        self.protocol.tls == nbd_proto::server::TlsMode::Required
    }

    pub(crate) const fn protocol(&self) -> &Config {
        &self.protocol
    }

    pub(crate) const fn stall_timeout(&self) -> Duration {
        self.stall_timeout
    }

    pub(crate) const fn crowded_timeout(&self) -> Duration {
        self.crowded_timeout
    }

    pub(crate) const fn min_transfer_rate(&self) -> u64 {
        self.min_transfer_rate
    }

    pub(crate) const fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout
    }

    pub(crate) const fn max_workers(&self) -> usize {
        self.max_workers
    }

    pub(crate) const fn resize(&self) -> bool {
        self.resize
    }

    /// The limit of busy polling on a runtime with that default.
    pub(crate) fn busy_poll(&self, default: Duration) -> Duration {
        self.busy_poll.unwrap_or(default)
    }

    /// The budget that all connections share.
    pub(crate) fn buffer_budget(&self) -> BufferBudget {
        let total = self
            .max_buffer_memory
            .unwrap_or_else(|| (memory_limit::available() / 8).min(MAX_DEFAULT_BUFFER_MEMORY));
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        BufferBudget::new(total, self.max_connections, self.limits().max_payload as usize)
    }
}

/// The largest default of [`ServerConfig::with_max_buffer_memory`]: what more than a hundred busy clients need.
const MAX_DEFAULT_BUFFER_MEMORY: u64 = 4 << 30;
