//! Requests: which are refused and how, and what is taken into account.

use nbd_proto::server::Config;
use nbd_proto::wire::{
    CommandFlags as Flag, CommandType as Cmd, ErrorCode, ReplyType, TransmissionFlags as Flags,
};
use nbd_proto::{Command, LimitExceeded, PauseReason, RequestId, Wants};

use crate::peer::*;

/// A block status request that lists contexts: effect length and numbers, as they are given.
fn listing(served: &mut Served, offset: u64, flags: Flag, payload: &[u8]) -> Vec<Chunk> {
    let (flags, length) = (flags | Flag::PAYLOAD_LEN, payload.len() as u64);
    served.ask(&request(Cmd::BLOCK_STATUS, flags, offset, length), payload)
}

fn awaited(served: &mut Served, id: RequestId) -> Vec<u32> {
    served.connection.reply(id).unwrap().awaited_contexts().collect()
}

fn list(length: u64, contexts: &[u32]) -> Vec<u8> {
    let mut payload = length.to_be_bytes().to_vec();
    contexts.iter().for_each(|context| payload.extend(context.to_be_bytes()));
    payload
}

fn in_sync(served: &mut Served) {
    assert_eq!(served.seen, []);
    served.ask(&plain(Cmd::FLUSH, 0, 0), &[]);
    let (id, command) = served.request();
    assert_eq!(command, Command::Flush);
    served.connection.reply(id).unwrap().finish().unwrap();
    assert_eq!(served.chunks()[0].error(), ErrorCode::OK);
}

/// S-EH-10, S-EH-11.
#[test]
fn a_list_of_contexts_is_taken_at_its_word_or_refused_in_sync() {
    let mut served = transmitting(Mode::Extended);
    let none = Flag::empty();
    assert_eq!(listing(&mut served, 512, Flag::REQ_ONE, &list(1024, &[3, 1])), []);
    let (id, command) = served.request();
    assert_eq!(command, Command::block_status(512, 1024).with_one());
    assert_eq!(awaited(&mut served, id), [3, 1]);
    served.connection.reply(id).unwrap().error(ErrorCode::EIO, "");
    served.said();
    listing(&mut served, 0, none, &list(SIZE, &[2]));
    let (id, command) = served.request();
    assert_eq!(command, Command::block_status(0, SIZE));
    assert_eq!(awaited(&mut served, id), [2]);

    for payload in [
        list(512, &[]),
        list(512, &[4]),
        list(512, &[1, 1]),
        list(512, &[1, 2, 3, 1]),
        list(0, &[1]),
        list(SIZE + 1, &[1]),
        list(u64::MAX, &[1]),
        list(512, &[1])[..11].to_vec(),
        [&list(512, &[1])[..], &[0]].concat(),
        [&list(512, &[1])[..], &[0, 0, 0]].concat(),
        vec![0; 4],
        vec![0; 1 << 20],
    ] {
        let chunks = listing(&mut served, 0, none, &payload);
        assert_eq!(chunks[0].error(), ErrorCode::EINVAL, "{} bytes", payload.len());
        in_sync(&mut served);
    }
    served.connection.shut_down();
    let chunks = listing(&mut served, 0, none, &list(512, &[1]));
    assert_eq!(chunks[0].error(), ErrorCode::ESHUTDOWN);
    assert_eq!(served.seen, []);
}

/// S-ROB-04: what can't be right is not kept until it has arrived.
#[test]
fn a_list_of_more_contexts_than_are_selected_is_dropped_as_it_comes() {
    let selected = transmitting(Mode::Extended).connection.export().unwrap().contexts.len() as u64;
    for (count, kept) in [(selected, true), (selected + 1, false), (1 << 20, false)] {
        let mut served = transmitting(Mode::Extended);
        let header = request(Cmd::BLOCK_STATUS, Flag::PAYLOAD_LEN, 0, 8 + 4 * count);
        served.hear(&served.encode(&header)).unwrap();
        // What is dropped is taken in whatever pieces it comes, and shows as refused in the end.
        let payload = list(512, &vec![1; count as usize]);
        let chunks = payload.chunks(100_000).map(|piece| {
            served.hear(piece).unwrap();
            served.chunks()
        });
        let chunks: Vec<_> = chunks.flatten().collect();
        assert_eq!(chunks[0].error(), ErrorCode::EINVAL, "{count}");
        assert_eq!(kept, count == selected);
    }
}

