//! What metrics were at a moment.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::Ending;
use crate::export::ClientInfo;
use crate::metrics::{ErrorKind, LatencyHistogram, RequestKind};

/// What a server has counted so far, and what it was doing at a moment.
///
/// A count never goes down from one snapshot to the next one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MetricsSnapshot {
    /// When the metrics were made, mostly with the server.
    pub started: SystemTime,
    /// How long ago that is, by a clock that nobody sets.
    pub uptime: Duration,
    /// What was counted by export. At most [`Metrics::MAX_EXPORTS`](super::Metrics::MAX_EXPORTS) of them have a name of
    /// their own; all others are [`Metrics::OTHER_EXPORTS`](super::Metrics::OTHER_EXPORTS) together, and so are those
    /// with a name longer than [`Metrics::MAX_EXPORT_NAME`](super::Metrics::MAX_EXPORT_NAME) bytes.
    pub exports: BTreeMap<String, ExportMetrics>,
    /// Connections.
    pub connections: ConnectionMetrics,
    /// Bytes received, inside of TLS where there is any.
    pub received_bytes: u64,
    /// Bytes sent, inside of TLS where there is any.
    pub sent_bytes: u64,
    /// Handshakes of TLS that succeeded.
    pub tls_handshakes: u64,
    /// Handshakes of TLS that failed.
    pub tls_failures: u64,
    /// Requests that were not finished when the time to shut down was over.
    pub requests_cut_off: u64,
    /// Bytes of buffers for requests that connections use.
    pub buffer_bytes: u64,
    /// The bound on them.
    pub max_buffer_bytes: u64,
    /// Worker threads.
    pub workers: WorkerMetrics,
}

/// Connections of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionMetrics {
    /// Connections at the moment.
    pub current: u64,
    /// The maximum.
    pub max: u64,
    /// Connections that were served, those at the moment included.
    pub accepted: u64,
    /// Connections that were refused, since there were as many as may be.
    pub refused: u64,
    /// Connections of peers that may not connect.
    pub denied: u64,
    /// Failures to accept a connection, such as for want of file descriptors.
    pub accept_failures: u64,
    /// Connections that ended, by how they did: an entry for each way, those of which there were none included.
    pub ended: BTreeMap<Ending, u64>,
}

/// What was done with an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportMetrics {
    /// Connections that use it at the moment.
    pub connections: u64,
    /// What was counted by command; commands that never came are left out.
    pub requests: BTreeMap<RequestKind, RequestMetrics>,
}

/// Requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestMetrics {
    /// Requests that were received, those that were refused included.
    pub requests: u64,
    /// Requests of connections at the moment that were given to the export and are not answered in whole.
    pub in_flight: u64,
    /// Bytes that requests which were answered with success have read or written, or, of other commands, were about: at most
    /// [`u64::MAX`], at which it stays.
    pub bytes: u64,
    /// Requests that were answered with an error.
    pub errors: BTreeMap<ErrorKind, u64>,
    /// How long requests that were given to the export took: from when they were received, with their payload, until the
    /// last byte of the reply was handed to the transport. Requests that the server answered without the export, since
    /// they were invalid or about no bytes, are not among them.
    pub latencies: LatencyHistogram,
}

/// Worker threads of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerMetrics {
    /// Threads that run, busy or idle.
    pub threads: u64,
    /// Threads that carry out a request.
    pub busy: u64,
    /// Requests that wait for a thread.
    pub waiting: u64,
    /// Threads that exports compete for, at most:
    /// [`ServerConfig::with_max_workers`](crate::server::ServerConfig::with_max_workers).
    pub max: u64,
}

/// A connection of a server at a moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionStatus {
    /// The client.
    pub client: ClientInfo,
    /// The export that it uses, as in [`MetricsSnapshot::exports`]; `None` during the negotiation.
    pub export: Option<String>,
    /// How long ago the client connected.
    pub age: Duration,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests that were received.
    pub requests: u64,
    /// Requests that were answered with an error.
    pub errors: u64,
    /// Bytes received, inside of TLS where there is any.
    pub received_bytes: u64,
    /// Bytes sent, inside of TLS where there is any.
    pub sent_bytes: u64,
    /// Bytes of buffers in use.
    pub buffer_bytes: u64,
}

/// What a server can say of itself at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::server) struct Load {
    pub(in crate::server) max_connections: u64,
    pub(in crate::server) max_buffer_bytes: u64,
    pub(in crate::server) workers: WorkerMetrics,
}

impl Load {
    pub(super) const fn add(&mut self, other: Self) {
        self.max_connections = self.max_connections.saturating_add(other.max_connections);
        self.max_buffer_bytes = self.max_buffer_bytes.saturating_add(other.max_buffer_bytes);
        self.workers.threads += other.workers.threads;
        self.workers.busy += other.workers.busy;
        self.workers.waiting += other.workers.waiting;
        self.workers.max = self.workers.max.saturating_add(other.workers.max);
    }
}
