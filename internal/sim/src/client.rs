//! Clients: what they ask for, and what they make of the answers.

mod lane;
mod verdict;

use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nbd_engine::client::{Client, ClientConfig, Error, Limits, Uri};

use crate::disk::Disk;
use crate::mutation::Mutation;
use crate::net::{Dialer, Net};
use crate::oracle::Oracle;
use crate::plan::{ClientPlan, DiskPlan, ServerPlan, Step};
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
    let config = config(&plan);
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
        let lanes = plan.lanes.iter().enumerate().map(|(number, steps)| {
            let cursor = &cursors[number];
            lane::run(&around, &client, steps, cursor, &plan)
        });
        // Each has a waker of its own, as threads have.
        let mut lanes: FuturesUnordered<_> = lanes.collect();
        while lanes.next().await.is_some() {}
        drop(lanes);
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
    if plan.structured_replies {
        config = config.with_contexts(["base:allocation"]);
    }
    config
}