/// S-XF-07: without a selection there is nothing to list.
#[test]
fn a_list_of_contexts_without_a_selection_is_refused_in_sync() {
    let mut served = transmitting_with(Mode::Extended, Config::default(), {
        let mut info = export();
        info.contexts.clear();
        info
    });
    let chunks = listing(&mut served, 0, Flag::empty(), &list(512, &[1]));
    assert_eq!(chunks[0].error(), ErrorCode::EINVAL);
    in_sync(&mut served);
}

/// S-REQ-04, S-REQ-05, S-REQ-13, S-EH-13: each flag on each command.
#[test]
fn flags_are_refused_where_they_mean_nothing() {
    for (mode, negotiated) in MODES.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        for command in [
            Cmd::READ,
            Cmd::WRITE,
            Cmd::FLUSH,
            Cmd::TRIM,
            Cmd::CACHE,
            Cmd::WRITE_ZEROES,
            Cmd::BLOCK_STATUS,
        ] {
            if command == Cmd::BLOCK_STATUS && mode == Mode::Simple {
                continue;
            }
            for bit in 0..16 {
                let mut info = export();
                if !negotiated {
                    info.flags -= Flags::SEND_FUA | Flags::SEND_FAST_ZERO;
                }
                let mut served = transmitting_with(mode, Config::default(), info);
                let flag = Flag::from_bits_retain(1 << bit);
                let fine = match (command, flag) {
                    (_, Flag::FUA) => negotiated,
                    (Cmd::READ, Flag::DF) => mode != Mode::Simple,
                    (Cmd::WRITE_ZEROES, Flag::NO_HOLE) => true,
                    (Cmd::WRITE_ZEROES, Flag::FAST_ZERO) => negotiated,
                    (Cmd::BLOCK_STATUS, Flag::REQ_ONE) => true,
                    // Of 512 bytes, which is no list.
                    (Cmd::BLOCK_STATUS, Flag::PAYLOAD_LEN) => false,
                    (Cmd::WRITE, Flag::PAYLOAD_LEN) => mode == Mode::Extended,
                    _ => false,
                };
                let carries = mode == Mode::Extended && flag == Flag::PAYLOAD_LEN;
                let payload = if carries || command == Cmd::WRITE { 512 } else { 0 };
                let length = if command == Cmd::FLUSH && !carries { 0 } else { 512 };
                let chunks = served.ask(&request(command, flag, 0, length), &vec![1; payload]);
                if fine {
                    assert_eq!(chunks, [], "{mode:?} {command} {flag:?}");
                    let (_, seen) = served.request();
                    assert_eq!(seen.command_type(), command);
                    let kept = if flag == Flag::PAYLOAD_LEN { Flag::empty() } else { flag };
                    let writes = seen.is_write() || flag != Flag::FUA;
                    assert_eq!(seen.flags(), if writes { kept } else { Flag::empty() });
                } else {
                    assert_eq!(chunks[0].error(), ErrorCode::EINVAL, "{mode:?} {command} {flag:?}");
                    in_sync(&mut served);
                }
            }
        }
    }
}

/// S-EH-06 as the specification has it. In compact form there is no such flag, whatever the configuration says.
#[test]
fn a_payload_flag_can_be_insisted_on_under_extended_headers_alone() {
    let config = config(|config| config.require_payload_flag = true);
    for mode in MODES {
        let mut served = transmitting_with(mode, config.clone(), export());
        let bare = plain(Cmd::WRITE, 0, 512);
        if mode == Mode::Extended {
            assert_eq!(served.ask(&bare, &[])[0].error(), ErrorCode::EINVAL);
            in_sync(&mut served);
        } else {
            assert_eq!(served.ask(&bare, &[1; 512]), []);
            assert_eq!(served.request().1, Command::write(0, 512));
            in_sync(&mut served);
            // And the payload of a refused one is still a payload.
            let refused = served.ask(&plain(Cmd::WRITE, SIZE, 512), &[1; 512]);
            assert_eq!(refused[0].error(), ErrorCode::ENOSPC);
            in_sync(&mut served);
        }
    }
}

/// S-EH-04, S-SZ-09, S-SZ-10.
#[test]
fn a_payload_of_32_mib_is_consumed_and_a_longer_one_ends_the_session() {
    for mode in MODES {
        let mut config = Config::default();
        config.limits.max_payload = 1 << 20;
        let mut large = export();
        large.size = 1 << 30;
        let write = plain(Cmd::WRITE, 0, 1 << 25);
        let mut served = transmitting_with(mode, config.clone(), large.clone());
        assert_eq!(served.ask(&write, &vec![0; 1 << 25])[0].error(), ErrorCode::EINVAL);
        in_sync(&mut served);

        let mut served = transmitting_with(mode, config, large);
        let header = served.encode(&plain(Cmd::WRITE, 0, (1 << 25) + 1));
        let error = LimitExceeded::Payload { command: Cmd::WRITE, length: (1 << 25) + 1 };
        assert_eq!(served.hear(&header), Err(error.into()));
        assert!(served.said().is_empty());
    }
}

