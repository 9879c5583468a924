//! An export that changes its size while requests arrive.

use std::collections::HashMap;

use nbd_proto::server::{Config, Event};
use nbd_proto::wire::{CommandFlags as Flag, CommandType as Cmd, ErrorCode, ExtendedRequest};
use nbd_proto::{Command, OrderlyEnd, PauseReason, RecvBuffer, RequestId, Segment, Wants};
use proptest::prelude::*;

use crate::peer::*;

/// Both parts of a write around a change of the size.
fn write_around(served: &mut Served, first: usize, size: u64) -> (RequestId, Vec<Chunk>) {
    served.hear(&served.encode(&plain(Cmd::WRITE, 1000, 10))).unwrap();
    served.hear(&b"0123456789"[..first]).unwrap();
    let Wants::Payload { id, .. } = served.connection.wants() else { panic!("a payload is due") };
    served.connection.set_size(size).unwrap();
    served.hear(&b"0123456789"[first..]).unwrap();
    (id, served.chunks())
}

/// S-REQ-09: the size that counts is the one that the export has when the request is carried out.
#[test]
fn a_write_that_the_export_shrank_away_from_is_refused_once_its_payload_is_there() {
    for mode in MODES {
        for first in 0..10 {
            let mut served = transmitting(mode);
            let (id, chunks) = write_around(&mut served, first, 1009);
            assert_eq!(chunks[0].error(), ErrorCode::ENOSPC);
            assert_eq!(served.embedder.seen, [], "it is not raised");
            assert_eq!(served.embedder.finished.pop(), Some(id), "its buffer comes back");
            let mut served = transmitting(mode);
            let (id, chunks) = write_around(&mut served, first, 1010);
            assert_eq!(chunks, []);
            assert_eq!(served.request(), (id, Command::write(1000, 10)));
        }
    }
}

/// The payload lies in the receive buffer, and is to be executed there.
#[test]
fn a_refused_write_is_no_event_even_if_its_payload_has_arrived() {
    let mut served = transmitting(Mode::Simple);
    served.hear(&served.encode(&plain(Cmd::WRITE, 1000, 10))).unwrap();
    served.connection.set_size(100).unwrap();
    served.connection.payload_received(10).unwrap();
    assert_eq!(served.connection.wants(), Wants::Nothing(PauseReason::EventDue));
    assert_eq!(served.connection.next_event(&mut &[][..]), None);
    assert!(matches!(served.connection.wants(), Wants::Bytes { .. }));
    assert_eq!(served.chunks()[0].error(), ErrorCode::ENOSPC);
}

/// A request that waits until others have been answered.
#[test]
fn a_request_that_waited_for_room_is_checked_again() {
    for mode in MODES {
        for command in [Cmd::READ, Cmd::WRITE] {
            let mut config = Config::default();
            config.limits.max_in_flight_bytes = 600;
            let mut served = transmitting_with(mode, config, export());
            served.ask(&plain(Cmd::READ, 0, 512), &[]);
            let (first, _) = served.request();
            served.hear(&served.encode(&plain(command, 1024, 512))).unwrap();
            let paused = served.connection.wants();
            assert_eq!(paused, Wants::Nothing(PauseReason::TooManyBytes));

            served.connection.set_size(1024).unwrap();
            served.connection.reply(first).unwrap().error(ErrorCode::EIO, "");
            served.said();
            let payload = if command == Cmd::WRITE { 512 } else { 0 };
            served.hear(&vec![1; payload]).unwrap();
            let refused = if command == Cmd::WRITE { ErrorCode::ENOSPC } else { ErrorCode::EINVAL };
            assert_eq!(served.chunks()[0].error(), refused, "{mode:?} {command}");
            // And the stream is in step.
            served.ask(&plain(Cmd::FLUSH, 0, 0), &[]);
            assert_eq!(served.request().1, Command::Flush);
        }
    }
}

