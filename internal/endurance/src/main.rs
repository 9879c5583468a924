//! The long runs. See `README.md`.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, Parser, ValueEnum};
use nbd_endurance::kills::{Campaign, DiskKind, Server, Summary};
use nbd_endurance::process::{Runtime, beside_this_program};
use nbd_endurance::soak;
use nbd_testkit::Random;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Long runs of `nbd serve`.
#[derive(Parser)]
enum Arguments {
    /// Kill servers at random moments under load, and compare what is left with what clients were told
    Kills(Kills),
    /// Load servers for many minutes while clients come, go and die, and measure what the servers use
    Soak(Soak),
}

#[derive(Args)]
struct Kills {
    /// Kills of each disk on each runtime
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What runs the servers' connections; can be given several times [default: all]
    #[arg(long)]
    runtime: Vec<Runtime>,
    /// What is served; can be given several times [default: file and loop]
    #[arg(long)]
    disk: Vec<DiskName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DiskName {
    File,
    Loop,
    /// Of the feature volume of nbd
    Volume,
}

#[derive(Args)]
struct Soak {
    /// How many minutes
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Decides what clients do
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What runs the servers' connections; can be given several times [default: all, at the same time]
    #[arg(long)]
    runtime: Vec<Runtime>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Servers are ended by those that started them, who have to live for it.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        let flag = Arc::clone(&interrupted);
        signal_hook::flag::register(signal, flag).expect("it can be handled");
    }
    let result = beside_this_program().and_then(|program| match arguments {
        Arguments::Kills(kills) => kills.run(&program, &interrupted),
        Arguments::Soak(soak) => soak.run(&program, &interrupted),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn or_all(runtimes: &[Runtime]) -> Vec<Runtime> {
    if runtimes.is_empty() { Runtime::ALL.to_vec() } else { runtimes.to_vec() }
}

impl Kills {
    fn run(&self, program: &Path, interrupted: &AtomicBool) -> Result<(), String> {
        let kinds = match &*self.disk {
            [] => vec![DiskKind::File, DiskKind::Loop],
            some => some
                .iter()
                .map(|disk| match disk {
                    DiskName::File => DiskKind::File,
                    DiskName::Loop => DiskKind::Loop,
                    DiskName::Volume => DiskKind::Volume,
                })
                .collect(),
        };
        for kind in kinds {
            for runtime in or_all(&self.runtime) {
                let began = Instant::now();
                let server = Server::Nbd(program.to_owned(), runtime);
                let mut campaign = Campaign::new(server, kind)?;
                for seed in (self.seed..).take(self.count as usize) {
                    if interrupted.load(Ordering::Relaxed) {
                        return Err("interrupted".to_owned());
                    }
                    let mut random = Random::new(seed);
                    campaign.round(random.next()).map_err(|violation| {
                        format!(
                            "{} on {}, seed {seed}: {}",
                            kind.name(),
                            runtime.name(),
                            violation.0
                        )
                    })?;
                }
                print_summary(kind, runtime, campaign.summary(), began.elapsed());
            }
        }
        Ok(())
    }
}

fn print_summary(kind: DiskKind, runtime: Runtime, summary: Summary, elapsed: Duration) {
    let Summary { kills, changes, flushes, reads, landed } = summary;
    println!(
        "{:11} {:9} {kills:5} kills: {changes} writes, {flushes} flushes, {reads} reads; of the writes in flight {} not \
         there, {} in part, {} whole; {:.0} s",
        kind.name(),
        runtime.name(),
        landed.not,
        landed.partly,
        landed.wholly,
        elapsed.as_secs_f64()
    );
}

impl Soak {
    fn run(&self, program: &Path, interrupted: &AtomicBool) -> Result<(), String> {
        let options = soak::Options {
            program: program.to_owned(),
            runtimes: or_all(&self.runtime),
            length: Duration::try_from_secs_f64(self.minutes * 60.0)
                .map_err(|error| format!("--minutes: {error}"))?,
            seed: self.seed,
        };
        let report = soak::run(&options, interrupted)?;
        match report.is_good() {
            true => println!("\neverything was verified, and nothing grows"),
            false => return Err(format!("\n{} faults, or something grows", report.faults.len())),
        }
        Ok(())
    }
}
