//! Waiting for whichever of several requests is answered first.

use core::task::{Context, Poll};
use std::sync::Arc;

use super::client::Shared;
use super::completion::Completion;
use super::leader_follower::Role;
use super::pending::{Pending, State, Wait};

/// Waits for any of several requests. Where callers drive, it drives every connection that one of them is on.
pub(super) struct WaitAny<'a, I> {
    pending: I,
    /// In whose name it drives, for each connection; mostly there is one.
    first: Option<Participant<'a>>,
    more: Vec<Participant<'a>>,
}

/// The part that the waiter has in driving one connection.
struct Participant<'a> {
    shared: &'a Arc<Shared>,
    index: usize,
    completion: &'a Arc<Completion>,
    role: Role,
}

impl<'a, R: 'a, I: Iterator<Item = &'a Pending<R>> + Clone> WaitAny<'a, I> {
    pub(super) const fn new(pending: I) -> Self {
        Self { pending, first: None, more: Vec::new() }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        let pending = self.pending.clone();
        let done = || pending.clone().position(Pending::is_done);
        if let Some(index) = done() {
            return Poll::Ready(index);
        }
        loop {
            let before = self.participants();
            let drives_all = self.join_all(cx);
            for each in self.first.iter_mut().chain(&mut self.more) {
                let Participant { shared, index, completion, role } = each;
                if let Some(drivers) = &shared.connections[*index].drivers {
                    drivers.drive(completion, role, cx, &|| done().is_some());
                }
            }
            // Driving one connection may show that another one has to be driven for it.
            if !drives_all || self.participants() == before || done().is_some() {
                break;
            }
        }
        done().map_or(Poll::Pending, Poll::Ready)
    }

    /// Takes part in driving whatever may be waited for. Gives whether that is all connections of a client.
    fn join_all(&mut self, cx: &Context<'_>) -> bool {
        let mut drives_all = false;
        for pending in self.pending.clone() {
            let State::Waiting { shared, wait, more } = &pending.state else { continue };
            for Wait { index, completion, .. } in core::iter::once(wait).chain(more) {
                completion.watch(cx);
                if completion.is_done() {
                    continue;
                }
                self.join(shared, *index, completion);
                if shared.drives_all(completion) {
                    drives_all = true;
                    let others = 0..shared.connections.len();
                    others.for_each(|other| self.join(shared, other, completion));
                }
            }
        }
        drives_all
    }

    fn participants(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// Takes part in driving a connection, in the name of one request on it.
    fn join(&mut self, shared: &'a Arc<Shared>, index: usize, completion: &'a Arc<Completion>) {
        let known = |one: &Participant<'_>| one.index == index && Arc::ptr_eq(one.shared, shared);
        let is_driven = shared.connections[index].drivers.is_none();
        if is_driven || self.first.iter().chain(&self.more).any(known) {
            return;
        }
        let participant = Participant { shared, index, completion, role: Role::Idle };
        match self.first {
            None => self.first = Some(participant),
            Some(_) => self.more.push(participant),
        }
    }
}

impl Drop for Participant<'_> {
    fn drop(&mut self) {
        if let Some(drivers) = &self.shared.connections[self.index].drivers {
            drivers.leave(self.completion, &mut self.role);
        }
    }
}
