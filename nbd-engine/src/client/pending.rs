//! Requests that were submitted.

use core::fmt;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::sync::Arc;

use super::Error;
use super::client::{Convert, Shared};
use super::completion::{Completion, Outcome};
use super::leader_follower::Role;
use super::reconnect::{Seen, Tally};
use super::wait_any::WaitAny;

/// A request that was submitted: a future of its outcome.
///
/// Cancel-safe: dropping it gives up the outcome, not the connection. A request that was not sent by then is not sent any
/// more; one that was sent may be carried out, [later](super::Client#requests-that-are-given-up), too. Its buffer is dropped
/// once the server has answered.
///
/// Where there is no task to drive the connection (with `nbd-blocking`), nothing happens while nobody waits for any
/// request of the client.
#[must_use = "the outcome is lost when this is dropped"]
pub struct Pending<R> {
    pub(super) state: State<R>,
    convert: Convert<R>,
    /// For a flush where lost connections are replaced.
    seen: Option<Arc<Seen>>,
}

pub(super) enum State<R> {
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
    /// Which connection.
    pub(super) index: usize,
    pub(super) completion: Arc<Completion>,
    role: Role,
    /// For a flush: the connection's changes that it covers.
    covers: u64,
    /// Set where the client's connections wait for each other.
    helping: Option<Box<Helping>>,
}

/// The part that a waiter has in driving each of a client's connections but its own.
struct Helping(Vec<Role>);

impl Wait {
    pub(super) const fn new(index: usize, completion: Arc<Completion>, covers: u64) -> Self {
        Self { index, completion, role: Role::Idle, covers, helping: None }
    }

    /// Drives the client's other connections, if this one may have to wait for them and that is the caller's.
    fn help(&mut self, shared: &Shared, cx: &mut Context<'_>) {
        if self.helping.is_none() && !shared.drives_all(&self.completion) {
            return;
        }
        let idle = || Box::new(Helping(vec![Role::Idle; shared.connections.len()]));
        let helping = self.helping.get_or_insert_with(idle);
        for (index, role) in helping.0.iter_mut().enumerate() {
            if let Some(drivers) = &shared.connections[index].drivers
                && index != self.index
            {
                drivers.drive(&self.completion, role, cx, &|| self.completion.is_done());
            }
        }
    }

    /// Whether the outcome is there; if not, the task is woken once it is, and the connection driven if that is the
    /// caller's.
    fn poll_done(&mut self, shared: &Shared, cx: &mut Context<'_>) -> bool {
        self.completion.watch(cx);
        if !self.completion.is_done() {
            let Some(drivers) = &shared.connections[self.index].drivers else { return false };
            let until = || self.completion.is_done();
            drivers.drive(&self.completion, &mut self.role, cx, &until);
            if !self.completion.is_done() {
                self.help(shared, cx);
            }
            if !self.completion.is_done() {
                return false;
            }
        }
        self.leave(shared);
        true
    }

    /// Hands the connection over to others who wait.
    fn leave(&mut self, shared: &Shared) {
        if let Some(drivers) = &shared.connections[self.index].drivers {
            drivers.leave(&self.completion, &mut self.role);
        }
        let Some(helping) = self.helping.take() else { return };
        for (index, mut role) in helping.0.into_iter().enumerate() {
            if let Some(drivers) = &shared.connections[index].drivers {
                drivers.leave(&self.completion, &mut role);
            }
        }
    }

    fn take(&mut self, shared: &Shared) -> Option<Outcome> {
        let outcome = self.completion.take()?;
        self.leave(shared);
        if outcome.result.is_ok() {
            shared.connections[self.index].handle.flushed(self.covers);
        }
        Some(outcome)
    }
}

impl<R> Pending<R> {
    pub(super) fn waiting(
        shared: Arc<Shared>,
        wait: Wait,
        more: Vec<Wait>,
        convert: Convert<R>,
    ) -> Self {
        Self { state: State::Waiting { shared, wait, more }, convert, seen: None }
    }

    /// It fails if anything is in doubt that this handle of the client has not reported yet.
    pub(super) fn reporting(mut self, seen: Arc<Seen>) -> Self {
        self.seen = Some(seen);
        self
    }

    pub(super) fn known(result: R, convert: Convert<R>) -> Self {
        Self { state: State::Known(result), convert, seen: None }
    }

    /// Whether the outcome is there, without waiting: then neither polling nor [`try_take`](Self::try_take) will wait.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Waiting { wait, more, .. } => {
                wait.completion.is_done() && more.iter().all(|wait| wait.completion.is_done())
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

    /// Waits until one of these is done, and gives its index in the iteration. `None` when there are none.
    ///
    /// Cancel-safe.
    pub async fn any<'a>(pending: impl Iterator<Item = &'a Self> + Clone) -> Option<usize>
    where
        R: 'a,
    {
        pending.clone().next()?;
        let mut wait_any = WaitAny::new(pending);
        Some(poll_fn(|cx| wait_any.poll(cx)).await)
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
        let State::Waiting { shared, mut wait, more } = state else {
            unreachable!("outcomes come from completions")
        };
        if wait.helping.is_some() {
            wait.leave(&shared);
        }
        let free = |index: usize| &shared.connections[index].handle.free;
        free(wait.index).return_completion(wait.completion);
        for mut wait in more {
            let other = wait.take(&shared).map_or(Ok(()), |other| other.result);
            outcome.result = outcome.result.and(other);
            free(wait.index).return_completion(wait.completion);
        }
        if let (Some(seen), Ok(())) = (&self.seen, &outcome.result)
            && let Some(Tally { requests, bytes }) = seen.report()
        {
            let peer = Arc::clone(shared.peer());
            outcome.result = Err(Box::new(Error::InDoubt { peer, requests, bytes }));
        }
        (self.convert)(&shared, wait.index, outcome)
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
                let Wait { index, completion, role, covers, .. } = &mut *wait;
                let outcome = shared.poll_completion(*index, completion, role, cx);
                if outcome.is_pending() {
                    wait.help(shared, cx);
                    return Poll::Pending;
                }
                let outcome = ready!(outcome);
                if outcome.result.is_ok() {
                    shared.connections[*index].handle.flushed(*covers);
                }
                outcome
            }
            State::Waiting { shared, wait, more } => {
                // Each is polled, done or not: the leader of a connection has to go on with it, or hand it over.
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
                wait.completion.abandon();
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
