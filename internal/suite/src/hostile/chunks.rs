//! Reads that are shown chunk by chunk, as servers may answer them.

use nbd_engine::client::{Chunk, Error, Flags};
use nbd_proto::wire::ErrorCode;
use nbd_testkit::raw::{Cmd, Errno, Mode};
use nbd_testkit::scripted::{Answer, Export};

use super::table::{AT, CHUNKED, LENGTH, config, connect, entered, expect_alive};
use crate::ClientSetup;

/// A chunk in a few words: its offset, and what it is.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Data(u64, usize),
    Hole(u64, u64),
    Error(Option<u64>, ErrorCode),
}

fn seen(chunk: &Chunk) -> Seen {
    match chunk {
        Chunk::Data { offset, data, .. } => {
            assert_eq!(data[..], Export::CONTENT.bytes(*offset, data.len()), "at {offset}");
            Seen::Data(*offset, data.len())
        }
        Chunk::Hole { offset, length, .. } => Seen::Hole(*offset, *length),
        Chunk::Error(error) => Seen::Error(error.offset, error.code),
        other => panic!("{other:?}"),
    }
}

fn data(offset: u64, length: usize) -> Answer {
    Answer::data(offset, &Export::CONTENT.bytes(offset, length))
}

/// What can be read is there although the rest can't be, and each error says where. A read of which nothing can be read
/// fails.
pub fn reads_that_fail_in_part_show_the_rest(setup: ClientSetup) {
    const BAD: Errno = Errno::EIO;
    let code = ErrorCode::EIO;
    let end = AT + LENGTH as u64;
    for (answers, expected) in [
        (vec![data(AT, LENGTH).done()], vec![Seen::Data(AT, LENGTH)]),
        (
            vec![data(AT + 512, 512), Answer::hole(AT, 512).done()],
            vec![Seen::Hole(AT, 512), Seen::Data(AT + 512, 512)],
        ),
        (
            vec![data(AT, 500), Answer::error_at(BAD, AT + 500), data(AT + 501, 523).done()],
            vec![Seen::Data(AT, 500), Seen::Error(Some(AT + 500), code), Seen::Data(AT + 501, 523)],
        ),
        (
            vec![data(AT, 512), Answer::error(BAD, "the rest is lost").done()],
            vec![Seen::Data(AT, 512), Seen::Error(None, code)],
        ),
        // What follows such an error can't be trusted.
        (
            vec![data(AT, 10), Answer::error(BAD, "no"), data(AT + 10, 1014).done()],
            vec![Seen::Data(AT, 10), Seen::Error(None, code)],
        ),
        // The server left out a part without a word.
        (vec![data(end - 1, 1).done()], vec![Seen::Data(end - 1, 1), Seen::Error(None, code)]),
    ] {
        for mode in CHUNKED {
            let what = format!("{mode:?}, {answers:?}");
            let script = answers.iter().cloned().fold(
                entered(mode).request(Cmd::READ),
                |script, answer| script.answer(answer),
            );
            let server = setup.play([script.serve()]);
            let client = connect(setup, &server, &config(), &what);
            let chunks = client.read_chunks(AT, LENGTH, Flags::empty()).expect(&what);
            let chunks: Vec<_> = chunks.iter().map(seen).collect();
            assert_eq!(chunks, expected, "{what}");
            expect_alive(&*client, &what);
            drop(client);
            server.finish();
        }
    }
    for (mode, answer) in [
        (Mode::Simple, Answer::simple(BAD, &[])),
        (Mode::Structured, Answer::error(BAD, "no").done()),
        (Mode::Extended, Answer::error_at(BAD, AT).done()),
    ] {
        let what = format!("{mode:?}");
        let server = setup.play([entered(mode).request(Cmd::READ).answer(answer).serve()]);
        let client = connect(setup, &server, &config(), &what);
        let error = client.read_chunks(AT, LENGTH, Flags::empty()).expect_err(&what);
        let Error::Command { error, .. } = error else { panic!("{what}: {error:?}") };
        assert_eq!(error.code, code, "{what}");
        expect_alive(&*client, &what);
        drop(client);
        server.finish();
    }
}
