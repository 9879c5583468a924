//! `nbd bench`: how fast an export is read or written.

mod latencies;
mod live;
mod plan;
mod report;
mod run;
mod worker;

use core::time::Duration;
use std::sync::Arc;

use clap::Args;
use nbd_blocking::Client;
use nbd_blocking::client::ClientConfig;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::exit::Failure;
use crate::target::{self, Target};
use crate::{output, quantity};
use plan::{Pattern, Plan};
use report::Report;
use run::Run;

/// How much memory the buffers of all requests may take.
const MAX_BUFFERS: u64 = 1 << 30;

/// Measure how fast an export is read or written: requests and bytes per second, and how long requests take.
///
/// A number of requests is kept in flight until the time is over. P50 is the time within which half of the requests were
/// answered, P99 that of 99 in 100; a request's time goes from when it is submitted to when its answer is there, and is
/// measured to within 2 per cent. RATE and THROUGHPUT are averages over the whole run.
///
/// Writes need --destructive, as they overwrite what the export has: with bytes that don't compress. After them the export
/// is flushed once, which is shown apart.
///
/// Ctrl-C ends the run early and shows what was measured. The exit code is 1 if a request failed.
#[derive(Debug, Args)]
#[command(override_usage = "nbd bench [OPTIONS] <URI | [ COMMAND ARGS ]>")]
pub(crate) struct Arguments {
    /// What to do with which blocks
    #[arg(long, value_name = "PATTERN", value_enum, default_value = "randread")]
    rw: Pattern,

    /// Bytes of each request, a multiple of the server's minimum block size [default: 4k, or that minimum if it is more]
    #[arg(long, visible_alias = "block-size", value_name = "N", value_parser = quantity::request_size)]
    bs: Option<u64>,

    /// How many requests to keep in flight on each connection
    #[arg(long, value_name = "N", default_value = "16", value_parser = quantity::positive)]
    depth: usize,

    /// How many connections to use, each with a thread of its own
    #[arg(long, value_name = "N", default_value = "1", value_parser = quantity::positive)]
    connections: usize,

    /// How long to send requests: seconds, or a number with a suffix such as 500ms or 5m
    #[arg(long, value_name = "T", default_value = "10", value_parser = time)]
    time: Duration,

    /// Send at most so many requests
    #[arg(long, value_name = "N", value_parser = |text: &str| quantity::within(text, 1..=u64::MAX))]
    requests: Option<u64>,

    /// With --rw mixed: how many in 100 requests are reads, from 0 to 100 [default: 70]
    #[arg(long, value_name = "N", value_parser = |text: &str| quantity::within(text, 0..=100_u8))]
    read_percent: Option<u8>,

    /// Where in the export to begin, such as 0, 4k or 1G
    #[arg(long, value_name = "N", default_value = "0", value_parser = quantity::size)]
    offset: u64,

    /// How much of the export to use [default: up to the end]
    #[arg(long, value_name = "N", value_parser = quantity::positive_size)]
    length: Option<u64>,

    /// The number that decides which blocks are used and what is written: the same one gives the same requests
    /// [default: a random one, which is shown]
    #[arg(long, value_name = "N", value_parser = quantity::number_of::<u64>)]
    seed: Option<u64>,

    /// Overwrite what the export has, as the patterns that write do
    #[arg(long)]
    destructive: bool,

    /// Write JSON; times are in seconds
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    target: target::Arguments,
}

/// A duration that is not 0.
fn time(text: &str) -> Result<Duration, String> {
    quantity::duration(text).and_then(|time| match time {
        Duration::ZERO => Err("give at least 1ms".into()),
        time => Ok(time),
    })
}

/// `nbd bench`.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { rw, depth, connections, json, .. } = *arguments;
    judge(arguments).map_err(Failure::Usage)?;
    let target = arguments.target.open()?;
    let config = config(&target, depth);
    let first = target.connect(&config)?;
    let plan = plan(arguments, &target, &first)?;
    let clients = connect(&target, &config, first, connections)?;
    let limits = (arguments.time, arguments.requests);
    let run = Arc::new(Run::new(plan, target.name(), (connections, depth), limits));
    interruptible(&run, (connections, json))?;

    let measured = run::measure(&run, clients, |error| target.explain(error));
    let elapsed = run.elapsed();
    let flush = measured.as_ref().ok().and_then(|clients| clients.first());
    let flush = flush.filter(|client| rw.writes() && client.export().can_flush());
    let flush = flush.map(run::flush).transpose();
    let tally = run.total();
    let (failed, first_error) = (tally.failed(), tally.first_error.clone());
    let all = failed + tally.succeeded();
    let duration = flush.as_ref().ok().copied().flatten();
    let report =
        Report { run: &run, connections, tally, elapsed, flush: duration, interrupted: false };
    // A signal that came before has shown a report.
    target::conclude();
    output::write(|out| Ok(report.write(json, out)?))?;
    for client in measured? {
        client.disconnect();
    }
    flush.map_err(|error| target.explain(&error))?;
    match first_error {
        None => Ok(()),
        Some(error) => Err(Failure::failed(format!(
            "{failed} of {all} requests failed; the first one: {}",
            target.explain(&error).text()
        ))),
    }
}

