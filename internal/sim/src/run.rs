//! One run, from its plan to what is wrong with it.

use core::future::poll_fn;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::{Poll, Waker};
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use nbd_support::counting;
use nbd_testkit::Random;

use crate::client::{self, Surroundings};
use crate::disk::Disk;
use crate::mutation::Mutation;
use crate::net::{Death, Net};
use crate::oracle::{Counts, Oracle};
use crate::plan::{ClientPlan, Op, Outage, OutageKind, Plan, Step};
use crate::server::Running;
use crate::world::{OUTSIDE, Process, RuntimeFaults, Stop, World};

/// Virtual time in which everything has to end. Deadlines of minutes may pass one after the other.
const DEADLINE: Duration = Duration::from_secs(4 * 3600);

/// Bytes for a connection, at both of its ends, besides the buffers that the server's budget pays for.
const PER_CONNECTION: usize = 1 << 20;

/// Bytes for what has no bound of its own: the world, the oracle, and texts.
const FIXED: usize = 2 << 20;

/// What became of a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// What is wrong; nothing if the run is good.
    pub violations: Vec<String>,
    /// What happened.
    pub counts: Counts,
    /// Nanoseconds of virtual time.
    pub nanos: u64,
    /// The most bytes that were allocated at a time.
    pub peak: usize,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Runs a plan, with a fault that the oracle should find if `mutation` says so.
///
/// # Panics
/// When the program's allocator is not [`counting::Counting`], which measures the memory of a run.
#[must_use]
pub fn run(plan: &Plan, mutation: Option<Mutation>) -> Report {
    let before = counting::thread_held();
    let probe = Box::new([0u8; 64]);
    assert!(counting::thread_held() >= before + 64, "the program's allocator does not count");
    drop(core::hint::black_box(probe));
    counting::reset_thread_peak();
    let mut report = match catch_unwind(AssertUnwindSafe(|| observed(plan, mutation))) {
        Ok(report) => report,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no text");
            Report {
                violations: vec![format!("something panicked: {text}")],
                counts: Counts::default(),
                nanos: 0,
                peak: 0,
            }
        }
    };
    report.peak = usize::try_from(counting::thread_peak() - before).unwrap_or(0);
    let allowed = memory_bound(plan);
    if report.peak > allowed {
        let text = format!("{} bytes were held at a time, and {allowed} are allowed", report.peak);
        report.violations.push(text);
    }
    let texts: usize = report.violations.iter().map(String::capacity).sum();
    let kept = texts + report.violations.capacity() * size_of::<String>();
    let left = counting::thread_held() - before - kept as isize;
    // A panic leaves what it leaves; so does a run that was cut short.
    if report.violations.is_empty() && left != 0 {
        report.violations.push(format!("{left} bytes were not freed"));
    }
    report
}

/// What a run may hold at a time.
fn memory_bound(plan: &Plan) -> usize {
    let connections: usize = plan.clients.iter().map(|client| client.connections).sum();
    // Those that a client gave up may stay at the server for a while.
    let connections = 3 * connections + 1;
    let longest = (plan.disk.cell * plan.disk.cells) as usize;
    let lanes: usize = plan.clients.iter().map(|client| client.lanes.len()).sum();
    // A lane's buffer, a copy of it, and what is kept of those that were given up.
    let requests = (lanes + 1) * 16 * longest;
    FIXED
        + plan.server.buffer_memory as usize
        + connections * (PER_CONNECTION + 4 * plan.net.window)
        + requests
}

fn observed(plan: &Plan, mutation: Option<Mutation>) -> Report {
    let seeds = &mut Random::new(plan.seed);
    let mut faults = RuntimeFaults::default();
    match mutation {
        Some(Mutation::WakeLost) => faults.lose_one_wake_in = 50,
        Some(Mutation::TimersLate) => faults.stretch = 10,
        _ => {}
    }
    let world = World::new(faults);
    let oracle = Oracle::new(plan.disk.cells);
    let connections: usize = plan.clients.iter().map(|client| client.connections).sum();
    let around = Surroundings {
        net: Net::new(&world, plan.net.clone(), seeds.next()),
        disk: Disk::new(&world, &plan.disk, mutation, seeds.next()),
        world: world.clone(),
        oracle: oracle.clone(),
        disk_plan: plan.disk.clone(),
        server_plan: plan.server.clone(),
        mutation,
        outages: Arc::default(),
        crowded: connections > plan.server.max_connections,
    };
    let main = Box::pin(play(around.clone(), plan.clients.clone(), plan.outages.clone()));
    let stop = world.run(main, DEADLINE, &mut Random::new(seeds.next()));
    let mut violations = oracle.violations();
    violations.extend(around.disk.violations());
    if stop != Stop::Done {
        let open = oracle.open();
        violations.push(format!("the run did not end ({stop:?}); open requests: {open:?}"));
    }
    let repeated = around.disk.repeated();
    let resends = plan.clients.iter().any(|client| client.reconnect.is_some());
    if !repeated.is_empty() && !resends {
        violations.push(format!("carried out more than once: steps {repeated:?}"));
    }
    let (counts, nanos) = (oracle.counts(), world.nanos());
    // Tasks hold the world that they are part of.
    world.end();
    let mut report = Report { violations: Vec::new(), counts, nanos, peak: 0 };
    drop((around, oracle, world));
    // Exactly as long as it says, since what is left is counted.
    report.violations =
        violations.into_iter().map(|text| text.into_boxed_str().into_string()).collect();
    report.violations.shrink_to_fit();
    report
}

