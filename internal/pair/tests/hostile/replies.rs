//! Replies to reads and to commands without content.

use nbd_proto::client::{CommandError, Event, SubmitError};
use nbd_proto::wire::{DecodeError, ErrorCode, ReplyType, magic};
use nbd_proto::{Command, Error, LimitExceeded, OrderlyEnd, PeerMisbehaved};

use crate::peer::*;

const READ: Command = Command::read(4096, 1024);
const WRITE: Command = Command::write(4096, 1024);
const CHUNKED: [Mode; 2] = [Mode::Structured, Mode::Extended];
const ALL: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

/// A client with one request in flight, and the means to answer it.
fn asked(mode: Mode, command: Command) -> (Client, Chunks) {
    let mut client = transmitting(mode);
    let (_, cookie) = request(&mut client, command);
    (client, Chunks { mode, cookie, offset: command.offset() })
}

/// What was seen, and the buffer of the request that completed last.
type Answered = (Seen, Vec<u8>);

/// Gives a client the rest of a reply.
fn complete(client: &mut Client, bytes: &[u8]) -> Answered {
    let seen = feed(client, bytes).unwrap();
    (seen, last_buffer(client))
}

/// The result and buffer of the only completion, which is the last of what was seen.
fn completed((mut seen, buffer): Answered) -> (Result<(), CommandError>, Vec<u8>) {
    match seen.pop() {
        Some(Event::Completed { result, .. }) => (result, buffer),
        other => panic!("{other:?}"),
    }
}

/// What becomes of a read when it is answered by `bytes`.
fn answer(command: Command, bytes: impl Fn(Chunks) -> Vec<u8>) -> [Result<Answered, Error>; 2] {
    CHUNKED.map(|mode| {
        let (mut client, chunks) = asked(mode, command);
        let result = feed(&mut client, &bytes(chunks));
        if result.is_err() {
            assert!(client.segments().next().is_none());
            assert_eq!(client.actor.abandoned.len(), 1, "the request is over");
            assert!(client.actor.abandoned[0].1, "and was sent");
        }
        result.map(|seen| (seen, last_buffer(&client)))
    })
}

fn is_fatal(command: Command, error: impl Into<Error>, bytes: impl Fn(Chunks) -> Vec<u8>) {
    let error = error.into();
    for result in answer(command, bytes) {
        assert_eq!(result, Err(error));
    }
}

#[test]
fn chunks_are_put_together_in_any_order() {
    for seen in answer(READ, |chunks| {
        [
            chunks.data(0, 4096 + 512, &[2; 512]),
            chunks.hole(0, 4096 + 100, 412),
            chunks.data(0, 4096, &[1; 100]),
            chunks.none(),
        ]
        .concat()
    }) {
        let (result, buffer) = completed(seen.unwrap());
        assert_eq!(result, Ok(()));
        let expected = [&[1; 100][..], &[0; 412], &[2; 512]].concat();
        assert_eq!(buffer, expected);
    }
}

#[test]
fn a_content_chunk_can_be_the_last_one_and_unknown_flags_are_ignored() {
    for seen in answer(READ, |chunks| chunks.data(0xffff, 4096, &[1; 1024])) {
        assert_eq!(completed(seen.unwrap()), (Ok(()), vec![1; 1024]));
    }
    for seen in answer(READ, |chunks| {
        [chunks.data(0xfffe, 4096, &[1; 1000]), chunks.hole(1, 5096, 24)].concat()
    }) {
        assert_eq!(completed(seen.unwrap()).0, Ok(()));
    }
}

#[test]
fn content_outside_of_the_request_is_fatal() {
    let out = PeerMisbehaved::ContentOutOfRange;
    is_fatal(READ, out(4095), |chunks| chunks.data(1, 4095, &[1; 2]));
    is_fatal(READ, out(5120), |chunks| chunks.data(1, 5120, &[1; 1]));
    is_fatal(READ, out(5000), |chunks| chunks.data(1, 5000, &[1; 121]));
    is_fatal(READ, out(u64::MAX), |chunks| chunks.data(1, u64::MAX, &[1; 2]));
    is_fatal(READ, out(0), |chunks| chunks.hole(1, 0, 1024));
    is_fatal(READ, out(4096), |chunks| chunks.hole(1, 4096, u32::MAX));
    // Too long to fit anywhere: reported before the offset has arrived.
    is_fatal(READ, out(4096), |chunks| chunks.header(ReplyType::OFFSET_DATA, 1, 8 + 1025));
    is_fatal(READ, out(4096), |chunks| chunks.header(ReplyType::OFFSET_DATA, 1, u32::MAX.into()));
}

