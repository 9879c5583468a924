//! A connection from its first byte to its last, with its deadlines.

use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use event_listener::EventListener;
use futures_util::future::{Either, select};
use tracing::field;

use super::metrics::{Ending, Recorder};
use super::session::{End, Session};
use super::watch::{self, Verdict, Watch};
use super::{ConnectionError, Permit, ServerState};
use crate::export::{ClientInfo, Peer, Withdrawal};
use crate::runtime::{BoxFuture, Runtime, moment_after};
use crate::transport::Transport;

/// How long an idle client is still answered after the shutdown began, so that a request that was under way gets its
/// `ESHUTDOWN`.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(200);

/// How much longer the handshake may take for each export that was listed to the client: clients such as `qemu-nbd
/// --list` then ask about all of them, and Nagle's algorithm on their side costs 40 ms for each question.
const TIME_PER_EXPORT: Duration = Duration::from_secs(1);

/// How long a client may take to notice the end of the stream.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

/// The same for a client that was not told to go: what it still sends would have the system drop replies that are on their
/// way.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves one client over a byte stream of any kind until it disconnects, breaks the protocol, misses a deadline, or
/// the server shuts down.
///
/// `peer` is what exports and the log learn of the client: its address, or a whole [`Peer`]. Dropping the future ends
/// the connection at once; writes that were under way may or may not have been done, as after a power cut before their
/// reply.
///
/// `Ok` says that the connection ended in order, whoever ended it: the client disconnected, gave up the negotiation
/// (after its export was refused, for instance), or hung up between two requests; or the server, or the export, shut
/// down, and all requests that it had received were answered. [`Exports`](crate::export::Exports) learn which of these
/// it was from their [`CloseReason`](crate::export::CloseReason).
///
/// What a client asked for before it disconnected is carried out whether or not it reads the replies. For one whose stream
/// takes no more of them, requests are received and held until the disconnect is found, which is given two seconds and as
/// many requests as may be [in flight](nbd_proto::Limits::max_in_flight): without it they count as those of a connection
/// that was lost, and are dropped, since the client may have sent them again by another one.
///
/// # Errors
/// Why the connection ended, if not in order.
pub async fn serve<T, R>(
    permit: Permit,
    transport: T,
    runtime: R,
    peer: impl Into<Peer>,
) -> Result<(), ConnectionError>
where
    T: Transport,
    R: Runtime,
{
    let state = Arc::clone(permit.state());
    let client = state.client(peer);
    // Of the highest level, so that whatever is logged says which connection it is about.
    let span = tracing::error_span!(
        "connection",
        id = client.connection,
        peer = %client.peer,
        export = field::Empty
    );
    let mut registration = state.metrics().map(|metrics| metrics.register(&client));
    let recorder = registration.as_ref().map(|it| it.recorder(&runtime));
    let mut task = pin!(run(&state, transport, &runtime, client, recorder));
    let result = poll_fn(|cx| span.in_scope(|| task.as_mut().poll(cx))).await;
    if let Some(registration) = &mut registration {
        registration.ended(match &result {
            Ok((_, end)) => Ending::of(*end),
            Err(error) => Ending::of_error(error),
        });
    }
    // The counts are complete, while the client may take its time to notice the end.
    drop(registration);
    let (Some(mut session), end) = result? else { return Ok(()) };
    let config = state.config();
    if matches!(end, End::ShutDown) {
        // What it accepted is to be answered, and the last of that may still be in TLS or in a buffer.
        let left = session.drains_until().map(|end| end.saturating_duration_since(runtime.now()));
        let mut timeout = runtime.sleep(left.unwrap_or(CLOSE_TIMEOUT));
        poll_fn(|cx| match session.poll_close_writing(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => timeout.as_mut().poll(cx),
        })
        .await;
    }
    // The client may not read, or not close its side.
    let hung_up = matches!(end, End::ShutDown) && config.hangs_up();
    let mut timeout = runtime.sleep(if hung_up { HANG_UP_TIMEOUT } else { CLOSE_TIMEOUT });
    poll_fn(|cx| match session.poll_close(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => timeout.as_mut().poll(cx),
    })
    .await;
    Ok(())
}

