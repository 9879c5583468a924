//! Requests that were submitted.

use core::fmt;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::sync::Arc;

use super::handle::Shared;
use super::lead::Role;
use super::ticket::{Outcome, Ticket};

/// A request that was submitted: a future of its outcome.
///
/// Cancel-safe: dropping it gives up the outcome, not the connection. A request that was not sent by then is not sent any
/// more; one that was may be carried out. Its buffer is dropped once the server has answered.
///
/// Where there is no task to drive the connection (with `nbd-blocking`), nothing happens while nobody waits for any
/// request of the client.
#[must_use = "nobody learns how the request went"]
pub struct Pending<R> {
    state: State<R>,
    /// What the outcome is for whoever asked.
    convert: fn(&Shared, Outcome) -> R,
}

enum State<R> {
    Waiting {
        shared: Arc<Shared>,
        wait: Wait,
        /// The same request on other connections: the outcome is there once all of them are answered.
        more: Vec<Wait>,
    },
    /// Known without asking the server.
    Known(R),
    Over,
}

/// A request on one connection.
pub(super) struct Wait {
    link: usize,
    ticket: Arc<Ticket>,
    role: Role,
    /// For a flush: the connection's changes that it covers.
    covers: u64,
}

impl Wait {
    pub(super) fn new(link: usize, ticket: Arc<Ticket>, covers: u64) -> Self {
        Self { link, ticket, role: Role::Bystander, covers }
    }

    /// Whether the outcome is there; if not, the task is woken once it is, and the connection driven if that is the
    /// caller's.
    fn poll_done(&mut self, shared: &Shared, cx: &mut Context<'_>) -> bool {
        self.ticket.watch(cx);
        if !self.ticket.is_done() {
            let link = &shared.links[self.link];
            let Some(lead) = &link.lead else { return false };
            lead.drive(link, &self.ticket, &mut self.role, cx, &|| self.ticket.is_done());
            if !self.ticket.is_done() {
                return false;
            }
        }
        self.leave(shared);
        true
    }

    /// Hands the connection over to others who wait.
    fn leave(&mut self, shared: &Shared) {
        if let Some(lead) = &shared.links[self.link].lead {
            lead.leave(&self.ticket, &mut self.role);
        }
    }

    fn take(&mut self, shared: &Shared) -> Option<Outcome> {
        let outcome = self.ticket.take()?;
        self.leave(shared);
        if outcome.result.is_ok() {
            shared.links[self.link].flushed(self.covers);
        }
        Some(outcome)
    }
}

impl<R> Pending<R> {
    pub(super) fn waiting(
        shared: Arc<Shared>,
        wait: Wait,
        more: Vec<Wait>,
        convert: fn(&Shared, Outcome) -> R,
    ) -> Self {
        Self { state: State::Waiting { shared, wait, more }, convert }
    }

    pub(super) fn known(result: R, convert: fn(&Shared, Outcome) -> R) -> Self {
        Self { state: State::Known(result), convert }
    }

    /// Whether the outcome is there: then neither polling nor [`try_take`](Self::try_take) will wait.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Waiting { wait, more, .. } => {
                wait.ticket.is_done() && more.iter().all(|wait| wait.ticket.is_done())
            }
            State::Known(_) => true,
            State::Over => false,
        }
    }

    /// The outcome, if it is there.
    ///
    /// # Errors
    /// Itself, if it is not.
    pub fn try_take(mut self) -> Result<R, Self> {
        match self.take_now() {
            Some(result) => Ok(result),
            None => Err(self),
        }
    }

    /// Waits until some of these is done, and gives its place in the iteration. `None` when there are none.
    ///
    /// Cancel-safe.
    pub async fn any<'a>(pending: impl Iterator<Item = &'a Self> + Clone) -> Option<usize>
    where
        R: 'a,
    {
        pending.clone().next()?;
        let mut vigil = Vigil { pending, first: None, more: Vec::new() };
        Some(poll_fn(|cx| vigil.poll(cx)).await)
    }

    fn take_now(&mut self) -> Option<R> {
        if !self.is_done() {
            return None;
        }
        if let State::Waiting { shared, wait, .. } = &mut self.state {
            let outcome = wait.take(shared)?;
            return Some(self.conclude(outcome));
        }
        match core::mem::replace(&mut self.state, State::Over) {
            State::Known(result) => Some(result),
            _ => None,
        }
    }

    /// With the outcome of the first connection; the others have theirs, too. Any error is the whole one's.
    fn conclude(&mut self, mut outcome: Outcome) -> R {
        let state = core::mem::replace(&mut self.state, State::Over);
        let State::Waiting { shared, wait, more } = state else {
            unreachable!("outcomes come from tickets")
        };
        shared.spare.return_ticket(wait.ticket);
        for mut wait in more {
            let other = wait.take(&shared).map_or(Ok(()), |other| other.result);
            outcome.result = outcome.result.and(other);
            shared.spare.return_ticket(wait.ticket);
        }
        (self.convert)(&shared, outcome)
    }
}

