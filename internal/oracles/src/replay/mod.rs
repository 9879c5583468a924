//! Recorded sessions again, with one of our machines in the place of one side.

mod client;
mod compare;
mod server;

pub use client::as_client;
pub use compare::{differences, is_complete};
pub use server::as_server;