/// Waits for room for one more connection, then [serves](serve) one client over a byte stream: what the `serve_*`
/// methods of an adapter do with a stream that the embedder brings.
///
/// The wait lasts at most [`ServerConfig::with_admission_timeout`](super::ServerConfig::with_admission_timeout).
/// Dropping the future meanwhile takes nobody's slot; later it ends the connection as that of [`serve`] does.
///
/// # Errors
/// [`ConnectionError::ServerFull`] when there is no room within that time, [`ConnectionError::ShuttingDown`] when the
/// server has begun to shut down before there is; the client gets no byte then. Otherwise those of [`serve`].
pub async fn admit_and_serve<T, R>(
    state: &Arc<ServerState>,
    transport: T,
    runtime: R,
    peer: impl Into<Peer>,
) -> Result<(), ConnectionError>
where
    T: Transport,
    R: Runtime,
{
    let peer = peer.into();
    let permit = admit(state, &runtime).await.inspect_err(|error| {
        if matches!(error, ConnectionError::ServerFull { .. }) {
            state.count_refused();
            if let Some(times) = state.floods().full.count() {
                tracing::warn!(peer = %peer.address, times, %error, "refused a connection");
            }
        }
    })?;
    serve(permit, transport, runtime, peer).await
}

async fn admit(
    state: &Arc<ServerState>,
    runtime: &impl Runtime,
) -> Result<Permit, ConnectionError> {
    let mut admitted = pin!(state.admit());
    let permit = match poll_once(&mut admitted).await {
        Some(permit) => permit,
        // Only now there is a need for a timer.
        None => {
            let waited = state.config().admission_timeout();
            match select(admitted, runtime.sleep(waited)).await {
                Either::Left((permit, _)) => permit,
                Either::Right(_) => {
                    let max_connections = state.config().max_connections();
                    return Err(ConnectionError::ServerFull { max_connections, waited });
                }
            }
        }
    };
    permit.ok_or(ConnectionError::ShuttingDown)
}

/// What a future gives at its first poll.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Serves a client until its connection is to be closed; gives what there is to close, and why.
async fn run<T: Transport, R: Runtime>(
    state: &Arc<ServerState>,
    transport: T,
    runtime: &R,
    client: Arc<ClientInfo>,
    recorder: Option<Recorder>,
) -> Result<(Option<Session<T>>, End), ConnectionError> {
    // An oldstyle client gets its export at once, and looking that up may take its time.
    let limit = state.config().handshake_timeout();
    let session = pin!(Session::new(Arc::clone(state), transport, client, recorder, runtime));
    let shutdown = pin!(state.shutdown_begun());
    let deadline = select(runtime.sleep(limit), shutdown);
    let session = match select(session, deadline).await {
        Either::Left((session, _)) => session,
        Either::Right((Either::Left(_), _)) => Err(ConnectionError::HandshakeTimeout(limit)),
        Either::Right((Either::Right(_), _)) => return Ok((None, End::ShutDown)),
    };
    let mut session = session.inspect_err(|error| {
        if let Some(times) = state.floods().unfit.count() {
            tracing::warn!(%error, times, "cannot serve a client");
        }
    })?;
    tracing::debug!("a client connected");
    let mut connection = Connection::new(&mut session, state, runtime);
    let result = poll_fn(|cx| connection.poll(cx)).await;
    session.leave(&result);
    match &result {
        Ok(End::Closed(reason)) => tracing::debug!("{reason}"),
        Ok(End::ShutDown) => {
            tracing::debug!("closed a connection, since the server or its export shuts down")
        }
        Err(error) => tracing::info!(%error, "a connection was closed"),
    }
    Ok((Some(session), result?))
}

/// A session and its deadlines.
struct Connection<'a, T: Transport, R> {
    session: &'a mut Session<T>,
    state: &'a ServerState,
    runtime: &'a R,
    shutdown: Shutdown,
    /// Of the export that the client uses.
    withdrawn: Option<Withdrawn>,
    /// Until when an export has to be chosen; then when the watch looks next. It is set anew only when it has passed.
    timer: BoxFuture,
    /// When the timer is to pass.
    due: Instant,
    /// How long the handshake may take, by what was known when the timer was set.
    handshake: Duration,
    watch: Option<Watch>,
    /// How many clients had found no slot when this one was last busy.
    claims: u64,
    /// Set while the client has long been idle: is notified when another one finds no slot.
    claimed: Option<EventListener>,
    drain: Option<Drain>,
    /// Passes when a request that waits for the export's layers is due, with that moment.
    wait: Option<(Instant, BoxFuture)>,
}

