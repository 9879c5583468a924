//! Servers: connections, and what they share.

mod dispatch;
mod error;
mod listen;
mod patience;
mod payload;
mod serve;
mod service;
mod session;
mod settings;
mod staging;
mod workers;

pub use error::ConnectionError;
pub use listen::{Accepted, Listen, listen};
pub use serve::serve;
pub use service::{Permit, Service};
pub use settings::Settings;
