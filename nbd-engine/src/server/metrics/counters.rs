//! The counters of one connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use event_listener::{Event, EventListener};

use super::snapshot::{ConnectionStatus, RequestMetrics};
use crate::export::ClientInfo;
use crate::metrics::{Cell, ErrorKind, Latencies, RequestKind};

/// The requests of one kind.
#[derive(Debug, Default)]
pub(super) struct RequestCounters {
    /// Requests that were given to the export.
    pub(super) started: Cell,
    /// Requests that the core answered by itself.
    pub(super) self_answered: Cell,
    /// Bytes that were read or written, or that other commands were about, by requests that succeeded.
    pub(super) bytes: Cell,
    /// Requests that were given to the export and whose reply was handed to the transport.
    pub(super) latencies: Latencies,
    pub(super) errors: [Cell; ErrorKind::COUNT],
}

impl RequestCounters {
    /// Adds what was counted so far.
    pub(super) fn add_to(&self, total: &mut RequestMetrics) {
        self.latencies.add_to(&mut total.latencies);
        total.bytes = total.bytes.saturating_add(self.bytes.get());
        for (kind, errors) in ErrorKind::ALL.iter().zip(&self.errors) {
            let errors = errors.get();
            if errors > 0 {
                *total.errors.entry(*kind).or_default() += errors;
            }
        }
        // Last, so that no more requests have been answered than have come.
        total.requests += self.started.get() + self.self_answered.get();
    }

    /// Requests whose reply is not yet handed to the transport.
    pub(super) fn in_flight(&self) -> u64 {
        let answered = self.latencies.count();
        self.started.get().saturating_sub(answered)
    }

    pub(super) fn is_used(&self) -> bool {
        self.started.get() > 0 || self.self_answered.get() > 0
    }
}

/// The requests of a connection, by kind.
pub(super) type RequestTable = [RequestCounters; RequestKind::COUNT];

/// The counters of a connection, and who it is.
#[derive(Debug)]
pub(super) struct ConnectionCounters {
    client: Mutex<ClientInfo>,
    since: Instant,
    /// The name under which its requests are counted, once it uses an export.
    pub(super) export: OnceLock<Box<str>>,
    /// Bytes received and sent; inside of TLS, once that has begun.
    pub(super) received: Cell,
    pub(super) sent: Cell,
    /// Requests in flight.
    pub(super) in_flight: Cell,
    /// Bytes of buffers in use.
    pub(super) buffers: Cell,
    /// Whether the connection is to end, and what its task is woken by then.
    disconnected: AtomicBool,
    disconnect: Event,
    /// Made when the connection enters an export: not all do.
    pub(super) requests: OnceLock<Box<RequestTable>>,
}

impl ConnectionCounters {
    pub(super) fn new(client: ClientInfo) -> Self {
        Self {
            client: Mutex::new(client),
            since: Instant::now(),
            export: OnceLock::new(),
            received: Cell::new(),
            sent: Cell::new(),
            in_flight: Cell::new(),
            buffers: Cell::new(),
            disconnected: AtomicBool::new(false),
            disconnect: Event::new(),
            requests: OnceLock::new(),
        }
    }

    /// Has the connection end as if the server shut down.
    pub(super) fn disconnect(&self) {
        self.disconnected.store(true, Ordering::Release);
        self.disconnect.notify(usize::MAX);
    }

    /// Whether the connection is to end.
    pub(super) fn is_disconnected(&self) -> bool {
        self.disconnected.load(Ordering::Acquire)
    }

    /// Is notified once the connection is to end.
    pub(super) fn disconnect_listener(&self) -> EventListener {
        self.disconnect.listen()
    }

    pub(super) fn client(&self) -> MutexGuard<'_, ClientInfo> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the connection is doing.
    pub(super) fn status(&self) -> ConnectionStatus {
        let mut total = RequestMetrics::default();
        self.used().for_each(|(_, counters)| counters.add_to(&mut total));
        ConnectionStatus {
            client: self.client().clone(),
            export: self.export.get().map(|name| name.to_string()),
            age: self.since.elapsed(),
            in_flight: self.in_flight.get(),
            requests: total.requests,
            errors: total.errors.values().sum(),
            received_bytes: self.received.get(),
            sent_bytes: self.sent.get(),
            buffer_bytes: self.buffers.get(),
        }
    }

    /// The counters of the kinds that there were.
    pub(super) fn used(&self) -> impl Iterator<Item = (RequestKind, &RequestCounters)> {
        let table = self.requests.get().into_iter().flat_map(|table| table.iter());
        RequestKind::ALL.iter().copied().zip(table).filter(|(_, counters)| counters.is_used())
    }
}
