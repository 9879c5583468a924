//! Runs seeds, or one seed with all that happens.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use nbd_sim::mutation::Mutation;
use nbd_sim::plan::Plan;
use nbd_sim::run::run;
use nbd_sim::shrink::shrink;
use nbd_sim::world;
use nbd_support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs clients and servers in virtual time.
#[derive(Parser)]
struct Arguments {
    /// Run this seed alone, make it smaller if it fails, and show all that happens
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many seeds to run
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Put a fault in that the oracle should find
    #[arg(long)]
    mutation: Option<Mutation>,
    /// Show the run of --seed as it is, whether it fails or not
    #[arg(long)]
    as_it_is: bool,
    /// Go on after a seed that fails
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => one(&arguments, seed),
        None => many(&arguments),
    }
}

/// The plan of a seed; what breaks replies understands simple ones only.
fn drawn(seed: u64, mutation: Option<Mutation>) -> Plan {
    let mut plan = Plan::draw(seed);
    if mutation.is_some_and(Mutation::is_on_the_wire) {
        (plan.server.structured_replies, plan.server.extended_headers) = (false, false);
    }
    plan
}

fn one(arguments: &Arguments, seed: u64) -> ExitCode {
    let mutation = arguments.mutation;
    let mut plan = drawn(seed, mutation);
    if !arguments.as_it_is {
        match shrink(&plan, mutation, 2000) {
            None => {
                println!("seed {seed} is good");
                return ExitCode::SUCCESS;
            }
            Some(shrunk) => {
                println!("the smallest of {} runs that fails:", shrunk.runs);
                plan = shrunk.plan;
            }
        }
    }
    println!("{plan:#?}");
    world::record();
    let report = run(&plan, mutation);
    for event in world::recorded() {
        println!("{event}");
    }
    println!("{:?}, {} bytes at most", report.counts, report.peak);
    for violation in &report.violations {
        println!("WRONG: {violation}");
    }
    if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(arguments: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let (mut requests, mut checked, mut cuts, mut servers, mut nanos) = (0, 0, 0, 0, 0u128);
    let (mut bad, mut peak) = (0, 0);
    // What is made once in a process is none of the first run's.
    let _warm = run(&Plan::draw(0), None);
    let end = arguments.first + arguments.count;
    for seed in arguments.first..end {
        let report = run(&drawn(seed, arguments.mutation), arguments.mutation);
        requests += report.counts.requests;
        checked += report.counts.cells_checked;
        cuts += report.counts.power_cuts;
        servers += report.counts.servers;
        nanos += u128::from(report.nanos);
        peak = peak.max(report.peak);
        if !report.is_good() {
            bad += 1;
            println!("seed {seed}: {}", report.violations[0]);
            let mutation = arguments.mutation.map(|name| format!(" --mutation {name}"));
            let mutation = mutation.unwrap_or_default();
            println!("  to see it: cargo run -p nbd-sim -- --seed {seed}{mutation}");
            if !arguments.keep_going {
                return ExitCode::FAILURE;
            }
        }
        if (seed + 1 - arguments.first).is_multiple_of(10_000) {
            println!(
                "{} seeds, {:.0} s",
                seed + 1 - arguments.first,
                begun.elapsed().as_secs_f64()
            );
        }
    }
    println!(
        "{} seeds, {bad} of them bad: {requests} requests, {checked} cells checked, {servers} servers \
         replaced, {cuts} power cuts, {:.0} s of virtual time, {peak} bytes at most, in {:.1} s",
        arguments.count,
        nanos as f64 / 1e9,
        begun.elapsed().as_secs_f64()
    );
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
