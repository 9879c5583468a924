//! TLS for both sides of a connection.
//!
//! [`TlsServer`] and [`TlsClient`] say whom a side trusts and what it shows of itself. Both are made from PEM files, with
//! the names that nbdkit, libnbd and qemu share, or from a configuration of rustls.
//!
//! The upgrade itself is the engine's: a client asks for it by `NBD_OPT_STARTTLS`, and everything that was negotiated
//! before is forgotten on both sides. It is done once per connection, over any transport, and is the same for all
//! adapters.

mod client;
mod directory;
mod error;
mod files;
#[cfg(test)]
mod files_tests;
mod identity;
#[cfg(feature = "tls-psk")]
mod psk;
mod records;
mod rustls_records;
mod server;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub(crate) use stream::TlsStream;

pub use client::{TlsClient, TlsClientBuilder};
pub use directory::{default_client_directory, default_server_directory};
pub use error::TlsError;
pub use nbd_proto::client::TlsMode as ClientTlsMode;
pub use nbd_proto::server::TlsMode as ServerTlsMode;
pub use server::{ClientCertificates, TlsServer};

/// The version of rustls whose types [`TlsServer::from_rustls`] and [`TlsClient::from_rustls`] take.
pub mod rustls_0_23 {
    pub use rustls::*;
}

/// The cryptography: what the program has installed, or else the one that this crate was built with.
fn provider() -> Result<Arc<CryptoProvider>, TlsError> {
    Ok(CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider())))
}
