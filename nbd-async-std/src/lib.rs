//! NBD on smol and on async-std.
//!
//! async-std is discontinued: its own maintainers send people to smol. This crate has both, under the same names:
//! `smol::Server` and `smol::Client` with the feature `smol` (on by default), `Server` and `Client` in the crate's root
//! with the feature `async-std`, for programs that still run on it. The features only add; both can be on at once. What
//! is of no runtime, such as [`ServerConfig`] and [`export`], is in both places.
//!

#![cfg_attr(docsrs, feature(doc_cfg))]
// Rustdoc has a section for each Result that is public.
#![warn(clippy::missing_errors_doc)]
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs)]
#![cfg_attr(feature = "smol", doc = "```")]
#![cfg_attr(not(feature = "smol"), doc = "```ignore")]
//! use nbd_async_std::smol::Server;
//! use nbd_async_std::export::{ExportMap, Memory};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! smol::block_on(async {
//!     let server = Server::new(ExportMap::new().with("disk", Memory::new(1 << 30)?)?);
//!     let listening = server.listen_tcp("127.0.0.1:0").await?;
//!     println!("{}", listening.local_addr().uri("disk")?);
//! #   server.shut_down();
//!     server.wait().await; // Until somebody calls server.shut_down().
//!     Ok(())
//! })
//! # }
//! ```
//!
//! A client reads and writes any server:
//!
#![cfg_attr(feature = "smol", doc = "```no_run")]
#![cfg_attr(not(feature = "smol"), doc = "```ignore")]
//! # async fn example() -> Result<(), nbd_async_std::client::Error> {
//! let client = nbd_async_std::smol::Client::connect("nbd://localhost/disk").await?;
//! client.write_all_at(b"hello", 4096).await?;
//! client.disconnect().await;
//! # Ok(())
//! # }
//! ```
//!
//! Each connection is a task. Exports that never block are called on it; those that may block, on worker threads of the
//! engine, so that no thread of the runtime is held up. Both runtimes wait for sockets and timers by
//! [async-io](async_io), so both servers are the same code, and so are both clients. Unix platforms only.
//!
//! [The guide](crate::guide) goes on. An event loop of your own needs no runtime: [`proto`] is the protocol as a state
//! machine, whose front page has the loop to write, and [one that does not block](proto#in-an-event-loop).
//!
//! Exports, the configuration and much else come from the engine, under the same names: where an example of theirs says
//! `nbd_engine`, write `nbd_async_std`. What is in `nbd_engine::server` and `nbd_engine::net` is in the root here.
//!
//! # Features
//!
//! `smol` is on by default, `async-std` is not. `tls` is TLS by rustls with `ring`, `tls-aws-lc-rs` the same with
//! `aws-lc-rs`, and `tls-psk` adds pre-shared keys, by OpenSSL, whose headers it needs to build: see the module `tls`.

#[cfg(feature = "async-std")]
mod async_std;
#[cfg(any(feature = "async-std", feature = "smol"))]
pub mod client;
#[cfg(any(feature = "async-std", feature = "smol"))]
pub mod server;
#[cfg(feature = "smol")]
pub mod smol;
#[cfg(any(feature = "async-std", feature = "smol"))]
mod stream;

#[cfg(feature = "async-std")]
pub use async_std::{AsyncStd, Server};
#[cfg(feature = "async-std")]
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
pub use nbd_engine::server::{ConnectionError, Listening, Outcome, ServerConfig, Stall};
#[cfg(feature = "tls")]
pub use nbd_engine::tls;

/// A guide to both runtimes. It has no items.
pub mod guide {
    #![doc = include_str!("../doc/guide.md")]
    #![cfg_attr(feature = "smol", doc = "```")]
    #![cfg_attr(not(feature = "smol"), doc = "```ignore")]
    #![doc = include_str!("../doc/guide_example.md")]
}

#[cfg(all(doctest, feature = "smol"))]
#[doc = include_str!("../README.md")]
struct Readme;
