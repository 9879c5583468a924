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

/// Requests of one kind that were received together: with many in flight, most of those that end together are.
#[derive(Clone, Copy, Debug)]
struct Run {
    kind: RequestKind,
    /// When they were received.
    time: u64,
    count: u64,
    bytes: u64,
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
/// send call. Requests of one kind that come together, or end together, are added to the counters at once: what others see
/// lags behind by a turn of the connection at most.
pub(in crate::server) struct Recorder {
    metrics: Metrics,
    connection: Arc<ConnectionCounters>,
    clock: Clock,
    epoch: Instant,
    /// When the latest bytes were received, if that is known yet.
    received: Option<u64>,
    /// When the latest bytes were sent, if that is known yet.
    sent: Option<u64>,
    /// Requests that were given to the export and are not counted yet; their time is of no meaning.
    starting: Option<Run>,
    /// Requests that have ended by the latest bytes and are not counted yet.
    ending: Option<Run>,
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
            starting: None,
            ending: None,
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
        self.connection.requests.get()?;
        let kind = RequestKind::of(command);
        let time = match (&mut self.starting, self.received) {
            (Some(run), Some(time)) if run.kind == kind => {
                run.count += 1;
                time
            }
            _ => self.begin_starting(kind),
        };
        Some(Started { kind, bytes: command.length(), time })
    }

    /// The first request of a kind, or since the latest bytes were received; gives the time of these.
    #[inline(never)]
    fn begin_starting(&mut self, kind: RequestKind) -> u64 {
        self.count_starting();
        let (clock, epoch) = (&self.clock, self.epoch);
        let time = *self.received.get_or_insert_with(|| Self::now(clock, epoch));
        self.starting = Some(Run { kind, time, count: 1, bytes: 0 });
        time
    }

    fn count_starting(&mut self) {
        let Some(run) = self.starting.take() else { return };
        if let Some(table) = self.connection.requests.get() {
            table[run.kind.index()].started.add(run.count);
        }
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
        match &mut self.ending {
            Some(run) if run.kind == started.kind && run.time == started.time => {
                run.count += 1;
                run.bytes = run.bytes.saturating_add(started.bytes);
            }
            _ => self.begin_ending(started),
        }
    }

    #[inline(never)]
    fn begin_ending(&mut self, Started { kind, bytes, time }: Started) {
        self.count_ending();
        self.ending = Some(Run { kind, time, count: 1, bytes });
    }

    /// Counts the requests that have ended, as of now.
    fn count_ending(&mut self) {
        let Some(run) = self.ending.take() else { return };
        // None may seem to have ended that has not begun.
        self.count_starting();
        let (clock, epoch) = (&self.clock, self.epoch);
        let now = *self.sent.get_or_insert_with(|| Self::now(clock, epoch));
        if let Some(table) = self.connection.requests.get() {
            let counters = &table[run.kind.index()];
            counters.bytes.add(run.bytes);
            counters.latencies.record(now.saturating_sub(run.time), run.count);
        }
    }

    /// Bytes were sent, and all requests that ended with them are reported.
    #[inline]
    pub(in crate::server) fn sent(&mut self) {
        self.count_ending();
        self.sent = None;
    }

    /// Shows others how far the connection is: once in each turn.
    #[inline]
    pub(in crate::server) fn publish(&mut self, progress: &Progress, answered: &[SelfAnswered]) {
        self.count_starting();
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

/// What was given to the export and is not answered any more was received nevertheless.
impl Drop for Recorder {
    fn drop(&mut self) {
        self.count_ending();
        self.count_starting();
    }
}
