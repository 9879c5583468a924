//! Where a stream is cut must not matter.

use std::thread;
use std::time::Duration;

use nbd_testkit::raw::{
    Cmd, Mode, Opt, RawClient, Request, Wire, cmd_flag, handshake, info_data, meta_data,
    option_bytes,
};
use nbd_testkit::{Endpoint, assert_same_bytes};

use crate::Setup;

/// All that a client sends in a session: flags, options, a write, a read, a refused write, a disconnect.
fn session(mode: Mode) -> Vec<u8> {
    let mut bytes = (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes().to_vec();
    let option = match mode {
        Mode::Simple => None,
        Mode::Structured => Some(Opt::STRUCTURED_REPLY),
        Mode::Extended => Some(Opt::EXTENDED_HEADERS),
    };
    if let Some(option) = option {
        bytes.extend(option_bytes(option, &[]));
        bytes.extend(option_bytes(Opt::SET_META_CONTEXT, &meta_data("", &["base:allocation"])));
    }
    bytes.extend(option_bytes(Opt::GO, &info_data("", &[])));
    let mut requests = vec![
        Request::write(3, b"split"),
        Request::read(0, 10),
        Request::write(u64::MAX - 9, b"nowhere"),
    ];
    if mode == Mode::Extended {
        // Contexts are numbered by the server; whatever the number, the answer is the same each time.
        let status = Request::block_status_of(0, 4096, &[0]);
        requests.push(status.flags(cmd_flag::REQ_ONE));
    }
    requests.push(Request::new(Cmd::DISC, 0, 0));
    for (cookie, request) in requests.iter().enumerate() {
        bytes.extend(request.encode(mode, cookie as u64));
    }
    bytes
}

/// Sends the pieces, each by itself, and gives what came back up to the end of the stream. `expected` is how much that
/// will be.
fn play(endpoint: &Endpoint, pieces: &[&[u8]], expected: Option<usize>) -> Vec<u8> {
    let mut wire = Wire::connect(endpoint);
    for (index, piece) in pieces.iter().enumerate() {
        if index > 0 {
            // Time for the server to take in the first piece; where it has not, this is no test of anything, but no
            // failure either.
            thread::sleep(Duration::from_micros(100));
        }
        wire.send(piece);
    }
    if let Some(length) = expected {
        let answer = wire.recv(length, "a whole session");
        wire.expect_eof();
        return answer;
    }
    let mut answer = Vec::new();
    while let Some(byte) = wire.try_recv(1) {
        answer.extend(byte);
    }
    answer
}

/// However the client's bytes are cut in two, and byte by byte, the server's bytes are the same.
pub fn a_session_split_at_every_byte_is_the_same(setup: Setup) {
    let server = setup.serve_disk();
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let bytes = session(mode);
        // The second one finds the data of the first.
        play(server.endpoint(), &[&bytes], None);
        let whole = play(server.endpoint(), &[&bytes], None);
        let found = whole.windows(8).any(|window| window == b"\0\0\0split");
        assert!(found, "the session writes and reads: {whole:?}");
        for cut in 1..bytes.len() {
            let (first, second) = bytes.split_at(cut);
            let answer = play(server.endpoint(), &[first, second], Some(whole.len()));
            assert_same_bytes(&answer, &whole, &format!("{mode:?} mode, cut at {cut}"));
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        let answer = play(server.endpoint(), &single, Some(whole.len()));
        assert_same_bytes(&answer, &whole, &format!("{mode:?} mode, byte by byte"));
    }
    server.stop();
}

/// A client may be gone after any byte, in any phase: the server gives its connection back, and serves on.
pub fn a_session_may_end_at_every_byte(setup: Setup) {
    let server = setup.serve_disk();
    let mut witness = server.client(Mode::Simple);
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let bytes = session(mode);
        for end in 0..bytes.len() {
            let mut wire = Wire::connect(server.endpoint());
            wire.send(&bytes[..end]);
            if end % 2 == 0 {
                // One that waits for what it gets, and one that does not.
                wire.shutdown_write();
                wire.drain_to_eof();
            }
        }
        witness.read(0, 512);
    }
    server.wait_for_connections(1);
    witness.finish();
    RawClient::go_simple(server.endpoint()).finish();
    server.stop();
}
