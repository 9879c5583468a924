//! Streams that have last bytes to send when they are closed, such as those of TLS, and take their time.

use core::pin::Pin;
use core::task::{Context, Waker};
use std::sync::Arc;

use nbd_testkit::cases;
use nbd_testkit::raw::{Cmd, Errno};

use super::disconnects::Woken;

use crate::client::manual::{Called, Net, SECOND, Said, Spawned};
use crate::client::{ClientConfig, Flags};

fn a_disconnect_waits<const SPAWNED: bool>(net: &Net<SPAWNED>) {
    cases(40, |random| {
        let limit = SECOND * (1 + random.below(9) as u32);
        let client = net.connect(&ClientConfig::new().with_request_timeout(Some(limit)));
        let line = net.lines() - 1;
        let read = client.submit_read(0, 512, Flags::empty());
        net.line(line, |line| line.holds_back = true);
        let mut ends = [Box::pin(client.disconnect()), Box::pin(client.disconnect())];
        assert!(ends.iter_mut().all(|end| net.poll(end).is_pending()));
        net.line(line, |line| assert_eq!(line.answer_all(), 1));
        let waits = random.below(u64::from(limit.as_secs() as u32 * 2)) as u32 * SECOND / 2;
        for _ in 0..2 {
            assert!(ends.iter_mut().all(|end| net.poll(end).is_pending()));
            net.line(line, |line| assert!(!line.is_hung_up()));
            net.pass(waits / 2);
        }
        // What was asked for is not held up, nor are those who come late any better off.
        net.now(read).unwrap();
        assert!(net.now(client.read_at(&mut [0; 512], 0)).is_err());
        if random.one_in(2) {
            net.line(line, |line| line.holds_back = false);
            ends.into_iter().for_each(|end| net.now(end));
        } else {
            ends.into_iter().for_each(|end| net.wait(end, SECOND));
        }
        net.now(Box::pin(client.disconnect()));
        net.line(line, |line| {
            assert!(line.is_hung_up());
            assert_eq!(line.received().pop().map(|last| last.kind), Some(Cmd::DISC));
        });
        assert_eq!(net.tasks(), 0);
    });
}

#[test]
fn a_disconnect_waits_for_the_last_bytes_as_long_as_a_request_may_take() {
    a_disconnect_waits(&Spawned::new(Said::default()));
    a_disconnect_waits(&Called::new(Said::default()));
}

/// Whatever is in flight then.
#[test]
fn a_task_goes_on_until_the_last_bytes_of_a_dropped_client_are_sent() {
    cases(40, |random| {
        let net = Spawned::new(Said::default());
        let client = net.connect(&ClientConfig::new());
        for _ in 0..random.below(3) {
            drop(client.submit_read(0, 512, Flags::empty()));
        }
        net.run();
        net.line(0, |line| line.holds_back = true);
        drop(client);
        net.pass(SECOND * random.below(5) as u32);
        net.line(0, |line| assert!(!line.is_hung_up()));
        if random.one_in(2) {
            net.line(0, |line| line.holds_back = false);
            net.run();
        } else {
            (0..5).for_each(|_| net.pass(SECOND));
        }
        net.line(0, |line| assert!(line.is_hung_up()));
        assert_eq!(net.tasks(), 0);
    });
}

/// The server's end is taken note of at once, and so is its successor.
#[test]
fn the_end_of_one_connection_does_not_hold_up_its_replacement() {
    let net = Spawned::new(Said::default());
    let client = net.connect(&ClientConfig::new().with_reconnect(net.reconnect()));
    let mut read = client.submit_read(0, 512, Flags::empty());
    net.run();
    net.line(0, |line| {
        line.holds_back = true;
        let read = line.only();
        line.answer(&read, Some(Errno::ESHUTDOWN));
    });
    assert!(net.poll(&mut read).is_pending());
    net.pass(SECOND);
    net.line(0, |line| assert!(!line.is_hung_up()));
    net.line(1, |line| assert_eq!(line.answer_all(), 1));
    net.now(read).unwrap();
    (0..5).for_each(|_| net.pass(SECOND));
    net.line(0, |line| assert!(line.is_hung_up()));
    net.line(1, |line| assert!(!line.is_hung_up()));
}

