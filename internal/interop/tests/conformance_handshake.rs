//! Greeting, client flags, `EXPORT_NAME` and ABORT (sections 2.1 and 2.3 of the requirements).

use nbd_interop::{MIB, assert_serves, serve_two};
use nbd_testkit::matrix;
use nbd_testkit::raw::{Info, Opt, RawClient, Request, handshake, info_data, magic, option_bytes};
use nbd_testkit::server::Setup;

matrix! {
    tcp_and_unix: [
        greeting_is_18_bytes_then_silence,
        unknown_client_flags_close_the_connection,
        handshake_may_arrive_byte_by_byte,
        handshake_may_arrive_before_the_greeting_is_read,
        export_name_of_an_unknown_export_closes_without_a_byte,
        abort_is_acknowledged_then_closed,
        abort_and_immediate_close_do_no_harm,
    ],
    unix: [
        greeting_offers_fixed_newstyle_and_no_zeroes_only,
        export_name_without_no_zeroes_is_padded,
        export_name_with_no_zeroes_is_not_padded,
        a_flag_that_is_not_echoed_changes_nothing,
        plain_newstyle_client_can_use_export_name,
        plain_newstyle_client_is_answered_or_closed,
        export_name_enters_transmission,
        export_name_reports_what_go_reports,
        export_name_selects_by_name,
        export_name_with_an_impossible_name_closes,
        abort_with_data_is_acknowledged,
        abort_is_possible_after_any_option,
    ],
}

/// Connects and agrees on the given flags.
fn greet(setup_flags: u32, server: &nbd_testkit::server::NbdServe) -> RawClient {
    let mut client = RawClient::connect(server.endpoint());
    client.read_greeting();
    client.send_client_flags(setup_flags);
    client
}

/// S-HS-01, B-CONV-01: magics and flags, then the server waits for the client's flags.
fn greeting_is_18_bytes_then_silence(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::connect(server.endpoint());
    client.read_greeting();
    client.wire().expect_silence();
    client.send_client_flags(handshake::FIXED_NEWSTYLE);
    client.wire().expect_silence();
    client.finish();
}

