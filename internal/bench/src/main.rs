//! `nbd-bench`: compares NBD servers.

use std::error::Error;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use nbd_bench::args::{Cli, Command, CompareArgs, LoadArgs, YardstickArgs};
use nbd_bench::compare::{State, compare};
use nbd_bench::cpu::CpuSample;
use nbd_bench::load::Connection;
use nbd_bench::report;
use nbd_bench::yardstick::Yardstick;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Compare(args) => run_compare(&args),
        Command::Load(args) => run_load(&args).map(|()| ExitCode::SUCCESS),
        Command::Yardstick(args) => run_yardstick(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("nbd-bench: {error}");
        ExitCode::FAILURE
    })
}

/// Fails if a server did. One that is not installed is only shown as missing.
fn run_compare(args: &CompareArgs) -> Result<ExitCode, Box<dyn Error>> {
    let plan = args.plan(&std::env::current_exe()?)?;
    // So that servers are ended and their disks removed when somebody has seen enough.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let records = compare(&plan, &interrupted)?;
    if args.json {
        println!("{:#}", report::json(&plan, &records));
    } else {
        print!("{}", report::text(&plan, &records));
    }
    let failed = records.iter().any(|record| matches!(record.state, State::Failed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run_load(args: &LoadArgs) -> Result<(), Box<dyn Error>> {
    let mut connection = Connection::negotiate(UnixStream::connect(&args.socket)?, &args.export)?;
    if let Some(bytes) = args.send_buffer {
        connection.set_send_buffer(bytes)?;
    }
    let sample = || {
        std::thread::sleep(Duration::from_millis(5));
        args.pid.map(CpuSample::of).transpose()
    };
    let before = sample()?;
    let outcome = connection.run(&args.load())?;
    let after = sample()?;
    connection.disconnect()?;
    let server_cpu = before.zip(after).map(|(before, after)| {
        after.since(&before).as_secs_f64() * 1e6 / outcome.requests.max(1) as f64
    });
    if args.json {
        println!("{:#}", report::outcome_json(&outcome, server_cpu));
    } else {
        println!("{}", report::outcome_text(&outcome, server_cpu));
    }
    Ok(())
}

fn run_yardstick(args: &YardstickArgs) -> Result<(), Box<dyn Error>> {
    let yardstick = Arc::new(Yardstick::new(args.size, args.tuning()));
    let listener = UnixListener::bind(&args.socket)?;
    yardstick.serve(&listener)?;
    Ok(())
}
