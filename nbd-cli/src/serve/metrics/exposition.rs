//! Metrics as text, in Prometheus' exposition format 0.0.4.

use std::fmt::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use nbd_engine::metrics::LatencyHistogram;
use nbd_engine::server::{Metrics, MetricsSnapshot};

/// What `Content-Type` says of the text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A metric: its name, its type, and what it means.
#[derive(Clone, Copy, Debug)]
struct Family(&'static str, Kind, &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter, Gauge, Histogram};

/// A part of the text: one metric after the other, each with its samples.
struct Text(String);

type Label<'a> = (&'a str, &'a str);

impl Text {
    /// Begins a metric. All its samples come before the next one.
    fn family(&mut self, Family(name, kind, help): Family) -> Samples<'_> {
        let kind = match kind {
            Counter => "counter",
            Gauge => "gauge",
            Histogram => "histogram",
        };
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Samples { text: &mut self.0, name }
    }

    /// A metric of one sample without labels.
    fn single(&mut self, family: Family, value: impl fmt::Display) {
        self.family(family).add(&[], value);
    }
}

struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Samples<'_> {
    fn add(&mut self, labels: &[Label<'_>], value: impl fmt::Display) {
        self.line("", labels, value);
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], value: impl fmt::Display) {
        let Self { text, name } = self;
        let _ = write!(text, "{name}{suffix}");
        for (index, (label, value)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(text, "{before}{label}=\"");
            escape(value, text);
            text.push('"');
        }
        if !labels.is_empty() {
            text.push('}');
        }
        let _ = writeln!(text, " {value}");
    }

    /// The samples of a histogram: a bucket for each power of two of nanoseconds, so that scrapes stay small.
    fn add_histogram(&mut self, labels: &[Label<'_>; 2], latencies: &LatencyHistogram) {
        let [first, second] = *labels;
        let mut count = 0;
        for (bound, below) in latencies.cumulative() {
            count = below;
            if let Some(bound) = bound.filter(|bound| bound.as_nanos().is_power_of_two()) {
                let bound = bound.as_secs_f64().to_string();
                self.line("_bucket", &[first, second, ("le", &bound)], below);
            }
        }
        self.line("_bucket", &[first, second, ("le", "+Inf")], count);
        self.line("_sum", labels, latencies.sum().as_secs_f64());
        self.line("_count", labels, count);
    }
}

/// Appends a label's value.
fn escape(value: &str, text: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

/// All metrics. Each has its heading even while it has no samples. `exports` are the names of those that there are.
pub(super) fn text(snapshot: &MetricsSnapshot, exports: &[String]) -> String {
    let mut text = Text(String::new());
    requests(snapshot, &mut text);
    connections(snapshot, exports, &mut text);
    process(snapshot, &mut text);
    text.0
}

fn requests(snapshot: &MetricsSnapshot, text: &mut Text) {
    let each = || {
        snapshot.exports.iter().flat_map(|(export, metrics)| {
            let labelled =
                |command: &'static str| [("export", export.as_str()), ("command", command)];
            metrics.requests.iter().map(move |(kind, requests)| (labelled(kind.name()), requests))
        })
    };
    const REQUESTS: Family = Family(
        "nbd_requests_total",
        Counter,
        "Requests received, by export and command, those that were refused included.",
    );
    let mut samples = text.family(REQUESTS);
    each().for_each(|(labels, requests)| samples.add(&labels, requests.requests));

    const ERRORS: Family = Family(
        "nbd_request_errors_total",
        Counter,
        "Requests that were answered with an error, by export, command and error value.",
    );
    let mut samples = text.family(ERRORS);
    for ([export, command], requests) in each() {
        for (error, count) in &requests.errors {
            samples.add(&[export, command, ("error", error.name())], count);
        }
    }

    const BYTES: Family = Family(
        "nbd_request_bytes_total",
        Counter,
        "Bytes that successful requests have read or written, or that other commands were about.",
    );
    let mut samples = text.family(BYTES);
    each().for_each(|(labels, requests)| samples.add(&labels, requests.bytes));

    const IN_FLIGHT: Family = Family(
        "nbd_requests_in_flight",
        Gauge,
        "Requests that were given to the export and are not answered in whole.",
    );
    let mut samples = text.family(IN_FLIGHT);
    each().for_each(|(labels, requests)| samples.add(&labels, requests.in_flight));

    const DURATION: Family = Family(
        "nbd_request_duration_seconds",
        Histogram,
        "Time from the receipt of a request, with its payload, until the last byte of its reply was handed to the \
         transport. Requests that were refused without the export are left out.",
    );
    let mut samples = text.family(DURATION);
    each().for_each(|(labels, requests)| samples.add_histogram(&labels, &requests.latencies));

    const CUT_OFF: Family = Family(
        "nbd_requests_cut_off_total",
        Counter,
        "Requests that were not finished when the time to shut down was over.",
    );
    text.single(CUT_OFF, snapshot.requests_cut_off);
}

fn connections(snapshot: &MetricsSnapshot, exports: &[String], text: &mut Text) {
    let connections = &snapshot.connections;
    text.single(Family("nbd_connections", Gauge, "Connections."), connections.current);
    const MAX: Family = Family("nbd_connections_max", Gauge, "Connections at most.");
    text.single(MAX, connections.max);
    const OF_EXPORT: Family =
        Family("nbd_export_connections", Gauge, "Connections that use an export.");
    let mut samples = text.family(OF_EXPORT);
    for (export, metrics) in &snapshot.exports {
        samples.add(&[("export", export)], metrics.connections);
    }
    unused(snapshot, exports).for_each(|export| samples.add(&[("export", export)], 0));
    const ACCEPTED: Family =
        Family("nbd_connections_accepted_total", Counter, "Connections that were served.");
    text.single(ACCEPTED, connections.accepted);
    const REFUSED: Family = Family(
        "nbd_connections_refused_total",
        Counter,
        "Connections that were refused, since there were as many as may be.",
    );
    text.single(REFUSED, connections.refused);
    const DENIED: Family = Family(
        "nbd_connections_denied_total",
        Counter,
        "Connections of peers that may not connect, by their address, user or group.",
    );
    text.single(DENIED, connections.denied);
    const FAILURES: Family = Family(
        "nbd_accept_failures_total",
        Counter,
        "Failures to accept a connection, such as for want of file descriptors.",
    );
    text.single(FAILURES, connections.accept_failures);
    const ENDED: Family = Family(
        "nbd_connections_ended_total",
        Counter,
        "Connections that ended, by how they did: disconnected, hung_up and shut_down are in order.",
    );
    let mut samples = text.family(ENDED);
    for (ending, count) in &connections.ended {
        samples.add(&[("reason", ending.name())], count);
    }
    const TLS: Family =
        Family("nbd_tls_handshakes_total", Counter, "TLS handshakes, by whether they succeeded.");
    let mut samples = text.family(TLS);
    samples.add(&[("result", "success")], snapshot.tls_handshakes);
    samples.add(&[("result", "failure")], snapshot.tls_failures);
    const RECEIVED: Family =
        Family("nbd_received_bytes_total", Counter, "Bytes received from clients, inside of TLS.");
    text.single(RECEIVED, snapshot.received_bytes);
    const SENT: Family =
        Family("nbd_sent_bytes_total", Counter, "Bytes sent to clients, inside of TLS.");
    text.single(SENT, snapshot.sent_bytes);
}

/// The exports that no client has entered yet and that would be counted by name.
fn unused<'a>(
    snapshot: &'a MetricsSnapshot,
    exports: &'a [String],
) -> impl Iterator<Item = &'a String> {
    let room = Metrics::MAX_EXPORTS.saturating_sub(snapshot.exports.len());
    let is_named =
        |export: &str| export.len() <= Metrics::MAX_EXPORT_NAME && export != Metrics::OTHER_EXPORTS;
    let known = |export: &str| snapshot.exports.iter().any(|(name, _)| **name == *export);
    exports.iter().filter(move |export| is_named(export) && !known(export)).take(room)
}

