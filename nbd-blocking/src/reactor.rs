//! An event loop for one task on one thread.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use nbd_engine::{BoxFuture, Runtime, Throttle};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

thread_local! {
    /// What the task on this thread waits for, besides being woken.
    static WAITING: RefCell<Waiting> = const {
        RefCell::new(Waiting { sockets: Vec::new(), deadline: None })
    };
    /// Counts the times that this thread looked at its sockets, in numbers that no other thread counts in: a socket may
    /// be used on one thread after the other.
    static TURN: Cell<u64> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) << 40);
    /// What wakes this thread; absent while it is in use.
    static ALARM: Cell<Option<Arc<Alarm>>> = const { Cell::new(None) };
    /// Calls of [`block_on`] that this thread is in.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Threads that ever looked at sockets.
static THREADS: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct Waiting {
    sockets: Vec<(Arc<OwnedFd>, PollFlags)>,
    deadline: Option<Instant>,
}

impl Waiting {
    fn clear(&mut self) {
        self.sockets.clear();
        self.deadline = None;
    }
}

/// The number of this turn. A socket that had nothing to give need not be asked again in the same turn.
pub(crate) fn turn() -> u64 {
    TURN.get()
}

/// The task wants to be polled again once `socket` is ready for `events`. To be said anew in each turn. Outside of
/// [`block_on`] there is no task that could wait, and nobody who would let go of the socket.
pub(crate) fn wait_for(socket: &Arc<OwnedFd>, events: PollFlags) {
    if DEPTH.get() == 0 {
        return;
    }
    WAITING.with_borrow_mut(|waiting| {
        // A task may ask many times in a turn.
        match waiting.sockets.iter_mut().find(|(earlier, _)| Arc::ptr_eq(earlier, socket)) {
            Some((_, wanted)) => *wanted |= events,
            None => waiting.sockets.push((Arc::clone(socket), events)),
        }
    });
}

/// The task wants to be polled again after `duration`, whatever else happens. To be said anew in each turn.
pub(crate) fn wake_after(duration: Duration) {
    if DEPTH.get() > 0
        && let Some(deadline) = Instant::now().checked_add(duration)
    {
        wait_until(deadline);
    }
}

fn wait_until(deadline: Instant) {
    WAITING.with_borrow_mut(|waiting| {
        let earliest = waiting.deadline.map_or(deadline, |earlier| earlier.min(deadline));
        waiting.deadline = Some(earliest);
    });
}

/// Drives a future to its end on this thread. May be called from within a future that it drives already, which then
/// waits.
///
/// # Errors
/// When the platform has no event descriptor left. A thread asks for one once.
pub(crate) fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let here = Here::new()?;
    let waker = Waker::from(Arc::clone(&here.alarm));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        WAITING.with_borrow_mut(Waiting::clear);
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Ok(output);
        }
        here.alarm.sleep();
        TURN.set(TURN.get().wrapping_add(1));
    }
}

/// A call of [`block_on`]: puts everything back when it ends, by a panic too.
struct Here {
    alarm: Arc<Alarm>,
    /// What the task waits for from within which this was called.
    outer: Option<Waiting>,
}

impl Here {
    fn new() -> io::Result<Self> {
        let alarm = match ALARM.take() {
            Some(alarm) => {
                // Whoever woke the thread before now meant an earlier task.
                alarm.state.store(AWAKE, Ordering::Release);
                alarm
            }
            None => {
                let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                Arc::new(Alarm { event, state: AtomicU8::new(AWAKE) })
            }
        };
        let nested = DEPTH.replace(DEPTH.get() + 1) > 0;
        let outer = nested.then(|| WAITING.with_borrow_mut(core::mem::take));
        Ok(Self { alarm, outer })
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        WAITING.with_borrow_mut(|waiting| match self.outer.take() {
            Some(outer) => *waiting = outer,
            None => waiting.clear(),
        });
        DEPTH.set(DEPTH.get() - 1);
        ALARM.set(Some(Arc::clone(&self.alarm)));
    }
}

/// Wakes the thread: by a flag while it runs, by an event descriptor while it sleeps.
struct Alarm {
    event: OwnedFd,
    state: AtomicU8,
}

