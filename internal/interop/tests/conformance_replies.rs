//! Replies, simple and structured (section 11, S-OPT-SR-01, S-OPT-SR-03). The rules for the form of a chunk are
//! checked by the client on every reply; these tests make the server send the replies that matter.

use nbd_interop::{MIB, in_each_mode, in_modes};
use nbd_testkit::raw::{Cmd, Errno, Mode, RawClient, Request, cmd_flag, flag};
use nbd_testkit::server::{NbdServe, Setup};
use nbd_testkit::{Pattern, assert_same_bytes, assert_zero, matrix};

matrix! {
    tcp_and_unix: [
        structured_reads_are_reassembled,
        interleaved_replies_are_distinguished,
    ],
    unix: [
        replies_are_simple_without_negotiation,
        every_read_is_answered_by_chunks_once_negotiated,
        failing_reads_are_answered_by_error_chunks,
        errors_travel_in_chunks,
        error_texts_are_for_humans,
        sparse_reads_are_covered_without_overlap,
        holes_of_memory_are_sent_as_holes,
        unfragmented_reads_have_one_content_chunk,
        unfragmented_reads_of_64_kib_always_work,
        long_unfragmented_reads_are_whole_or_eoverflow,
        unaligned_reads_keep_to_their_range,
        data_of_a_file_and_its_holes_are_read,
        only_known_errors_are_sent,
    ],
}

const STRUCTURED: [Mode; 2] = [Mode::Structured, Mode::Extended];

/// Commands that end the session or change the export as a whole.
const SPECIAL: [Cmd; 2] = [Cmd::DISC, Cmd::RESIZE];

/// An export of 1 MiB with data in every other stretch of 64 KiB.
fn striped(setup: Setup) -> NbdServe {
    let server = setup.serving("memory:1M");
    let mut client = RawClient::go_simple(server.endpoint());
    for stripe in (0..16).step_by(2) {
        client.write(stripe << 16, &Pattern(1).bytes(stripe << 16, 1 << 16));
    }
    client.finish();
    server
}

/// What [`striped`] holds.
fn stripes() -> Vec<u8> {
    let mut content = Pattern(1).bytes(0, MIB as usize);
    for stripe in (1..16).step_by(2) {
        content[stripe << 16..(stripe + 1) << 16].fill(0);
    }
    content
}

/// S-REP-SIMPLE-01, S-OPT-SR-03: for all commands, good and bad (the client insists on the magic).
fn replies_are_simple_without_negotiation(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_modes(&[Mode::Simple], &server, |client| {
        for command in (0..10).filter(|&command| !SPECIAL.contains(&Cmd(command))) {
            for offset in [0, MIB] {
                let mut request = Request::new(Cmd(command), offset, 512);
                if request.command == Cmd::WRITE {
                    request = request.payload(&[1; 512]);
                }
                assert!(client.call(&request).simple);
            }
        }
    });
}

/// S-OPT-SR-01, S-REP-SIMPLE-02, S-REP-STRUCT-06.
fn every_read_is_answered_by_chunks_once_negotiated(setup: Setup) {
    let server = striped(setup);
    in_modes(&STRUCTURED, &server, |client| {
        for (offset, length) in [(0, 1), (0, 0), (0, MIB), (65535, 2), (MIB - 1, 1)] {
            let reply = client.call(&Request::read(offset, length)).ok();
            assert!(!reply.simple);
        }
    });
}

/// S-REP-SIMPLE-02, S-REP-STRUCT-15, S-CMD-READ-02: errors found early included.
fn failing_reads_are_answered_by_error_chunks(setup: Setup) {
    let server = striped(setup);
    in_modes(&STRUCTURED, &server, |client| {
        let failing = [
            Request::read(MIB, 1),
            Request::read(0, MIB + 1),
            Request::read(u64::MAX, 1),
            Request::read(0, 512).flags(1 << 15),
            Request::read(0, 512).flags(cmd_flag::NO_HOLE),
        ];
        for request in failing {
            let reply = client.call(&request);
            reply.expect_error(Errno::EINVAL);
            assert!(!reply.simple && reply.content.is_empty());
        }
    });
}

