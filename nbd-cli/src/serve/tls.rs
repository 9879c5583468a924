//! What `nbd serve` says about TLS.

use std::path::{Path, PathBuf};

use clap::Args;
use nbd_engine::tls::{ClientCertificates, ServerTlsMode, TlsServer, default_server_directory};

use super::config::{Config, Tls, TlsMode};
use super::denied;
use crate::exit::Failure;

/// Options of `nbd serve`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct TlsArguments {
    /// Whether clients can, or must, encrypt [default: require if a certificate or keys are given, else off]
    #[arg(long, value_enum, value_name = "MODE", help_heading = "TLS")]
    tls: Option<TlsMode>,

    /// Folder with server-cert.pem and server-key.pem, and with ca-cert.pem to verify clients [default: the first of
    /// ~/.pki/nbd, ~/.pki/nbdkit, /etc/pki/nbd and others that has them]
    #[arg(long, value_name = "DIR", conflicts_with = "tls_psk", help_heading = "TLS")]
    tls_certificates: Option<PathBuf>,

    /// File with pre-shared keys, in place of certificates
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    tls_psk: Option<PathBuf>,

    /// Refuse clients that do not show a certificate of the authority in ca-cert.pem; with --tls on all who encrypt,
    /// whichever export they want, which takes exports of --tls-only
    #[arg(long, conflicts_with = "tls_psk", help_heading = "TLS")]
    tls_verify_peer: bool,

    /// Refuse clients whose certificate, or user, has no name that matches, such as *.example.org; can be given several
    /// times
    #[arg(long, value_name = "PATTERN", help_heading = "TLS")]
    tls_allow: Vec<String>,

    /// Name of an export that only clients that encrypt see and use; can be given several times
    #[arg(long, value_name = "NAME", help_heading = "TLS")]
    tls_only: Vec<String>,
}

impl TlsArguments {
    /// What the command line says of TLS, put into the configuration.
    pub(super) fn add_to(&self, mut config: Config) -> Result<Config, Failure> {
        config.tls = Tls {
            mode: self.tls,
            certificates: self.tls_certificates.clone(),
            psk: self.tls_psk.clone(),
            verify_peer: self.tls_verify_peer,
            allow: self.tls_allow.clone(),
        };
        for name in &self.tls_only {
            let export = config.exports.iter_mut().find(|export| export.name == *name);
            let export = export.ok_or_else(|| {
                Failure::usage(format!("--tls-only {name} names no export that is served"))
            })?;
            export.tls_only = true;
        }
        Ok(config)
    }
}

/// Reads the certificate or the keys, so that what is wrong with them is known before the first client comes.
pub(super) fn open(config: &Config) -> Result<Option<(ServerTlsMode, TlsServer)>, Failure> {
    open_unblamed(config).map_err(|failure| config.source.blame("tls", failure))
}

fn open_unblamed(config: &Config) -> Result<Option<(ServerTlsMode, TlsServer)>, Failure> {
    let tls = &config.tls;
    let word = |option, key| config.source.word(option, key);
    let only = config.exports.iter().any(|export| export.tls_only);
    let given = tls.certificates.is_some() || tls.psk.is_some();
    let mode = match tls.mode {
        Some(TlsMode::Off) => None,
        None if !given => None,
        Some(TlsMode::On) => Some(ServerTlsMode::Available),
        Some(TlsMode::Require) | None => Some(ServerTlsMode::Required),
    };
    let Some(mode) = mode else {
        let depends = tls.verify_peer || !tls.allow.is_empty() || only;
        return match depends || given {
            true => Err(Failure::usage(word(
                "--tls-certificates, --tls-psk, --tls-verify-peer, --tls-allow and --tls-only need TLS, which is off: \
                 add --tls require --tls-certificates DIR",
                "certificates, psk, verify-peer, allow and tls-only need TLS, which is off: add mode = \"require\" and \
                 certificates = \"DIR\" to [tls]",
            ))),
            false => Ok(None),
        };
    };
    if config.server.oldstyle {
        return Err(Failure::usage(word(
            "oldstyle clients have no TLS: leave out --oldstyle",
            "oldstyle clients have no TLS: leave out oldstyle",
        )));
    }
    let restricts = tls.verify_peer || !tls.allow.is_empty();
    if mode == ServerTlsMode::Available && restricts && !only {
        return Err(Failure::usage(word(
            "--tls-verify-peer and --tls-allow keep nobody out while clients need not encrypt: use --tls require, or \
             name the exports that are for clients with TLS by --tls-only NAME",
            "verify-peer and allow keep nobody out while clients need not encrypt: use mode = \"require\", or give the \
             exports that are for clients with TLS tls-only = true",
        )));
    }
    if tls.psk.is_some() && (tls.verify_peer || tls.certificates.is_some()) {
        return Err(Failure::usage(word(
            "--tls-psk takes the place of certificates: leave out --tls-certificates and --tls-verify-peer",
            "psk takes the place of certificates: leave out certificates and verify-peer",
        )));
    }
    let clients = match (tls.verify_peer, tls.allow.is_empty()) {
        (false, true) => ClientCertificates::Off,
        _ => ClientCertificates::Required,
    };
    let server = match &tls.psk {
        Some(file) => by_keys(config, file)?,
        None => {
            let directory = tls.certificates.clone().or_else(default_server_directory);
            let directory = directory.ok_or_else(|| {
                let remedy = word("--tls-certificates DIR", "certificates = \"DIR\"");
                Failure::failed(format!(
                    "no certificate for TLS: name a folder by {remedy}; to make one: nbd cert DIR"
                ))
            })?;
            TlsServer::from_directory(directory, clients).map_err(unusable)?
        }
    };
    let server = if tls.allow.is_empty() { server } else { server.allow(&tls.allow) };
    Ok(Some((mode, server)))
}

fn unusable(error: nbd_engine::tls::TlsError) -> Failure {
    let why = match &error {
        nbd_engine::tls::TlsError::Unreadable { source, .. } => denied::why(source.kind()),
        _ => String::new(),
    };
    Failure::failed(format!("{error}{why}"))
}

#[cfg(feature = "tls-psk")]
fn by_keys(_: &Config, file: &Path) -> Result<TlsServer, Failure> {
    TlsServer::from_psk_file(file).map_err(unusable)
}

#[cfg(not(feature = "tls-psk"))]
fn by_keys(config: &Config, _: &Path) -> Result<TlsServer, Failure> {
    let instead = config.source.word("--tls-certificates", "certificates");
    Err(Failure::usage(format!("{}, or use {instead}", crate::feature::PSK.text())))
}
