//! Faults before an export is entered.

use nbd_engine::client::{Error, ClientConfig};
use nbd_engine::proto;
use nbd_proto::wire::OptionReplyType;
use nbd_testkit::raw::{Cmd, Mode, Opt, Rep, flag, magic};
use nbd_testkit::scripted::{Export, OptionAnswer, Script};

use super::table::{Which, expect_alive, config, which};
use crate::ClientSetup;

/// Both magics are checked before a byte is sent (C-HS-17).
pub fn what_is_no_server_is_told_apart(setup: ClientSetup) {
    let first = magic::INIT.to_be_bytes();
    let second = magic::IHAVEOPT.to_be_bytes();
    for greeting in [
        &b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"[..],
        &[0; 18],
        &[!first[0]; 18],
        &[&first[..7], &second, &[0; 8]].concat(),
        &[&first[..], &second[..7], &[0; 200]].concat(),
    ] {
        let script = Script::new(Export::new(Mode::Simple)).send(greeting).silence();
        let server = setup.play([script]);
        let error = setup.connect(server.endpoint(), &ClientConfig::default()).err().expect("no server");
        assert!(matches!(error, Error::Protocol { .. }), "{greeting:?}: {error:?}");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
        let report = server.finish()[0];
        assert!(report.left && report.received == 0, "{greeting:?}: {report:?}");
    }
}

fn answer(kind: Rep, data: &[u8]) -> OptionAnswer {
    OptionAnswer::new(kind, data)
}

fn context(id: u32) -> OptionAnswer {
    answer(Rep::META_CONTEXT, &[&id.to_be_bytes()[..], b"base:allocation"].concat())
}

/// Answers to an option after which there is no session (C-OPT-16, C-OPT-17, C-OPT-GO-23, C-OPT-LS-07).
pub fn faults_in_the_option_phase_end_the_session(setup: ClientSetup) {
    let malformed: Which = which!(Malformed(_));
    let other: Which = which!(PeerMisbehaved(Peer::WrongOption { .. }));
    let kind: Which = which!(PeerMisbehaved(Peer::UnexpectedOptionReply { .. }));
    let too_long: Which = which!(LimitExceeded(Limit::OptionReply { .. }));
    let asked =
        [Opt::EXTENDED_HEADERS, Opt::STRUCTURED_REPLY, Opt::SET_META_CONTEXT, Opt::GO, Opt::LIST];
    for option in asked {
        for (fault, which) in [
            (OptionAnswer::ack().magic(!magic::OPTION_REPLY), malformed),
            (OptionAnswer::ack().magic(0), malformed),
            (OptionAnswer::ack().to(Opt::INFO), other),
            (OptionAnswer::ack().to(Opt(0xffff)), other),
            (answer(Rep(9), &[]), kind),
            (answer(Rep(0), &[]), kind),
            (answer(Rep::ACK, b"data"), malformed),
            (OptionAnswer::ack().length(u32::MAX), too_long),
            (answer(Rep::ERR_UNSUP, &[]).length(u32::MAX), too_long),
            (answer(Rep(0x8000_0077), &[]).length(1 << 31), too_long),
        ] {
            ends(setup, option, vec![fault], which);
        }
    }
    let export = Export::new(Mode::Extended).info_export();
    let unknown_with_export = || answer(Rep::INFO, &[&[0, 99][..], &export].concat());
    let none: Which = which!(PeerMisbehaved(Peer::NoExportInfo(_)));
    let twice: Which = which!(PeerMisbehaved(Peer::DuplicateContext(1)));
    let many: Which = which!(LimitExceeded(Limit::Contexts(_)));
    let list = |length: u32, rest: &[u8]| {
        vec![answer(Rep::SERVER, &[&length.to_be_bytes()[..], rest].concat())]
    };
    for (option, faults, which) in [
        (Opt::GO, vec![OptionAnswer::ack()], none),
        (Opt::GO, vec![unknown_with_export(), OptionAnswer::ack()], none),
        (Opt::GO, vec![answer(Rep::INFO, &export[..11])], malformed),
        (Opt::GO, vec![answer(Rep::INFO, &[&export[..], &[0]].concat())], malformed),
        (Opt::GO, vec![answer(Rep::INFO, &[0])], malformed),
        (Opt::GO, vec![answer(Rep::INFO, &[&[0, 1][..], b"\xff\xfe"].concat())], malformed),
        (Opt::GO, vec![answer(Rep::INFO, &[0, 3, 0, 0, 0, 1])], malformed),
        (Opt::SET_META_CONTEXT, vec![context(1), context(1)], twice),
        (Opt::SET_META_CONTEXT, (0..100).map(context).collect(), many),
        (Opt::SET_META_CONTEXT, vec![answer(Rep::META_CONTEXT, &[0, 0, 1])], malformed),
        (Opt::LIST, list(u32::MAX, b"disk"), malformed),
        (Opt::LIST, list(5, b"disk"), malformed),
        (Opt::LIST, list(4, b"d\0sk"), malformed),
        (Opt::LIST, vec![answer(Rep::SERVER, &[0; 3])], malformed),
    ] {
        ends(setup, option, faults, which);
    }
}