#[test]
fn content_over_earlier_content_or_errors_is_fatal() {
    let over = PeerMisbehaved::ContentOverlaps;
    is_fatal(READ, over(4100), |chunks| {
        [chunks.data(0, 4096, &[1; 10]), chunks.data(0, 4100, &[1; 10])].concat()
    });
    is_fatal(READ, over(4096), |chunks| {
        [chunks.hole(0, 4200, 10), chunks.hole(0, 4096, 1024)].concat()
    });
    is_fatal(READ, over(4096), |chunks| {
        let error = chunks.error(0, 5, "", Some(4196));
        [chunks.error(0, 5, "", Some(4300)), error, chunks.data(0, 4096, &[1; 101])].concat()
    });
}

#[test]
fn a_read_with_a_part_missing_fails_and_the_stream_goes_on() {
    for (mode, bytes) in
        CHUNKED.into_iter().flat_map(|mode| [(mode, 0), (mode, 1), (mode, 2), (mode, 3)])
    {
        let (mut client, chunks) = asked(mode, READ);
        let bytes = match bytes {
            0 => chunks.none(),
            1 => chunks.data(1, 4096, &[1; 1023]),
            2 => chunks.data(1, 4097, &[1; 1023]),
            _ => [chunks.hole(0, 4096, 500), chunks.data(1, 4600, &[1; 520])].concat(),
        };
        let error = completed(complete(&mut client, &bytes)).0.unwrap_err();
        assert_eq!(error.code, ErrorCode::EIO);
        let (_, cookie) = request(&mut client, Command::Flush);
        let chunks = Chunks { cookie, offset: 0, ..chunks };
        assert_eq!(completed(complete(&mut client, &chunks.none())).0, Ok(()));
    }
}

#[test]
fn a_second_fragment_of_an_unfragmented_read_is_fatal() {
    let whole = Command::read(4096, 1024).with_dont_fragment();
    is_fatal(whole, PeerMisbehaved::Fragmented, |chunks| {
        [chunks.data(0, 4096, &[1; 512]), chunks.hole(1, 4608, 512)].concat()
    });
    for seen in answer(whole, |chunks| [chunks.data(0, 4096, &[1; 1024]), chunks.none()].concat()) {
        assert_eq!(completed(seen.unwrap()).0, Ok(()));
    }
}

#[test]
fn lengths_that_a_chunk_can_not_have_are_fatal() {
    let bad = DecodeError::BadValue("chunk length");
    for length in 0..9 {
        is_fatal(READ, bad, |chunks| chunks.header(ReplyType::OFFSET_DATA, 1, length));
    }
    for length in [0, 8, 11, 13, 16] {
        is_fatal(READ, bad, |chunks| chunks.header(ReplyType::OFFSET_HOLE, 1, length));
    }
    is_fatal(READ, DecodeError::BadValue("hole size"), |chunks| chunks.hole(1, 4096, 0));
    is_fatal(READ, bad, |chunks| chunks.chunk(ReplyType::NONE, 1, b"?"));
    is_fatal(READ, PeerMisbehaved::NotFinal, |chunks| chunks.chunk(ReplyType::NONE, 0, b""));
}

#[test]
fn a_chunk_that_the_command_does_not_have_is_fatal() {
    let types = [ReplyType(3), ReplyType(4), ReplyType(7), ReplyType(0x7fff)];
    let statuses = [ReplyType::BLOCK_STATUS, ReplyType::BLOCK_STATUS_EXT];
    let contents = [ReplyType::OFFSET_DATA, ReplyType::OFFSET_HOLE];
    for (command, replies) in [
        (READ, [&types[..], &statuses].concat()),
        (WRITE, [&types[..], &statuses, &contents].concat()),
        (Command::Flush, [&types[..], &statuses, &contents].concat()),
        (Command::block_status(0, 4), contents.to_vec()),
    ] {
        for reply in replies {
            let error = PeerMisbehaved::UnexpectedReply { command: command.command_type(), reply };
            is_fatal(command, error, |chunks| chunks.header(reply, 1, 12));
        }
    }
}

