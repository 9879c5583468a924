//! Runs every workload by every client on every server, round after round.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::arguments::ClientPlan;
use super::catalogue::{Client, LIBNBD};
use super::{fio, libnbd};
use crate::child::Running;
use crate::compare::{State, settle, start, touch_disk};
use crate::cpu::CpuSample;
use crate::load::{Direction, Load};
use crate::process;
use crate::stats;

/// A client may take so much longer than the load.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client did in one run, by its own account.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Requests that were answered.
    pub requests: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// CPU time of the process meanwhile.
    pub cpu: Duration,
}

impl Measured {
    /// What [`parse`](Self::parse) reads.
    pub fn to_json(self) -> Value {
        json!({
            "requests": self.requests,
            "seconds": self.elapsed.as_secs_f64(),
            "cpu_seconds": self.cpu.as_secs_f64(),
        })
    }

    /// What `libnbd_loop.c` and `nbd-bench drive` print.
    pub fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let seconds = |key: &str| Duration::try_from_secs_f64(value.get(key)?.as_f64()?).ok();
        Some(Self {
            requests: value.get("requests")?.as_u64()?,
            elapsed: seconds("seconds")?,
            cpu: seconds("cpu_seconds")?,
        })
    }
}

/// One run in figures.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Requests in a second.
    pub rate: f64,
    /// Microseconds of CPU that a request took of the client.
    pub client_cpu: f64,
    /// And of the server.
    pub server_cpu: f64,
}

/// All runs of one workload by one client on one server: one for each round, unless it failed.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// The rounds.
    pub rounds: Vec<Option<Figures>>,
}

impl Cell {
    /// The median of a figure.
    pub fn median(&self, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
        stats::median(self.rounds.iter().flatten().map(figure))
    }

    /// How far the rates are apart.
    pub fn spread(&self) -> Option<f64> {
        let rates: Vec<f64> = self.rounds.iter().flatten().map(|figures| figures.rate).collect();
        stats::spread(&rates)
    }

    /// The median of the rounds' ratios to those of `other`, which were run just before or after.
    pub fn ratio(&self, other: &Self, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        stats::median(
            pairs.filter_map(|(own, other)| Some(figure(own.as_ref()?) / figure(other.as_ref()?))),
        )
    }
}

/// Everything that came out.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Of each client: whether it ran, and the version if it is known.
    pub clients: Vec<(State, String)>,
    /// Of each server.
    pub servers: Vec<State>,
    /// Why a client that is missing is so.
    pub remedies: Vec<String>,
    /// By server, workload and client.
    pub cells: Vec<Vec<Vec<Cell>>>,
}

impl Standing {
    /// Whether all that was asked for was measured.
    pub fn is_complete(&self) -> bool {
        let mut states = self.clients.iter().map(|(state, _)| state).chain(&self.servers);
        states.all(|state| *state == State::Ran)
    }

    /// The client that the others are held against: libnbd by our own loop, or by fio if that can't
    /// be had. Gives its place.
    pub fn baseline(&self, plan: &ClientPlan) -> Option<usize> {
        let ran = |client: Client| {
            let mut all = plan.clients.iter().zip(&self.clients);
            all.position(|(other, (state, _))| *other == client && *state != State::Missing)
        };
        ran(Client::Libnbd).or_else(|| ran(Client::Fio))
    }
}

/// What is needed to run clients.
struct Tools {
    own: PathBuf,
    private: TempDir,
    libnbd: Option<PathBuf>,
}

/// Runs the plan; `interrupted` ends it early. The clients take turns on each server, and the
/// servers in each round.
///
/// # Errors
/// When it was interrupted, or there is no room for what is needed.
pub fn run(plan: &ClientPlan, interrupted: &AtomicBool) -> io::Result<Standing> {
    let private = tempfile::Builder::new().prefix("nbd-bench").tempdir()?;
    let mut tools = Tools { own: std::env::current_exe()?, private, libnbd: None };
    let mut remedies = Vec::new();
    let clients = plan.clients.iter().map(|client| {
        let found = tools.find(*client);
        found.unwrap_or_else(|remedy| {
            remedies.push(format!("{}: {remedy}", client.name()));
            (State::Missing, String::new())
        })
    });
    let clients = clients.collect();
    let row = vec![vec![Cell::default(); plan.clients.len()]; plan.workloads.len()];
    let mut standing = Standing {
        clients,
        servers: vec![State::Ran; plan.servers.len()],
        remedies,
        cells: vec![row; plan.servers.len()],
    };
    for round in 0..plan.rounds as usize {
        for at in 0..plan.servers.len() {
            if standing.servers[at] != State::Ran {
                continue;
            }
            eprintln!("round {} of {}: {}", round + 1, plan.rounds, plan.servers[at].name);
            let result = run_on(plan, &tools, at, round, &mut standing, interrupted);
            if interrupted.load(Ordering::Relaxed) {
                return Err(ErrorKind::Interrupted.into());
            }
            if let Err(state) = result {
                eprintln!("    {state:?}");
                standing.servers[at] = state;
            }
        }
    }
    Ok(standing)
}

