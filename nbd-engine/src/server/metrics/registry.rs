//! All connections of a server, and what those that ended have left behind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime};

use super::counters::ConnectionCounters;
use super::snapshot::{
    ConnectionMetrics, ConnectionStatus, ExportMetrics, Load, MetricsSnapshot, RequestMetrics,
};
use super::{Ending, Recorder};
use crate::export::ClientInfo;
use crate::metrics::RequestKind;
use crate::runtime::Runtime;

/// What a server counts. Cheap to clone: clones are the same counters.
///
/// Given to a server by [`ServerConfig::with_metrics`](crate::server::ServerConfig::with_metrics), it counts requests by
/// export and command, connections and bytes. Several servers that are given the same metrics are counted together.
///
/// ```
/// use nbd_engine::export::ExportMap;
/// use nbd_engine::server::{Metrics, ServerConfig, ServerState};
///
/// let metrics = Metrics::new();
/// let config = ServerConfig::new().with_metrics(&metrics);
/// let server = ServerState::new(ExportMap::new(), config);
/// assert_eq!(metrics.snapshot().connections.accepted, 0);
/// # drop(server);
/// ```
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    started: SystemTime,
    epoch: Instant,
    registry: Mutex<Registry>,
    refused: AtomicU64,
    denied: AtomicU64,
    accept_failures: AtomicU64,
    tls_handshakes: AtomicU64,
    tls_failures: AtomicU64,
    cut_off: AtomicU64,
}

#[derive(Default)]
struct Registry {
    servers: Vec<Weak<dyn Loaded>>,
    /// Connections that are served, by a number of their own.
    connections: BTreeMap<u64, Arc<ConnectionCounters>>,
    accepted: u64,
    ended: [u64; Ending::COUNT],
    /// What connections that ended had.
    received: u64,
    sent: u64,
    /// The same by export. Each export that a connection has entered is there.
    exports: BTreeMap<Box<str>, BTreeMap<RequestKind, RequestMetrics>>,
}

/// A server that can be asked how busy it is.
pub(in crate::server) trait Loaded: Send + Sync {
    fn load(&self) -> Load;
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Exports that are counted by name. So many names stay in memory, exports that are gone included.
    pub const MAX_EXPORTS: usize = 1000;

    /// Bytes of the longest name that an export is counted by.
    pub const MAX_EXPORT_NAME: usize = 255;

    /// What all other exports are counted as. An export that has this name is counted with them.
    pub const OTHER_EXPORTS: &str = "(other)";

    /// Metrics of a server that is to be started.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared {
            started: SystemTime::now(),
            epoch: Instant::now(),
            registry: Mutex::default(),
            refused: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            accept_failures: AtomicU64::new(0),
            tls_handshakes: AtomicU64::new(0),
            tls_failures: AtomicU64::new(0),
            cut_off: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.shared.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What servers report.

    /// A server that counts here.
    pub(in crate::server) fn add_server(&self, server: Weak<dyn Loaded>) {
        let mut registry = self.lock();
        registry.servers.retain(|server| server.strong_count() > 0);
        registry.servers.push(server);
    }

    /// A connection begins.
    pub(in crate::server) fn register(&self, client: &ClientInfo) -> Registration {
        let counters = Arc::new(ConnectionCounters::new(client.clone()));
        let mut registry = self.lock();
        let number = registry.accepted;
        registry.accepted += 1;
        registry.connections.insert(number, Arc::clone(&counters));
        drop(registry);
        Registration { metrics: self.clone(), counters, number, ending: Ending::Dropped }
    }

