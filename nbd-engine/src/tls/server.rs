//! TLS as a server does it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{RootCertStore, ServerConfig, server::danger::ClientCertVerifier};

use super::allow_list::{AllowList, Listed};
use super::directory::{CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY};
use super::files::{authorities, exists, identity};
use super::identity::has_alternative_names;
#[cfg(feature = "tls-psk")]
use super::psk::{PskContext, Side};
#[cfg(feature = "tls-psk")]
use super::psk_file::Keys;
use super::records::Records;
use super::rustls_records::RustlsRecords;
use super::stream::TlsStream;
use super::{TlsError, provider};
use crate::export::TlsIdentity;
use crate::transport::Transport;

/// Whether clients have to show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientCertificates {
    /// None is asked for.
    #[default]
    Off,
    /// One is asked for, and has to be valid if there is one.
    Optional,
    /// Clients without a valid one are turned away.
    Required,
}

/// A server's certificate, or the keys that it shares with its clients, and its demands on clients. Clones share what
/// [`reload`](Self::reload) replaces.
///
/// ```no_run
/// use nbd_engine::tls::{ClientCertificates, TlsServer};
///
/// # fn main() -> Result<(), nbd_engine::tls::TlsError> {
/// let tls = TlsServer::from_directory("/etc/pki/nbd", ClientCertificates::Required)?;
/// // Later, when the files were replaced:
/// tls.reload()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TlsServer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    source: Source,
    current: RwLock<Current>,
    allowed: Arc<AllowList>,
}

/// Where the configuration comes from.
#[derive(Debug)]
enum Source {
    Certificates(Files),
    #[cfg(feature = "tls-psk")]
    Keys(PathBuf, Arc<AllowList>),
    Given,
}

/// What handshakes that begin now use.
#[derive(Clone, Debug)]
enum Current {
    Certificates(Arc<ServerConfig>),
    #[cfg(feature = "tls-psk")]
    Keys(PskContext),
}

impl Source {
    fn load(&self) -> Result<Option<Current>, TlsError> {
        match self {
            Self::Certificates(files) => Ok(Some(Current::Certificates(files.load()?))),
            #[cfg(feature = "tls-psk")]
            Self::Keys(path, allowed) => {
                let keys = Arc::new(Keys::load(path)?);
                Ok(Some(Current::Keys(PskContext::server(keys, Arc::clone(allowed))?)))
            }
            Self::Given => Ok(None),
        }
    }
}

#[derive(Clone, Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    authority: Option<PathBuf>,
    clients: ClientCertificates,
    allowed: Arc<AllowList>,
}

