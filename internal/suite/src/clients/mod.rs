//! The clients under test.
//!
//! Each asynchronous adapter's client has the engine's methods, so one type does for all of them
//! ([`asynchronous`]); what differs is how a runtime is entered, and how its sockets are made.

pub mod asynchronous;

mod async_std;
mod blocking;
mod mio;
mod smol;
mod tokio;

pub use self::async_std::AsyncStdClient;
pub use self::blocking::BlockingClient;
pub use self::mio::MioClient;
pub use self::smol::SmolClient;
pub use self::tokio::{TokioClientCurrentThread, TokioClientMultiThread};