    pub(in crate::server) fn refused(&self) {
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::server) fn denied(&self) {
        self.shared.denied.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::server) fn accept_failed(&self) {
        self.shared.accept_failures.fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(feature = "tls")]
    pub(in crate::server) fn tls_began(&self, succeeded: bool) {
        let shared = &self.shared;
        let counter = if succeeded { &shared.tls_handshakes } else { &shared.tls_failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::server) fn cut_off(&self, requests: usize) {
        self.shared.cut_off.fetch_add(requests as u64, Ordering::Relaxed);
    }

    // What is asked.

    /// What was counted so far. Takes a lock for as long as it sums, which connections take when they begin and end,
    /// and not for requests.
    #[must_use]
    pub fn snapshot(&self) -> MetricsSnapshot {
        let shared = &self.shared;
        let registry = self.lock();
        let servers = registry.servers.clone();
        let mut exports = BTreeMap::new();
        for (name, requests) in &registry.exports {
            let requests = requests.clone();
            exports.insert(name.to_string(), ExportMetrics { connections: 0, requests });
        }
        let (mut received_bytes, mut sent_bytes) = (registry.received, registry.sent);
        let mut buffer_bytes = 0;
        for connection in registry.connections.values() {
            received_bytes += connection.received.get();
            sent_bytes += connection.sent.get();
            buffer_bytes += connection.buffers.get();
            let Some(name) = connection.export.get() else { continue };
            let Some(export) = exports.get_mut(&**name) else { continue };
            export.connections += 1;
            for (kind, counters) in connection.used() {
                let total = export.requests.entry(kind).or_default();
                counters.add_to(total);
                total.in_flight += counters.in_flight();
            }
        }
        let connections = ConnectionMetrics {
            current: registry.connections.len() as u64,
            max: 0,
            accepted: registry.accepted,
            refused: shared.refused.load(Ordering::Relaxed),
            denied: shared.denied.load(Ordering::Relaxed),
            accept_failures: shared.accept_failures.load(Ordering::Relaxed),
            ended: Ending::ALL.iter().copied().zip(registry.ended).collect(),
        };
        drop(registry);
        let mut load = Load::default();
        servers.iter().filter_map(Weak::upgrade).for_each(|server| load.add(server.load()));
        MetricsSnapshot {
            started: shared.started,
            uptime: shared.epoch.elapsed(),
            exports,
            connections: ConnectionMetrics { max: load.max_connections, ..connections },
            received_bytes,
            sent_bytes,
            tls_handshakes: shared.tls_handshakes.load(Ordering::Relaxed),
            tls_failures: shared.tls_failures.load(Ordering::Relaxed),
            requests_cut_off: shared.cut_off.load(Ordering::Relaxed),
            buffer_bytes,
            max_buffer_bytes: load.max_buffer_bytes,
            workers: load.workers,
        }
    }

    /// Ends the connection of that [number](ClientInfo::connection) as if the server shut down, for this client alone:
    /// requests in flight are finished within
    /// [`ServerConfig::with_drain_timeout`](crate::server::ServerConfig::with_drain_timeout), later ones are answered
    /// with `ESHUTDOWN`. Returns at once; `false` if there is no such connection. The client may connect again.
    pub fn disconnect(&self, connection: u64) -> bool {
        let connections: Vec<_> = self.lock().connections.values().cloned().collect();
        let found = connections.iter().filter(|one| one.client().connection == connection);
        found.map(|one| one.disconnect()).count() > 0
    }

    /// The connections at the moment, the oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionStatus> {
        let connections: Vec<_> = self.lock().connections.values().cloned().collect();
        connections.iter().map(|connection| connection.status()).collect()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("started", &self.shared.started).finish_non_exhaustive()
    }
}

impl Registry {
    /// The name that an export is counted by; it is in the list afterwards.
    fn name_of(&mut self, export: &str) -> Box<str> {
        let known = self.exports.contains_key(export);
        let fits = export.len() <= Metrics::MAX_EXPORT_NAME
            && (known || self.exports.len() < Metrics::MAX_EXPORTS);
        let name: Box<str> = if fits { export } else { Metrics::OTHER_EXPORTS }.into();
        self.exports.entry(name.clone()).or_default();
        name
    }
}