/// S-REP-STRUCT-12, S-REP-STRUCT-11, S-REP-STRUCT-09: errors of the other commands, too (the client checks that
/// chunk types and offsets fit the command).
fn errors_travel_in_chunks(setup: Setup) {
    let server = striped(setup);
    in_modes(&STRUCTURED, &server, |client| {
        let failing = [
            Request::write(MIB, &[1; 512]),
            Request::write_zeroes(MIB, 512),
            Request::trim(MIB, 512),
            Request::cache(MIB, 512),
            Request::block_status(MIB, 512),
            Request::flush().flags(1 << 15),
            Request::new(Cmd(99), 0, 0),
        ];
        for request in failing {
            let reply = client.call(&request);
            assert!(reply.error().is_some() && !reply.simple, "{:?}: {reply:?}", request.command);
        }
    });
}

/// S-REP-STRUCT-08, S-REP-STRUCT-10, B-CONV-04: one error chunk, its text (if any) a short valid string.
fn error_texts_are_for_humans(setup: Setup) {
    let server = striped(setup);
    in_modes(&STRUCTURED, &server, |client| {
        for request in [Request::read(MIB, 512), Request::trim(MIB, 1), Request::new(Cmd(99), 0, 0)]
        {
            let reply = client.call(&request);
            assert_eq!(reply.errors.len(), 1, "{reply:?}");
            assert!(!reply.errors[0].text.chars().any(char::is_control), "{reply:?}");
        }
    });
}

/// S-REP-STRUCT-01 to -06: odd ranges over data and holes.
fn structured_reads_are_reassembled(setup: Setup) {
    let server = striped(setup);
    let content = stripes();
    in_modes(&STRUCTURED, &server, |client| {
        for (offset, length) in
            [(0, 1 << 20), (1, 65535), (65530, 12), (100, 900_001), (65536, 65536), (131_071, 2)]
        {
            let expected = &content[offset..offset + length];
            let found = client.read(offset as u64, length as u64);
            assert_same_bytes(&found, expected, "range");
        }
    });
}

/// S-REP-STRUCT-05, S-REP-STRUCT-06: every sector alone, and many at once.
fn sparse_reads_are_covered_without_overlap(setup: Setup) {
    let server = setup.serving("memory:1M");
    let mut writer = RawClient::go_simple(server.endpoint());
    let mut content = vec![0; MIB as usize];
    for at in (0..MIB).step_by(12_288) {
        let data = Pattern(at).bytes(at, 777);
        writer.write(at, &data);
        content[at as usize..at as usize + 777].copy_from_slice(&data);
    }
    writer.finish();
    in_modes(&STRUCTURED, &server, |client| {
        assert_same_bytes(&client.read(0, MIB), &content, "whole");
        for at in (0..MIB).step_by(40_961) {
            let length = (MIB - at).min(30_000);
            let expected = &content[at as usize..(at + length) as usize];
            assert_same_bytes(&client.read(at, length), expected, "part");
        }
    });
}

/// S-REP-STRUCT-12: zeroes that were never written cost no bytes on the wire; what structured reads are for.
fn holes_of_memory_are_sent_as_holes(setup: Setup) {
    let server = setup.serving("memory:64M");
    in_modes(&STRUCTURED, &server, |client| {
        client.write(48 * MIB, b"one piece of data");
        let reply = client.call(&Request::read(32 * MIB, 32 * MIB)).ok();
        let hollow: u64 = reply.content.iter().filter(|c| c.hole).map(|c| c.length).sum();
        assert!(hollow >= 24 * MIB, "{:?}", reply.content);
    });
}

/// S-REP-STRUCT-07: one chunk where data and holes mix, zeroes in it as data (the client counts).
fn unfragmented_reads_have_one_content_chunk(setup: Setup) {
    let server = striped(setup);
    let content = stripes();
    in_modes(&STRUCTURED, &server, |client| {
        assert!(client.has_flag(flag::SEND_DF));
        for offset in [0, 1, 32_768, 65_000, 65_536, 98_304, 983_040] {
            let reply = client.call(&Request::read(offset, 65_536).flags(cmd_flag::DF)).ok();
            let mixed = offset % 65_536 != 0;
            assert!(!mixed || !reply.content[0].hole, "{:?}", reply.content);
            let expected = &content[offset as usize..offset as usize + 65_536];
            assert_same_bytes(&reply.data(), expected, "unfragmented");
        }
    });
}

