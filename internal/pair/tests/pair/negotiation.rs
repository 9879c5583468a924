//! Ways into an export, and ways that end before one.

use nbd_pair::pair::Pair;
use nbd_proto::client::{Config, Goal, OptionError, TlsMode};
use nbd_proto::wire::{InfoType, OptionCode, OptionReplyType};
use nbd_proto::{BlockSize, Command, Error, NoSession, server};

use crate::scenario::for_each_split;

const READ: Command = Command::read(510, 4);

/// Enters, reads a few bytes, and leaves. Gives what the client saw.
fn enter(client: &Config, server: &server::Config) -> Vec<String> {
    for_each_split(client, server, |pair| {
        pair.run();
        let done = pair.perform(READ);
        assert_eq!(done.result, Ok(()));
        assert_eq!(done.bytes, pair.server.embedder.bytes[510..514]);
        pair.leave();
    })
}

fn entered(ready: &str) -> [String; 3] {
    [ready, "0 completed: ok", "Disconnected"].map(String::from)
}

/// Negotiates in vain. Gives what the client saw; its error is the last of that.
fn fail(client: &Config, server: &server::Config, scenario: impl Fn(&mut Pair)) -> Vec<String> {
    for_each_split(client, server, |pair| {
        scenario(pair);
        pair.run();
        assert!(pair.client.ended() && pair.server.ended());
        assert!(pair.client.error().is_some());
    })
}

fn server() -> server::Config {
    server::Config::default()
}

fn plain() -> Config {
    let mut config = Config::for_export("disk");
    config.extended_headers = false;
    config.structured_replies = false;
    config
}

fn manual() -> Config {
    let mut config = Config::default();
    config.goal = Goal::Manual;
    config
}

#[test]
fn by_default_headers_are_extended() {
    assert_eq!(enter(&Config::default(), &server()), entered("Ready: extended, []"));
}

#[test]
fn without_extended_headers_replies_are_structured() {
    let mut server = server();
    server.extended_headers = false;
    assert_eq!(enter(&Config::default(), &server), entered("Ready: structured, []"));
    let mut client = Config::default();
    client.extended_headers = false;
    assert_eq!(enter(&client, &self::server()), entered("Ready: structured, []"));
}

#[test]
fn without_either_replies_are_simple() {
    let mut server = server();
    server.extended_headers = false;
    server.structured_replies = false;
    assert_eq!(enter(&Config::default(), &server), entered("Ready: simple, []"));
    assert_eq!(enter(&plain(), &self::server()), entered("Ready: simple, []"));
}

#[test]
fn plain_newstyle_enters_by_export_name_with_and_without_zeroes() {
    for no_zeroes in [false, true] {
        let mut client = plain();
        client.fixed_newstyle = false;
        client.no_zeroes = no_zeroes;
        for offered in [false, true] {
            let mut server = server();
            server.no_zeroes = offered;
            assert_eq!(enter(&client, &server), entered("Ready: simple, []"));
        }
        // What needs fixed newstyle is left out without it.
        client.extended_headers = true;
        client.contexts = vec!["base:allocation".into()];
        client.tls = TlsMode::Preferred;
        assert_eq!(enter(&client, &server()), entered("Ready: simple, []"));
    }
}

#[test]
fn an_oldstyle_server_has_one_export_and_no_negotiation() {
    let mut client = Config::for_export("any name");
    client.contexts = vec!["base:allocation".into()];
    let log = for_each_split(&client, &server(), |pair| {
        let export = &pair.server.embedder.exports[0].1;
        pair.server.connection = server::Connection::oldstyle(server(), export).unwrap();
        pair.run();
        let done = pair.perform(READ);
        assert_eq!((done.result, &done.bytes[..]), (Ok(()), &pair.server.embedder.bytes[510..514]));
        pair.leave();
    });
    assert_eq!(log, entered("Ready: simple, []"));
}