/// Where callers drive, nobody would be there to close it later.
#[test]
fn a_connection_that_nobody_drives_is_closed_at_once() {
    let net = Called::new(Said::default());
    let client = net.connect(&ClientConfig::new());
    let mut read = client.submit_read(0, 512, Flags::empty());
    assert!(net.poll(&mut read).is_pending());
    net.line(0, |line| {
        line.holds_back = true;
        line.end();
    });
    net.now(read).unwrap_err();
    net.line(0, |line| assert!(line.is_hung_up()));
    net.now(Box::pin(client.disconnect()));
}

/// Nobody would be there to close it later either.
#[test]
fn a_connection_that_ends_while_a_disconnect_is_given_up_is_closed() {
    for before in [true, false] {
        let net = Called::new(Said::default());
        let client = net.connect(&ClientConfig::new());
        net.line(0, |line| line.holds_back = true);
        let read = before.then(|| client.submit_read(0, 512, Flags::empty()));
        let mut end = Box::pin(client.disconnect());
        assert!(net.poll(&mut end).is_pending());
        if let Some(read) = read {
            drop(end);
            net.line(0, |line| assert_eq!(line.answer_all(), 1));
            net.now(read).unwrap();
        } else {
            net.line(0, |line| assert!(!line.is_hung_up()));
            drop(end);
        }
        net.line(0, |line| assert!(line.is_hung_up(), "{before}"));
        net.now(Box::pin(client.disconnect()));
    }
}

#[test]
fn disconnects_end_whoever_gives_up_meanwhile() {
    cases(60, |random| {
        let net = Called::new(Said::default());
        let connections = 1 + random.below(3) as usize;
        let config = ClientConfig::new().with_connections(connections);
        let client = net.connect(&config);
        let mut reads: Vec<_> =
            (0..random.below(4)).map(|_| client.submit_read(0, 512, Flags::empty())).collect();
        let mut ends: Vec<_> =
            (0..1 + random.below(2)).map(|_| Box::pin(client.disconnect())).collect();
        let lines = || 0..net.lines();
        lines().for_each(|line| net.line(line, |line| line.holds_back = random.one_in(2)));
        // All ask, then some wait, some answers come and some give up, in any order.
        let answer = || {
            lines().for_each(|line| {
                let _answered = net.line(line, |line| line.answer_all());
            })
        };
        let steps: Vec<u64> = (0..8).map(|_| random.below(5)).collect();
        for step in core::iter::once(0).chain(steps) {
            match step {
                0 => ends.retain_mut(|end| net.poll(end).is_pending()),
                1 => reads.retain_mut(|read| net.poll(read).is_pending()),
                2 => answer(),
                3 => drop(ends.pop()),
                _ => drop(reads.pop()),
            }
        }
        // Time passes, and all that is left of them come to an end.
        if random.one_in(2) {
            ends.clear();
        }
        let mut late = Box::pin(client.disconnect());
        ends.extend(random.one_in(2).then(|| Box::pin(client.disconnect())));
        for _ in 0..20 {
            reads.retain_mut(|read| net.poll(read).is_pending());
            ends.retain_mut(|end| net.poll(end).is_pending());
            answer();
            net.pass(SECOND);
        }
        assert!(reads.is_empty() && ends.is_empty());
        // One that comes by takes along what was given up.
        if net.poll(&mut late).is_pending() {
            answer();
            net.wait(late, SECOND);
        }
        lines().for_each(|line| net.line(line, |line| assert!(line.is_hung_up())));
    });
}

