//! Greetings and option replies.

use nbd_proto::client::{Config, Event, Goal, Info, OptionError, TlsMode};
use nbd_proto::wire::{
    BlockSizeInfo, ClientFlags, CommandType, CompactRequest, DecodeError, ExportInfoReply,
    OldstyleGreeting, OptionCode as Opt, OptionReplyType as Rep, TransmissionFlags,
};
use nbd_proto::{
    BlockSize, Command, Error, LimitExceeded, NoSession, OrderlyEnd, PeerMisbehaved, Wants,
};

use crate::peer::*;

const FIXED: ClientFlags = ClientFlags::FIXED_NEWSTYLE;

fn manual() -> Config {
    let mut config = Config::default();
    config.goal = Goal::Manual;
    config
}

/// A client whose turn it is.
fn turn(config: Config) -> Client {
    let mut client = new_client(config).unwrap();
    assert_eq!(feed(&mut client, &greeting(3)), Ok(vec![Event::YourTurn]));
    sent(&mut client);
    client
}

/// A client that has just sent GO by itself, without asking for anything before.
fn going() -> Client {
    let mut client = new_client(config(Mode::Simple)).unwrap();
    let options = greet(&mut client, 3, ClientFlags::all() & ClientFlags::from_bits_retain(3));
    assert_eq!(options[0].0, Opt::GO);
    client
}

fn codes(bytes: &[u8]) -> Vec<Opt> {
    options(bytes).into_iter().map(|(code, _)| code).collect()
}

#[test]
fn a_greeting_that_is_neither_newstyle_nor_oldstyle_gets_no_answer() {
    for at in [0, 7, 8, 15] {
        let mut bytes = greeting(3);
        bytes[at] ^= 1;
        let mut client = new_client(Config::default()).unwrap();
        let error = feed(&mut client, &bytes).unwrap_err();
        assert!(matches!(error, Error::Malformed(DecodeError::BadMagic { .. })));
        assert_eq!(sent(&mut client), []);
        assert_eq!(client.closed, Some(Err(error)));
        assert_eq!(feed(&mut client, &greeting(3)), Ok(vec![]), "the end is the last event");
    }
}

#[test]
fn client_flags_answer_what_was_offered_and_unknown_flags_are_ignored() {
    let both = ClientFlags::from_bits_retain(3);
    for (offered, flags) in [
        (0, ClientFlags::empty()),
        (1, FIXED),
        (2, ClientFlags::NO_ZEROES),
        (3, both),
        (0xffff, both),
        (0xfffc, ClientFlags::empty()),
    ] {
        greet(&mut new_client(Config::default()).unwrap(), offered, flags);
    }
    let mut shy = Config::default();
    shy.no_zeroes = false;
    greet(&mut new_client(shy).unwrap(), 3, FIXED);
}

#[test]
fn a_server_without_fixed_newstyle_gets_nothing_but_export_name() {
    let mut config = config(Mode::Extended);
    config.tls = TlsMode::Preferred;
    let mut client = new_client(config).unwrap();
    let options = greet(&mut client, 0, ClientFlags::empty());
    assert_eq!(options, [(Opt::EXPORT_NAME, b"disk".to_vec())]);

    let mut client = new_client(manual()).unwrap();
    assert_eq!(greet(&mut client, 2, ClientFlags::NO_ZEROES), []);
    assert_eq!(client.list(), Err(OptionError::NeedsFixedNewstyle));
    assert_eq!(client.start_tls(), Err(OptionError::NeedsFixedNewstyle));
    assert_eq!(client.abort(), Err(OptionError::NeedsFixedNewstyle));
    client.disconnect();
    assert_eq!(sent(&mut client), []);
    assert_eq!(feed(&mut client, b""), Ok(vec![Event::Closed(Ok(OrderlyEnd::Aborted))]));
}

