//! Requests that were submitted.

use core::fmt;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll};
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
        link: usize,
        ticket: Arc<Ticket>,
        role: Role,
    },
    /// Known without asking the server.
    Known(R),
    Over,
}

impl<R> Pending<R> {
    pub(super) fn waiting(
        shared: Arc<Shared>,
        link: usize,
        ticket: Arc<Ticket>,
        convert: fn(&Shared, Outcome) -> R,
    ) -> Self {
        Self { state: State::Waiting { shared, link, ticket, role: Role::Bystander }, convert }
    }

    pub(super) fn known(result: R, convert: fn(&Shared, Outcome) -> R) -> Self {
        Self { state: State::Known(result), convert }
    }

    /// Whether the outcome is there: then neither polling nor [`try_take`](Self::try_take) will wait.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Waiting { ticket, .. } => ticket.is_done(),
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
        match &mut self.state {
            State::Known(_) => {}
            State::Waiting { shared, link, ticket, role } => {
                let outcome = ticket.take()?;
                if let Some(lead) = &shared.links[*link].lead {
                    lead.leave(ticket, role);
                }
                return Some(self.conclude(outcome));
            }
            State::Over => return None,
        }
        match core::mem::replace(&mut self.state, State::Over) {
            State::Known(result) => Some(result),
            _ => None,
        }
    }

    fn conclude(&mut self, outcome: Outcome) -> R {
        let state = core::mem::replace(&mut self.state, State::Over);
        let State::Waiting { shared, ticket, .. } = state else {
            unreachable!("outcomes come from tickets")
        };
        shared.spare.return_ticket(ticket);
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
            State::Waiting { shared, link, ticket, role } => {
                shared.poll_ticket(*link, ticket, role, cx)
            }
            State::Known(_) => {
                return this.take_now().map_or(Poll::Pending, Poll::Ready);
            }
            State::Over => panic!("a request was polled after its outcome was taken"),
        };
        outcome.map(|outcome| this.conclude(outcome))
    }
}

impl<R> Drop for Pending<R> {
    fn drop(&mut self) {
        if let State::Waiting { shared, link, ticket, role } = &mut self.state {
            ticket.abandon();
            if let Some(lead) = &shared.links[*link].lead {
                lead.leave(ticket, role);
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
            if let State::Waiting { shared, link, ticket, .. } = &pending.state {
                ticket.watch(cx);
                self.enter(shared, *link, ticket);
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
