//! A summary of the metrics for the log.

use std::time::Duration;

use nbd_engine::age;
use nbd_engine::server::{Metrics, MetricsSnapshot};

use crate::journal::Priority;
use crate::output::export_name;
use crate::{log, units};

/// Logs what the server has done so far, whatever else is logged.
pub(super) fn log(metrics: &Metrics) {
    for line in summary(&metrics.snapshot()).lines() {
        log::lines(Priority::Info, &format!("nbd: {line}\n"));
    }
}

fn summary(snapshot: &MetricsSnapshot) -> String {
    let (connections, workers) = (&snapshot.connections, &snapshot.workers);
    let mut text = format!(
        "up {}; connections: {} of {}, {} accepted, {} refused; buffers: {} of {}; workers: {} of {} busy\n",
        age(snapshot.uptime),
        connections.current,
        connections.max,
        connections.accepted,
        connections.refused,
        units::bytes(snapshot.buffer_bytes),
        units::bytes(snapshot.max_buffer_bytes),
        workers.busy,
        workers.max,
    );
    let heading = ["EXPORT", "COMMAND", "REQUESTS", "ERRORS", "IN FLIGHT", "DATA", "MEAN", "P99"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for (name, export) in &snapshot.exports {
        let name = export_name(name);
        for (kind, requests) in &export.requests {
            let time = |time: Option<Duration>| time.map_or("-".into(), units::latency);
            rows.push(vec![
                name.clone(),
                kind.name().into(),
                requests.requests.to_string(),
                requests.errors.values().sum::<u64>().to_string(),
                requests.in_flight.to_string(),
                units::bytes(requests.bytes),
                time(requests.latencies.mean()),
                time(requests.latencies.quantile(0.99)),
            ]);
        }
    }
    if rows.len() > 1 {
        text.push_str(&units::table(&rows, &[2, 3, 4, 5, 6, 7]));
    }
    text
}
