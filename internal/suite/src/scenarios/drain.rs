//! Shutting down.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use nbd_engine::export::{CloseReason, Export, ExportEntry, ExportError, ExportMap, Withdrawal};

use nbd_engine::server::{Ending, Metrics, ServerConfig};
use nbd_testkit::process::wait_until;
use nbd_testkit::raw::{
    Cmd, Errno, Mode, Opt, RawClient, Rep, Request, Wire, info_data, option_bytes, some_attempt,
    unless_late,
};
use nbd_testkit::{cases, own_ip};

use crate::exports::{Disk, Gate, Way};
use crate::{Place, SOON, Setup, Transport};

/// How long a server that shuts down answers clients that have nothing in flight.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(200);

/// Of a server whose drain ends by what its clients do, however busy the machine is.
fn patient() -> ServerConfig {
    ServerConfig::new().with_drain_timeout(Duration::from_secs(3600))
}

/// Requests in flight are finished and answered, later ones are refused, and then the connection ends.
pub fn requests_in_flight_finish_and_later_ones_are_refused(setup: Setup) {
    for way in Way::CONCURRENT {
        let disk = Disk::new(1 << 20);
        disk.gate.close();
        let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
        let mut server = setup.serve_with(exports, patient());
        let modes = [Mode::Simple, Mode::Structured, Mode::Extended];
        let mut clients = modes.map(|mode| server.client(mode));
        for (client, offset) in clients.iter_mut().zip([0, 512, 1024]) {
            let requests = [Request::read(offset, 512), Request::write(8192 + offset, &[7; 512])];
            client.send_all(&requests);
        }
        disk.gate.wait_for(2 * modes.len());
        server.shut_down();
        for client in &mut clients {
            // What the connection was about to do when it was told may still be done.
            wait_until("later requests are refused", SOON, || {
                let late = client.call(&Request::read(Gate::END, 512)).error();
                assert!(matches!(late, None | Some(Errno::ESHUTDOWN)), "{late:?}");
                late.is_some()
            });
            let late = client.call(&Request::write(Gate::END, &[8; 5000]));
            late.expect_error(Errno::ESHUTDOWN);
        }
        disk.gate.open();
        for mut client in clients {
            for reply in client.drain() {
                reply.ok();
            }
            client.wire().expect_eof();
        }
        server.wait_for_the_end();
    }
}

/// Requests in flight are finished and answered, and then the connection ends, without a word about later ones.
pub fn later_requests_are_not_answered_by_a_server_that_hangs_up(setup: Setup) {
    for way in Way::CONCURRENT {
        let disk = Disk::new(1 << 20);
        disk.gate.close();
        let withdrawal = Withdrawal::new();
        let withdrawn = ExportEntry::new("withdrawn", way.of(&disk)).expect("a short name");
        let exports = ExportMap::new()
            .with("", way.of(&disk))
            .expect("a short name")
            .with_entry(withdrawn.with_withdrawal(&withdrawal));
        let config = patient().with_hang_up(true);
        let mut server = setup.serve_with(exports, config);
        let mut clients = ["", "withdrawn"].map(|name| {
            let mut client = RawClient::negotiate(server.endpoint());
            client.go(name, &[]).expect("the export is there");
            client
        });
        for (client, offset) in clients.iter_mut().zip([0, 512]) {
            let requests = [Request::read(offset, 512), Request::write(8192 + offset, &[7; 512])];
            client.send_all(&requests);
        }
        disk.gate.wait_for(4);
        withdrawal.withdraw();
        server.shut_down();
        // Some of these may have been received before the connection learned of it.
        for client in &mut clients {
            for _ in 0..20 {
                let late = Request::write(Gate::END, &[8; 5000]).encode(Mode::Simple, 99);
                let _broken = client.wire().try_send(&late);
            }
        }
        disk.gate.open();
        for mut client in clients {
            let replies = client.drain();
            assert!(replies.len() >= 2, "{way:?}: {} replies", replies.len());
            for reply in replies {
                reply.ok();
            }
            client.wire().expect_eof();
        }
        server.wait_for_the_end();
    }
}

