//! Servers that do not come to an end. It is the client that has to.

use nbd_engine::client::Error;
use nbd_testkit::raw::{Errno, Mode, Opt, Rep};
use nbd_testkit::scripted::{Answer, Export, OptionAnswer, Script};

use super::table::{
    AT, Ask, CHUNKED, Which, connect, entered, expect_broken, config, which,
};
use crate::ClientSetup;

/// Replies to one option are counted, whether they tell anything or not (C-OPT-17).
pub fn endless_answers_to_options_end(setup: ClientSetup) {
    let replies: Which = which!(LimitExceeded(Limit::OptionReplies { .. }));
    let name = [&[0, 0, 0, 9][..], b"some disk and a description"].concat();
    let context = [&[0, 0, 0, 5][..], b"base:allocation"].concat();
    let again: Which = which!(PeerMisbehaved(Peer::DuplicateContext(5)));
    let export = Export::new(Mode::Extended).info_export();
    for (option, kind, data, which) in [
        (Opt::LIST, Rep::SERVER, &name[..], replies),
        (Opt::GO, Rep::INFO, &export, replies),
        (Opt::GO, Rep::INFO, &[0, 99], replies),
        (Opt::INFO, Rep::INFO, &[0, 1, b'n'], replies),
        (Opt::LIST_META_CONTEXT, Rep::META_CONTEXT, &context, replies),
        (Opt::SET_META_CONTEXT, Rep::META_CONTEXT, &context, again),
    ] {
        let what = format!("{option:?} answered by {kind:?}, {} bytes each, on and on", data.len());
        let reply = OptionAnswer::new(kind, data);
        let script = Script::new(Export::new(Mode::Extended)).until(option);
        let server = setup.play([script.answer_option(reply).endlessly()]);
        let negotiate = || setup.negotiate(server.endpoint(), &config()).expect("it is a server");
        let error = match option {
            Opt::LIST => negotiate().list().expect_err(&what),
            Opt::INFO => negotiate().info("").expect_err(&what),
            Opt::LIST_META_CONTEXT => negotiate().list_meta_contexts("", &[]).expect_err(&what),
            _ => setup.connect(server.endpoint(), &config()).err().expect(&what),
        };
        let Error::Protocol { source, .. } = &error else { panic!("{what}: {error:?}") };
        assert!(which(source), "{what}: {source:?}");
        assert!(server.finish()[0].left, "{what}");
    }
}

/// Chunks of one reply are bounded by what was asked for, or counted.
pub fn endless_chunks_end(setup: ClientSetup) {
    let overlap: Which = which!(PeerMisbehaved(Peer::ContentOverlaps(AT)));
    let not_final: Which = which!(PeerMisbehaved(Peer::NotFinal));
    let pieces: Which = which!(LimitExceeded(Limit::Fragments(_)));
    let context: Which = which!(PeerMisbehaved(Peer::UnexpectedContext(1)));
    for mode in CHUNKED {
        let status = match mode {
            Mode::Extended => Answer::status_ext(1, &[(512, 0)]),
            _ => Answer::status(1, &[(512, 0)]),
        };
        for (ask, chunk, which) in [
            (Ask::Read, Answer::none(), not_final),
            (Ask::Read, Answer::hole(AT, 512), overlap),
            (Ask::Read, Answer::data(AT, &[1]), overlap),
            (Ask::Read, Answer::error(Errno::EIO, "again"), pieces),
            (Ask::Read, Answer::error_at(Errno::EIO, AT), pieces),
            (Ask::Write, Answer::error(Errno::EIO, "again"), pieces),
            (Ask::Flush, Answer::error(Errno::EIO, ""), pieces),
            (Ask::Status, status, context),
        ] {
            let what = format!("{mode:?}, {ask:?} answered by {chunk:?} on and on");
            let script = entered(mode).request(ask.command()).answer(chunk).endlessly();
            let server = setup.play([script]);
            let client = connect(setup, &server, &config(), &what);
            let error = ask.of(&*client).expect_err(&what);
            expect_broken(&error, Some(true), which, &what);
            assert!(server.finish()[0].left, "{what}");
        }
    }
}
