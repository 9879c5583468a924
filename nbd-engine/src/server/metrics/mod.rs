//! What a server counts: requests by export and command, connections, bytes.
//!
//! A connection has [counters](counters) of its own, which its task alone writes, by a [`Recorder`]: nothing is shared
//! and nothing is locked while requests come and go. [`Metrics`] knows all connections. Who asks it gets the sum of
//! theirs and of what those that ended have left behind. What a connection had is moved there under the same lock
//! under which sums are made, so that no count ever goes down.

mod counters;
mod ending;
mod recorder;
mod registry;
mod snapshot;

pub use ending::Ending;
pub(super) use recorder::{Progress, Recorder, Started};
pub(super) use registry::Loaded;
pub use registry::Metrics;
pub(super) use snapshot::Load;
pub use snapshot::{
    ConnectionMetrics, ConnectionStatus, ExportMetrics, MetricsSnapshot, RequestMetrics,
    WorkerMetrics,
};