#[test]
fn padding_follows_unless_both_sides_agreed_to_omit_it() {
    let export =
        ExportInfoReply { size: SIZE, flags: TransmissionFlags::HAS_FLAGS }.encode_export_name();
    for (offered, padding) in [(0, 124), (2, 0)] {
        let mut client = new_client(Config::default()).unwrap();
        greet(&mut client, offered, ClientFlags::from_bits_retain(offered.into()));
        // The padding is reserved: whatever it is.
        let mut bytes = [&export[..], &vec![7; padding]].concat();
        let last = bytes.pop().unwrap();
        assert_eq!(feed(&mut client, &bytes), Ok(vec![]));
        assert_eq!(feed(&mut client, &[last]), Ok(vec![Event::Ready]));
        assert_eq!(client.export().unwrap().size, SIZE);
    }
}

#[test]
fn oldstyle_servers_are_accepted_unless_configured_otherwise() {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    let bytes = OldstyleGreeting { size: SIZE, flags }.encode();
    for goal in [Goal::Enter, Goal::Prepare, Goal::Manual] {
        let mut config = Config::default();
        config.goal = goal;
        let mut client = new_client(config).unwrap();
        assert_eq!(feed(&mut client, &bytes), Ok(vec![Event::Ready]));
        assert_eq!(sent(&mut client), [], "there is nothing to say to it");
        let view = client.export().unwrap();
        assert_eq!((view.size, view.flags, view.block_size), (SIZE, flags, BlockSize::DEFAULT));
        let (_, cookie) = request(&mut client, Command::Flush);
        let done = feed(&mut client, &simple(nbd_proto::wire::ErrorCode::OK, cookie)).unwrap();
        assert!(matches!(&done[..], [Event::Completed { result: Ok(()), .. }]));
    }
    let mut config = Config::default();
    config.oldstyle = false;
    let mut client = new_client(config).unwrap();
    assert_eq!(feed(&mut client, &bytes), Err(Error::Refused(NoSession::Oldstyle)));
    let mut config = Config::default();
    config.tls = TlsMode::Required;
    let mut client = new_client(config).unwrap();
    assert_eq!(feed(&mut client, &bytes), Err(Error::Refused(NoSession::NoTls)));
}

#[test]
fn without_has_flags_there_are_no_features() {
    let mut client = going();
    let odd = TransmissionFlags::all() - TransmissionFlags::HAS_FLAGS;
    feed(&mut client, &info(odd)).unwrap();
    feed(&mut client, &ack(Opt::GO)).unwrap();
    assert_eq!(client.export().unwrap().flags, TransmissionFlags::READ_ONLY);
}

#[test]
fn features_fall_back_to_older_ones() {
    let mut config = config(Mode::Extended);
    config.structured_replies = true;
    let mut client = new_client(config).unwrap();
    let mut next = greet(&mut client, 1, FIXED);
    for (code, reply) in [
        (Opt::EXTENDED_HEADERS, Rep::ERR_UNSUP),
        (Opt::STRUCTURED_REPLY, Rep(0xffff_ffff)),
        (Opt::GO, Rep::ERR_UNSUP),
    ] {
        assert_eq!(next[0].0, code);
        assert_eq!(feed(&mut client, &option_reply(code, reply, b"no")), Ok(vec![]));
        next = options(&sent(&mut client));
    }
    assert_eq!(next, [(Opt::EXPORT_NAME, b"disk".to_vec())]);
}

#[test]
fn with_extended_headers_there_is_nothing_to_fall_back_to() {
    let mut bare = config(Mode::Extended);
    bare.contexts.clear();
    let mut client = new_client(bare).unwrap();
    greet(&mut client, 1, FIXED);
    feed(&mut client, &ack(Opt::EXTENDED_HEADERS)).unwrap();
    assert_eq!(codes(&sent(&mut client)), [Opt::GO]);
    let seen = feed(&mut client, &option_reply(Opt::GO, Rep::ERR_UNSUP, b"")).unwrap();
    let (code, reply) = (Opt::GO, Rep::ERR_UNSUP);
    assert_eq!(seen, [Event::OptionFailed { code, reply, message: String::new() }]);
    assert_eq!(options(&sent(&mut client)), [(Opt::ABORT, vec![])]);
    let refused = Error::Refused(NoSession::Option { code, reply });
    assert_eq!(feed(&mut client, &ack(Opt::ABORT)), Err(refused));
}

