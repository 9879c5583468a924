//! `nbd serve` with TLS, and the clients of others, which use GnuTLS: libnbd's and qemu's.

use std::process::Command;

use nbd_interop::certificates::{Certificates, Side};
use nbd_interop::gnutls::{VERSIONS, Versions};
use nbd_interop::{MIB, assert_serves_over_tls};
use nbd_testkit::peers::{Peer, require};
use nbd_testkit::process::{Finished, run, wait_until};
use nbd_testkit::raw::{Opt, RawClient};
use nbd_testkit::server::{NbdServe, Serve, Setup, nbd_binary};
use nbd_testkit::{Endpoint, Pattern, SOON, assert_same_bytes, matrix};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::version::{TLS12, TLS13};

matrix! {
    tcp_and_unix: [
        libnbd_copies_with_certificates_on_both_sides,
        libnbd_copies_with_a_shared_key,
        qemu_copies_with_certificates_on_both_sides,
        qemu_copies_with_a_shared_key,
    ],
    unix: [
        an_optional_upgrade_is_the_clients_choice,
        an_export_for_tls_alone_is_hidden_from_others,
        clients_that_cannot_be_trusted_are_turned_away,
        a_certificate_with_a_common_name_alone_is_explained_to_both_sides,
        wrong_keys_and_unknown_users_are_turned_away,
        users_that_are_not_allowed_are_turned_away,
        files_are_read_again_without_ending_connections,
    ],
}

fn serving(setup: Setup, mode: &str, certificates: &Certificates) -> Serve {
    let common = ["-vv", "--tls", mode, "--tls-certificates", certificates.path()];
    setup.serve().args(common)
}

/// The URI of an export for a libnbd client with this folder.
fn uri(server: &NbdServe, export: &str, certificates: &Certificates) -> String {
    let parameters = [("tls-certificates", certificates.path()), ("tls-hostname", "localhost")];
    server.endpoint().tls_uri(None, export, &parameters)
}

fn uri_with_key(server: &NbdServe, user: &str, certificates: &Certificates) -> String {
    server.endpoint().tls_uri(Some(user), "", &[("tls-psk-file", &certificates.keys())])
}

fn peer(peer: &Peer, versions: Versions, args: &[&str]) -> Finished {
    run(versions.hold().apply(peer.command().args(args)), SOON)
}

/// The server must have logged that it agreed with the last client on that version.
#[track_caller]
fn assert_agreed(server: &NbdServe, versions: Versions, rounds: usize) {
    let agreed = |log: &str| log.matches(&format!("suite=\"{} ", versions.logged())).count();
    wait_until("the server logs the version", SOON, || agreed(&server.stderr()) >= rounds);
}

/// A file whose content is a pattern.
fn image(certificates: &Certificates, seed: u64) -> (String, Vec<u8>) {
    let path = certificates.file("image");
    let bytes = Pattern(seed).bytes(0, MIB as usize);
    std::fs::write(&path, &bytes).expect("the folder is ours");
    (path.to_str().expect("plain").to_owned(), bytes)
}

/// Copies an image in and out again by nbdcopy, with each version of TLS.
#[track_caller]
fn copy_by_libnbd(server: &NbdServe, uri: &str, certificates: &Certificates) {
    let Some(nbdcopy) = require("nbdcopy") else { return };
    for (round, versions) in VERSIONS.into_iter().enumerate() {
        let (image, bytes) = image(certificates, round as u64);
        let back = certificates.file("back");
        peer(&nbdcopy, versions, &["--flush", &image, uri]).success();
        peer(&nbdcopy, versions, &[uri, back.to_str().expect("plain")]).success();
        let found = std::fs::read(&back).expect("it was written");
        assert_same_bytes(&found, &bytes, "the copy of the copy");
        assert_agreed(server, versions, 2);
    }
}

fn libnbd_copies_with_certificates_on_both_sides(setup: Setup) {
    let certificates = Certificates::new();
    let server =
        serving(setup, "require", &certificates).args(["--tls-verify-peer", "memory:1M"]).start();
    copy_by_libnbd(&server, &uri(&server, "", &certificates), &certificates);
}

fn libnbd_copies_with_a_shared_key(setup: Setup) {
    let certificates = Certificates::new();
    let keys = certificates.keys();
    let server = setup.serve().args(["-vv", "--tls-psk", &keys, "memory:1M"]).start();
    copy_by_libnbd(&server, &uri_with_key(&server, "alice", &certificates), &certificates);
}

