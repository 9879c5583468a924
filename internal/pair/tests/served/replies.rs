//! Replies, where the embedder asks for what the protocol does not have.

use nbd_proto::server::Config;
use nbd_proto::wire::{CommandFlags as Flag, CommandType as Cmd, ErrorCode, ReplyType};
use nbd_proto::{BlockSize, ContextInfo, Extent};

use crate::peer::*;

/// A request of 1024 bytes from 512 on that reached the embedder.
fn asked(served: &mut Served, command: Cmd, flags: Flag) -> nbd_proto::RequestId {
    let payload = if command == Cmd::WRITE { vec![0; 1024] } else { vec![] };
    assert_eq!(served.ask(&request(command, flags, 512, 1024), &payload), []);
    served.request().0
}

/// S-ERR-01 to S-ERR-05, S-CMD-WZ-03, S-CMD-WZ-04.
#[test]
fn error_values_are_those_that_the_command_can_have() {
    const ALL: [ErrorCode; 10] = [
        ErrorCode::EPERM,
        ErrorCode::EIO,
        ErrorCode::ENOMEM,
        ErrorCode::EINVAL,
        ErrorCode::ENOSPC,
        ErrorCode::EOVERFLOW,
        ErrorCode::ENOTSUP,
        ErrorCode::ESHUTDOWN,
        ErrorCode(2),
        ErrorCode::OK,
    ];
    let fast = Flag::FAST_ZERO;
    for (command, flags) in [
        (Cmd::READ, Flag::empty()),
        (Cmd::WRITE, Flag::empty()),
        (Cmd::TRIM, Flag::empty()),
        (Cmd::WRITE_ZEROES, Flag::empty()),
        (Cmd::WRITE_ZEROES, fast),
    ] {
        for mode in MODES {
            for code in ALL {
                let expected = match code {
                    ErrorCode::EPERM
                    | ErrorCode::EIO
                    | ErrorCode::ENOMEM
                    | ErrorCode::EINVAL
                    | ErrorCode::ESHUTDOWN => code,
                    ErrorCode::ENOSPC if command != Cmd::READ => code,
                    ErrorCode::EOVERFLOW if command == Cmd::WRITE || flags == fast => {
                        ErrorCode::EINVAL
                    }
                    ErrorCode::EOVERFLOW => code,
                    ErrorCode::ENOTSUP if flags == fast => code,
                    ErrorCode::ENOTSUP => ErrorCode::EINVAL,
                    _ => ErrorCode::EIO,
                };
                let mut served = transmitting(mode);
                let id = asked(&mut served, command, flags);
                served.connection.reply(id).unwrap().error(code, "text");
                let chunks = served.chunks();
                assert_eq!((chunks.len(), chunks[0].error()), (1, expected), "{command} {code}");

                // A part that failed is reported alike.
                let mut served = transmitting(mode);
                let id = asked(&mut served, command, flags);
                let mut reply = served.connection.reply(id).unwrap();
                reply.error_at(code, 600, "text").unwrap();
                reply.finish().unwrap();
                let found = match &served.chunks()[0] {
                    Chunk::Simple(error, _) => *error,
                    Chunk::Chunk(ReplyType::ERROR_OFFSET, false, payload) => {
                        ErrorCode(u32::from_be_bytes(*payload.first_chunk().unwrap()))
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(found, expected, "{command} {code} in a part");
            }
        }
    }
}

/// S-CMD-READ-02: and nothing behind it.
#[test]
fn a_simple_error_has_no_content() {
    let mut served = transmitting(Mode::Simple);
    let id = asked(&mut served, Cmd::READ, Flag::empty());
    let mut reply = served.connection.reply(id).unwrap();
    reply.data(512, 1000).unwrap();
    reply.error_at(ErrorCode::EIO, 1512, "late").unwrap();
    reply.finish().unwrap();
    assert_eq!(served.chunks(), [Chunk::Simple(ErrorCode::EIO, vec![])]);
}

/// S-REP-STRUCT-07, S-REP-SIMPLE-01: pieces given in any order come in one, holes as zeroes.
#[test]
fn a_reply_in_one_piece_is_put_in_order() {
    let expected = [&[0; 100][..], &[0xbb; 412], &[0; 500], &[0xbb; 12]].concat();
    for (mode, flags) in
        [(Mode::Simple, Flag::empty()), (Mode::Structured, Flag::DF), (Mode::Extended, Flag::DF)]
    {
        let mut served = transmitting(mode);
        let id = asked(&mut served, Cmd::READ, flags);
        let mut reply = served.connection.reply(id).unwrap();
        reply.hole(1024, 500).unwrap();
        reply.data(1524, 12).unwrap();
        reply.data(612, 412).unwrap();
        reply.hole(512, 100).unwrap();
        reply.finish().unwrap();
        let chunk = match mode {
            Mode::Simple => Chunk::Simple(ErrorCode::OK, expected.clone()),
            _ => {
                let payload = [&512_u64.to_be_bytes()[..], &expected].concat();
                Chunk::Chunk(ReplyType::OFFSET_DATA, true, payload)
            }
        };
        assert_eq!(served.chunks(), [chunk]);
    }
    // DF, and an error after some of it: no content at all.
    let mut served = transmitting(Mode::Structured);
    let id = asked(&mut served, Cmd::READ, Flag::DF);
    let mut reply = served.connection.reply(id).unwrap();
    reply.data(512, 12).unwrap();
    reply.error_at(ErrorCode::EIO, 600, "").unwrap();
    reply.finish().unwrap();
    let chunks = served.chunks();
    assert_eq!((chunks.len(), chunks[0].error()), (1, ErrorCode::EIO));
}

/// What is reported of the first context in reply to a status request.
fn told(served: &mut Served, length: u64, one: bool, extents: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    let flags = if one { Flag::REQ_ONE } else { Flag::empty() };
    assert_eq!(served.ask(&request(Cmd::BLOCK_STATUS, flags, 512, length), &[]), []);
    let (id, _) = served.request();
    let extended = served.connection.export().unwrap().extended;
    let mut reply = served.connection.reply(id).unwrap();
    for context in reply.awaited_contexts() {
        let extents = extents.iter().map(|&(length, status)| Extent { length, status });
        reply.extents(context, extents).unwrap();
    }
    reply.finish().unwrap();
    let Some(Chunk::Chunk(reply, _, payload)) = served.chunks().into_iter().next() else {
        panic!()
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let (fixed, half) = if extended { (8, 8) } else { (4, 4) };
    // S-EH-07, S-EH-08.
    let expected = if extended { ReplyType::BLOCK_STATUS_EXT } else { ReplyType::BLOCK_STATUS };
    assert_eq!(reply, expected);
    let told: Vec<_> = payload[fixed..]
        .chunks_exact(2 * half)
        .map(|one| (number(&one[..half]), number(&one[half..])))
        .collect();
    assert!(!extended || number(&payload[4..8]) == told.len() as u64);
    assert_eq!(payload.len(), fixed + told.len() * 2 * half);
    told
}

fn with_context(mode: Mode, config: Config, size: u64, context: ContextInfo) -> Served {
    let mut info = export();
    (info.size, info.contexts) = (size, vec![context]);
    let mut served = negotiating(config);
    served.embedder.exports[1].1 = info;
    served.agree(match mode {
        Mode::Extended => nbd_proto::wire::OptionCode::EXTENDED_HEADERS,
        _ => nbd_proto::wire::OptionCode::STRUCTURED_REPLY,
    });
    let name = served.embedder.exports[1].1.contexts[0].name().to_owned();
    let set = nbd_proto::wire::OptionCode::SET_META_CONTEXT;
    served.contexts(set, "disk", &[&name]);
    let go = go("disk", &[]);
    served.option(nbd_proto::wire::OptionCode::GO, &go);
    served
}

fn chunked(size: u64) -> [Served; 2] {
    [Mode::Structured, Mode::Extended]
        .map(|mode| with_context(mode, Config::default(), size, ContextInfo::base_allocation()))
}

/// S-CMD-BS-02 to S-CMD-BS-06.
#[test]
fn extents_are_joined_and_cut_to_what_a_reply_may_hold() {
    for mut served in chunked(SIZE) {
        for (extents, expected) in [
            (vec![(512, 1), (0, 2), (512, 1), (10, 0)], vec![(1024, 1)]),
            (vec![(512, 1), (512, 2), (1, 3)], vec![(512, 1), (512, 2)]),
            // The last one may say more than was asked, but not more than there is.
            (vec![(512, 1), (5120, 2), (1, 3)], vec![(512, 1), (5120, 2)]),
            (vec![(u64::MAX, 1)], vec![(SIZE - 512, 1)]),
            (vec![(512, 1)], vec![(512, 1)]),
            // A block of several kinds is none of them alone: allocation is what all of it has.
            (vec![(512, 1), (511, 2), (1, 3)], vec![(512, 1), (512, 2)]),
            (vec![(500, 3), (12, 1), (512, 3)], vec![(512, 1), (512, 3)]),
            // What is known of half a block is not known of the block.
            (vec![(512, 1), (5000, 2)], vec![(512, 1), (4608, 2)]),
        ] {
            assert_eq!(told(&mut served, 1024, false, extents.clone()), expected);
            // One means one, and no longer than asked.
            let one = (expected[0].0.min(1024), expected[0].1);
            assert_eq!(told(&mut served, 1024, true, extents), [one]);
        }
    }
}

/// The iterator is the caller's: the reply can be built while it runs.
#[test]
fn awaited_contexts_are_those_that_were_not_given_yet() {
    for mode in [Mode::Structured, Mode::Extended] {
        let mut served = transmitting(mode);
        let selected = served.connection.export().unwrap().contexts.to_vec();
        let id = asked(&mut served, Cmd::BLOCK_STATUS, Flag::empty());
        let mut reply = served.connection.reply(id).unwrap();
        let awaited = reply.awaited_contexts();
        assert_eq!(awaited.len(), selected.len());
        assert!(awaited.clone().eq(selected.iter().map(|context| context.id)));
        for (given, context) in (1..).zip(awaited) {
            reply.extents(context, [Extent { length: SIZE, status: 1 }]).unwrap();
            let rest = reply.awaited_contexts();
            assert_eq!(rest.len(), selected.len() - given);
            assert!(rest.eq(selected[given..].iter().map(|context| context.id)));
        }
        reply.finish().unwrap();
        served.said();
        let id = asked(&mut served, Cmd::READ, Flag::empty());
        assert_eq!(served.connection.reply(id).unwrap().awaited_contexts().next(), None);
    }
}

/// S-CMD-BS-07, S-REP-STRUCT-13: by the limit, by 2^20, and by the longest payload.
#[test]
fn extents_are_bounded() {
    let many = |count: u64| (0..count).map(|at| (512, at % 2)).collect::<Vec<_>>();
    for mode in [Mode::Structured, Mode::Extended] {
        let allocation = ContextInfo::base_allocation;
        let mut config = Config::default();
        config.limits.max_extents = 7;
        let mut served = with_context(mode, config.clone(), 1 << 40, allocation());
        assert_eq!(told(&mut served, 1 << 30, false, many(100)), many(7));
        config.limits.max_extents = u32::MAX;
        let mut served = with_context(mode, config.clone(), 1 << 40, allocation());
        assert_eq!(told(&mut served, 1 << 30, false, many((1 << 20) + 9)).len(), 1 << 20);
        config.limits.max_payload = 4096;
        let mut served = with_context(mode, config, 1 << 40, allocation());
        let most = if mode == Mode::Extended { 256 } else { 512 };
        assert_eq!(told(&mut served, 1 << 30, false, many(1000)).len(), most);
    }
}

/// S-EH-09: the upper half of what is no wide status is 0.
#[test]
fn a_status_has_as_many_bits_as_its_context() {
    let status = 0x1_2345_6789;
    for (mode, context, expected) in [
        (Mode::Structured, ContextInfo::base_allocation(), 0x2345_6789),
        (Mode::Extended, ContextInfo::base_allocation(), 0x2345_6789),
        (Mode::Extended, ContextInfo::new("x-a:wide").unwrap().wide(), status),
    ] {
        let mut served = with_context(mode, Config::default(), SIZE, context);
        assert_eq!(told(&mut served, 1024, false, vec![(1024, status)]), [(1024, expected)]);
    }
}

/// What 32 bits can't express is left for the next request, and nothing is reported of what lies behind it.
#[test]
fn an_extent_of_more_than_32_bits_is_cut_and_ends_the_reply() {
    let [mut structured, mut extended] = chunked(1 << 40);
    let extents = vec![(1 << 33, 1), (512, 2)];
    let [(length, 1)] = told(&mut structured, (4 << 30) - 512, false, extents.clone())[..] else {
        panic!()
    };
    assert!(length < 1 << 32 && length.is_multiple_of(1 << 16), "{length}");
    assert_eq!(told(&mut extended, (1 << 33) + 512, false, extents.clone()), extents);
}

/// The export is not asked for more than can be reported.
#[test]
fn extents_behind_the_last_one_that_counts_are_not_asked_for() {
    for mut served in chunked(SIZE) {
        served.ask(&plain(Cmd::BLOCK_STATUS, 0, 1024), &[]);
        let (id, _) = served.request();
        let mut reply = served.connection.reply(id).unwrap();
        let mut given = 0;
        let endless = std::iter::repeat_with(|| {
            given += 1;
            assert!(given < 10, "it never stops");
            Extent { length: 512, status: 0 }
        });
        reply.extents(1, endless).unwrap();
        reply.finish().unwrap();
        assert_eq!(given, 2);
    }
}

/// S-CMD-BS-06: blocks of the export, where it has some. Content that is reported has bounds of its own.
#[test]
fn reads_are_not_bound_to_the_blocks_of_their_embedder() {
    let mut info = export();
    info.block_size = BlockSize::new(512, 4096, 1 << 20).unwrap();
    let mut served = transmitting_with(Mode::Extended, Config::default(), info);
    let id = asked(&mut served, Cmd::READ, Flag::empty());
    let mut reply = served.connection.reply(id).unwrap();
    reply.data(512, 100).unwrap();
    reply.hole(612, 924).unwrap();
    reply.finish().unwrap();
    let chunks = served.chunks();
    let kinds: Vec<_> = chunks
        .iter()
        .map(|chunk| match chunk {
            Chunk::Chunk(reply, done, _) => (*reply, *done),
            Chunk::Simple(..) => panic!("{chunk:?}"),
        })
        .collect();
    assert_eq!(kinds, [(ReplyType::OFFSET_DATA, false), (ReplyType::OFFSET_HOLE, true)]);
}