#[test]
fn an_export_can_be_entered_by_export_name_with_structured_replies_and_contexts() {
    for no_zeroes in [false, true] {
        let mut client = manual();
        client.no_zeroes = no_zeroes;
        let log = for_each_split(&client, &server(), |pair| {
            pair.run();
            pair.client.structured_reply().unwrap();
            pair.run();
            pair.client.set_meta_context("disk", &["base:allocation"]).unwrap();
            pair.run();
            pair.client.export_name("disk").unwrap();
            pair.run();
            assert_eq!(pair.perform(READ).result, Ok(()));
            pair.leave();
        });
        let ready = "Ready: structured, [\"base:allocation\"]";
        assert_eq!(log[log.len() - 3..], entered(ready));
    }
}

#[test]
fn contexts_are_selected_where_they_exist_and_can_be_reported() {
    let mut client = Config::for_export("disk");
    client.contexts = ["x-test:wide", "base:allocation", "x-none:such"].map(String::from).to_vec();
    let both = "Ready: extended, [\"base:allocation\", \"x-test:wide\"]";
    assert_eq!(enter(&client, &server()), entered(both));
    client.extended_headers = false;
    let compact = "Ready: structured, [\"base:allocation\"]";
    assert_eq!(enter(&client, &server()), entered(compact));
    client.structured_replies = false;
    assert_eq!(enter(&client, &server()), entered("Ready: simple, []"));
}

#[test]
fn contexts_are_done_without_where_the_server_refuses_them() {
    let mut client = Config::for_export("disk");
    client.contexts = vec!["base:allocation".into(), "x-test:first-byte".into()];
    let mut server = server();
    server.limits.max_contexts = 1;
    assert_eq!(enter(&client, &server), entered("Ready: extended, []"));
}

#[test]
fn a_selection_for_another_export_is_void_for_both_ends() {
    let log = for_each_split(&manual(), &server(), |pair| {
        pair.run();
        pair.client.extended_headers().unwrap();
        pair.run();
        pair.client.set_meta_context("disk", &["base:allocation"]).unwrap();
        pair.run();
        pair.client.go("", &[]).unwrap();
        pair.run();
        pair.leave();
    });
    assert_eq!(log[log.len() - 2..], ["Ready: extended, []", "Disconnected"]);
}

#[test]
fn information_about_the_export_arrives_if_it_was_asked_for() {
    let mut client = Config::for_export("disk");
    client.info = vec![InfoType::NAME, InfoType::DESCRIPTION, InfoType::BLOCK_SIZE];
    for_each_split(&client, &server(), |pair| {
        pair.server.embedder.exports[1].1.name = Some("the disk".into());
        pair.server.embedder.exports[1].1.block_size = BlockSize::new(512, 4096, 1 << 16).unwrap();
        pair.run();
        let view = pair.client.export().unwrap();
        assert_eq!((view.name, view.description), (Some("the disk"), Some("a test disk")));
        assert!(view.block_size_advertised);
        assert_eq!(view.block_size, BlockSize::new(512, 4096, 1 << 16).unwrap());
    });
    client.info.clear();
    for_each_split(&client, &server(), |pair| {
        pair.run();
        let view = pair.client.export().unwrap();
        assert_eq!((view.name, view.description, view.block_size_advertised), (None, None, false));
    });
}

