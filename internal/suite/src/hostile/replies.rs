//! Replies that break the rules, and those that only look as if they did.

use nbd_engine::client::Flags;
use nbd_proto::wire::ErrorCode;
use nbd_testkit::assert_same_bytes;
use nbd_testkit::raw::{ChunkType, Cmd, Errno, Mode};
use nbd_testkit::scripted::{Answer, Export, payload};

use super::table::{
    AT, Ask, CHUNKED, Fate, LENGTH, MODES, case, connect, entered, expect_alive, expect_broken,
    config, which,
};
use crate::ClientSetup;

const OK: Errno = Errno(0);
const HALF: u64 = LENGTH as u64 / 2;
const END: u64 = AT + LENGTH as u64;

fn content(offset: u64, length: u64) -> Answer {
    Answer::data(offset, &Export::CONTENT.bytes(offset, length as usize))
}

fn chunk(kind: u16, payload: impl Into<Vec<u8>>) -> Answer {
    Answer::chunk(ChunkType(kind), payload)
}

/// After each of these there is no telling what else the server gets wrong, or where its next reply begins.
pub fn faults_of_replies_end_the_connection(setup: ClientSetup) {
    use Ask::{Flush, Read, ReadUnfragmented, Trim, Write};
    use Fate::Breaks;
    const SIMPLE: &[Mode] = &[Mode::Simple];
    const STRUCTURED: &[Mode] = &[Mode::Structured];
    const EXTENDED: &[Mode] = &[Mode::Extended];
    let unknown = Breaks(which!(PeerMisbehaved(Peer::UnknownCookie(_))));
    let malformed = Breaks(which!(Malformed(_)));
    let simple = Breaks(which!(PeerMisbehaved(Peer::SimpleReply(_))));
    let kind = Breaks(which!(PeerMisbehaved(Peer::UnexpectedReply { .. })));
    let overlap = Breaks(which!(PeerMisbehaved(Peer::ContentOverlaps(_))));
    let outside = Breaks(which!(PeerMisbehaved(Peer::ContentOutOfRange(_))));
    let not_final = Breaks(which!(PeerMisbehaved(Peer::NotFinal)));
    let too_long = Breaks(which!(LimitExceeded(Limit::Chunk { .. })));
    let long_text = payload::error(Errno::EIO, 300, b"the text is shorter than that");
    let whole = || content(AT, LENGTH as u64);
    for case in [
        // Cookies and magics.
        case("C-REP-STRUCT-07", SIMPLE, Read, [Answer::simple(OK, &[0; LENGTH]).to_nobody()], unknown),
        case("C-REP-STRUCT-07", SIMPLE, Flush, [Answer::simple(OK, &[]).to_nobody()], unknown),
        case("C-REP-STRUCT-07", &CHUNKED, Read, [whole().done().to_nobody()], unknown),
        case("C-REP-STRUCT-07", &CHUNKED, Write, [Answer::none().done().to_nobody()], unknown),
        case("C-REP-STRUCT-07", SIMPLE, Read, [Answer::simple(OK, &[0; LENGTH]).magic(1)], malformed),
        case("C-REP-STRUCT-07", &CHUNKED, Read, [whole().done().magic(0x2560_9513)], malformed),
        // The wrong kind of reply.
        case("C-REP-STRUCT-08", STRUCTURED, Read, [Answer::simple(OK, &[0; LENGTH])], simple),
        case("C-REP-STRUCT-08", STRUCTURED, Read, [Answer::simple(Errno::EIO, &[])], simple),
        case("C-EH-17", EXTENDED, Read, [Answer::simple(OK, &[0; LENGTH])], malformed),
        case("C-EH-17", EXTENDED, Flush, [Answer::simple(OK, &[0; 16])], malformed),
        case("C-REP-STRUCT-08", SIMPLE, Read, [whole().done()], malformed),
        case("C-EH-17", EXTENDED, Read, [whole().done().offset(AT + 1)], Breaks(which!(
            PeerMisbehaved(Peer::WrongReplyOffset { .. })
        ))),
        case("C-REP-STRUCT-01", &CHUNKED, Read, [Answer::status(1, &[(512, 0)]).done()], kind),
        case("C-REP-STRUCT-01", &CHUNKED, Read, [Answer::status_ext(1, &[(512, 0)])], kind),
        case("C-REP-STRUCT-01", &CHUNKED, Read, [chunk(77, [0; 8])], kind),
        case("C-REP-STRUCT-01", &CHUNKED, Write, [whole()], kind),
        case("C-REP-STRUCT-01", &CHUNKED, Trim, [Answer::hole(AT, 512).done()], kind),
        case("C-REP-STRUCT-01", &CHUNKED, Flush, [chunk(3, []).done()], kind),
        // Content where it does not belong.
        case("C-REP-STRUCT-05", &CHUNKED, Read, [content(AT, 512), content(AT, 512)], overlap),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [content(AT, 512), content(AT + 511, 1)], overlap),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [content(AT, 512), Answer::hole(AT + 256, 512)], overlap),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [Answer::hole(AT, 1024), content(AT, 1)], overlap),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [
            Answer::error_at(Errno::EIO, AT + 5), content(AT, 512),
        ], overlap),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [content(AT - 1, 512)], outside),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [content(END - 511, 512)], outside),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [content(END, 1)], outside),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [Answer::data(u64::MAX, &[0; 2])], outside),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [content(AT, 1025)], outside),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [Answer::hole(AT, u32::MAX)], outside),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [Answer::hole(u64::MAX, 512)], outside),
        case("C-REP-STRUCT-01", &CHUNKED, ReadUnfragmented, [
            content(AT, HALF), content(AT + HALF, HALF),
        ], Breaks(which!(PeerMisbehaved(Peer::Fragmented)))),
        case("C-REP-STRUCT-02", &CHUNKED, Read, [Answer::error_at(Errno::EIO, END)], Breaks(which!(
            PeerMisbehaved(Peer::ErrorOutOfRange(_))
        ))),
        // Lengths.
        case("C-REP-STRUCT-01", &CHUNKED, Read, [Answer::data(AT, &[])], malformed),
        case("C-REP-STRUCT-01", &CHUNKED, Read, [Answer::hole(AT, 0)], malformed),
        case("C-REP-STRUCT-01", &CHUNKED, Read, [chunk(2, [0; 13])], malformed),
        case("C-REP-STRUCT-01", &CHUNKED, Flush, [chunk(0, [0; 4]).done()], malformed),
        case("C-SZ-19", &CHUNKED, Read, [whole().length(u32::MAX.into())], outside),
        case("C-SZ-19", EXTENDED, Read, [whole().length(u64::MAX)], outside),
        case("C-SZ-19", &CHUNKED, Read, [Answer::hole(AT, 512).length(u32::MAX.into())], malformed),
        case("C-SZ-19", &CHUNKED, Read, [Answer::error(Errno::EIO, "").length(u32::MAX.into())], too_long),
        case("C-SZ-19", EXTENDED, Flush, [Answer::error(Errno::EIO, "").length(u64::MAX)], too_long),
        case("C-REP-STRUCT-02", &CHUNKED, Read, [Answer::chunk(ChunkType::ERROR, long_text)], malformed),
        case("C-REP-STRUCT-02", &CHUNKED, Read, [Answer::chunk(ChunkType::ERROR, [0; 5])], malformed),
        // Ends that are none, and more after the end of everything.
        case("C-REP-STRUCT-01", &CHUNKED, Read, [Answer::none()], not_final),
        case("C-REP-STRUCT-01", &CHUNKED, Flush, [Answer::none()], not_final),
    ] {
        case.play(setup);
    }
    for again in [Answer::none().done(), content(AT, 512), Answer::error(Errno::EIO, "").done()] {
        for mode in CHUNKED {
            let what = format!("C-REP-STRUCT-07, {mode:?}, {again:?} after the end");
            let script = entered(mode).request(Cmd::READ).obey().answer(again.clone()).silence();
            let server = setup.play([script]);
            let client = connect(setup, &server, &config(), &what);
            Read.of(&*client).unwrap_or_else(|error| panic!("{what}: {error}"));
            let error = client.read(0, 512, Flags::empty()).expect_err(&what);
            expect_broken(&error, None, which!(PeerMisbehaved(Peer::UnknownCookie(_))), &what);
            assert!(server.finish()[0].left, "{what}");
        }
    }
}

