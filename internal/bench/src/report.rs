//! What came out, as tables for people and as JSON for programs.

use std::fmt::Write as _;
use std::fs;

use serde_json::{Value, json};

use crate::compare::{Plan, Record, Sample, State};
use crate::load::{Direction, Outcome};
use crate::servers::YARDSTICK;
use crate::workload::Workload;

/// Tables of all workloads, with the machine and the peers' versions above.
pub fn text(plan: &Plan, records: &[Record]) -> String {
    let mut out = String::new();
    for (name, value) in machine() {
        line(&mut out, format_args!("{name:<18} {value}"));
    }
    for record in records {
        let name = &record.server.name;
        match &record.state {
            State::Ran => line(&mut out, format_args!("{name:<18} {}", record.version)),
            State::Missing => {
                let program = record.server.program.display();
                line(&mut out, format_args!("{name:<18} MISSING: there is no program {program}"));
            }
            State::Failed(why) => line(&mut out, format_args!("{name:<18} FAILED: {why}")),
        }
    }
    let (seconds, rounds) = (plan.duration.as_secs_f64(), plan.rounds);
    line(&mut out, format_args!("\nMedians of {rounds} rounds of {seconds} s."));
    for (index, workload) in plan.workloads.iter().enumerate() {
        table(&mut out, index, workload, records);
    }
    out
}

fn table(out: &mut String, index: usize, workload: &Workload, records: &[Record]) {
    line(out, format_args!("\n{}", workload.title()));
    let row = |out: &mut String, cells: [&str; 9]| {
        let [server, storage, rate, spread, mib, server_cpu, client_cpu, nbdkit, yardstick] = cells;
        line(
            out,
            format_args!(
                "{server:<18} {storage:<6} {rate:>10} {spread:>5} {mib:>8} {server_cpu:>10} \
                 {client_cpu:>10} {nbdkit:>7} {yardstick:>9}"
            ),
        );
    };
    row(out, ["", "", "", "", "", "server", "client", "to", "to"]);
    row(
        out,
        [
            "server",
            "disk",
            "requests/s",
            "+-%",
            "MiB/s",
            "us/request",
            "us/request",
            "nbdkit",
            "yardstick",
        ],
    );
    for record in records {
        let storage = record.server.storage;
        let median = |figure: fn(&Sample) -> f64, digits: usize| {
            let value = record.median(index, figure);
            value.map_or("-".into(), |value| format!("{value:.digits$}"))
        };
        let rate = match &record.state {
            State::Missing => "missing".into(),
            State::Failed(_) if record.samples[index].is_empty() => "failed".into(),
            _ => median(|sample| sample.rate, 0),
        };
        let ratio = |to: &str| {
            ratio(index, record, to, records).map_or("-".into(), |ratio| format!("{ratio:.2}"))
        };
        let spread = record.spread(index).map_or("-".into(), |part| format!("{:.0}", part * 100.0));
        let cells = [
            record.server.name.as_str(),
            storage.name(),
            &rate,
            &spread,
            &median(|sample| sample.mib_rate, 0),
            &median(|sample| sample.server_cpu, 2),
            &median(|sample| sample.client_cpu, 2),
            &ratio(storage.baseline()),
            &ratio(YARDSTICK),
        ];
        row(out, cells);
    }
}

/// How many times the rate of the server with the name `to`.
fn ratio(index: usize, record: &Record, to: &str, records: &[Record]) -> Option<f64> {
    let other = records.iter().find(|other| other.server.name == to)?;
    let rate = |record: &Record| record.median(index, |sample| sample.rate);
    Some(rate(record)? / rate(other)?)
}

/// Everything, with each round's figures.
pub fn json(plan: &Plan, records: &[Record]) -> Value {
    let workloads = plan.workloads.iter().enumerate().map(|(index, workload)| {
        let servers: Vec<Value> =
            records.iter().map(|record| server_json(index, record, records)).collect();
        json!({
            "name": workload.name,
            "write": workload.direction == Direction::Write,
            "block": workload.block,
            "depth": workload.depth,
            "servers": servers,
        })
    });
    let peers = records.iter().map(|record| {
        json!({
            "name": record.server.name,
            "storage": record.server.storage.name(),
            "version": record.version,
            "missing": record.state == State::Missing,
            "failure": match &record.state {
                State::Failed(why) => Some(why),
                _ => None,
            },
        })
    });
    json!({
        "machine": machine().into_iter().map(|(name, value)| (name.to_owned(), value.into()))
            .collect::<serde_json::Map<String, Value>>(),
        "seconds": plan.duration.as_secs_f64(),
        "rounds": plan.rounds,
        "servers": peers.collect::<Vec<_>>(),
        "workloads": workloads.collect::<Vec<_>>(),
    })
}

fn server_json(index: usize, record: &Record, records: &[Record]) -> Value {
    let rounds = record.samples[index].iter().map(|sample| {
        json!({
            "requests_per_second": sample.rate,
            "mib_per_second": sample.mib_rate,
            "server_us_per_request": sample.server_cpu,
            "client_us_per_request": sample.client_cpu,
        })
    });
    json!({
        "name": record.server.name,
        "requests_per_second": record.median(index, |sample| sample.rate),
        "spread": record.spread(index),
        "mib_per_second": record.median(index, |sample| sample.mib_rate),
        "server_us_per_request": record.median(index, |sample| sample.server_cpu),
        "client_us_per_request": record.median(index, |sample| sample.client_cpu),
        "ratio_to_nbdkit": ratio(index, record, record.server.storage.baseline(), records),
        "ratio_to_yardstick": ratio(index, record, YARDSTICK, records),
        "rounds": rounds.collect::<Vec<_>>(),
    })
}

/// One run of the generator alone.
pub fn outcome_text(outcome: &Outcome, server_cpu: Option<f64>) -> String {
    let mut text = format!(
        "{} requests in {:.3} s: {:.0} requests/s, {:.0} MiB/s",
        outcome.requests,
        outcome.elapsed.as_secs_f64(),
        outcome.rate(),
        outcome.mib_rate()
    );
    if let Some(micros) = server_cpu {
        let _ = write!(text, ", server {micros:.2} us/request");
    }
    text
}

/// The same for programs.
pub fn outcome_json(outcome: &Outcome, server_cpu: Option<f64>) -> Value {
    json!({
        "requests": outcome.requests,
        "bytes": outcome.bytes,
        "seconds": outcome.elapsed.as_secs_f64(),
        "requests_per_second": outcome.rate(),
        "mib_per_second": outcome.mib_rate(),
        "server_us_per_request": server_cpu,
    })
}

/// What figures can't be compared without.
pub(crate) fn machine() -> [(&'static str, String); 3] {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let model = model.trim_start_matches([' ', '\t', ':']);
    [
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("cpu", format!("{cpus} x {model}")),
        ("so_sndbuf", read("/proc/sys/net/core/wmem_default").trim().to_owned()),
    ]
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = writeln!(out, "{text}");
}
