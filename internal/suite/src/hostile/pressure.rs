//! Servers that do not take what they are given.

use nbd_engine::client::{Error, Flags};
use nbd_proto::wire::ErrorCode;
use nbd_testkit::raw::{Cmd, Errno, Mode, some_attempt};
use nbd_testkit::scripted::Answer;

use super::table::{
    MODES, SHORT, config, connect, entered, expect_alive, expect_given_up, hasty,
};
use crate::{ClientSetup, Transport};

/// More than any socket takes at once, in requests that a server takes.
const MUCH: usize = 1 << 20;
const TIMES: usize = 24;

/// A server may refuse a write before it has read it. What is left of the payload is sent all the same, or the next
/// request would be taken for it.
pub fn an_early_error_leaves_the_rest_of_the_payload_in_step(setup: ClientSetup) {
    for mode in MODES {
        let what = format!("{mode:?}");
        let refusal = match mode {
            Mode::Extended => Answer::error(Errno::ENOSPC, "no room").done(),
            _ => Answer::simple(Errno::ENOSPC, &[]),
        };
        let script = entered(mode)
            .header(Cmd::WRITE)
            .answer(refusal.clone())
            .hold()
            .payload()
            .header(Cmd::WRITE)
            .answer(refusal)
            .payload()
            .serve();
        let server = setup.play([script]);
        let client = connect(setup, &server, &config(), &what);
        let first = client.start_write(0, vec![1; MUCH], Flags::empty());
        let second = client.start_write(0, vec![2; MUCH], Flags::empty());
        server.wait_for_requests(1);
        server.release();
        for write in [first, second] {
            let (buffer, result) = write.wait();
            let error = result.expect_err(&what);
            assert_eq!(error.code(), Some(ErrorCode::ENOSPC), "{what}: {error:?}");
            assert_eq!(buffer.len(), MUCH, "{what}");
        }
        expect_alive(&*client, &what);
        drop(client);
        server.finish();
    }
}

/// Writes that the socket does not take are given up in time, sent or not, and so is the server.
pub fn a_server_that_does_not_read_is_given_up(setup: ClientSetup) {
    for mode in MODES {
        let what = format!("{mode:?}");
        some_attempt(|| {
            let server = setup.play([entered(mode).hold().silence()]);
            // What is in flight will be sent whenever the server reads on; what is behind it never is.
            let config = hasty().with_max_in_flight(TIMES as u32 / 2);
            let client = connect(setup, &server, &config, &what);
            let write = || client.start_write(0, vec![1; MUCH], Flags::empty());
            let writes: Vec<_> = (0..TIMES).map(|_| write()).collect();
            let errors = writes.into_iter().map(|write| write.wait().1.expect_err(&what));
            let was_sent = |error: Error| expect_given_up(&error, &what).is_some();
            let sent: Vec<_> = errors.map(was_sent).collect();
            if !sent[0] {
                return None;
            }
            assert!(!sent[TIMES - 1], "{what}: {sent:?}");
            assert!(sent.is_sorted_by(|one, next| one >= next), "{what}: {sent:?}");
            client.disconnect();
            server.release();
            assert!(server.finish()[0].left, "{what}");
            Some(())
        });
    }
}

/// Where nobody needs a connection any more, it is not kept for the sake of a server that would not take the goodbye.
pub fn a_client_that_is_dropped_does_not_wait_for_a_server_that_does_not_read(setup: ClientSetup) {
    let script = entered(Mode::Simple);
    // TCP tells its peer of a close only behind what was sent before it.
    let server = setup.play([match setup.transport() {
        Transport::Unix | Transport::Tls => script.deaf(),
        Transport::Tcp => script.hold().silence(),
    }]);
    let config = hasty().with_request_timeout(Some(SHORT * 5));
    let client = connect(setup, &server, &config, "a proper handshake");
    let write = || client.start_write(0, vec![1; MUCH], Flags::empty());
    let writes: Vec<_> = (0..TIMES).map(|_| write()).collect();
    drop((writes, client));
    if setup.transport() == Transport::Tcp {
        server.release();
    }
    let reports = server.wait();
    assert!(reports[0].left, "{reports:?}");
}
