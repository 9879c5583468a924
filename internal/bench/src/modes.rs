//! What structured and extended replies cost a server, compared with simple ones.
//!
//! The modes take turns on a server that stays alive, in short runs: so the runs of one round are
//! neighbours in time, and their ratio says more than that of medians over all rounds.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::args::{nbd_program, parse_seconds, select};
use crate::child::Running;
use crate::compare::{Sample, State, measure, start, touch_disk};
use crate::mode::Mode;
use crate::servers::{Server, Storage, YARDSTICK, catalogue};
use crate::stats;
use crate::table::{figure, table};
use crate::workload::{WORKLOADS, Workload};

/// A reply in another mode may cost so many times a simple one.
pub const BAR: f64 = 1.10;

/// Arguments of `modes`.
#[derive(Debug, Args)]
pub struct ModesArgs {
    /// The project's `nbd` program [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    pub nbd: Option<PathBuf>,
    /// Only these servers.
    #[arg(long, value_name = "SERVER", value_delimiter = ',')]
    pub only: Vec<String>,
    /// The workload.
    #[arg(long, value_name = "NAME", default_value = "read-4k-qd32")]
    pub workload: String,
    /// Seconds of each run.
    #[arg(long, default_value = "0.5", value_parser = parse_seconds)]
    pub seconds: Duration,
    /// How often each run is repeated.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub json: bool,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct ModesPlan {
    /// The servers.
    pub servers: Vec<Server>,
    /// The workload.
    pub workload: Workload,
    /// How long each run takes.
    pub duration: Duration,
    /// How often each run is repeated.
    pub rounds: u32,
}

impl ModesArgs {
    /// What is to be run; an unknown name is an error that lists the known ones.
    pub fn plan(&self, own: &Path) -> Result<ModesPlan, String> {
        let mut servers = catalogue(own, &nbd_program(self.nbd.as_deref(), own));
        // The yardstick has simple replies only, and files cost the same in all modes.
        servers.retain(|server| server.storage == Storage::Memory && server.name != YARDSTICK);
        let servers = select("server", servers, &self.only, |server| &server.name)?;
        let wanted = [self.workload.clone()];
        let workloads = select("workload", WORKLOADS.to_vec(), &wanted, |workload| workload.name)?;
        Ok(ModesPlan {
            servers,
            workload: workloads[0],
            duration: self.seconds,
            rounds: self.rounds,
        })
    }
}

/// What came of one server.
#[derive(Clone, Debug)]
pub struct ModesRecord {
    /// Its name.
    pub server: String,
    /// Whether it ran.
    pub state: State,
    /// For each round, a sample of each of [`Mode::ALL`] that the server has.
    pub rounds: Vec<[Option<Sample>; 3]>,
}

impl ModesRecord {
    /// The median of a figure in the mode with this index.
    fn median(&self, mode: usize, figure: impl Fn(&Sample) -> f64) -> Option<f64> {
        stats::median(self.rounds.iter().filter_map(|round| round[mode].as_ref()).map(figure))
    }

    /// The median of the rounds' ratios of server CPU to that of simple replies.
    pub fn ratio(&self, mode: usize) -> Option<f64> {
        let ratios = self.rounds.iter().filter_map(|round| {
            Some(round[mode].as_ref()?.server_cpu / round[0].as_ref()?.server_cpu)
        });
        stats::median(ratios)
    }

    fn spread(&self, mode: usize) -> Option<f64> {
        let samples = self.rounds.iter().filter_map(|round| round[mode].as_ref());
        let cpu: Vec<f64> = samples.map(|sample| sample.server_cpu).collect();
        stats::spread(&cpu)
    }
}

/// Runs the plan, one server after the other.
pub fn run(plan: &ModesPlan, interrupted: &AtomicBool) -> io::Result<Vec<ModesRecord>> {
    let mut records = Vec::new();
    for server in &plan.servers {
        eprintln!("{}", server.name);
        let mut record =
            ModesRecord { server: server.name.clone(), state: State::Ran, rounds: Vec::new() };
        if let Err(state) = run_server(plan, server, &mut record, interrupted) {
            eprintln!("    {state:?}");
            record.state = state;
        }
        if interrupted.load(Ordering::Relaxed) {
            return Err(ErrorKind::Interrupted.into());
        }
        records.push(record);
    }
    Ok(records)
}