fn a_disconnect_of_several<const SPAWNED: bool>(net: &Net<SPAWNED>) {
    let client = net.connect(&ClientConfig::new().with_connections(4));
    (0..4).for_each(|line| net.line(line, |line| line.holds_back = true));
    let mut end = Box::pin(client.disconnect());
    for _ in 0..5 {
        assert!(net.poll(&mut end).is_pending());
        net.pass(SECOND);
    }
    net.now(end);
    (0..4).for_each(|line| net.line(line, |line| assert!(line.is_hung_up())));
}

#[test]
fn all_connections_have_the_same_time_to_close() {
    a_disconnect_of_several(&Spawned::new(Said::default()));
    a_disconnect_of_several(&Called::new(Said::default()));
}

/// The program was stopped, or nobody waited for a while.
#[test]
fn a_deadline_that_passes_unseen_costs_no_bytes() {
    for has_room in [true, false] {
        let net = Called::new(Said::default());
        let client = net.connect(&ClientConfig::new());
        net.line(0, |line| line.holds_back = true);
        let mut end = Box::pin(client.disconnect());
        assert!(net.poll(&mut end).is_pending());
        net.line(0, |line| line.holds_back = !has_room);
        net.pass(100 * SECOND);
        if !has_room {
            assert!(net.poll(&mut end).is_pending());
            net.line(0, |line| line.holds_back = false);
        }
        net.now(end);
        net.line(0, |line| assert!(line.is_closed && line.is_hung_up()));
    }
}

/// Something that waits, and whether it was woken.
struct Waiter {
    future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
    is_woken: bool,
}

impl Waiter {
    fn new(future: impl Future<Output = ()> + 'static) -> Self {
        Self { future: Box::pin(future), woken: Arc::default(), is_woken: true }
    }

    /// Polls it if it was woken.
    fn go_on(&mut self) -> bool {
        self.is_woken |= self.woken.take() > 0;
        let waker = Waker::from(Arc::clone(&self.woken));
        core::mem::take(&mut self.is_woken)
            && self.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready()
    }
}

/// As on a runtime, where nobody is polled who was not woken: whoever leads, waits, finishes or gives up beside a disconnect,
/// nobody sleeps for ever.
#[test]
fn nobody_sleeps_through_an_end_that_others_drive() {
    cases(300, |random| {
        let net = Called::new(Said::default());
        let config = ClientConfig::new().with_max_in_flight(1 + random.below(4) as u32);
        let client = net.connect(&config.with_connections(1 + random.below(2) as usize));
        let read = |_| {
            let read = client.submit_read(0, 512, Flags::empty());
            Waiter::new(async { drop(read.await.unwrap()) })
        };
        let mut waiters: Vec<_> = (0..1 + random.below(6)).map(read).collect();
        // All are at work before anybody disconnects.
        waiters.iter_mut().for_each(|waiter| assert!(!waiter.go_on()));
        for _ in 0..1 + random.below(2) {
            let client = client.clone();
            waiters.push(Waiter::new(async move { client.disconnect().await }));
        }
        let mut unanswered = Vec::new();
        for _ in 0..1000 {
            let at = random.below(waiters.len() as u64) as usize;
            let gives_up = random.one_in(40) && waiters.len() > 1;
            if waiters[at].go_on() || gives_up {
                drop(waiters.swap_remove(at));
            }
            for line in 0..net.lines() {
                let received = net.line(line, |line| line.received());
                unanswered.extend(received.into_iter().map(|request| (line, request)));
            }
            unanswered.retain(|(_, request)| request.kind != Cmd::DISC);
            if !unanswered.is_empty() && random.one_in(2) {
                let which = random.below(unanswered.len() as u64) as usize;
                let (line, request) = unanswered.swap_remove(which);
                net.line(line, |line| line.answer(&request, None));
            }
            if waiters.is_empty() {
                return;
            }
        }
        panic!("{} still wait, for {} answers", waiters.len(), unanswered.len());
    });
}
