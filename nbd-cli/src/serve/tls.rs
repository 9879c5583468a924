//! What `nbd serve` says about TLS.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use nbd_engine::tls::{ClientCertificates, ServerTlsMode, TlsServer, default_server_directory};

use crate::exit::Failure;

/// Options of `nbd serve`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct TlsArguments {
    /// Whether clients can, or must, encrypt [default: require if a certificate or keys are given, else off]
    #[arg(long, value_enum, value_name = "MODE", help_heading = "TLS")]
    tls: Option<Mode>,

    /// Folder with server-cert.pem and server-key.pem, and with ca-cert.pem to verify clients [default: the first of
    /// ~/.pki/nbd, ~/.pki/nbdkit, /etc/pki/nbd and others that has them]
    #[arg(long, value_name = "DIR", conflicts_with = "tls_psk", help_heading = "TLS")]
    tls_certificates: Option<PathBuf>,

    /// File with pre-shared keys, in place of certificates
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_psk: Option<PathBuf>,

    /// Refuse clients that do not show a certificate of the authority in ca-cert.pem; with --tls on that is for exports
    /// of --tls-only
    #[arg(long, conflicts_with = "tls_psk", help_heading = "TLS")]
    tls_verify_peer: bool,

    /// Refuse clients whose certificate, or user, has no name that matches, such as *.example.org; can be given several
    /// times
    #[arg(long, value_name = "PATTERN", help_heading = "TLS")]
    tls_allow: Vec<String>,

    /// Name of an export that only clients that encrypt see and use; can be given several times
    #[arg(long, value_name = "NAME", help_heading = "TLS")]
    pub(super) tls_only: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// No client can
    Off,
    /// Clients can
    On,
    /// All clients must
    Require,
}

impl TlsArguments {
    /// Reads the certificate or the keys, so that what is wrong with them is known before the first client comes.
    pub(super) fn open(&self) -> Result<Option<(ServerTlsMode, TlsServer)>, Failure> {
        let given = self.tls_certificates.is_some() || self.tls_psk.is_some();
        let mode = match self.tls {
            Some(Mode::Off) => None,
            None if !given => None,
            Some(Mode::On) => Some(ServerTlsMode::Available),
            Some(Mode::Require) | None => Some(ServerTlsMode::Required),
        };
        let Some(mode) = mode else {
            let depends =
                self.tls_verify_peer || !self.tls_allow.is_empty() || !self.tls_only.is_empty();
            return match depends || given {
                true => Err(Failure::usage(
                    "--tls-certificates, --tls-psk, --tls-verify-peer, --tls-allow and --tls-only need TLS, which is \
                     off: add --tls require --tls-certificates DIR",
                )),
                false => Ok(None),
            };
        };
        let restricts = self.tls_verify_peer || !self.tls_allow.is_empty();
        if mode == ServerTlsMode::Available && restricts && self.tls_only.is_empty() {
            return Err(Failure::usage(
                "--tls-verify-peer and --tls-allow keep nobody out while clients need not encrypt: use --tls require, \
                 or name the exports that are for clients with TLS by --tls-only NAME",
            ));
        }
        let clients = match (self.tls_verify_peer, self.tls_allow.is_empty()) {
            (false, true) => ClientCertificates::Off,
            _ => ClientCertificates::Required,
        };
        let server = match &self.tls_psk {
            Some(file) => by_keys(file)?,
            None => {
                let directory = self.tls_certificates.clone().or_else(default_server_directory);
                let directory = directory.ok_or_else(|| {
                    Failure::failed(
                        "no certificate for TLS: name a folder by --tls-certificates DIR; to make one: nbd cert DIR",
                    )
                })?;
                TlsServer::from_directory(directory, clients).map_err(unusable)?
            }
        };
        let server = if self.tls_allow.is_empty() { server } else { server.allow(&self.tls_allow) };
        Ok(Some((mode, server)))
    }
}

fn unusable(error: nbd_engine::tls::TlsError) -> Failure {
    Failure::failed(error.to_string())
}

#[cfg(feature = "tls-psk")]
fn by_keys(file: &PathBuf) -> Result<TlsServer, Failure> {
    TlsServer::from_psk_file(file).map_err(unusable)
}

#[cfg(not(feature = "tls-psk"))]
fn by_keys(_: &PathBuf) -> Result<TlsServer, Failure> {
    Err(Failure::usage(
        "this nbd has no pre-shared keys: build it with --features tls-psk, or use --tls-certificates",
    ))
}
