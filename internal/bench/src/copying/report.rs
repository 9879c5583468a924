//! What came out, as a table and as JSON.

use serde_json::{Value, json};

use super::arguments::CopyPlan;
use super::run::{Line, Standing, Took};
use crate::compare::State;
use crate::table::{figure, table};

/// The table.
pub fn text(plan: &CopyPlan, standing: &Standing) -> String {
    let mut out = match &standing.nbdcopy {
        Some(version) => format!("{version}\n"),
        None => {
            let program = plan.nbdcopy.display();
            format!(
                "nbdcopy is MISSING: there is no program {program} (on Debian: apt-get install libnbd-bin)\n"
            )
        }
    };
    let mib = plan.size >> 20;
    out += &format!("Images of {mib} MiB, medians of {} rounds. Times are seconds; ", plan.rounds);
    out += "the ratios are nbd copy's to nbdcopy's, and the bar is a time of 1.\n\n";
    let heading = [
        "copy",
        "nbdcopy",
        "nbd",
        "time ratio",
        "+-%",
        "nbdcopy CPU",
        "nbd CPU",
        "CPU ratio",
        "server CPU",
        "server CPU (nbd)",
    ];
    let rows = plan.cases.iter().zip(&standing.lines).map(|(case, line)| {
        let first = match &line.state {
            State::Missing => "missing".into(),
            State::Failed(_) => "failed".into(),
            State::Ran => figure(line.median(0, |took| took.elapsed), 3),
        };
        vec![
            case.name.clone(),
            first,
            figure(line.median(1, |took| took.elapsed), 3),
            figure(line.ratio(|took| took.elapsed), 2),
            figure(line.spread().map(|part| part * 100.0), 0),
            figure(line.median(0, |took| took.cpu), 2),
            figure(line.median(1, |took| took.cpu), 2),
            figure(line.ratio(|took| took.cpu), 2),
            figure(line.median(0, |took| took.server_cpu), 2),
            figure(line.median(1, |took| took.server_cpu), 2),
        ]
    });
    out += &table(&heading, &rows.collect::<Vec<_>>());
    for (case, line) in plan.cases.iter().zip(&standing.lines) {
        match &line.state {
            State::Failed(why) => out += &format!("{} FAILED: {why}\n", case.name),
            State::Missing if standing.nbdcopy.is_some() => {
                out += &format!("{}: its server is MISSING\n", case.name);
            }
            State::Missing | State::Ran => {}
        }
    }
    out
}

/// Everything, with each round's figures.
pub fn json(plan: &CopyPlan, standing: &Standing) -> Value {
    let copies = plan.cases.iter().zip(&standing.lines).map(|(case, line)| {
        json!({
            "name": case.name,
            "missing": line.state == State::Missing,
            "failure": match &line.state {
                State::Failed(why) => Some(why),
                State::Ran | State::Missing => None,
            },
            "nbdcopy": tool_json(line, 0),
            "nbd": tool_json(line, 1),
            "time_ratio": line.ratio(|took| took.elapsed),
            "cpu_ratio": line.ratio(|took| took.cpu),
        })
    });
    json!({
        "nbdcopy": standing.nbdcopy,
        "size": plan.size,
        "rounds": plan.rounds,
        "copies": copies.collect::<Vec<_>>(),
    })
}

fn tool_json(line: &Line, tool: usize) -> Value {
    let all = |figure: fn(&Took) -> f64| -> Vec<f64> {
        line.rounds.iter().map(|round| figure(&round[tool])).collect()
    };
    json!({
        "seconds": line.median(tool, |took| took.elapsed),
        "cpu_seconds": line.median(tool, |took| took.cpu),
        "server_cpu_seconds": line.median(tool, |took| took.server_cpu),
        "rounds": { "seconds": all(|took| took.elapsed), "cpu_seconds": all(|took| took.cpu) },
    })
}
