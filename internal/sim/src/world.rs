//! A runtime in virtual time: one thread, tasks that are polled in a seeded order, and a clock that moves only when no task
//! can run.

use core::cell::RefCell;
use core::fmt;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Wake;
use std::time::Instant;

use nbd_engine::{BoxFuture, Runtime};
use nbd_testkit::Random;

/// What dies together: a server, or a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(pub usize);

/// The process of what is outside the simulated machines: it starts and kills the others.
pub const OUTSIDE: Process = Process(0);

/// Polls without a step of the clock before the tasks count as running in circles.
const MAX_POLLS: u32 = 20_000;

/// How a world stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// The given task is done.
    Done,
    /// No task can run and no timer is set.
    Deadlock,
    /// The clock reached the limit.
    Deadline,
    /// Tasks wake each other without end while the clock stands still.
    Livelock,
}

/// A virtual machine room: tasks, time and chance. Cheap to clone: clones are the same world.
#[derive(Clone)]
pub struct World {
    inner: Arc<Inner>,
}

struct Inner {
    base: Instant,
    /// Nanoseconds since the beginning.
    now: AtomicU64,
    state: Mutex<State>,
    ready: Arc<Ready>,
    /// Sleeps take this many times as long as asked: a fault for the tests of the oracle.
    stretch: u32,
}

#[derive(Default)]
struct State {
    tasks: BTreeMap<u64, Task>,
    next_task: u64,
    next_process: usize,
    timers: BTreeMap<(u64, u64), Waker>,
    next_timer: u64,
    dead: Vec<Process>,
}

struct Task {
    process: Process,
    /// `None` while it is polled.
    future: Option<BoxFuture>,
    alarm: Arc<Alarm>,
}

/// Tasks that want to be polled.
#[derive(Default)]
struct Ready {
    tasks: Mutex<Vec<u64>>,
    /// One of so many wakes is lost: a fault for the tests of the oracle.
    lose_one_in: u64,
    wakes: AtomicU64,
}

