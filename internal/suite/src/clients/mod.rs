//! The clients under test.
//!
//! Each asynchronous adapter's client has the engine's methods, so one type does for all of them
//! ([`asynchronous`]); what differs is how a runtime is entered, and how its sockets are made.

pub mod asynchronous;

mod blocking;
mod tokio;

pub use blocking::BlockingClient;
pub use tokio::{TokioClientCurrentThread, TokioClientMultiThread};