/// A connection that is being served. When this is dropped, it has ended.
pub(in crate::server) struct Registration {
    metrics: Metrics,
    counters: Arc<ConnectionCounters>,
    number: u64,
    ending: Ending,
}

impl Registration {
    /// What the connection's task counts by, measuring time by the clock of its runtime.
    pub(in crate::server) fn recorder(&self, runtime: &impl Runtime) -> Recorder {
        let runtime = runtime.clone();
        let counters = Arc::clone(&self.counters);
        Recorder::new(self.metrics.clone(), counters, Box::new(move || runtime.now()))
    }

    /// How the connection has ended.
    pub(in crate::server) const fn ended(&mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut guard = self.metrics.lock();
        let registry = &mut *guard;
        registry.connections.remove(&self.number);
        registry.ended[self.ending.index()] += 1;
        registry.received += self.counters.received.get();
        registry.sent += self.counters.sent.get();
        let Some(name) = self.counters.export.get() else { return };
        let Some(export) = registry.exports.get_mut(name) else { return };
        for (kind, counters) in self.counters.used() {
            counters.add_to(export.entry(kind).or_default());
        }
    }
}

impl Recorder {
    /// The connection begins to use an export: from now on requests are counted.
    pub(in crate::server) fn entered(&self, export: &str) {
        let connection = self.connection();
        let _made = connection.requests.get_or_init(Box::default);
        let name = self.metrics().lock().name_of(export);
        // A connection enters one export only.
        let _first = connection.export.set(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::BoxFuture;

    #[derive(Clone)]
    struct Still;

    impl Runtime for Still {
        fn sleep(&self, _: core::time::Duration) -> BoxFuture {
            Box::pin(core::future::pending())
        }

        fn spawn(&self, _: BoxFuture) {}
    }

    /// A connection that enters an export and reads once.
    fn visit(metrics: &Metrics, export: &str) -> Registration {
        let registration = metrics.register(&ClientInfo::new(0, "test".into()));
        let mut recorder = registration.recorder(&Still);
        recorder.entered(export);
        let started = recorder.started(&nbd_proto::Command::read(0, 512)).unwrap();
        recorder.finished(started);
        recorder.sent();
        registration
    }

    fn reads(snapshot: &MetricsSnapshot, export: &str) -> u64 {
        snapshot.exports[export].requests[&RequestKind::Read].requests
    }

    #[test]
    fn exports_beyond_the_bound_and_long_names_are_counted_together() {
        let metrics = Metrics::new();
        let long = "x".repeat(Metrics::MAX_EXPORT_NAME + 1);
        drop(visit(&metrics, &long));
        drop(visit(&metrics, &long[1..]));
        for number in 0..Metrics::MAX_EXPORTS + 10 {
            drop(visit(&metrics, &number.to_string()));
        }
        drop(visit(&metrics, "0"));
        drop(visit(&metrics, Metrics::OTHER_EXPORTS));
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.exports.len(), Metrics::MAX_EXPORTS);
        assert_eq!((reads(&snapshot, "0"), reads(&snapshot, &long[1..])), (2, 1));
        assert_eq!(reads(&snapshot, Metrics::OTHER_EXPORTS), 1 + 12 + 1);
    }

    #[test]
    fn what_a_connection_counted_stays_when_it_ends() {
        let metrics = Metrics::new();
        let mut open = visit(&metrics, "disk");
        let before = metrics.snapshot();
        assert_eq!((before.connections.current, reads(&before, "disk")), (1, 1));
        open.ended(Ending::Displaced);
        drop(open);
        drop(visit(&metrics, "disk"));
        let after = metrics.snapshot();
        assert_eq!((after.connections.current, after.connections.accepted), (0, 2));
        assert_eq!((reads(&after, "disk"), after.exports["disk"].connections), (2, 0));
        assert_eq!(after.connections.ended[&Ending::Displaced], 1);
        assert_eq!(after.connections.ended[&Ending::Dropped], 1);
        assert_eq!(after.connections.ended.len(), Ending::ALL.len());
    }
}
