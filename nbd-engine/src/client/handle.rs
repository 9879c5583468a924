//! A client: the connections to one export, and what all its clones share.

use core::fmt;
use core::future::poll_fn;
use core::ops::Deref;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_proto::wire::TransmissionFlags;

use super::haggling::Entered;
use super::invalid::Operation;
use super::lead::{Drive, Lead, Role};
use super::link::{Closed, Leaving, Link};
use super::negotiated::Negotiated;
use super::pending::{Pending, Wait};
use super::session::Session;
use super::ticket::{Buffer, Outcome, Spare, Ticket};
use super::timer::Timer;
use super::transfer::Transfer;
use super::{Error, LostReason, Options};
use crate::runtime::Runtime;
use crate::transport::Transport;

/// Who drives a client's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driving {
    /// A task for each connection, spawned on the runtime.
    Task,
    /// Those who wait for requests, in turn: for runtimes where waiting costs a thread anyway.
    Callers,
}

/// An export on a server, to be read and written. Cheap to clone: clones are the same client. Share it among as many
/// threads or tasks as you like; requests run side by side and are answered in any order.
///
/// When the last clone and the last [`Pending`] request are gone, the server is left.
#[derive(Clone)]
pub struct Client {
    pub(super) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(super) negotiated: Negotiated,
    pub(super) links: Vec<Arc<Link>>,
    next: AtomicUsize,
    timeout: Option<Duration>,
    pub(super) spare: Spare,
}

impl Client {
    /// A client over connections on which the same export was entered: one, or more if the server
    /// [allows for it](Negotiated::can_multi_conn).
    ///
    /// # Errors
    /// When there is none, or there are several and the server does not allow for that.
    pub fn new<T: Transport + 'static, R: Runtime>(
        connections: Vec<Entered<T>>,
        runtime: R,
        driving: Driving,
        options: &Options,
    ) -> Result<Self, Error> {
        let unsupported = |what| Error::Unsupported { address: "the server".into(), what };
        let first = connections.first().ok_or_else(|| unsupported("there is no connection"))?;
        let Some(view) = first.connection.export() else {
            return Err(Error::Disconnected { peer: Arc::clone(&first.peer) });
        };
        let multi_conn = TransmissionFlags::CAN_MULTI_CONN;
        let several = |entered: &Entered<T>| entered.details.flags.contains(multi_conn);
        if connections.len() > 1 && !connections.iter().all(several) {
            return Err(unsupported("it does not say that several connections see the same"));
        }
        let negotiated = Negotiated::new(Arc::clone(&first.peer), first.details.clone(), &view);
        let (terms, contexts) = (negotiated.terms, &negotiated.contexts);
        let timer = Timer::new(runtime.clone());
        let sessions = connections.into_iter().map(|entered| {
            let peer = Arc::clone(&entered.peer);
            (peer, Session::new(entered, terms, contexts, timer.clone(), options))
        });
        let mut tasks = Vec::new();
        let links = sessions
            .map(|(peer, session)| match driving {
                Driving::Callers => Arc::new(Link::new(peer, Some(Lead::new(Box::new(session))))),
                Driving::Task => {
                    let link = Arc::new(Link::new(peer, None));
                    tasks.push(Driver { link: Arc::clone(&link), session });
                    link
                }
            })
            .collect();
        for mut driver in tasks {
            runtime.spawn(Box::pin(poll_fn(move |cx| driver.poll(cx))));
        }
        let shared = Shared {
            negotiated,
            links,
            next: AtomicUsize::new(0),
            timeout: options.request_timeout,
            spare: Spare::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.links.len()
    }

    /// Whether requests are taken: not after the server was left, or the last connection was lost.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.links.iter().any(|link| link.is_open())
    }

    /// Submits a request that was found valid.
    pub(super) fn submit<R>(
        &self,
        operation: Operation,
        buffer: Buffer,
        convert: fn(&Shared, Outcome) -> R,
    ) -> Pending<R> {
        let shared = &self.shared;
        if let Err(invalid) = shared.negotiated.check(&operation) {
            let outcome = Outcome::failed(buffer, invalid.into());
            return Pending::known(convert(shared, outcome), convert);
        }
        let wait = shared.submit(shared.choose(), operation, buffer);
        Pending::waiting(Arc::clone(shared), wait, Vec::new(), convert)
    }

    /// Submits a flush on each connection that has answered changes which no flush on it covers yet, or on any if there
    /// are none. The server promises that one is enough ([`Negotiated::can_multi_conn`]); but one that keeps a file open
    /// for each connection can learn of a failed write-back on the connection that wrote, and on no other.
    pub(super) fn submit_flushes<R>(
        &self,
        operation: Operation,
        convert: fn(&Shared, Outcome) -> R,
    ) -> Pending<R> {
        let shared = &self.shared;
        let unflushed = |link: &usize| {
            let link = &shared.links[*link];
            link.is_unflushed() && link.is_open()
        };
        let mut links = (0..shared.links.len()).filter(unflushed);
        let Some(first) = links.next().filter(|_| shared.links.len() > 1) else {
            return self.submit(operation, Buffer::None, convert);
        };
        if let Err(invalid) = shared.negotiated.check(&operation) {
            let outcome = Outcome::failed(Buffer::None, invalid.into());
            return Pending::known(convert(shared, outcome), convert);
        }
        let submit = |link| shared.submit(link, operation, Buffer::None);
        let wait = submit(first);
        Pending::waiting(Arc::clone(shared), wait, links.map(submit).collect(), convert)
    }

    /// Begins to send what was submitted, as far as the transport takes it at once. There is no need to: whoever waits
    /// for any request sends all. It is for those who [submit](Self::submit_read) a few requests without a task that
    /// drives the connection, and then do something else for a while.
    pub fn send_submitted(&self) {
        let mut cx = Context::from_waker(Waker::noop());
        for link in &self.shared.links {
            if let Some(lead) = &link.lead {
                lead.push(link, &mut cx);
            }
        }
    }

    /// Leaves the server: takes no more requests, waits for those in flight, then says goodbye. Requests of clones fail
    /// with [`Error::Disconnected`] from now on.
    ///
    /// Cancel-safe: when dropped, the server is left all the same, as soon as requests in flight are answered.
    pub async fn disconnect(&self) {
        let shared = &self.shared;
        let farewells: Vec<_> = (0..shared.links.len())
            .map(|link| {
                let ticket = shared.spare.ticket();
                shared.links[link].leave(Leaving::Softly, Some(Arc::clone(&ticket)));
                let wait = Wait::new(link, ticket, 0);
                Pending::waiting(Arc::clone(shared), wait, Vec::new(), |_, _| ())
            })
            .collect();
        for farewell in farewells {
            farewell.await;
        }
    }
}

