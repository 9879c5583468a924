//! Clients: what they ask for, and what they make of the answers.

mod lane;
mod verdict;

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nbd_engine::client::{Client, ClientConfig, Error, Limits, Reconnect, Uri};

use crate::disk::Disk;
use crate::mutation::Mutation;
use crate::net::{Dialer, Net};
use crate::oracle::{Ended, Oracle};
use crate::plan::{ClientPlan, DiskPlan, Op, ReconnectPlan, ServerPlan, Step};
use crate::stamp;
use crate::world::{Process, World, note};
use verdict::Excuses;

/// Where the server listens.
pub const ADDRESS: SocketAddr = SocketAddr::new(core::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10809);

/// How often a client connects in vain before it gives up.
const MAX_ATTEMPTS: u32 = 40;

/// What the clients of a run share.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Time and tasks.
    pub world: World,
    /// Streams.
    pub net: Net,
    /// The disk that is served.
    pub disk: Disk,
    /// What watches.
    pub oracle: Oracle,
    /// The disk's plan.
    pub disk_plan: DiskPlan,
    /// The server's plan.
    pub server_plan: ServerPlan,
    /// A fault that was put in.
    pub mutation: Option<Mutation>,
    /// Servers that have been replaced, or are about to be.
    pub outages: Arc<Mutex<u64>>,
    /// More clients want connections than the server allows.
    pub crowded: bool,
}