#[test]
fn an_error_ends_the_trust_in_all_content() {
    for seen in answer(READ, |chunks| {
        [
            chunks.data(0, 4096, &[1; 100]),
            chunks.error(0, 5, "disk gone", None),
            chunks.data(0, 4196, &[2; 100]),
            chunks.hole(0, 4296, 10),
            chunks.error(0, 12, "and then", None),
            chunks.error(1, 28, "nothing", Some(5000)),
        ]
        .concat()
    }) {
        let seen = seen.unwrap();
        assert!(!seen.0.iter().any(|event| matches!(event, Event::Hole { .. })));
        let (result, buffer) = completed(seen);
        let error = result.unwrap_err();
        assert_eq!(
            (error.code, &*error.message, error.offset),
            (ErrorCode::EIO, "disk gone", None)
        );
        assert_eq!(buffer[..200], [&[1; 100][..], &[0xee; 100]].concat());
    }
}

#[test]
fn errors_with_an_offset_are_reported_one_by_one_and_the_first_at_the_end() {
    for command in [READ, WRITE] {
        for seen in answer(command, |chunks| {
            let first = chunks.error(0, 5, "a", Some(4096));
            [first, chunks.error(1, 12, "b", Some(5119))].concat()
        }) {
            let seen = seen.unwrap();
            assert!(
                matches!(&seen.0[1], Event::ErrorChunk { error, .. } if error.offset == Some(5119))
            );
            assert_eq!(completed(seen).0.unwrap_err().offset, Some(4096));
        }
    }
    // One without a place comes before all with one.
    for seen in answer(WRITE, |chunks| {
        [chunks.error(0, 5, "a", Some(4096)), chunks.error(1, 12, "b", None)].concat()
    }) {
        assert_eq!(completed(seen.unwrap()).0.unwrap_err().code, ErrorCode::ENOMEM);
    }
}

#[test]
fn an_error_outside_of_the_request_is_fatal() {
    for at in [0, 4095, 5120, u64::MAX] {
        let error = PeerMisbehaved::ErrorOutOfRange(at);
        is_fatal(READ, error, |chunks| chunks.error(1, 5, "", Some(at)));
    }
}

#[test]
fn an_error_of_unknown_type_or_with_a_place_that_the_command_has_not_fails_the_request() {
    for command in [Command::Flush, Command::resize(512)] {
        for seen in answer(command, |chunks| chunks.error(1, 5, "no", Some(77))) {
            let error = completed(seen.unwrap()).0.unwrap_err();
            assert_eq!((error.code, error.offset), (ErrorCode::EIO, None));
        }
    }
    for command in [READ, WRITE, Command::Flush] {
        for seen in answer(command, |chunks| {
            let payload = b"\0\0\0\x1c\0\x04fullunknown fields";
            chunks.chunk(ReplyType(0x8abc), 1, payload)
        }) {
            let error = completed(seen.unwrap()).0.unwrap_err();
            assert_eq!((error.code, &*error.message), (ErrorCode::ENOSPC, "full"));
        }
    }
}