fn bytes_of(served: &Served, kind: u8, offset: u64, length: u64, cookie: u64) -> Vec<u8> {
    let command = match kind % 6 {
        0 | 1 => Cmd::WRITE,
        2 => Cmd::READ,
        3 => Cmd::TRIM,
        4 => Cmd::BLOCK_STATUS,
        _ => Cmd::FLUSH,
    };
    let flags = Flag::empty();
    let length = if command == Cmd::FLUSH { 0 } else { 1 + length % 3000 };
    let request = ExtendedRequest { flags, command, cookie, offset: offset % 8192, length };
    let simple = !served.connection.export().unwrap().structured;
    if command == Cmd::BLOCK_STATUS && simple {
        return Vec::new();
    }
    let payload = if command == Cmd::WRITE { vec![1; length as usize] } else { Vec::new() };
    [served.encode(&request), payload].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn no_request_reaches_past_the_end_that_the_export_has_when_it_is_raised(
        mode in prop::sample::select(&MODES[..]),
        requests in prop::collection::vec(any::<(u8, u64, u64)>(), 1..12),
        pieces in prop::collection::vec(1_usize..4000, 1..8),
        sizes in prop::collection::vec(0_u64..10_000, 1..20),
        patience in 1_usize..5,
    ) {
        let config = config(|config| config.limits.max_in_flight_bytes = 5000);
        let mut served = transmitting_with(mode, config, export());
        let mut stream = Vec::new();
        for (cookie, &(kind, offset, length)) in requests.iter().enumerate() {
            stream.extend(bytes_of(&served, kind, offset, length, cookie as u64));
        }
        stream.extend(served.encode(&plain(Cmd::DISC, 0, 0)));

        let connection = &mut served.connection;
        let (mut pieces, mut sizes) = (pieces.iter().cycle(), sizes.iter().cycle());
        let mut received = RecvBuffer::new();
        let mut held: HashMap<RequestId, bool> = HashMap::new();
        let mut open = Vec::new();
        let mut closed = None;
        for _ in 0..2 * stream.len() + 1000 {
            // Another connection resizes the export, at any time.
            connection.set_size(*sizes.next().unwrap()).unwrap();
            let size = connection.export().unwrap().size;
            let event = connection.next_event(&mut received);
            match event {
                Some(Event::Request { id, command }) => {
                    let end = command.offset() + command.length();
                    prop_assert!(!command.has_range() || end <= size, "{:?} of {}", command, size);
                    prop_assert!(!held.insert(id, true).unwrap_or(false), "it is raised once");
                    open.push(id);
                    continue;
                }
                Some(Event::Closed(result)) => {
                    closed = Some(result);
                    break;
                }
                other => prop_assert_eq!(other, None),
            }
            let wants = connection.wants();
            match wants {
                Wants::Bytes { .. } => {
                    let room = received.spare_capacity_mut();
                    let count = (*pieces.next().unwrap()).min(room.len()).min(stream.len());
                    prop_assert!(count > 0, "it lost its step");
                    room[..count].copy_from_slice(&stream[..count]);
                    stream.drain(..count);
                    received.advance(count);
                }
                Wants::Payload { id, remaining, .. } => {
                    held.insert(id, false);
                    let count = if received.is_empty() {
                        let count = (*pieces.next().unwrap()).min(remaining as usize);
                        stream.drain(..count);
                        count
                    } else {
                        received.copy_to(&mut vec![0; remaining as usize])
                    };
                    connection.payload_received(count as u64).unwrap();
                }
                Wants::Nothing(_) => {}
                other => panic!("{other:?}"),
            }
            if open.len() >= patience || matches!(wants, Wants::Nothing(_)) {
                for id in open.drain(..) {
                    connection.reply(id).unwrap().error(ErrorCode::EIO, "");
                }
            }
            let queued = connection.segments().map(|segment| {
                assert!(matches!(segment, Segment::Control(_)));
                segment.len()
            });
            let queued = queued.sum();
            for id in connection.transmitted(queued).unwrap() {
                prop_assert!(held.remove(&id).is_some(), "it comes back once");
            }
        }
        prop_assert_eq!(closed, Some(Ok(OrderlyEnd::Disconnected)));
        prop_assert!(held.is_empty(), "buffers were not given back");
    }
}
