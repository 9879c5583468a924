//! `nbd-bench`: compares NBD servers.

use std::error::Error;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use nbd_bench::args::{Cli, Command, CompareArgs, LoadArgs, YardstickArgs};
use nbd_bench::chart;
use nbd_bench::clients::{self, ClientArgs, DriveArgs};
use nbd_bench::compare::{State, compare};
use nbd_bench::copying::{self, CopyArgs};
use nbd_bench::cpu::CpuSample;
use nbd_bench::load::Connection;
use nbd_bench::modes::{self, ModesArgs};
use nbd_bench::report;
use nbd_bench::socket;
use nbd_bench::tls::{self, TlsArgs};
#[cfg(feature = "volume")]
use nbd_bench::volumes::{self, VolumeArgs};
use nbd_bench::yardstick::Yardstick;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Compare(args) => run_compare(&args),
        Command::Client(args) => run_client(&args),
        Command::Copy(args) => run_copy(&args),
        Command::Modes(args) => run_modes(&args),
        Command::Drive(args) => run_drive(&args).map(|()| ExitCode::SUCCESS),
        Command::Tls(args) => run_tls(&args),
        #[cfg(feature = "volume")]
        Command::Volume(args) => run_volume(&args),
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
    let records = compare(&plan, &*interruption()?)?;
    if args.json {
        println!("{:#}", report::json(&plan, &records));
    } else {
        print!("{}", report::text(&plan, &records));
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, chart::svg(&plan, &records))?;
    }
    let failed = records.iter().any(|record| matches!(record.state, State::Failed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// So that servers are ended and their disks removed when somebody has seen enough.
fn interruption() -> Result<Arc<AtomicBool>, Box<dyn Error>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

/// Fails unless everything was measured: a ratio to nothing would pass for a success.
fn verdict(complete: bool) -> ExitCode {
    if complete {
        return ExitCode::SUCCESS;
    }
    eprintln!("nbd-bench: not all was measured; see above, or leave out what is missing by --only");
    ExitCode::FAILURE
}

fn run_client(args: &ClientArgs) -> Result<ExitCode, Box<dyn Error>> {
    let plan = args.plan(&std::env::current_exe()?)?;
    let standing = clients::run(&plan, &*interruption()?)?;
    if args.json {
        println!("{:#}", clients::json(&plan, &standing));
    } else {
        print!("{}", clients::text(&plan, &standing));
    }
    Ok(verdict(standing.is_complete()))
}

fn run_copy(args: &CopyArgs) -> Result<ExitCode, Box<dyn Error>> {
    let plan = args.plan(&std::env::current_exe()?)?;
    let standing = copying::run(&plan, &*interruption()?)?;
    if args.json {
        println!("{:#}", copying::json(&plan, &standing));
    } else {
        print!("{}", copying::text(&plan, &standing));
    }
    Ok(verdict(standing.is_complete()))
}

fn run_modes(args: &ModesArgs) -> Result<ExitCode, Box<dyn Error>> {
    let plan = args.plan(&std::env::current_exe()?)?;
    let records = modes::run(&plan, &*interruption()?)?;
    if args.json {
        println!("{:#}", modes::json(&plan, &records));
    } else {
        print!("{}", modes::text(&plan, &records));
    }
    Ok(verdict(records.iter().all(|record| record.state == State::Ran)))
}

fn run_tls(args: &TlsArgs) -> Result<ExitCode, Box<dyn Error>> {
    let plan = args.plan(&std::env::current_exe()?)?;
    let standing = tls::run(&plan, &*interruption()?)?;
    if args.json {
        println!("{:#}", tls::json(&plan, &standing));
    } else {
        print!("{}", tls::text(&plan, &standing));
    }
    Ok(verdict(standing.is_complete()))
}

/// Fails only when something could not be measured: the tables say which bars are missed.
#[cfg(feature = "volume")]
fn run_volume(args: &VolumeArgs) -> Result<ExitCode, Box<dyn Error>> {
    let plan = args.plan(&std::env::current_exe()?)?;
    // Widened: as errors go, it may cross threads.
    let standing = volumes::run(&plan, &*interruption()?);
    let standing = standing.map_err(|error| -> Box<dyn Error> { error })?;
    if args.json {
        println!("{:#}", volumes::json(&plan, &standing));
    } else {
        print!("{}", volumes::text(&plan, &standing));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_drive(args: &DriveArgs) -> Result<(), Box<dyn Error>> {
    // Widened: as errors go, it may cross threads.
    let measured = clients::drive(args).map_err(|error| -> Box<dyn Error> { error })?;
    println!("{}", measured.to_json());
    Ok(())
}

fn run_load(args: &LoadArgs) -> Result<(), Box<dyn Error>> {
    let stream = UnixStream::connect(&args.socket)?;
    let mut connection = match &args.tls {
        None => Connection::negotiate(stream, &args.export, args.mode)?,
        Some(authority) => {
            let config = socket::config(authority)?;
            Connection::negotiate_tls(stream, &args.export, args.mode, config)?
        }
    };
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
