//! Replies to block status requests.

use nbd_proto::client::Event;
use nbd_proto::wire::{BlockStatusDescriptor, DecodeError, ErrorCode, ReplyType};
use nbd_proto::{Command, Error, Extent, LimitExceeded, PeerMisbehaved};

use crate::peer::*;

const STATUS: Command = Command::block_status(512, 1024);
const ONE: Command = Command::block_status(512, 1024).with_one();
const CHUNKED: [Mode; 2] = [Mode::Structured, Mode::Extended];

/// The payload of a status chunk, as this mode has it.
fn payload(mode: Mode, context: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    if mode == Mode::Extended {
        payload.extend((extents.len() as u32).to_be_bytes());
    }
    for &(length, status) in extents {
        BlockStatusDescriptor { length, status }.encode(mode == Mode::Extended, &mut payload);
    }
    payload
}

const fn status_type(mode: Mode) -> ReplyType {
    match mode {
        Mode::Extended => ReplyType::BLOCK_STATUS_EXT,
        _ => ReplyType::BLOCK_STATUS,
    }
}

fn status(chunks: Chunks, flags: u16, context: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    chunks.chunk(status_type(chunks.mode), flags, &payload(chunks.mode, context, extents))
}

fn answer(command: Command, bytes: impl Fn(Chunks) -> Vec<u8>) -> [Result<Seen, Error>; 2] {
    CHUNKED.map(|mode| {
        let mut client = transmitting(mode);
        let (_, cookie) = request(&mut client, command);
        feed(&mut client, &bytes(Chunks { mode, cookie, offset: 512 }))
    })
}

fn is_fatal(command: Command, error: impl Into<Error>, bytes: impl Fn(Chunks) -> Vec<u8>) {
    let error = error.into();
    for result in answer(command, bytes) {
        assert_eq!(result, Err(error));
    }
}

fn extents(seen: &Seen) -> Vec<(u32, Vec<(u64, u64)>)> {
    let told = seen.iter().filter_map(|event| match event {
        Event::Extents { context, extents, .. } => Some((*context, extents)),
        _ => None,
    });
    told.map(|(context, extents)| {
        (context, extents.iter().map(|&Extent { length, status }| (length, status)).collect())
    })
    .collect()
}

#[test]
fn each_context_is_reported_in_any_order() {
    for seen in answer(STATUS, |chunks| {
        let second = status(chunks, 0, 9, &[(10, 7)]);
        // Equal neighbours, little in all, and more than was asked: all of that is allowed.
        // So are bits that mean nothing yet (C-META-07).
        [second, status(chunks, 1, 5, &[(512, 3), (12, 3), (1 << 20, 0x8000_0004)])].concat()
    }) {
        let seen = seen.unwrap();
        let expected = [(9, vec![(10, 7)]), (5, vec![(512, 3), (12, 3), (1 << 20, 0x8000_0004)])];
        assert_eq!(extents(&seen), expected);
        assert!(matches!(seen[2], Event::Completed { result: Ok(()), .. }));
    }
}

#[test]
fn a_missing_context_fails_the_request_unless_an_error_was_reported() {
    for seen in answer(STATUS, |chunks| status(chunks, 1, 9, &[(10, 7)])) {
        let seen = seen.unwrap();
        let Some(Event::Completed { result: Err(error), .. }) = seen.last() else {
            panic!("{seen:?}")
        };
        assert_eq!(error.code, ErrorCode::EIO);
    }
    for seen in answer(STATUS, |chunks| {
        [status(chunks, 0, 9, &[(10, 7)]), chunks.error(1, 12, "tired", None)].concat()
    }) {
        let seen = seen.unwrap();
        let Some(Event::Completed { result: Err(error), .. }) = seen.last() else {
            panic!("{seen:?}")
        };
        assert_eq!(error.code, ErrorCode::ENOMEM);
    }
}

#[test]
fn a_context_that_was_not_selected_or_comes_twice_is_fatal() {
    for context in [0, 4, u32::MAX] {
        let error = PeerMisbehaved::UnexpectedContext(context);
        is_fatal(STATUS, error, |chunks| status(chunks, 1, context, &[(1, 1)]));
    }
    is_fatal(STATUS, PeerMisbehaved::UnexpectedContext(5), |chunks| {
        [status(chunks, 0, 5, &[(1, 1)]), status(chunks, 1, 5, &[(1, 1)])].concat()
    });
}

#[test]
fn only_the_contexts_that_were_asked_about_are_reported() {
    let mut client = transmitting(Mode::Extended);
    client.begin_block_status((512, 1024, false), &[9]).unwrap();
    let sent = sent(&mut client);
    assert_eq!(sent[32..], [0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 9]);
    let cookie = u64::from_be_bytes(sent[8..16].try_into().unwrap());
    let chunks = Chunks { mode: Mode::Extended, cookie, offset: 512 };
    let error = PeerMisbehaved::UnexpectedContext(5);
    assert_eq!(feed(&mut client, &status(chunks, 1, 5, &[(1, 1)])), Err(error.into()));
}

