//! Clients that replace their lost connections.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nbd_engine::client::{
    ClientConfig, ConnectionEvent, Error, Flags, GaveUp, LostReason, Reconnect,
};
use nbd_engine::export::{ExportMap, IntoExport, Memory};
use nbd_engine::server::ServerConfig;
use nbd_support::volatile::Volatile;
use nbd_testkit::process::wait_until;
use nbd_testkit::{Endpoint, Pattern, assert_same_bytes};
use tempfile::TempDir;

use crate::client::ClientUnderTest;
use crate::exports::{Disk, Gate, Way};
use crate::{ClientSetup, Place, SOON, Server, Setup, Transport};

const SIZE: u64 = 1 << 20;

/// Where one server after the other listens. The listener outlives them, so that no other test takes the address meanwhile.
struct Site {
    listener: Listener,
    endpoint: Endpoint,
    _dir: TempDir,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Site {
    fn new(clients: ClientSetup) -> Self {
        let dir = tempfile::tempdir().expect("a folder for the socket");
        let (listener, endpoint) = match clients.transport() {
            Transport::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
                let endpoint = Endpoint::Tcp(listener.local_addr().expect("an address"));
                (Listener::Tcp(listener), endpoint)
            }
            Transport::Unix | Transport::Tls => {
                let path = dir.path().join("nbd.sock");
                (Listener::Unix(UnixListener::bind(&path).expect("a path")), Endpoint::Unix(path))
            }
        };
        Self { listener, endpoint, _dir: dir }
    }

    fn serve<K>(&self, servers: Setup, export: impl IntoExport<K>) -> Server {
        self.serve_with(servers, export, ServerConfig::default())
    }

    fn serve_with<K>(
        &self,
        servers: Setup,
        export: impl IntoExport<K>,
        config: ServerConfig,
    ) -> Server {
        let place = match &self.listener {
            Listener::Tcp(listener) => {
                Place::TcpListener(listener.try_clone().expect("a descriptor"))
            }
            Listener::Unix(listener) => {
                Place::UnixListener(listener.try_clone().expect("a descriptor"))
            }
        };
        let exports = ExportMap::new().with("", export).expect("a short name");
        let dir = tempfile::tempdir().expect("a folder");
        servers.serve_at(exports, config, vec![place], dir)
    }

    /// Closes each connection as soon as it is made, as if there were no server.
    fn refuse(&self) -> Refusing {
        let over = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&over);
        let refuse = move |accept: &mut dyn FnMut() -> std::io::Result<()>| {
            while !end.load(Ordering::Relaxed) {
                match accept() {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        };
        let thread = match &self.listener {
            Listener::Tcp(listener) => {
                let listener = listener.try_clone().expect("a descriptor");
                listener.set_nonblocking(true).expect("a setting");
                thread::spawn(move || refuse(&mut || listener.accept().map(drop)))
            }
            Listener::Unix(listener) => {
                let listener = listener.try_clone().expect("a descriptor");
                listener.set_nonblocking(true).expect("a setting");
                thread::spawn(move || refuse(&mut || listener.accept().map(drop)))
            }
        };
        Refusing { over, thread: Some(thread) }
    }
}

struct Refusing {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _refused = thread.join();
        }
    }
}

/// What was observed, in a word each.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<&'static str>>>);

impl Events {
    fn seen(&self, what: &str) -> usize {
        self.0.lock().expect("a list").iter().filter(|event| **event == what).count()
    }
}

/// One that tries again soon, and what is observed of it.
fn reconnect() -> (Reconnect, Events) {
    let events = Events::default();
    let list = Arc::clone(&events.0);
    let reconnect = Reconnect::new()
        .with_delays(Duration::from_millis(1), Duration::from_millis(20))
        .with_seed(7)
        .with_observer(move |event| {
            assert!(event.to_string().len() > 10, "{event:?}");
            list.lock().expect("a list").push(match event {
                ConnectionEvent::Lost { .. } => "lost",
                ConnectionEvent::AttemptFailed { .. } => "failed",
                ConnectionEvent::Reconnected { .. } => "again",
                ConnectionEvent::GaveUp { .. } => "given up",
                _ => "something new",
            });
        });
    (reconnect, events)
}

#[track_caller]
fn connect(clients: ClientSetup, site: &Site, config: &ClientConfig) -> Box<dyn ClientUnderTest> {
    clients.connect(&site.endpoint, config).unwrap_or_else(|error| panic!("{error}"))
}

