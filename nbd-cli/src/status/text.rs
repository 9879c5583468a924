//! The status of a server for people.

use std::fmt::Write;
use std::time::Duration;

use nbd_engine::{age, counted};

use crate::output::{export_name, printable};
use crate::serve::{Client, Export, Status};
use crate::units::{bytes, table};

/// The lines of a server, a table of its exports and one of its clients.
pub(super) fn of(status: &Status) -> String {
    let Status { connections, buffers, workers, traffic, .. } = status;
    let mut text = String::new();
    let up = age_of(status.uptime_seconds);
    // Writing to a string does not fail.
    let _ = writeln!(text, "nbd {}, pid {}, up {up}", printable(&status.version), status.pid);
    let _ = writeln!(
        text,
        "connections: {} of {}; {} accepted, {} refused",
        connections.current, connections.max, connections.accepted, connections.refused
    );
    let (used, max) = (bytes(buffers.bytes), bytes(buffers.max_bytes));
    let _ = writeln!(text, "buffers: {used} of {max}");
    let _ = writeln!(
        text,
        "workers: {} of {} busy; waiting: {}",
        workers.busy,
        workers.max,
        counted(workers.waiting, "request")
    );
    let _ = writeln!(
        text,
        "traffic: {} received{}, {} sent{}",
        bytes(traffic.received_bytes),
        in_brackets(traffic.received_bytes_per_second),
        bytes(traffic.sent_bytes),
        in_brackets(traffic.sent_bytes_per_second)
    );
    text.push('\n');
    text.push_str(&exports(&status.exports));
    if !status.clients.is_empty() {
        text.push('\n');
        text.push_str(&clients(&status.clients));
    }
    text
}

fn in_brackets(rate: Option<f64>) -> String {
    rate.map_or_else(String::new, |rate| format!(" ({})", per_second(Some(rate))))
}

fn per_second(rate: Option<f64>) -> String {
    rate.map_or("-".into(), |rate| format!("{}/s", bytes(rate.round() as u64)))
}

fn count_per_second(rate: Option<f64>) -> String {
    rate.map_or("-".into(), |rate| format!("{rate:.0}/s"))
}

fn heading<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

fn exports(exports: &[Export]) -> String {
    let mut rows = vec![heading([
        "EXPORT",
        "SIZE",
        "CLIENTS",
        "IN FLIGHT",
        "REQUESTS",
        "ERRORS",
        "READ",
        "WRITTEN",
        "RATE",
        "READING",
        "WRITING",
    ])];
    for export in exports {
        rows.push(vec![
            export_name(&export.name),
            export.size.map_or("-".into(), bytes),
            export.clients.to_string(),
            export.in_flight.to_string(),
            export.requests.to_string(),
            export.errors.to_string(),
            bytes(export.read_bytes),
            bytes(export.written_bytes),
            count_per_second(export.requests_per_second),
            per_second(export.read_bytes_per_second),
            per_second(export.written_bytes_per_second),
        ]);
    }
    table(&rows, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
}

fn clients(clients: &[Client]) -> String {
    let mut rows = vec![heading([
        "CLIENT",
        "PEER",
        "TLS",
        "EXPORT",
        "AGE",
        "IN FLIGHT",
        "REQUESTS",
        "ERRORS",
        "BUFFERS",
        "RATE",
        "RECEIVING",
        "SENDING",
    ])];
    for client in clients {
        let tls = match &client.tls {
            None => "-".into(),
            Some(names) if names.is_empty() => "anonymous".into(),
            Some(names) => printable(&names.join(",")),
        };
        rows.push(vec![
            client.id.to_string(),
            printable(&client.peer),
            tls,
            client.export.as_deref().map_or("-".into(), export_name),
            age_of(client.age_seconds),
            client.in_flight.to_string(),
            client.requests.to_string(),
            client.errors.to_string(),
            bytes(client.buffer_bytes),
            count_per_second(client.requests_per_second),
            per_second(client.received_bytes_per_second),
            per_second(client.sent_bytes_per_second),
        ]);
    }
    table(&rows, &[0, 4, 5, 6, 7, 8, 9, 10, 11])
}

/// An age as the server reports it, which can be any number: one that is no time is 0, and one too long the longest.
fn age_of(seconds: f64) -> String {
    age(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_age_that_a_server_reports_can_be_shown() {
        let longest = age(Duration::MAX);
        for (seconds, expected) in [
            (-1.0, "0s"),
            (f64::NAN, "0s"),
            (61.5, "1m 1s"),
            (1e300, &*longest),
            (f64::INFINITY, &*longest),
        ] {
            assert_eq!(age_of(seconds), expected, "{seconds}");
        }
    }
}