/// A request fails, and the next one succeeds: whatever went wrong, the stream is in step.
pub fn errors_of_requests_leave_the_connection(setup: ClientSetup) {
    use Ask::{Flush, Read, Trim, Write};
    use Fate::Fails;
    const COMPACT: &[Mode] = &[Mode::Simple, Mode::Structured];
    let eio = Fails(ErrorCode::EIO);
    let einval = Fails(ErrorCode::EINVAL);
    let half = || content(AT, HALF);
    let unknown_type = || payload::error(Errno::ENOSPC, 4, b"texts and more");
    let garbage = payload::error(Errno::EIO, 3, b"\xff\0\x1b");
    for case in [
        case("C-REP-STRUCT-05", &CHUNKED, Read, [half().done()], eio),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [half(), Answer::none().done()], eio),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [content(AT + 1, 1023).done()], eio),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [Answer::none().done()], eio),
        case("C-REP-STRUCT-05", &CHUNKED, Read, [
            content(AT, 100), content(AT + 200, 824), Answer::none().done(),
        ], eio),
        case("C-REP-STRUCT-06", &CHUNKED, Read, [
            content(AT, 1024), Answer::error(Errno::EIO, "torn").done(),
        ], eio),
        case("C-REP-STRUCT-06", &CHUNKED, Read, [
            Answer::error(Errno::EIO, "first"), half(), Answer::none().done(),
        ], eio),
        case("C-REP-STRUCT-06", &CHUNKED, Read, [
            half(), Answer::error_at(Errno::EIO, AT + HALF).done(),
        ], eio),
        case("C-REP-STRUCT-02", &CHUNKED, Read, [
            Answer::chunk(ChunkType(0x8077), unknown_type()).done(),
        ], Fails(ErrorCode::ENOSPC)),
        case("C-REP-STRUCT-02", &CHUNKED, Flush, [
            Answer::chunk(ChunkType(0xffff), unknown_type()).done(),
        ], Fails(ErrorCode::ENOSPC)),
        case("C-REP-STRUCT-02", &CHUNKED, Trim, [Answer::error_at(Errno::EIO, AT).done()], eio),
        case("C-REP-STRUCT-02", &CHUNKED, Read, [
            Answer::chunk(ChunkType::ERROR, garbage).done(),
        ], eio),
        case("C-REP-09", &CHUNKED, Write, [Answer::error(Errno(9999), "").done()], einval),
        case("C-REP-09", COMPACT, Write, [Answer::simple(Errno(u32::MAX), &[])], einval),
        case("C-REP-09", &MODES[..1], Read, [Answer::simple(Errno(7), &[])], einval),
    ] {
        case.play(setup);
    }
}

