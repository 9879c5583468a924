//! What a server listens on: all that was asked for, as long as it was asked for.

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use nbd_engine::export::{ExportMap, Memory};
use nbd_engine::server::ServerConfig;
use nbd_testkit::process::run;
use nbd_testkit::raw::{Mode, RawClient, Wire};
use nbd_testkit::{Endpoint, cases, own_ip, peers};
use tempfile::TempDir;

use crate::{Place, SOON, Server, Setup, Transport};

fn exports() -> ExportMap {
    ExportMap::new().with("", Memory::new(1 << 20).expect("it is small")).expect("a short name")
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("a folder for sockets")
}

/// One place of either kind, that of the setup's transport first, and the path of the Unix socket.
fn both(setup: &Setup, dir: &TempDir) -> (Vec<Place>, PathBuf) {
    let tcp = Place::Addresses(vec![(own_ip(), 0).into()]);
    let mut places = [tcp, setup.place(Transport::Unix, dir)];
    if setup.transport() == Transport::Unix {
        places.reverse();
    }
    (places.into(), dir.path().join("nbd.sock"))
}

fn go(endpoint: &Endpoint) -> RawClient {
    RawClient::go_in(Mode::Extended, endpoint)
}

/// Whether a server listens there.
fn is_listened_on(endpoint: &Endpoint) -> bool {
    match Wire::try_connect(endpoint) {
        Ok(_) => true,
        Err(error) => {
            let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
            assert!(kinds.contains(&error.kind()), "{error}");
            false
        }
    }
}

/// Listens where a server listened, as its successor would.
fn listen_again(endpoint: &Endpoint) -> io::Result<Box<dyn Send>> {
    Ok(match endpoint {
        Endpoint::Tcp(address) => Box::new(TcpListener::bind(address)?),
        Endpoint::Unix(path) => Box::new(UnixListener::bind(path)?),
        Endpoint::Tls { address, .. } => listen_again(address)?,
    })
}

/// An address can be a text, a host with a port, or a list, of which all is listened on, with one free port.
pub fn all_forms_of_an_address_are_listened_on(setup: Setup) {
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    let list = ["[::1]:0", "127.0.0.1:0", "127.0.0.2:0", "127.0.0.1:0"];
    let list = list.map(|text| text.parse().expect("an address")).to_vec();
    let places = vec![
        Place::Text("127.0.0.1:0".into()),
        Place::Host("127.0.0.1".into(), 0),
        // Its addresses are those of this machine's configuration.
        Place::Host("localhost".into(), 0),
        Place::Addresses(list),
    ];
    let server = setup.serve_at(exports(), ServerConfig::default(), places, dir());
    let endpoints = server.endpoints();
    endpoints.iter().for_each(|endpoint| go(endpoint).finish());
    let listed = &endpoints[endpoints.len() - 2 - usize::from(has_ipv6)..];
    let mut ports = HashSet::new();
    for (endpoint, ip) in listed.iter().rev().zip(["127.0.0.2", "127.0.0.1", "::1"]) {
        let Endpoint::Tcp(address) = endpoint else { panic!("{endpoint:?}") };
        assert_eq!(address.ip().to_string(), ip, "{endpoints:?}");
        ports.insert(address.port());
    }
    assert_eq!(ports.len(), 1, "{endpoints:?}");
    server.stop();
}

/// What can't be listened on is refused with its address or a remedy, and nothing else is listened on then.
pub fn an_address_that_is_of_no_use_is_refused_with_a_remedy(setup: Setup) {
    let refused = |place| {
        let config = ServerConfig::default();
        let started = setup.try_serve_at(exports(), config, vec![place], dir());
        started.err().expect("it is of no use").to_string()
    };
    for text in ["127.0.0.1", "localhost", ""] {
        let error = refused(Place::Text(text.into()));
        assert!(error.contains("give a host and a port, such as"), "{text:?}: {error}");
    }
    let other = TcpListener::bind((own_ip(), 0)).expect("a port");
    let taken = other.local_addr().expect("an address");
    let free = (own_ip(), taken.port()).into();
    for addresses in [vec![taken], vec![free, taken]] {
        let error = refused(Place::Addresses(addresses));
        assert!(error.contains(&format!("cannot listen on {taken}")), "{error}");
    }
    assert!(!is_listened_on(&Endpoint::Tcp(free)));
    let path = dir().path().join("missing/nbd.sock");
    let error = refused(Place::Unix(path.clone()));
    assert!(error.contains(&format!("cannot listen on {}", path.display())), "{error}");
}