/// A withdrawn export's clients have their requests in flight finished and are sent away, idle or not; the others stay.
pub fn the_clients_of_a_withdrawn_export_are_sent_away_and_others_stay(setup: Setup) {
    for way in Way::CONCURRENT {
        let (disk, other) = (Disk::new(1 << 20), Disk::new(1 << 20));
        disk.gate.close();
        let withdrawal = Withdrawal::new();
        let entry = ExportEntry::new("withdrawn", way.of(&disk)).expect("a short name");
        let stays = ExportEntry::new("stays", way.of(&other)).expect("a short name");
        let exports = ExportMap::new()
            .with_entry(entry.with_withdrawal(&withdrawal))
            .with_entry(stays.with_withdrawal(&Withdrawal::new()));
        let server = setup.serve_with(exports, patient());
        let enter = |name| {
            let mut client = RawClient::negotiate(server.endpoint());
            client.go(name, &[]).expect("the export is there");
            client
        };
        let [mut busy, mut idle] = [(); 2].map(|()| enter("withdrawn"));
        let mut stays = enter("stays");
        let reading = busy.send(&Request::read(0, 512));
        let writing = busy.send(&Request::write(512, &[7; 512]));
        disk.gate.wait_for(2);
        withdrawal.withdraw();
        idle.wire().expect_eof();
        wait_until("later requests are refused", SOON, || {
            let late = busy.call(&Request::read(Gate::END, 512)).error();
            assert!(matches!(late, None | Some(Errno::ESHUTDOWN)), "{late:?}");
            late.is_some()
        });
        disk.gate.open();
        busy.reply_to(reading).ok();
        busy.reply_to(writing).ok();
        busy.wire().expect_eof();
        assert_eq!(stays.read(0, 512).len(), 512);
        // A look-up that still gives it does not keep its client.
        enter("withdrawn").wire().expect_eof();
        stays.finish();
        server.stop();
    }
}

/// What takes an export away from its client.
#[derive(Clone, Copy, Debug)]
enum Cause {
    ShutDown,
    Withdrawn,
    Answered,
}

/// How a client behaves that was told so.
#[derive(Clone, Copy, Debug)]
enum Leaving {
    Disconnects,
    HangsUp,
    Stays,
}

/// An export that says at some time that it goes away.
struct Ends(Arc<AtomicBool>);

impl Export for Ends {
    fn size(&self) -> u64 {
        4096
    }

    fn read(&self, buffer: &mut [u8], _offset: u64) -> Result<(), ExportError> {
        if self.0.load(Ordering::Relaxed) {
            return Err(ExportError::shutting_down("it is over"));
        }
        buffer.fill(0);
        Ok(())
    }
}

/// A client that learns that it has to leave, and does, was sent away: exports and metrics learn that, whoever is faster.
pub fn a_client_that_leaves_when_it_is_told_to_was_sent_away(setup: Setup) {
    for cause in [Cause::ShutDown, Cause::Withdrawn, Cause::Answered] {
        for leaving in [Leaving::Disconnects, Leaving::HangsUp, Leaving::Stays] {
            let (ends, withdrawal, metrics) = (Arc::default(), Withdrawal::new(), Metrics::new());
            let (sender, reasons) = mpsc::channel();
            let entry = ExportEntry::new("", Ends(Arc::clone(&ends))).expect("a short name");
            let entry = entry.with_withdrawal(&withdrawal).on_close(move |_, reason| {
                let _nobody_waits = sender.send(reason.clone());
            });
            let exports = ExportMap::new().with_entry(entry);
            let mut server =
                setup.serve_with(exports, patient().with_metrics(&metrics));
            let mut client = server.client(Mode::Simple);
            client.read(0, 512);
            match cause {
                Cause::ShutDown => server.shut_down(),
                Cause::Withdrawn => withdrawal.withdraw(),
                Cause::Answered => ends.store(true, Ordering::Relaxed),
            }
            let wire = client.wire();
            // By hand, as the server may close at any moment.
            while wire.try_send(&Request::read(0, 512).encode(Mode::Simple, 1)).is_ok() {
                let Some(reply) = wire.recv_or_gone(16, "a reply") else { break };
                if reply[4..8] != [0; 4] {
                    match leaving {
                        Leaving::Disconnects => {
                            let word = Request::new(Cmd::DISC, 0, 0).encode(Mode::Simple, 2);
                            let _closed_already = wire.try_send(&word);
                        }
                        Leaving::HangsUp => wire.half_close(),
                        Leaving::Stays => {}
                    }
                    break;
                }
                if wire.recv_or_gone(512, "data").is_none() {
                    break;
                }
            }
            let what = format!("{cause:?}, {leaving:?}");
            assert_eq!(reasons.recv_timeout(SOON), Ok(CloseReason::ShutDown), "{what}");
            drop(client);
            server.shut_down();
            server.wait_for_the_end();
            let ended = metrics.snapshot().connections.ended;
            let ended = Vec::from_iter(ended.into_iter().filter(|(_, count)| *count > 0));
            assert_eq!(ended, [(Ending::ShutDown, 1)], "{what}");
        }
    }
}