/// A server that ends well and its successor look like a pause, on one connection and on several.
pub fn a_restarted_server_is_a_pause(clients: ClientSetup, servers: Setup) {
    for connections in [1, 3] {
        let (site, disk) = (Site::new(clients), Volatile::new(SIZE as usize));
        let (reconnect, events) = reconnect();
        let config = ClientConfig::new().with_connections(connections).with_reconnect(reconnect);
        let mut server = site.serve(servers, disk.life());
        let client = connect(clients, &site, &config);
        for round in 0..2 {
            let data = Pattern(round).bytes(0, 100_000);
            client.write(512, data.clone(), Flags::FUA).expect("a write");
            server.shut_down();
            server.wait_for_the_end();
            server = site.serve(servers, disk.life());
            for _ in 0..connections {
                let found = client.read(512, data.len(), Flags::empty()).expect("a read");
                assert_same_bytes(&found, &data, "what was written before");
            }
        }
        assert!(events.seen("lost") >= 2 && events.seen("again") >= 2, "{:?}", events.0);
        assert_eq!(events.seen("given up"), 0);
        client.flush().expect("everything was written through");
        drop(client);
        server.stop();
    }
}

/// What is in flight when a connection is lost is answered by the next server.
pub fn requests_in_flight_are_sent_again(clients: ClientSetup, servers: Setup) {
    for way in Way::CONCURRENT {
        let (site, disk) = (Site::new(clients), Disk::new(SIZE));
        let (reconnect, _) = reconnect();
        let config = ClientConfig::new().with_max_in_flight(3).with_reconnect(reconnect);
        let drain = ServerConfig::new().with_drain_timeout(Duration::from_millis(50));
        let mut first = site.serve_with(servers, way.of(&disk), drain);
        let client = connect(clients, &site, &config);
        disk.gate.close();
        let write = client.start_write(0, vec![5; 4096], Flags::empty());
        let read = client.start_read(8192, vec![9; 512], Flags::empty());
        disk.gate.wait_for(2);
        first.shut_down();
        let later = client.start_read(Gate::END, vec![9; 512], Flags::empty());
        let second = site.serve(servers, way.of(&disk));
        assert_eq!(later.wait().0, [0; 512]);
        disk.gate.open();
        write.wait().1.expect("it is sent again");
        let (found, result) = read.wait();
        result.expect("it is sent again");
        assert_eq!(found, [0; 512]);
        assert_eq!(client.read(0, 4096, Flags::empty()).expect("a read"), vec![5; 4096]);
        first.wait_for_the_end();
        drop(client);
        second.stop();
    }
}

/// Changes that were acknowledged and not flushed are reported once by each handle of the client.
pub fn a_flush_reports_what_a_crash_may_have_lost(clients: ClientSetup, servers: Setup) {
    let (site, disk) = (Site::new(clients), Volatile::new(SIZE as usize));
    let (reconnect, _) = reconnect();
    let config = ClientConfig::new().with_reconnect(reconnect);
    let mut server = site.serve(servers, disk.life());
    let client = connect(clients, &site, &config);
    let other = client.again();
    client.write(0, vec![1; 512], Flags::empty()).expect("a write");
    client.flush().expect("nothing was lost");
    client.write(512, vec![2; 512], Flags::empty()).expect("a write");
    client.write(1024, vec![3; 1024], Flags::FUA).expect("a write");
    client.write_zeroes(4096, 4096, Flags::empty()).expect("zeroes");
    server.shut_down();
    server.wait_for_the_end();
    disk.crash();
    server = site.serve(servers, disk.life());
    for handle in [&client, &other] {
        match handle.flush() {
            Err(Error::InDoubt { requests, bytes, .. }) => {
                assert_eq!((requests, bytes), (2, 512 + 4096));
            }
            result => panic!("{result:?}"),
        }
        handle.flush().expect("it was reported");
    }
    client.again().flush().expect("it was reported before there was this one");
    let found = client.read(0, 2048, Flags::empty()).expect("a read");
    let expected = [vec![1; 512], vec![0; 512], vec![3; 1024]].concat();
    assert_same_bytes(&found, &expected, "what was flushed, and what was written through");
    drop((client, other));
    server.stop();
}

