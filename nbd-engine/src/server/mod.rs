//! Servers: connections, and what they share.

mod budget;
mod config;
mod dispatch;
mod error;
mod failures;
mod guard;
mod listen;
mod listening;
mod metrics;
mod negotiation;
mod outcome;
mod payload;
mod pieces;
mod request;
mod serve;
mod session;
mod slot_futures;
mod state;
mod status;
mod turn;
mod visit;
mod watch;
mod workers;

pub use config::ServerConfig;
pub(crate) use dispatch::{Mailbox, serve_requests};
pub use error::{ConnectionError, Stall};
pub use guard::is_request_guarded;
pub use listen::{Accepted, Listen, listen};
pub use listening::Listening;
pub use metrics::{
    ConnectionMetrics, ConnectionStatus, Ending, ExportMetrics, Metrics, MetricsSnapshot,
    RequestMetrics, WorkerMetrics,
};
pub use outcome::Outcome;
pub use serve::{admit_and_serve, serve};
pub use state::{Permit, ServerState};
