//! Streams that have last bytes to send when they are closed, such as those of TLS, and take their time.

use nbd_testkit::cases;
use nbd_testkit::raw::{Cmd, Errno};

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
        } else {
            net.pass(limit);
        }
        ends.into_iter().for_each(|end| net.now(end));
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
            net.pass(5 * SECOND);
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
    net.pass(5 * SECOND);
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
