//! A client: the connections to one export, and what all its clones share.

use core::fmt;
use core::future::poll_fn;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};
use std::sync::Arc;
use std::time::Duration;

use nbd_proto::{Command, InvalidRequest, RequestRules};

use super::buffer::Buffer;
use super::completion::{Completion, Findings, Outcome};
use super::connection_handle::{ConnectionHandle, Disconnect};
use super::free_list::FreeList;
use super::leader_follower::{LeaderFollower, Role};
use super::pending::{Pending, Wait};
use super::ready::ReadyConnection;
use super::reconnect::{Doubts, Kept, Reconnector, Seen, Target};
use super::request_state::RequestState;
use super::session::Session;
use super::statistics::{ClientStatistics, Counting};
use super::timer::Timer;
use super::{ClientConfig, Connector, DriveMode, ExportDetails, split};
use crate::busy_poll::BUSY_POLL;
use crate::runtime::Runtime;

/// An export on a server, to be read and written, on the runtime of a [`Connector`]. Cheap to clone: clones are the same
/// client. Share it among as many threads or tasks as you like; requests run side by side and are answered in any order.
/// (Where lost connections are [replaced](super::Reconnect), each clone reports once by its flushes what may be lost: a
/// caller that flushes on its own account needs a clone of its own.)
///
/// When the last clone and the last [`Pending`] request are gone, the client disconnects.
pub struct Client<C> {
    pub(super) shared: Arc<Shared>,
    /// What this handle has reported of changes in doubt, where lost connections are replaced.
    seen: Option<Arc<Seen>>,
    runtime: PhantomData<fn() -> C>,
}

pub(super) struct Shared {
    pub(super) details: ExportDetails,
    peer: Arc<str>,
    rules: RequestRules,
    pub(super) connections: Vec<ClientConnection>,
    next: AtomicUsize,
    timeout: Option<Duration>,
    timer: Timer,
    /// Set where acknowledged changes are kept.
    kept: Option<Arc<Kept>>,
    /// Set where lost connections are replaced.
    reconnector: Option<Arc<Reconnector>>,
}

/// A connection, as the client sees it.
pub(super) struct ClientConnection {
    pub(super) handle: Arc<ConnectionHandle>,
    /// Set where those who wait drive the connection themselves.
    pub(super) drivers: Option<LeaderFollower>,
}

impl<C: Connector> Client<C> {
    /// A client over connections on which the same export was entered: one, or more where all of them
    /// [fit](ReadyConnection::fits).
    pub(super) fn new(
        first: ReadyConnection,
        further: Vec<ReadyConnection>,
        target: Option<Target<C>>,
        connector: &C,
        config: &ClientConfig,
    ) -> Self {
        let runtime = connector.runtime();
        let (details, rules) = (first.details.clone(), first.rules);
        let peer = Arc::clone(&first.peer);
        let timer = Timer::new(runtime.clone());
        let default = if runtime.shares_threads() { Duration::ZERO } else { BUSY_POLL };
        let busy_poll = config.busy_poll(default);
        let handles = core::iter::once(&first).chain(&further).map(|ready| {
            let counting = config.statistics().then(|| Counting::new(timer.clone()));
            Arc::new(ConnectionHandle::new(Arc::clone(&ready.peer), C::DRIVE_MODE, counting))
        });
        let handles: Vec<_> = handles.collect();
        let reconnector = match (config.reconnect(), target) {
            (Some(reconnect), Some(target)) => {
                let (reconnect, timer) = (reconnect.clone(), timer.clone());
                let handles = handles.clone();
                Some(Arc::new(Reconnector::new(target, reconnect, &first, timer, handles)))
            }
            _ => None,
        };
        let kept = reconnector.as_ref().and_then(|reconnector| {
            // What can't be flushed could never be forgotten.
            let max_bytes = reconnector.config.kept_writes().filter(|_| details.can_flush())?;
            Some(Arc::new(Kept::new(max_bytes, 1 + further.len())))
        });
        let doubts = Arc::new(Doubts::default());
        let seen = reconnector.as_ref().map(|_| Arc::new(Seen::new(&doubts)));
        let ready: Vec<_> = core::iter::once(first).chain(further).collect();
        if let Some(kept) = &kept {
            kept.set_handles(handles.clone());
        }
        let connections = ready.into_iter().zip(handles).enumerate().map(|(index, ready)| {
            let (mut ready, handle) = ready;
            ready.share_size(&details.size);
            let mut session = Session::new(&handle, ready, timer.clone(), busy_poll, config);
            if let Some(reconnector) = &reconnector {
                session.recover_by(reconnector, index, &doubts, kept.as_ref());
            }
            let drivers = match C::DRIVE_MODE {
                DriveMode::Caller => Some(LeaderFollower::new(session, Arc::clone(&handle))),
                DriveMode::Spawned => {
                    let (mut task, turns) = (Task(session), runtime.clone());
                    runtime.spawn(Box::pin(poll_fn(move |cx| {
                        let ended = task.0.poll(cx, None);
                        if ended.is_pending() && task.0.has_more_to_do() {
                            turns.yield_now(cx);
                        }
                        ended
                    })));
                    None
                }
            };
            ClientConnection { handle, drivers }
        });
        let connections = connections.collect();
        let (next, timeout) = (AtomicUsize::new(0), config.request_timeout());
        let shared =
            Shared { details, peer, rules, connections, next, timeout, timer, kept, reconnector };
        Self { shared: Arc::new(shared), seen, runtime: PhantomData }
    }
}

