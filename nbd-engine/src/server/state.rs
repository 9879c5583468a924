//! What all connections of a server share: the exports, the workers, the budget of buffers, the count of connections,
//! the way to shut down.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use event_listener::{Event, EventListener, IntoNotification as _};

use super::budget::BufferBudget;
use super::metrics::{Load, Loaded, Metrics, WorkerMetrics};
use super::outcome::{self, Floods};
use super::workers::Workers;
use super::{Outcome, ServerConfig};
use crate::export::{ClientInfo, DynExports, Exports, Peer};

/// A server without its sockets. An adapter puts connections into it by [`serve`](super::serve).
pub struct ServerState {
    common: Arc<Common>,
    /// The export that connections get at once, without a choice.
    oldstyle: Option<String>,
}

/// What is common to both faces of a server, [newstyle and oldstyle](ServerState::oldstyle).
struct Common {
    exports: Arc<dyn DynExports>,
    /// What connections that begin now get.
    config: RwLock<Arc<ServerConfig>>,
    max_workers: usize,
    /// What the server counts by from its start to its end.
    metrics: Option<Metrics>,
    workers: Workers,
    budget: Arc<BufferBudget>,
    connections: Arc<Count>,
    /// The number of the next connection.
    next_connection: AtomicU64,
    /// Sockets that are listened on.
    sockets: Arc<Count>,
    /// Whether a client has found no slot among the connections, and none was given up for it yet.
    slot_wanted: AtomicBool,
    /// How often one has found none.
    slot_claims: AtomicU64,
    /// Notified of each.
    slot_claimed: Event,
    /// How many clients wait for a slot at the moment.
    slots_awaited: AtomicUsize,
    shutting_down: AtomicBool,
    shutdown: Event,
    outcome: outcome::Counted,
    floods: Floods,
}

impl Loaded for Common {
    fn load(&self) -> Load {
        Load {
            max_connections: self.config().max_connections() as u64,
            max_buffer_bytes: self.budget.total() as u64,
            workers: WorkerMetrics { max: self.max_workers as u64, ..self.workers.metrics() },
        }
    }
}

impl Common {
    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ServerState {
    /// A server of these exports.
    pub fn new(exports: impl Exports, config: ServerConfig) -> Arc<Self> {
        let common = Common {
            exports: Arc::new(exports),
            workers: Workers::new(config.max_workers()),
            budget: Arc::new(config.buffer_budget()),
            max_workers: config.max_workers(),
            metrics: config.metrics().cloned(),
            config: RwLock::new(Arc::new(config)),
            connections: Arc::default(),
            next_connection: AtomicU64::new(0),
            sockets: Arc::default(),
            slot_wanted: AtomicBool::new(false),
            slot_claims: AtomicU64::new(0),
            slot_claimed: Event::new(),
            slots_awaited: AtomicUsize::new(0),
            shutting_down: AtomicBool::new(false),
            shutdown: Event::new(),
            outcome: outcome::Counted::default(),
            floods: Floods::default(),
        };
        let common = Arc::new(common);
        if let Some(metrics) = &common.metrics {
            let server: Weak<Common> = Arc::downgrade(&common);
            metrics.add_server(server);
        }
        Arc::new(Self { common, oldstyle: None })
    }

    /// The same server for oldstyle clients: its connections begin to use the export of that name, without a choice,
    /// TLS, structured replies or metadata contexts. An empty name is that of the default export.
    ///
    /// Such clients are rare today. Newstyle clients can't be served this way, except for some that understand both.
    #[must_use]
    pub fn oldstyle(&self, export: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { common: Arc::clone(&self.common), oldstyle: Some(export.into()) })
    }

    pub(crate) fn exports(&self) -> Arc<dyn DynExports> {
        Arc::clone(&self.common.exports)
    }

    /// A client that has just connected.
    pub(crate) fn client(&self, peer: impl Into<Peer>) -> Arc<ClientInfo> {
        let number = self.common.next_connection.fetch_add(1, Ordering::Relaxed);
        let Peer { address, tls } = peer.into();
        let mut client = ClientInfo::new(number, address);
        client.tls = tls;
        Arc::new(client)
    }

