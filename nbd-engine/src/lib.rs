//! Runs NBD connections over any byte stream, with no runtime chosen.
//!
//! [`export`] has what is served: the traits to implement and the exports that come ready-made. [`server`] drives
//! connections. The adapters (`nbd-blocking`, `nbd-tokio` and others) add sockets, threads or tasks, and timers, by
//! the [`Runtime`] trait; most people use one of them.
//!
//! [The guide](crate::guide) shows how. Without the engine, [`proto`] is the protocol as a state machine, whose front
//! page has the loop to write, and [one that does not block](proto#in-an-event-loop).
//!
//! # Features
//!
//! None is on by default. `tls` is TLS by rustls with `ring`, `tls-aws-lc-rs` the same with `aws-lc-rs`, and `tls-psk`
//! adds pre-shared keys, by OpenSSL, whose headers it needs to build: see the module `tls`.

#![cfg_attr(docsrs, feature(doc_cfg))]
// Rustdoc has a section for each Result that is public.
#![warn(clippy::missing_errors_doc)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

mod age;
mod busy_poll;
pub mod client;
mod command_text;
mod counted;
pub mod export;
mod maybe_tls;
mod memory_limit;
// Errors about TLS are among the others.
#[cfg(all(test, feature = "tls"))]
mod messages;
pub mod metrics;
pub mod net;
mod pump;
mod runtime;
pub mod server;
mod throttle;
#[cfg(feature = "tls")]
pub mod tls;
mod transport;

#[doc(hidden)]
pub use age::age;
#[doc(hidden)]
pub use counted::counted;
pub use runtime::{BoxFuture, Runtime};
pub use throttle::Throttle;
pub use transport::{AnyTransport, Plain, Socket, Transport, is_socket_peer_gone, try_send};

/// The protocol itself.
pub use nbd_proto as proto;

/// A guide, to exports, layers and adapters. It has no items.
pub mod guide {
    #![doc = include_str!("../doc/guide.md")]
}

/// The examples of the README, which `cargo test` compiles, too.
#[cfg(doctest)]
mod readme {
    #[doc = include_str!("../README.md")]
    struct Crate;
}