#[test]
fn one_extent_means_one_and_not_a_longer_one() {
    let error = PeerMisbehaved::MoreThanOneExtent;
    is_fatal(ONE, error, |chunks| status(chunks, 1, 5, &[(1, 1), (1, 2)]));
    is_fatal(ONE, error, |chunks| status(chunks, 1, 5, &[(1025, 1)]));
    for seen in answer(ONE, |chunks| {
        [status(chunks, 0, 5, &[(1024, 1)]), status(chunks, 1, 9, &[(1, 1)])].concat()
    }) {
        assert_eq!(seen.unwrap().len(), 3);
    }
}

#[test]
fn extents_of_no_length_or_without_an_end_are_fatal() {
    let error = DecodeError::BadValue("extent length");
    is_fatal(STATUS, error, |chunks| status(chunks, 1, 5, &[(0, 0)]));
    is_fatal(STATUS, error, |chunks| status(chunks, 1, 5, &[(1, 0), (0, 1)]));
    let mut client = transmitting(Mode::Extended);
    let (_, cookie) = request(&mut client, STATUS);
    let chunks = Chunks { mode: Mode::Extended, cookie, offset: 512 };
    let bytes = status(chunks, 1, 5, &[(u64::MAX - 512, 0), (1, 1)]);
    assert_eq!(feed(&mut client, &bytes), Err(error.into()));
}

#[test]
fn extended_extents_have_all_their_bits() {
    let mut client = transmitting(Mode::Extended);
    let (_, cookie) = request(&mut client, STATUS);
    let chunks = Chunks { mode: Mode::Extended, cookie, offset: 512 };
    let all = [((1 << 62) + 1, 1 << 63), (u64::MAX - 512 - (1 << 62) - 1, 3)];
    let seen = feed(&mut client, &status(chunks, 0, 9, &all)).unwrap();
    assert_eq!(extents(&seen), [(9, all.to_vec())]);
}

#[test]
fn lengths_and_counts_that_do_not_fit_are_fatal() {
    let bad = DecodeError::BadValue("chunk length");
    for length in [0, 3, 4, 8, 11, 13, 23, 25] {
        let length_fits_compact = length == 12;
        assert!(!length_fits_compact);
        for (mode, result) in CHUNKED
            .into_iter()
            .zip(answer(STATUS, |chunks| chunks.header(status_type(chunks.mode), 1, length)))
        {
            assert_eq!(result, Err(bad.into()), "{mode:?} {length}");
        }
    }
    for count in [0_u32, 1, 3, u32::MAX] {
        let mut client = transmitting(Mode::Extended);
        let (_, cookie) = request(&mut client, STATUS);
        let chunks = Chunks { mode: Mode::Extended, cookie, offset: 512 };
        let mut payload = payload(Mode::Extended, 5, &[(1, 1), (2, 2)]);
        payload[4..8].copy_from_slice(&count.to_be_bytes());
        let bytes = chunks.chunk(ReplyType::BLOCK_STATUS_EXT, 1, &payload);
        let error = DecodeError::BadValue("descriptor count");
        assert_eq!(feed(&mut client, &bytes), Err(error.into()));
    }
}

#[test]
fn each_kind_of_header_has_its_own_chunk() {
    for (mode, reply) in
        [(Mode::Structured, ReplyType::BLOCK_STATUS_EXT), (Mode::Extended, ReplyType::BLOCK_STATUS)]
    {
        let mut client = transmitting(mode);
        let (_, cookie) = request(&mut client, STATUS);
        let chunks = Chunks { mode, cookie, offset: 512 };
        let error = PeerMisbehaved::UnexpectedReply { command: STATUS.command_type(), reply };
        assert_eq!(feed(&mut client, &chunks.header(reply, 1, 24)), Err(error.into()));
    }
}

#[test]
fn more_extents_than_the_limit_are_fatal_before_they_arrive() {
    for mode in CHUNKED {
        let (fixed, each) = if mode == Mode::Extended { (8, 16) } else { (4, 8) };
        for (count, fits) in [(1 << 20, true), ((1 << 20) + 1, false)] {
            let mut client = transmitting(mode);
            let (_, cookie) = request(&mut client, STATUS);
            let chunks = Chunks { mode, cookie, offset: 512 };
            let (reply, length) = (status_type(mode), fixed + each * count);
            let result = feed(&mut client, &chunks.header(reply, 1, length));
            let error = LimitExceeded::Chunk { reply, length };
            assert_eq!(result.err(), (!fits).then_some(error.into()));
        }
    }
}

#[test]
fn many_extents_are_handed_on_in_batches() {
    let many: Vec<(u64, u64)> = (0..2000).map(|at| (1 + at % 3, at)).collect();
    for seen in answer(STATUS, |chunks| {
        [status(chunks, 0, 5, &many), status(chunks, 1, 9, &[(1, 1)])].concat()
    }) {
        let told = extents(&seen.unwrap());
        let sizes: Vec<_> =
            told.iter().map(|(context, extents)| (*context, extents.len())).collect();
        assert_eq!(sizes, [(5, 512), (5, 512), (5, 512), (5, 464), (9, 1)]);
        assert_eq!(told[..4].iter().flat_map(|(_, part)| part.clone()).collect::<Vec<_>>(), many);
    }
}