impl Shared {
    fn submit(&self, link: usize, operation: Operation, buffer: Buffer) -> Wait {
        let ticket = self.spare.ticket();
        let covers = if operation.is_flush() { self.links[link].changes() } else { 0 };
        let mut transfer = Transfer::new(operation, buffer, Arc::clone(&ticket));
        transfer.deadline = self.timeout.and_then(|limit| Instant::now().checked_add(limit));
        self.links[link].submit(transfer);
        Wait::new(link, ticket, covers)
    }

    /// The connection for the next request: in turn, but none that is lost if there is another.
    fn choose(&self) -> usize {
        let count = self.links.len();
        if count == 1 {
            return 0;
        }
        let first = self.next.fetch_add(1, Ordering::Relaxed) % count;
        let order = (first..count).chain(0..first);
        order.into_iter().find(|at| self.links[*at].is_open()).unwrap_or(first)
    }

    /// Waits for an outcome, and drives the connection if that is the caller's.
    pub(super) fn poll_ticket(
        &self,
        link: usize,
        ticket: &Arc<Ticket>,
        role: &mut Role,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        let own = &self.links[link];
        let Some(lead) = &own.lead else { return ticket.poll(cx) };
        if !ticket.is_done() {
            self.push_others(link, cx);
        }
        lead.poll(own, ticket, role, cx)
    }

    /// Sends what is queued for other connections, which their own waiters will drive.
    fn push_others(&self, but: usize, cx: &mut Context<'_>) {
        for (at, link) in self.links.iter().enumerate() {
            if let Some(lead) = link.lead.as_ref().filter(|_| at != but) {
                lead.push(link, cx);
            }
        }
    }
}

impl Deref for Client {
    type Target = Negotiated;

    fn deref(&self) -> &Negotiated {
        &self.shared.negotiated
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for link in &self.links {
            link.leave(Leaving::Now, None);
        }
        let mut cx = Context::from_waker(Waker::noop());
        for link in &self.links {
            if let Some(lead) = &link.lead {
                lead.push(link, &mut cx);
            }
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("peer", &self.peer())
            .field("export", &self.details().name)
            .field("size", &self.size())
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

/// A session as a task. When the runtime drops it, everybody is told.
struct Driver<T: Transport> {
    link: Arc<Link>,
    session: Session<T>,
}

impl<T: Transport> Driver<T> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.session.poll(&self.link, cx, None)
    }
}

impl<T: Transport> Drop for Driver<T> {
    fn drop(&mut self) {
        self.session.end(&self.link, Closed::Lost(LostReason::Abandoned));
    }
}
