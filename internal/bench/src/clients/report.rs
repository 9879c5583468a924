//! What came out, as tables and as JSON.

use serde_json::{Value, json};

use super::arguments::ClientPlan;
use super::catalogue::Client;
use super::run::{Cell, Figures, Standing};
use crate::compare::State;
use crate::table::{figure, table};

/// Our clients are to have so many times the requests a second that libnbd has.
const BAR: f64 = 1.5;

/// The tables.
pub fn text(plan: &ClientPlan, standing: &Standing) -> String {
    let mut out = String::new();
    for (client, (state, version)) in plan.clients.iter().zip(&standing.clients) {
        match state {
            State::Ran => out += &format!("{:<18} {}\n", client.name(), version.trim()),
            State::Missing => out += &format!("{:<18} MISSING\n", client.name()),
            State::Failed(why) => out += &format!("{:<18} FAILED: {why}\n", client.name()),
        }
    }
    for remedy in &standing.remedies {
        out += &format!("{remedy}\n");
    }
    let baseline = standing.baseline(plan);
    let name = baseline.map_or("nothing", |at| plan.clients[at].name());
    let (rounds, seconds) = (plan.rounds, plan.duration.as_secs_f64());
    out += &format!("\nMedians of {rounds} rounds of {seconds} s. Ratios are to {name}; ");
    out += &format!("the bar is {BAR} times its requests/s.\n");
    for (at, server) in plan.servers.iter().enumerate() {
        match &standing.servers[at] {
            State::Ran => {}
            State::Missing => {
                out += &format!("\nserver {} is MISSING\n", server.name);
                continue;
            }
            State::Failed(why) => out += &format!("\nserver {} FAILED: {why}\n", server.name),
        }
        for (workload, cells) in plan.workloads.iter().zip(&standing.cells[at]) {
            out += &format!("\n{} on {}\n", workload.name, server.name);
            out += &one_table(plan, cells, baseline);
        }
    }
    out
}

fn one_table(plan: &ClientPlan, cells: &[Cell], baseline: Option<usize>) -> String {
    let heading = [
        "client",
        "requests/s",
        "+-%",
        "client us/request",
        "server us/request",
        "times rate",
        "times client CPU",
    ];
    let rows = plan.clients.iter().zip(cells).map(|(client, cell)| {
        let ratio = |of: fn(&Figures) -> f64| cell.ratio(&cells[baseline?], of);
        vec![
            client.name().into(),
            figure(cell.median(|figures| figures.rate), 0),
            figure(cell.spread().map(|part| part * 100.0), 0),
            figure(cell.median(|figures| figures.client_cpu), 2),
            figure(cell.median(|figures| figures.server_cpu), 2),
            figure(ratio(|figures| figures.rate), 2),
            figure(ratio(|figures| figures.client_cpu), 2),
        ]
    });
    table(&heading, &rows.collect::<Vec<_>>())
}

/// Everything, with each round's figures.
pub fn json(plan: &ClientPlan, standing: &Standing) -> Value {
    let baseline = standing.baseline(plan);
    let clients = plan.clients.iter().zip(&standing.clients).map(|(client, (state, version))| {
        json!({
            "name": client.name(),
            "version": version.trim(),
            "missing": *state == State::Missing,
            "failure": failure(state),
        })
    });
    let mut measured = Vec::new();
    for ((server, state), rows) in plan.servers.iter().zip(&standing.servers).zip(&standing.cells) {
        for (workload, cells) in plan.workloads.iter().zip(rows) {
            let of_clients: Vec<Value> = plan
                .clients
                .iter()
                .zip(cells)
                .map(|(client, cell)| cell_json(*client, cell, baseline.map(|at| &cells[at])))
                .collect();
            measured.push(json!({
                "server": server.name,
                "server_missing": *state == State::Missing,
                "server_failure": failure(state),
                "workload": workload.name,
                "clients": of_clients,
            }));
        }
    }
    json!({
        "seconds": plan.duration.as_secs_f64(),
        "rounds": plan.rounds,
        "baseline": baseline.map(|at| plan.clients[at].name()),
        "bar": BAR,
        "clients": clients.collect::<Vec<_>>(),
        "measured": measured,
    })
}

fn failure(state: &State) -> Option<&str> {
    match state {
        State::Failed(why) => Some(why),
        State::Ran | State::Missing => None,
    }
}

fn cell_json(client: Client, cell: &Cell, baseline: Option<&Cell>) -> Value {
    let ratio = |of: fn(&Figures) -> f64| cell.ratio(baseline?, of);
    let rounds = cell.rounds.iter().flatten().map(|figures| {
        json!({
            "requests_per_second": figures.rate,
            "client_us_per_request": figures.client_cpu,
            "server_us_per_request": figures.server_cpu,
        })
    });
    json!({
        "name": client.name(),
        "requests_per_second": cell.median(|figures| figures.rate),
        "client_us_per_request": cell.median(|figures| figures.client_cpu),
        "server_us_per_request": cell.median(|figures| figures.server_cpu),
        "rate_to_baseline": ratio(|figures| figures.rate),
        "client_cpu_to_baseline": ratio(|figures| figures.client_cpu),
        "rounds": rounds.collect::<Vec<_>>(),
    })
}