/// What qemu-img takes for an export, with the credentials `t`.
fn qemu_options(endpoint: &Endpoint) -> String {
    let server = match endpoint {
        Endpoint::Tcp(address) => {
            format!("server.type=inet,server.host=127.0.0.1,server.port={}", address.port())
        }
        Endpoint::Unix(path) => format!("server.type=unix,server.path={}", path.display()),
        Endpoint::Tls { address, .. } => return qemu_options(address),
    };
    format!("driver=nbd,{server},tls-creds=t,tls-hostname=localhost")
}

/// Copies an image in and compares the two by qemu-img, with each version of TLS.
#[track_caller]
fn copy_by_qemu(server: &NbdServe, credentials: &str, certificates: &Certificates) {
    let Some(qemu) = require("qemu-img") else { return };
    let Some(qemu_io) = require("qemu-io") else { return };
    let disk = qemu_options(server.endpoint());
    for (round, versions) in VERSIONS.into_iter().enumerate() {
        let (image, _) = image(certificates, 10 + round as u64);
        let source = format!("driver=raw,file.driver=file,file.filename={image}");
        let common = ["--object", credentials, "--image-opts"];
        let convert = [&["convert", "-n", "--target-image-opts"], &common[..], &[&source, &disk]];
        peer(&qemu, versions, &convert.concat()).success();
        peer(&qemu, versions, &[&["compare"], &common[..], &[&source, &disk]].concat()).success();
        let commands = ["-c", "write -P 7 4k 64k", "-c", "flush", "-c", "read -P 7 4k 64k"];
        let output = peer(&qemu_io, versions, &[&common[..], &commands, &[&disk]].concat());
        assert!(!output.success().contains("failed"), "what was written is read");
        assert_agreed(server, versions, 3);
    }
}

fn qemu_copies_with_certificates_on_both_sides(setup: Setup) {
    let certificates = Certificates::new();
    let server =
        serving(setup, "require", &certificates).args(["--tls-verify-peer", "memory:1M"]).start();
    let folder = certificates.path();
    let credentials = format!("tls-creds-x509,id=t,dir={folder},endpoint=client");
    copy_by_qemu(&server, &credentials, &certificates);
}

fn qemu_copies_with_a_shared_key(setup: Setup) {
    let certificates = Certificates::new();
    let keys = certificates.keys();
    let server = setup.serve().args(["-vv", "--tls-psk", &keys, "memory:1M"]).start();
    let folder = certificates.path();
    let credentials = format!("tls-creds-psk,id=t,dir={folder},endpoint=client,username=alice");
    copy_by_qemu(&server, &credentials, &certificates);
}

fn an_optional_upgrade_is_the_clients_choice(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let certificates = Certificates::new();
    let server = serving(setup, "on", &certificates).arg("memory:1M").start();
    let plain = peer(&nbdinfo, Versions::New, &[&server.uri("")]).success();
    assert!(plain.contains("without TLS"), "{plain}");
    for versions in VERSIONS {
        let uri = uri(&server, "", &certificates);
        let encrypted = peer(&nbdinfo, versions, &[&uri]).success();
        assert!(encrypted.contains("with TLS"), "{encrypted}");
        assert_agreed(&server, versions, 1);
    }
}

fn an_export_for_tls_alone_is_hidden_from_others(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let certificates = Certificates::new();
    let backends = ["--tls-only", "secret", "open=memory:1M", "secret=memory:2M"];
    let server = serving(setup, "on", &certificates).args(backends).start();
    let info = |args: &[&str]| peer(&nbdinfo, Versions::New, args);
    let listed = info(&["--list", &server.uri("")]).success();
    assert!(listed.contains("\"open\"") && !listed.contains("secret"), "{listed}");
    let refused = info(&["--size", &server.uri("secret")]).failure();
    assert!(refused.contains("TLS"), "{refused}");
    let listed = info(&["--list", &uri(&server, "", &certificates)]).success();
    assert!(listed.contains("\"open\"") && listed.contains("\"secret\""), "{listed}");
    let size = info(&["--size", &uri(&server, "secret", &certificates)]).success();
    assert_eq!(size.trim(), "2097152");
}