impl<C> Client<C> {
    /// What this client has done so far, its clones included. `None` unless it was asked for by
    /// [`ClientConfig::with_statistics`]. A flush counts once for each connection that it is sent on.
    #[must_use]
    pub fn statistics(&self) -> Option<ClientStatistics> {
        let mut all = ClientStatistics::default();
        for connection in &self.shared.connections {
            all.merge(&connection.handle.counting.as_ref()?.get());
        }
        Some(all)
    }

    /// What the server said of the export, and what was agreed about it.
    #[must_use]
    pub fn export(&self) -> &ExportDetails {
        &self.shared.details
    }

    /// The size of the export in bytes; changes by [`resize`](Self::resize) alone.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared.details.size()
    }

    /// The server and the export, as errors name them.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.shared.peer
    }

    /// How many connections were made, those that are being [replaced](super::Reconnect), or are lost for good, included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.len()
    }

    /// Whether requests are taken: not after a [disconnect](Self::disconnect), nor once the last connection was lost. One that
    /// is being [replaced](super::Reconnect) takes requests, which wait for the new one.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.connections.iter().any(|connection| connection.handle.is_open())
    }

    /// Whether a command makes sense for this export, without asking the server. It may be of any length, none
    /// included.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(&self, command: &Command) -> Result<(), InvalidRequest> {
        self.shared.check(command).map(drop)
    }

    pub(super) fn max_length(&self, command: &Command) -> u64 {
        self.shared.rules.max_length(command)
    }

    /// Submits a request. `findings` says what is wanted of the reply besides data.
    pub(super) fn submit<R>(
        &self,
        command: Result<Command, InvalidRequest>,
        data: Data<'_>,
        findings: Findings,
        convert: Convert<R>,
    ) -> Pending<R> {
        let shared = &self.shared;
        let index = shared.choose();
        match command.and_then(|command| Ok((command, shared.check(&command)?))) {
            Ok((command, true)) => {
                let buffer = data.into_buffer(&shared.connections[index].handle.free);
                let wait = shared.submit(index, command, buffer, findings);
                Pending::waiting(Arc::clone(shared), wait, Vec::new(), convert)
            }
            Ok((_, false)) => {
                let (buffer, result) = (data.given(), Ok(()));
                let outcome = Outcome { buffer, findings, result };
                Pending::known(convert(shared, index, outcome), convert)
            }
            Err(invalid) => {
                let outcome = Outcome::failed(data.given(), invalid.into());
                Pending::known(convert(shared, index, outcome), convert)
            }
        }
    }

    /// Submits a flush on each connection that has answered changes which no flush on it covers yet, or on any if there
    /// are none. The server promises that one is enough ([`ExportDetails::can_multi_conn`]); but one that keeps a file
    /// open for each connection can learn of a failed write-back on the connection that wrote, and on no other.
    pub(super) fn submit_flushes<R>(&self, convert: Convert<R>) -> Pending<R> {
        let shared = &self.shared;
        let command = Command::flush();
        let unflushed = |index: &usize| {
            let handle = &shared.connections[*index].handle;
            handle.is_unflushed() && handle.is_open()
        };
        let mut connections = (0..shared.connections.len()).filter(unflushed);
        let several = shared.connections.len() > 1 && shared.check(&command).is_ok();
        let flush = match connections.next().filter(|_| several) {
            None => self.submit(Ok(command), Data::None, Findings::None, convert),
            Some(first) => {
                let submit = |index| shared.submit(index, command, Buffer::None, Findings::None);
                let (first, more) = (submit(first), connections.map(submit).collect());
                Pending::waiting(Arc::clone(shared), first, more, convert)
            }
        };
        match &self.seen {
            None => flush,
            Some(seen) => flush.reporting(Arc::clone(seen)),
        }
    }

    /// Begins to send what was submitted, as far as the transport takes it at once. There is no need to: waiting for any
    /// request sends all. It is for programs that [submit](Self::submit_read_into) a few requests where no task drives the
    /// connection, and then do something else for a while.
    pub fn send_submitted(&self) {
        self.shared.push_all();
    }

    /// Disconnects softly: takes no more requests, waits for those in flight, then sends `NBD_CMD_DISC` and closes the
    /// stream; inside of TLS, by `close_notify`. Requests of clones fail with
    /// [`Error::Disconnected`](super::Error::Disconnected) from now on. How long it takes is up to the requests in flight,
    /// and to their [deadline](super::ClientConfig::with_request_timeout); a server that does not take those last bytes has
    /// the same time for them, or five seconds without a deadline.
    ///
    /// Cancel-safe: when dropped, the client disconnects all the same, as soon as requests in flight are answered; where the
    /// callers drive, as soon as any of them takes these answers in, or the client is dropped.
    pub async fn disconnect(&self) {
        let shared = &self.shared;
        let mut ends = (0..shared.connections.len()).map(|index| {
            let handle = &shared.connections[index].handle;
            let completion = handle.free.completion();
            handle.disconnect(Disconnect::Soft, Some(Arc::clone(&completion)));
            Wait::new(index, completion, 0)
        });
        let Some(first) = ends.next() else { return };
        let others = ends.collect();
        Pending::waiting(Arc::clone(shared), first, others, |_, _, _| ()).await;
    }
}