const AWAKE: u8 = 0;
const NOTIFIED: u8 = 1;
const ASLEEP: u8 = 2;

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP {
            // Fails only when the counter is full, and then the thread wakes anyway.
            let _woken = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

impl Alarm {
    /// Waits for what the task waits for, unless it was woken meanwhile.
    fn sleep(&self) {
        let asleep =
            self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
        if asleep.is_ok() {
            WAITING.with_borrow(|waiting| {
                let timeout = waiting
                    .deadline
                    .map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
                self.wait(waiting, timeout);
            });
        }
        if self.state.swap(AWAKE, Ordering::AcqRel) == NOTIFIED && asleep.is_ok() {
            // Empty when the waker has not got round to writing: that costs one turn more.
            let _emptied = rustix::io::read(&self.event, &mut [0; 8]);
        }
    }

    fn wait(&self, waiting: &Waiting, timeout: Option<Timespec>) {
        // Two descriptors are all there is as a rule: the alarm, and the socket.
        let mut few = [
            PollFd::new(&self.event, PollFlags::IN),
            PollFd::new(&self.event, PollFlags::IN),
            PollFd::new(&self.event, PollFlags::IN),
        ];
        let mut many = Vec::new();
        let descriptors = if waiting.sockets.len() < few.len() {
            for (place, (socket, events)) in few.iter_mut().skip(1).zip(&waiting.sockets) {
                *place = PollFd::from_borrowed_fd(socket.as_fd(), *events);
            }
            &mut few[..=waiting.sockets.len()]
        } else {
            many.push(PollFd::new(&self.event, PollFlags::IN));
            many.extend(
                waiting
                    .sockets
                    .iter()
                    .map(|(socket, events)| PollFd::from_borrowed_fd(socket.as_fd(), *events)),
            );
            &mut many[..]
        };
        // Whatever comes of it (a signal, say), the task looks for itself.
        let _ready = poll(descriptors, timeout.as_ref());
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Threads and their clocks, as the engine asks for them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threads;

impl Runtime for Threads {
    fn shares_threads(&self) -> bool {
        false
    }

    fn sleep(&self, duration: Duration) -> BoxFuture {
        let deadline = Instant::now().checked_add(duration);
        Box::pin(std::future::poll_fn(move |_| match deadline {
            Some(deadline) if Instant::now() >= deadline => Poll::Ready(()),
            Some(deadline) => {
                wait_until(deadline);
                Poll::Pending
            }
            // Further away than the clock can tell.
            None => Poll::Pending,
        }))
    }

    fn spawn(&self, task: BoxFuture) {
        // Clients can have it as often as they connect.
        static FAILURES: Throttle = Throttle::new();
        let run = move || {
            if let Err(error) = block_on(task)
                && let Some(times) = FAILURES.count()
            {
                tracing::error!(%error, times, "closed a connection: its thread cannot wait for events");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("nbd-connection".into()).spawn(run)
            && let Some(times) = FAILURES.count()
        {
            tracing::error!(%error, times, "closed a connection: no thread can be started for it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_woken_by_another_thread_while_it_sleeps() {
        let mut waited = false;
        let woken = std::future::poll_fn(|cx| {
            if core::mem::replace(&mut waited, true) {
                return Poll::Ready(7);
            }
            let waker = cx.waker().clone();
            std::thread::spawn(move || waker.wake());
            Poll::Pending
        });
        assert_eq!(block_on(woken).unwrap(), 7);
    }

    #[test]
    fn a_task_that_wakes_itself_is_polled_again() {
        let mut rounds = 0;
        let counted = std::future::poll_fn(|cx| {
            rounds += 1;
            if rounds == 100 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        block_on(counted).unwrap();
        assert_eq!(rounds, 100);
    }

    #[test]
    fn a_task_may_wait_for_another_one() {
        let mut rounds = 0;
        let outer = std::future::poll_fn(|cx| {
            rounds += 1;
            if rounds == 3 {
                return Poll::Ready(());
            }
            wait_until(Instant::now());
            block_on(Threads.sleep(Duration::from_millis(1))).unwrap();
            // The outer task is still waiting for what it said before.
            assert!(WAITING.with_borrow(|waiting| waiting.deadline.is_some()));
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        block_on(outer).unwrap();
        assert_eq!(rounds, 3);
    }

    #[test]
    fn a_thread_keeps_its_alarm() {
        block_on(async {}).unwrap();
        let before = ALARM.take().map(|alarm| Arc::as_ptr(&alarm).addr());
        block_on(async {}).unwrap();
        // Taking it away had the second call make a new one.
        block_on(async {}).unwrap();
        let first = ALARM.take().unwrap();
        let place = Arc::as_ptr(&first).addr();
        ALARM.set(Some(first));
        block_on(async {}).unwrap();
        assert_eq!(ALARM.take().map(|alarm| Arc::as_ptr(&alarm).addr()), Some(place));
        assert!(before.is_some());
    }

    #[test]
    fn a_socket_is_kept_no_longer_than_it_is_waited_for() {
        let socket = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        wait_for(&socket, PollFlags::IN);
        assert_eq!(Arc::strong_count(&socket), 1, "nobody waits");
        block_on(async {
            wait_for(&socket, PollFlags::IN);
            assert_eq!(Arc::strong_count(&socket), 2);
        })
        .unwrap();
        assert_eq!(Arc::strong_count(&socket), 1);
    }

    #[test]
    fn a_sleep_ends() {
        let start = Instant::now();
        block_on(Threads.sleep(Duration::from_millis(5))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(5));
    }
}