#[test]
fn every_option_by_hand() {
    let log = for_each_split(&manual(), &server(), |pair| {
        type Option = fn(&mut Pair) -> Result<(), OptionError>;
        let options: [Option; 9] = [
            |pair| pair.client.list(),
            |pair| pair.client.info("disk", &[InfoType::DESCRIPTION]),
            |pair| pair.client.info("nowhere", &[]),
            |pair| pair.client.structured_reply(),
            |pair| pair.client.list_meta_context("disk", &[] as &[&str]),
            |pair| pair.client.list_meta_context("disk", &["base:"]),
            |pair| pair.client.set_meta_context("disk", &["x-test:first-byte"]),
            |pair| pair.client.option(OptionCode(0x1234), b"whatever"),
            |pair| pair.client.go("disk", &[InfoType::BLOCK_SIZE]),
        ];
        pair.run();
        for option in options {
            option(pair).unwrap();
            assert_eq!(pair.client.list(), Err(OptionError::NotYourTurn));
            pair.run();
        }
        pair.leave();
    });
    let unsupported = "OptionFailed { code: OptionCode 0x1234, reply: NBD_REP_ERR_UNSUP, \
                       message: \"the option is not supported\" }";
    let expected = [
        "YourTurn",
        "Listed { name: \"\", description: \"a test disk\" }",
        "Listed { name: \"disk\", description: \"a test disk\" }",
        "OptionDone { code: NBD_OPT_LIST }",
        "Info(Export { size: 32768, flags: FLAGS })",
        "Info(Description(\"a test disk\"))",
        "OptionDone { code: NBD_OPT_INFO }",
        "OptionFailed { code: NBD_OPT_INFO, reply: NBD_REP_ERR_UNKNOWN, message: \"there is no such export\" }",
        "OptionDone { code: NBD_OPT_STRUCTURED_REPLY }",
        "MetaContext { id: 0, name: \"base:allocation\" }",
        "MetaContext { id: 0, name: \"x-test:first-byte\" }",
        "OptionDone { code: NBD_OPT_LIST_META_CONTEXT }",
        "MetaContext { id: 0, name: \"base:allocation\" }",
        "OptionDone { code: NBD_OPT_LIST_META_CONTEXT }",
        "MetaContext { id: 2, name: \"x-test:first-byte\" }",
        "OptionDone { code: NBD_OPT_SET_META_CONTEXT }",
        unsupported,
        "Info(Export { size: 32768, flags: FLAGS })",
        "Info(BlockSize(BlockSizeInfo { minimum: 1, preferred: 4096, maximum_payload: 33554432 }))",
        "Ready: structured, [\"x-test:first-byte\"]",
        "Disconnected",
    ];
    let without_flags = |line: &String| {
        let flags = line.split_once("TransmissionFlags(").map(|(_, rest)| rest);
        match flags.and_then(|flags| flags.split_once(')')) {
            Some((flags, _)) => line.replace(&format!("TransmissionFlags({flags})"), "FLAGS"),
            None => line.clone(),
        }
    };
    assert_eq!(log.iter().map(without_flags).collect::<Vec<_>>(), expected);
}

#[test]
fn the_embedder_can_choose_after_the_machine_prepared() {
    let mut client = Config::default();
    client.goal = Goal::Prepare;
    client.contexts = vec!["base:allocation".into()];
    let log = for_each_split(&client, &server(), |pair| {
        pair.run();
        pair.client.list().unwrap();
        pair.run();
        pair.client.enter("nowhere").unwrap();
        pair.run();
        pair.client.enter("disk").unwrap();
        pair.run();
        pair.leave();
    });
    assert!(log[0] == "YourTurn" && log[3] == "OptionDone { code: NBD_OPT_LIST }", "{log:?}");
    assert!(log[4].starts_with("OptionFailed { code: NBD_OPT_GO, reply: NBD_REP_ERR_UNKNOWN"));
    assert_eq!(log[5..], ["Ready: extended, [\"base:allocation\"]", "Disconnected"]);
}

#[test]
fn an_export_that_does_not_exist_or_is_forbidden_ends_the_session_softly() {
    for (name, reply) in
        [("nowhere", OptionReplyType::ERR_UNKNOWN), ("private", OptionReplyType::ERR_POLICY)]
    {
        let log = fail(&Config::for_export(name), &server(), |pair| {
            let info = pair.server.embedder.exports[0].1.clone();
            pair.server.embedder.exports.push(("private".into(), info));
            pair.run();
            let code = OptionCode::GO;
            assert_eq!(
                pair.client.error(),
                Some(Error::Refused(NoSession::Option { code, reply }))
            );
            assert_eq!(pair.server.log.last().map(String::as_str), Some("Aborted"));
        });
        assert!(log[0].starts_with("OptionFailed"), "{log:?}");
    }
}

#[test]
fn an_export_that_export_name_can_not_have_ends_with_a_closed_stream() {
    let mut client = Config::for_export("nowhere");
    client.fixed_newstyle = false;
    let log = fail(&client, &server(), |pair| {
        pair.run();
        assert_eq!(pair.client.error(), Some(Error::Refused(NoSession::ExportName)));
    });
    assert_eq!(log.len(), 1);
}