/// The deadlines of a shutdown.
struct Drain {
    deadline: BoxFuture,
    /// `None` once it has passed.
    grace: Option<BoxFuture>,
}

impl<'a, T: Transport, R: Runtime> Connection<'a, T, R> {
    fn new(session: &'a mut Session<T>, state: &'a ServerState, runtime: &'a R) -> Self {
        let handshake = state.config().handshake_timeout();
        let shutdown = Shutdown {
            listener: state.shutdown_listener(),
            disconnect: session.recorder().map(Recorder::disconnect_listener),
            registered: None,
        };
        Self {
            session,
            shutdown,
            withdrawn: None,
            timer: runtime.sleep(handshake),
            due: moment_after(runtime.now(), handshake),
            handshake,
            watch: None,
            claims: 0,
            claimed: None,
            drain: None,
            wait: None,
            state,
            runtime,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, ConnectionError>> {
        if self.drain.is_none() && self.shutdown.has_begun(self.state, self.session, cx) {
            self.send_away();
        }
        if self.drain.is_none() && self.is_withdrawn(cx) {
            self.send_away();
        }
        let polled = self.session.poll(cx);
        self.session.publish();
        if let Poll::Ready(result) = polled {
            // A client that leaves when it is told to was sent away, whoever closes first.
            let is_told = self.drain.is_some() || self.session.is_ending();
            return Poll::Ready(result.map(|end| if is_told { End::ShutDown } else { end }));
        }
        if self.session.has_more_to_do() {
            self.runtime.yield_now(cx);
        }
        if self.drain.is_none() && self.session.is_ending() {
            self.begin_drain();
        }
        self.poll_wait(cx);
        if let Err(error) = self.poll_timer(cx) {
            return Poll::Ready(Err(error));
        }
        self.poll_drain(cx)
    }

    /// Whether the export was taken away from the client.
    fn is_withdrawn(&mut self, cx: &mut Context<'_>) -> bool {
        self.withdrawn.as_mut().is_some_and(|withdrawn| withdrawn.has_begun(cx))
    }

    fn send_away(&mut self) {
        self.session.shut_down(self.state.config().hangs_up());
        self.begin_drain();
    }

    fn begin_drain(&mut self) {
        let limit = self.state.config().drain_timeout();
        self.session.drain_until(moment_after(self.runtime.now(), limit));
        self.drain = Some(Drain {
            deadline: self.runtime.sleep(limit),
            grace: Some(self.runtime.sleep(SHUTDOWN_GRACE)),
        });
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        if self.watch.is_none() && self.session.is_transmitting() {
            let watch = Watch::new(&self.state.config(), self.runtime.now());
            self.set_timer(watch.period());
            self.watch = Some(watch);
            self.withdrawn = self.session.withdrawal().map(Withdrawn::new);
            if self.is_withdrawn(cx) {
                cx.waker().wake_by_ref();
            }
        }
        if self.session.has_ended_rest()
            && let Some(watch) = &mut self.watch
        {
            watch.restart(self.runtime.now(), &self.session.activity());
            let period = watch.period();
            self.set_timer(period);
            self.has_been_busy();
        }
        loop {
            let is_due = self.timer.as_mut().poll(cx).is_ready();
            let claimed = self.claimed.as_mut();
            if !is_due && !claimed.is_some_and(|claimed| Pin::new(claimed).poll(cx).is_ready()) {
                return Ok(());
            }
            self.claimed = None;
            let next = self.look(cx)?;
            self.set_timer(next);
        }
    }

    /// What others have found so far is not this client's fault.
    fn has_been_busy(&mut self) {
        self.claims = self.state.slot_claims();
        self.claimed = None;
    }

    /// Has the task polled again when a request that waits is due.
    fn poll_wait(&mut self, cx: &mut Context<'_>) {
        let Some(due) = self.session.due() else {
            self.wait = None;
            return;
        };
        if self.wait.as_ref().is_none_or(|(other, _)| *other != due) {
            let time = due.saturating_duration_since(self.runtime.now());
            self.wait = Some((due, self.runtime.sleep(time)));
        }
        if let Some((_, timer)) = &mut self.wait
            && timer.as_mut().poll(cx).is_ready()
        {
            self.wait = None;
            cx.waker().wake_by_ref();
        }
    }

    fn set_timer(&mut self, time: Duration) {
        self.timer = self.runtime.sleep(time);
        self.due = moment_after(self.runtime.now(), time);
    }

    /// The timer has passed. Gives how long until the next look.
    fn look(&mut self, cx: &Context<'_>) -> Result<Duration, ConnectionError> {
        let now = self.runtime.now();
        let late = now.saturating_duration_since(self.due);
        let Some(watch) = &mut self.watch else {
            let for_list = TIME_PER_EXPORT.saturating_mul(self.session.listed_exports());
            let allowed = self.state.config().handshake_timeout().saturating_add(for_list);
            if late > watch::period_within(allowed) {
                // The server did not run; what the client did meanwhile is yet to be received.
                return Ok(late.min(allowed));
            }
            let waited = core::mem::replace(&mut self.handshake, allowed);
            if allowed <= waited {
                return Err(ConnectionError::HandshakeTimeout(waited));
            }
            return Ok(allowed - waited);
        };
        if self.session.is_peer_gone() {
            return Err(ConnectionError::PeerGone);
        }
        match watch.look(now, late, &self.session.activity()) {
            Verdict::LookAgain(next) => {
                self.has_been_busy();
                Ok(next)
            }
            Verdict::Idle(next) => {
                self.session.free_buffers();
                Ok(next)
            }
            Verdict::LongIdle(next) => {
                self.session.free_buffers();
                // Before the look, so that no client is missed that comes between them.
                let listener = self.state.slot_listener();
                if self.state.gives_slot_up(self.claims) {
                    let limit = self.state.config().idle_timeout().unwrap_or_default();
                    return Err(ConnectionError::Displaced(limit));
                }
                self.claimed = Some(listener);
                Ok(next)
            }
            Verdict::ReceiveStalled(stall) => Err(ConnectionError::ReceiveStalled(stall)),
            Verdict::SendStalled(stall) => {
                self.session.stop_sending(stall);
                cx.waker().wake_by_ref();
                Ok(watch.period())
            }
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, ConnectionError>> {
        let Some(drain) = &mut self.drain else { return Poll::Pending };
        if drain.deadline.as_mut().poll(cx).is_ready() {
            self.state.cut_off(self.session.requests_in_flight());
            let limit = self.state.config().drain_timeout();
            return Poll::Ready(if self.session.is_idle() {
                Ok(End::ShutDown)
            } else {
                Err(ConnectionError::DrainTimeout(limit))
            });
        }
        if let Some(grace) = &mut drain.grace
            && grace.as_mut().poll(cx).is_ready()
        {
            drain.grace = None;
        }
        if drain.grace.is_none() && self.session.is_idle() {
            return Poll::Ready(Ok(End::ShutDown));
        }
        Poll::Pending
    }
}

/// Learns of the shutdown, or that this connection is to end, without a look at what all connections share each time the
/// task is woken.
struct Shutdown {
    listener: EventListener,
    /// Of the connection alone.
    disconnect: Option<EventListener>,
    /// What is woken by either.
    registered: Option<Waker>,
}

impl Shutdown {
    fn has_begun<T: Transport>(
        &mut self,
        state: &ServerState,
        session: &Session<T>,
        cx: &mut Context<'_>,
    ) -> bool {
        if state.is_shutting_down() || session.recorder().is_some_and(Recorder::is_disconnected) {
            return true;
        }
        if self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return false;
        }
        self.registered = Some(cx.waker().clone());
        let disconnected =
            self.disconnect.as_mut().is_some_and(|listener| Pin::new(listener).poll(cx).is_ready());
        Pin::new(&mut self.listener).poll(cx).is_ready() || disconnected
    }
}

/// Learns that the export is taken away from its clients.
struct Withdrawn {
    withdrawal: Withdrawal,
    listener: EventListener,
    /// What is woken by it.
    registered: Option<Waker>,
}

impl Withdrawn {
    fn new(withdrawal: Withdrawal) -> Self {
        let listener = withdrawal.listener();
        Self { withdrawal, listener, registered: None }
    }

    fn has_begun(&mut self, cx: &mut Context<'_>) -> bool {
        if self.withdrawal.is_withdrawn() {
            return true;
        }
        if self.registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return false;
        }
        self.registered = Some(cx.waker().clone());
        Pin::new(&mut self.listener).poll(cx).is_ready()
    }
}