fn process(snapshot: &MetricsSnapshot, text: &mut Text) {
    const BUFFERS: Family =
        Family("nbd_buffer_bytes", Gauge, "Memory in use for the data of requests and replies.");
    text.single(BUFFERS, snapshot.buffer_bytes);
    const MAX_BUFFERS: Family = Family(
        "nbd_buffer_max_bytes",
        Gauge,
        "Memory for the data of requests and replies at most.",
    );
    text.single(MAX_BUFFERS, snapshot.max_buffer_bytes);
    let workers = &snapshot.workers;
    text.single(Family("nbd_workers", Gauge, "Worker threads that run."), workers.threads);
    const BUSY: Family =
        Family("nbd_workers_busy", Gauge, "Worker threads that carry out a request.");
    text.single(BUSY, workers.busy);
    const MAX: Family =
        Family("nbd_workers_max", Gauge, "Worker threads that exports compete for, at most.");
    text.single(MAX, workers.max);
    const WAITING: Family =
        Family("nbd_worker_queue_requests", Gauge, "Requests that wait for a worker thread.");
    text.single(WAITING, workers.waiting);
    const START: Family = Family(
        "process_start_time_seconds",
        Gauge,
        "When the server started, in seconds since 1970-01-01 00:00 UTC.",
    );
    let started = snapshot.started.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    text.single(START, started.as_secs_f64());
    const BUILD: Family = Family("nbd_build_info", Gauge, "1, with the version of the server.");
    text.family(BUILD).add(&[("version", env!("CARGO_PKG_VERSION"))], 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut text = Text(String::new());
        text.family(Family("a", Gauge, "A.")).add(&[("b", "\\ \"x\"\n\té"), ("c", "")], 7);
        assert_eq!(text.0, "# HELP a A.\n# TYPE a gauge\na{b=\"\\\\ \\\"x\\\"\\n\té\",c=\"\"} 7\n");
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_that_end_with_all() {
        let mut latencies = LatencyHistogram::default();
        for micros in [1, 3, 3, 500_000_000] {
            latencies.record(Duration::from_micros(micros));
        }
        let mut text = Text(String::new());
        let family = Family("a", Histogram, "A.");
        text.family(family).add_histogram(&[("x", "1"), ("y", "2")], &latencies);
        let lines: Vec<&str> = text.0.lines().skip(2).collect();
        assert_eq!(lines[0], "a_bucket{x=\"1\",y=\"2\",le=\"0.000001024\"} 1");
        assert_eq!(lines[2], "a_bucket{x=\"1\",y=\"2\",le=\"0.000004096\"} 3");
        let last = lines.len() - 3;
        assert_eq!(lines[last - 1], "a_bucket{x=\"1\",y=\"2\",le=\"137.438953472\"} 3");
        assert_eq!(lines[last], "a_bucket{x=\"1\",y=\"2\",le=\"+Inf\"} 4");
        assert_eq!(lines[last + 1], "a_sum{x=\"1\",y=\"2\"} 500.000007");
        assert_eq!(lines[last + 2], "a_count{x=\"1\",y=\"2\"} 4");
        assert_eq!(lines.len(), 28 + 3);
    }
}