impl Surroundings {
    /// An outage begins.
    pub fn begin_outage(&self) {
        *self.outages.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn outages(&self) -> u64 {
        *self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a client to its end.
pub async fn run(around: Surroundings, plan: ClientPlan, process: Process, index: usize) {
    if plan.caller_drives {
        drive::<true>(around, plan, process, index).await;
    } else {
        drive::<false>(around, plan, process, index).await;
    }
}

async fn drive<const CALLER: bool>(
    around: Surroundings,
    plan: ClientPlan,
    process: Process,
    index: usize,
) {
    let dialer = Dialer::<CALLER>::new(&around.net, around.world.runtime(process));
    let mut plan = plan;
    if let (Some(reconnect), Some(Mutation::SilenceUnnoticed)) =
        (&mut plan.reconnect, around.mutation)
    {
        reconnect.silence = None;
    }
    let mut config = config(&plan);
    if around.mutation == Some(Mutation::KeptNotWrittenAgain) && plan.reconnect.is_some() {
        config = config.with_reconnect(Reconnect::new().with_max_outage(None));
    }
    let uri: Uri = format!("nbd://{ADDRESS}/disk").parse().expect("it is a URI");
    let cursors: Vec<_> = plan.lanes.iter().map(|_| AtomicUsize::new(0)).collect();
    let is_left =
        |(cursor, lane): (&AtomicUsize, &Vec<Step>)| cursor.load(Ordering::Relaxed) < lane.len();
    let mut failures = 0;
    while cursors.iter().zip(&plan.lanes).any(is_left) {
        let client = match Client::connect_by(dialer.clone(), &uri, &config).await {
            Ok(client) => client,
            Err(error) => {
                note(&around.world, || format!("client {index}: {error}"));
                around.judge_connecting(index, &error);
                failures += 1;
                if failures > MAX_ATTEMPTS {
                    break;
                }
                let pause = Duration::from_millis(10).saturating_mul(1 << failures.min(12));
                around.world.sleep(pause).await;
                continue;
            }
        };
        note(&around.world, || format!("client {index}: connected"));
        let acknowledged = Acknowledged::default();
        let keeps = plan.reconnect.is_some_and(|reconnect| reconnect.kept.is_some());
        if keeps {
            around.oracle.keeps(true);
        }
        let lanes = plan.lanes.iter().enumerate().map(|(number, steps)| {
            let cursor = &cursors[number];
            lane::run(&around, &client, steps, cursor, &plan, &acknowledged)
        });
        // Each has a waker of its own, as threads have.
        let mut lanes: FuturesUnordered<_> = lanes.collect();
        while lanes.next().await.is_some() {}
        drop(lanes);
        if keeps {
            make_durable(&around, &client, index).await;
            around.oracle.keeps(false);
        }
        if index.is_multiple_of(2) {
            client.disconnect().await;
        }
        drop(client);
        // A session may be lost again and again.
        failures += 1;
        if failures > MAX_ATTEMPTS {
            break;
        }
    }
    note(&around.world, || format!("client {index}: is done"));
}

/// Flushes what a client keeps, so that it may go.
async fn make_durable<const CALLER: bool>(
    around: &Surroundings,
    client: &Client<Dialer<CALLER>>,
    index: usize,
) {
    for _ in 0..MAX_ATTEMPTS {
        let token = around.oracle.begin(Op::Flush, u64::MAX >> 16, true);
        match client.flush().await {
            Ok(()) => return around.oracle.end(token, Ended::Good(Vec::new())),
            Err(error) => {
                note(&around.world, || format!("client {index}: the last flush: {error}"));
                around.oracle.end(token, Ended::Failed);
            }
        }
        around.world.sleep(Duration::from_millis(100)).await;
    }
    around.oracle.violation(format!("client {index} could not flush what it keeps"));
}

/// What a client wrote and was acknowledged, and no flush has covered yet, nor reported as in doubt: when it was
/// acknowledged, the cell and the stamp.
#[derive(Debug, Default)]
struct Acknowledged {
    writes: Mutex<Vec<(u64, u64, u64)>>,
    /// When what is in doubt was reported: of all that was asked for before that.
    reported: AtomicU64,
}

impl Acknowledged {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, u64, u64)>> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, issued: u64, now: u64, step: &Step) {
        if issued < self.reported.load(Ordering::Relaxed) {
            return;
        }
        if let Op::Write { cell, count, fua: false } = step.op {
            let stamps = (0..count).map(|index| (now, cell + index, stamp::of(step.id, index)));
            self.lock().extend(stamps);
        }
    }

    /// What is in doubt was reported.
    fn reported(&self, now: u64) {
        self.reported.store(now, Ordering::Relaxed);
        self.lock().clear();
    }

    /// A flush has succeeded that was issued at that moment. Gives what it should have reported.
    fn flushed(&self, issued: u64, disk: &Disk) -> Option<(u64, u64)> {
        let mut all = self.lock();
        let covered = all.extract_covered(issued);
        covered.into_iter().find(|(cell, stamp)| disk.has_lost(*cell, *stamp))
    }
}

trait ExtractCovered {
    fn extract_covered(&mut self, issued: u64) -> Vec<(u64, u64)>;
}

impl ExtractCovered for Vec<(u64, u64, u64)> {
    fn extract_covered(&mut self, issued: u64) -> Vec<(u64, u64)> {
        let covered = self.iter().filter(|(when, ..)| *when < issued);
        let covered = covered.map(|(_, cell, stamp)| (*cell, *stamp)).collect();
        self.retain(|(when, ..)| *when >= issued);
        covered
    }
}

impl Surroundings {
    /// Whether a client may fail to connect like that.
    fn judge_connecting(&self, index: usize, error: &Error) {
        let excuses = Excuses::of(self);
        if let Some(why) = verdict::fault_of_connecting(error, &excuses, self.disk.was_resized()) {
            self.oracle.violation(format!("client {index} could not connect, {why}: {error}"));
        }
    }
}

fn config(plan: &ClientPlan) -> ClientConfig {
    let mut config = ClientConfig::new()
        .with_connections(plan.connections)
        .with_request_timeout(plan.request_timeout)
        .with_structured_replies(plan.structured_replies)
        .with_extended_headers(plan.extended_headers)
        .with_limits(Limits::DEFAULT)
        .with_max_in_flight(plan.max_in_flight)
        .with_connect_timeout(Duration::from_secs(20));
    if let Some(ReconnectPlan { kept, seed, silence }) = plan.reconnect {
        let (min, max) = (Duration::from_millis(10), Duration::from_secs(1));
        let mut reconnect = Reconnect::new().with_delays(min, max).with_seed(seed);
        // Servers come back, however often one dies.
        reconnect = reconnect.with_max_outage(None).with_max_resends(1000);
        reconnect = reconnect.with_max_silence(silence.map(Duration::from_nanos));
        if let Some(bytes) = kept {
            reconnect = reconnect.with_kept_writes(bytes);
        }
        config = config.with_reconnect(reconnect);
    }
    if plan.structured_replies {
        config = config.with_contexts(["base:allocation"]);
    }
    config
}
