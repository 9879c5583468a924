//! TLS for both sides of a connection.
//!
//! [`TlsServer`] and [`TlsClient`] say whom a side trusts and what it shows of itself. Both are made from PEM files, with
//! the names that nbdkit, libnbd and qemu share, or from a configuration of rustls.
//!
//! A server is given its half by [`ServerConfig::with_tls`](crate::server::ServerConfig::with_tls), a client by
//! [`ClientConfig::with_tls`](crate::client::ClientConfig::with_tls) or by a URI such as
//! `nbds://disks.example.org/?tls-certificates=/etc/pki/nbd`.
//!
//! The upgrade itself is the engine's: a client asks for it by `NBD_OPT_STARTTLS`, and everything that was negotiated
//! before is forgotten on both sides. It is done once per connection, over any transport, and is the same for all
//! adapters. Streams that are handed to `serve_stream` or `over` are upgraded in the same way: they are to be plain. Where
//! a stream runs inside of TLS already, say so, by [`Peer::with_tls`](crate::export::Peer::with_tls) on a server and by
//! [`with_stream_in_tls`](crate::client::ClientConfig::with_stream_in_tls) on a client.
//!
//! # Cryptography
//!
//! Versions 1.2 and 1.3, by rustls. What the program has installed by `CryptoProvider::install_default` is used; without
//! that it is `ring`, or `aws-lc-rs` with the feature `tls-aws-lc-rs`. A configuration of rustls brings its own. Pre-shared
//! keys, with the feature `tls-psk`, are by OpenSSL.
//!
//! # What is guaranteed
//!
//! A client with [`ClientTlsMode::Required`], and any client of an `nbds://` URI, sends nothing but `NBD_OPT_STARTTLS`
//! before TLS, and has no session without it. With [`ClientTlsMode::Preferred`] whoever is between the two can take TLS
//! away. Plain text behind `NBD_OPT_STARTTLS` or its acknowledgement ends the connection on either side. Both sides end TLS
//! by `close_notify`; a stream that ends without one is an error.

mod allow_list;
mod client;
mod directory;
mod error;
mod failure;
mod files;
#[cfg(test)]
mod files_tests;
mod framing;
#[cfg(test)]
mod hang_up_tests;
mod identity;
mod incoming;
#[cfg(test)]
mod long_tests;
#[cfg(feature = "tls-psk")]
mod psk;
#[cfg(feature = "tls-psk")]
mod psk_file;
mod records;
mod rustls_records;
mod scatter;
mod server;
mod stream;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub(crate) use stream::TlsStream;

pub use client::{TlsClient, TlsClientBuilder};
pub use directory::{default_client_directory, default_server_directory};
pub use error::TlsError;
pub use files::CertificateInfo;
pub use nbd_proto::client::TlsMode as ClientTlsMode;
pub use nbd_proto::server::TlsMode as ServerTlsMode;
pub use server::{ClientCertificates, TlsServer};

/// The version of rustls whose types [`TlsServer::from_rustls`] and [`TlsClient::from_rustls`] take.
pub mod rustls_0_23 {
    pub use rustls::*;
}

/// The cryptography: what the program has installed, or else what this crate was built with.
fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| {
        #[cfg(feature = "tls-aws-lc-rs")]
        let built_in = rustls::crypto::aws_lc_rs::default_provider();
        #[cfg(not(feature = "tls-aws-lc-rs"))]
        let built_in = rustls::crypto::ring::default_provider();
        Arc::new(built_in)
    })
}
