//! Servers that end under their clients.

use std::time::Duration;

use nbd_engine::client::{Error, Flags, LostReason, ClientConfig};
use nbd_engine::export::ExportMap;
use nbd_engine::proto::wire::ErrorCode;
use nbd_engine::server::ServerConfig;
use nbd_testkit::process::wait_until;

use crate::exports::{Disk, Gate, Way};
use crate::{ClientSetup, SOON, Setup};

/// A server that shuts down answers what is in flight, and refuses what comes later: the client takes no more requests,
/// and leaves softly.
pub fn a_server_that_shuts_down_answers_what_is_in_flight(clients: ClientSetup, servers: Setup) {
    for way in Way::CONCURRENT {
        let disk = Disk::new(1 << 20);
        disk.gate.close();
        let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
        // The drain does not end before the scenario lets it.
        let config = ServerConfig::new().with_drain_timeout(Duration::from_secs(3600));
        let mut server = servers.serve_with(exports, config);
        let client = clients.client(&server);
        let read = client.start_read(0, vec![9; 512], Flags::empty());
        let write = client.start_write(4096, vec![1; 512], Flags::empty());
        disk.gate.wait_for(2);
        server.shut_down();

        // What the connection was about to do when it was told may still be done.
        let mut refused = None;
        wait_until("a later request is refused", SOON, || {
            refused = client.read(Gate::END, 512, Flags::empty()).err();
            refused.is_some()
        });
        let refused = refused.expect("it was waited for");
        match &refused {
            Error::Command { error, .. } => assert_eq!(error.code, ErrorCode::ESHUTDOWN),
            Error::Lost { reason: LostReason::ShuttingDown, .. } => {}
            _ => panic!("{refused}"),
        }
        assert!(refused.is_transient(), "{refused}");
        let later = client.flush().expect_err("the server shuts down");
        assert!(
            matches!(later, Error::Lost { sent: false, reason: LostReason::ShuttingDown, .. }),
            "{later}"
        );
        assert!(!client.is_connected());
        assert!(!read.is_done() && !write.is_done());

        disk.gate.open();
        write.wait().1.expect("it was in flight");
        let (found, result) = read.wait();
        result.expect("it was in flight");
        assert_eq!(found, [0; 512]);
        server.wait_for_the_end();
    }
}

/// A connection that is lost fails all its requests, and says of each whether the server may have seen it.
pub fn a_connection_that_is_lost_says_what_was_sent(clients: ClientSetup, servers: Setup) {
    for way in Way::CONCURRENT {
        let config = ServerConfig::new().with_drain_timeout(Duration::from_millis(100));
        let disk = Disk::new(1 << 20);
        disk.gate.close();
        let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
        let mut server = servers.serve_with(exports, config);
        let config = ClientConfig::new().with_max_in_flight(2);
        let client = clients.connect(server.endpoint(), &config).expect("the server is there");
        let requests = [0, 4096, 8192, 12288]
            .map(|offset| client.start_write(offset, vec![1; 512], Flags::empty()));
        disk.gate.wait_for(2);
        server.shut_down();
        for (request, was_sent) in requests.into_iter().zip([true, true, false, false]) {
            let (buffer, result) = request.wait();
            assert_eq!(buffer, [1; 512], "it comes back");
            match result {
                Err(Error::Lost { sent, .. }) => assert_eq!(sent, was_sent),
                other => panic!("{other:?}"),
            }
        }
        let later = client.read(0, 512, Flags::empty()).expect_err("the connection is lost");
        assert!(matches!(later, Error::Lost { sent: false, .. }), "{later}");
        assert!(!client.is_connected());
        disk.gate.open();
        server.wait_for_the_end();
    }
}
