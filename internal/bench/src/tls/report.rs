//! What is printed.

use serde_json::{Value, json};

use super::{CPU_BAR, LARGE_BAR, Round, SMALL_BAR, Standing, TlsPlan};
use crate::compare::State;
use crate::servers::{NBDKIT_FILE, QEMU_NBD_FILE};
use crate::stats;
use crate::table::{figure, table};

/// Tables for people, one for each workload.
pub fn text(plan: &TlsPlan, standing: &Standing) -> String {
    let what = if plan.plain { "in the clear" } else { "TLS 1.3, AES-128-GCM" };
    let (rounds, seconds) = (plan.rounds, plan.duration.as_secs_f64());
    let mut out = format!("{what}: medians of {rounds} rounds of {seconds} s\n");
    out += &format!(
        "bars: at 1 MiB {LARGE_BAR} times the others' rate and {CPU_BAR} times the CPU of cipher and copies; at 4 \
         KiB {SMALL_BAR} times the others' rate\n"
    );
    let heading = [
        "server",
        "requests/s",
        "+-%",
        "MiB/s",
        "server us",
        "client us",
        "to nbdkit",
        "to qemu",
        "CPU to cipher",
        "with socket",
        "and file",
    ];
    for (index, workload) in plan.workloads.iter().enumerate() {
        let floor =
            |of: fn(&Round) -> f64| figure(stats::median(standing.rounds[index].iter().map(of)), 0);
        out += &format!(
            "\n{}: the cipher and two copies take {} us for a MiB, {} us through a socket, {} us through a socket and a \
             file\n",
            workload.name,
            floor(|round| round.in_memory),
            floor(|round| round.by_socket),
            floor(|round| round.by_socket_and_file)
        );
        let rows = standing.lanes.iter().enumerate().map(|(lane, it)| {
            let rate = match it.state {
                State::Missing => "missing".into(),
                State::Failed(_) => "failed".into(),
                State::Ran => figure(standing.median(index, lane, |sample| sample.rate), 0),
            };
            let floor_ratio = |floor: fn(&Round) -> f64| {
                figure(standing.floor_ratio(index, lane, workload.block, floor), 2)
            };
            vec![
                it.server.name.clone(),
                rate,
                figure(standing.spread(index, lane).map(|part| part * 100.0), 0),
                figure(standing.median(index, lane, |sample| sample.mib_rate), 0),
                figure(standing.median(index, lane, |sample| sample.server_cpu), 2),
                figure(standing.median(index, lane, |sample| sample.client_cpu), 2),
                figure(standing.ratio(index, lane, NBDKIT_FILE), 2),
                figure(standing.ratio(index, lane, QEMU_NBD_FILE), 2),
                floor_ratio(|round| round.in_memory),
                floor_ratio(|round| round.by_socket),
                floor_ratio(|round| round.by_socket_and_file),
            ]
        });
        out += &table(&heading, &rows.collect::<Vec<_>>());
    }
    for lane in &standing.lanes {
        if let State::Failed(why) = &lane.state {
            out += &format!("{} FAILED: {why}\n", lane.server.name);
        }
    }
    out
}

/// Everything, with each round's figures.
pub fn json(plan: &TlsPlan, standing: &Standing) -> Value {
    let workloads = plan.workloads.iter().enumerate().map(|(index, workload)| {
        let servers = standing.lanes.iter().enumerate().map(|(lane, it)| {
            let samples =
                standing.rounds[index].iter().filter_map(|round| round.samples[lane].as_ref());
            let rounds = samples.map(|sample| {
                json!({
                    "requests_per_second": sample.rate,
                    "server_us_per_request": sample.server_cpu,
                    "client_us_per_request": sample.client_cpu,
                })
            });
            let floor_ratio =
                |floor: fn(&Round) -> f64| standing.floor_ratio(index, lane, workload.block, floor);
            json!({
                "name": it.server.name,
                "missing": it.state == State::Missing,
                "failure": match &it.state {
                    State::Failed(why) => Some(why),
                    _ => None,
                },
                "requests_per_second": standing.median(index, lane, |sample| sample.rate),
                "mib_per_second": standing.median(index, lane, |sample| sample.mib_rate),
                "server_us_per_request": standing.median(index, lane, |sample| sample.server_cpu),
                "ratio_to_nbdkit": standing.ratio(index, lane, NBDKIT_FILE),
                "ratio_to_qemu_nbd": standing.ratio(index, lane, QEMU_NBD_FILE),
                "cpu_ratio_to_cipher": floor_ratio(|round| round.in_memory),
                "cpu_ratio_to_cipher_and_socket": floor_ratio(|round| round.by_socket),
                "cpu_ratio_to_cipher_socket_and_file":
                    floor_ratio(|round| round.by_socket_and_file),
                "rounds": rounds.collect::<Vec<_>>(),
            })
        });
        json!({
            "name": workload.name,
            "block": workload.block,
            "depth": workload.depth,
            "cipher_us_per_mib": standing.rounds[index]
                .iter()
                .map(|round| round.in_memory)
                .collect::<Vec<_>>(),
            "cipher_and_socket_us_per_mib": standing.rounds[index]
                .iter()
                .map(|round| round.by_socket)
                .collect::<Vec<_>>(),
            "cipher_socket_and_file_us_per_mib": standing.rounds[index]
                .iter()
                .map(|round| round.by_socket_and_file)
                .collect::<Vec<_>>(),
            "servers": servers.collect::<Vec<_>>(),
        })
    });
    json!({
        "tls": !plan.plain,
        "seconds": plan.duration.as_secs_f64(),
        "rounds": plan.rounds,
        "bars": { "large": LARGE_BAR, "small": SMALL_BAR, "cpu": CPU_BAR },
        "workloads": workloads.collect::<Vec<_>>(),
    })
}
