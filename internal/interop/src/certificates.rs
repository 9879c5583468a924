//! Certificates and keys, good ones and bad ones.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nbd_testkit::process::run;
use nbd_testkit::server::nbd_binary;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// One of the two that have a certificate of the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server.
    Server,
    /// The client.
    Client,
}

/// A folder with the certificates of an authority, a server that is reached as `localhost` and a client that is called
/// `client`, as `nbd cert` makes them, and keys of the user `alice`, as `nbd psk` makes them.
#[derive(Debug)]
pub struct Certificates(TempDir);

impl Certificates {
    /// A new authority.
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "it runs a program")]
    pub fn new() -> Self {
        let made = Self(TempDir::new().expect("a folder for certificates"));
        run(Command::new(nbd_binary()).arg("cert").arg(made.path()), PATIENCE).success();
        let mut psk = Command::new(nbd_binary());
        run(psk.arg("psk").arg(made.keys()).arg("alice"), PATIENCE).success();
        made
    }

    /// The folder.
    pub fn path(&self) -> &str {
        self.0.path().to_str().expect("temporary folders have plain names")
    }

    /// The file of pre-shared keys, under the name that qemu expects in a folder.
    pub fn keys(&self) -> String {
        format!("{}/keys.psk", self.path())
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Gives a side another certificate of the same authority, which `change` makes special.
    pub fn reissue(&self, side: Side, change: impl FnOnce(&mut CertificateParams)) {
        let text = |name| fs::read_to_string(self.file(name)).expect("it was made");
        let key = KeyPair::from_pem(&text("ca-key.pem")).expect("it was made");
        let issuer = Issuer::from_ca_cert_pem(&text("ca-cert.pem"), key).expect("it was made");
        let (who, names, purpose) = match side {
            Side::Server => {
                ("server", vec!["localhost".to_owned()], ExtendedKeyUsagePurpose::ServerAuth)
            }
            Side::Client => {
                ("client", vec!["client".to_owned()], ExtendedKeyUsagePurpose::ClientAuth)
            }
        };
        let mut params = CertificateParams::new(names).expect("plain names");
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![purpose];
        change(&mut params);
        let key = KeyPair::generate().expect("there are random numbers");
        let certificate = params.signed_by(&key, &issuer).expect("sound parameters");
        self.write(&format!("{who}-cert.pem"), &certificate.pem());
        self.write(&format!("{who}-key.pem"), &key.serialize_pem());
    }

    /// Replaces a file.
    pub fn write(&self, name: &str, text: &str) {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(self.file(name)).expect("the folder is ours");
        file.write_all(text.as_bytes()).expect("the folder is ours");
    }

    /// What the scripted client needs to trust the server, and to show who it is, with one version of TLS.
    pub fn scripted(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(self.file("ca-cert.pem"));
        roots.add(authority.expect("it was made")).expect("it is an authority");
        let chain = CertificateDer::from_pem_file(self.file("client-cert.pem"));
        let key = PrivateKeyDer::from_pem_file(self.file("client-key.pem"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("it is supported")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![chain.expect("it was made")], key.expect("it was made"));
        Arc::new(config.expect("they belong together"))
    }
}
