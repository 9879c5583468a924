//! Clients that disconnect.

use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Context;
use std::sync::Arc;
use std::task::{Wake, Waker};

use nbd_testkit::cases;
use nbd_testkit::raw::Cmd;

use crate::client::manual::{Called, SECOND, Said, Spawned, timed_out};
use crate::client::{ClientConfig, Flags};

/// Counts how often it was woken.
#[derive(Default)]
pub(super) struct Woken(AtomicUsize);

impl Woken {
    /// How often since this was asked before.
    pub(super) fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_disconnect_comes_after_all_parts_of_all_requests() {
    const PART: usize = 1 << 12;
    cases(60, |random| {
        let said = Said { blocks: Some([1, PART as u32, PART as u32]), ..Said::default() };
        let net = Spawned::new(said);
        let config = ClientConfig::new().with_max_in_flight(1 + random.below(3) as u32);
        let config = match random.one_in(2) {
            true => config.with_reconnect(net.reconnect()),
            false => config,
        };
        let client = net.connect(&config);
        let lengths: Vec<_> = (0..1 + random.below(3)).map(|_| random.below(4) as usize).collect();
        let writes: Vec<_> = lengths
            .iter()
            .map(|parts| client.submit_write(0, vec![1; parts * PART + 1], Flags::empty()))
            .collect();
        net.run();
        let mut disconnect = Box::pin(client.disconnect());
        let _waits = net.poll(&mut disconnect);
        let mut parts = 0;
        loop {
            net.run();
            let received = net.line(0, |line| line.received());
            let Some(last) = received.last() else { break };
            let is_over = last.kind == Cmd::DISC;
            for request in received.iter().filter(|request| request.kind == Cmd::WRITE) {
                parts += 1;
                net.line(0, |line| line.answer(request, None));
            }
            if is_over {
                break;
            }
        }
        assert_eq!(parts, lengths.iter().map(|parts| parts + 1).sum::<usize>());
        writes.into_iter().for_each(|write| net.now(write).unwrap());
        net.now(&mut disconnect);
    });
}

#[test]
fn a_server_that_answers_nothing_does_not_hold_up_a_disconnect_for_what_has_timed_out() {
    let net = Called::new(Said::default());
    let client = net.connect(&ClientConfig::new().with_request_timeout(Some(SECOND)));
    let read = client.submit_read(0, 512, Flags::empty());
    assert!(timed_out(&net.wait(read, SECOND / 4)));
    net.now(Box::pin(client.disconnect()));
    net.line(0, |line| assert!(line.is_hung_up()));
}

#[test]
fn a_disconnect_is_polled_again_when_what_it_waits_for_has_timed_out() {
    let net = Called::new(Said::default());
    let client = net.connect(&ClientConfig::new().with_request_timeout(Some(SECOND)));
    let read = client.submit_read(0, 512, Flags::empty());
    let mut disconnect = Box::pin(client.disconnect());
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut poll = || disconnect.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
    assert!(!poll());
    net.pass(SECOND);
    woken.take();
    while !poll() {
        assert!(woken.take() > 0, "it would wait for ever");
    }
    assert!(timed_out(&net.now(read)));
}

/// It waits as long as a request may take, or five seconds where there is no limit.
#[test]
fn a_disconnect_gives_up_a_stream_that_takes_nothing() {
    for (limit, seconds) in [(Some(2 * SECOND), 2), (Some(9 * SECOND), 9), (None, 5)] {
        let net = Spawned::new(Said::default());
        let client = net.connect(&ClientConfig::new().with_request_timeout(limit));
        net.run();
        net.line(0, |line| line.room = Some(0));
        let mut disconnect = Box::pin(client.disconnect());
        for _ in 0..seconds {
            assert!(net.poll(&mut disconnect).is_pending());
            net.pass(SECOND);
        }
        net.now(disconnect);
        net.line(0, |line| assert!(line.is_hung_up()));
    }
}