impl Files {
    fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = provider();
        let certified = identity(&provider, &self.certificate, &self.key)?;
        if !certified.cert.first().is_some_and(has_alternative_names) {
            tracing::warn!(
                "the certificate {} has no subject alternative name: clients such as nbd refuse it, by whatever name they \
                 reach this server; make one that has its names, as nbd cert does",
                self.certificate.display()
            );
        }
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        let builder = match (self.clients, &self.authority) {
            (ClientCertificates::Off, _) => builder.with_no_client_auth(),
            (_, None) => {
                let text = "clients' certificates are to be verified, but no authority is named";
                return Err(TlsError::Setup(text.into()));
            }
            (clients, Some(authority)) => {
                let roots = authorities(authority)?;
                let verifier = verifier(roots, clients, provider)?;
                let list = Arc::clone(&self.allowed);
                builder.with_client_cert_verifier(Arc::new(Listed { verifier, list }))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        // A client connects once and stays, so that what it would remember serves nobody.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

fn verifier(
    roots: RootCertStore,
    clients: ClientCertificates,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match clients {
        ClientCertificates::Required => builder,
        _ => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| TlsError::Setup(error.to_string()))
}

impl TlsServer {
    fn new(source: Source, current: Current, allowed: Arc<AllowList>) -> Self {
        let shared = Shared { source, current: RwLock::new(current), allowed };
        Self { shared: Arc::new(shared) }
    }

    /// Refuses clients none of whose [names](crate::export::TlsIdentity::names)
    /// [matches](crate::export::TlsIdentity::matches) any of these patterns. That needs clients that show a certificate,
    /// or pre-shared keys. Clones share the patterns.
    ///
    /// A client with another certificate gets the alert `access_denied`; one with the pre-shared key of another user gets
    /// the alert of a wrong key, since it has not proved yet that it has any; with a configuration of rustls as it is, the
    /// connection is closed. Refusals are logged, with the client's names and once a minute at most.
    #[must_use]
    pub fn allow(self, patterns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.shared.allowed.add(patterns.into_iter().map(Into::into));
        self
    }

    /// Whether a client of that identity may go on. If not, that is logged.
    pub(crate) fn admits(&self, identity: &TlsIdentity) -> bool {
        let allowed = &self.shared.allowed;
        let admitted = allowed.allows(identity);
        if !admitted {
            allowed.refused(&identity.names);
        }
        admitted
    }

    /// Logs at the end how many clients were refused without a message each.
    pub(crate) fn report_rest(&self) {
        self.shared.allowed.report_rest();
    }

    /// The certificate and key of these PEM files. `authority` has the certificates that clients' are checked against; it
    /// is needed unless `clients` is [`Off`](ClientCertificates::Off). Blocks while the files are read.
    ///
    /// # Errors
    /// When a file is missing, can't be read or parsed, when the certificate is not valid now or belongs to another key,
    /// when everybody can read the key. The text names the file and the remedy.
    pub fn from_files(
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
        authority: Option<&Path>,
        clients: ClientCertificates,
    ) -> Result<Self, TlsError> {
        let allowed = Arc::<AllowList>::default();
        let files = Files {
            certificate: certificate.as_ref().to_owned(),
            key: key.as_ref().to_owned(),
            authority: authority.map(Path::to_owned),
            clients,
            allowed: Arc::clone(&allowed),
        };
        let current = Current::Certificates(files.load()?);
        Ok(Self::new(Source::Certificates(files), current, allowed))
    }

    /// The certificate and key of a folder with the names that nbdkit and qemu use: `server-cert.pem`, `server-key.pem`
    /// and `ca-cert.pem`, of which the last one is needed only to verify clients.
    ///
    /// # Errors
    /// As for [`from_files`](Self::from_files).
    pub fn from_directory(
        directory: impl AsRef<Path>,
        clients: ClientCertificates,
    ) -> Result<Self, TlsError> {
        let file = |name| directory.as_ref().join(name);
        let authority = file(CA_CERTIFICATE);
        let wanted = clients != ClientCertificates::Off || exists(&authority);
        let authority = wanted.then_some(&*authority);
        Self::from_files(file(SERVER_CERTIFICATE), file(SERVER_KEY), authority, clients)
    }

    /// A configuration of rustls as it is. [`reload`](Self::reload) changes nothing in it.
    #[must_use]
    pub fn from_rustls(config: Arc<ServerConfig>) -> Self {
        Self::new(Source::Given, Current::Certificates(config), Arc::default())
    }

    /// Keys that the server shares with its clients instead of certificates: a file with lines of the form
    /// `user:hexkey`, as psktool of GnuTLS writes it. A key has at most 512 bytes, and a user 256. TLS 1.2 and 1.3,
    /// with forward secrecy where the client can. Blocks while the file is read.
    ///
    /// # Errors
    /// When the file is missing, can't be read or parsed, has no key, or when everybody can read it.
    #[cfg(feature = "tls-psk")]
    pub fn from_psk_file(path: impl AsRef<Path>) -> Result<Self, TlsError> {
        let (path, allowed) = (path.as_ref(), Arc::<AllowList>::default());
        let keys = Arc::new(Keys::load(path)?);
        let current = Current::Keys(PskContext::server(keys, Arc::clone(&allowed))?);
        Ok(Self::new(Source::Keys(path.to_owned(), Arc::clone(&allowed)), current, allowed))
    }

    /// Reads the files again, for handshakes that begin from now on, and blocks meanwhile. Connections that are there
    /// stay.
    ///
    /// # Errors
    /// As for [`from_files`](Self::from_files); what was read before stays in force then.
    pub fn reload(&self) -> Result<(), TlsError> {
        if let Some(fresh) = self.shared.source.load()? {
            *self.shared.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        Ok(())
    }

    fn current(&self) -> Current {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[cfg(test)]
    pub(super) fn certificates(&self) -> Option<Arc<ServerConfig>> {
        match self.current() {
            Current::Certificates(config) => Some(config),
            #[cfg(feature = "tls-psk")]
            Current::Keys(_) => None,
        }
    }

    /// A stream on which this side is the server.
    pub(crate) fn accept<T: Transport>(&self, transport: T) -> Result<TlsStream<T>, TlsError> {
        let records: Box<dyn Records> = match self.current() {
            Current::Certificates(config) => {
                let connection = UnbufferedServerConnection::new(config)
                    .map_err(|error| TlsError::Setup(error.to_string()))?;
                Box::new(RustlsRecords::new(connection))
            }
            #[cfg(feature = "tls-psk")]
            Current::Keys(context) => context.records(Side::Server)?,
        };
        Ok(TlsStream::new(transport, records))
    }
}
