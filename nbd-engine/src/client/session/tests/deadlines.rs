//! Requests that take too long.

use core::future::Future;
use core::pin::Pin;
use core::task::Context;
use std::sync::Arc;
use std::task::Waker;

use nbd_testkit::cases;
use nbd_testkit::raw::Cmd;

use super::disconnects::Woken;
use crate::client::manual::{Called, SECOND, Said, timed_out};
use crate::client::{ClientConfig, Flags};

#[test]
fn a_time_in_which_the_process_did_not_run_does_not_count_for_requests() {
    const LIMIT: u32 = 4;
    cases(40, |random| {
        let net = Called::new(Said::default());
        let client = net.connect(&ClientConfig::new().with_request_timeout(Some(LIMIT * SECOND)));
        let mut read = client.submit_read(0, 512, Flags::empty());
        assert!(net.poll(&mut read).is_pending());
        for _ in 0..random.below(4) {
            net.pass(SECOND * (2 * LIMIT + random.below(1000) as u32));
            assert!(net.poll(&mut read).is_pending(), "it was not looking");
        }
        net.pass(SECOND * (LIMIT - 1));
        assert!(net.poll(&mut read).is_pending());
        if random.one_in(2) {
            net.line(0, |line| assert_eq!(line.answer_all(), 1));
            net.now(read).unwrap();
        } else {
            net.pass(SECOND);
            assert!(timed_out(&net.now(read)));
        }
    });
}

#[test]
fn a_request_that_times_out_leaves_one_alone_of_which_not_all_is_sent() {
    const PART: usize = 1 << 12;
    let said = Said { blocks: Some([1, PART as u32, PART as u32]), ..Said::default() };
    let net = Called::new(said);
    let config = ClientConfig::new().with_max_in_flight(2).with_request_timeout(Some(4 * SECOND));
    let client = net.connect(&config);
    let mut read = client.submit_read(0, 512, Flags::empty());
    assert!(net.poll(&mut read).is_pending());
    net.pass(2 * SECOND);
    let mut write = client.submit_write(0, vec![1; 3 * PART], Flags::empty());
    assert!(net.poll(&mut write).is_pending());
    net.pass(2 * SECOND);
    assert!(timed_out(&net.now(read)));
    let mut received = net.line(0, |line| line.received());
    assert_eq!(received.remove(0).kind, Cmd::READ);
    for part in 0..3 {
        assert_eq!(received.len(), 1, "part {part}");
        assert_eq!(received[0].offset, (part * PART) as u64);
        net.line(0, |line| line.answer(&received[0], None));
        let is_done = net.poll(&mut write).is_ready();
        assert_eq!(is_done, part == 2);
        received = net.line(0, |line| line.received());
    }
}

/// Where callers drive, one of them may drive a connection on which it has no request of its own, and no deadline. Whoever
/// submits a request on it has it look at the deadline, once.
#[test]
fn a_leader_is_woken_for_a_deadline_that_it_does_not_watch_yet() {
    let net = Called::new(Said::default());
    let config = ClientConfig::new()
        .with_connections(2)
        .with_request_timeout(Some(4 * SECOND))
        .with_reconnect(net.reconnect().with_kept_writes(1));
    let client = net.connect(&config);
    let write = || client.submit_write(0, vec![1; 512], Flags::empty());
    let mut first = write();
    assert!(net.poll(&mut first).is_pending());
    net.line(0, |line| assert_eq!(line.answer_all(), 1));
    net.now(first).unwrap();
    // What watched its deadline is over.
    net.pass(4 * SECOND);
    // There is no room for more before a flush.
    let mut second = write();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut poll_second = || {
        let cx = &mut Context::from_waker(&waker);
        for _ in 0..10 {
            assert!(Pin::new(&mut second).poll(cx).is_pending());
        }
        woken.take();
    };
    poll_second();
    let led = [0, 1].map(|index| net.line(index, |line| line.received()));
    let idle = usize::from(led[0].iter().any(|request| request.kind == Cmd::FLUSH));
    assert_eq!(led[idle], []);
    let mut reads = Vec::new();
    for is_first in [true, false] {
        let mut read = client.submit_read(0, 512, Flags::empty());
        assert!(Pin::new(&mut read).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(net.line(idle, |line| line.received()).len(), 1);
        assert_eq!(woken.take() > 0, is_first);
        poll_second();
        reads.push(read);
        // Connections have their turns; this one is not sent.
        drop(client.submit_read(0, 512, Flags::empty()));
    }
}
