//! Our clients with TLS, and the servers of others: nbdkit, qemu-nbd and nbd-server. And both ends ours, over TCP.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nbd_blocking::client::ClientConfig;
use nbd_interop::MIB;
use nbd_interop::certificates::{Certificates, Side};
use nbd_interop::gnutls::{VERSIONS, Versions};
use nbd_testkit::Endpoint;
use nbd_testkit::peers::{PeerServer, require};
use nbd_testkit::process::{Finished, run};
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport, nbd_binary};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};

const PATIENCE: Duration = Duration::from_secs(30);

/// Writes, reads back and flushes through a URI, by the client library of each runtime.
mod libraries {
    use nbd_engine::client::{ClientConfig, Flags, Uri};
    use nbd_engine::tls::{ClientTlsMode, TlsClient};

    const AT: u64 = 4096;

    /// Longer than many records.
    fn data(seed: u64) -> Vec<u8> {
        nbd_testkit::Pattern(seed).bytes(0, 300_000)
    }

    macro_rules! asynchronous {
        ($client:ty, $seed:expr, $uri:expr, $config:expr) => {
            async {
                let uri: Uri = $uri.parse().expect("a URI");
                let client = <$client>::connect_with(&uri, $config).await.expect("it is trusted");
                assert!(client.export().is_tls());
                let parts = data($seed);
                client.write(AT, parts.clone(), Flags::empty()).await.expect("a write");
                client.flush().await.expect("a flush");
                let found = client.read(AT, parts.len(), Flags::empty()).await.expect("a read");
                assert!(found == parts, "what was written is read");
                client.disconnect().await;
            }
        };
    }

    /// All of them, one after the other. `config` has what the URI leaves open.
    #[track_caller]
    pub(crate) fn write_and_read(uri: &str, config: &ClientConfig) {
        let parsed: Uri = uri.parse().expect("a URI");
        let client = nbd_blocking::Client::connect_with(&parsed, config).expect("it is trusted");
        assert!(client.export().is_tls());
        client.write(AT, data(1), Flags::empty()).expect("a write");
        client.flush().expect("a flush");
        let found = client.read(AT, data(1).len(), Flags::empty()).expect("a read");
        assert!(found == data(1), "what was written is read");
        client.disconnect();

        let tokio = tokio::runtime::Runtime::new().expect("threads");
        tokio.block_on(asynchronous!(nbd_tokio::Client, 2, uri, config));
        smol::block_on(asynchronous!(nbd_async_std::Client, 3, uri, config));
        smol::block_on(asynchronous!(nbd_async_std::smol::Client, 4, uri, config));
    }

    /// A client that encrypts if the server can, and trusts the authority in a folder.
    pub(crate) fn preferring(folder: &str) -> ClientConfig {
        let tls = TlsClient::builder().directory(folder).host_name("localhost").build();
        ClientConfig::new().with_tls(ClientTlsMode::Preferred, tls.expect("sound files"))
    }
}

fn nbd(args: &[&str]) -> Finished {
    run(Command::new(nbd_binary()).args(args), PATIENCE)
}

fn uri(endpoint: &Endpoint, certificates: &Certificates) -> String {
    let parameters = [("tls-certificates", certificates.path()), ("tls-hostname", "localhost")];
    endpoint.tls_uri(None, "", &parameters)
}

fn uri_with_key(endpoint: &Endpoint, certificates: &Certificates) -> String {
    endpoint.tls_uri(Some("alice"), "", &[("tls-psk-file", &certificates.keys())])
}

/// nbdkit with a memory disk.
fn nbdkit(versions: Versions, args: &[&str]) -> Option<PeerServer> {
    let peer = require("nbdkit")?;
    let held = versions.hold();
    Some(PeerServer::start(&peer, |command, socket| {
        held.apply(command).args(["--foreground", "--unix", socket]).args(args);
        command.args(["memory", "1M"]);
    }))
}

/// qemu-nbd with a file in the folder.
fn qemu_nbd(versions: Versions, certificates: &Certificates, object: &str) -> Option<PeerServer> {
    let peer = require("qemu-nbd")?;
    let held = versions.hold();
    let image = certificates.file("image");
    fs::write(&image, vec![0; MIB as usize]).expect("the folder is ours");
    Some(PeerServer::start(&peer, |command, socket| {
        held.apply(command).args(["--socket", socket, "--persistent", "--shared=0"]);
        command.args(["--object", object, "--tls-creds", "t", "--format=raw"]).arg(image);
    }))
}

/// What `nbd info` and the libraries must make of a server.
#[track_caller]
fn assert_used(endpoint: &Endpoint, uri: &str) {
    let told = nbd(&["info", uri]).success();
    assert!(told.contains("with TLS"), "{told}");
    let plain = endpoint.uri("");
    let told = nbd(&["info", &plain]).failure();
    assert!(told.contains("nbds"), "the remedy for a server that demands TLS: {told}");
    libraries::write_and_read(uri, &ClientConfig::new());
}

