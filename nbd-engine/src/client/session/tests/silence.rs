//! Servers that are there and answer nothing.

use nbd_testkit::cases;
use nbd_testkit::raw::Cmd;

use crate::client::manual::{SECOND, Said, Spawned};
use crate::client::{Client, ClientConfig, ConnectionEvent, Flags, LostReason};

/// A server that owes something may be silent for so long.
const LIMIT: u32 = 2;

fn connect(net: &Spawned) -> Client<Spawned> {
    let reconnect = net.reconnect().with_max_silence(Some(LIMIT * SECOND));
    net.connect(&ClientConfig::new().with_reconnect(reconnect))
}

/// Whether the connection was given up for its server's silence since this was asked before.
fn is_given_up(net: &Spawned) -> bool {
    let silent = |event: &ConnectionEvent| {
        matches!(event, ConnectionEvent::Lost { reason: LostReason::Silent { .. }, .. })
    };
    net.events().iter().any(silent)
}

#[test]
fn a_silent_server_is_given_up_soon_after_the_limit_and_the_next_one_has_as_long() {
    let net = Spawned::new(Said::default());
    let client = connect(&net);
    let mut read = client.submit_read(0, 512, Flags::empty());
    net.run();
    for _ in 0..4 {
        let mut quarters = 0;
        while !is_given_up(&net) {
            net.pass(SECOND / 4);
            quarters += 1;
        }
        // By two looks, each after a quarter of the limit.
        assert!((4 * LIMIT..=6 * LIMIT).contains(&quarters), "{quarters}");
        net.pass(SECOND);
    }
    let latest = net.lines() - 1;
    net.line(latest, |line| assert_eq!(line.answer_all(), 1));
    net.now(&mut read).unwrap();
}

#[test]
fn a_server_that_owes_nothing_may_be_silent() {
    let net = Spawned::new(Said::default());
    let client = connect(&net);
    for _ in 0..3 {
        (0..100).for_each(|_| net.pass(SECOND));
        let mut read = client.submit_read(0, 512, Flags::empty());
        net.run();
        net.line(0, |line| assert_eq!(line.answer_all(), 1));
        net.now(&mut read).unwrap();
    }
    assert!(!is_given_up(&net));
}

/// It answers, or takes in, a little from time to time, at random, and then nothing any more.
#[test]
fn a_slow_server_is_not_a_silent_one() {
    cases(20, |random| {
        let net = Spawned::new(Said::default());
        let client = connect(&net);
        let writes = random.one_in(2);
        net.run();
        net.line(0, |line| line.room = writes.then_some(0));
        let requests: Vec<_> = (0..10)
            .map(|_| match writes {
                true => client.submit_write(0, vec![1; 1 << 16], Flags::empty()),
                false => client.submit_trim(0, 512, Flags::empty()),
            })
            .collect();
        let mut received = Vec::new();
        for _ in 0..10 - 1 {
            for _ in 0..1 + random.below(4) {
                net.pass(SECOND / 4);
            }
            net.line(0, |line| {
                received.append(&mut line.received());
                match &mut line.room {
                    Some(room) => *room += 1000,
                    None => {
                        let request = received.remove(0);
                        assert_eq!(request.kind, Cmd::TRIM);
                        line.answer(&request, None);
                    }
                }
            });
            net.run();
            assert!(!is_given_up(&net));
        }
        (0..8 * LIMIT).for_each(|_| net.pass(SECOND / 4));
        assert!(is_given_up(&net));
        drop(requests);
    });
}