#[test]
fn an_error_chunk_that_is_wrong_in_itself_is_fatal() {
    for reply in [ReplyType::ERROR, ReplyType::ERROR_OFFSET, ReplyType(0x8abc)] {
        for payload in [
            &b""[..],
            b"\0\0\0\x05\0",
            b"\0\0\0\x05\0\x01",
            b"\0\0\0\x05\xff\xffshort",
            b"\0\0\0\0\0\0\0\0\0\0\0\0\x10\0",
        ] {
            for result in answer(READ, |chunks| chunks.chunk(reply, 1, payload)) {
                assert!(matches!(result, Err(Error::Malformed(_))), "{reply} {payload:?}");
            }
        }
        for result in answer(READ, |chunks| chunks.header(reply, 1, 8192)) {
            assert_eq!(result, Ok((vec![], vec![])), "fields that are not known yet");
        }
        for length in [8193, u64::from(u32::MAX)] {
            is_fatal(READ, LimitExceeded::Chunk { reply, length }, |chunks| {
                chunks.header(reply, 1, length)
            });
        }
    }
    for result in answer(READ, |chunks| {
        chunks.chunk(ReplyType::ERROR_OFFSET, 1, b"\0\0\0\x05\0\0\0\0\0\0\0\0\x10")
    }) {
        assert_eq!(result, Err(DecodeError::TooShort("offset").into()));
    }
}

#[test]
fn texts_of_any_bytes_can_be_shown() {
    for seen in
        answer(READ, |chunks| chunks.chunk(ReplyType::ERROR, 1, b"\0\0\0\x05\0\x05a\xff\x1b\0b"))
    {
        let error = completed(seen.unwrap()).0.unwrap_err();
        assert_eq!(error.message, "a\u{fffd}\u{fffd}\u{fffd}b");
    }
}

#[test]
fn unknown_error_values_are_einval() {
    for mode in ALL {
        let (mut client, chunks) = asked(mode, WRITE);
        let bytes = match mode {
            Mode::Simple => simple(ErrorCode(0x4321), chunks.cookie),
            _ => chunks.error(1, 0x4321, "", None),
        };
        let error = completed(complete(&mut client, &bytes)).0.unwrap_err();
        assert_eq!((error.code, error.raw), (ErrorCode::EINVAL, ErrorCode(0x4321)));
    }
}

#[test]
fn endless_errors_and_fragments_end_the_connection() {
    for mode in CHUNKED {
        let asked = || {
            let mut config = config(mode);
            config.limits.max_fragments = 10;
            let mut client = transmitting_with(mode, config);
            let (_, cookie) = request(&mut client, READ);
            (client, Chunks { mode, cookie, offset: 4096 })
        };
        let exceeded = Err(LimitExceeded::Fragments(10).into());
        for place in [None, Some(4096)] {
            let (mut client, chunks) = asked();
            for _ in 0..10 {
                feed(&mut client, &chunks.error(0, 5, "", place)).unwrap();
            }
            assert_eq!(feed(&mut client, &chunks.error(0, 5, "", place)), exceeded);
        }
        let (mut client, chunks) = asked();
        for at in 0..10 {
            feed(&mut client, &chunks.hole(0, 4096 + at * 2, 1)).unwrap();
        }
        assert_eq!(feed(&mut client, &chunks.hole(0, 4600, 1)), exceeded);
    }
}

#[test]
fn a_reply_that_belongs_to_no_request_is_fatal() {
    for mode in ALL {
        for wrong in [1, 1 << 32, u64::MAX] {
            let (mut client, chunks) = asked(mode, WRITE);
            let cookie = chunks.cookie ^ wrong;
            let bytes = match mode {
                Mode::Simple => simple(ErrorCode::OK, cookie),
                _ => Chunks { cookie, ..chunks }.none(),
            };
            let error = PeerMisbehaved::UnknownCookie(cookie);
            assert_eq!(feed(&mut client, &bytes), Err(error.into()));
        }
        // A second reply is as unknown.
        let (mut client, chunks) = asked(mode, WRITE);
        let bytes = match mode {
            Mode::Simple => simple(ErrorCode::OK, chunks.cookie),
            _ => chunks.none(),
        };
        feed(&mut client, &bytes).unwrap();
        let error = PeerMisbehaved::UnknownCookie(chunks.cookie);
        assert_eq!(feed(&mut client, &bytes), Err(error.into()));
    }
}

#[test]
fn an_extended_reply_repeats_the_offset_of_its_request() {
    for (command, sent) in [(READ, 4096), (Command::Flush, 0), (Command::resize(512), 512)] {
        let (mut client, chunks) = asked(Mode::Extended, command);
        let wrong = Chunks { offset: sent + 1, ..chunks };
        let error = PeerMisbehaved::WrongReplyOffset { sent, found: sent + 1 };
        assert_eq!(feed(&mut client, &wrong.error(1, 5, "", None)), Err(error.into()));
    }
}

