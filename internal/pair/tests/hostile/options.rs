//! Options that the client sends, to the byte, and those that it must not send.

use nbd_proto::client::{Config, Event, Goal, OptionError, TlsMode};
use nbd_proto::wire::{
    ClientFlags, ExportInfoReply, InfoType, OptionCode as Opt, OptionReplyType as Rep,
    TransmissionFlags,
};
use nbd_proto::{Error, NoSession};

use crate::peer::*;

fn manual(tls: TlsMode) -> Client {
    let mut config = Config::default();
    (config.goal, config.tls) = (Goal::Manual, tls);
    let mut client = new_client(config).unwrap();
    feed(&mut client, &greeting(3)).unwrap();
    sent(&mut client);
    client
}

/// The only option that a client has sent since it was last asked.
#[track_caller]
fn one(client: &mut Client) -> (Opt, Vec<u8>) {
    let mut sent = options(&sent(client));
    assert_eq!(sent.len(), 1, "{sent:?}");
    sent.remove(0)
}

/// C-OPT-AB-06, C-OPT-LS-06, C-OPT-SR-05, C-OPT-EH-10, C-TLS-20.
#[test]
fn options_without_data_have_none() {
    type Say = fn(&mut Client) -> Result<(), OptionError>;
    let options: [(Opt, Say); 5] = [
        (Opt::ABORT, |client| client.abort()),
        (Opt::LIST, |client| client.list()),
        (Opt::STRUCTURED_REPLY, |client| client.structured_reply()),
        (Opt::EXTENDED_HEADERS, |client| client.extended_headers()),
        (Opt::STARTTLS, |client| client.start_tls()),
    ];
    for (code, say) in options {
        let mut client = manual(TlsMode::Preferred);
        say(&mut client).unwrap();
        assert_eq!(one(&mut client), (code, vec![]));
        // C-OPT-14: nothing more, until it is answered.
        assert_eq!(client.list(), Err(OptionError::NotYourTurn));
        assert_eq!(sent(&mut client), []);
    }
}

/// C-OPT-15: neither what was agreed to, nor what was refused.
#[test]
fn what_was_answered_is_not_asked_for_again() {
    for (extended, structured) in [(true, false), (false, true), (false, false)] {
        let mut config = Config::for_export("one");
        config.goal = Goal::Prepare;
        config.contexts = vec!["base:allocation".into()];
        let mut client = new_client(config).unwrap();
        let mut next = greet(&mut client, 3, ClientFlags::from_bits_retain(3));
        let mut wanted = vec![(Opt::EXTENDED_HEADERS, extended)];
        if !extended {
            wanted.push((Opt::STRUCTURED_REPLY, structured));
        }
        for (code, agreed) in wanted {
            assert_eq!(next, [(code, vec![])]);
            let reply = if agreed { Rep::ACK } else { Rep::ERR_UNSUP };
            feed(&mut client, &option_reply(code, reply, &[])).unwrap();
            next = options(&sent(&mut client));
        }
        assert_eq!(next, [], "it is the embedder's turn");
        // Contexts are selected once for each export, and nothing else happens again.
        for (name, selects) in [("one", true), ("one", false), ("two", true), ("one", true)] {
            client.enter(name).unwrap();
            if selects && (extended || structured) {
                assert_eq!(one(&mut client).0, Opt::SET_META_CONTEXT, "{name}");
                feed(&mut client, &ack(Opt::SET_META_CONTEXT)).unwrap();
            }
            assert_eq!(one(&mut client).0, Opt::GO, "{name}");
            feed(&mut client, &option_reply(Opt::GO, Rep::ERR_UNKNOWN, &[])).unwrap();
        }
        if extended || structured {
            assert_eq!(client.structured_reply(), Err(OptionError::AlreadyAgreed));
        }
    }
}

/// C-TLS-20.
#[test]
fn tls_is_not_started_inside_of_tls() {
    let mut client = manual(TlsMode::Preferred);
    client.start_tls().unwrap();
    sent(&mut client);
    feed(&mut client, &ack(Opt::STARTTLS)).unwrap();
    client.tls_established().unwrap();
    assert_eq!(client.start_tls(), Err(OptionError::TlsRunning));
    assert_eq!(sent(&mut client), []);

    let mut config = Config::default();
    config.tls = TlsMode::Preferred;
    let mut client = new_client(config).unwrap();
    greet(&mut client, 3, ClientFlags::from_bits_retain(3));
    feed(&mut client, &ack(Opt::STARTTLS)).unwrap();
    client.tls_established().unwrap();
    for code in [Opt::EXTENDED_HEADERS, Opt::STRUCTURED_REPLY] {
        assert_eq!(one(&mut client), (code, vec![]));
        feed(&mut client, &option_reply(code, Rep::ERR_UNSUP, &[])).unwrap();
    }
    assert_eq!(one(&mut client).0, Opt::GO);
}

/// C-TLS-25, C-OPT-AB-04: but one may leave.
#[test]
fn before_tls_that_is_required_there_is_nothing_to_say_but_goodbye() {
    let mut client = manual(TlsMode::Required);
    let refused = Err(OptionError::NeedsTls);
    assert_eq!(client.info("secret", &[]), refused);
    assert_eq!(client.go("secret", &[]), refused);
    assert_eq!(client.structured_reply(), refused);
    assert_eq!(client.extended_headers(), refused);
    assert_eq!(client.list_meta_context("secret", &["a:b"]), refused);
    assert_eq!(client.set_meta_context("secret", &["a:b"]), refused);
    assert_eq!(client.option(Opt(77), b"secret"), refused);
    assert_eq!(sent(&mut client), []);
    client.abort().unwrap();
    assert_eq!(one(&mut client), (Opt::ABORT, vec![]));
}

