//! What the task of a connection writes its counters by.

use std::sync::Arc;
use std::time::Instant;

use event_listener::EventListener;
use nbd_proto::Command;
use nbd_proto::server::SelfAnswered;
use nbd_proto::wire::ErrorCode;

use super::Metrics;
use super::counters::ConnectionCounters;
use crate::metrics::{ErrorKind, RequestKind};

/// The clock of a runtime.
pub(super) type Clock = Box<dyn Fn() -> Instant + Send + Sync>;

/// A request that was given to the export.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Started {
    kind: RequestKind,
    /// Bytes that count once it has succeeded.
    bytes: u64,
    /// When it was received, in nanoseconds since the recorder's epoch.
    time: u64,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Progress {
    /// Bytes received so far.
    pub(in crate::server) received: u64,
    /// Bytes sent so far.
    pub(in crate::server) sent: u64,
    /// Requests in flight.
    pub(in crate::server) in_flight: usize,
    /// Bytes of buffers in use.
    pub(in crate::server) buffers: usize,
}

/// Counts what a connection does.
///
/// The clock is read once for all requests that come with one receive call, and once for all replies that leave with one
/// send call.
pub(in crate::server) struct Recorder {
    metrics: Metrics,
    connection: Arc<ConnectionCounters>,
    clock: Clock,
    epoch: Instant,
    /// When the latest bytes were received, if that is known yet.
    received: Option<u64>,
    /// When the latest bytes were sent, if that is known yet.
    sent: Option<u64>,
    /// How often the core has answered by itself, as far as that was counted, by entry of its list.
    self_answered: Vec<u64>,
}

impl Recorder {
    pub(super) fn new(metrics: Metrics, connection: Arc<ConnectionCounters>, clock: Clock) -> Self {
        let epoch = clock();
        Self {
            metrics,
            connection,
            clock,
            epoch,
            received: None,
            sent: None,
            self_answered: Vec::new(),
        }
    }

    pub(super) const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn connection(&self) -> &ConnectionCounters {
        &self.connection
    }

    /// The client has proved who it is, by TLS.
    #[cfg(feature = "tls")]
    pub(in crate::server) fn identified(&self, identity: crate::export::TlsIdentity) {
        self.connection.client().tls = Some(identity);
    }

    fn now(clock: &Clock, epoch: Instant) -> u64 {
        // In 64 bits there is room for centuries.
        clock().saturating_duration_since(epoch).as_nanos() as u64
    }

    /// Whether the connection is to end by itself: see [`Metrics::disconnect`].
    pub(in crate::server) fn is_disconnected(&self) -> bool {
        self.connection.is_disconnected()
    }

    /// Is notified once the connection is to end.
    pub(in crate::server) fn disconnect_listener(&self) -> EventListener {
        self.connection.disconnect_listener()
    }

    /// Bytes were received.
    #[inline]
    pub(in crate::server) const fn received(&mut self) {
        self.received = None;
    }

    /// A request is complete and given to the export.
    #[inline]
    pub(in crate::server) fn started(&mut self, command: &Command) -> Option<Started> {
        let table = self.connection.requests.get()?;
        let kind = RequestKind::of(command);
        table[kind.index()].started.add(1);
        let (clock, epoch) = (&self.clock, self.epoch);
        let time = *self.received.get_or_insert_with(|| Self::now(clock, epoch));
        Some(Started { kind, bytes: command.length(), time })
    }

    /// The request is answered with an error.
    #[cold]
    pub(in crate::server) fn failed(&self, started: &mut Started, code: ErrorCode) {
        started.bytes = 0;
        if let Some(table) = self.connection.requests.get() {
            table[started.kind.index()].errors[ErrorKind::of(code).index()].add(1);
        }
    }

    /// The last byte of its reply was handed to the transport.
    #[inline]
    pub(in crate::server) fn finished(&mut self, started: Started) {
        let (clock, epoch) = (&self.clock, self.epoch);
        let now = *self.sent.get_or_insert_with(|| Self::now(clock, epoch));
        if let Some(table) = self.connection.requests.get() {
            let counters = &table[started.kind.index()];
            counters.bytes.add(started.bytes);
            counters.latencies.record(now.saturating_sub(started.time));
        }
    }

    /// Bytes were sent, and all requests that ended with them are counted.
    #[inline]
    pub(in crate::server) const fn sent(&mut self) {
        self.sent = None;
    }

    /// Shows others how far the connection is: once in each turn.
    #[inline]
    pub(in crate::server) fn publish(&mut self, progress: &Progress, answered: &[SelfAnswered]) {
        self.connection.received.set(progress.received);
        self.connection.sent.set(progress.sent);
        self.connection.in_flight.set(progress.in_flight as u64);
        self.connection.buffers.set(progress.buffers as u64);
        if !answered.is_empty() {
            self.count_self_answered(answered);
        }
    }

    /// Counts what the core has answered by itself since the last time.
    fn count_self_answered(&mut self, entries: &[SelfAnswered]) {
        // Entries keep their order, and new ones are added at the end.
        self.self_answered.resize(entries.len(), 0);
        let Some(table) = self.connection.requests.get() else { return };
        for (entry, counted) in entries.iter().zip(&mut self.self_answered) {
            let new = entry.count - core::mem::replace(counted, entry.count);
            if new == 0 {
                continue;
            }
            let counters = &table[RequestKind::of_type(entry.command).index()];
            counters.self_answered.add(new);
            if entry.error != ErrorCode::OK {
                counters.errors[ErrorKind::of(entry.error).index()].add(new);
            }
        }
    }
}
