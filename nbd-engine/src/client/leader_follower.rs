//! Driving a connection without a task of its own: of the threads that wait for their requests, one at a time leads.
//!
//! The first waiter that finds no leader becomes the leader: it polls the session with its own waker, so that its thread
//! is the one that waits for the socket. The others send their requests and wait for their completions. When the leader's
//! own request is answered, or it gives up, it hands the lead to one of them.

use core::fmt;
use core::task::{Context, Poll, Waker};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::completion::{Completion, Outcome};
use super::connection_handle::ConnectionHandle;
use super::session::Session;
use super::wait_queue::WaitQueue;

/// What those who wait for one connection share.
pub(super) struct LeaderFollower {
    session: Mutex<Option<Box<Session>>>,
    waiters: Mutex<Waiters>,
    handle: Arc<ConnectionHandle>,
}

#[derive(Debug, Default)]
struct Waiters {
    led: bool,
    followers: WaitQueue<Arc<Completion>>,
}

/// The part that a waiter has in driving the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Role {
    #[default]
    Idle,
    /// With the index that it has among the followers, unless it was called to lead meanwhile.
    Follower(usize),
    Leader,
}

impl Waiters {
    /// Takes a follower out of the queue, if it still stands there.
    fn remove(&mut self, index: usize, completion: &Arc<Completion>) {
        if self.is_at(index, completion) {
            self.followers.remove(index);
        }
    }

    fn is_at(&self, index: usize, completion: &Arc<Completion>) -> bool {
        self.followers.get(index).is_some_and(|waiter| Arc::ptr_eq(waiter, completion))
    }
}

impl LeaderFollower {
    pub(super) fn new(session: Session, handle: Arc<ConnectionHandle>) -> Self {
        Self { session: Mutex::new(Some(Box::new(session))), waiters: Mutex::default(), handle }
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the outcome of one request, driving the connection if nobody else does.
    pub(super) fn poll(
        &self,
        completion: &Arc<Completion>,
        role: &mut Role,
        cx: &mut Context<'_>,
    ) -> Poll<Outcome> {
        let done = completion.poll(cx);
        if done.is_ready() {
            self.leave(completion, role);
            return done;
        }
        self.drive(completion, role, cx, &|| completion.is_done());
        let done = completion.poll(cx);
        if done.is_ready() {
            self.leave(completion, role);
        }
        done
    }

    /// Drives the connection if nobody else does, in the name of one request. The wakers of all that is waited for are
    /// registered by now, so that neither an outcome nor a hand-over is missed.
    pub(super) fn drive(
        &self,
        completion: &Arc<Completion>,
        role: &mut Role,
        cx: &mut Context<'_>,
        until: &dyn Fn() -> bool,
    ) {
        if *role != Role::Leader && !self.apply(completion, role) {
            return self.push(cx);
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(driven) = &mut *session else { return };
        if driven.poll(cx, Some(until)).is_ready() {
            // Closes the connection.
            *session = None;
        } else if driven.has_more_to_do() {
            cx.waker().wake_by_ref();
        }
    }

    /// Becomes the leader, or a follower if there is one already.
    fn apply(&self, completion: &Arc<Completion>, role: &mut Role) -> bool {
        let mut waiters = self.waiters();
        let follows = match *role {
            Role::Follower(index) if waiters.is_at(index, completion) => Some(index),
            _ => None,
        };
        if waiters.led {
            let push = || waiters.followers.push(Arc::clone(completion));
            *role = Role::Follower(follows.unwrap_or_else(push));
            return false;
        }
        follows.map(|index| waiters.followers.remove(index));
        waiters.led = true;
        *role = Role::Leader;
        true
    }

    /// A waiter waits no more, whatever became of its request. If that leaves no leader, another one is called.
    pub(super) fn leave(&self, completion: &Arc<Completion>, role: &mut Role) {
        let former = core::mem::take(role);
        if former == Role::Idle {
            return;
        }
        let mut waiters = self.waiters();
        match former {
            Role::Leader => waiters.led = false,
            Role::Follower(index) => waiters.remove(index, completion),
            Role::Idle => {}
        }
        // The one that is called applies again when it is polled. Should it leave instead, it comes by here.
        let led = waiters.led;
        let next = if led { None } else { waiters.followers.pop() };
        drop(waiters);
        match next {
            Some(next) => next.nudge(),
            None if !led && self.handle.is_to_end() => self.end(),
            None => {}
        }
    }

    /// Goes on with the end of the connection, since nobody leads, and nobody may come to. Where nothing is left but to
    /// close the transport, that is done at once, unless somebody waits for it.
    fn end(&self) {
        let mut session = match self.session.try_lock() {
            Ok(session) => session,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Whoever drives it comes by here. One who only pushes does not: then the next to wait goes on with the end.
            Err(TryLockError::WouldBlock) => return,
        };
        // A leader has its wakers registered, or waits for the session, and then registers them.
        if self.waiters().led {
            return;
        }
        let Some(driven) = &mut *session else { return };
        let _driven = driven.poll(&mut Context::from_waker(Waker::noop()), None);
        if driven.is_over() && !self.handle.is_end_awaited() {
            driven.abandon();
            *session = None;
        }
    }

    /// Sends what is queued, beside a leader that may be asleep.
    pub(super) fn push(&self, cx: &mut Context<'_>) {
        // The leader has taken all there was, and sends it when it can. To wake it for nothing new would keep the leaders
        // of several connections busy, each of which pushes the others' connections when it wakes.
        if self.waiters().led && !self.handle.has_queued() {
            return;
        }
        let mut session = match self.session.try_lock() {
            Ok(session) => session,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return self.handle.waker.wake(),
        };
        if let Some(driven) = &mut *session
            && !driven.push(cx)
        {
            self.handle.waker.wake();
        }
    }
}

impl fmt::Debug for LeaderFollower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderFollower").field("waiters", &self.waiters).finish_non_exhaustive()
    }
}