#[test]
fn a_server_that_insists_on_block_sizes_gets_a_client_that_heeds_them() {
    let insist = |pair: &mut Pair| {
        let info = &mut pair.server.embedder.exports[1].1;
        info.block_size = BlockSize::new(512, 4096, 1 << 20).unwrap();
        info.block_size_required = true;
    };
    for_each_split(&Config::for_export("disk"), &server(), |pair| {
        insist(pair);
        pair.run();
        assert_eq!(pair.client.export().unwrap().block_size.minimum(), 512);
    });
    let mut careless = Config::for_export("disk");
    careless.info.clear();
    fail(&careless, &server(), |pair| {
        insist(pair);
        pair.run();
        let (code, reply) = (OptionCode::GO, OptionReplyType::ERR_BLOCK_SIZE_REQD);
        assert_eq!(pair.client.error(), Some(Error::Refused(NoSession::Option { code, reply })));
    });
}

#[test]
fn tls_is_used_where_it_is_wanted_and_there() {
    for (client_mode, server_mode, tls) in [
        (TlsMode::Off, server::TlsMode::Off, ""),
        (TlsMode::Off, server::TlsMode::Available, ""),
        (TlsMode::Preferred, server::TlsMode::Off, ""),
        (TlsMode::Preferred, server::TlsMode::Available, ", TLS"),
        (TlsMode::Preferred, server::TlsMode::Required, ", TLS"),
        (TlsMode::Required, server::TlsMode::Available, ", TLS"),
        (TlsMode::Required, server::TlsMode::Required, ", TLS"),
    ] {
        let mut client = Config::for_export("disk");
        client.tls = client_mode;
        client.contexts = vec!["base:allocation".into()];
        let mut server = server();
        server.tls = server_mode;
        let log = enter(&client, &server);
        let ready = format!("Ready: extended{tls}, [\"base:allocation\"]");
        assert_eq!(log[log.len() - 3..], entered(&ready));
        assert_eq!(log.len(), if tls.is_empty() { 3 } else { 5 }, "{log:?}");
    }
}

#[test]
fn without_the_tls_that_one_side_needs_the_session_ends_softly() {
    let mut client = Config::default();
    client.tls = TlsMode::Required;
    fail(&client, &server(), |pair| {
        pair.run();
        let (code, reply) = (OptionCode::STARTTLS, OptionReplyType::ERR_UNSUP);
        assert_eq!(pair.client.error(), Some(Error::Refused(NoSession::Option { code, reply })));
        assert_eq!(pair.server.log, ["Aborted"], "no name was told");
    });
    let mut server = server();
    server.tls = server::TlsMode::Required;
    fail(&Config::default(), &server, |pair| {
        pair.run();
        let (code, reply) = (OptionCode::EXTENDED_HEADERS, OptionReplyType::ERR_TLS_REQD);
        assert_eq!(pair.client.error(), Some(Error::Refused(NoSession::Option { code, reply })));
    });
    client.fixed_newstyle = false;
    fail(&client, &server, |pair| {
        pair.run();
        assert_eq!(pair.client.error(), Some(Error::Refused(NoSession::NoTls)));
    });
}

#[test]
fn an_export_that_needs_tls_says_so() {
    let mut server = server();
    server.tls = server::TlsMode::Available;
    let mut client = manual();
    client.tls = TlsMode::Preferred;
    let log = for_each_split(&client, &server, |pair| {
        pair.server.embedder.exports[1].1.tls_required = true;
        pair.run();
        pair.client.go("disk", &[]).unwrap();
        pair.run();
        pair.client.start_tls().unwrap();
        pair.run();
        pair.client.go("disk", &[InfoType(0x7777)]).unwrap();
        pair.run();
        pair.leave();
    });
    assert!(log[1].starts_with("OptionFailed { code: NBD_OPT_GO, reply: NBD_REP_ERR_TLS_REQD"));
    assert_eq!(log[2..4], ["StartTls", "TLS"]);
    assert_eq!(log[5..], ["Ready: simple, TLS, []", "Disconnected"]);
}

