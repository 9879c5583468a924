//! Deadlines. That they are not too early is shown by what is still alive when something else has ended by one.

use std::time::Duration;

use nbd_engine::export::ExportMap;
use nbd_engine::server::Settings;
use nbd_testkit::raw::{Mode, Opt, RawClient, Request, magic};

use crate::Setup;
use crate::exports::{Disk, Gate, Way};

/// Clients that do not choose an export in time are sent away, whatever they do instead; those that have chosen stay.
pub fn the_handshake_has_a_deadline(setup: Setup) {
    let mut settings = Settings::default();
    settings.handshake_timeout = Duration::from_secs(1);
    let disk = Disk::new(1 << 20);
    let exports = ExportMap::new().with_handle("", None, Way::Workers.of(&disk));
    let server = setup.serve_with(exports, settings);
    let mut chosen = server.client(Mode::Simple);

    let silent = RawClient::connect(server.endpoint());
    let mut greeted = RawClient::connect(server.endpoint());
    greeted.read_greeting();
    let mut haggling = RawClient::negotiate(server.endpoint());
    haggling.list().expect("listing is allowed");
    let mut halfway = RawClient::negotiate(server.endpoint());
    halfway.send_option_header(magic::IHAVEOPT, Opt::GO, 100);
    halfway.wire().send(&[0; 50]);
    for mut late in [silent, greeted, haggling, halfway] {
        late.wire().drain_to_eof();
    }

    // The first of all is older than those that were too late.
    chosen.read(0, 512);
    chosen.finish();
    server.stop();
}

/// What takes longer than the drain may take is given up, the connection closed, and the server has shut down, even
/// though the disk still works on it.
pub fn the_drain_has_a_deadline(setup: Setup) {
    for way in Way::CONCURRENT {
        let mut settings = Settings::default();
        settings.drain_timeout = Duration::from_millis(300);
        let disk = Disk::new(1 << 20);
        disk.gate.close();
        let exports = ExportMap::new().with_handle("", None, way.of(&disk));
        let mut server = setup.serve_with(exports, settings);
        let mut client = server.client(Mode::Simple);
        client.send(&Request::read(0, 512));
        disk.gate.wait_for(1);
        server.shut_down();
        client.wire().expect_eof();
        server.wait_for_the_end();
        disk.gate.open();
    }
}

/// Replies that nobody reads are given up, too.
pub fn a_drain_does_not_wait_for_clients_that_do_not_read(setup: Setup) {
    let mut settings = Settings::default();
    settings.drain_timeout = Duration::from_millis(300);
    let disk = Disk::new(4 << 20);
    let exports = ExportMap::new().with_handle("", None, Way::Workers.of(&disk));
    let mut server = setup.serve_with(exports, settings);
    let mut client = server.client(Mode::Simple);
    client.send_all(&vec![Request::read(Gate::END, 1 << 20); 64]);
    client.wire().recv(1000, "the beginning of a reply");
    server.shut_down();
    server.wait_for_the_end();
    client.wire().drain_to_eof();
}