/// A client that was answered, aborts the negotiation, or disconnects, and closes its stream at once has left in order: that
/// the server can't send an answer to that is nobody's fault.
pub fn a_client_that_says_that_it_leaves_need_not_wait_for_an_answer(setup: Setup) {
    cases(8, |random| {
        let metrics = Metrics::new();
        let config = patient().with_metrics(&metrics);
        let exports = ExportMap::new().with("", Ends(Arc::default())).expect("a short name");
        let mut server = setup.serve_with(exports, config);
        let clients = 1 + random.below(5);
        for _ in 0..clients {
            if random.one_in(2) {
                let mut client = RawClient::negotiate(server.endpoint());
                for _ in 0..random.below(3) {
                    assert!(client.go("missing", &[]).is_err());
                }
                // In one piece, after which the stream is closed.
                client.wire().send(&option_bytes(Opt::ABORT, &[]));
            } else {
                let mut client = server.client(Mode::Simple);
                for _ in 0..random.below(3) {
                    client.read(0, 512);
                }
                client.wire().send(&Request::new(Cmd::DISC, 0, 0).encode(Mode::Simple, 2));
            }
        }
        wait_until("all are gone", SOON, || metrics.snapshot().connections.current == 0);
        server.shut_down();
        server.wait_for_the_end();
        let ended = metrics.snapshot().connections.ended;
        let ended = Vec::from_iter(ended.into_iter().filter(|(_, count)| *count > 0));
        assert_eq!(ended, [(Ending::Disconnected, clients)]);
    });
}

/// An export is dropped by the time the server is: what its end has to write, such as an overlay file, is written when the
/// program goes on.
pub fn a_server_that_is_gone_has_dropped_its_exports(setup: Setup) {
    for way in Way::CONCURRENT {
        cases(3, |random| {
            let disk = Disk::new(1 << 20);
            let held = Arc::downgrade(&disk);
            let exports = ExportMap::new().with("", way.of(&disk)).expect("a short name");
            drop(disk);
            let mut server = setup.serve_with(exports, patient());
            let clients = Vec::from_iter((0..random.below(4)).map(|_| {
                let mut client = server.client(Mode::Simple);
                for _ in 0..random.below(20) {
                    client.send(&Request::read(random.below(1 << 19), 512));
                }
                client
            }));
            server.shut_down();
            server.wait_for_the_end();
            drop(server);
            assert!(held.upgrade().is_none(), "{way:?}");
            drop(clients);
        });
    }
}

/// Clients that ask for nothing are sent away, so that a server with idle clients ends.
pub fn idle_clients_are_sent_away(setup: Setup) {
    let disk = Disk::new(1 << 20);
    let exports = ExportMap::new().with("", Way::Async.of(&disk)).expect("a short name");
    let mut server = setup.serve_with(exports, patient());
    let mut clients: Vec<_> = (0..10).map(|_| server.client(Mode::Extended)).collect();
    for client in &mut clients {
        client.read(0, 512);
    }
    server.shut_down();
    for mut client in clients {
        client.wire().expect_eof();
    }
    server.wait_for_the_end();
}

/// A server that nobody came to ends, and to be told so twice does no harm.
pub fn a_server_without_clients_ends(setup: Setup) {
    let mut server = setup.serve_disk();
    server.shut_down();
    server.shut_down();
    server.wait_for_the_end();
}

/// The listener is closed, and the socket's path is gone.
pub fn nobody_connects_after_the_shutdown(setup: Setup) {
    let dir = tempfile::tempdir().expect("a folder for the socket");
    let place = match setup.transport() {
        // Where nobody else listens.
        Transport::Tcp => Place::Addresses(vec![(own_ip(), 0).into()]),
        transport => setup.place(transport, &dir),
    };
    let exports = ExportMap::new().with("", Ends(Arc::default())).expect("a short name");
    let mut server = setup.serve_at(exports, patient(), vec![place], dir);
    server.client(Mode::Simple).finish();
    server.shut_down();
    server.wait_for_the_end();
    let endpoint = server.endpoint();
    Wire::try_connect(endpoint).expect_err("nobody listens");
    if let Some(path) = endpoint.socket_path() {
        assert!(!path.exists(), "the socket's path is left");
    }
}

/// Options are refused, and clients that are about to choose an export don't hold up the end.
pub fn the_option_phase_ends_with_the_shutdown(setup: Setup) {
    some_attempt(|| {
        let mut server = setup.serve_disk();
        let mut negotiating = RawClient::negotiate(server.endpoint());
        negotiating.list().expect("listing is allowed");
        let silent = RawClient::connect(server.endpoint());
        server.wait_for_connections(2);
        let refused = unless_late(SHUTDOWN_GRACE, || {
            server.shut_down();
            // The connection may have been about to answer as before.
            while negotiating.list().is_ok() {}
            assert_eq!(negotiating.option_error(Opt::GO, &info_data("", &[])), Rep::ERR_SHUTDOWN);
        });
        for mut client in [negotiating, silent] {
            client.wire().drain_to_eof();
        }
        server.wait_for_the_end();
        refused
    });
}
