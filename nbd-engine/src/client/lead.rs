//! Driving a connection without a task of its own: those who wait for their requests do it in turn.
//!
//! Who waits and finds nobody leading takes the lead: it polls the session with its own waker, so that its thread is the
//! one that waits for the socket. The others send their requests and wait for their tickets. When the leader's own
//! request is answered, or it gives up, it hands the lead to one of them.

use core::fmt;
use core::task::{Context, Poll};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::link::Link;
use super::ticket::{Outcome, Ticket};

/// Whether whoever drives has what it waits for.
pub(crate) type Until<'a> = Option<&'a dyn Fn() -> bool>;

/// A connection that can be driven.
pub(crate) trait Drive: Send {
    /// Drives the connection until nothing is left to do at the moment, or whoever drives has what it waits for. Ready
    /// once the connection is over and everybody was told.
    fn poll(&mut self, link: &Link, cx: &mut Context<'_>, until: Until<'_>) -> Poll<()>;

    /// Only sends what is queued. Gives whether nothing of it is left to do for whoever leads.
    fn push(&mut self, link: &Link, cx: &mut Context<'_>) -> bool;
}

/// What those who wait for one connection share.
pub(crate) struct Lead {
    session: Mutex<Option<Box<dyn Drive>>>,
    post: Mutex<Post>,
}

#[derive(Debug, Default)]
struct Post {
    led: bool,
    waiters: VecDeque<Arc<Ticket>>,
}

/// What somebody who waits has to do with the lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    #[default]
    Bystander,
    Waiter,
    Leader,
}

impl Lead {
    pub(crate) fn new(session: Box<dyn Drive>) -> Self {
        Self { session: Mutex::new(Some(session)), post: Mutex::default() }
    }

    fn post(&self) -> MutexGuard<'_, Post> {
        self.post.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the outcome of one request, driving the connection if nobody else does.
    pub(crate) fn poll(
        &self,
        link: &Link,
        ticket: &Arc<Ticket>,
        role: &mut Role,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        let done = ticket.poll(cx);
        if done.is_ready() {
            self.leave(ticket, role);
            return done;
        }
        self.drive(link, ticket, role, cx, &|| ticket.is_done());
        let done = ticket.poll(cx);
        if done.is_ready() {
            self.leave(ticket, role);
        }
        done
    }

    /// Drives the connection if nobody else does, in the name of one request. The wakers of all that is waited for are
    /// registered by now, so that neither an outcome nor a hand-over is missed.
    pub(crate) fn drive(
        &self,
        link: &Link,
        ticket: &Arc<Ticket>,
        role: &mut Role,
        cx: &mut Context<'_>,
        until: &dyn Fn() -> bool,
    ) {
        if *role != Role::Leader && !self.apply(ticket, role) {
            return self.push(link, cx);
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driven) = &mut *session
            && driven.poll(link, cx, Some(until)).is_ready()
        {
            // Closes the connection.
            *session = None;
        }
    }

    /// Takes the lead, or enlists for it.
    fn apply(&self, ticket: &Arc<Ticket>, role: &mut Role) -> bool {
        let mut post = self.post();
        let enlisted = post.waiters.iter().position(|waiter| Arc::ptr_eq(waiter, ticket));
        if post.led {
            if enlisted.is_none() {
                post.waiters.push_back(Arc::clone(ticket));
            }
            *role = Role::Waiter;
            return false;
        }
        enlisted.map(|at| post.waiters.remove(at));
        post.led = true;
        *role = Role::Leader;
        true
    }

    /// Somebody waits no more, whatever became of its request: if that leaves nobody to lead, another one is called.
    pub(crate) fn leave(&self, ticket: &Arc<Ticket>, role: &mut Role) {
        let former = core::mem::take(role);
        if former == Role::Bystander {
            return;
        }
        let mut post = self.post();
        post.waiters.retain(|waiter| !Arc::ptr_eq(waiter, ticket));
        if former == Role::Leader {
            post.led = false;
        }
        // The one that is called applies again when it is polled. Should it leave instead, it comes by here.
        let next = if post.led { None } else { post.waiters.pop_front() };
        drop(post);
        if let Some(next) = next {
            next.nudge();
        }
    }

    /// Sends what is queued, beside a leader that may be asleep.
    pub(crate) fn push(&self, link: &Link, cx: &mut Context<'_>) {
        let mut session = match self.session.try_lock() {
            Ok(session) => session,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return link.waker.wake(),
        };
        if let Some(driven) = &mut *session
            && !driven.push(link, cx)
        {
            link.waker.wake();
        }
    }
}

impl fmt::Debug for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lead").field("post", &self.post).finish_non_exhaustive()
    }
}
