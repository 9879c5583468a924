//! Runs every workload on every server, round after round.

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::child::Running;
use crate::cpu::CpuSample;
use crate::load::{Connection, Load};
use crate::mode::Mode;
use crate::servers::Server;
use crate::stats;
use crate::workload::{Workload, touch};

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The servers, in the order of the tables.
    pub servers: Vec<Server>,
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// How long each run takes.
    pub duration: Duration,
    /// How often each run is repeated.
    pub rounds: u32,
}

/// One run of one workload on one server.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Requests in a second.
    pub rate: f64,
    /// MiB of payload in a second.
    pub mib_rate: f64,
    /// Microseconds of CPU that a request took of the server.
    pub server_cpu: f64,
    /// And of the load generator.
    pub client_cpu: f64,
}

/// Whether a server could be run at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It ran.
    Ran,
    /// The program does not exist here.
    Missing,
    /// It did not start, or a run failed; why.
    Failed(String),
}

/// All that is known of one server.
#[derive(Clone, Debug)]
pub struct Record {
    /// The server.
    pub server: Server,
    /// What it says of itself.
    pub version: String,
    /// Whether it ran.
    pub state: State,
    /// Samples of each workload, in the order of [`Plan::workloads`].
    pub samples: Vec<Vec<Sample>>,
}

impl Record {
    /// The median of some figure of the workload with this index.
    pub fn median(&self, workload: usize, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
        stats::median(self.samples[workload].iter().map(figure))
    }

    /// How far the rates of the rounds are apart.
    pub fn spread(&self, workload: usize) -> Option<f64> {
        let rates: Vec<f64> = self.samples[workload].iter().map(|sample| sample.rate).collect();
        stats::spread(&rates)
    }
}

/// Runs the plan. The servers take turns in each round, so that whatever else the machine does
/// meets all of them. Only one is alive at a time.
///
/// A server that fails once is out; `interrupted` ends it all early.
pub fn compare(plan: &Plan, interrupted: &AtomicBool) -> io::Result<Vec<Record>> {
    let mut records: Vec<Record> = plan.servers.iter().map(|server| record(server, plan)).collect();
    for round in 1..=plan.rounds {
        for record in &mut records {
            if record.state != State::Ran {
                continue;
            }
            eprintln!("round {round} of {}: {}", plan.rounds, record.server.name);
            let result = run_server(plan, record, interrupted);
            if interrupted.load(Ordering::Relaxed) {
                return Err(ErrorKind::Interrupted.into());
            }
            if let Err(state) = result {
                eprintln!("    {state:?}");
                record.state = state;
            }
        }
    }
    Ok(records)
}

fn record(server: &Server, plan: &Plan) -> Record {
    let version = server.version();
    let state = if version.is_some() { State::Ran } else { State::Missing };
    Record {
        server: server.clone(),
        version: version.unwrap_or_default(),
        state,
        samples: vec![Vec::new(); plan.workloads.len()],
    }
}

/// One life of a server: all workloads once.
fn run_server(plan: &Plan, record: &mut Record, interrupted: &AtomicBool) -> Result<(), State> {
    let running = start(&record.server)?;
    let failed = |what: &str, error: io::Error| {
        State::Failed(format!("{what}: {error}; server: {}", running.complaint()))
    };
    touch_disk(&running).map_err(|error| failed("first write", error))?;
    for (workload, samples) in plan.workloads.iter().zip(&mut record.samples) {
        if interrupted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let sample = running
            .connect(Mode::Simple)
            .and_then(|connection| {
                measure(connection, running.pid(), &workload.load(plan.duration))
            })
            .map_err(|error| failed(workload.name, error))?;
        eprintln!("    {:<14} {:>10.0} requests/s", workload.name, sample.rate);
        samples.push(sample);
    }
    Ok(())
}

pub(crate) fn start(server: &Server) -> Result<Running, State> {
    Running::start(server).map_err(|error| match error.kind() {
        ErrorKind::NotFound => State::Missing,
        _ => State::Failed(error.to_string()),
    })
}

pub(crate) fn touch_disk(running: &Running) -> io::Result<()> {
    let mut connection = running.connect(Mode::Simple)?;
    connection.run(&touch(connection.export().size))?;
    connection.disconnect()
}

/// One run. The connection is open at both samples, so that the threads that serve it are too.
pub(crate) fn measure(mut connection: Connection, server: u32, load: &Load) -> io::Result<Sample> {
    let own = std::process::id();
    settle();
    let (server_before, client_before) = (CpuSample::of(server)?, CpuSample::of(own)?);
    let outcome = connection.run(load)?;
    settle();
    let (server_after, client_after) = (CpuSample::of(server)?, CpuSample::of(own)?);
    connection.disconnect()?;
    let micros = |after: &CpuSample, before| {
        after.since(before).as_secs_f64() * 1e6 / outcome.requests as f64
    };
    Ok(Sample {
        rate: outcome.rate(),
        mib_rate: outcome.mib_rate(),
        server_cpu: micros(&server_after, &server_before),
        client_cpu: micros(&client_after, &client_before),
    })
}

/// Time for the server to fall asleep: what a thread used is booked when it leaves the CPU.
pub(crate) fn settle() {
    thread::sleep(Duration::from_millis(5));
}
