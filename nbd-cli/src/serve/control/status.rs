//! The verbs of `nbd status` and `nbd disconnect`: what the server and its clients are doing.

use nbd_engine::metrics::RequestKind;
use nbd_engine::server::{ConnectionStatus, ExportMetrics, Metrics};
use serde::{Deserialize, Serialize};

use super::verbs::{NoArguments, Verbs};

/// Gives a [`Status`].
pub(crate) const STATUS: &str = "status";
/// Ends the connection of a client.
pub(crate) const DISCONNECT: &str = "disconnect";

/// Which connection is to end.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Disconnect {
    /// Its number.
    pub(crate) client: u64,
}

/// What a server and its clients are doing. Rates are for `nbd status` to add, which looks twice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) uptime_seconds: f64,
    pub(crate) connections: Connections,
    pub(crate) buffers: Buffers,
    pub(crate) workers: Workers,
    pub(crate) traffic: Traffic,
    pub(crate) exports: Vec<Export>,
    pub(crate) clients: Vec<Client>,
}

/// Connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Connections {
    pub(crate) current: u64,
    pub(crate) max: u64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) accept_failures: u64,
}

/// Memory for requests and replies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Buffers {
    pub(crate) bytes: u64,
    pub(crate) max_bytes: u64,
}

/// Worker threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Workers {
    pub(crate) threads: u64,
    pub(crate) busy: u64,
    pub(crate) waiting: u64,
    pub(crate) max: u64,
}

/// Bytes on the wire, inside of TLS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) received_bytes_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sent_bytes_per_second: Option<f64>,
}

/// An export, and what was done with it since the server started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Export {
    pub(crate) name: String,
    /// Bytes; `None` for an export that is no longer served, or a file of a directory that no client uses.
    pub(crate) size: Option<u64>,
    pub(crate) clients: u64,
    pub(crate) in_flight: u64,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read_bytes_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) written_bytes_per_second: Option<f64>,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) id: u64,
    pub(crate) peer: String,
    /// The names that the client proved; `None` without TLS.
    pub(crate) tls: Option<Vec<String>>,
    /// `None` during the negotiation.
    pub(crate) export: Option<String>,
    pub(crate) age_seconds: f64,
    pub(crate) in_flight: u64,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    pub(crate) buffer_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) received_bytes_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sent_bytes_per_second: Option<f64>,
}

/// Adds the verbs for a server that counts by `metrics`, and whose exports are those that `exports` gives.
pub(in crate::serve) fn verbs(
    verbs: Verbs,
    metrics: &Metrics,
    sizes: impl Fn() -> Vec<(String, u64)> + Send + Sync + 'static,
) -> Verbs {
    let [watched, ended] = [(); 2].map(|()| metrics.clone());
    verbs.with(STATUS, move |NoArguments {}| Ok(status(&watched, &sizes()))).with(
        DISCONNECT,
        move |Disconnect { client }| match ended.disconnect(client) {
            true => Ok(()),
            false => Err(format!("there is no client {client}: see nbd status")),
        },
    )
}

fn status(metrics: &Metrics, sizes: &[(String, u64)]) -> Status {
    let clients = metrics.connections();
    let snapshot = metrics.snapshot();
    let (connections, workers) = (&snapshot.connections, &snapshot.workers);
    let none = ExportMetrics::default();
    let served = sizes.iter().map(|(name, size)| {
        let counted = snapshot.exports.get(name).unwrap_or(&none);
        export(name, Some(*size), counted)
    });
    let is_served = |name: &str| sizes.iter().any(|(served, _)| served == name);
    let gone = snapshot.exports.iter().filter(|(name, _)| !is_served(name));
    let gone = gone.map(|(name, counted)| export(name, None, counted));
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_seconds: snapshot.uptime.as_secs_f64(),
        connections: Connections {
            current: connections.current,
            max: connections.max,
            accepted: connections.accepted,
            refused: connections.refused,
            accept_failures: connections.accept_failures,
        },
        buffers: Buffers { bytes: snapshot.buffer_bytes, max_bytes: snapshot.max_buffer_bytes },
        workers: Workers {
            threads: workers.threads,
            busy: workers.busy,
            waiting: workers.waiting,
            max: workers.max,
        },
        traffic: Traffic {
            received_bytes: snapshot.received_bytes,
            sent_bytes: snapshot.sent_bytes,
            received_bytes_per_second: None,
            sent_bytes_per_second: None,
        },
        exports: served.chain(gone).collect(),
        clients: clients.iter().map(client).collect(),
    }
}

fn export(name: &str, size: Option<u64>, counted: &ExportMetrics) -> Export {
    let bytes = |kind| counted.requests.get(&kind).map_or(0, |requests| requests.bytes);
    let all = || counted.requests.values();
    Export {
        name: name.into(),
        size,
        clients: counted.connections,
        in_flight: all().map(|requests| requests.in_flight).sum(),
        requests: all().map(|requests| requests.requests).sum(),
        errors: all().flat_map(|requests| requests.errors.values()).sum(),
        read_bytes: bytes(RequestKind::Read),
        written_bytes: bytes(RequestKind::Write),
        requests_per_second: None,
        read_bytes_per_second: None,
        written_bytes_per_second: None,
    }
}

fn client(connection: &ConnectionStatus) -> Client {
    let who = &connection.client;
    Client {
        id: who.connection,
        peer: who.peer.to_string(),
        tls: who.tls.as_ref().map(|identity| identity.names.clone()),
        export: connection.export.clone(),
        age_seconds: connection.age.as_secs_f64(),
        in_flight: connection.in_flight,
        requests: connection.requests,
        errors: connection.errors,
        buffer_bytes: connection.buffer_bytes,
        received_bytes: connection.received_bytes,
        sent_bytes: connection.sent_bytes,
        requests_per_second: None,
        received_bytes_per_second: None,
        sent_bytes_per_second: None,
    }
}