/// The bad cases of certificates. After each of them the server serves as before.
fn clients_that_cannot_be_trusted_are_turned_away(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let certificates = Certificates::new();
    let server = serving(setup, "require", &certificates)
        .args(["--tls-allow", "client", "--tls-allow", "*.tenants.example", "memory:1M"])
        .start();
    let refuse = |what: &str, logged: &str, versions: Versions, uri: &str| {
        eprintln!("{what}");
        let before = server.stderr().len();
        peer(&nbdinfo, versions, &["--size", uri]).failure();
        wait_until("the server logs why", SOON, || server.stderr()[before..].contains(logged));
        assert_serves_over_tls(&server, &certificates);
    };
    let told = peer(&nbdinfo, Versions::New, &["--size", &server.uri("")]).failure();
    assert!(told.contains("TLS"), "{told}");

    // The authority is the server's in all that follows; the client's files are what differs.
    let client = |change: &dyn Fn(&Certificates)| {
        let copy = Certificates::new();
        for name in ["ca-cert.pem", "ca-key.pem"] {
            let text = std::fs::read_to_string(certificates.file(name)).expect("it was made");
            copy.write(name, &text);
        }
        copy.reissue(Side::Client, |_| {});
        change(&copy);
        copy
    };
    let named = |name: &'static str| {
        client(&move |copy| {
            copy.reissue(Side::Client, |params| {
                params.subject_alt_names =
                    vec![rcgen::SanType::DnsName(name.try_into().expect("a name"))];
            });
        })
    };
    // A name that is allowed shows that these clients are like the others.
    let good = named("blue.tenants.example");
    peer(&nbdinfo, Versions::New, &["--size", &uri(&server, "", &good)]).success();
    let stranger = named("stranger");
    for versions in VERSIONS {
        refuse("not on the list", "stranger", versions, &uri(&server, "", &stranger));
    }
    // The client learns why. With TLS 1.3 it has finished by then, and may still be writing when the server closes.
    for version in [&TLS12, &TLS13] {
        wait_until("the alert reaches the client", SOON, || {
            let mut client = RawClient::negotiate(server.endpoint());
            client.option(Opt::STARTTLS, &[]).expect("it is offered");
            let started = client.wire().start_tls(stranger.scripted(version), "localhost");
            let told = match started {
                Err(error) => error.to_string(),
                Ok(()) => client.wire().expect_tls_failure().to_string(),
            };
            assert!(told.contains("AccessDenied") || told.contains("Broken pipe"), "{told}");
            told.contains("AccessDenied")
        });
    }

    let nobody = client(&|copy| {
        for name in ["client-cert.pem", "client-key.pem"] {
            std::fs::remove_file(copy.file(name)).expect("it was made");
        }
    });
    for versions in VERSIONS {
        let text = "the peer showed no certificate";
        refuse("no certificate", text, versions, &uri(&server, "", &nobody));
    }
    let expired = client(&|copy| {
        copy.reissue(Side::Client, |params| params.not_after = date_time_ymd(2020, 1, 1));
    });
    refuse("expired", "expired", Versions::New, &uri(&server, "", &expired));
    let misused = client(&|copy| {
        copy.reissue(Side::Client, |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
    });
    refuse("for servers", "extended key usage", Versions::New, &uri(&server, "", &misused));
    let other = Certificates::new();
    let text = std::fs::read_to_string(certificates.file("ca-cert.pem")).expect("it was made");
    other.write("ca-cert.pem", &text);
    // GnuTLS shows nothing that the server does not ask for.
    let text = "the peer showed no certificate";
    refuse("of another authority", text, Versions::New, &uri(&server, "", &other));
    let mut unasked = RawClient::negotiate(server.endpoint());
    unasked.option(Opt::STARTTLS, &[]).expect("it is offered");
    // With TLS 1.3 the client has finished before the server says no.
    let _finished = unasked.wire().start_tls(other.scripted(&TLS13), "localhost");
    wait_until("the server logs why", SOON, || server.stderr().contains("not trusted here"));
    refuse(
        "TLS 1.1",
        "neither TLS 1.2 nor TLS 1.3",
        Versions::Obsolete,
        &uri(&server, "", &certificates),
    );
}

