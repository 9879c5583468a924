//! The runtime: tasks and timers of one thread.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use mio::{Events, Registry, Token};
use nbd_engine::{BoxFuture, Runtime};

/// One thread's tasks, timers and sockets. Clones are the same.
#[derive(Clone)]
pub(crate) struct EventLoop(Arc<Shared>);

struct Shared {
    registry: Registry,
    alarm: Arc<Alarm>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    next_id: usize,
    /// Tasks that are to begin.
    spawned: Vec<BoxFuture>,
    timers: BTreeMap<(Instant, usize), Waker>,
    /// Who waits for a socket. The engine drives a connection by one task, which reads and writes.
    pub(super) sockets: HashMap<Token, Waker>,
}

/// Interrupts the loop's sleep, from any thread: there are tasks to poll.
struct Alarm(mio::Waker);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        // Fails only when the loop is gone.
        let _gone = self.0.wake();
    }
}

impl EventLoop {
    pub(crate) fn new() -> io::Result<(Self, mio::Poll)> {
        let poll = mio::Poll::new()?;
        let alarm = Arc::new(Alarm(mio::Waker::new(poll.registry(), Token(0))?));
        let registry = poll.registry().try_clone()?;
        Ok((Self(Arc::new(Shared { registry, alarm, state: Mutex::default() })), poll))
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn new_id(&self) -> usize {
        let mut state = self.state();
        state.next_id += 1;
        state.next_id
    }

    /// Runs until no task is left: with one that listens, until the service has shut down.
    pub(crate) fn run(&self, mut poll: mio::Poll) -> io::Result<()> {
        let waker = Waker::from(Arc::clone(&self.0.alarm));
        let mut cx = Context::from_waker(&waker);
        let mut events = Events::with_capacity(256);
        let mut tasks = FuturesUnordered::new();
        loop {
            tasks.extend(core::mem::take(&mut self.state().spawned));
            while tasks.poll_next_unpin(&mut cx) == Poll::Ready(Some(())) {}
            if tasks.is_empty() && self.state().spawned.is_empty() {
                return Ok(());
            }
            let next = self.state().timers.keys().next().copied();
            let timeout = next.map(|(at, _)| at.saturating_duration_since(Instant::now()));
            match poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => self.wake_tasks(&events),
            }
        }
    }

    fn wake_tasks(&self, events: &Events) {
        let mut state = self.state();
        let sockets = &mut state.sockets;
        let mut wakers: Vec<_> =
            events.iter().filter_map(|event| sockets.remove(&event.token())).collect();
        let later = state.timers.split_off(&(Instant::now(), usize::MAX));
        wakers.extend(core::mem::replace(&mut state.timers, later).into_values());
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Runtime for EventLoop {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        // Further away than the clock can tell is for ever.
        let at = Instant::now().checked_add(duration);
        let (event_loop, id) = (self.clone(), self.new_id());
        Box::pin(poll_fn(move |cx| {
            if at.is_some_and(|at| Instant::now() >= at) {
                return Poll::Ready(());
            }
            // It stays when the future is dropped before its time, and then wakes somebody in vain.
            let timer = at.map(|at| ((at, id), cx.waker().clone()));
            event_loop.state().timers.extend(timer);
            Poll::Pending
        }))
    }

    fn spawn(&self, task: BoxFuture) {
        // A task that panics, by an export of the program's own, is the end of that task alone.
        let task = AssertUnwindSafe(task).catch_unwind().map(drop);
        self.state().spawned.push(Box::pin(task));
        Arc::clone(&self.0.alarm).wake();
    }
}
