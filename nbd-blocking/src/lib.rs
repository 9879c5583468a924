//! NBD on threads and blocking calls: no async runtime, one thread for each connection.
//!
//! ```
//! use nbd_blocking::Server;
//! use nbd_blocking::export::{ExportMap, Memory};
//!
//! let server = Server::new(ExportMap::new().with("disk", Memory::new(1 << 30)?)?);
//! let listening = server.listen_tcp("127.0.0.1:0")?;
//! println!("{}", listening.local_addr().uri("disk")?);
//! # server.shut_down();
//! server.wait(); // Until somebody calls server.shut_down().
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Behind a connection's thread stands a small event loop (`poll(2)` on its socket and a wake-up), so that requests
//! which take their time run on worker threads beside it, and none holds up another. Unix platforms only.
//!
//! A [`Client`] has no thread of its own: those that wait for replies drive its connections.
//!
//! [The guide](crate::guide) goes on: exports of your own, limits, errors, reconnecting clients. An event loop of your
//! own needs none of these threads: [`proto`] is the protocol as a state machine, whose front page has the loop to
//! write, and [one that does not block](proto#in-an-event-loop).
//!
//! Exports, the configuration and much else come from the engine, under the same names: where an example of theirs says
//! `nbd_engine`, write `nbd_blocking`. What is in `nbd_engine::server` and `nbd_engine::net` is in the root here.
//!
//! # Features
//!
//! None is on by default. `tls` is TLS by rustls with `ring`, `tls-aws-lc-rs` the same with
//! `aws-lc-rs`, and `tls-psk` adds pre-shared keys, by OpenSSL, whose headers it needs to build: see the module `tls`.

#![cfg_attr(docsrs, feature(doc_cfg))]
// Rustdoc has a section for each Result that is public.
#![warn(clippy::missing_errors_doc)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]

pub mod client;
mod duplex;
mod park;
mod pump;
mod reactor;
mod server;
mod stream;

pub use client::{Client, Cursor, Negotiation};
pub use nbd_engine::export;
pub use nbd_engine::metrics;
#[cfg(target_os = "linux")]
pub use nbd_engine::net::VSOCK_CID_ANY;
pub use nbd_engine::net::{Access, InvalidNetwork, LocalAddr, Network};
/// The protocol, of whose types errors are made.
pub use nbd_engine::proto;
pub use nbd_engine::proto::Limits;
pub use nbd_engine::proto::wire::DEFAULT_PORT;
pub use nbd_engine::server::{ConnectionError, Outcome, ServerConfig, Stall};
#[cfg(feature = "tls")]
pub use nbd_engine::tls;
pub use server::{Listening, Server};

/// A guide, from the first export to reconnecting clients. It has no items.
pub mod guide {
    #![doc = include_str!("../doc/guide.md")]
}

/// The examples of the README, which `cargo test` compiles, too.
#[cfg(doctest)]
mod readme {
    #[doc = include_str!("../README.md")]
    struct Crate;
}