fn a_certificate_with_a_common_name_alone_is_explained_to_both_sides(setup: Setup) {
    let certificates = Certificates::new();
    let server = serving(setup, "require", &certificates).args(["memory:1M"]).start();
    let warning = "server-cert.pem has no subject alternative name";
    assert!(!server.stderr().contains(warning), "{}", server.stderr());
    drop(server);
    certificates.reissue(Side::Server, |params| {
        params.subject_alt_names.clear();
        params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    });
    let server = serving(setup, "require", &certificates).args(["memory:1M"]).start();
    wait_until("the server warns of it", SOON, || server.stderr().contains(warning));
    let mut command = Command::new(nbd_binary());
    let told = run(command.args(["info", &uri(&server, "", &certificates)]), SOON).failure();
    assert!(told.contains("has no subject alternative name"), "{told}");
    assert!(told.contains("as nbd cert makes it") && !told.contains("--tls-hostname"), "{told}");
}

fn wrong_keys_and_unknown_users_are_turned_away(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let certificates = Certificates::new();
    let keys = certificates.keys();
    let server = setup.serve().args(["-vv", "--tls-psk", &keys, "memory:1M"]).start();
    let other = Certificates::new();
    let stranger = other.file("stranger");
    let stranger = stranger.to_str().expect("plain");
    nbd(&["psk", stranger, "eve"]);
    for versions in VERSIONS {
        let info = |uri: &str| peer(&nbdinfo, versions, &["--size", uri]);
        let logs = |what: &str| {
            wait_until("the server logs why", SOON, || server.stderr().contains(what));
        };
        info(&uri_with_key(&server, "alice", &other)).failure();
        logs("the user \"alice\": the pre-shared keys of the two sides differ");
        let parameters = [("tls-psk-file", stranger)];
        info(&server.endpoint().tls_uri(Some("eve"), "", &parameters)).failure();
        logs("the user \"eve\" has no key");
        info(&server.uri("")).failure();
        info(&uri_with_key(&server, "alice", &certificates)).success();
    }
}

/// They get the alert of a wrong key, and the log says why, without any option for it.
fn users_that_are_not_allowed_are_turned_away(setup: Setup) {
    let Some(nbdinfo) = require("nbdinfo") else { return };
    let certificates = Certificates::new();
    let keys = certificates.keys();
    for (pattern, allowed) in [("bob", false), ("Alice", false), ("al*", true)] {
        let arguments = ["--tls-psk", &keys, "--tls-allow", pattern, "memory:1M"];
        let server = setup.serve().args(arguments).start();
        let uri = uri_with_key(&server, "alice", &certificates);
        for versions in VERSIONS {
            let info = peer(&nbdinfo, versions, &["--size", &uri]);
            if allowed {
                info.success()
            } else {
                info.failure()
            };
        }
        if allowed {
            nbd(&["info", &uri]);
            continue;
        }
        let told = run(Command::new(nbd_binary()).args(["info", &uri]), SOON).failure();
        assert!(told.contains("compare the user and the key"), "{told}");
        wait_until("the server logs why", SOON, || {
            let log = server.stderr();
            log.contains("none of the names that are allowed") && log.contains("alice")
        });
        let log = server.stderr();
        assert_eq!(log.matches("none of the names").count(), 1, "not once for each: {log}");
    }
}

#[track_caller]
fn nbd(args: &[&str]) -> String {
    run(Command::new(nbd_binary()).args(args), SOON).success()
}

fn files_are_read_again_without_ending_connections(setup: Setup) {
    let certificates = Certificates::new();
    // Without a controlling terminal SIGHUP means to read the files again.
    let server = serving(setup, "require", &certificates).arg("memory:1M").detached().start();
    let mut connected = nbd_interop::over_tls(&server, &certificates, &TLS13);
    connected.go("", &[]).expect("it is there");

    let good = std::fs::read_to_string(certificates.file("server-cert.pem")).expect("it was made");
    certificates.write("server-cert.pem", "nonsense");
    server.hang_up();
    wait_until("the server complains", SOON, || server.stderr().contains("stay in force"));
    assert_serves_over_tls(&server, &certificates);

    // The new authority's certificate is what new clients see; the old client goes on.
    certificates.write("server-cert.pem", &good);
    nbd(&["cert", "--renew", certificates.path()]);
    server.hang_up();
    wait_until("the server has read them", SOON, || {
        server.stderr().contains("read the files for TLS again")
    });
    assert_serves_over_tls(&server, &certificates);
    assert_eq!(connected.read(0, 512).len(), 512);
    connected.finish();
}
