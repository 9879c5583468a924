//! What the commands that connect say about TLS, beside the URI.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use nbd_blocking::client::Uri;
use nbd_engine::proto::TlsType;

use crate::exit::Failure;

/// For `nbds://` and `nbds+unix://` URIs; each stands for a parameter of theirs.
#[derive(Clone, Debug, Default, Args)]
#[group(skip)]
pub(crate) struct TlsArguments {
    /// Folder with ca-cert.pem and, for servers that verify their clients, client-cert.pem and client-key.pem
    #[arg(long, value_name = "DIR", help_heading = "TLS, for nbds:// URIs")]
    tls_certificates: Option<PathBuf>,

    /// The name that the server's certificate has, if it is not the one in the URI
    #[arg(long, value_name = "NAME", help_heading = "TLS, for nbds:// URIs")]
    tls_hostname: Option<String>,

    /// File with the pre-shared key of --tls-username, in place of certificates
    #[arg(long, value_name = "FILE", help_heading = "TLS, for nbds:// URIs")]
    tls_psk: Option<PathBuf>,

    /// User of the pre-shared key
    #[arg(long, value_name = "USER", requires = "tls_psk", help_heading = "TLS, for nbds:// URIs")]
    tls_username: Option<String>,
}

impl TlsArguments {
    fn is_empty(&self) -> bool {
        self.tls_certificates.is_none() && self.tls_hostname.is_none() && self.tls_psk.is_none()
    }

    /// The URI with what these say, if it is one that means TLS.
    pub(crate) fn apply(&self, uri: Uri) -> Result<Uri, Failure> {
        if self.is_empty() || !uri.requires_tls() {
            return Ok(uri);
        }
        let mut tls = uri.tls().clone();
        let bytes = |path: &PathBuf| OsString::from(path).as_bytes().to_vec();
        if let Some(directory) = &self.tls_certificates {
            tls.certificates = Some(bytes(directory));
        }
        if let Some(name) = &self.tls_hostname {
            tls.hostname = Some(name.clone());
        }
        if let Some(file) = &self.tls_psk {
            tls.psk_file = Some(bytes(file));
            tls.kind = Some(TlsType::Psk);
        }
        let failed = |error| Failure::usage(format!("an option for TLS can't be used: {error}"));
        let uri = uri.with_tls(tls).map_err(failed)?;
        match &self.tls_username {
            Some(user) => uri.with_user(user).map_err(failed),
            None => Ok(uri),
        }
    }

    /// Nobody should believe that these encrypt what travels in the clear.
    pub(crate) fn check_used(&self, uris: &[&Uri]) -> Result<(), Failure> {
        if self.is_empty() || uris.iter().any(|uri| uri.requires_tls()) {
            return Ok(());
        }
        Err(Failure::usage(
            "options for TLS were given, but no URI asks for it: use nbds:// or nbds+unix://",
        ))
    }
}
