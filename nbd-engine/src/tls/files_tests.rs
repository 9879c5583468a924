//! What is wrong with files is found before any client comes, and said with the file's name and the remedy.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};

use super::{ClientCertificates, TlsClient, TlsError, TlsServer};

/// A folder with an authority, a server and a client, as `certtool` or `nbd cert` make it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self::with_server(|_| {})
    }

    /// With a server's certificate that `change` makes special.
    fn with_server(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        folder.write("ca-cert.pem", &ca.self_signed(&ca_key).unwrap().pem());
        let issuer = Issuer::new(ca, ca_key);
        let mut server = CertificateParams::new(["disk.example".to_owned()]).unwrap();
        change(&mut server);
        for (name, params) in [
            ("server", server),
            ("client", CertificateParams::new(["tenant.example".to_owned()]).unwrap()),
        ] {
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            folder.write(&format!("{name}-cert.pem"), &certificate.pem());
            folder.write(&format!("{name}-key.pem"), &key.serialize_pem());
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn server(&self) -> Result<TlsServer, TlsError> {
        TlsServer::from_directory(self.0.path(), ClientCertificates::Required)
    }

    fn client(&self) -> Result<TlsClient, TlsError> {
        TlsClient::builder().directory(self.0.path()).build()
    }
}

/// The text of what is wrong, which names `file`.
fn complaint<T>(result: Result<T, TlsError>, file: &Path) -> String {
    let text = result.err().expect("nothing was noticed").to_string();
    assert!(text.contains(file.to_str().unwrap()), "{text}");
    text
}

#[test]
fn a_complete_folder_is_accepted_by_both_sides() {
    let folder = Folder::new();
    folder.server().unwrap();
    folder.client().unwrap();
    // A client need not have a certificate of its own.
    fs::remove_file(folder.path("client-cert.pem")).unwrap();
    fs::remove_file(folder.path("client-key.pem")).unwrap();
    folder.client().unwrap();
    // A server that verifies nobody needs no authority.
    fs::remove_file(folder.path("ca-cert.pem")).unwrap();
    TlsServer::from_directory(folder.0.path(), ClientCertificates::Off).unwrap();
}

#[test]
fn a_file_that_is_missing_is_named_with_the_way_to_make_one() {
    for name in ["server-cert.pem", "server-key.pem", "ca-cert.pem"] {
        let folder = Folder::new();
        fs::remove_file(folder.path(name)).unwrap();
        let text = complaint(folder.server(), &folder.path(name));
        assert!(text.contains("nbd cert"), "{text}");
    }
    for name in ["client-cert.pem", "client-key.pem", "ca-cert.pem"] {
        let folder = Folder::new();
        fs::remove_file(folder.path(name)).unwrap();
        complaint(folder.client(), &folder.path(name));
    }
}

#[test]
fn a_file_with_something_else_in_it_is_named() {
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for text in ["", "hello\n", nonsense, "-----BEGIN CERTIFICATE-----\n!\n"] {
        for name in ["server-cert.pem", "server-key.pem", "ca-cert.pem"] {
            let folder = Folder::new();
            folder.write(name, text);
            complaint(folder.server(), &folder.path(name));
        }
    }
}

#[test]
fn a_file_of_another_kind_is_recognised() {
    let folder = Folder::new();
    let read = |name: &str| fs::read_to_string(folder.path(name)).unwrap();
    let (certificate, key) = (read("server-cert.pem"), read("server-key.pem"));
    let shared = "alice:0011223344556677889900112233445566\nbob:00ff\n".to_owned();
    for (name, content, expected) in [
        ("server-cert.pem", &shared, "--tls-psk"),
        ("server-key.pem", &shared, "--tls-psk"),
        ("ca-cert.pem", &shared, "--tls-psk"),
        ("server-cert.pem", &key, "a key rather than a certificate"),
        ("server-key.pem", &certificate, "a certificate rather than its key"),
    ] {
        let folder = Folder::new();
        folder.write(name, content);
        let text = complaint(folder.server(), &folder.path(name));
        assert!(text.contains(expected), "{text}");
    }
    let file = folder.path("server-cert.pem");
    let text = complaint(TlsServer::from_directory(&file, ClientCertificates::Off), &file);
    assert!(text.contains("a folder"), "{text}");
}

/// PKCS #8 and the format before it.
#[test]
fn an_encrypted_key_is_refused_with_the_way_to_decrypt_it() {
    for key in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHs\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIHs\n\
         -----END EC PRIVATE KEY-----\n",
    ] {
        let folder = Folder::new();
        folder.write("server-key.pem", key);
        folder.write("client-key.pem", key);
        let text = complaint(folder.server(), &folder.path("server-key.pem"));
        assert!(text.contains("openssl pkey -in"), "{text}");
        let text = complaint(folder.client(), &folder.path("client-key.pem"));
        assert!(text.contains("openssl pkey -in"), "{text}");
    }
}

#[test]
fn a_key_that_everybody_can_read_is_refused() {
    for (name, of_server) in [("server-key.pem", true), ("client-key.pem", false)] {
        let folder = Folder::new();
        let key = folder.path(name);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let text = if of_server {
            complaint(folder.server(), &key)
        } else {
            complaint(folder.client(), &key)
        };
        assert!(text.contains("chmod 600"), "{text}");
        // A group of one's own may read it.
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        folder.server().unwrap();
        folder.client().unwrap();
    }
}

#[test]
fn a_key_of_another_certificate_is_noticed() {
    let folder = Folder::new();
    folder.write("server-key.pem", &KeyPair::generate().unwrap().serialize_pem());
    let text = complaint(folder.server(), &folder.path("server-key.pem"));
    assert!(text.contains("does not belong to the certificate"), "{text}");
}

#[test]
fn a_certificate_that_is_not_valid_now_is_refused() {
    let expired = Folder::with_server(|server| server.not_after = date_time_ymd(2020, 1, 1));
    let text = complaint(expired.server(), &expired.path("server-cert.pem"));
    assert!(text.contains("expired") && text.contains("2020"), "{text}");
    let early = Folder::with_server(|server| server.not_before = date_time_ymd(2999, 1, 1));
    let text = complaint(early.server(), &early.path("server-cert.pem"));
    assert!(text.contains("not valid before") && text.contains("2999"), "{text}");
}

#[test]
fn files_that_are_bad_when_they_are_read_again_leave_the_old_ones_in_force() {
    let folder = Folder::new();
    let server = folder.server().unwrap();
    server.reload().unwrap();
    let before = server.certificates().unwrap();
    folder.write("server-cert.pem", "nonsense");
    complaint(server.reload(), &folder.path("server-cert.pem"));
    assert!(Arc::ptr_eq(&before, &server.certificates().unwrap()));
}

#[test]
fn a_name_that_no_certificate_can_have_is_refused_at_once() {
    let folder = Folder::new();
    let builder = TlsClient::builder().directory(folder.0.path()).host_name("not a name");
    assert!(matches!(builder.build(), Err(TlsError::BadHostName(_))));
}
