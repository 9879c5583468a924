//! Servers: connections, and what they share.

mod answer;
mod dispatch;
mod error;
mod listen;
mod payload;
mod serve;
mod service;
mod session;
mod settings;
mod slot_futures;
mod status;
mod visit;
mod workers;

pub(crate) use dispatch::{Mailbox, serve_requests};
pub use error::ConnectionError;
pub use listen::{Accepted, Listen, listen};
pub use serve::serve;
pub use service::{Permit, Service};
pub use settings::Settings;
