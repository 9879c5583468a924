//! What protects the disks on the wire.

use std::net::SocketAddr;

use nbd_engine::server::ServerConfig;
#[cfg(feature = "tls")]
use nbd_engine::tls::{ServerTlsMode, TlsServer};

use super::Arguments;
use super::places::Places;
use crate::exit::Failure;
use crate::stderr;

/// Whether clients encrypt, and by what.
#[derive(Debug, Default)]
pub(super) struct Security {
    #[cfg(feature = "tls")]
    tls: Option<(ServerTlsMode, TlsServer)>,
}

impl Security {
    /// What the command line asks for, put into the server's configuration.
    #[cfg(feature = "tls")]
    pub(super) fn of(
        arguments: &Arguments,
        config: ServerConfig,
    ) -> Result<(ServerConfig, Self), Failure> {
        let tls = arguments.tls.open()?;
        if tls.is_some() && arguments.oldstyle {
            return Err(Failure::usage("oldstyle clients have no TLS: leave out --oldstyle"));
        }
        let config = match &tls {
            Some((mode, server)) => config.with_tls(*mode, server.clone()),
            None => config,
        };
        Ok((config, Self { tls }))
    }

    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unnecessary_wraps, reason = "the same as with TLS")]
    pub(super) fn of(_: &Arguments, config: ServerConfig) -> Result<(ServerConfig, Self), Failure> {
        Ok((config, Self::default()))
    }

    /// Whether all clients encrypt.
    pub(super) fn is_required(&self) -> bool {
        #[cfg(feature = "tls")]
        let required = matches!(self.tls, Some((ServerTlsMode::Required, _)));
        #[cfg(not(feature = "tls"))]
        let required = false;
        required
    }

    /// Warns of addresses that others reach where what travels can be in the clear.
    pub(super) fn warn(&self, places: &Places<'_>, read_only: bool) {
        if self.is_required() {
            return;
        }
        let addresses = places.tcp.iter().flatten();
        let mut open = addresses.filter(|address: &&SocketAddr| !address.ip().is_loopback());
        if let Some(address) = open.next() {
            let can = if read_only { "read" } else { "read and overwrite" };
            stderr::say(&format!(
                "warning: whoever reaches {address} can {can} the disks, and all of it travels in the clear; \
                 encrypt by --tls require, or listen on 127.0.0.1"
            ));
        }
    }

    /// Reads certificates and keys again. Gives whether there are any.
    pub(super) fn reload(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Some((_, server)) = &self.tls {
            match server.reload() {
                Ok(()) => tracing::info!("read the files for TLS again"),
                Err(error) => {
                    stderr::say(&format!("{error}; the files that were read before stay in force"));
                }
            }
            return true;
        }
        false
    }
}