/// With kept writes a crash loses nothing, whatever the server had in its cache.
pub fn kept_writes_survive_a_crash(clients: ClientSetup, servers: Setup) {
    for connections in [1, 3] {
        let (site, disk) = (Site::new(clients), Volatile::new(SIZE as usize));
        let (reconnect, _) = reconnect();
        // Less than what is written: it flushes by itself.
        let reconnect = reconnect.with_kept_writes(64 << 10);
        let config = ClientConfig::new().with_connections(connections).with_reconnect(reconnect);
        let mut server = site.serve(servers, disk.life());
        let client = connect(clients, &site, &config);
        for round in 0..2 {
            let data = Pattern(round).bytes(0, 200_000);
            for (index, piece) in data.chunks(10_000).enumerate() {
                let offset = index as u64 * 10_000;
                client.write(offset, piece.to_vec(), Flags::empty()).expect("a write");
            }
            client.write(500, vec![7; 1000], Flags::FUA).expect("a write");
            client.write_zeroes(1000, 1000, Flags::empty()).expect("zeroes");
            server.shut_down();
            server.wait_for_the_end();
            disk.crash();
            server = site.serve(servers, disk.life());
            let found = client.read(0, data.len(), Flags::empty()).expect("a read");
            let expected = [&data[..500], &[7; 500], &[0; 1000], &data[2000..]].concat();
            assert_same_bytes(&found, &expected, "what was acknowledged");
        }
        client.flush().expect("nothing is in doubt");
        drop(client);
        server.stop();
    }
}

/// A server that takes fewer connections than before gets all requests all the same, over those that it takes: what was in
/// flight, what was submitted while there was no server, and what comes later.
pub fn requests_go_on_by_the_connections_that_there_are(clients: ClientSetup, servers: Setup) {
    for (fewer, kept, statistics) in [(2, false, true), (3, true, false)] {
        let (site, disk) = (Site::new(clients), Disk::new(SIZE));
        let (reconnect, events) = reconnect();
        // Nothing ends but by an answer.
        let mut reconnect = reconnect.with_max_outage(None);
        if kept {
            reconnect = reconnect.with_kept_writes(64 << 10);
        }
        let config = ClientConfig::new()
            .with_connections(4)
            .with_statistics(statistics)
            .with_request_timeout(Some(Duration::from_secs(60)))
            .with_reconnect(reconnect);
        let drain = ServerConfig::new().with_drain_timeout(Duration::from_millis(50));
        let mut first = site.serve_with(servers, Way::Async.of(&disk), drain);
        let client = connect(clients, &site, &config);
        disk.gate.close();
        let request = |index: u64| match index % 3 {
            0 => client.start_read(index * 512, vec![9; 512], Flags::empty()),
            _ => client.start_write(index * 512, vec![index as u8; 512], Flags::empty()),
        };
        let mut requests: Vec<_> = (0..12).map(request).collect();
        disk.gate.wait_for(12);
        first.shut_down();
        first.wait_for_the_end();
        requests.extend((12..24).map(request));
        let few = ServerConfig::new()
            .with_max_connections(fewer)
            .with_admission_timeout(Duration::from_millis(1));
        let second = site.serve_with(servers, Way::Async.of(&disk), few);
        disk.gate.open();
        for (index, request) in requests.into_iter().enumerate() {
            let (found, result) = request.wait();
            result.unwrap_or_else(|error| panic!("request {index}: {error}"));
            assert!(index % 3 != 0 || found == [0; 512], "request {index}");
        }
        for index in 0..24_u64 {
            let expected = if index % 3 == 0 { 0 } else { index as u8 };
            let found = client.read(index * 512, 512, Flags::empty()).expect("a read");
            assert_eq!(found, vec![expected; 512], "{index}");
        }
        client.flush().expect("nothing was acknowledged before");
        assert_eq!(events.seen("given up"), 0);
        drop(client);
        second.stop();
    }
}

/// Requests are not sent to another export than the one that was entered.
pub fn another_export_is_not_written_to(clients: ClientSetup, servers: Setup) {
    let memory = |size| Memory::new(size).expect("it is small");
    let site = Site::new(clients);
    let (reconnect, events) = reconnect();
    let mut server = site.serve(servers, memory(SIZE));
    let client = connect(clients, &site, &ClientConfig::new().with_reconnect(reconnect));
    client.write(0, vec![1; 512], Flags::FUA).expect("a write");
    server.shut_down();
    server.wait_for_the_end();
    let server = site.serve(servers, memory(2 * SIZE));
    let error = client.write(0, vec![2; 512], Flags::empty()).expect_err("it is another export");
    match &error {
        Error::Lost { reason: LostReason::GaveUp(GaveUp::Changed { what, .. }), .. } => {
            assert!(what.contains("2097152"), "{error}");
        }
        _ => panic!("{error}"),
    }
    assert!(!client.is_connected());
    assert_eq!((events.seen("again"), events.seen("given up")), (0, 1));
    let fresh = clients.client(&server);
    assert_eq!(fresh.read(0, 512, Flags::empty()).expect("a read"), vec![0; 512]);
    drop((client, fresh));
    server.stop();
}

