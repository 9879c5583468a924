//! Certificates for servers that require TLS.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nbd_engine::server::ServerConfig;
use nbd_engine::tls::{ClientCertificates, ServerTlsMode, TlsServer};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// Makes a server require TLS: with a certificate for `localhost` of an authority of its own, all of which are written to
/// a folder under the usual names.
///
/// # Panics
/// When the folder can't be written to.
pub fn require_tls(config: ServerConfig, folder: &Path) -> ServerConfig {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).expect("the folder is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    };
    let mut authority = CertificateParams::new([]).expect("no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("there are random numbers");
    write("ca-cert.pem", &authority.self_signed(&key).expect("sound parameters").pem());
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().expect("there are random numbers");
    let server = CertificateParams::new(["localhost".into()]).expect("a plain name");
    write("server-cert.pem", &server.signed_by(&key, &issuer).expect("sound parameters").pem());
    write("server-key.pem", &key.serialize_pem());
    let tls = TlsServer::from_directory(folder, ClientCertificates::Off).expect("sound files");
    config.with_tls(ServerTlsMode::Required, tls)
}