/// S-REP-STRUCT-07: up to 65536 bytes there is no EOVERFLOW.
fn unfragmented_reads_of_64_kib_always_work(setup: Setup) {
    let server = striped(setup);
    in_modes(&STRUCTURED, &server, |client| {
        for length in [1, 511, 4096, 65_535, 65_536] {
            for offset in [0, 7, MIB - 65_536] {
                client.call(&Request::read(offset, length).flags(cmd_flag::DF)).ok();
            }
        }
    });
}

/// S-REP-STRUCT-07, S-ERR-03: beyond that EOVERFLOW is allowed, fragments are not.
fn long_unfragmented_reads_are_whole_or_eoverflow(setup: Setup) {
    let server = striped(setup);
    let content = stripes();
    in_modes(&STRUCTURED, &server, |client| {
        let reply = client.call(&Request::read(0, MIB).flags(cmd_flag::DF));
        match reply.error() {
            Some(error) => assert_eq!(error, Errno::EOVERFLOW),
            None => assert_same_bytes(&reply.data(), &content, "unfragmented"),
        }
    });
}

/// S-REP-STRUCT-05, S-CMD-READ-01: the range is not widened to whatever the export likes.
fn unaligned_reads_keep_to_their_range(setup: Setup) {
    let server = striped(setup);
    let content = stripes();
    in_each_mode(&server, |client| {
        for offset in (0..MIB - 3000).step_by(99_991) {
            for length in [1, 2, 513, 2999] {
                let expected = &content[offset as usize..(offset + length) as usize];
                assert_same_bytes(&client.read(offset, length), expected, "unaligned");
            }
        }
    });
}

/// S-CMD-READ-01, S-REP-STRUCT-05, S-REP-STRUCT-06: a sparse file with an odd end.
fn data_of_a_file_and_its_holes_are_read(setup: Setup) {
    let serve = setup.serve();
    let path = serve.dir().join("image");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(3 * MIB + 7).unwrap();
    let data = Pattern(4).bytes(0, 100_001);
    std::os::unix::fs::FileExt::write_all_at(&file, &data, MIB + 5).unwrap();
    let server = serve.arg(path.to_str().unwrap()).start();
    in_each_mode(&server, |client| {
        let whole = client.read(0, 3 * MIB + 7);
        let (start, end) = (MIB as usize + 5, MIB as usize + 100_006);
        assert_zero(&whole[..start], "hole before");
        assert_same_bytes(&whole[start..end], &data, "data");
        assert_zero(&whole[end..], "hole behind");
        client.call(&Request::read(0, 3 * MIB + 8)).expect_error(Errno::EINVAL);
    });
}

/// S-REP-01, S-ORD-03, S-REP-STRUCT-01: many reads under way at once, each with data of its own.
fn interleaved_replies_are_distinguished(setup: Setup) {
    let server = setup.serving("memory:16M");
    let whole = Pattern(5).bytes(0, 16 * MIB as usize);
    let mut writer = RawClient::go_simple(server.endpoint());
    writer.write(0, &whole);
    writer.finish();
    in_each_mode(&server, |client| {
        let ranges: Vec<_> = (0..120).map(|n| (n * 131_073, 1 + n * 997)).collect();
        let cookies: Vec<_> = ranges
            .iter()
            .map(|&(offset, length)| client.send(&Request::read(offset, length)))
            .collect();
        for (cookie, (offset, length)) in cookies.into_iter().zip(ranges).rev() {
            let expected = &whole[offset as usize..(offset + length) as usize];
            assert_same_bytes(&client.reply_to(cookie).data(), expected, "one of many");
        }
    });
}

/// S-ERR-01, S-ERR-03 to S-ERR-05 (the client judges each error): a walk through faulty requests.
fn only_known_errors_are_sent(setup: Setup) {
    let server = setup.serving("memory:1M");
    in_each_mode(&server, |client| {
        for command in (0..16).filter(|&command| !SPECIAL.contains(&Cmd(command))) {
            for flags in [0, 1, 2, 4, 8, 64, 0x8000] {
                for (offset, length) in [(0, 0), (0, 4096), (MIB, 1), (MIB - 1, 4096)] {
                    let mut request = Request::new(Cmd(command), offset, length).flags(flags);
                    if request.command == Cmd::WRITE {
                        request = request.payload(&vec![1; length as usize]);
                    }
                    let reply = client.call(&request);
                    assert!(flags < 64 || reply.error().is_some(), "{request:?}: {reply:?}");
                }
            }
        }
        client.read(0, 512);
    });
}
