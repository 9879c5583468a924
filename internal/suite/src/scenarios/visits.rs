//! What exports learn of their clients.

use std::sync::{Arc, Mutex};

use nbd_engine::export::{CloseReason, ExportEntry, ExportMap, Memory, PeerAddr};
use nbd_engine::server::ServerConfig;
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{Mode, RawClient};

use crate::{SOON, Setup, Transport};

/// An export learns each client's address or process, that it enters, and how it leaves.
pub fn an_export_learns_which_client_enters_and_how_it_leaves(setup: Setup) {
    let entered = Arc::new(Mutex::new(Vec::new()));
    let left = Arc::new(Mutex::new(Vec::new()));
    let (entering, leaving) = (Arc::clone(&entered), Arc::clone(&left));
    let entry = ExportEntry::new("", Memory::new(4096).expect("it is small"))
        .expect("a short name")
        .on_enter(move |client| entering.lock().expect("no panic").push(client.clone()))
        .on_close(move |client, reason| {
            leaving.lock().expect("no panic").push((client.connection, reason.clone()));
        });
    let exports = ExportMap::new().with_entry(entry);
    let server = setup.serve_with(exports, ServerConfig::default());
    let mut asks = RawClient::negotiate(server.endpoint());
    asks.info("", &[]).expect("the export is there");
    server.client(Mode::Structured).finish();
    wait_until("a client has left", SOON, || left.lock().expect("no panic").len() == 1);
    let mut client = server.client(Mode::Simple);
    client.read(0, 512);
    drop(client);
    wait_until("another has left", SOON, || left.lock().expect("no panic").len() == 2);
    drop(asks);
    server.stop();

    let entered = entered.lock().expect("no panic");
    let left = left.lock().expect("no panic");
    assert_eq!(entered.len(), 2, "asking is not entering");
    for (client, (number, _)) in entered.iter().zip(left.iter()) {
        assert_eq!(client.connection, *number);
        let known = match (setup.transport(), &client.peer) {
            (Transport::Tcp, PeerAddr::Tcp(address)) => address.ip().is_loopback(),
            (Transport::Unix, PeerAddr::Unix(Some(peer))) => {
                peer.pid.unsigned_abs() == std::process::id()
            }
            (Transport::Unix, PeerAddr::Unix(None)) => !cfg!(target_os = "linux"),
            _ => false,
        };
        assert!(known, "{:?}", client.peer);
    }
    let reasons: Vec<_> = left.iter().map(|(_, reason)| reason.clone()).collect();
    assert_eq!(reasons, [CloseReason::Disconnected, CloseReason::Vanished]);
}