#[test]
fn tls_voids_what_was_negotiated_before() {
    let mut server = server();
    server.tls = server::TlsMode::Available;
    let mut client = manual();
    client.tls = TlsMode::Preferred;
    let log = for_each_split(&client, &server, |pair| {
        pair.run();
        pair.client.extended_headers().unwrap();
        pair.run();
        pair.client.set_meta_context("disk", &["base:allocation"]).unwrap();
        pair.run();
        pair.client.start_tls().unwrap();
        pair.run();
        assert_eq!(
            pair.client.set_meta_context("disk", &["base:allocation"]),
            Err(OptionError::NeedsStructuredReplies)
        );
        pair.client.structured_reply().unwrap();
        pair.run();
        pair.client.go("disk", &[]).unwrap();
        pair.run();
        pair.leave();
    });
    assert_eq!(log[log.len() - 2..], ["Ready: structured, TLS, []", "Disconnected"]);
}

#[test]
fn a_client_can_disconnect_at_any_time() {
    // The server's greeting has not even arrived.
    let log = for_each_split(&Config::default(), &server(), |pair| pair.leave());
    assert_eq!(log, ["Aborted"]);
    for_each_split(&manual(), &server(), |pair| {
        pair.run();
        pair.leave();
        assert_eq!(pair.server.log, ["Aborted"]);
    });
    let log = for_each_split(&manual(), &server(), |pair| {
        pair.run();
        pair.client.list().unwrap();
        pair.leave();
    });
    assert_eq!(log[log.len() - 2..], ["OptionDone { code: NBD_OPT_LIST }", "Aborted"]);
    let log = for_each_split(&manual(), &server(), |pair| {
        pair.run();
        pair.client.go("", &[]).unwrap();
        pair.leave();
        assert_eq!(pair.server.log.last().map(String::as_str), Some("Disconnected"));
    });
    assert_eq!(log[log.len() - 2..], ["Ready: simple, []", "Disconnected"]);
    for_each_split(&manual(), &server(), |pair| {
        pair.run();
        pair.client.abort().unwrap();
        pair.run();
        assert_eq!(pair.client.log, ["YourTurn", "Aborted"]);
    });
}

#[test]
fn a_server_that_shuts_down_is_left() {
    for goal in [Goal::Manual, Goal::Enter] {
        let mut client = Config::default();
        client.goal = goal;
        let log = fail(&client, &server(), |pair| {
            pair.server.connection.shut_down();
            pair.run();
            if goal == Goal::Manual {
                pair.client.list().unwrap();
                pair.run();
            }
            let refusal = pair.client.error();
            let reply = OptionReplyType::ERR_SHUTDOWN;
            assert!(matches!(
                refusal,
                Some(Error::Refused(NoSession::Option { reply: r, .. })) if r == reply
            ));
        });
        assert!(log[log.len() - 2].contains("NBD_REP_ERR_SHUTDOWN"), "{log:?}");
    }
}

#[test]
fn a_list_longer_than_the_limit_ends_the_session() {
    let mut client = manual();
    client.limits.max_option_replies = 5;
    for (more, fits) in [(2, true), (3, true), (4, false)] {
        for_each_split(&client, &server(), |pair| {
            for count in 0..more - 1 {
                let info = pair.server.embedder.exports[0].1.clone();
                pair.server.embedder.exports.push((format!("export {count}"), info));
            }
            pair.run();
            pair.client.list().unwrap();
            pair.run();
            assert_eq!(pair.client.error().is_none(), fits, "{:?}", pair.client.error());
        });
    }
}

#[test]
fn oversized_options_are_refused_or_end_the_session() {
    let mut server = server();
    server.limits.max_option_data = 100;
    server.limits.max_option_skip = 1000;
    let mut client = manual();
    client.structured_replies = true;
    let long = "x".repeat(150);
    let log = for_each_split(&client, &server, |pair| {
        pair.run();
        pair.client.info(long.as_str(), &[]).unwrap();
        pair.run();
        pair.client.option(OptionCode(77), &[0; 1000]).unwrap();
        pair.run();
        pair.client.list().unwrap();
        pair.run();
        pair.client.option(OptionCode(77), &[0; 1001]).unwrap();
        pair.run();
        assert!(matches!(pair.server.error(), Some(Error::LimitExceeded(_))));
        assert_eq!(pair.client.error(), Some(Error::UnexpectedEnd("the negotiation")));
    });
    assert!(log[1].contains("NBD_REP_ERR_TOO_BIG") && log[2].contains("NBD_REP_ERR_UNSUP"));
    assert_eq!(log[5], "OptionDone { code: NBD_OPT_LIST }");
}