fn config(target: &Target, depth: usize) -> ClientConfig {
    let config = target.config();
    let default = config.limits().max_in_flight;
    config.with_max_in_flight(default.max(u32::try_from(depth).unwrap_or(u32::MAX)))
}

/// Refuses what no server would take, before one is connected to: the command line alone is at fault.
fn judge(arguments: &Arguments) -> Result<(), String> {
    let Arguments { rw, depth, connections, offset, length, bs, .. } = *arguments;
    if arguments.read_percent.is_some() && rw != Pattern::Mixed {
        return Err("--read-percent is for --rw mixed: leave out one, or add the other".into());
    }
    let block = bs.unwrap_or(plan::DEFAULT_BLOCK);
    if let Some(length) = length {
        quantity::possible_range(offset, length)?;
        if length < block {
            return Err(format!(
                "--length {length} is less than one block of {block}: choose a larger --length, or a smaller --bs"
            ));
        }
    }
    buffers(block, depth, connections)
}

/// Refuses more memory for buffers than there may be.
fn buffers(block: u64, depth: usize, connections: usize) -> Result<(), String> {
    let buffers = block.saturating_mul(depth as u64).saturating_mul(connections as u64);
    match buffers > MAX_BUFFERS {
        true => Err(format!(
            "--bs, --depth and --connections make {buffers} bytes of buffers, of at most {MAX_BUFFERS}: choose less"
        )),
        false => Ok(()),
    }
}

/// Decides what is sent, and refuses what the server would, or the user might regret.
fn plan(arguments: &Arguments, target: &Target, client: &Client) -> Result<Plan, Failure> {
    let Arguments { rw, depth, connections, offset, length, .. } = *arguments;
    let (export, name) = (client.export(), target.name());
    if rw.writes() && export.is_read_only() {
        return Err(Failure::failed(format!("{name} is read-only: nothing can be written")));
    }
    if connections > 1 && !export.can_multi_conn() {
        return Err(Failure::failed(format!(
            "{name} does not offer several connections (NBD_FLAG_CAN_MULTI_CONN): leave out --connections"
        )));
    }
    let sizes = export.block_size();
    let block = plan::block(arguments.bs, sizes).map_err(Failure::Failed)?;
    let part = (offset, length);
    let range = plan::range(client.size(), part, block, sizes.minimum().into());
    let range = range.map_err(Failure::Failed)?;
    // The server may take larger ones alone.
    buffers(block as u64, depth, connections).map_err(Failure::Failed)?;
    if rw.writes() && !arguments.destructive {
        return Err(Failure::usage(format!(
            "--rw {} overwrites the {} bytes from offset {} on of {name}: add --destructive if nobody needs them any more",
            rw.name(),
            range.end - range.start,
            range.start
        )));
    }
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let read_percent = arguments.read_percent.unwrap_or(70);
    Ok(Plan { pattern: rw, read_percent, block, range, seed })
}

/// A seed that fits into the numbers of every reader of JSON.
fn random_seed() -> Result<u64, Failure> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|error| {
        Failure::failed(format!("cannot choose a seed: {error}; give --seed N"))
    })?;
    Ok(u32::from_le_bytes(bytes).into())
}

/// Makes the connections that there are to be besides the first.
fn connect(
    target: &Target,
    config: &ClientConfig,
    first: Client,
    connections: usize,
) -> Result<Vec<Client>, Failure> {
    let size = first.size();
    let mut clients = vec![first];
    while clients.len() < connections {
        let client = target.connect(config)?;
        if client.size() != size {
            return Err(Failure::failed(format!(
                "{} has changed its size since the first connection: try again",
                target.name()
            )));
        }
        clients.push(client);
    }
    Ok(clients)
}

/// Has a signal show what was measured so far, before it ends this process.
fn interruptible(run: &Arc<Run>, (connections, json): (usize, bool)) -> Result<(), Failure> {
    let run = Arc::clone(run);
    let act = move || {
        run.stop();
        let (tally, elapsed) = (run.total(), run.elapsed());
        let report =
            Report { run: &run, connections, tally, elapsed, flush: None, interrupted: true };
        // The exit status says that it was interrupted, whether that could be shown or not.
        let _shown = output::write(|out| Ok(report.write(json, out)?));
    };
    target::before_a_signal_ends_this(act)
        .map_err(|error| Failure::failed(format!("cannot wait for signals: {error}")))
}
