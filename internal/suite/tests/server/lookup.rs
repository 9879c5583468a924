//! Looking exports up: futures that take their time, refuse in words, panic, and know which client asks.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use nbd_blocking::client::ClientConfig;
use nbd_blocking::{Client, ServerConfig};
use nbd_engine::export::{
    ClientInfo, Export, ExportEntry, Exports, ListedExport, Lookup, Memory, PeerAddr, Purpose,
    Refusal,
};
use nbd_suite::Served;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Opt, RawClient, Rep, Wire, flag, info_data, some_attempt, unless_late};
use nbd_testkit::{Random, SOON, cases};

/// What a look-up waits for.
#[derive(Debug, Default)]
struct Gate {
    open: bool,
    waiting: usize,
    wakers: Vec<Waker>,
}

/// Exports whose names say what becomes of a look-up.
#[derive(Clone, Debug, Default)]
struct Script {
    gate: Arc<Mutex<Gate>>,
    asked: Arc<Mutex<Vec<(String, Purpose, ClientInfo)>>>,
}

/// Counts a look-up for as long as it is there.
struct Waiting(Arc<Mutex<Gate>>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.lock().unwrap().waiting -= 1;
    }
}

impl Script {
    async fn pass(&self) {
        self.gate.lock().unwrap().waiting += 1;
        let _waiting = Waiting(Arc::clone(&self.gate));
        poll_fn(|cx| {
            let mut gate = self.gate.lock().unwrap();
            if gate.open {
                return Poll::Ready(());
            }
            gate.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn waiting(&self) -> usize {
        self.gate.lock().unwrap().waiting
    }

    fn open(&self) {
        let wakers = {
            let mut gate = self.gate.lock().unwrap();
            gate.open = true;
            core::mem::take(&mut gate.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

fn disk(name: &str) -> ExportEntry {
    ExportEntry::new(name, Memory::new(4096).unwrap()).unwrap()
}

/// An export that panics when it is looked at.
struct Shapeless;

impl Export for Shapeless {
    fn size(&self) -> u64 {
        panic!("an export that panics, which is part of this test")
    }

    fn read(&self, _buffer: &mut [u8], _offset: u64) -> nbd_engine::export::Result<()> {
        Ok(())
    }
}

impl Exports for Script {
    async fn list(&self, client: &ClientInfo) -> Result<Vec<ListedExport>, Refusal> {
        match client.connection {
            0 => Err(Refusal::policy("the first client sees nothing")),
            1 => Err(Refusal::shutting_down("not now")),
            2 => Err(Refusal::Unknown),
            3 => panic!("a list that panics, which is part of this test"),
            number => Ok(vec![ListedExport::new(format!("for {number}"), "a text").unwrap()]),
        }
    }

    async fn find(&self, lookup: &Lookup<'_>) -> Result<ExportEntry, Refusal> {
        let asked = (lookup.name.to_owned(), lookup.purpose, lookup.client.clone());
        self.asked.lock().unwrap().push(asked);
        match lookup.name {
            "disk" => Ok(disk("canonical")),
            "slow" => {
                self.pass().await;
                Ok(disk("slow"))
            }
            "private" => Err(Refusal::policy(format!("'{}' is not for you", lookup.name))),
            "closing" => Err(Refusal::shutting_down("it is being taken away")),
            "shapeless" => Ok(ExportEntry::new("shapeless", Shapeless).unwrap()),
            "panic" => panic!("a look-up that panics, which is part of this test"),
            _ => Err(Refusal::Unknown),
        }
    }
}

/// What a client is told of a panic.
const FAILED: &str = "the server failed to look that up: its log says more";

#[test]
fn a_refusal_reaches_the_client_with_its_text_and_the_client_may_go_on() {
    let served = Served::start(Script::default(), ServerConfig::default());
    let mut client = RawClient::negotiate(served.endpoint());
    client.structured_reply().unwrap();
    for (name, code, text) in [
        ("private", Rep::ERR_POLICY, "'private' is not for you"),
        ("closing", Rep::ERR_SHUTDOWN, "it is being taken away"),
        ("other", Rep::ERR_UNKNOWN, "there is no such export"),
        ("panic", Rep::ERR_POLICY, FAILED),
        ("shapeless", Rep::ERR_POLICY, FAILED),
    ] {
        let refused = client.info(name, &[]).unwrap_err();
        assert_eq!((refused.code, &*refused.text), (code, text));
        let refused = client.go(name, &[]).unwrap_err();
        assert_eq!((refused.code, &*refused.text), (code, text));
        let refused = client.list_meta_context(name, &[]).unwrap_err();
        assert_eq!((refused.code, &*refused.text), (code, text));
        let refused = client.set_meta_context(name, &["base:allocation"]).unwrap_err();
        assert_eq!((refused.code, &*refused.text), (code, text));
    }
    assert_eq!(client.go("disk", &[]).unwrap().size, 4096);
    client.finish();
}

#[test]
fn a_list_may_be_refused_and_depends_on_the_client() {
    let served = Served::start(Script::default(), ServerConfig::default());
    for expected in [
        Err((Rep::ERR_POLICY, "the first client sees nothing")),
        Err((Rep::ERR_SHUTDOWN, "not now")),
        Err((Rep::ERR_UNKNOWN, "there is no such export")),
        Err((Rep::ERR_POLICY, FAILED)),
        Ok(vec![("for 4".to_owned(), "a text".to_owned())]),
    ] {
        let mut client = RawClient::negotiate(served.endpoint());
        let listed = client.list();
        let listed = listed.as_ref().map_err(|error| (error.code, &*error.text));
        assert_eq!(listed, expected.as_ref().map_err(|error| *error));
        client.go("disk", &[]).unwrap();
        client.finish();
    }
}

#[test]
fn a_lookup_learns_which_client_asks_and_what_for() {
    let script = Script::default();
    let served = Served::start(script.clone(), ServerConfig::default());
    let mut client = RawClient::negotiate(served.endpoint());
    client.structured_reply().unwrap();
    client.info("disk", &[]).unwrap();
    client.set_meta_context("disk", &["base:allocation"]).unwrap();
    client.go("disk", &[]).unwrap();
    client.finish();
    RawClient::negotiate(served.endpoint()).export_name("disk");
    let asked = script.asked.lock().unwrap();
    let purposes: Vec<_> = asked.iter().map(|asked| asked.1).collect();
    let enter = Purpose::Enter;
    assert_eq!(purposes, [Purpose::Info, Purpose::MetaContext, enter, enter]);
    let numbers: Vec<_> = asked.iter().map(|asked| asked.2.connection).collect();
    assert_eq!(numbers, [0, 0, 0, 1]);
    for (name, _, client) in asked.iter() {
        assert_eq!(name, "disk");
        assert!(matches!(client.peer, PeerAddr::Unix(_)), "{client:?}");
        #[cfg(target_os = "linux")]
        assert!(
            matches!(client.peer, PeerAddr::Unix(Some(peer)) if peer.pid.unsigned_abs() == std::process::id())
        );
        assert_eq!(client.tls, None);
    }
}

#[test]
fn a_slow_lookup_holds_up_its_own_client_alone() {
    let script = Script::default();
    let served = Served::start(script.clone(), ServerConfig::default());
    let mut slow = RawClient::negotiate(served.endpoint());
    slow.send_option(Opt::GO, &info_data("slow", &[]));
    wait_until("the look-up has begun", SOON, || script.waiting() == 1);
    let mut other = RawClient::negotiate(served.endpoint());
    assert_eq!(other.go("disk", &[]).unwrap().size, 4096);
    other.finish();
    script.open();
    assert_eq!(slow.read_go_replies("slow").unwrap().size, 4096);
    slow.finish();
}

#[test]
fn a_lookup_that_is_not_ready_in_time_is_dropped_with_its_connection() {
    for oldstyle in [false, true] {
        let script = Script::default();
        let limit = Duration::from_millis(50);
        let config = ServerConfig::new().with_handshake_timeout(limit);
        let served = Served::start(script.clone(), config);
        let oldstyle = oldstyle.then(|| served.listen_oldstyle("slow"));
        let enter = || match &oldstyle {
            Some(endpoint) => RawClient::connect(endpoint),
            None => {
                let mut client = RawClient::negotiate(served.endpoint());
                client.send_option(Opt::GO, &info_data("slow", &[]));
                client
            }
        };
        some_attempt(|| {
            let mut client = unless_late(limit, enter)?;
            client.wire().expect_eof();
            wait_until("the connection is closed", SOON, || served.server().connections() == 0);
            assert_eq!(script.waiting(), 0);
            // On a busy machine the time may be over before the look-up begins.
            let begun = !script.asked.lock().unwrap().is_empty();
            begun.then_some(())
        });
    }
}

#[test]
fn a_shutdown_does_not_wait_for_lookups() {
    for oldstyle in [false, true] {
        let script = Script::default();
        let served = Served::start(script.clone(), ServerConfig::default());
        let mut wire = if oldstyle {
            Wire::connect(&served.listen_oldstyle("slow"))
        } else {
            let mut wire = Wire::connect(served.endpoint());
            wire.recv(18, "greeting");
            let option = nbd_testkit::raw::option_bytes(Opt::GO, &info_data("slow", &[]));
            wire.send(&[&[0, 0, 0, 3][..], &option].concat());
            wire
        };
        wait_until("the look-up has begun", SOON, || script.waiting() == 1);
        served.server().shut_down();
        wire.drain_to_eof();
        served.server().wait();
        assert_eq!(script.waiting(), 0);
    }
}

#[test]
fn an_oldstyle_client_gets_no_refused_export() {
    for name in ["private", "closing", "panic", "other"] {
        let served = Served::start(Script::default(), ServerConfig::default());
        let mut wire = Wire::connect(&served.listen_oldstyle(name));
        wire.expect_eof();
    }
}

/// A disk that is made for each connection.
struct Scratch;

impl Exports for Scratch {
    async fn list(&self, _client: &ClientInfo) -> Result<Vec<ListedExport>, Refusal> {
        Ok(Vec::new())
    }

    async fn find(&self, lookup: &Lookup<'_>) -> Result<ExportEntry, Refusal> {
        let entry = ExportEntry::new(lookup.name, Memory::new(1 << 20).unwrap())?;
        Ok(if lookup.name == "several" { entry } else { entry.without_multi_conn() })
    }
}

#[test]
fn a_disk_of_one_connection_has_all_that_a_client_of_several_writes() {
    let served = Served::start(Scratch, ServerConfig::default());
    for (name, allowed) in [("several", true), ("", false)] {
        let mut client = RawClient::negotiate(served.endpoint());
        let told = client.info(name, &[]).unwrap();
        assert_eq!(told.flags & flag::CAN_MULTI_CONN != 0, allowed);
        client.go(name, &[]).unwrap();
        assert_eq!(client.has_flag(flag::CAN_MULTI_CONN), allowed);
        client.finish();
    }
    let config = ClientConfig::new().with_connections(4);
    cases(20, |random: &mut Random| {
        let uri = served.endpoint().uri("").parse().unwrap();
        let client = Client::connect_with(&uri, &config).unwrap();
        let mut disk = vec![0; 1 << 20];
        for number in 1..=64 {
            let length = 1 + random.below(8192);
            let offset = random.below((1 << 20) - length);
            let data = vec![number; length as usize];
            client.write_all_at(&data, offset).unwrap();
            disk[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        client.flush().unwrap();
        for _ in 0..64 {
            let length = 1 + random.below(8192);
            let offset = random.below((1 << 20) - length);
            let mut found = vec![0; length as usize];
            client.read_exact_at(&mut found, offset).unwrap();
            assert!(found == disk[offset as usize..][..found.len()], "{length} bytes at {offset}");
        }
        client.disconnect();
    });
}
