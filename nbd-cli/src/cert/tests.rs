use core::sync::atomic::{AtomicBool, Ordering};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use clap::Parser;
use nbd_engine::tls::{CertificateInfo, ClientCertificates, TlsClient, TlsServer};
use nbd_testkit::cases;
use rcgen::KeyPair;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

fn cert(words: &[&str]) -> Result<(), String> {
    let command = Command::try_parse_from([&["cert"], words].concat());
    let arguments = command.map_err(|error| error.to_string())?.arguments;
    run(&arguments).map_err(|failure| format!("{failure:?}"))
}

#[test]
fn renewed_certificates_have_the_names_and_the_permissions_of_the_old_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let shown = path.to_str().unwrap();
    let names = ["--name", "disks.example.org", "--name", "192.0.2.7", "--client", "backup"];
    cert(&[&[shown], &names[..]].concat()).unwrap();
    let key = path.join("server-key.pem");
    let before = fs::read(&key).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    // A link stays one, and leads to the new key.
    let elsewhere = folder.path().join("keys");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(&key, elsewhere.join("server")).unwrap();
    std::os::unix::fs::symlink("../keys/server", &key).unwrap();
    cert(&[shown, "--renew"]).unwrap();
    assert!(fs::symlink_metadata(&key).unwrap().is_symlink());
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1);
    let of = |file: &str| CertificateInfo::from_file(&path.join(file)).unwrap().names;
    assert_eq!(of("server-cert.pem"), ["disks.example.org", "192.0.2.7"]);
    assert_eq!(of("client-cert.pem"), ["backup"]);
    assert_ne!(fs::read(&key).unwrap(), before);
    assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o640);
    cert(&[shown, "--renew", "--name", "other.example.org"]).unwrap();
    assert_eq!(of("server-cert.pem"), ["other.example.org"]);
    assert_eq!(of("client-cert.pem"), ["backup"]);
    assert!(fs::read_dir(&path).unwrap().count() == FILES.len(), "nothing else is left behind");

    // Names of one that is missing are given.
    for (file, flag) in [("server", "--name"), ("client", "--client")] {
        let file = path.join(format!("{file}-cert.pem"));
        fs::remove_file(&file).unwrap();
        let error = cert(&[shown, "--renew"]).unwrap_err();
        let remedy = format!("nbd cert {shown} --renew {flag} NAME");
        assert!(error.contains(&remedy), "{error}");
        cert(&[shown, "--renew", flag, "n.example.org"]).unwrap();
        assert_eq!(CertificateInfo::from_file(&file).unwrap().names, ["n.example.org"]);
    }

    fs::remove_file(path.join("ca-key.pem")).unwrap();
    let error = cert(&[shown, "--renew"]).unwrap_err();
    assert!(error.contains("where the authority's certificate and key are"), "{error}");
}

/// Each of the two files of an authority, or both: what is missing is named, and nothing is made.
#[test]
fn an_authority_that_is_not_whole_is_named_with_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().join("pki").to_str().unwrap().to_owned();
    cert(&[&shown]).unwrap();
    for (removed, says) in [
        (&["ca-key.pem"][..], "pki has no ca-key.pem, the key by which"),
        (&["ca-cert.pem"], "pki has no ca-cert.pem, the authority's certificate"),
        (&["ca-cert.pem", "ca-key.pem"], "there is no authority in "),
    ] {
        let file = |name: &&str| Path::new(&shown).join(name);
        let kept: Vec<_> = removed.iter().map(|name| fs::read(file(name)).unwrap()).collect();
        removed.iter().for_each(|name| fs::remove_file(file(name)).unwrap());
        for words in [&["--add-client", "bob"][..], &["--renew"]] {
            let error = cert(&[&[&*shown], words].concat()).unwrap_err();
            assert!(error.contains(says), "{words:?}: {error}");
            assert!(!Path::new(&shown).join("bob").exists());
        }
        removed.iter().zip(kept).for_each(|(name, bytes)| fs::write(file(name), bytes).unwrap());
    }
    let nowhere = folder.path().join("nowhere");
    let error = cert(&[nowhere.to_str().unwrap(), "--add-client", "bob"]).unwrap_err();
    assert!(error.contains("there is no authority in"), "{error}");
    let error = cert(&[nowhere.to_str().unwrap(), "--renew"]).unwrap_err();
    assert!(error.contains("there is no authority in"), "{error}");
}

/// Names of any characters: what is taken is in a certificate, and what is not is refused in words of ours.
#[test]
fn a_name_fits_into_a_certificate_or_is_refused_in_words() {
    cases(2000, |random| {
        let letters = [
            'a',
            'Z',
            '0',
            '-',
            '.',
            '*',
            ' ',
            '~',
            ':',
            '/',
            '\u{e4}',
            '\u{430}',
            '\u{1f512}',
            '\n',
            '\u{7f}',
            '\u{0}',
            '\u{85}',
            '\u{200b}',
            '_',
        ];
        let name: String = (0..random.below(6)).map(|_| random.of(&letters)).collect();
        for read in [host, client_name, certificate_name] {
            match read(&name) {
                Ok(name) => {
                    drop(params(vec![name], 1, ExtendedKeyUsagePurpose::ClientAuth).unwrap())
                }
                Err(text) => {
                    assert!(!text.contains("IA5") && !text.contains("String"), "{name:?}: {text}")
                }
            }
        }
    });
    assert!(certificate_name("m\u{fc}ller").unwrap_err().contains("'\u{fc}'"));
    assert!(certificate_name("a\tb").unwrap_err().contains("control character, \\t"));
    assert!(host("b\u{fc}ro.example.org").unwrap_err().contains("xn--"));
}