#[test]
fn a_server_may_close_instead_of_answering_an_abort() {
    let mut client = turn(manual());
    client.abort().unwrap();
    assert_eq!(options(&sent(&mut client)), [(Opt::ABORT, vec![])]);
    assert_eq!(hang_up(&mut client), Ok(vec![Event::Closed(Ok(OrderlyEnd::Aborted))]));

    let mut client = going();
    feed(&mut client, &option_reply(Opt::GO, Rep::ERR_UNKNOWN, b"")).unwrap();
    let refused = NoSession::Option { code: Opt::GO, reply: Rep::ERR_UNKNOWN };
    assert_eq!(hang_up(&mut client), Err(refused.into()));
}

#[test]
fn whatever_answers_an_abort_its_reason_is_reported() {
    let refused = Error::Refused(NoSession::Option { code: Opt::GO, reply: Rep::ERR_SHUTDOWN });
    for answer in [
        ack(Opt::ABORT),
        option_reply(Opt::ABORT, Rep::ERR_INVALID, b"?"),
        option_reply(Opt::ABORT, Rep::SERVER, b"?"),
        ack(Opt::LIST),
        vec![0; 20],
    ] {
        let mut client = going();
        feed(&mut client, &option_reply(Opt::GO, Rep::ERR_SHUTDOWN, b"")).unwrap();
        assert_eq!(codes(&sent(&mut client)), [Opt::ABORT]);
        assert_eq!(feed(&mut client, &answer), Err(refused));
    }
}

#[test]
fn a_reply_to_another_option_or_with_another_magic_ends_the_session() {
    let mut client = going();
    let error = feed(&mut client, &ack(Opt::INFO)).unwrap_err();
    assert_eq!(error, PeerMisbehaved::WrongOption { sent: Opt::GO, found: Opt::INFO }.into());
    let mut bytes = ack(Opt::GO);
    bytes[0] ^= 0x80;
    let error = feed(&mut going(), &bytes).unwrap_err();
    assert!(matches!(error, Error::Malformed(DecodeError::BadMagic { .. })));
}

#[test]
fn a_reply_that_the_option_does_not_have_ends_the_session() {
    for (reply, data) in [(Rep::SERVER, &b"\0\0\0\0"[..]), (Rep(77), b""), (Rep::META_CONTEXT, b"")]
    {
        let error = feed(&mut going(), &option_reply(Opt::GO, reply, data)).unwrap_err();
        assert_eq!(error, PeerMisbehaved::UnexpectedOptionReply { code: Opt::GO, reply }.into());
    }
    let error = feed(&mut going(), &option_reply(Opt::GO, Rep::ACK, b"?")).unwrap_err();
    assert_eq!(error, DecodeError::LeftOver(1).into());
}

#[test]
fn a_huge_reply_ends_the_session_before_its_data_is_awaited() {
    let header = |length| {
        let header = nbd_proto::wire::OptionReplyHeader { code: Opt::GO, reply: Rep::INFO, length };
        header.encode()
    };
    assert_eq!(feed(&mut going(), &header(65536)), Ok(vec![]));
    for length in [65537, u32::MAX] {
        let error = feed(&mut going(), &header(length)).unwrap_err();
        assert_eq!(error, LimitExceeded::OptionReply { code: Opt::GO, length }.into());
    }
}

#[test]
fn endless_replies_end_the_session() {
    let mut config = manual();
    config.limits.max_option_replies = 3;
    let mut client = turn(config);
    client.list().unwrap();
    let reply = option_reply(Opt::LIST, Rep::SERVER, b"\0\0\0\x01a");
    for _ in 0..3 {
        let seen = feed(&mut client, &reply).unwrap();
        assert_eq!(seen, [Event::Listed { name: "a".into(), description: "".into() }]);
    }
    let error = feed(&mut client, &reply).unwrap_err();
    assert_eq!(error, LimitExceeded::OptionReplies { code: Opt::LIST, limit: 3 }.into());
}

