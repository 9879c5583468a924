//! fio's engine for NBD, which uses libnbd: another opinion on what libnbd costs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::run::Measured;
use crate::load::{Direction, Load};

/// The command that carries out a load, and writes what came of it to `report`.
pub(super) fn command(socket: &Path, export: &str, load: &Load, report: &Path) -> Command {
    let op = match load.direction {
        Direction::Read => "randread",
        Direction::Write => "randwrite",
    };
    let mut command = Command::new("fio");
    command.args(["--name=load", "--ioengine=nbd", "--output-format=json", "--norandommap"]);
    command.args(["--gtod_reduce=1", "--refill_buffers=0", "--scramble_buffers=0"]);
    command.arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()));
    command.arg(format!("--rw={op}")).arg(format!("--bs={}", load.block));
    command.arg(format!("--iodepth={}", load.depth));
    command.arg(format!("--randseed={}", load.seed));
    if let Some(limit) = load.duration {
        let millis = limit.as_millis().max(1);
        command.arg("--time_based").arg(format!("--runtime={millis}ms"));
    }
    if let Some(requests) = load.requests {
        command.arg(format!("--number_ios={requests}"));
    }
    let mut output = std::ffi::OsString::from("--output=");
    output.push(report);
    command.arg(output);
    command
}

/// Reads fio's report. Before the JSON there may be warnings.
pub(super) fn parse(text: &str, direction: Direction) -> Option<Measured> {
    let report: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let job = report.get("jobs")?.get(0)?;
    let part = job.get(match direction {
        Direction::Read => "read",
        Direction::Write => "write",
    })?;
    let elapsed = Duration::from_secs_f64(part.get("runtime")?.as_f64()? / 1e3);
    let percent = job.get("usr_cpu")?.as_f64()? + job.get("sys_cpu")?.as_f64()?;
    let requests = part.get("total_ios")?.as_u64()?;
    Some(Measured { requests, elapsed, cpu: elapsed.mul_f64(percent / 100.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_parsed_behind_warnings() {
        let text = r#"fio: something is deprecated
            { "jobs": [ { "usr_cpu": 12.5, "sys_cpu": 37.5,
                "read": { "total_ios": 1000, "runtime": 2000 },
                "write": { "total_ios": 0, "runtime": 0 } } ] }"#;
        let measured = parse(text, Direction::Read).expect("a report");
        assert_eq!(measured.requests, 1000);
        assert_eq!(measured.elapsed, Duration::from_secs(2));
        assert_eq!(measured.cpu, Duration::from_secs(1));
        assert!(parse("{}", Direction::Read).is_none());
        assert!(parse("fio: no such engine", Direction::Write).is_none());
    }
}
