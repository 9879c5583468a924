//! NBD on tokio.
//!
//! ```
//! use nbd_tokio::Server;
//! use nbd_tokio::export::{ExportMap, Memory};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::new(ExportMap::new().with("disk", Memory::new(1 << 30)?)?);
//! let listening = server.listen_tcp("127.0.0.1:0").await?;
//! println!("{}", listening.local_addr().uri("disk")?);
//! # server.shut_down();
//! server.wait().await; // Until somebody calls server.shut_down().
//! # Ok(())
//! # }
//! ```
//!
//! A client reads and writes any server:
//!
//! ```no_run
//! # async fn example() -> Result<(), nbd_tokio::client::Error> {
//! let client = nbd_tokio::Client::connect("nbd://localhost/disk").await?;
//! client.write_all_at(b"hello", 4096).await?;
//! client.disconnect().await;
//! # Ok(())
//! # }
//! ```
//!
//! Each connection is a task. Exports that never block are called on it; those that may block, on worker threads of the
//! engine, so that no tokio worker is held up. Works on runtimes of either flavour, with time and I/O enabled.
//!
//! [The guide](crate::guide) goes on: exports of your own, limits, errors, reconnecting clients. An event loop of your
//! own needs no runtime: [`proto`] is the protocol as a state machine, whose front page has the loop to write, and
//! [one that does not block](proto#in-an-event-loop).
//!
//! Exports, the configuration and much else come from the engine, under the same names: where an example of theirs says
//! `nbd_engine`, write `nbd_tokio`. What is in `nbd_engine::server` and `nbd_engine::net` is in the root here.
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
mod runtime;
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
pub use nbd_engine::server::{ConnectionError, Listening, Outcome, ServerConfig, Stall};
#[cfg(feature = "tls")]
pub use nbd_engine::tls;
pub use runtime::Tokio;
pub use server::Server;

/// A guide, from the first export to reconnecting clients. It has no items.
pub mod guide {
    #![doc = include_str!("../doc/guide.md")]
}

/// The examples of the READMEs, which `cargo test` compiles, too.
#[cfg(doctest)]
mod readme {
    #[doc = include_str!("../README.md")]
    struct Crate;

    #[doc = include_str!("../../README.md")]
    struct Project;

    #[doc = include_str!("../../docs/library.md")]
    struct Library;

    #[doc = include_str!("../../docs/reconnect.md")]
    struct Reconnect;

    /// Those of `docs/tls.md`, whose other blocks are commands.
    ///
    /// ```no_run
    /// use nbd_tokio::export::{ExportMap, Memory};
    /// use nbd_tokio::tls::{ClientCertificates, ServerTlsMode, TlsServer};
    /// use nbd_tokio::{Server, ServerConfig};
    /// use tokio::signal::unix::{SignalKind, signal};
    ///
    /// #[tokio::main(flavor = "current_thread")]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let exports = ExportMap::new().with("disk", Memory::new(1 << 30)?)?;
    ///     let tls = TlsServer::from_directory("/etc/pki/nbd", ClientCertificates::Required)?;
    ///     let config = ServerConfig::new().with_tls(ServerTlsMode::Required, tls.clone());
    ///     let server = Server::with_config(exports, config);
    ///     let listening = server.listen_tcp("127.0.0.1:10809").await?;
    ///     println!("nbds://{}/disk", listening.local_addr());
    ///     // When the files were replaced, and the process is told so:
    ///     let mut hangups = signal(SignalKind::hangup())?;
    ///     tokio::spawn(async move {
    ///         while hangups.recv().await.is_some() {
    ///             if let Err(error) = tls.reload() {
    ///                 eprintln!("{error}"); // What was read before stays in force.
    ///             }
    ///         }
    ///     });
    ///     server.wait().await; // Until somebody calls server.shut_down().
    ///     Ok(())
    /// }
    /// ```
    ///
    /// ```no_run
    /// use nbd_tokio::Client;
    /// use nbd_tokio::client::ClientConfig;
    /// use nbd_tokio::tls::{ClientTlsMode, TlsClient};
    ///
    /// #[tokio::main(flavor = "current_thread")]
    /// async fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let tls = TlsClient::builder().directory("/home/alice/.pki/nbd").build()?;
    ///     let config = ClientConfig::new().with_tls(ClientTlsMode::Required, tls);
    ///     let client = Client::connect_with(&"nbds://server.example/disk".parse()?, &config).await?;
    ///     println!("{} bytes", client.size());
    ///     client.disconnect().await;
    ///     Ok(())
    /// }
    /// ```
    #[cfg(feature = "tls")]
    struct Tls;
}
