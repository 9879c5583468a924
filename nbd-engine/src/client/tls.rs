//! TLS as a URI and a configuration ask for it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use nbd_proto::{Address, TlsParameters, TlsType, Uri};

use super::{ClientConfig, Error};
use crate::tls::{ClientTlsMode, TlsClient, TlsError, default_client_directory};

/// What a client of this URI does about TLS: `nbds://` insists on it, whatever the configuration and the server say.
///
/// # Errors
/// When files that the URI names, or those in the usual places, are of no use.
pub(super) fn configure(uri: &Uri, config: &ClientConfig) -> Result<ClientConfig, Error> {
    if !uri.requires_tls() {
        return Ok(config.clone());
    }
    let tls = match config.tls() {
        Some((_, tls)) => tls.clone(),
        None => of_uri(uri).map_err(|error| Error::TlsSetup(Arc::new(error)))?,
    };
    Ok(config.clone().with_tls(ClientTlsMode::Required, tls))
}

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// The parameters of a URI, for those that they leave open the usual folder, and then the system's authorities.
fn of_uri(uri: &Uri) -> Result<TlsClient, TlsError> {
    let parameters = uri.tls();
    let mut builder = TlsClient::builder();
    if let Some(name) = &parameters.hostname {
        builder = builder.host_name(name);
    }
    if parameters.verify_peer == Some(false) {
        builder = builder.without_verification();
    }
    match parameters.kind {
        Some(TlsType::Anonymous) => {
            let text = "anonymous TLS protects from nobody: use tls-type=x509 or tls-type=psk";
            return Err(TlsError::Setup(text.into()));
        }
        Some(TlsType::Psk) => return by_key(uri, parameters),
        None if parameters.psk_file.is_some() && parameters.certificates.is_some() => {
            let text = "the URI has tls-certificates and tls-psk-file: leave one out, or choose by tls-type=x509 or \
                        tls-type=psk";
            return Err(TlsError::Setup(text.into()));
        }
        None if parameters.psk_file.is_some() => return by_key(uri, parameters),
        _ => {}
    }
    let named = parameters.certificates.as_deref().map(path);
    if let Some(directory) = named.or_else(default_client_directory) {
        builder = builder.directory(directory);
    }
    builder.build()
}

#[cfg(feature = "tls-psk")]
fn by_key(uri: &Uri, parameters: &TlsParameters) -> Result<TlsClient, TlsError> {
    let Some(file) = &parameters.psk_file else {
        return Err(TlsError::Setup("tls-type=psk needs tls-psk-file=FILE".into()));
    };
    let user = match uri.user() {
        Some(user) => user.to_owned(),
        None => std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).map_err(|_| {
            TlsError::Setup(
                "a pre-shared key needs a user: give --tls-username USER, or nbds://USER@HOST/"
                    .into(),
            )
        })?,
    };
    TlsClient::builder().pre_shared_key(user, path(file)).build()
}

#[cfg(not(feature = "tls-psk"))]
fn by_key(_: &Uri, _: &TlsParameters) -> Result<TlsClient, TlsError> {
    Err(TlsError::Setup(
        "this build has no pre-shared keys: build it with the feature tls-psk".into(),
    ))
}

/// The name by which a server is reached, which its certificate must have.
pub(super) fn host(uri: &Uri) -> Option<String> {
    match uri.address() {
        Address::Tcp { host, .. } => Some(host.clone()),
        _ => None,
    }
}
