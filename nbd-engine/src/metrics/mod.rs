//! What servers and clients count: [`Metrics`] of a server, and what they have in common with the
//! [statistics of a client](crate::client::ClientStatistics).

mod cell;
mod histogram;
mod kind;

pub(crate) use cell::Cell;
pub(crate) use histogram::Latencies;
pub use histogram::LatencyHistogram;
pub(crate) use kind::kinds;
pub use kind::{ErrorKind, RequestKind};

pub use crate::server::{
    ConnectionMetrics, ConnectionStatus, Ending, ExportMetrics, Metrics, MetricsSnapshot,
    RequestMetrics, WorkerMetrics,
};