struct Alarm {
    task: u64,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let ready = &self.ready;
        if ready.lose_one_in > 0 {
            let count = ready.wakes.fetch_add(1, Ordering::Relaxed);
            if count % ready.lose_one_in == ready.lose_one_in - 1 {
                return;
            }
        }
        if !self.queued.swap(true, Ordering::Relaxed) {
            ready.lock().push(self.task);
        }
    }
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Vec<u64>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Faults of the runtime itself, for the tests of the oracle.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct RuntimeFaults {
    /// One of so many wakes is lost; zero for none.
    pub lose_one_wake_in: u64,
    /// Sleeps take this many times as long, if above one.
    pub stretch: u32,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new(faults: RuntimeFaults) -> Self {
        let ready = Ready { lose_one_in: faults.lose_one_wake_in, ..Ready::default() };
        let state = State { next_process: 1, ..State::default() };
        let inner = Inner {
            base: Instant::now(),
            now: AtomicU64::new(0),
            state: Mutex::new(state),
            ready: Arc::new(ready),
            stretch: faults.stretch.max(1),
        };
        Self { inner: Arc::new(inner) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the beginning.
    #[must_use]
    pub fn nanos(&self) -> u64 {
        self.inner.now.load(Ordering::Relaxed)
    }

    /// A process that nothing runs in yet.
    #[must_use]
    pub fn process(&self) -> Process {
        let mut state = self.state();
        let process = Process(state.next_process);
        state.next_process += 1;
        process
    }

    /// The runtime of a process.
    #[must_use]
    pub fn runtime(&self, process: Process) -> VirtualRuntime {
        VirtualRuntime { world: self.clone(), process, shares_threads: true }
    }

    /// Runs a task in a process; one that is dead drops it.
    pub fn spawn(&self, process: Process, future: BoxFuture) {
        let mut state = self.state();
        if state.dead.contains(&process) {
            drop(state);
            return drop(future);
        }
        let id = state.next_task;
        state.next_task += 1;
        let ready = Arc::clone(&self.inner.ready);
        let alarm = Arc::new(Alarm { task: id, queued: AtomicBool::new(true), ready });
        state.tasks.insert(id, Task { process, future: Some(future), alarm });
        drop(state);
        self.inner.ready.lock().push(id);
    }

    /// Ends all tasks of a process where they are. To be called from another process.
    pub fn kill(&self, process: Process) {
        let mut state = self.state();
        state.dead.push(process);
        let doomed: Vec<u64> = state
            .tasks
            .iter()
            .filter(|(_, task)| task.process == process)
            .map(|(id, _)| *id)
            .collect();
        let doomed: Vec<_> = doomed.into_iter().filter_map(|id| state.tasks.remove(&id)).collect();
        drop(state);
        drop(doomed);
    }

    /// Ends everything, for what is part of a cycle.
    pub fn end(&self) {
        loop {
            let mut state = self.state();
            let tasks = core::mem::take(&mut state.tasks);
            drop(state);
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        self.state().timers.clear();
    }

    /// Tasks that are not done, of all processes but [`OUTSIDE`].
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.state().tasks.values().filter(|task| task.process != OUTSIDE).count()
    }

    /// Waits in virtual time.
    #[must_use]
    pub fn sleep(&self, duration: Duration) -> Sleep {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let due = self.nanos().saturating_add(nanos.saturating_mul(u64::from(self.inner.stretch)));
        Sleep { world: self.clone(), due, key: None }
    }

    /// Runs until `main` is done, but not past `deadline`. `random` chooses which task is next.
    pub fn run(&self, main: BoxFuture, deadline: Duration, random: &mut Random) -> Stop {
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        self.spawn(
            OUTSIDE,
            Box::pin(async move {
                main.await;
                flag.store(true, Ordering::Relaxed);
            }),
        );
        let deadline = u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        let mut polls = 0;
        loop {
            while let Some(id) = self.next_ready(random) {
                self.poll_task(id);
                if done.load(Ordering::Relaxed) {
                    return Stop::Done;
                }
                polls += 1;
                if polls > MAX_POLLS {
                    return Stop::Livelock;
                }
            }
            polls = 0;
            let mut state = self.state();
            let Some((&(due, _), _)) = state.timers.first_key_value() else {
                return Stop::Deadlock;
            };
            if due > deadline {
                return Stop::Deadline;
            }
            self.inner.now.store(due, Ordering::Relaxed);
            let later = state.timers.split_off(&(due + 1, 0));
            let fired = core::mem::replace(&mut state.timers, later);
            drop(state);
            fired.into_values().for_each(Waker::wake);
        }
    }

    fn next_ready(&self, random: &mut Random) -> Option<u64> {
        let mut ready = self.inner.ready.lock();
        match ready.len() {
            0 => None,
            count => {
                let index = random.below(count as u64) as usize;
                Some(ready.swap_remove(index))
            }
        }
    }

    fn poll_task(&self, id: u64) {
        let mut state = self.state();
        let Some(task) = state.tasks.get_mut(&id) else { return };
        task.alarm.queued.store(false, Ordering::Relaxed);
        let Some(mut future) = task.future.take() else { return };
        let waker = Waker::from(Arc::clone(&task.alarm));
        drop(state);
        let poll = future.as_mut().poll(&mut Context::from_waker(&waker));
        let mut state = self.state();
        let removed = match (poll, state.tasks.get_mut(&id)) {
            (Poll::Pending, Some(task)) => {
                task.future = Some(future);
                return;
            }
            // Done, or killed by itself.
            _ => state.tasks.remove(&id),
        };
        drop(state);
        drop((future, removed));
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("nanos", &self.nanos()).finish_non_exhaustive()
    }
}

/// Is ready at a moment of virtual time.
#[derive(Debug)]
pub struct Sleep {
    world: World,
    due: u64,
    key: Option<(u64, u64)>,
}

impl Sleep {
    /// The moment, in nanoseconds since the beginning.
    #[must_use]
    pub const fn due(&self) -> u64 {
        self.due
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.world.nanos() >= self.due {
            return Poll::Ready(());
        }
        let key = self.key;
        let mut state = self.world.state();
        let key = key.unwrap_or_else(|| {
            state.next_timer += 1;
            (self.due, state.next_timer)
        });
        let old = state.timers.insert(key, cx.waker().clone());
        drop(state);
        drop(old);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.world.state().timers.remove(&key);
            drop(waker);
        }
    }
}

/// The engine's view of a process: its tasks and time.
#[derive(Clone, Debug)]
pub struct VirtualRuntime {
    world: World,
    process: Process,
    shares_threads: bool,
}

impl VirtualRuntime {
    /// As a runtime whose connections have threads of their own would report it.
    #[must_use]
    pub const fn with_threads_of_its_own(mut self) -> Self {
        self.shares_threads = false;
        self
    }

    /// The world that it is part of.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> Process {
        self.process
    }
}

impl Runtime for VirtualRuntime {
    fn sleep(&self, duration: Duration) -> BoxFuture {
        Box::pin(self.world.sleep(duration))
    }

    fn now(&self) -> Instant {
        self.world.inner.base + Duration::from_nanos(self.world.nanos())
    }

    fn spawn(&self, task: BoxFuture) {
        self.world.spawn(self.process, task);
    }

    fn shares_threads(&self) -> bool {
        self.shares_threads
    }
}

thread_local! {
    static TRACE: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// From now on what happens on this thread is recorded.
pub fn record() {
    TRACE.set(Some(Vec::new()));
}

/// What was recorded since [`record`].
#[must_use]
pub fn recorded() -> Vec<String> {
    TRACE.take().unwrap_or_default()
}

/// Records an event, if events are recorded.
pub fn note(world: &World, event: impl FnOnce() -> String) {
    TRACE.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            let nanos = world.nanos();
            trace.push(format!("{:>12.6} ms  {}", nanos as f64 / 1e6, event()));
        }
    });
}