#[test]
fn nbdkit_with_certificates_on_both_sides() {
    let certificates = Certificates::new();
    let folder = format!("--tls-certificates={}", certificates.path());
    for versions in VERSIONS {
        let args = ["--tls=require", &folder, "--tls-verify-peer"];
        let Some(server) = nbdkit(versions, &args) else { return };
        assert_used(server.endpoint(), &uri(server.endpoint(), &certificates));
    }
}

#[test]
fn nbdkit_with_a_shared_key() {
    let certificates = Certificates::new();
    let file = format!("--tls-psk={}", certificates.keys());
    for versions in VERSIONS {
        let Some(server) = nbdkit(versions, &["--tls=require", &file]) else { return };
        assert_used(server.endpoint(), &uri_with_key(server.endpoint(), &certificates));
    }
}

#[test]
fn qemu_nbd_with_certificates_on_both_sides() {
    let certificates = Certificates::new();
    let folder = certificates.path();
    let object = format!("tls-creds-x509,id=t,endpoint=server,dir={folder},verify-peer=on");
    for versions in VERSIONS {
        let Some(server) = qemu_nbd(versions, &certificates, &object) else { return };
        assert_used(server.endpoint(), &uri(server.endpoint(), &certificates));
    }
}

#[test]
fn qemu_nbd_with_a_shared_key() {
    let certificates = Certificates::new();
    let object = format!("tls-creds-psk,id=t,endpoint=server,dir={}", certificates.path());
    for versions in VERSIONS {
        let Some(server) = qemu_nbd(versions, &certificates, &object) else { return };
        assert_used(server.endpoint(), &uri_with_key(server.endpoint(), &certificates));
    }
}

#[test]
fn nbd_server_with_certificates() {
    let Some(peer) = require("nbd-server") else { return };
    let certificates = Certificates::new();
    let image = certificates.file("image");
    fs::write(&image, vec![0; MIB as usize]).expect("the folder is ours");
    let folder = certificates.path();
    let config = format!(
        "certfile = {folder}/server-cert.pem\nkeyfile = {folder}/server-key.pem\n\
         cacertfile = {folder}/ca-cert.pem\n[disk]\nexportname = {}\nflush = true\nforce_tls = true\n",
        image.display()
    );
    let server = PeerServer::nbd_server(&peer, &config);
    let parameters = [("tls-certificates", folder), ("tls-hostname", "localhost")];
    let uri = server.endpoint().tls_uri(None, "disk", &parameters);
    let told = nbd(&["info", &uri]).success();
    assert!(told.contains("with TLS"), "{told}");
    libraries::write_and_read(&uri, &ClientConfig::new());
    // It ends the connection in order when the handshake is over, whatever it did not like.
    let stranger = Certificates::new();
    stranger.write("ca-cert.pem", &fs::read_to_string(certificates.file("ca-cert.pem")).unwrap());
    for has_certificate in [true, false] {
        if !has_certificate {
            for name in ["client-cert.pem", "client-key.pem"] {
                fs::remove_file(stranger.file(name)).expect("it was made");
            }
        }
        let parameters = [("tls-certificates", stranger.path()), ("tls-hostname", "localhost")];
        let uri = server.endpoint().tls_uri(None, "disk", &parameters);
        let told = nbd(&["info", &uri]).failure();
        let says = "right after the handshake, as a server may that does not accept";
        assert!(told.contains(says) && told.contains("client-cert.pem"), "{told}");
    }
}