/// S-REQ-08: and the embedder need not know.
#[test]
fn requests_of_no_length_succeed_by_themselves() {
    for mode in MODES {
        let mut served = transmitting(mode);
        for command in [Cmd::READ, Cmd::WRITE, Cmd::TRIM, Cmd::CACHE, Cmd::WRITE_ZEROES] {
            let chunks = served.ask(&plain(command, SIZE, 0), &[]);
            assert_eq!((chunks.len(), chunks[0].error()), (1, ErrorCode::OK), "{command}");
            // A simple reply is fine unless the command is one that could have content (S-REP-SIMPLE-02).
            let simple = matches!(chunks[0], Chunk::Simple(..));
            let expected = match mode {
                Mode::Simple => true,
                Mode::Structured => command != Cmd::READ,
                Mode::Extended => false,
            };
            assert_eq!(simple, expected, "{mode:?} {command}");
            assert_eq!(served.seen, []);
        }
    }
}

/// A client that asks for maps and reads none stops itself, in whichever form it asks.
#[test]
fn block_status_counts_with_all_the_extents_that_it_may_get() {
    for form in
        [plain(Cmd::BLOCK_STATUS, 0, SIZE), request(Cmd::BLOCK_STATUS, Flag::PAYLOAD_LEN, 0, 12)]
    {
        let mut config = Config::default();
        (config.limits.max_extents, config.limits.max_in_flight_bytes) = (100, 10_000);
        let mut served = transmitting_with(Mode::Extended, config, export());
        let payload = if form.flags.is_empty() { vec![] } else { list(SIZE, &[1]) };
        let bytes = [served.encode(&form), payload].concat();
        let mut taken = 0;
        while matches!(served.connection.wants(), Wants::Bytes { .. }) {
            served.hear(&bytes).unwrap();
            taken += 1;
            assert!(taken < 100, "it never stops");
        }
        let paused = served.connection.wants();
        assert_eq!(paused, Wants::Nothing(PauseReason::TooManyBytes));
        assert!(served.leaves_alone(&bytes));
        // Three contexts of 100 extents with 16 bytes each: two fit, and the third shows that they are too many.
        assert_eq!(
            served.connection.requests_in_flight(),
            if form.flags.is_empty() { 2 } else { 3 }
        );
    }
}

/// C-XF-12's other side: what is not advertised is not done.
#[test]
fn commands_that_were_not_advertised_are_refused() {
    for mode in MODES {
        let mut info = export();
        (info.flags, info.contexts) = (Flags::empty(), Vec::new());
        let mut served = transmitting_with(mode, Config::default(), info);
        for command in [
            Cmd::FLUSH,
            Cmd::TRIM,
            Cmd::CACHE,
            Cmd::WRITE_ZEROES,
            Cmd::BLOCK_STATUS,
            Cmd::RESIZE,
            Cmd(9),
            Cmd(0xffff),
        ] {
            let chunks = served.ask(&plain(command, 0, 512), &[]);
            assert_eq!(chunks[0].error(), ErrorCode::EINVAL, "{command}");
            assert_eq!(served.seen, []);
        }
        let chunks = served.ask(&plain(Cmd::READ, 0, 512), &[]);
        assert_eq!(chunks, []);
        assert!(matches!(served.request().1, Command::Read { .. }));
    }
}

/// S-EH-02, S-REP-01: of refused requests, too.
#[test]
fn extended_errors_repeat_cookie_and_offset() {
    let mut served = transmitting(Mode::Extended);
    for command in [Cmd::READ, Cmd::FLUSH, Cmd::TRIM, Cmd(99)] {
        let mut odd = request(command, Flag::from_bits_retain(0x8000), u64::MAX - 5, 512);
        odd.cookie = 0x0123_4567_89ab_cdef;
        served.hear(&served.encode(&odd)).unwrap();
        let said = served.said();
        assert_eq!(said[8..16], odd.cookie.to_be_bytes());
        assert_eq!(said[16..24], odd.offset.to_be_bytes());
        assert_eq!(said[6..8], ReplyType::ERROR.0.to_be_bytes());
    }
}
