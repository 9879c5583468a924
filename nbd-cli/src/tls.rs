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

    /// File with the pre-shared key of --tls-username, in place of certificates; to make one: nbd psk
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "tls_certificates",
        help_heading = "TLS, for nbds:// URIs"
    )]
    tls_psk: Option<PathBuf>,

    /// User of the pre-shared key, of --tls-psk or of the URI
    #[arg(long, value_name = "USER", help_heading = "TLS, for nbds:// URIs")]
    tls_username: Option<String>,
}

impl TlsArguments {
    fn is_empty(&self) -> bool {
        let Self { tls_certificates, tls_hostname, tls_psk, tls_username } = self;
        [tls_certificates, tls_psk].iter().all(|path| path.is_none())
            && [tls_hostname, tls_username].iter().all(|text| text.is_none())
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
        let by_options = self.tls_certificates.is_some() || self.tls_psk.is_some();
        if by_options && tls.certificates.is_some() && tls.psk_file.is_some() {
            return Err(Failure::usage(
                "a server is trusted by certificates or by a pre-shared key: the options say one of them and the URI \
                 the other; leave one out",
            ));
        }
        let has_key = tls.psk_file.is_some();
        let failed = |error| Failure::usage(format!("an option for TLS can't be used: {error}"));
        let uri = uri.with_tls(tls).map_err(failed)?;
        match &self.tls_username {
            Some(user) if has_key => uri.with_user(user).map_err(failed),
            _ => Ok(uri),
        }
    }

    /// Nobody should believe that these encrypt what travels in the clear, or that a user matters without a key.
    pub(crate) fn check_used(&self, uris: &[&Uri]) -> Result<(), Failure> {
        let has_key = |uri: &&Uri| uri.requires_tls() && uri.tls().psk_file.is_some();
        if self.tls_username.is_some()
            && uris.iter().any(|uri| uri.requires_tls())
            && !uris.iter().any(has_key)
        {
            return Err(Failure::usage(
                "--tls-username needs a pre-shared key: add --tls-psk FILE, or tls-psk-file=FILE to the URI",
            ));
        }
        if self.is_empty() || uris.iter().any(|uri| uri.requires_tls()) {
            return Ok(());
        }
        Err(Failure::usage(
            "options for TLS were given, but no URI asks for it: use nbds:// or nbds+unix://",
        ))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        tls: TlsArguments,
    }

    /// The URI that comes of a URI and options, or what is wrong with them.
    fn applied(uri: &str, options: &[&str]) -> Result<String, String> {
        let command = Command::try_parse_from([&["nbd"], options].concat());
        let tls = command.map_err(|error| error.to_string())?.tls;
        let uri = tls.apply(uri.parse().unwrap()).map_err(|failure| format!("{failure:?}"))?;
        tls.check_used(&[&uri]).map_err(|failure| format!("{failure:?}"))?;
        Ok(uri.to_string())
    }

    #[test]
    fn options_stand_for_parameters_of_the_uri() {
        for (uri, options, expected) in [
            ("nbds://h/", &["--tls-certificates", "d"][..], "tls-certificates=d"),
            ("nbds://h/", &["--tls-hostname", "n"], "tls-hostname=n"),
            ("nbds://h/", &["--tls-psk", "k"], "tls-psk-file=k"),
            ("nbds://a@h/", &["--tls-psk", "k", "--tls-username", "b"], "nbds://b@h"),
            ("nbds://h/?tls-psk-file=k", &["--tls-username", "b"], "nbds://b@h"),
            ("nbds://a@h/?tls-psk-file=k", &["--tls-username", "b"], "nbds://b@h"),
            ("nbds://h/?tls-psk-file=k", &["--tls-psk", "l"], "tls-psk-file=l"),
        ] {
            let uri = applied(uri, options).unwrap();
            assert!(uri.contains(expected), "{uri}");
        }
    }

    #[test]
    fn options_that_contradict_each_other_or_do_nothing_are_refused() {
        for (uri, options, expected) in [
            (
                "nbds://h/",
                &["--tls-certificates", "d", "--tls-psk", "k"][..],
                "cannot be used with",
            ),
            ("nbds://h/?tls-psk-file=k", &["--tls-certificates", "d"], "leave one out"),
            ("nbds://h/?tls-certificates=d", &["--tls-psk", "k"], "leave one out"),
            ("nbds://h/", &["--tls-username", "b"], "--tls-psk FILE"),
            ("nbds://h/?tls-certificates=d", &["--tls-username", "b"], "--tls-psk FILE"),
            ("nbd://h/", &["--tls-username", "b"], "nbds://"),
            ("nbd://h/", &["--tls-psk", "k"], "nbds://"),
        ] {
            let text = applied(uri, options).unwrap_err();
            assert!(text.contains(expected), "{uri} {options:?}: {text}");
        }
    }
}