#[test]
fn malformed_lists_end_the_session() {
    for data in [&b"\0\0\0\x02a"[..], b"\0\0", b"\xff\xff\xff\xffa", b"\0\0\0\x01\xff"] {
        let mut client = turn(manual());
        client.list().unwrap();
        let error = feed(&mut client, &option_reply(Opt::LIST, Rep::SERVER, data)).unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{data:?}");
    }
}

#[test]
fn a_success_without_a_size_is_none() {
    let error = feed(&mut going(), &ack(Opt::GO)).unwrap_err();
    assert_eq!(error, PeerMisbehaved::NoExportInfo(Opt::GO).into());
    let mut client = turn(manual());
    client.info("x", &[]).unwrap();
    let error = feed(&mut client, &ack(Opt::INFO)).unwrap_err();
    assert_eq!(error, PeerMisbehaved::NoExportInfo(Opt::INFO).into());
    for data in [&[0; 11][..], &[0; 13], &[0, 3, 0, 0], &[0]] {
        let error = feed(&mut going(), &option_reply(Opt::GO, Rep::INFO, data)).unwrap_err();
        assert!(matches!(error, Error::Malformed(_)), "{data:?}");
    }
}

#[test]
fn unknown_information_is_ignored_and_order_means_nothing() {
    let mut client = turn(manual());
    client.go("x", &[]).unwrap();
    let item = |data: &[u8]| option_reply(Opt::GO, Rep::INFO, data);
    assert_eq!(
        feed(&mut client, &item(b"\0\x01name")),
        Ok(vec![Event::Info(Info::Name("name".into()))])
    );
    assert_eq!(feed(&mut client, &item(b"\x77\x77whatever")), Ok(vec![]));
    assert_eq!(feed(&mut client, &info(TransmissionFlags::HAS_FLAGS)).unwrap().len(), 1);
    assert_eq!(feed(&mut client, &ack(Opt::GO)), Ok(vec![Event::Ready]));
    assert_eq!(client.export().unwrap().name, Some("name"));
}

#[test]
fn block_sizes_are_obeyed_corrected_or_refused() {
    let sizes = |minimum, preferred, maximum_payload| {
        let sizes = BlockSizeInfo { minimum, preferred, maximum_payload }.encode();
        let mut client = going();
        feed(&mut client, &info(TransmissionFlags::HAS_FLAGS)).unwrap();
        feed(&mut client, &option_reply(Opt::GO, Rep::INFO, &sizes)).unwrap();
        feed(&mut client, &ack(Opt::GO)).map(|_| client.export().unwrap().block_size)
    };
    assert_eq!(sizes(512, 4096, 1 << 20), Ok(BlockSize::new(512, 4096, 1 << 20).unwrap()));
    // Bounded by our own limit, and a preferred size that is no power of two.
    assert_eq!(sizes(1, 5000, u32::MAX), Ok(BlockSize::new(1, 8192, 1 << 25).unwrap()));
    for (minimum, maximum) in [(0, 4096), (3, 4096), (1 << 17, 1 << 20), (1, 0)] {
        let error = sizes(minimum, 4096, maximum).unwrap_err();
        assert!(matches!(error, Error::PeerMisbehaved(PeerMisbehaved::BadBlockSize(_))));
    }
}

#[test]
fn a_selection_that_fails_in_the_end_selects_nothing() {
    let mut client = new_client(config(Mode::Structured)).unwrap();
    greet(&mut client, 1, FIXED);
    feed(&mut client, &ack(Opt::STRUCTURED_REPLY)).unwrap();
    assert_eq!(codes(&sent(&mut client)), [Opt::SET_META_CONTEXT]);
    let set = Opt::SET_META_CONTEXT;
    feed(&mut client, &context_reply(set, 1, "base:allocation")).unwrap();
    feed(&mut client, &option_reply(set, Rep::ERR_TOO_BIG, b"")).unwrap();
    assert_eq!(codes(&sent(&mut client)), [Opt::GO]);
    feed(&mut client, &info(TransmissionFlags::HAS_FLAGS)).unwrap();
    feed(&mut client, &ack(Opt::GO)).unwrap();
    assert!(client.export().unwrap().contexts.is_empty());
}