/// C-OPT-GO-19, C-OPT-SM-13, B-CONV-02, B-CONV-03.
#[test]
fn names_queries_and_items_that_break_the_rules_are_not_sent() {
    let twice = [InfoType::NAME, InfoType::NAME];
    let mut client = manual(TlsMode::Off);
    assert_eq!(client.go("disk", &twice), Err(OptionError::RepeatedItem(InfoType::NAME)));
    assert_eq!(client.info("disk", &twice), Err(OptionError::RepeatedItem(InfoType::NAME)));
    assert_eq!(client.export_name("a\0"), Err(OptionError::BadString));
    client.structured_reply().unwrap();
    sent(&mut client);
    feed(&mut client, &ack(Opt::STRUCTURED_REPLY)).unwrap();
    for (name, query, error) in [
        ("a\0", "a:b", OptionError::BadString),
        ("disk", "a:\0", OptionError::BadString),
        ("disk", "nocolon", OptionError::BadQuery),
    ] {
        assert_eq!(client.set_meta_context(name, &[query]), Err(error));
        assert_eq!(client.list_meta_context(name, &["a:b", query]), Err(error));
    }
    assert_eq!(sent(&mut client), []);

    let mut config = Config::default();
    config.info = twice.into();
    let error = OptionError::RepeatedItem(InfoType::NAME);
    assert_eq!(new_client(config).unwrap_err(), error);
    let mut config = Config::default();
    config.contexts = vec!["base:allocation".into(), "nocolon".into()];
    assert_eq!(new_client(config).unwrap_err(), OptionError::BadQuery);
    // A name as long as names can be.
    client.go("x".repeat(4096), &[]).unwrap();
    let (_, data) = one(&mut client);
    assert_eq!(data.len(), 4 + 4096 + 2);
    assert_eq!(data[..4], 4096_u32.to_be_bytes());
}

/// C-OPT-EN-05, C-OPT-GO-22: what is refused for another reason is not tried by older means.
#[test]
fn only_a_server_without_go_is_asked_by_export_name() {
    for reply in [Rep::ERR_UNKNOWN, Rep::ERR_POLICY, Rep::ERR_INVALID, Rep(0x8000_7777)] {
        let mut client = new_client(config(Mode::Simple)).unwrap();
        let asked = greet(&mut client, 3, ClientFlags::from_bits_retain(3));
        assert_eq!(asked[0].0, Opt::GO);
        feed(&mut client, &option_reply(Opt::GO, reply, &[])).unwrap();
        assert_eq!(one(&mut client), (Opt::ABORT, vec![]));
        let refused = Error::Refused(NoSession::Option { code: Opt::GO, reply });
        assert_eq!(feed(&mut client, &ack(Opt::ABORT)), Err(refused));
    }
}

/// C-TLS-29, C-TRM-06: neither is a reason to go on without a feature.
#[test]
fn a_server_that_insists_on_tls_or_shuts_down_is_left_at_once() {
    for (mode, reply) in [Mode::Structured, Mode::Extended]
        .into_iter()
        .flat_map(|mode| [(mode, Rep::ERR_TLS_REQD), (mode, Rep::ERR_SHUTDOWN)])
    {
        let mut client = new_client(config(mode)).unwrap();
        let asked = greet(&mut client, 3, ClientFlags::from_bits_retain(3));
        let code = asked[0].0;
        let seen = feed(&mut client, &option_reply(code, reply, b"why")).unwrap();
        assert_eq!(seen, [Event::OptionFailed { code, reply, message: "why".into() }]);
        assert_eq!(one(&mut client), (Opt::ABORT, vec![]));
    }
}

/// C-OPT-EN-07, C-HS-14, C-HS-15: what only one side knows was not agreed.
#[test]
fn what_the_server_offers_and_the_client_does_not_take_is_not_agreed() {
    let export = ExportInfoReply { size: SIZE, flags: TransmissionFlags::HAS_FLAGS };
    let mut shy = Config::default();
    (shy.no_zeroes, shy.fixed_newstyle) = (false, false);
    let mut client = new_client(shy).unwrap();
    let asked = greet(&mut client, 3, ClientFlags::empty());
    assert_eq!(asked, [(Opt::EXPORT_NAME, vec![])]);
    feed(&mut client, &export.encode_export_name()).unwrap();
    assert_eq!(feed(&mut client, &[0; 123]), Ok(vec![]));
    assert_eq!(feed(&mut client, &[0]), Ok(vec![Event::Ready]));
}

/// C-HS-18, C-TLS-25: a server that knows no ABORT is just left.
#[test]
fn a_server_that_cannot_start_tls_is_left_without_a_word() {
    let mut config = Config::default();
    config.tls = TlsMode::Required;
    let mut client = new_client(config).unwrap();
    assert_eq!(feed(&mut client, &greeting(0)), Err(NoSession::NoTls.into()));
    assert_eq!(sent(&mut client), [], "no name is told");
}