#[test]
fn other_magics_than_those_negotiated_are_fatal() {
    let bad = |mode, bytes: &[u8], found| {
        let (mut client, _) = asked(mode, WRITE);
        match feed(&mut client, bytes) {
            Err(Error::Malformed(DecodeError::BadMagic { found: seen, .. })) => {
                assert_eq!(seen, u64::from(found));
            }
            other => panic!("{mode:?}: {other:?}"),
        }
    };
    let none = |mode| [Chunks { mode, cookie: 0, offset: 4096 }.none(), vec![0; 32]].concat();
    let simple = [simple(ErrorCode::OK, 0), vec![0; 32]].concat();
    bad(Mode::Simple, &none(Mode::Structured), magic::STRUCTURED_REPLY);
    bad(Mode::Simple, &none(Mode::Extended), magic::EXTENDED_REPLY);
    bad(Mode::Structured, &none(Mode::Extended), magic::EXTENDED_REPLY);
    bad(Mode::Extended, &none(Mode::Structured), magic::STRUCTURED_REPLY);
    bad(Mode::Extended, &simple, magic::SIMPLE_REPLY);
    for mode in ALL {
        bad(mode, &[0x96, 0x74, 0x46, 0x68].repeat(8), 0x9674_4668);
    }
}

#[test]
fn simple_replies_without_content_are_fine_among_structured_ones() {
    for (command, error, fatal) in [
        (WRITE, ErrorCode::OK, false),
        (WRITE, ErrorCode::EIO, false),
        (Command::Flush, ErrorCode::OK, false),
        (READ, ErrorCode::OK, true),
        (READ, ErrorCode::EINVAL, true),
        (Command::block_status(0, 1), ErrorCode::EINVAL, false),
        (Command::block_status(0, 1), ErrorCode::OK, true),
    ] {
        let (mut client, chunks) = asked(Mode::Structured, command);
        let result = feed(&mut client, &simple(error, chunks.cookie));
        let expected = PeerMisbehaved::SimpleReply(command.command_type());
        assert_eq!(result.err(), fatal.then_some(expected.into()), "{command:?} {error}");
    }
}

#[test]
fn a_simple_read_has_its_data_behind_the_header_and_a_failed_one_has_none() {
    let (mut client, chunks) = asked(Mode::Simple, READ);
    let bytes = [simple(ErrorCode::OK, chunks.cookie), vec![7; 1024]].concat();
    assert_eq!(completed(complete(&mut client, &bytes)), (Ok(()), vec![7; 1024]));
    let (_, first) = request(&mut client, READ);
    let (_, second) = request(&mut client, WRITE);
    let bytes = [simple(ErrorCode::EIO, first), simple(ErrorCode::OK, second)].concat();
    assert_eq!(feed(&mut client, &bytes).unwrap().len(), 2);
}