#[test]
fn a_selection_that_fails_voids_the_one_before() {
    let set = Opt::SET_META_CONTEXT;
    let mut client = turn(manual());
    client.structured_reply().unwrap();
    feed(&mut client, &ack(Opt::STRUCTURED_REPLY)).unwrap();
    client.set_meta_context("disk", &["base:allocation"]).unwrap();
    feed(&mut client, &context_reply(set, 1, "base:allocation")).unwrap();
    feed(&mut client, &ack(set)).unwrap();
    client.set_meta_context("disk", &["base:allocation", "x-a:b"]).unwrap();
    feed(&mut client, &option_reply(set, Rep::ERR_TOO_BIG, b"")).unwrap();
    client.go("disk", &[]).unwrap();
    feed(&mut client, &info(TransmissionFlags::HAS_FLAGS)).unwrap();
    feed(&mut client, &ack(Opt::GO)).unwrap();
    assert!(client.export().unwrap().contexts.is_empty());
}

#[test]
fn contexts_with_equal_numbers_or_too_many_of_them_end_the_session() {
    let selecting = || {
        let mut config = config(Mode::Structured);
        config.limits.max_contexts = 1;
        let mut client = new_client(config).unwrap();
        greet(&mut client, 1, FIXED);
        feed(&mut client, &ack(Opt::STRUCTURED_REPLY)).unwrap();
        let reply = context_reply(Opt::SET_META_CONTEXT, 1, "base:allocation");
        feed(&mut client, &reply).unwrap();
        client
    };
    let reply = |id| context_reply(Opt::SET_META_CONTEXT, id, "x-a:b");
    let error = feed(&mut selecting(), &reply(1)).unwrap_err();
    assert_eq!(error, PeerMisbehaved::DuplicateContext(1).into());
    // Two were asked for, so there may be two in spite of the limit.
    let mut client = selecting();
    feed(&mut client, &reply(2)).unwrap();
    assert_eq!(feed(&mut client, &reply(3)), Err(LimitExceeded::Contexts(1).into()));
}

#[test]
fn numbers_of_listed_contexts_are_disregarded() {
    let mut client = turn(manual());
    client.structured_reply().unwrap();
    feed(&mut client, &ack(Opt::STRUCTURED_REPLY)).unwrap();
    client.list_meta_context("", &["base:"]).unwrap();
    for _ in 0..2 {
        let seen = feed(&mut client, &context_reply(Opt::LIST_META_CONTEXT, 7, "base:allocation"));
        assert_eq!(seen, Ok(vec![Event::MetaContext { id: 0, name: "base:allocation".into() }]));
    }
}

#[test]
fn plain_text_behind_the_acknowledgement_of_starttls_is_an_attack() {
    let mut config = Config::default();
    config.tls = TlsMode::Required;
    let mut client = new_client(config.clone()).unwrap();
    assert_eq!(greet(&mut client, 3, ClientFlags::from_bits_retain(3)), [(Opt::STARTTLS, vec![])]);
    let injected = [ack(Opt::STARTTLS), ack(Opt::EXTENDED_HEADERS)].concat();
    let closed = Event::Closed(Err(PeerMisbehaved::PlaintextAfterStartTls.into()));
    let first = client.next_event(&mut &injected[..]);
    assert_eq!(first.as_ref(), Some(&closed), "no handshake is asked for");

    // The same in a piece of its own, before the handshake.
    let mut client = new_client(config.clone()).unwrap();
    feed(&mut client, &greeting(3)).unwrap();
    sent(&mut client);
    assert_eq!(feed(&mut client, &ack(Opt::STARTTLS)), Ok(vec![Event::StartTls]));
    assert_eq!(client.next_event(&mut &b"N"[..]), Some(closed));

    // An acknowledgement that is there before the option was sent is waited out.
    let mut client = new_client(config).unwrap();
    feed(&mut client, &greeting(3)).unwrap();
    assert_eq!(feed(&mut client, &ack(Opt::STARTTLS)), Ok(vec![Event::StartTls]));
    assert!(client.tls_established().is_err());
    sent(&mut client);
    assert_eq!(client.wants(), Wants::Tls);
    client.tls_established().unwrap();
    assert_eq!(codes(&sent(&mut client)), [Opt::EXTENDED_HEADERS]);
}