/// Makes what a request comes to out of its outcome. Also given the connection that it was on.
pub(super) type Convert<R> = fn(&Shared, usize, Outcome) -> R;

/// Where the data of a request comes from.
pub(super) enum Data<'a> {
    None,
    /// From the program.
    Given(Buffer),
    /// A buffer of so many bytes, to be read into.
    New(usize),
    /// The same out of the connection's free list, and maybe longer.
    Reused(usize),
    /// A copy of these bytes in a buffer out of the free list, to be written.
    Copied(&'a [u8]),
}

impl Data<'_> {
    /// For a request that is valid: a buffer of a size that the program named is not made before that is known.
    fn into_buffer(self, free: &FreeList) -> Buffer {
        match self {
            Self::None => Buffer::None,
            Self::Given(buffer) => buffer,
            Self::New(length) => Buffer::Owned(vec![0; length]),
            Self::Reused(length) => Buffer::Owned(free.buffer(length)),
            Self::Copied(data) => {
                let mut buffer = free.buffer(data.len());
                buffer[..data.len()].copy_from_slice(data);
                Buffer::Owned(buffer)
            }
        }
    }

    /// What goes back to the program if nothing is to be done.
    fn given(self) -> Buffer {
        match self {
            Self::Given(buffer) => buffer,
            _ => Buffer::None,
        }
    }
}

impl Shared {
    /// Whether there is anything to do for a command, which may be of any length.
    fn check(&self, command: &Command) -> Result<bool, InvalidRequest> {
        let mut rules = self.rules;
        rules.size = self.details.size();
        split::check(&rules, command)
    }

    pub(super) const fn peer(&self) -> &Arc<str> {
        &self.peer
    }

    fn submit(&self, index: usize, command: Command, buffer: Buffer, findings: Findings) -> Wait {
        let handle = &self.connections[index].handle;
        let completion = handle.free.completion();
        let covers = if command == Command::Flush { handle.changes() } else { 0 };
        let mut request = RequestState::new(command, buffer, findings, Arc::clone(&completion));
        request.deadline = self.timeout.and_then(|limit| self.timer.now().checked_add(limit));
        if let Some(counting) = &handle.counting {
            counting.begun(&mut request);
        }
        handle.submit(request);
        Wait::new(index, completion, covers)
    }

    /// The connection for the next request: in turn, but none that is lost if there is another.
    fn choose(&self) -> usize {
        let count = self.connections.len();
        if count == 1 {
            return 0;
        }
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let order = || (first..count).chain(0..first);
        let is_up = |index: &usize| self.connections[*index].handle.is_up();
        let is_open = |index: &usize| self.connections[*index].handle.is_open();
        order().find(is_up).or_else(|| order().find(is_open)).unwrap_or(first)
    }

    /// Whether connections wait for each other, or one is being replaced, or the request has gone to another one, so that a
    /// caller that waits for it has to drive all.
    pub(super) fn drives_all(&self, completion: &Completion) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.is_waiting())
            || self.reconnector.as_ref().is_some_and(|reconnector| reconnector.is_replacing())
            || completion.is_moved()
    }

    /// Waits for an outcome, and drives the connection if that is the caller's.
    pub(super) fn poll_completion(
        &self,
        index: usize,
        completion: &Arc<Completion>,
        role: &mut Role,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        let Some(drivers) = &self.connections[index].drivers else { return completion.poll(cx) };
        if !completion.is_done() {
            self.push_others(index, cx);
        }
        drivers.poll(completion, role, cx)
    }

    /// Sends what is queued for other connections, which their own waiters will drive.
    fn push_others(&self, except: usize, cx: &mut Context<'_>) {
        for (index, connection) in self.connections.iter().enumerate() {
            if let Some(drivers) = connection.drivers.as_ref().filter(|_| index != except) {
                drivers.push(cx);
            }
        }
    }

    fn push_all(&self) {
        let mut cx = Context::from_waker(Waker::noop());
        for drivers in self.connections.iter().filter_map(|each| each.drivers.as_ref()) {
            drivers.push(&mut cx);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for connection in &self.connections {
            connection.handle.disconnect(Disconnect::Hard, None);
        }
        self.push_all();
    }
}

impl<C> Clone for Client<C> {
    fn clone(&self) -> Self {
        let seen = self.seen.as_ref().map(|seen| Arc::new(seen.fork()));
        Self { shared: Arc::clone(&self.shared), seen, runtime: PhantomData }
    }
}

impl<C> fmt::Debug for Client<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("peer", &self.peer())
            .field("size", &self.size())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// A session as a task. When the runtime drops it, its waiters have their outcome.
struct Task(Session);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