/// A client gives up after so many attempts, or so long an outage, and says what had been sent.
pub fn a_client_gives_up_within_its_bounds(clients: ClientSetup, servers: Setup) {
    let bounds: [fn(Reconnect) -> Reconnect; 2] = [
        |reconnect| reconnect.with_max_attempts(Some(3)).with_max_outage(None),
        |reconnect| reconnect.with_max_outage(Some(Duration::from_millis(50))),
    ];
    for (index, bound) in bounds.into_iter().enumerate() {
        let (site, disk) = (Site::new(clients), Disk::new(SIZE));
        let (reconnect, events) = reconnect();
        let config = ClientConfig::new().with_max_in_flight(1).with_reconnect(bound(reconnect));
        let drain = ServerConfig::new().with_drain_timeout(Duration::from_millis(50));
        let mut server = site.serve_with(servers, Way::Workers.of(&disk), drain);
        let client = connect(clients, &site, &config);
        disk.gate.close();
        let requests =
            [0, 4096].map(|offset| client.start_write(offset, vec![1; 512], Flags::empty()));
        disk.gate.wait_for(1);
        server.shut_down();
        let refusing = site.refuse();
        for (request, was_sent) in requests.into_iter().zip([true, false]) {
            match request.wait().1 {
                Err(Error::Lost { sent, reason: LostReason::GaveUp(gave_up), .. }) => {
                    assert_eq!(sent, was_sent);
                    match (index, gave_up) {
                        (0, GaveUp::Attempts { attempts: 3, .. }) | (1, GaveUp::Outage { .. }) => {}
                        (_, other) => panic!("{other}"),
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        let later = client.flush().expect_err("it gave up");
        assert!(matches!(later, Error::Lost { sent: false, .. }), "{later}");
        assert!(!client.is_connected());
        assert_eq!((events.seen("lost"), events.seen("given up")), (1, 1));
        disk.gate.open();
        server.wait_for_the_end();
        drop(refusing);
    }
}

/// A request waits for a new connection within its own deadline.
pub fn a_request_waits_for_a_connection_within_its_deadline(clients: ClientSetup, servers: Setup) {
    let (site, disk) = (Site::new(clients), Volatile::new(SIZE as usize));
    let (reconnect, _) = reconnect();
    let config = ClientConfig::new()
        .with_request_timeout(Some(Duration::from_millis(100)))
        .with_reconnect(reconnect);
    let mut server = site.serve(servers, disk.life());
    let client = connect(clients, &site, &config);
    server.shut_down();
    server.wait_for_the_end();
    let refusing = site.refuse();
    // Where callers drive, the first one finds out that the server is gone, and may have been sent before.
    let error = client.write(0, vec![1; 512], Flags::empty()).expect_err("there is no server");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    let error = client.write(0, vec![1; 512], Flags::empty()).expect_err("there is no server");
    assert!(matches!(error, Error::TimedOut { sent: false, .. }), "{error}");
    drop(refusing);
    let server = site.serve(servers, disk.life());
    // On a busy machine more may time out.
    wait_until("a read is answered in time", SOON, || {
        match client.read(0, 512, Flags::empty()) {
            Ok(found) => found == [0; 512][..],
            Err(Error::TimedOut { .. }) => false,
            Err(error) => panic!("{error}"),
        }
    });
    drop(client);
    server.stop();
}

/// A caller that gives up a reconnecting client does not wait for a new connection.
pub fn giving_up_a_reconnecting_client_ends_at_once(clients: ClientSetup, servers: Setup) {
    let (site, disk) = (Site::new(clients), Volatile::new(SIZE as usize));
    let (reconnect, events) = reconnect();
    // Nothing but the client's own will ends it.
    let reconnect = reconnect.with_max_outage(None);
    let config = ClientConfig::new().with_reconnect(reconnect);
    let mut server = site.serve(servers, disk.life());
    let [dropped, disconnected, abandoned] =
        core::array::from_fn(|_| connect(clients, &site, &config));
    server.shut_down();
    // Before that it may still carry something out.
    server.wait_for_the_end();
    let refusing = site.refuse();
    for (index, client) in [&dropped, &disconnected, &abandoned].into_iter().enumerate() {
        let write = client.start_write(0, vec![index as u8 + 1; 512], Flags::empty());
        // Where callers drive, nothing happens otherwise.
        let config = ClientConfig::new();
        let _refused = clients.connect(&site.endpoint, &config).err().expect("there is no server");
        drop(write);
    }
    disconnected.disconnect();
    let error = disconnected.flush().expect_err("it has disconnected");
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    drop(dropped);
    drop(refusing);
    let server = site.serve(servers, disk.life());
    let found = abandoned.read(0, 512, Flags::empty()).expect("a read");
    assert_eq!(found, [0; 512][..], "what was given up is not sent");
    assert!(events.seen("given up") == 0);
    drop((abandoned, disconnected));
    server.stop();
}
