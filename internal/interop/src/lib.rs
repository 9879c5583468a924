//! Helpers for the black-box tests of `nbd serve`.
//!
//! The tests themselves are in `tests/`: `conformance_*` drive the server with the scripted client of
//! `nbd-testkit` (each test names the requirement that it shows), `peers_*` with the clients of others.

pub mod certificates;
pub mod gnutls;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nbd_testkit::Pattern;
use nbd_testkit::raw::{Mode, Opt, RawClient};
use nbd_testkit::server::{NbdServe, Setup};
use rustls::SupportedProtocolVersion;

use certificates::Certificates;

/// 2^20.
pub const MIB: u64 = 1 << 20;

/// Every form that requests and replies can take.
pub const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

/// Runs a script on the default export in each mode, one connection after the other, and checks that each
/// session ends clean.
#[track_caller]
pub fn in_each_mode(server: &NbdServe, script: impl FnMut(&mut RawClient)) {
    in_modes(&MODES, server, script);
}

/// The same for some modes.
#[track_caller]
pub fn in_modes(modes: &[Mode], server: &NbdServe, mut script: impl FnMut(&mut RawClient)) {
    for &mode in modes {
        // Shown if the script panics: it tells which round that was.
        eprintln!("in {mode:?} mode");
        let mut client = RawClient::go_in(mode, server.endpoint());
        script(&mut client);
        client.finish();
    }
}

/// The server must serve a new client as if nothing had happened (S-ROB-01).
#[track_caller]
pub fn assert_serves(server: &NbdServe) {
    let mut client = RawClient::go_simple(server.endpoint());
    let size = client.export().size.min(4096);
    assert_eq!(client.read(0, size).len() as u64, size);
    client.finish();
}

/// A client that has upgraded to TLS, and trusts and shows what is in the folder: ready for options.
#[track_caller]
pub fn over_tls(
    server: &NbdServe,
    certificates: &Certificates,
    version: &'static SupportedProtocolVersion,
) -> RawClient {
    let mut client = RawClient::negotiate(server.endpoint());
    client.option(Opt::STARTTLS, &[]).expect("S-TLS-F-04, S-TLS-S-03: STARTTLS is acknowledged");
    let started = client.wire().start_tls(certificates.scripted(version), "localhost");
    started.expect("S-TLS-03: the handshake follows the acknowledgement");
    client
}

/// The same as [`assert_serves`] for a server that requires TLS.
#[track_caller]
pub fn assert_serves_over_tls(server: &NbdServe, certificates: &Certificates) {
    let mut client = over_tls(server, certificates, &rustls::version::TLS13);
    client.go("", &[]).expect("the default export is there");
    assert_eq!(client.read(0, 512).len(), 512);
    client.finish();
}

/// The usual server: an unnamed export of 1 MiB and one named `other` of 2 MiB, both in memory.
#[track_caller]
pub fn serve_two(setup: Setup) -> NbdServe {
    setup.serve().args(["memory:1M", "other=memory:2M"]).start()
}

/// Writes a sparse image: pieces of data at various distances, most of it holes; gives how many bytes are data.
pub fn sparse_image(path: &Path, size: u64) -> u64 {
    let file = File::create(path).expect("the folder is the test's own");
    file.set_len(size).expect("sparse files are supported");
    let mut data = 0;
    for at in (MIB..size - MIB).step_by(3 * MIB as usize) {
        let length = 64 << 10 << (at / MIB % 4);
        file.write_all_at(&Pattern(at).bytes(at, length), at).expect("there is room");
        data += length as u64;
    }
    data
}