fn run_server(
    plan: &ModesPlan,
    server: &Server,
    record: &mut ModesRecord,
    interrupted: &AtomicBool,
) -> Result<(), State> {
    if server.version().is_none() {
        return Err(State::Missing);
    }
    let running = start(server)?;
    let failed = |what: &str, error: io::Error| {
        State::Failed(format!("{what}: {error}; server: {}", running.complaint()))
    };
    touch_disk(&running).map_err(|error| failed("first write", error))?;
    for round in 0..plan.rounds {
        let mut samples = [None; 3];
        for turn in 0..samples.len() {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(());
            }
            // Each mode is the first of a round as often as the others.
            let at = (turn + round as usize) % samples.len();
            let sample = run_mode(plan, &running, Mode::ALL[at]);
            samples[at] = sample.map_err(|error| failed(Mode::ALL[at].name(), error))?;
        }
        record.rounds.push(samples);
    }
    Ok(())
}

/// `None` if the server does not have the mode.
fn run_mode(plan: &ModesPlan, running: &Running, mode: Mode) -> io::Result<Option<Sample>> {
    match running.connect(mode) {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
        connection => {
            measure(connection?, running.pid(), &plan.workload.load(plan.duration)).map(Some)
        }
    }
}

/// The table.
pub fn text(plan: &ModesPlan, records: &[ModesRecord]) -> String {
    let heading = ["server", "replies", "requests/s", "server us/request", "+-%", "to simple"];
    let mut rows = Vec::new();
    for record in records {
        for (at, mode) in Mode::ALL.iter().enumerate() {
            let rate = match &record.state {
                State::Missing => "missing".into(),
                State::Failed(_) if record.rounds.is_empty() => "failed".into(),
                _ => figure(record.median(at, |sample| sample.rate), 0),
            };
            rows.push(vec![
                record.server.clone(),
                mode.name().into(),
                rate,
                figure(record.median(at, |sample| sample.server_cpu), 2),
                figure(record.spread(at).map(|part| part * 100.0), 0),
                figure(record.ratio(at), 3),
            ]);
        }
    }
    let (rounds, seconds) = (plan.rounds, plan.duration.as_secs_f64());
    let mut out = format!(
        "{}: medians of {rounds} rounds of {seconds} s; the bar is {BAR} times simple replies' CPU\n\n",
        plan.workload.name
    );
    out += &table(&heading, &rows);
    for record in records {
        if let State::Failed(why) = &record.state {
            out += &format!("{} FAILED: {why}\n", record.server);
        }
    }
    out
}

/// Everything, with each round's figures.
pub fn json(plan: &ModesPlan, records: &[ModesRecord]) -> Value {
    let servers = records.iter().map(|record| {
        let modes = Mode::ALL.iter().enumerate().map(|(at, mode)| {
            let samples = record.rounds.iter().filter_map(|round| round[at].as_ref());
            let rounds = samples.map(|sample| {
                json!({
                    "requests_per_second": sample.rate,
                    "server_us_per_request": sample.server_cpu,
                })
            });
            json!({
                "mode": mode.name(),
                "requests_per_second": record.median(at, |sample| sample.rate),
                "server_us_per_request": record.median(at, |sample| sample.server_cpu),
                "ratio_to_simple": record.ratio(at),
                "rounds": rounds.collect::<Vec<_>>(),
            })
        });
        json!({
            "name": record.server,
            "missing": record.state == State::Missing,
            "failure": match &record.state {
                State::Failed(why) => Some(why),
                _ => None,
            },
            "modes": modes.collect::<Vec<_>>(),
        })
    });
    json!({
        "workload": plan.workload.name,
        "seconds": plan.duration.as_secs_f64(),
        "rounds": plan.rounds,
        "bar": BAR,
        "servers": servers.collect::<Vec<_>>(),
    })
}