#[test]
fn each_way_to_hang_up_is_reported() {
    let reply = option_reply(Opt::GO, Rep::INFO, &[0; 12]);
    let mut client = new_client(config(Mode::Simple)).unwrap();
    assert_eq!(hang_up(&mut client), Err(Error::UnexpectedEnd("the greeting")));
    for cut in [0, 7, 20, 25] {
        let mut client = going();
        feed(&mut client, &reply[..cut]).unwrap();
        assert_eq!(hang_up(&mut client), Err(Error::UnexpectedEnd("the negotiation")));
    }
    let mut client = new_client(Config::default()).unwrap();
    greet(&mut client, 0, ClientFlags::empty());
    assert_eq!(hang_up(&mut client), Err(NoSession::ExportName.into()));
    let mut client = new_client(Config::default()).unwrap();
    greet(&mut client, 0, ClientFlags::empty());
    feed(&mut client, &[0]).unwrap();
    assert_eq!(hang_up(&mut client), Err(Error::UnexpectedEnd("the negotiation")));
}

#[test]
fn options_that_break_the_protocol_are_not_sent() {
    let mut config = manual();
    config.tls = TlsMode::Required;
    let mut client = turn(config);
    assert_eq!(client.list(), Err(OptionError::NeedsTls));
    assert_eq!(client.export_name(""), Err(OptionError::NeedsTls));
    client.enter("disk").unwrap();
    assert_eq!(codes(&sent(&mut client)), [Opt::STARTTLS]);

    let mut client = turn(manual());
    let long = "x".repeat(4097);
    assert_eq!(client.info(long.as_str(), &[]), Err(OptionError::BadString));
    assert_eq!(client.go("a\0", &[]), Err(OptionError::BadString));
    assert_eq!(client.enter("a\0"), Err(OptionError::BadString));
    assert_eq!(client.set_meta_context("", &["a:b"]), Err(OptionError::NeedsStructuredReplies));
    assert_eq!(client.option(Opt::GO, b""), Err(OptionError::HasMethod));
    assert_eq!(sent(&mut client), []);
    client.extended_headers().unwrap();
    feed(&mut client, &ack(Opt::EXTENDED_HEADERS)).unwrap();
    assert_eq!(client.extended_headers(), Err(OptionError::AlreadyAgreed));
    assert_eq!(client.structured_reply(), Err(OptionError::AlreadyAgreed));
    assert_eq!(client.export_name(""), Err(OptionError::ExtendedHeaders));
    assert_eq!(client.set_meta_context("", &["nocolon"]), Err(OptionError::BadQuery));
    let config = Config::for_export(long);
    assert_eq!(new_client(config).unwrap_err(), OptionError::BadString);
}

#[test]
fn a_flush_has_no_offset_and_disc_has_nothing() {
    let mut client = transmitting(Mode::Simple);
    client.begin(Command::Flush, vec![]).unwrap();
    let flush = CompactRequest::decode(sent(&mut client).first_chunk().unwrap()).unwrap();
    assert_eq!((flush.offset, flush.length), (0, 0));
    client.disconnect_now();
    let disc = CompactRequest::decode(sent(&mut client).first_chunk().unwrap()).unwrap();
    assert_eq!((disc.command, disc.offset, disc.length), (CommandType::DISC, 0, 0));
    assert!(disc.flags.is_empty());
}
