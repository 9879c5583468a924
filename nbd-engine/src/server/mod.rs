//! Servers: connections, and what they share.

mod answer;
mod budget;
mod config;
mod dispatch;
mod error;
mod listen;
mod outcome;
mod payload;
mod pieces;
mod serve;
mod session;
mod state;
mod status;
mod turn;
mod watch;
mod workers;

pub use config::ServerConfig;
pub use error::ConnectionError;
pub use listen::{Accepted, Listen, listen};
pub use outcome::Outcome;
pub use serve::serve;
pub use state::{Permit, ServerState};
