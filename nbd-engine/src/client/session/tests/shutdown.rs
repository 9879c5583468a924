//! Servers that shut down in order: `NBD_ESHUTDOWN`.

use nbd_testkit::raw::{Cmd, Errno};

use crate::client::manual::{Called, Received, SECOND, Said, Spawned};
use crate::client::{ClientConfig, Error, Flags, LostReason};

#[test]
fn a_server_that_shuts_down_is_sent_nothing_more_and_its_successor_everything() {
    let net = Spawned::new(Said::default());
    let client = net.connect(&ClientConfig::new().with_reconnect(net.reconnect()));
    let read = |offset| client.submit_read(offset, 512, Flags::empty());
    let (mut refused, mut served) = (read(512), read(1024));
    net.run();
    let received = net.line(0, |line| line.received());
    let offset = |request: &Received| request.offset;
    assert_eq!(received.iter().map(offset).collect::<Vec<_>>(), [512, 1024]);
    net.line(0, |line| line.answer(&received[0], Some(Errno::ESHUTDOWN)));
    net.run();
    let mut later = read(2048);
    net.run();
    let after = net.line(0, |line| line.received());
    assert!(after.iter().all(|request| request.kind == Cmd::DISC), "{after:?}");
    assert!(net.poll(&mut later).is_pending() && net.poll(&mut refused).is_pending());
    net.line(0, |line| {
        line.answer(&received[1], None);
        line.end();
    });
    net.now(&mut served).unwrap();
    net.pass(SECOND);
    let mut again = net.line(1, |line| line.received());
    again.iter().for_each(|request| net.line(1, |line| line.answer(request, None)));
    again.sort_by_key(offset);
    assert_eq!(again.iter().map(offset).collect::<Vec<_>>(), [512, 2048]);
    net.now(&mut refused).unwrap();
    net.now(&mut later).unwrap();
}

/// Without reconnection. What was begun may have been carried out in part, and what was not was not.
#[test]
fn a_request_that_a_shutdown_cuts_off_says_whether_it_was_begun() {
    const PART: u32 = 1 << 16;
    let said = Said { blocks: Some([1, 4096, PART]), ..Said::default() };
    let net = Called::new(said);
    let client = net.connect(&ClientConfig::new().with_max_in_flight(2));
    let write = || client.submit_write(0, vec![1; 3 * PART as usize], Flags::empty());
    let mut read = client.submit_read(0, 512, Flags::empty());
    let (mut begun, mut queued) = (write(), write());
    assert!(net.poll(&mut read).is_pending());
    let received = net.line(0, |line| line.received());
    assert_eq!([received[0].kind, received[1].kind], [Cmd::READ, Cmd::WRITE]);
    net.line(0, |line| line.answer(&received[0], Some(Errno::ESHUTDOWN)));
    assert!(matches!(net.now(&mut read), Err(Error::Command { .. })));
    let was_sent = |error: Error| match error {
        Error::Lost { sent, reason: LostReason::ShuttingDown, .. } => sent,
        error => panic!("{error}"),
    };
    assert!(!was_sent(net.now(&mut queued).unwrap_err()));
    assert!(net.poll(&mut begun).is_pending(), "its first part is not answered");
    net.line(0, |line| line.answer(&received[1], None));
    assert!(was_sent(net.now(&mut begun).unwrap_err()));
}