/// The bad cases: each ends with an error that says what is wrong.
#[test]
fn servers_that_cannot_be_trusted_are_refused_with_the_reason() {
    let good = Certificates::new();
    let folder =
        |certificates: &Certificates| format!("--tls-certificates={}", certificates.path());
    let serve = |certificates: &Certificates| {
        nbdkit(Versions::New, &["--tls=require", &folder(certificates)])
    };
    let info = |uri: &str| nbd(&["info", uri]).failure();

    let Some(server) = serve(&good) else { return };
    let other = Certificates::new();
    let told = info(&uri(server.endpoint(), &other));
    assert!(
        told.contains("not trusted here") && told.contains("give --tls-certificates DIR"),
        "{told}"
    );
    let parameters = [("tls-certificates", good.path()), ("tls-hostname", "other.example")];
    let told = info(&server.endpoint().tls_uri(None, "", &parameters));
    assert!(told.contains("other.example"), "{told}");
    // Unless it is told to trust anybody.
    let insecure = [&parameters[..], &[("tls-verify-peer", "0")]].concat();
    nbd(&["info", &server.endpoint().tls_uri(None, "", &insecure)]).success();

    let copy = |change: &dyn Fn(&Certificates)| {
        let copy = Certificates::new();
        for name in ["ca-cert.pem", "ca-key.pem"] {
            copy.write(name, &fs::read_to_string(good.file(name)).expect("it was made"));
        }
        change(&copy);
        copy
    };
    let expired = copy(&|copy| {
        copy.reissue(Side::Server, |server| server.not_after = date_time_ymd(2020, 1, 1));
    });
    let Some(server) = serve(&expired) else { return };
    let told = info(&uri(server.endpoint(), &good));
    assert!(told.contains("expired"), "{told}");

    let misused = copy(&|copy| {
        copy.reissue(Side::Server, |server| {
            server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
    });
    let Some(server) = serve(&misused) else { return };
    let told = info(&uri(server.endpoint(), &good));
    assert!(told.contains("extended key usage"), "{told}");

    let args = ["--tls=require", &folder(&good), "--tls-verify-peer"];
    let Some(server) = nbdkit(Versions::New, &args) else { return };
    let nobody = copy(&|copy| {
        for name in ["client-cert.pem", "client-key.pem"] {
            fs::remove_file(copy.file(name)).expect("it was made");
        }
    });
    // nbdkit closes without an alert, when the client has finished its handshake already.
    let told = info(&uri(server.endpoint(), &nobody));
    assert!(
        told.contains("client-cert.pem") && told.contains("right after the handshake"),
        "{told}"
    );

    let Some(server) = nbdkit(Versions::Obsolete, &["--tls=require", &folder(&good)]) else {
        return;
    };
    info(&uri(server.endpoint(), &good));
}

/// With TLS 1.3 a client's handshake has succeeded by then: what the server said is read, whichever call notices first that it
/// is gone, and nothing is tried again.
#[test]
fn a_client_that_is_not_trusted_learns_why_and_gives_up() {
    let certificates = Certificates::new();
    let nobody = Certificates::new();
    let authority = certificates.file("ca-cert.pem");
    nobody.write("ca-cert.pem", &fs::read_to_string(authority).expect("it was made"));
    for name in ["client-cert.pem", "client-key.pem"] {
        fs::remove_file(nobody.file(name)).expect("it was made");
    }
    for runtime in [Runtime::Tokio, Runtime::Blocking] {
        for transport in [Transport::Unix, Transport::Tcp] {
            let args =
                ["--tls-certificates", certificates.path(), "--tls-verify-peer", "memory:1M"];
            let server = Setup { runtime, transport }.serve().args(args).start();
            for _ in 0..10 {
                let uri = uri(server.endpoint(), &nobody);
                let told = nbd(&["info", "--retries", "20", "--size", &uri]).failure();
                assert!(told.contains("certificate_required"), "{runtime:?} {transport:?}: {told}");
            }
        }
    }
}

/// A server of ours that is reached as 127.0.0.1, or by other names of this machine.
fn serve_by_tcp(certificates: &Certificates) -> NbdServe {
    let setup = Setup { runtime: Runtime::Blocking, transport: Transport::Tcp };
    setup.serve().args(["--tls-certificates", certificates.path(), "memory:1M"]).start()
}

/// C-TLS-23: an address is compared with the addresses of the certificate alone, and the override with its names.
#[test]
fn the_address_in_the_uri_has_to_be_in_the_certificate_unless_a_name_is_given() {
    let certificates = Certificates::new();
    let by_address = |server: &NbdServe, more: &str| {
        let Endpoint::Tcp(address) = server.endpoint() else { panic!("it is TCP") };
        format!("nbds://{address}/?tls-certificates={}{more}", certificates.path())
    };
    let server = serve_by_tcp(&certificates);
    nbd(&["info", &by_address(&server, "")]).success();
    drop(server);
    // That one has the name of localhost, and no address.
    certificates.reissue(Side::Server, |_| {});
    let server = serve_by_tcp(&certificates);
    let told = nbd(&["info", &by_address(&server, "")]).failure();
    assert!(told.contains("127.0.0.1") && told.contains("which name to expect"), "{told}");
    nbd(&["info", &by_address(&server, "&tls-hostname=localhost")]).success();
}

/// What OpenSSL's variable names stands for the system's store.
#[test]
fn the_authorities_of_the_system_are_trusted_where_none_is_named() {
    let (certificates, other) = (Certificates::new(), Certificates::new());
    let server = serve_by_tcp(&certificates);
    let uri = server.endpoint().tls_uri(None, "", &[]);
    let info = |store: &Certificates| {
        let mut command = Command::new(nbd_binary());
        // No folder of certificates of whoever runs the tests.
        command.args(["info", &uri]).env("HOME", store.path());
        run(command.env("SSL_CERT_FILE", store.file("ca-cert.pem")), PATIENCE)
    };
    info(&certificates).success();
    let told = info(&other).failure();
    assert!(told.contains("not trusted here"), "{told}");
}

#[test]
fn wrong_keys_and_unknown_users_are_refused() {
    let (certificates, other) = (Certificates::new(), Certificates::new());
    let file = format!("--tls-psk={}", certificates.keys());
    let stranger = other.file("stranger");
    let stranger = stranger.to_str().expect("plain");
    nbd(&["psk", stranger, "eve"]).success();
    for versions in VERSIONS {
        let Some(server) = nbdkit(versions, &["--tls=require", &file]) else { return };
        let told = nbd(&["info", &uri_with_key(server.endpoint(), &other)]).failure();
        assert!(told.contains("compare the user and the key"), "{told}");
        let parameters = [("tls-psk-file", stranger)];
        let uri = server.endpoint().tls_uri(Some("eve"), "", &parameters);
        let told = nbd(&["info", &uri]).failure();
        assert!(told.contains("compare the user and the key"), "{told}");
    }
}

/// C-TLS-23: whoever has a certificate, even one that would be trusted otherwise, has not the key.
#[test]
fn a_certificate_does_not_stand_for_a_key() {
    let certificates = Certificates::new();
    let folder = format!("--tls-certificates={}", certificates.path());
    for versions in VERSIONS {
        let Some(server) = nbdkit(versions, &["--tls=require", &folder]) else { return };
        let told = nbd(&["info", &uri_with_key(server.endpoint(), &certificates)]).failure();
        assert!(told.contains("certificate"), "{told}");
    }
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Tcp };
    let arguments = ["--tls-certificates", certificates.path()];
    let server = setup.serve().args(arguments).arg("memory:1M").start();
    nbd(&["info", &uri_with_key(server.endpoint(), &certificates)]).failure();
}

/// C-TLS-21, C-TLS-22: with a server that has no TLS, `nbds` fails and a preference does not.
#[test]
fn a_server_without_tls_gets_no_client_that_requires_it() {
    let certificates = Certificates::new();
    let Some(server) = nbdkit(Versions::New, &["--tls=off"]) else { return };
    let told = nbd(&["info", &uri(server.endpoint(), &certificates)]).failure();
    assert!(told.contains("TLS"), "{told}");
    let config = libraries::preferring(certificates.path());
    let plain = server.endpoint().uri("").parse().expect("a URI");
    let client = nbd_blocking::Client::connect_with(&plain, &config).expect("it may be plain");
    assert!(!client.export().is_tls());
    client.disconnect();
}

#[test]
fn a_preference_is_enough_for_servers_that_can_and_those_that_must() {
    let certificates = Certificates::new();
    let folder = format!("--tls-certificates={}", certificates.path());
    let config = libraries::preferring(certificates.path());
    for mode in ["--tls=on", "--tls=require"] {
        let Some(server) = nbdkit(Versions::New, &[mode, &folder]) else { return };
        libraries::write_and_read(&server.endpoint().uri(""), &config);
    }
}

#[test]
fn all_libraries_reach_all_of_our_servers_over_tcp() {
    let certificates = Certificates::new();
    let args = ["--tls", "require", "--tls-verify-peer", "--tls-certificates"];
    for runtime in [Runtime::Blocking, Runtime::Tokio, Runtime::AsyncStd] {
        let setup = Setup { runtime, transport: Transport::Tcp };
        let server = setup.serve().args(args).args([certificates.path(), "memory:1M"]).start();
        let uri = uri(server.endpoint(), &certificates);
        libraries::write_and_read(&uri, &ClientConfig::new());
    }
}

#[test]
fn our_copy_goes_through_tls_on_both_sides() {
    let certificates = Certificates::new();
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
    let args = ["--tls", "require", "--tls-certificates", certificates.path()];
    let image = certificates.file("image");
    let bytes = nbd_testkit::Pattern(9).bytes(0, 4 << 20);
    fs::write(&image, &bytes).expect("the folder is ours");
    let image = image.to_str().expect("plain");
    let [from, to] =
        [image, "memory:4M"].map(|backend| setup.serve().args(args).arg(backend).start());
    let folder = ["--tls-certificates", certificates.path(), "--tls-hostname", "localhost"];
    let [from, to] = [&from, &to].map(|server| server.endpoint().tls_uri(None, "", &[]));
    nbd(&[&["copy"], &folder[..], &[&from, &to]].concat()).success();
    let back = certificates.file("back");
    nbd(&[&["copy"], &folder[..], &[&to, back.to_str().expect("plain")]].concat()).success();
    assert!(fs::read(back).expect("it was written") == bytes);
}