/// Counts what is still to be done.
#[derive(Debug, Default)]
struct Remaining {
    count: AtomicUsize,
    waker: Mutex<Option<Waker>>,
}

impl Remaining {
    fn done(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn none(&self) {
        poll_fn(|cx| {
            *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            if self.count.load(Ordering::Relaxed) == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Tells that something is done, however it ends.
struct Task(Arc<Remaining>);

impl Task {
    fn new(remaining: &Arc<Remaining>) -> Self {
        remaining.count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(remaining))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.done();
    }
}

/// Runs clients and servers; then looks at what a last power cut leaves.
async fn play(around: Surroundings, clients: Vec<ClientPlan>, outages: Vec<Outage>) {
    let remaining = Arc::new(Remaining::default());
    let server = Arc::new(Mutex::new(Some(Running::start(&around))));
    let mut processes = Vec::new();
    for (index, plan) in clients.into_iter().enumerate() {
        processes.push(start_client(&around, &remaining, plan, index));
    }
    let replacing = Task::new(&remaining);
    let (inner, servers) = (around.clone(), Arc::clone(&server));
    around.world.spawn(
        OUTSIDE,
        Box::pin(async move {
            for outage in outages {
                inner.world.sleep(Duration::from_nanos(outage.after)).await;
                let former = take(&servers);
                if let Some(former) = former {
                    former.end(&inner, &outage).await;
                }
                inner.world.sleep(Duration::from_nanos(outage.down)).await;
                *servers.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Running::start(&inner));
            }
            drop(replacing);
        }),
    );
    remaining.none().await;
    // Nobody asks for anything any more: all of it has to end.
    if let Some(server) = take(&server) {
        server.shut_down(&around).await;
        // The tasks of the connections end a moment later.
        around.world.sleep(Duration::from_secs(1)).await;
        let power_cut = Outage { after: 0, kind: OutageKind::PowerCut, down: 0, silent: None };
        processes.into_iter().for_each(|process| around.world.kill(process));
        let left = around.world.tasks();
        if left > 0 {
            around.oracle.violation(format!("{left} tasks are left of a server that has drained"));
        }
        server.end(&around, &power_cut).await;
    }
    look_at_what_is_left(&around, &remaining).await;
}

fn take(server: &Mutex<Option<Running>>) -> Option<Running> {
    server.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// A client that reads all of the disk, on a network without faults.
async fn look_at_what_is_left(around: &Surroundings, remaining: &Arc<Remaining>) {
    around.disk.heal();
    around.net.heal();
    let server = Running::start(around);
    let cells = around.disk.cells();
    let steps = (0..cells).map(|cell| Step {
        op: Op::Read { cell, count: 1 },
        id: u64::from(u32::MAX) + cell,
        think: 0,
        cancel_after: None,
        form: 0,
    });
    let plan = ClientPlan {
        connections: 1,
        caller_drives: false,
        request_timeout: None,
        structured_replies: false,
        extended_headers: false,
        max_in_flight: 16,
        lanes: vec![steps.collect()],
        reconnect: None,
        dies_at: None,
    };
    let checked = around.oracle.counts().cells_checked;
    start_client(around, remaining, plan, usize::MAX);
    remaining.none().await;
    let read = around.oracle.counts().cells_checked - checked;
    if read != cells {
        around.oracle.violation(format!("only {read} of {cells} cells could be read in the end"));
    }
    server.shut_down(around).await;
    server.kill(around);
}

/// Starts a client in a process of its own.
fn start_client(
    around: &Surroundings,
    remaining: &Arc<Remaining>,
    plan: ClientPlan,
    index: usize,
) -> Process {
    let process = around.world.process();
    let task = Task::new(remaining);
    let dies_at = plan.dies_at;
    let inner = around.clone();
    around.world.spawn(
        process,
        Box::pin(async move {
            client::run(inner, plan, process, index).await;
            drop(task);
        }),
    );
    if let Some(time) = dies_at {
        let inner = around.clone();
        around.world.spawn(
            OUTSIDE,
            Box::pin(async move {
                inner.world.sleep(Duration::from_nanos(time)).await;
                inner.net.sever(process, Death::Closed);
                inner.world.kill(process);
            }),
        );
    }
    process
}
