//! Starts the servers and measures them in turn.

use std::io::{self, Error, ErrorKind};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::{Floor, Kernel, TlsPlan};
use crate::child::Running;
use crate::compare::{Sample, State, measure, start, touch_disk};
use crate::mode::Mode;
use crate::process;
use crate::servers::Server;
use crate::{socket, stats};

/// How long `nbd cert` may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// MiB of one measurement of the floor: some tens of milliseconds.
const FLOOR_MIB: usize = 128;

/// One workload of one round.
#[derive(Clone, Debug)]
pub struct Round {
    /// A sample of each server, in the order of the [lanes](Standing::lanes).
    pub samples: Vec<Option<Sample>>,
    /// Microseconds of CPU that the cipher and two copies take for a MiB.
    pub in_memory: f64,
    /// The same where the kernel does one of the copies, through a socket.
    pub by_socket: f64,
    /// The same where the kernel does both, the other one out of or into a file.
    pub by_socket_and_file: f64,
}

/// A server that takes part.
#[derive(Clone, Debug)]
pub struct Lane {
    /// It.
    pub server: Server,
    /// Whether it ran.
    pub state: State,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The servers.
    pub lanes: Vec<Lane>,
    /// The rounds of each workload.
    pub rounds: Vec<Vec<Round>>,
}

impl Standing {
    /// Whether everything was measured.
    pub fn is_complete(&self) -> bool {
        self.lanes.iter().all(|lane| lane.state == State::Ran)
    }

    /// The median of a figure.
    pub fn median(
        &self,
        workload: usize,
        lane: usize,
        figure: impl Fn(&Sample) -> f64,
    ) -> Option<f64> {
        let samples = self.rounds[workload].iter().filter_map(|round| round.samples[lane].as_ref());
        stats::median(samples.map(figure))
    }

    /// How far the rates of the rounds are apart.
    pub fn spread(&self, workload: usize, lane: usize) -> Option<f64> {
        let samples = self.rounds[workload].iter().filter_map(|round| round.samples[lane].as_ref());
        stats::spread(&samples.map(|sample| sample.rate).collect::<Vec<_>>())
    }

    /// The median of the rounds' ratios of the rate to that of the server with the name `to`.
    pub fn ratio(&self, workload: usize, lane: usize, to: &str) -> Option<f64> {
        let other = self.lanes.iter().position(|lane| lane.server.name == to)?;
        let ratios = self.rounds[workload].iter().filter_map(|round| {
            Some(round.samples[lane].as_ref()?.rate / round.samples[other].as_ref()?.rate)
        });
        stats::median(ratios)
    }

    /// The median of the rounds' ratios of a byte's CPU to that of the cipher and two copies, as `floor` has it of a
    /// round; `block` is the bytes of a request.
    pub fn floor_ratio(
        &self,
        workload: usize,
        lane: usize,
        block: u32,
        floor: impl Fn(&Round) -> f64,
    ) -> Option<f64> {
        let requests = f64::from(1 << 20) / f64::from(block);
        let ratios = self.rounds[workload]
            .iter()
            .filter_map(|round| Some((round.samples[lane]?.server_cpu * requests) / floor(round)));
        stats::median(ratios)
    }
}

/// Runs the plan.
///
/// # Errors
/// When no certificates can be made, and when `interrupted`. A server that fails is out.
pub fn run(plan: &TlsPlan, interrupted: &AtomicBool) -> io::Result<Standing> {
    let certificates = make_certificates(plan)?;
    let config = socket::config(&certificates.path().join("ca-cert.pem"))?;
    let mut floor = Floor::new()?;
    let (mut lanes, mut running) = (Vec::new(), Vec::new());
    for server in &plan.servers {
        let with_tls = server.clone().with_tls(certificates.path());
        let begun = begin(if plan.plain { Some(server.clone()) } else { with_tls }, |running| {
            if !plan.plain {
                running.use_tls(Arc::clone(&config));
            }
        });
        let state = match &begun {
            Ok(_) => State::Ran,
            Err(state) => state.clone(),
        };
        if state != State::Ran {
            eprintln!("{}: {state:?}", server.name);
        }
        lanes.push(Lane { server: server.clone(), state });
        running.push(begun.ok());
    }
    let mut rounds = vec![Vec::new(); plan.workloads.len()];
    for number in 0..plan.rounds as usize {
        eprintln!("round {} of {}", number + 1, plan.rounds);
        for (workload, rounds) in plan.workloads.iter().zip(&mut rounds) {
            let mut samples = vec![None; lanes.len()];
            for turn in 0..lanes.len() {
                // Each server is the first of a round as often as the others.
                let index = (turn + number) % lanes.len();
                if interrupted.load(Ordering::Relaxed) {
                    return Err(ErrorKind::Interrupted.into());
                }
                let Some(server) = &running[index] else { continue };
                let sample = server.connect(Mode::Simple).and_then(|connection| {
                    measure(connection, server.pid(), &workload.load(plan.duration))
                });
                match sample {
                    Ok(sample) => samples[index] = Some(sample),
                    Err(error) => {
                        let text = format!("{}: {error}; {}", workload.name, server.complaint());
                        eprintln!("{}: {text}", lanes[index].server.name);
                        lanes[index].state = State::Failed(text);
                        running[index] = None;
                    }
                }
            }
            let mut measure = |kernel| floor.measure(workload.direction, kernel, FLOOR_MIB);
            rounds.push(Round {
                samples,
                in_memory: measure(Kernel::Memory)?,
                by_socket: measure(Kernel::Socket)?,
                by_socket_and_file: measure(Kernel::SocketAndFile)?,
            });
        }
    }
    Ok(Standing { lanes, rounds })
}

fn begin(server: Option<Server>, prepare: impl FnOnce(&mut Running)) -> Result<Running, State> {
    let server = server.ok_or(State::Missing)?;
    if server.version().is_none() {
        return Err(State::Missing);
    }
    let mut running = start(&server)?;
    prepare(&mut running);
    touch_disk(&running).map_err(|error| {
        State::Failed(format!("first write: {error}; server: {}", running.complaint()))
    })?;
    Ok(running)
}

fn make_certificates(plan: &TlsPlan) -> io::Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("nbd-bench").tempdir()?;
    let mut command = Command::new(&plan.nbd);
    let made = process::run(command.arg("cert").arg(folder.path()), PATIENCE)
        .map_err(|error| Error::other(format!("{}: {error}", plan.nbd.display())))?;
    if !made.status.success() {
        return Err(Error::other(format!("nbd cert: {}", made.complaint())));
    }
    Ok(folder)
}
