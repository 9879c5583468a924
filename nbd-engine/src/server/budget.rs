//! The memory that the connections of a server may hold in buffers, all together.
//!
//! Each connection has a small share that no other connection can take. What it needs beyond that it leases from the
//! rest, which is granted in turn. A connection that holds some of it gets no more than it leaves for others; one that
//! holds nothing gets what it needs as soon as there is so much. Every other turn is that of the connection that has
//! moved most data so far, so that clients which work don't wait behind all those that only ask. Connections keep what
//! they have leased as long as no other one waits and they are not idle, so that the common budget is not looked at for
//! each request.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// The share of its own that a connection gets at most.
const MAX_SHARE: usize = 256 << 10;

/// Buffers are this much larger than their content at most.
const ROUNDED: usize = 64 << 10;

/// The buffers of all connections of a server.
#[derive(Debug)]
pub(crate) struct BufferBudget {
    /// Bytes of all shares and of what is leased beyond them.
    total: usize,
    /// Bytes that each connection may hold whatever the others do.
    share: usize,
    /// Bytes that are leased beyond the shares.
    rest: usize,
    state: Mutex<State>,
    /// Connections that wait.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    leased: usize,
    queue: VecDeque<Waiter>,
    /// Whether the next turn is that of the first in the queue, rather than of the one that has moved most.
    first_come: bool,
}

#[derive(Debug)]
struct Waiter {
    /// Where the grant is put; tells the waiter from others, too.
    granted: Arc<AtomicUsize>,
    /// What it leases already.
    leased: usize,
    /// Whether it uses some of that.
    holds: bool,
    /// What it needs besides.
    needs: usize,
    /// Bytes that its connection has moved.
    moved: u64,
    waker: Waker,
}

