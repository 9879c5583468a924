//! What a run has measured: for people, and for programs.

use core::time::Duration;
use std::io::{self, Write};

use serde_json::{Value, json};

use super::latencies::Summary;
use super::run::{Outcomes, Run, Tally};
use crate::json;
use crate::output::printable;
use crate::units::{bytes, latency, table};

/// A run that is over, or interrupted.
#[derive(Debug)]
pub(super) struct Report<'a> {
    pub(super) run: &'a Run,
    pub(super) connections: usize,
    pub(super) tally: Tally,
    pub(super) elapsed: Duration,
    /// How long the flush after the writes took.
    pub(super) flush: Option<Duration>,
    pub(super) interrupted: bool,
}

impl Report<'_> {
    pub(super) fn write(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        match json {
            true => json::write(out, &self.json()),
            false => out.write_all(self.text().as_bytes()),
        }
    }

    /// The kinds of requests that the run has, by their names.
    fn kinds(&self) -> impl Iterator<Item = (&'static str, &Outcomes)> {
        let pattern = self.run.plan.pattern;
        let (reads, writes) = (pattern.reads(), pattern.writes());
        let reads = reads.then_some(("reads", &self.tally.reads));
        reads.into_iter().chain(writes.then_some(("writes", &self.tally.writes)))
    }

    fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn text(&self) -> String {
        let Run { plan, depth, name, .. } = self.run;
        let connections = match self.connections {
            1 => "1 connection".into(),
            several => format!("each of {several} connections"),
        };
        let mut text = format!(
            "{} of {} on {}: {depth} in flight on {connections}, {}{}, seed {}\n\n",
            plan.pattern.name(),
            bytes(plan.block as u64),
            printable(name),
            latency(self.elapsed),
            if self.interrupted { " (interrupted)" } else { "" },
            plan.seed
        );
        const HEADING: [&str; 11] = [
            "",
            "REQUESTS",
            "FAILED",
            "RATE",
            "THROUGHPUT",
            "MEAN",
            "P50",
            "P90",
            "P99",
            "P99.9",
            "MAX",
        ];
        let mut rows = vec![HEADING.map(str::to_owned).to_vec()];
        rows.extend(self.kinds().map(|(kind, outcomes)| self.row(kind, outcomes)));
        text.push_str(&table(&rows, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
        if let Some(flush) = self.flush {
            text.push_str(&format!("\nflush after the writes: {}\n", latency(flush)));
        }
        text
    }

    fn row(&self, kind: &str, outcomes: &Outcomes) -> Vec<String> {
        let count = outcomes.latencies.count();
        let rate = count as f64 / self.seconds();
        let throughput = bytes((rate * self.run.plan.block as f64).round() as u64);
        let mut row = vec![
            kind.to_owned(),
            count.to_string(),
            outcomes.failed().to_string(),
            format!("{rate:.0}/s"),
            format!("{throughput}/s"),
        ];
        let times = outcomes.latencies.summary().map(|summary| {
            let Summary { min: _, mean, p50, p90, p99, p99_9, max } = summary;
            [mean, p50, p90, p99, p99_9, max].map(latency)
        });
        row.extend(times.unwrap_or_else(|| core::array::from_fn(|_| "-".into())));
        row
    }

    fn json(&self) -> Value {
        let Run { plan, depth, name, .. } = self.run;
        let mut document = json!({
            "server": name,
            "rw": plan.pattern.name(),
            "block_size": plan.block,
            "depth": depth,
            "connections": self.connections,
            "offset": plan.range.start,
            "length": plan.range.end - plan.range.start,
            "seed": plan.seed,
            "seconds": self.elapsed.as_secs_f64(),
            "interrupted": self.interrupted,
        });
        for (kind, outcomes) in self.kinds() {
            document[kind] = self.outcomes(outcomes);
        }
        if let Some(flush) = self.flush {
            document["flush_seconds"] = flush.as_secs_f64().into();
        }
        document
    }

    fn outcomes(&self, outcomes: &Outcomes) -> Value {
        let count = outcomes.latencies.count();
        let size = count.saturating_mul(self.run.plan.block as u64);
        let latencies = outcomes.latencies.summary().map(|summary| {
            let Summary { min, mean, p50, p90, p99, p99_9, max } = summary;
            let [min, mean, p50, p90, p99, p99_9, max] =
                [min, mean, p50, p90, p99, p99_9, max].map(|time| time.as_secs_f64());
            json!({
                "min": min, "mean": mean, "p50": p50, "p90": p90, "p99": p99, "p99_9": p99_9,
                "max": max,
            })
        });
        json!({
            "requests": count,
            "bytes": size,
            "requests_per_second": count as f64 / self.seconds(),
            "bytes_per_second": size as f64 / self.seconds(),
            "failed": outcomes.failed(),
            "errors": outcomes.errors,
            "latency_seconds": latencies,
        })
    }
}