impl<R> Unpin for Pending<R> {}

impl<R> Future for Pending<R> {
    type Output = R;

    /// # Panics
    /// After it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        let this = &mut *self;
        let outcome = match &mut this.state {
            State::Waiting { shared, wait, more } if more.is_empty() => {
                let Wait { link, ticket, role, covers } = wait;
                let outcome = ready!(shared.poll_ticket(*link, ticket, role, cx));
                if outcome.result.is_ok() {
                    shared.links[*link].flushed(*covers);
                }
                outcome
            }
            State::Waiting { shared, wait, more } => {
                // Each is polled, done or not: whoever leads a connection has to go on with it, or hand it over.
                let mut done = wait.poll_done(shared, cx);
                for wait in more {
                    done &= wait.poll_done(shared, cx);
                }
                return match done.then(|| this.take_now()).flatten() {
                    Some(result) => Poll::Ready(result),
                    None => Poll::Pending,
                };
            }
            State::Known(_) => {
                return this.take_now().map_or(Poll::Pending, Poll::Ready);
            }
            State::Over => panic!("a request was polled after its outcome was taken"),
        };
        Poll::Ready(this.conclude(outcome))
    }
}

impl<R> Drop for Pending<R> {
    fn drop(&mut self) {
        if let State::Waiting { shared, wait, more } = &mut self.state {
            for wait in core::iter::once(wait).chain(more) {
                wait.ticket.abandon();
                wait.leave(shared);
            }
        }
    }
}

impl<R> fmt::Debug for Pending<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("done", &self.is_done()).finish_non_exhaustive()
    }
}

/// Waits for any of several requests. Where callers drive, it drives every connection that one of them is on.
struct Vigil<'a, I> {
    pending: I,
    /// In whose name it drives, for each connection; mostly there is one.
    first: Option<Post<'a>>,
    more: Vec<Post<'a>>,
}

struct Post<'a> {
    shared: &'a Arc<Shared>,
    link: usize,
    ticket: &'a Arc<Ticket>,
    role: Role,
}

impl<'a, R: 'a, I: Iterator<Item = &'a Pending<R>> + Clone> Vigil<'a, I> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let pending = self.pending.clone();
        let done = || pending.clone().position(Pending::is_done);
        if let Some(at) = done() {
            return Poll::Ready(at);
        }
        for pending in self.pending.clone() {
            if let State::Waiting { shared, wait, more } = &pending.state {
                for Wait { link, ticket, .. } in core::iter::once(wait).chain(more) {
                    ticket.watch(cx);
                    if !ticket.is_done() {
                        self.enter(shared, *link, ticket);
                    }
                }
            }
        }
        for Post { shared, link, ticket, role } in self.first.iter_mut().chain(&mut self.more) {
            let link = &shared.links[*link];
            if let Some(lead) = &link.lead {
                lead.drive(link, ticket, role, cx, &|| done().is_some());
            }
        }
        done().map_or(Poll::Pending, Poll::Ready)
    }

    fn enter(&mut self, shared: &'a Arc<Shared>, link: usize, ticket: &'a Arc<Ticket>) {
        let known = |post: &Post<'_>| post.link == link && Arc::ptr_eq(post.shared, shared);
        if shared.links[link].lead.is_none() || self.first.iter().chain(&self.more).any(known) {
            return;
        }
        let post = Post { shared, link, ticket, role: Role::Bystander };
        match self.first {
            None => self.first = Some(post),
            Some(_) => self.more.push(post),
        }
    }
}

impl Drop for Post<'_> {
    fn drop(&mut self) {
        if let Some(lead) = &self.shared.links[self.link].lead {
            lead.leave(self.ticket, &mut self.role);
        }
    }
}