/// A listener is closed by itself: its connections, the other listeners and the server go on.
pub fn a_listener_is_closed_and_the_rest_goes_on(setup: Setup) {
    let dir = dir();
    let (places, path) = both(&setup, &dir);
    let mut server = setup.serve_at(exports(), ServerConfig::default(), places, dir);
    let [closed, open] = server.endpoints() else { panic!("{:?}", server.endpoints()) };
    let mut client = go(closed);
    client.write(0, b"before");
    for _ in 0..2 {
        server.close(0);
        assert!(!is_listened_on(closed));
        assert_eq!(path.exists(), setup.transport() == Transport::Tcp);
    }
    let mut other = go(open);
    other.write(100, b"after");
    assert_eq!(client.read(0, 6), b"before");
    assert_eq!(client.read(100, 5), b"after");
    // The address is free for another server at once, which keeps it when this one ends.
    let successor = listen_again(closed).expect("the address is free");
    other.finish();
    client.finish();
    server.shut_down();
    server.wait_for_the_end();
    assert!(is_listened_on(&server.endpoints()[0]));
    drop(successor);
}

/// A server whose listeners are all closed keeps its connections, and ends when it is shut down.
pub fn a_server_without_listeners_serves_on(setup: Setup) {
    let dir = dir();
    let (places, _) = both(&setup, &dir);
    let mut server = setup.serve_at(exports(), ServerConfig::default(), places, dir);
    let mut clients = server.endpoints().iter().map(go).collect::<Vec<_>>();
    server.close(0);
    server.close(1);
    assert!(!server.endpoints().iter().any(is_listened_on));
    for client in &mut clients {
        assert_eq!(client.read(0, 512), [0; 512]);
    }
    server.shut_down();
    // Too late to matter, and no harm.
    server.close(0);
    for mut client in clients {
        client.wire().expect_eof();
    }
    server.wait_for_the_end();
}

/// Once a server has ended, which is all that its user waits for, its sockets are closed: the addresses are free, and the
/// path is removed.
pub fn a_server_that_has_ended_listens_nowhere(setup: Setup) {
    cases(20, |random| {
        let dir = dir();
        let (places, path) = both(&setup, &dir);
        let mut server = setup.serve_at(exports(), ServerConfig::default(), places, dir);
        let clients = (0..random.below(4)).map(|_| go(&server.endpoints()[random.below(2) as usize]));
        let clients = Vec::from_iter(clients);
        if random.one_in(4) {
            server.close(random.below(2) as usize);
        }
        server.shut_down();
        drop(clients);
        server.wait_for_the_end();
        assert!(!path.exists());
        for endpoint in server.endpoints() {
            assert!(!is_listened_on(endpoint));
            drop(listen_again(endpoint).expect("the address is free"));
        }
    });
}

/// A listener is closed while it waits for room for a client, which is disconnected.
pub fn a_listener_is_closed_while_a_client_waits_for_admission(setup: Setup) {
    let config = ServerConfig::new()
        .with_max_connections(1)
        .with_admission_timeout(Duration::from_secs(3600));
    let dir = dir();
    let (places, _) = both(&setup, &dir);
    let server = setup.serve_at(exports(), config, places, dir);
    let mut client = server.client(Mode::Simple);
    let mut waiting = Wire::connect(server.endpoint());
    waiting.expect_silence();
    server.close(0);
    waiting.drain_to_eof();
    assert!(!is_listened_on(server.endpoint()));
    assert_eq!(client.read(0, 512), [0; 512]);
    client.finish();
    server.stop();
}

/// A socket of another server that took the path stays.
pub fn a_socket_that_took_the_path_is_left_alone_by_a_close(setup: Setup) {
    let dir = dir();
    let (places, path) = both(&setup, &dir);
    let server = setup.serve_at(exports(), ServerConfig::default(), places, dir);
    std::fs::remove_file(&path).expect("the server has made it");
    let _other = UnixListener::bind(&path).expect("the path is free");
    (0..2).for_each(|place| server.close(place));
    assert!(is_listened_on(&Endpoint::Unix(path)));
    server.stop();
}

/// The configured backlog is what the system is asked for.
pub fn the_backlog_reaches_the_system(setup: Setup) {
    let Some(ss) = peers::require("ss") else { return };
    for backlog in [None, Some(1), Some(77)] {
        let config = ServerConfig::default();
        let config = backlog.map_or(config.clone(), |backlog| config.with_backlog(backlog));
        let asked = config.backlog().min(system_limit());
        let server = setup.serve_with(exports(), config);
        let shown = system_backlog(&ss, &server);
        assert_eq!(shown, asked.to_string());
        server.stop();
    }
}

/// More is not granted by the system.
fn system_limit() -> u32 {
    let limit = std::fs::read_to_string("/proc/sys/net/core/somaxconn");
    limit.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(u32::MAX)
}

/// The length of the server's queue, as `ss` shows it.
fn system_backlog(ss: &peers::Peer, server: &Server) -> String {
    let mut command = ss.command();
    match server.endpoint().socket() {
        Endpoint::Tcp(address) => command
            .args(["-Hltn", &format!("src {address}")]),
        Endpoint::Unix(path) => command.args(["-Hlxn", "src"]).arg(path),
        Endpoint::Tls { .. } => unreachable!("a socket is one of the others"),
    };
    let shown = run(&mut command, SOON).success();
    // State, connections that wait, and how many may; of a Unix socket its kind first.
    let mut words = shown.split_whitespace().skip_while(|word| *word != "LISTEN");
    words.nth(2).unwrap_or_else(|| panic!("{shown:?}")).to_owned()
}
