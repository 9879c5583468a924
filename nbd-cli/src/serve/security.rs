//! What protects the disks on the wire.

use std::net::SocketAddr;

use nbd_engine::server::ServerConfig;
#[cfg(feature = "tls")]
use nbd_engine::tls::{ServerTlsMode, TlsServer};

use super::config::Config;
use crate::exit::Failure;

/// Whether clients encrypt, and by what.
#[derive(Debug, Default)]
pub(super) struct Security {
    #[cfg(feature = "tls")]
    tls: Option<(ServerTlsMode, TlsServer)>,
}

impl Security {
    /// What the configuration asks for, put into the server's.
    #[cfg(feature = "tls")]
    pub(super) fn of(
        config: &Config,
        server: ServerConfig,
    ) -> Result<(ServerConfig, Self), Failure> {
        let tls = super::tls::open(config)?;
        let server = match &tls {
            Some((mode, tls)) => server.with_tls(*mode, tls.clone()),
            None => server,
        };
        Ok((server, Self { tls }))
    }

    /// A file may ask for it nevertheless.
    #[cfg(not(feature = "tls"))]
    pub(super) fn of(
        config: &Config,
        server: ServerConfig,
    ) -> Result<(ServerConfig, Self), Failure> {
        if config.asks_for_tls() {
            return Err(config.source.blame("tls", crate::feature::TLS.failure()));
        }
        Ok((server, Self::default()))
    }

    /// Whether all clients encrypt.
    pub(super) fn is_required(&self) -> bool {
        #[cfg(feature = "tls")]
        let required = matches!(self.tls, Some((ServerTlsMode::Required, _)));
        #[cfg(not(feature = "tls"))]
        let required = false;
        required
    }

    /// What to warn of: an address that others reach, where what travels can be in the clear.
    pub(super) fn exposure(
        &self,
        addresses: impl IntoIterator<Item = SocketAddr>,
        config: &Config,
    ) -> Option<String> {
        if self.is_required() {
            return None;
        }
        let address = addresses.into_iter().find(|address| !address.ip().is_loopback())?;
        let read_only = config.exports.iter().all(|export| export.read_only);
        let can = if read_only { "read" } else { "read and overwrite" };
        let remedy = config.source.word("--tls require", "mode = \"require\" in [tls]");
        Some(format!(
            "whoever reaches {address} can {can} the disks, and all of it travels in the clear; encrypt by {remedy}, or \
             listen on 127.0.0.1"
        ))
    }

    /// Whether there are certificates or keys that can be read again.
    pub(super) const fn has_files(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// Reads certificates and keys again, if there are any.
    ///
    /// # Errors
    /// When they can't be used: those that were read before stay in force.
    pub(super) fn read_again(&self) -> Result<(), Failure> {
        #[cfg(feature = "tls")]
        if let Some((_, server)) = &self.tls {
            server.reload().map_err(|error| Failure::failed(error.to_string()))?;
            tracing::info!("read the files for TLS again");
        }
        Ok(())
    }
}