    pub(crate) fn workers(&self) -> &Workers {
        &self.common.workers
    }

    /// The export that connections get at once, if they are oldstyle ones.
    pub(crate) fn oldstyle_export(&self) -> Option<&str> {
        self.oldstyle.as_deref()
    }

    /// The configuration of the server, as it is now.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.common.config()
    }

    /// Gives the server another configuration: which peers may connect, TLS, the bounds on connections and their time.
    ///
    /// It is that of connections which begin from now on. Those that there are keep the protocol and the TLS that they
    /// began with, and are not measured against other rules of access; a timeout that runs already runs on as it was. If
    /// there are more connections than may be by now, none is ended, and no other one begins before enough have ended.
    ///
    /// The number of [workers](ServerConfig::with_max_workers), the
    /// [memory](ServerConfig::with_max_buffer_memory) of buffers and the [metrics](ServerConfig::with_metrics) stay what
    /// they were, and so does the [backlog](ServerConfig::with_backlog) of sockets that listen already.
    pub fn reconfigure(&self, config: ServerConfig) {
        let common = &self.common;
        *common.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        // There may be room by now for connections that wait.
        common.connections.less.notify(usize::MAX);
    }

    /// What the server counts by.
    pub(crate) fn metrics(&self) -> Option<&Metrics> {
        self.common.metrics.as_ref()
    }

    /// The buffers of all connections.
    pub(crate) fn budget(&self) -> &Arc<BufferBudget> {
        &self.common.budget
    }

    /// Connections at the moment, those that wait for room not among them.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.common.connections.get()
    }

    /// Begins to shut down: no more connections, requests in flight get [`ServerConfig::drain_timeout`] to finish,
    /// later ones are answered with `ESHUTDOWN`, or not at all by a server that
    /// [hangs up](ServerConfig::with_hang_up). Can be called from anywhere, any number of times. See
    /// [`ended`](Self::ended) for the end.
    pub fn shut_down(&self) {
        self.common.shutting_down.store(true, Ordering::Release);
        self.common.shutdown.notify(usize::MAX);
    }

    /// Whether [`shut_down`](Self::shut_down) was called.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.common.shutting_down.load(Ordering::Acquire)
    }

    /// Is ready once [`shut_down`](Self::shut_down) was called. Cancel-safe.
    pub async fn shutdown_begun(&self) {
        self.until(&self.common.shutdown, || self.is_shutting_down()).await;
    }

    /// Is ready once no connection is left. Cancel-safe.
    pub async fn drained(&self) {
        self.until(&self.common.connections.less, || self.connections() == 0).await;
    }

    /// Is ready once the server was told to [shut down](Self::shut_down), its sockets are closed, so that their addresses
    /// can be bound again and the paths are removed, and no connection is left; gives how it ended. Cancel-safe.
    pub async fn ended(&self) -> Outcome {
        self.shutdown_begun().await;
        let sockets = &self.common.sockets;
        self.until(&sockets.less, || sockets.get() == 0).await;
        self.drained().await;
        self.outcome()
    }

    /// How the server ended; final once it [has](Self::ended).
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.common.outcome.get()
    }

    /// So many requests of a connection will not be finished.
    pub(crate) fn cut_off(&self, requests: usize) {
        self.common.outcome.cut_off(requests);
        if let Some(metrics) = self.metrics() {
            metrics.cut_off(requests);
        }
    }

    /// A connection was refused, since there are as many as may be.
    pub(crate) fn count_refused(&self) {
        if let Some(metrics) = self.metrics() {
            metrics.refused();
        }
    }

    /// A listener has ended by a fault: shuts down, since the fault would go unnoticed otherwise, and reports it in the
    /// [`outcome`](Self::outcome). For adapters; `why` is logged.
    pub fn fail(&self, why: impl fmt::Display) {
        tracing::error!("the server shuts down: {why}");
        self.common.outcome.listener_failed();
        self.shut_down();
    }

    pub(crate) fn floods(&self) -> &Floods {
        &self.common.floods
    }

    /// Waits for room for one more connection. `None` when the server shuts down. Cancel-safe: without the permit no
    /// slot is taken.
    pub async fn admit(self: &Arc<Self>) -> Option<Permit> {
        let admitted = || {
            let max = self.config().max_connections();
            let add = |count| (count < max).then_some(count + 1);
            let count = &self.common.connections.count;
            count.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
        };
        // `shut_down` wakes what waits for a departure, too: there may never be one.
        let (mut entered, mut waiting) = (false, None);
        self.until_any(|| {
            self.is_shutting_down() || {
                entered = admitted();
                if !entered {
                    waiting.get_or_insert_with(|| Waiting::new(&self.common));
                    self.claim_slot();
                }
                entered
            }
        })
        .await;
        entered.then(|| Permit {
            state: Arc::clone(self),
            _counted: Counted(Arc::clone(&self.common.connections)),
        })
    }

    /// A client has found no slot: one that has long been idle is to give up its own.
    fn claim_slot(&self) {
        self.common.slot_claims.fetch_add(1, Ordering::AcqRel);
        self.common.slot_wanted.store(true, Ordering::Release);
        self.common.slot_claimed.notify(1.additional());
    }

    /// How many clients have found no slot so far.
    pub(crate) fn slot_claims(&self) -> u64 {
        self.common.slot_claims.load(Ordering::Acquire)
    }

    /// Is notified of the next one, if no other listener is.
    pub(crate) fn slot_listener(&self) -> EventListener {
        self.common.slot_claimed.listen()
    }

    /// Whether a connection that has long been idle, and was so when there had been that many
    /// [claims](Self::slot_claims), should give its slot to a client that waits, or has found none since. Returns true to one
    /// connection for each.
    pub(crate) fn gives_slot_up(&self, claims: u64) -> bool {
        let is_awaited = self.common.slots_awaited.load(Ordering::Acquire) > 0;
        (is_awaited || self.slot_claims() > claims)
            && self.common.slot_wanted.swap(false, Ordering::AcqRel)
    }

    /// Waits until `reached` gives true, which it can do only after `event`.
    async fn until(&self, event: &Event, mut reached: impl FnMut() -> bool) {
        while !reached() {
            let listener = event.listen();
            if reached() {
                return;
            }
            listener.await;
        }
    }

    async fn until_any(&self, mut reached: impl FnMut() -> bool) {
        while !reached() {
            let departure = self.common.connections.less.listen();
            let shutdown = self.common.shutdown.listen();
            if reached() {
                return;
            }
            futures_util::future::select(departure, shutdown).await;
        }
    }

    /// Is notified of the beginning of the shutdown.
    pub(crate) fn shutdown_listener(&self) -> EventListener {
        self.common.shutdown.listen()
    }
}