/// Chunks in any order, flags and texts from the future.
pub fn what_is_unknown_but_harmless_is_ignored(setup: ClientSetup) {
    use Ask::{Read, ReadUnfragmented, Write};
    let flagged = content(AT, 1024).done().flags(0xfffe);
    for case in [
        case("C-REP-STRUCT-03", &CHUNKED, Read, [flagged.clone()], Fate::Succeeds),
        case("C-REP-STRUCT-03", &CHUNKED, ReadUnfragmented, [flagged], Fate::Succeeds),
        case("C-REP-STRUCT-04", &CHUNKED, Read, [
            content(AT + 1000, 24), content(AT, 1), content(AT + 1, 999).done(),
        ], Fate::Succeeds),
        case("C-REP-STRUCT-03", &CHUNKED, Write, [Answer::none().done().flags(0x8000)], Fate::Succeeds),
    ] {
        case.play(setup);
    }
}

/// A reply without a request is a violation, whenever it is noticed.
pub fn data_that_nobody_asked_for_ends_the_connection(setup: ClientSetup) {
    for (form, bytes) in [
        (Mode::Simple, [&0x6744_6698_u32.to_be_bytes()[..], &[0xff; 12 + 512]].concat()),
        (Mode::Structured, [&0x668e_33ef_u32.to_be_bytes()[..], &[0xff; 16 + 512]].concat()),
        (Mode::Extended, [&0x6e8a_278c_u32.to_be_bytes()[..], &[0xff; 28 + 512]].concat()),
    ] {
        let what = format!("C-REP-STRUCT-07, {form:?}");
        let server = setup.play([entered(form).send(&bytes).silence()]);
        let client = connect(setup, &server, &config(), &what);
        let error = client.read(0, 512, Flags::empty()).expect_err(&what);
        expect_broken(&error, None, which!(PeerMisbehaved(Peer::UnknownCookie(_))), &what);
        assert!(server.finish()[0].left, "{what}");
    }
}

/// A reply whose last chunk does not come leaves its request open, and holds up no other: replies are told apart by their
/// cookies, in any order and interleaved (C-ORD-07).
pub fn a_reply_that_does_not_end_holds_up_no_other(setup: ClientSetup) {
    for mode in CHUNKED {
        let what = format!("{mode:?}");
        let script = entered(mode)
            .request(Cmd::READ)
            .request(Cmd::READ)
            .answer(content(0, 512).to(0))
            .answer(content(8192, 512).to(1))
            .answer(content(8704, 512).to(1))
            .answer(Answer::none().done().to(1))
            .request(Cmd::READ)
            .obey()
            .request(Cmd::FLUSH)
            .answer(content(512, 512).done().to(0))
            .obey()
            .serve();
        let server = setup.play([script]);
        let client = connect(setup, &server, &config(), &what);
        let open = client.start_read(0, vec![0; 1024], Flags::empty());
        let (data, result) = client.start_read(8192, vec![0; 1024], Flags::empty()).wait();
        result.expect("it was answered");
        assert_same_bytes(&data, &Export::CONTENT.bytes(8192, 1024), &what);
        client.read(0, 512, Flags::empty()).expect("it is answered");
        assert!(!open.is_done(), "{what}: the end has not come yet");
        client.flush().expect("it is answered, after the end of the first one");
        let (data, result) = open.wait();
        result.expect("its end has come");
        assert_same_bytes(&data, &Export::CONTENT.bytes(0, 1024), &what);
        expect_alive(&*client, &what);
        drop(client);
        server.finish();
    }
}
