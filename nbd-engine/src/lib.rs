//! Runs NBD connections over any byte stream, with no runtime chosen.
//!
//! [`export`] has what is served: the traits to implement and the exports that come ready-made. [`server`] drives
//! connections. The adapters (`nbd-blocking`, `nbd-tokio` and others) add sockets, threads or tasks, and timers, by
//! the [`Runtime`] trait; most people use one of them.

pub mod client;
pub mod export;
pub mod net;
mod patience;
mod runtime;
pub mod server;
mod staging;
#[cfg(feature = "tls")]
pub mod tls;
mod transport;

pub use runtime::{BoxFuture, Runtime};
pub use transport::{AnyTransport, Plain, Socket, Transport};

/// The protocol itself.
pub use nbd_proto as proto;

/// The examples of the README, which `cargo test` compiles, too.
#[cfg(doctest)]
mod readme {
    #[doc = include_str!("../README.md")]
    struct Crate;
}