impl fmt::Debug for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerState")
            .field("connections", &self.connections())
            .field("shutting_down", &self.is_shutting_down())
            .finish_non_exhaustive()
    }
}

/// How many there are of something. Not a part of the state, which whoever counts is to let go of first: who waits for the
/// last one finds that nobody else has the exports.
#[derive(Debug, Default)]
struct Count {
    count: AtomicUsize,
    /// Notified when there is one less.
    less: Event,
}

impl Count {
    fn get(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }
}

/// One that is counted, until this is dropped.
#[derive(Debug)]
pub(super) struct Counted(Arc<Count>);

impl Counted {
    /// One more socket that is listened on.
    pub(super) fn socket(state: &ServerState) -> Self {
        let count = &state.common.sockets;
        count.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.less.notify(usize::MAX);
    }
}

/// A client that waits for a slot, until this is dropped.
struct Waiting<'a>(&'a Common);

impl<'a> Waiting<'a> {
    fn new(common: &'a Common) -> Self {
        common.slots_awaited.fetch_add(1, Ordering::AcqRel);
        Self(common)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.slots_awaited.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The slot of one connection, given back when dropped.
#[derive(Debug)]
pub struct Permit {
    state: Arc<ServerState>,
    /// Dropped behind the state.
    _counted: Counted,
}

impl Permit {
    pub(crate) const fn state(&self) -> &Arc<ServerState> {
        &self.state
    }
}
