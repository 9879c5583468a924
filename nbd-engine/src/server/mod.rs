//! Servers: connections, and what they share.

mod answer;
mod dispatch;
mod error;
mod guard;
mod listen;
mod outcome;
mod payload;
mod serve;
mod service;
mod session;
mod settings;
mod status;
mod workers;

pub use error::ConnectionError;
pub use guard::is_request_guarded;
pub use listen::{Accepted, Listen, listen};
pub use outcome::Outcome;
pub use serve::serve;
pub use service::{Permit, Service};
pub use settings::Settings;