/// S-HS-02, S-HS-03, S-HS-11: fixed newstyle, `NO_ZEROES`, nothing else, and never oldstyle.
///
/// Both known flags are offered, so a client cannot set a known flag that was not (S-HS-05).
fn greeting_offers_fixed_newstyle_and_no_zeroes_only(setup: Setup) {
    let server = serve_two(setup);
    let greeting = RawClient::connect(server.endpoint()).read_greeting();
    assert_eq!(greeting.magic, magic::IHAVEOPT);
    assert_eq!(u32::from(greeting.flags), handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
}

/// S-HS-04: each unknown client flag drops the connection, even with an option close behind.
fn unknown_client_flags_close_the_connection(setup: Setup) {
    let server = serve_two(setup);
    for bit in 2..32 {
        let mut client = RawClient::connect(server.endpoint());
        client.read_greeting();
        let flags = handshake::FIXED_NEWSTYLE | 1 << bit;
        let mut bytes = flags.to_be_bytes().to_vec();
        bytes.extend(option_bytes(Opt::LIST, &[]));
        client.wire().send(&bytes);
        client.wire().expect_eof();
    }
    assert_serves(&server);
}

/// S-HS-12: nothing depends on how the stream is cut.
fn handshake_may_arrive_byte_by_byte(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::connect(server.endpoint());
    client.read_greeting();
    client.wire().dribble(&handshake::FIXED_NEWSTYLE.to_be_bytes());
    client.wire().dribble(&option_bytes(Opt(99), b"unknown"));
    client.read_option_replies(Opt(99)).unwrap_err();
    client.wire().dribble(&option_bytes(Opt::INFO, &info_data("other", &[Info::NAME])));
    client.read_option_replies(Opt::INFO).unwrap();
    client.wire().dribble(&option_bytes(Opt::GO, &info_data("other", &[Info::BLOCK_SIZE])));
    assert_eq!(client.read_go_replies("other").unwrap().size, 2 * MIB);
    client.send_dribbled(&Request::read(0, 100));
    client.drain().remove(0).ok();
    client.finish();
}

/// S-HS-12: client flags, options and the first request in one piece, before the greeting was read.
fn handshake_may_arrive_before_the_greeting_is_read(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::connect(server.endpoint());
    let mut bytes = handshake::FIXED_NEWSTYLE.to_be_bytes().to_vec();
    bytes.extend(option_bytes(Opt(99), &[7; 1000]));
    bytes.extend(option_bytes(Opt::LIST, &[]));
    bytes.extend(option_bytes(Opt::INFO, &info_data("nosuch", &[])));
    bytes.extend(option_bytes(Opt::GO, &info_data("", &[])));
    let write = client.stage(&Request::write(7, b"early"), &mut bytes);
    client.wire().send(&bytes);

    client.read_greeting();
    client.read_option_replies(Opt(99)).unwrap_err();
    assert_eq!(client.read_option_replies(Opt::LIST).unwrap().len(), 2);
    client.read_option_replies(Opt::INFO).unwrap_err();
    client.read_go_replies("").unwrap();
    client.reply_to(write).ok();
    assert_eq!(client.read(7, 5), b"early");
    client.finish();
}

/// S-HS-07: without agreement on `NO_ZEROES` 124 zero bytes follow; the next reply shows that no more do.
fn export_name_without_no_zeroes_is_padded(setup: Setup) {
    let server = serve_two(setup);
    let mut client = greet(handshake::FIXED_NEWSTYLE, &server);
    client.export_name("");
    client.wire().expect_silence();
    client.read(0, 10);
    client.finish();
}

/// S-HS-06: with agreement exactly 10 bytes come.
fn export_name_with_no_zeroes_is_not_padded(setup: Setup) {
    let server = serve_two(setup);
    let mut client = greet(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES, &server);
    client.export_name("");
    client.wire().expect_silence();
    client.read(0, 10);
    client.finish();
}

/// S-HS-10, S-OPT-GO-07: `NO_ZEROES` makes no difference to options and to the end of GO.
fn a_flag_that_is_not_echoed_changes_nothing(setup: Setup) {
    let server = serve_two(setup);
    let mut seen = Vec::new();
    for flags in [0, handshake::NO_ZEROES] {
        let mut client = greet(handshake::FIXED_NEWSTYLE | flags, &server);
        let list = client.list().unwrap();
        let info = client.go("", &[Info::NAME, Info::BLOCK_SIZE]).unwrap();
        client.wire().expect_silence();
        client.read(0, 10);
        client.finish();
        seen.push((list, info));
    }
    assert_eq!(seen[0], seen[1]);
}

/// S-HS-09: a client that sets no flag at all still gets its export.
fn plain_newstyle_client_can_use_export_name(setup: Setup) {
    let server = serve_two(setup);
    let mut client = greet(0, &server);
    assert_eq!(client.export_name("").size, MIB);
    client.read(0, 10);
    client.finish();
}

/// S-HS-08: other options of such a client are answered, or the connection is closed; it does not hang.
fn plain_newstyle_client_is_answered_or_closed(setup: Setup) {
    let server = serve_two(setup);
    let mut client = greet(0, &server);
    client.send_option(Opt::GO, &info_data("nosuch", &[]));
    if let Some(reply) = client.read_option_reply_or_end(Opt::GO) {
        assert!(reply.kind.is_error(), "{reply:?}");
        client.finish();
    }
}

/// S-OPT-EN-01, S-OPT-EN-04, B-BASE-02: the old way into transmission works for the default export.
fn export_name_enters_transmission(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::negotiate(server.endpoint());
    assert_eq!(client.export_name("").size, MIB);
    client.write(1000, b"old way");
    assert_eq!(client.read(1000, 7), b"old way");
    client.finish();
}

/// S-OPT-EN-03: size and flags are those of GO under the same negotiation.
fn export_name_reports_what_go_reports(setup: Setup) {
    let server = serve_two(setup);
    for structured in [false, true] {
        let [by_name, by_go] = [true, false].map(|old| {
            let mut client = RawClient::negotiate(server.endpoint());
            if structured {
                client.structured_reply().unwrap();
            }
            let info = match old {
                true => client.export_name("other"),
                false => client.go("other", &[]).unwrap(),
            };
            client.finish();
            (info.size, info.flags)
        });
        assert_eq!(by_name, by_go, "structured replies: {structured}");
    }
}

/// S-OPT-EN-01: the name decides.
fn export_name_selects_by_name(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::negotiate(server.endpoint());
    assert_eq!(client.export_name("other").size, 2 * MIB);
    client.finish();
}

/// S-OPT-EN-02, S-TRM-04: there is no error reply, so the server closes and sends nothing.
fn export_name_of_an_unknown_export_closes_without_a_byte(setup: Setup) {
    let server = serve_two(setup);
    for flags in [0, handshake::FIXED_NEWSTYLE, handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES] {
        let mut client = greet(flags, &server);
        client.send_option(Opt::EXPORT_NAME, b"nosuch");
        client.wire().expect_eof();
    }
    assert_serves(&server);
}

/// S-CONV-06, S-CONV-07: names that no export can have select none, however they begin.
fn export_name_with_an_impossible_name_closes(setup: Setup) {
    let server = serve_two(setup);
    let longest = [b'a'; 4096];
    let too_long = [b'a'; 4097];
    let names: [&[u8]; 5] = [b"other\0", b"other\0x", b"\xff\xfe", &longest, &too_long];
    for name in names {
        let mut client = RawClient::negotiate(server.endpoint());
        client.send_option(Opt::EXPORT_NAME, name);
        client.wire().expect_eof();
    }
    assert_serves(&server);
}

/// S-OPT-AB-01: ACK, then the end.
fn abort_is_acknowledged_then_closed(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::negotiate(server.endpoint());
    assert_eq!(client.option(Opt::ABORT, &[]).unwrap(), []);
    client.wire().expect_eof();
    assert_serves(&server);
}

/// S-OPT-AB-02: data of ABORT is ignored.
fn abort_with_data_is_acknowledged(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::negotiate(server.endpoint());
    assert_eq!(client.option(Opt::ABORT, b"good-bye").unwrap(), []);
    client.wire().expect_eof();
}

/// S-OPT-AB-01: also late, after options that succeeded and failed.
fn abort_is_possible_after_any_option(setup: Setup) {
    let server = serve_two(setup);
    let mut client = RawClient::negotiate(server.endpoint());
    client.structured_reply().unwrap();
    client.info("nosuch", &[]).unwrap_err();
    client.info("other", &[]).unwrap();
    assert_eq!(client.option(Opt::ABORT, &[]).unwrap(), []);
    client.wire().expect_eof();
}

/// S-OPT-AB-03: a client need not wait for the ACK.
fn abort_and_immediate_close_do_no_harm(setup: Setup) {
    let server = serve_two(setup);
    for _ in 0..20 {
        let mut client = RawClient::negotiate(server.endpoint());
        client.send_option(Opt::ABORT, &[]);
    }
    assert_serves(&server);
}
