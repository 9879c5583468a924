//! TLS as a client does it.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use super::directory::{CA_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY};
use super::files::{authorities, exists, identity, system_authorities};
#[cfg(feature = "tls-psk")]
use super::psk::{PskContext, Side};
use super::rustls_records::RustlsRecords;
use super::stream::TlsStream;
use super::{TlsError, provider};
use crate::transport::Transport;

/// Whom a client trusts, and what it shows of itself. Cheap to clone.
///
/// ```no_run
/// use nbd_engine::tls::TlsClient;
///
/// # fn main() -> Result<(), nbd_engine::tls::TlsError> {
/// // Servers with a certificate that this system trusts.
/// let public = TlsClient::builder().build()?;
/// // Servers of one's own authority; shows the certificate of the folder, if there is one.
/// let own = TlsClient::builder().directory("/etc/pki/nbd").build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TlsClient {
    trust: Trust,
    host_name: Option<ServerName<'static>>,
}

#[derive(Clone, Debug)]
enum Trust {
    Certificates(Arc<ClientConfig>),
    #[cfg(feature = "tls-psk")]
    Key(PskContext),
}

/// Makes a [`TlsClient`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct TlsClientBuilder {
    authority: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    directory: Option<PathBuf>,
    host_name: Option<String>,
    without_verification: bool,
    #[cfg(feature = "tls-psk")]
    key: Option<(String, PathBuf)>,
}

impl TlsClientBuilder {
    /// A file with the certificates of authorities to trust, instead of those that this system trusts.
    pub fn authority(mut self, path: impl Into<PathBuf>) -> Self {
        self.authority = Some(path.into());
        self
    }

    /// Files with a certificate to show to servers that ask for one, and its key.
    pub fn identity(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// A folder with the names that libnbd and qemu use: `ca-cert.pem`, and, for servers that ask for a certificate,
    /// `client-cert.pem` and `client-key.pem`.
    pub fn directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.directory = Some(path.into());
        self
    }

    /// The name that the server's certificate must have, instead of the one by which the server was reached: a host name
    /// or an address.
    pub fn host_name(mut self, name: impl Into<String>) -> Self {
        self.host_name = Some(name.into());
        self
    }

    /// Accepts any certificate. Then anybody between this client and the server can read and change everything: for
    /// tests.
    pub fn without_verification(mut self) -> Self {
        self.without_verification = true;
        self
    }

    /// A key that this client shares with the server, instead of certificates: `user`'s in a file with lines of the
    /// form `user:hexkey`, as psktool of GnuTLS writes it. A key has at most 512 bytes, and a user 256.
    /// [`build`](Self::build) refuses it together with certificates.
    #[cfg(feature = "tls-psk")]
    pub fn pre_shared_key(mut self, user: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.key = Some((user.into(), file.into()));
        self
    }

    /// Reads the files, and blocks meanwhile.
    ///
    /// # Errors
    /// When a file is missing, can't be read or parsed, is not valid now or does not fit; the text names the file and
    /// the remedy.
    pub fn build(self) -> Result<TlsClient, TlsError> {
        let host_name = self.host_name.as_deref().map(server_name).transpose()?;
        #[cfg(feature = "tls-psk")]
        if let Some((user, file)) = &self.key {
            let of_certificates = [&self.authority, &self.directory].iter().any(|it| it.is_some());
            if of_certificates || self.identity.is_some() {
                let text = "a server is trusted by certificates or by a pre-shared key, and both are given";
                return Err(TlsError::Setup(text.into()));
            }
            let trust = Trust::Key(PskContext::of_user(user, file)?);
            return Ok(TlsClient { trust, host_name });
        }
        let trust = Trust::Certificates(Arc::new(self.config()?));
        Ok(TlsClient { trust, host_name })
    }

    fn config(self) -> Result<ClientConfig, TlsError> {
        let Self { mut authority, mut identity, directory, without_verification, .. } = self;
        if let Some(folder) = directory {
            authority.get_or_insert_with(|| folder.join(CA_CERTIFICATE));
            let (certificate, key) = (folder.join(CLIENT_CERTIFICATE), folder.join(CLIENT_KEY));
            if identity.is_none() && (exists(&certificate) || exists(&key)) {
                identity = Some((certificate, key));
            }
        }
        let provider = provider();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        let builder = if without_verification {
            let verifier = AcceptAny(Arc::clone(&provider));
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        } else {
            let roots = authority.as_deref().map_or_else(system_authorities, authorities)?;
            builder.with_root_certificates(roots)
        };
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let certified = self::identity(&provider, &certificate, &key)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
            }
        };
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// A host name or an address, as a certificate can have it.
fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    let name = name.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::BadHostName(name.into()))
}

/// The name of servers that were reached without one: over a Unix socket, or a stream of the caller's.
const LOCAL: &str = "localhost";

impl TlsClient {
    /// Trusts what this system trusts, and shows no certificate, unless told otherwise.
    pub fn builder() -> TlsClientBuilder {
        TlsClientBuilder::default()
    }

    /// A configuration of rustls as it is. The server's certificate must have `host_name`, or the name by which the
    /// server is reached.
    ///
    /// # Errors
    /// [`TlsError::BadHostName`].
    pub fn from_rustls(
        config: Arc<ClientConfig>,
        host_name: Option<&str>,
    ) -> Result<Self, TlsError> {
        let host_name = host_name.map(server_name).transpose()?;
        Ok(Self { trust: Trust::Certificates(config), host_name })
    }

    /// A stream on which this side is the client. `host` is the name or the address by which the server was reached;
    /// without one, as over Unix sockets, it is `localhost`.
    pub(crate) fn connect<T: Transport>(
        &self,
        transport: T,
        host: Option<&str>,
    ) -> Result<TlsStream<T>, TlsError> {
        let config = match &self.trust {
            Trust::Certificates(config) => Arc::clone(config),
            #[cfg(feature = "tls-psk")]
            Trust::Key(context) => {
                return Ok(TlsStream::new(transport, context.records(Side::Client)?));
            }
        };
        let name = match &self.host_name {
            Some(name) => name.clone(),
            None => server_name(host.unwrap_or(LOCAL))?,
        };
        let connection = UnbufferedClientConnection::new(config, name)
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        Ok(TlsStream::new(transport, Box::new(RustlsRecords::new(connection))))
    }
}

/// Believes any server that has the key to the certificate that it shows.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
