//! Connections that are lost and replaced.

use core::task::Poll;

use nbd_testkit::cases;
use nbd_testkit::raw::{Cmd, Errno, flag};

use crate::client::manual::{Called, SECOND, Said, Spawned};
use crate::client::{Bytes, ClientConfig, ConnectionEvent, Error, Flags, GaveUp, LostReason};

/// What another server says instead of what the first one said, and what is said of that.
type Change = (fn(&mut Said), &'static [&'static str]);

const CHANGES: [Change; 12] = [
    (|said| said.size = 512, &["its size was 1048576 and is 512"]),
    (|said| said.flags &= !flag::SEND_TRIM, &["SEND_TRIM"]),
    (|said| said.flags |= flag::READ_ONLY, &["READ_ONLY"]),
    (|said| said.flags |= flag::SEND_CACHE, &[]),
    (|said| said.blocks = Some([512, 4096, 1 << 20]), &["its block sizes"]),
    (|said| said.contexts = vec!["a:x"], &["its metadata contexts"]),
    (|said| said.first_context = 7, &[]),
    (|said| said.name = Some("other"), &[r#"its name was none and is "other""#]),
    (|said| said.description = Some("a disk"), &[r#"its description was none and is "a disk""#]),
    (
        |said| said.structured = false,
        &["its metadata contexts", "its server has other headers or replies"],
    ),
    (|_| {}, &[]),
    (|_| {}, &[]),
];

/// Any changes at a time: if one of them makes it another export, nothing is sent to it.
#[test]
fn another_export_is_told_from_the_same_and_is_sent_nothing() {
    let run = |contexts: &'static [&'static str], changes: &[Change]| {
        let net = Called::new(Said { contexts: contexts.to_vec(), ..Said::default() });
        let config = ClientConfig::new()
            .with_contexts(contexts.iter().copied())
            .with_reconnect(net.reconnect());
        let client = net.connect(&config);
        let mut read = client.submit_read(0, 512, Flags::empty());
        assert!(net.poll(&mut read).is_pending());
        net.line(0, |line| line.cut());
        changes.iter().for_each(|(change, _)| net.say(change));
        assert!(net.poll(&mut read).is_pending());
        net.pass(SECOND);
        let result = net.poll(&mut read);
        let received = net.line(1, |line| line.received());
        let whats: Vec<_> = changes.iter().flat_map(|(_, whats)| *whats).collect();
        if whats.is_empty() {
            assert!(result.is_pending());
            assert_eq!(received.len(), 1);
            assert_eq!(received[0].kind, Cmd::READ);
            return;
        }
        assert!(received.iter().all(|request| request.kind == Cmd::DISC), "{received:?}");
        let Poll::Ready(Err(error)) = result else { panic!("{result:?}") };
        match &error {
            Error::Lost {
                sent: true,
                reason: LostReason::GaveUp(GaveUp::Changed { what }),
                ..
            } => {
                assert!(whats.iter().any(|known| what.contains(**known)), "{what}");
            }
            _ => panic!("{error}"),
        }
    };
    let contexts = &["a:x", "b:y"];
    for change in CHANGES {
        run(contexts, &[change]);
    }
    run(&[], &[(|said| said.structured = false, &["its server has other headers or replies"])]);
    cases(60, |random| {
        let count = random.below(4);
        let changes: Vec<_> =
            (0..count).map(|_| CHANGES[random.below(CHANGES.len() as u64) as usize]).collect();
        run(contexts, &changes);
    });
}

/// A server that has just started may know an export a moment later: that is no other export.
#[test]
fn a_server_that_refuses_contexts_for_a_while_is_asked_again() {
    cases(30, |random| {
        let contexts = vec!["a:x", "b:y"];
        let net = Called::new(Said { contexts: contexts.clone(), ..Said::default() });
        let max = random.one_in(2).then(|| 1 + random.below(5) as u32);
        let config = ClientConfig::new()
            .with_contexts(contexts)
            .with_reconnect(net.reconnect().with_max_attempts(max));
        let client = net.connect(&config);
        assert_eq!(client.export().contexts_refused(), None);
        let mut read = client.submit_read(0, 512, Flags::empty());
        assert!(net.poll(&mut read).is_pending());
        net.line(0, |line| line.cut());
        let refused = random.below(6) as usize;
        net.say(|said| said.refuses_contexts = true);
        let mut outcome = Poll::Pending;
        for attempt in 0..=refused {
            outcome = net.poll(&mut read);
            if outcome.is_ready() {
                break;
            }
            net.say(|said| said.refuses_contexts = attempt < refused);
            net.pass(SECOND);
        }
        if outcome.is_pending() {
            outcome = net.poll(&mut read);
        }
        let failed: Vec<_> = net
            .events()
            .iter()
            .filter_map(|event| match event {
                ConnectionEvent::AttemptFailed { error, .. } => Some(error.to_string()),
                _ => None,
            })
            .collect();
        assert!(failed.iter().all(|text| text.contains("not yet")), "{failed:?}");
        if max.is_some_and(|max| refused >= max as usize) {
            let Poll::Ready(Err(error)) = outcome else { panic!("it gave up") };
            assert!(error.to_string().contains("not yet"), "{error}");
            return;
        }
        assert!(outcome.is_pending());
        assert_eq!(failed.len(), refused);
        let lines = net.lines();
        let asked = net.line(lines - 1, |line| line.only());
        net.line(lines - 1, |line| line.answer(&asked, None));
        net.now(&mut read).unwrap();
    });
}

#[test]
fn a_client_learns_that_contexts_were_refused() {
    let net = Called::new(Said { refuses_contexts: true, ..Said::default() });
    let client = net.connect(&ClientConfig::new().with_contexts(["a:x"]));
    assert!(client.export().contexts().is_empty());
    let refused = client.export().contexts_refused().expect("they were refused");
    assert_eq!(refused.message, "not yet");
}

/// What was refused before is no matter of the export that is entered.
#[test]
fn a_selection_that_succeeds_takes_back_an_earlier_refusal() {
    let refusing = Said { refuses_contexts: true, refuses_entering: true, ..Said::default() };
    let net = Called::new(Said { contexts: vec!["a:x"], ..refusing });
    let config = ClientConfig::new().with_contexts(["a:x"]);
    let mut negotiation = net.negotiate(&config);
    net.now(negotiation.enter("one")).unwrap_err();
    net.line(0, |line| {
        line.say(|said| (said.refuses_contexts, said.refuses_entering) = (false, false))
    });
    let client = net.now(negotiation.enter("other")).unwrap();
    assert_eq!(client.export().contexts_refused(), None);
    assert_eq!(client.export().contexts().len(), 1);
}

/// Half an answer is none: neither does it end the outage.
#[test]
fn connections_that_break_before_they_have_answered_do_not_end_the_outage() {
    cases(20, |random| {
        let net = Called::new(Said::default());
        let seconds = 2 + random.below(8) as u32;
        let reconnect =
            net.reconnect().with_max_outage(Some(seconds * SECOND)).with_max_resends(1000);
        let client = net.connect(&ClientConfig::new().with_reconnect(reconnect));
        let mut read = client.submit_read(0, 512, Flags::empty());
        let error = (0..3 * seconds).find_map(|_| {
            let latest = net.lines() - 1;
            if random.one_in(2) {
                net.line(latest, |line| line.begin_to_answer());
                assert!(net.poll(&mut read).is_pending());
            }
            net.line(latest, |line| line.cut());
            let polled = net.poll(&mut read);
            net.pass(SECOND);
            match polled {
                Poll::Ready(result) => Some(result.unwrap_err()),
                Poll::Pending => match net.poll(&mut read) {
                    Poll::Ready(result) => Some(result.unwrap_err()),
                    Poll::Pending => None,
                },
            }
        });
        let Some(Error::Lost { reason: LostReason::GaveUp(GaveUp::Outage { limit, .. }), .. }) =
            error
        else {
            panic!("{error:?}");
        };
        assert_eq!(limit, seconds * SECOND);
    });
}

#[test]
fn a_client_makes_as_many_attempts_as_it_may_in_a_row() {
    cases(20, |random| {
        let max = 1 + random.below(6) as u32;
        // The server comes back before so many attempts, or not at all.
        let back = random.below(u64::from(max) + 2) as usize;
        let net = Called::new(Said::default());
        let reconnect = net.reconnect().with_max_attempts(Some(max));
        let client = net.connect(&ClientConfig::new().with_reconnect(reconnect));
        let mut read = client.submit_read(0, 512, Flags::empty());
        assert!(net.poll(&mut read).is_pending());
        net.line(0, |line| line.cut());
        for _ in 0..max + 2 {
            net.refuse(net.attempts() <= back);
            if net.poll(&mut read).is_ready() || net.lines() > 1 {
                break;
            }
            net.pass(SECOND);
        }
        let failed: Vec<_> = net
            .events()
            .iter()
            .filter_map(|event| match event {
                ConnectionEvent::AttemptFailed { attempts, .. } => Some(*attempts),
                _ => None,
            })
            .collect();
        assert_eq!(failed, (1..=max.min(back as u32)).collect::<Vec<_>>());
        assert_eq!(net.attempts(), 1 + (back + 1).min(max as usize));
        assert_eq!(net.lines() > 1, back < max as usize);
    });
}

/// Cuts a connection, and has a server answer again after six seconds, when the attempt after seven succeeds.
fn outage(net: &Spawned) {
    let latest = net.lines() - 1;
    net.line(latest, |line| line.cut());
    net.refuse(true);
    (0..6).for_each(|_| net.pass(SECOND));
    net.refuse(false);
    (0..4).for_each(|_| net.pass(SECOND));
}

#[test]
fn outages_are_one_unless_the_connection_between_them_answered_or_lasted() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Between {
        Answers,
        Lasts,
        Breaks,
    }
    for between in [Between::Answers, Between::Lasts, Between::Breaks] {
        let net = Spawned::new(Said::default());
        let reconnect = net
            .reconnect()
            .with_delays(SECOND, 4 * SECOND)
            .with_max_outage(Some(12 * SECOND))
            .with_max_resends(100);
        let client = net.connect(&ClientConfig::new().with_reconnect(reconnect));
        let mut waiting = client.submit_read(0, 512, Flags::empty());
        for _ in 0..4 {
            net.run();
            let latest = net.lines() - 1;
            match between {
                Between::Answers => {
                    let mut read = client.submit_read(512, 512, Flags::empty());
                    net.run();
                    net.line(latest, |line| {
                        for request in line.received().iter().filter(|request| request.offset > 0) {
                            line.answer(request, None);
                        }
                    });
                    assert!(net.poll(&mut read).is_ready());
                }
                Between::Lasts => (0..5).for_each(|_| net.pass(SECOND)),
                Between::Breaks => {}
            }
            outage(&net);
        }
        let gave_up = net.poll(&mut waiting).is_ready();
        assert_eq!(gave_up, between == Between::Breaks, "{between:?}");
    }
}

/// As one that closes right after its last answer.
#[test]
fn a_disconnect_is_no_loss() {
    let net = Spawned::new(Said::default());
    let client = net.connect(&ClientConfig::new().with_reconnect(net.reconnect()));
    let mut read = client.submit_read(0, 512, Flags::empty());
    net.run();
    let mut disconnect = Box::pin(client.disconnect());
    assert!(net.poll(&mut disconnect).is_pending());
    net.line(0, |line| {
        assert_eq!(line.answer_all(), 1);
        line.end();
    });
    net.now(&mut disconnect);
    assert!(net.now(&mut read).is_ok());
    assert!(net.events().is_empty(), "nothing was lost");
    assert_eq!((net.attempts(), net.tasks()), (1, 0));
}

#[test]
fn a_client_that_disconnects_in_an_outage_waits_for_its_requests() {
    let net = Spawned::new(Said::default());
    let client = net.connect(&ClientConfig::new().with_reconnect(net.reconnect()));
    net.line(0, |line| line.cut());
    net.refuse(true);
    net.pass(SECOND);
    let mut write = client.submit_write(0, Bytes::from_static(&[1; 512]), Flags::empty());
    let mut disconnect = Box::pin(client.disconnect());
    assert!(net.poll(&mut disconnect).is_pending());
    net.refuse(false);
    net.pass(SECOND);
    assert!(net.poll(&mut write).is_pending());
    net.line(1, |line| {
        let received = line.received();
        assert_eq!(received[0].kind, Cmd::WRITE);
        line.answer(&received[0], None);
    });
    net.now(&mut write).unwrap();
    net.now(&mut disconnect);
}

#[test]
fn a_client_that_is_dropped_in_an_outage_ends() {
    let net = Spawned::new(Said::default());
    let client = net.connect(&ClientConfig::new().with_reconnect(net.reconnect()));
    let write = client.submit_write(0, Bytes::from_static(&[1; 512]), Flags::empty());
    net.line(0, |line| line.cut());
    net.refuse(true);
    net.pass(SECOND);
    drop(write);
    assert_eq!(net.tasks(), 1);
    drop(client);
    net.run();
    assert_eq!(net.tasks(), 0);
}

/// Kept changes are written again when nothing is in flight on any connection: on one that has disconnected nothing is.
#[test]
fn a_connection_that_has_disconnected_holds_up_no_other() {
    let net = Spawned::new(Said::default());
    let reconnect = net.reconnect().with_kept_writes(1 << 20);
    let client = net.connect(&ClientConfig::new().with_connections(2).with_reconnect(reconnect));
    let mut writes = [0, 512]
        .map(|offset| client.submit_write(offset, Bytes::from_static(&[1; 512]), Flags::empty()));
    net.run();
    net.line(1, |line| assert_eq!(line.answer_all(), 1));
    net.line(0, |line| line.cut());
    net.refuse(true);
    net.run();
    let mut disconnect = Box::pin(client.disconnect());
    assert!(net.poll(&mut disconnect).is_pending());
    net.line(1, |line| assert!(line.is_hung_up()));
    net.refuse(false);
    net.pass(SECOND);
    // What the other one had acknowledged is written again, and flushed, before the write that was lost.
    for _ in 0..3 {
        net.line(2, |line| assert_eq!(line.answer_all(), 1));
        net.run();
    }
    for write in &mut writes {
        net.now(write).unwrap();
    }
    net.now(&mut disconnect);
}

#[test]
fn what_is_in_doubt_is_counted_to_the_byte() {
    cases(40, |random| {
        let net = Called::new(Said::default());
        let kept = random.one_in(2);
        let reconnect = match kept {
            true => net.reconnect().with_kept_writes(1 << 20),
            false => net.reconnect(),
        };
        let client = net.connect(&ClientConfig::new().with_reconnect(reconnect));
        let (mut requests, mut bytes) = (0, 0);
        for index in 0..random.below(12) {
            // Apart from each other: what a durable change covers is not in doubt.
            let (offset, length) = (index * 2000 + random.below(1000), 1 + random.below(1000));
            let flags = if random.one_in(3) { Flags::FUA } else { Flags::empty() };
            let mut change = match random.below(3) {
                0 => client.submit_trim(offset, length, flags),
                1 => client.submit_write_zeroes(offset, length, flags),
                _ => client.submit_write(offset, vec![1; length as usize], flags),
            };
            assert!(net.poll(&mut change).is_pending());
            net.line(0, |line| line.answer_all());
            net.now(change).unwrap();
            if flags.is_empty() {
                (requests, bytes) = (requests + 1, bytes + length);
            }
        }
        net.line(0, |line| line.cut());
        let mut flush = client.submit_flush();
        assert!(net.poll(&mut flush).is_pending());
        net.pass(SECOND);
        // Kept changes are written again; then the flush fails that has to make them durable.
        let mut fails = kept && requests > 0;
        let result = loop {
            if let Poll::Ready(result) = net.poll(&mut flush) {
                break result;
            }
            net.line(1, |line| {
                for request in line.received() {
                    let failed = fails && request.kind == Cmd::FLUSH;
                    fails &= !failed;
                    line.answer(&request, failed.then_some(Errno::EIO));
                }
            });
        };
        match result {
            Ok(()) => assert_eq!(requests, 0),
            Err(Error::InDoubt { requests: found, bytes: lost, .. }) => {
                assert_eq!((found, lost), (requests, bytes));
            }
            Err(error) => panic!("{error}"),
        }
    });
}