impl BufferBudget {
    /// A budget of `total` bytes for so many connections, but of twice the longest payload at least.
    pub(crate) fn new(total: usize, connections: usize, max_payload: usize) -> Self {
        let total = total.max(max_payload.saturating_add(ROUNDED).saturating_mul(2));
        let share = (total / 2 / connections.max(1)).min(MAX_SHARE);
        let rest = total - share * connections.max(1);
        Self { total, share, rest, state: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    /// All that connections may hold together, in bytes.
    pub(crate) const fn total(&self) -> usize {
        self.total
    }

    /// Whether connections wait for what others hold.
    pub(crate) fn is_crowded(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grants what can be granted, in turn.
    fn grant(&self, mut state: MutexGuard<'_, State>) {
        let mut wakers = Vec::new();
        while let Some(index) = self.next_turn(&state) {
            let free = self.rest.saturating_sub(state.leased);
            if state.queue[index].needs > free {
                // It is its turn: what comes free is kept for it.
                break;
            }
            if let Some(waiter) = state.queue.remove(index) {
                state.leased += waiter.needs;
                state.first_come = !state.first_come;
                waiter.granted.store(waiter.needs, Ordering::Release);
                wakers.push(waiter.waker);
            }
        }
        self.waiting.store(state.queue.len(), Ordering::Relaxed);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whose turn it is, by index. Those that wait for what they hold themselves have none.
    fn next_turn(&self, state: &State) -> Option<usize> {
        let free = self.rest.saturating_sub(state.leased);
        let modest = |waiter: &Waiter| {
            !waiter.holds || waiter.leased + waiter.needs <= (waiter.leased + free) / 2
        };
        let mut turns = state.queue.iter().enumerate().filter(|(_, waiter)| modest(waiter));
        if state.first_come {
            return turns.next().map(|(index, _)| index);
        }
        // The earlier one of two that have moved the same.
        turns.rev().max_by_key(|(_, waiter)| waiter.moved).map(|(index, _)| index)
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            let mut state = self.lock();
            state.leased -= bytes;
            self.grant(state);
        }
    }
}

/// What one connection holds.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<BufferBudget>,
    /// Bytes that are this connection's own.
    share: usize,
    /// Bytes in use.
    used: usize,
    /// Bytes that were received and sent so far.
    moved: u64,
    /// Bytes beyond the share that were granted.
    leased: usize,
    /// Whether this account is in the queue, or has been granted something there that it did not take note of yet.
    waits: bool,
    granted: Arc<AtomicUsize>,
}

impl Account {
    pub(crate) fn new(budget: Arc<BufferBudget>) -> Self {
        let share = budget.share;
        Self { budget, share, used: 0, moved: 0, leased: 0, waits: false, granted: Arc::default() }
    }

    /// Bytes in use.
    pub(crate) const fn used(&self) -> usize {
        self.used
    }

    /// Bytes that can be used without asking anybody.
    #[inline]
    pub(crate) const fn free(&self) -> usize {
        (self.share + self.leased).saturating_sub(self.used)
    }

    /// What a request is charged that may need so many bytes. A request that may need more than there is, such as a
    /// block status with the largest bounds, is charged all there is.
    #[inline]
    pub(crate) fn cap(&self, bytes: usize) -> usize {
        bytes.min(self.budget.rest)
    }

    /// Takes so many bytes, which were [capped](Self::cap), into use if they can be had. Otherwise the waker is woken
    /// once it is worth trying again, until when the connection must not take in more.
    #[inline]
    pub(crate) fn charge(&mut self, bytes: usize, waker: &Waker) -> bool {
        if self.waits {
            let granted = self.granted.swap(0, Ordering::Acquire);
            self.leased += granted;
            self.waits = granted == 0;
        }
        if bytes > self.free() && !self.lease(bytes, waker) {
            return false;
        }
        self.stop_waiting();
        self.used += bytes;
        true
    }

    /// Leases what is missing for so many bytes, or gets into the queue and gives back what it does not use.
    #[cold]
    fn lease(&mut self, bytes: usize, waker: &Waker) -> bool {
        let mut state = self.budget.lock();
        // A connection that kept what it does not use while it waits could wait for one that waits for just that.
        let unused = self.free().min(self.leased);
        self.leased -= unused;
        state.leased -= unused;
        let (leased, needs) = (self.leased, bytes - self.free());
        let holds = self.used > self.share;
        let own = state.queue.iter_mut().find(|one| Arc::ptr_eq(&one.granted, &self.granted));
        match own {
            Some(own) => {
                (own.leased, own.holds, own.needs) = (leased, holds, needs);
                own.moved = self.moved;
                own.waker.clone_from(waker);
            }
            // It may have been granted something since it was looked at.
            None => {
                let granted = Arc::clone(&self.granted);
                let (moved, waker) = (self.moved, waker.clone());
                state.queue.push_back(Waiter { granted, leased, holds, needs, moved, waker });
            }
        }
        self.waits = true;
        self.budget.grant(state);
        let granted = self.granted.swap(0, Ordering::Acquire);
        self.leased += granted;
        self.waits = granted == 0;
        bytes <= self.free()
    }

    /// Leases so much that `bytes` can be used besides what is in use, if no other connection waits and as much is left
    /// for others: for buffers that are kept although they are not needed at the moment.
    pub(crate) fn extend(&mut self, bytes: usize) -> bool {
        let Some(missing) = bytes.checked_sub(self.free()).filter(|missing| *missing > 0) else {
            return true;
        };
        let mut state = self.budget.lock();
        let leased = state.leased + missing;
        if !state.queue.is_empty() || leased > self.budget.rest / 2 {
            return false;
        }
        state.leased = leased;
        self.leased += missing;
        true
    }

    /// What it waits for is not needed any more.
    #[inline]
    pub(crate) fn stop_waiting(&mut self) {
        if core::mem::take(&mut self.waits) {
            self.leave_queue();
        }
    }

    #[cold]
    fn leave_queue(&mut self) {
        let mut state = self.budget.lock();
        state.queue.retain(|one| !Arc::ptr_eq(&one.granted, &self.granted));
        self.budget.grant(state);
        self.leased += self.granted.swap(0, Ordering::Acquire);
    }

    /// The connection has moved so many bytes.
    pub(crate) const fn credit(&mut self, bytes: usize) {
        self.moved = self.moved.saturating_add(bytes as u64);
    }

    /// So many bytes are no longer in use. What was leased stays for the next request, unless others wait.
    #[inline]
    pub(crate) fn release(&mut self, bytes: usize) {
        self.used -= bytes;
        if bytes > 0 && self.budget.is_crowded() {
            self.give_back_unused();
        }
    }

    /// Gives back what is leased and not in use. One that waits does so when it tries again.
    pub(crate) fn give_back_unused(&mut self) {
        if self.waits {
            return;
        }
        let unused = self.free().min(self.leased);
        self.leased -= unused;
        self.budget.give_back(unused);
    }

    /// Whether others wait for what this connection holds beyond its share.
    #[inline]
    pub(crate) fn is_in_the_way(&self) -> bool {
        self.leased > 0 && self.budget.is_crowded()
    }

    /// Splits off what outlives the connection: so many bytes that others still use.
    pub(crate) fn split_off(&mut self, bytes: usize) -> Remainder {
        let bytes = bytes.min(self.used);
        self.used -= bytes;
        // The share ends with the connection; what is beyond it stays leased.
        let leased = bytes.min(self.leased);
        self.leased -= leased;
        Remainder { budget: Arc::clone(&self.budget), bytes: leased }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.stop_waiting();
        self.budget.give_back(core::mem::take(&mut self.leased));
    }
}

/// Buffers that outlive their connection, in the hands of threads that hang.
#[derive(Debug)]
pub(crate) struct Remainder {
    budget: Arc<BufferBudget>,
    bytes: usize,
}

impl Drop for Remainder {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests;