#[test]
fn a_write_that_is_answered_early_is_over_once_its_body_has_left() {
    for mode in ALL {
        let mut client = transmitting(mode);
        let id = client.begin(WRITE, vec![3; 1024]).unwrap();
        let head = if mode == Mode::Extended { 32 } else { 28 };
        assert_eq!(client.transmitted(head + 1000).unwrap().count(), 0);
        let bytes = match mode {
            Mode::Simple => simple(ErrorCode::ENOSPC, id_cookie()),
            _ => Chunks { mode, cookie: id_cookie(), offset: 4096 }.error(1, 28, "", None),
        };
        // The error chunk is seen at once, where there is one.
        let chunks = usize::from(mode != Mode::Simple);
        assert_eq!(feed(&mut client, &bytes).unwrap().len(), chunks);
        assert_eq!(client.command(id), Some(WRITE), "the buffer is still in use");
        assert_eq!(client.requests_in_flight(), 1);
        assert_eq!(client.transmitted(23).unwrap().count(), 0);
        assert_eq!(feed(&mut client, b""), Ok(vec![]));
        assert!(client.transmitted(1).unwrap().eq([id]), "the buffer is free");
        let (result, buffer) = completed(complete(&mut client, b""));
        assert_eq!((result.unwrap_err().code, buffer), (ErrorCode::ENOSPC, vec![3; 1024]));

        // A second answer is as unknown as ever, even while the first one is kept.
        let mut client = transmitting(mode);
        client.begin(WRITE, vec![3; 1024]).unwrap();
        assert_eq!(feed(&mut client, &bytes).unwrap().len(), chunks);
        let error = PeerMisbehaved::UnknownCookie(id_cookie());
        assert_eq!(feed(&mut client, &bytes), Err(error.into()));
        // The first one stays what the server said to this request.
        assert!(client.actor.abandoned.is_empty());
        assert_eq!(last_buffer(&client), vec![3; 1024]);

        // A success of which the payload never arrived is none.
        for count in [0, 1, head, head + 1023] {
            let mut client = transmitting(mode);
            client.begin(WRITE, vec![3; 1024]).unwrap();
            let _ = client.transmitted(count).unwrap();
            let bytes = match mode {
                Mode::Simple => simple(ErrorCode::OK, id_cookie()),
                _ => Chunks { mode, cookie: id_cookie(), offset: 4096 }.none(),
            };
            assert_eq!(feed(&mut client, &bytes), Ok(vec![]));
            let end = Error::UnexpectedEnd("requests in flight");
            assert_eq!(hang_up(&mut client), Err(end));
            let [(buffer, sent)] = &client.actor.abandoned[..] else { panic!("one is lost") };
            assert_eq!((&buffer.bytes[..], *sent), (&[3; 1024][..], count > 0));
        }
    }
}

/// The cookie of a client's first request.
fn id_cookie() -> u64 {
    let mut client = transmitting(Mode::Simple);
    request(&mut client, Command::Flush).1
}

#[test]
fn a_server_that_shuts_down_is_to_be_left() {
    for mode in ALL {
        let (mut client, chunks) = asked(mode, WRITE);
        let bytes = match mode {
            Mode::Simple => simple(ErrorCode::ESHUTDOWN, chunks.cookie),
            _ => chunks.error(1, 108, "bye", None),
        };
        let error = completed(complete(&mut client, &bytes)).0.unwrap_err();
        assert_eq!(error.code, ErrorCode::ESHUTDOWN);
        assert!(client.server_is_shutting_down());
        let refused = client.submit(READ).unwrap_err();
        assert_eq!(refused, SubmitError::ServerShuttingDown);
        client.disconnect();
        assert!(!sent(&mut client).is_empty());
        let closed = Event::Closed(Ok(OrderlyEnd::Disconnected));
        assert_eq!(feed(&mut client, b""), Ok(vec![closed]));
        assert_eq!(hang_up(&mut client), Ok(vec![]), "the end was reported");
    }
}

#[test]
fn each_way_to_hang_up_is_reported() {
    for mode in CHUNKED {
        let mut idle = transmitting(mode);
        let end = Error::UnexpectedEnd("the transmission phase");
        assert_eq!(hang_up(&mut idle), Err(end));
        let (mut client, chunks) = asked(mode, READ);
        let reply = chunks.data(1, 4096, &[1; 1024]);
        for (cut, what) in
            [(0, "requests in flight"), (1, "a reply"), (25, "a reply"), (500, "a reply")]
        {
            let (mut client, _) = asked(mode, READ);
            feed(&mut client, &reply[..cut]).unwrap();
            assert_eq!(hang_up(&mut client), Err(Error::UnexpectedEnd(what)));
            assert_eq!(client.actor.abandoned.len(), 1);
        }
        // What has wholly arrived counts, even if the stream ends before anybody looked.
        client.disconnect();
        let mut bytes = &reply[..];
        assert_eq!(client.next_event(&mut bytes), None);
        client.payload_received(1024).unwrap();
        let seen = hang_up(&mut client).unwrap();
        let closed = Event::Closed(Ok(OrderlyEnd::Disconnected));
        assert!(
            matches!(seen[0], Event::Completed { result: Ok(()), .. }) && seen[1..] == [closed]
        );
    }
}