/// Of the authority in a folder.
fn end(folder: &Path, name: &str, purpose: ExtendedKeyUsagePurpose) {
    let folder = Folder { path: folder, replace: true, remedy: Remedy::Authority };
    let mut params = params(vec!["disks.example.org".into()], 1, purpose).unwrap();
    params.not_after = (SystemTime::now() - DAY / 48).into();
    folder.issue(name, &params, &folder.authority().unwrap()).unwrap();
}

#[test]
fn certificates_that_have_expired_are_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let shown = path.to_str().unwrap();
    cert(&[shown]).unwrap();
    end(&path, "server", ExtendedKeyUsagePurpose::ServerAuth);
    end(&path, "client", ExtendedKeyUsagePurpose::ClientAuth);
    let server = || TlsServer::from_directory(&path, ClientCertificates::Off);
    assert!(server().unwrap_err().to_string().contains("expired"));
    cert(&[shown, "--renew"]).unwrap();
    server().unwrap();
    let names = CertificateInfo::from_file(&path.join("server-cert.pem")).unwrap().names;
    assert_eq!(names, ["disks.example.org"]);
}

#[test]
fn an_authority_that_has_expired_makes_no_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let shown = path.to_str().unwrap();
    cert(&[shown]).unwrap();
    let ca = Folder { path: &path, replace: true, remedy: Remedy::Authority };
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_after = (SystemTime::now() - DAY / 48).into();
    let certificate = params.self_signed(&key).unwrap();
    ca.write("ca-key.pem", &key.serialize_pem(), 0o600).unwrap().publish().unwrap();
    ca.write("ca-cert.pem", &certificate.pem(), 0o644).unwrap().publish().unwrap();
    for words in [&["--renew"][..], &["--add-client", "alice"]] {
        let error = cert(&[&[shown], words].concat()).unwrap_err();
        assert!(error.contains("has expired"), "{error}");
    }
}

#[test]
fn further_clients_have_folders_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let shown = path.to_str().unwrap();
    cert(&[shown, "--add-client", "alice"]).unwrap_err();
    cert(&[shown]).unwrap();
    for name in ["alice", "bob"] {
        cert(&[shown, "--add-client", name]).unwrap();
        let own = path.join(name);
        let names = CertificateInfo::from_file(&own.join("client-cert.pem")).unwrap().names;
        assert_eq!(names, [name]);
        TlsClient::builder().directory(&own).build().unwrap();
        assert_eq!(fs::metadata(own.join("client-key.pem")).unwrap().mode() & 0o777, 0o600);
    }
    let key = path.join("alice/client-key.pem");
    let before = fs::read(&key).unwrap();
    let error = cert(&[shown, "--add-client", "alice"]).unwrap_err();
    let remedy = format!("nbd cert {shown} --renew --add-client alice");
    assert!(error.contains("there already") && error.contains(&remedy), "{error}");
    assert_eq!(fs::read(&key).unwrap(), before);
    // Those that were added are renewed one by one, and named.
    cert(&[shown, "--renew"]).unwrap();
    assert_eq!(fs::read(&key).unwrap(), before);
    fs::create_dir(path.join("other")).unwrap();
    let of_path = Folder { path: &path, replace: true, remedy: Remedy::Authority };
    assert_eq!(of_path.clients().unwrap(), ["alice", "bob"]);
    cert(&[shown, "--add-client", "alice", "--renew"]).unwrap();
    assert_ne!(fs::read(&key).unwrap(), before);
    for name in ["", ".", "..", ".x", "a/b", "/etc", "ca-key.pem"] {
        cert(&[shown, "--add-client", name]).unwrap_err();
    }
}

/// Whenever a server reads them, and however often: it finds a certificate and its own key.
#[test]
fn a_pair_is_complete_for_those_who_read_it_while_it_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let shown = path.to_str().unwrap();
    cert(&[shown]).unwrap();
    let server = TlsServer::from_directory(&path, ClientCertificates::Off).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..40 {
                if let Err(error) = cert(&[shown, "--renew"]) {
                    done.store(true, Ordering::Relaxed);
                    panic!("{error}");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            server.reload().unwrap();
            TlsClient::builder().directory(&path).build().unwrap();
        }
    });
}

#[test]
fn an_encrypted_key_of_the_authority_is_refused_with_the_way_to_decrypt_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pki");
    let shown = path.to_str().unwrap();
    cert(&[shown]).unwrap();
    let key = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIHs\n-----END ENCRYPTED PRIVATE KEY-----\n";
    fs::write(path.join("ca-key.pem"), key).unwrap();
    let error = cert(&[shown, "--renew"]).unwrap_err();
    assert!(error.contains("ca-key.pem") && error.contains("openssl pkey -in"), "{error}");
}

#[test]
fn names_that_no_client_could_use_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().to_str().unwrap();
    for name in ["", "a b", "a/b", "[::1]", "fe80::1%eth0", ".", "a..b", "*"] {
        cert(&[shown, "--name", name]).unwrap_err();
    }
    cert(&[shown, "--client", ""]).unwrap_err();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    for name in ["localhost", "*.example.org", "my_host", "::1"] {
        host(name).unwrap();
    }
}