/// One life of a server.
fn run_on(
    plan: &ClientPlan,
    tools: &Tools,
    server: usize,
    round: usize,
    standing: &mut Standing,
    interrupted: &AtomicBool,
) -> Result<(), State> {
    if plan.servers[server].version().is_none() {
        return Err(State::Missing);
    }
    let running = start(&plan.servers[server])?;
    let failed =
        |error: io::Error| State::Failed(format!("{error}; server: {}", running.complaint()));
    touch_disk(&running).map_err(failed)?;
    for (workload, cells) in plan.workloads.iter().zip(&mut standing.cells[server]) {
        for turn in 0..plan.clients.len() {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(());
            }
            // Each client is the first of a round as often as the others.
            let at = (turn + round) % plan.clients.len();
            let (state, _) = &mut standing.clients[at];
            let figures = match state {
                State::Ran => {
                    let load = workload.load(plan.duration);
                    let result = tools.measure(plan.clients[at], &running, &load);
                    result.map_err(|why| *state = State::Failed(why)).ok()
                }
                State::Missing | State::Failed(_) => None,
            };
            if let Some(Figures { rate, .. }) = figures {
                let client = plan.clients[at].name();
                eprintln!("    {:<14} {client:<18} {rate:>10.0} requests/s", workload.name);
            }
            cells[at].rounds.push(figures);
        }
    }
    Ok(())
}

impl Tools {
    /// Makes a client ready to run. The error says what is missing.
    fn find(&mut self, client: Client) -> Result<(State, String), String> {
        match client {
            Client::Libnbd => {
                self.libnbd = Some(libnbd::build(self.private.path())?);
                Ok((State::Ran, libnbd::version().unwrap_or_default()))
            }
            Client::Fio => {
                let mut command = Command::new("fio");
                match process::run(command.arg("--enghelp=nbd"), PATIENCE) {
                    Ok(finished) if finished.output.contains("uri") => {}
                    Ok(_) => return Err("this fio was built without its engine for NBD".into()),
                    Err(_) => return Err("there is no fio".into()),
                }
                let version = process::run(Command::new("fio").arg("--version"), PATIENCE);
                Ok((State::Ran, version.map_or_else(|_| String::new(), |it| it.output)))
            }
            Client::Ours(_) => Ok((State::Ran, env!("CARGO_PKG_VERSION").into())),
        }
    }

    /// One run. The error says what went wrong.
    fn measure(&self, client: Client, running: &Running, load: &Load) -> Result<Figures, String> {
        let report = self.private.path().join("report");
        let (socket, export) = (running.socket(), running.export());
        let mut command = match client {
            Client::Libnbd => {
                let program = self.libnbd.as_deref().ok_or_else(|| format!("no {LIBNBD}"))?;
                libnbd::command(program, socket, export, load)
            }
            Client::Fio => fio::command(socket, export, load, &report),
            Client::Ours(ours) => {
                let mut command = Command::new(&self.own);
                command.args(["drive", ours.name(), "--export", export, "--socket"]).arg(socket);
                command.args([
                    "--op",
                    if load.direction == Direction::Read { "read" } else { "write" },
                ]);
                command.args(["--block".into(), load.block.to_string()]);
                command.args(["--depth".into(), load.depth.to_string()]);
                command.args(["--seed".into(), load.seed.to_string()]);
                if let Some(limit) = load.duration {
                    command.args(["--seconds".into(), limit.as_secs_f64().to_string()]);
                }
                command
            }
        };
        let text = |error: io::Error| error.to_string();
        let limit = load.duration.unwrap_or_default() + PATIENCE;
        settle();
        let before = CpuSample::of(running.pid()).map_err(text)?;
        let finished = process::run(&mut command, limit).map_err(text)?;
        settle();
        let after = CpuSample::of(running.pid()).map_err(text)?;
        if !finished.status.success() {
            return Err(finished.complaint());
        }
        let measured = match client {
            Client::Fio => fio::parse(&fs::read_to_string(&report).map_err(text)?, load.direction),
            _ => Measured::parse(&finished.output),
        };
        let measured = measured.ok_or("its report is not understood")?;
        let requests = measured.requests.max(1) as f64;
        Ok(Figures {
            rate: requests / measured.elapsed.as_secs_f64(),
            client_cpu: measured.cpu.as_secs_f64() * 1e6 / requests,
            server_cpu: after.since(&before).as_secs_f64() * 1e6 / requests,
        })
    }
}