/// There is no session, and the client hangs up.
fn ends(setup: ClientSetup, option: Opt, faults: Vec<OptionAnswer>, which: Which) {
    let what = format!("{option:?} answered by {:?}", &faults[..faults.len().min(3)]);
    let mode = if option == Opt::STRUCTURED_REPLY { Mode::Structured } else { Mode::Extended };
    let script = Script::new(Export::new(mode)).until(option);
    let script = faults.into_iter().fold(script, Script::answer_option).silence();
    let server = setup.play([script]);
    let error = if option == Opt::LIST {
        let mut negotiation = setup.negotiate(server.endpoint(), &config()).expect(&what);
        negotiation.list().expect_err(&what)
    } else {
        setup.connect(server.endpoint(), &config()).err().expect(&what)
    };
    let Error::Protocol { source, .. } = &error else { panic!("{what}: {error:?}") };
    assert!(which(source), "{what}: {source:?}");
    assert!(server.finish()[0].left, "{what}");
}

/// A server that does not want to is not to blame: what can be done without is, and otherwise it is told goodbye
/// (C-OPT-18, C-OPT-19, C-OPT-GO-22, C-TRM-06).
pub fn refusals_are_told_and_the_server_is_left(setup: ClientSetup) {
    let refused = [
        Rep::ERR_UNKNOWN,
        Rep::ERR_POLICY,
        Rep::ERR_SHUTDOWN,
        Rep::ERR_TLS_REQD,
        Rep(0x8000_0077),
        Rep(u32::MAX),
    ];
    for kind in refused {
        let script = Script::new(Export::new(Mode::Extended))
            .until(Opt::GO)
            .answer_option(answer(kind, b"not for you"))
            .then_until(Opt::ABORT)
            .answer_option(OptionAnswer::ack());
        let server = setup.play([script]);
        let error = setup.connect(server.endpoint(), &config()).err().expect("a refusal");
        let Error::Refused { refusal, text, .. } = &error else { panic!("{kind:?}: {error:?}") };
        let expected = OptionReplyType(kind.0);
        assert!(
            matches!(refusal, proto::NoSession::Option { reply, .. } if *reply == expected),
            "{kind:?}: {error:?}"
        );
        assert_eq!(text, "not for you", "{error:?}");
        assert!(!server.finish()[0].left, "{kind:?}: it said goodbye");
    }
    let fallbacks = [
        (Mode::Structured, Opt::EXTENDED_HEADERS),
        (Mode::Simple, Opt::STRUCTURED_REPLY),
        (Mode::Extended, Opt::SET_META_CONTEXT),
        (Mode::Simple, Opt::GO),
    ];
    for (mode, option) in fallbacks {
        for kind in [Rep::ERR_UNSUP, Rep::ERR_POLICY, Rep(0x8000_0077)] {
            if option == Opt::GO && kind != Rep::ERR_UNSUP {
                continue;
            }
            let refusal = answer(kind, &[]);
            let script = Script::new(Export::new(mode)).until(option).answer_option(refusal);
            let server = setup.play([script.go_on().request(Cmd::FLUSH).obey().serve()]);
            let client = setup.connect(server.endpoint(), &config());
            let what = format!("{option:?} refused by {kind:?}");
            let client = client.unwrap_or_else(|error| panic!("{what}: {error}"));
            client.flush().expect(&what);
            expect_alive(&*client, &what);
            drop(client);
            server.finish();
        }
    }
    // Without HAS_FLAGS nothing is used (C-XF-12).
    let mut export = Export::new(Mode::Structured);
    export.flags &= !flag::HAS_FLAGS;
    let server = setup.play([Script::new(export).enter().serve()]);
    let client = setup.connect(server.endpoint(), &config()).expect("it has an export");
    assert!(matches!(client.flush(), Err(Error::Invalid(_))));
    expect_alive(&*client, "reading needs no flag");
    drop(client);
    server.finish();
}
