//! Option framing, LIST, STARTTLS without TLS, `STRUCTURED_REPLY` and `EXTENDED_HEADERS` as options
//! (sections 2.2, 2.3, 2.5, 2.6 and 3).

use nbd_interop::{MIB, assert_serves, serve_two};
use nbd_testkit::matrix;
use nbd_testkit::raw::{Cmd, Errno, Request};
use nbd_testkit::raw::{
    Info, Mode, Opt, RawClient, Rep, cmd_flag, info_data, magic, meta_data, option_bytes,
};
use nbd_testkit::server::{NbdServe, Setup};

matrix! {
    tcp_and_unix: [
        unknown_options_are_unsupported,
        options_may_be_coalesced,
        long_options_are_skipped_and_refused,
        options_beyond_16_mib_close_the_connection,
        a_wrong_option_magic_closes_the_connection,
    ],
    unix: [
        thirty_unknown_options_are_tolerated,
        every_known_option_survives_a_long_refusal,
        list_names_every_export,
        list_with_data_is_invalid,
        every_listed_export_can_be_used,
        starttls_without_tls_is_refused,
        structured_reply_with_data_is_invalid_and_void,
        repeated_structured_reply_is_acknowledged_or_invalid,
        extended_headers_with_data_are_invalid_and_void,
        repeated_extended_headers_are_acknowledged_or_invalid,
        extended_headers_need_no_structured_replies,
        extended_headers_win_over_structured_replies,
        structured_reply_after_extended_headers_is_refused,
        go_with_extended_headers_is_supported,
        go_and_contexts_without_extended_headers_are_not_refused,
        export_name_after_extended_headers_closes,
        refusals_keep_the_connection,
    ],
}

/// Options that this server knows and that can be refused in sync.
const REFUSABLE: [Opt; 7] = [
    Opt::LIST,
    Opt::INFO,
    Opt::GO,
    Opt::STRUCTURED_REPLY,
    Opt::LIST_META_CONTEXT,
    Opt::SET_META_CONTEXT,
    Opt::EXTENDED_HEADERS,
];

const UNKNOWN: [Opt; 5] = [Opt(0), Opt::PEEK_EXPORT, Opt(12), Opt(0x7fff_ffff), Opt(u32::MAX)];

fn negotiate(server: &NbdServe) -> RawClient {
    RawClient::negotiate(server.endpoint())
}

/// S-OPT-02, S-OPT-01: data is skipped, the next option is parsed.
fn unknown_options_are_unsupported(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for option in UNKNOWN {
        for length in [0, 1, 4, 1000] {
            let code = client.option_error(option, &vec![0xa5; length]);
            assert_eq!(code, Rep::ERR_UNSUP, "{option:?} with {length} bytes");
        }
        client.list().unwrap();
    }
    client.go("", &[]).unwrap();
    client.finish();
}

/// S-OPT-13.
fn thirty_unknown_options_are_tolerated(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for _ in 0..30 {
        assert_eq!(client.option_error(Opt(77), b"some data"), Rep::ERR_UNSUP);
    }
    client.go("", &[]).unwrap();
    client.finish();
}

/// S-HS-12: a client that does not wait for replies gets them all the same, in order.
fn options_may_be_coalesced(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    let mut bytes = Vec::new();
    for _ in 0..20 {
        bytes.extend(option_bytes(Opt(77), &[1; 300]));
        bytes.extend(option_bytes(Opt::LIST, &[]));
        bytes.extend(option_bytes(Opt::INFO, &info_data("other", &[Info::NAME])));
    }
    client.wire().send(&bytes);
    for _ in 0..20 {
        assert_eq!(client.read_option_replies(Opt(77)).unwrap_err().code, Rep::ERR_UNSUP);
        assert_eq!(client.read_option_replies(Opt::LIST).unwrap().len(), 2);
        client.read_option_replies(Opt::INFO).unwrap();
    }
    client.finish();
}

/// S-OPT-06, S-OPT-10: up to 64 KiB and beyond the data is skipped; what is known is `TOO_BIG` beyond.
fn long_options_are_skipped_and_refused(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for length in [65_536, 65_537, 1 << 20, 16 << 20] {
        let data = vec![0xa5; length];
        assert_eq!(client.option_error(Opt(77), &data), Rep::ERR_UNSUP, "unknown, {length}");
        client.list().unwrap();
        if length > 65_536 {
            assert_eq!(client.option_error(Opt::INFO, &data), Rep::ERR_TOO_BIG, "INFO, {length}");
            client.list().unwrap();
        }
    }
    client.go("", &[]).unwrap();
    client.finish();
}

/// S-OPT-06, S-OPT-11: whichever known option it is, too long is too big and no reason to close.
fn every_known_option_survives_a_long_refusal(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for option in REFUSABLE {
        let code = client.option_error(option, &[0; 65_537]);
        assert_eq!(code, Rep::ERR_TOO_BIG, "{option:?}");
    }
    client.go("", &[]).unwrap();
    client.finish();
}

/// S-OPT-05, S-ROB-04: such a length is an attack; the server need not see the data to say so.
fn options_beyond_16_mib_close_the_connection(setup: Setup) {
    let server = serve_two(setup);
    for option in [Opt(77), Opt::LIST, Opt::GO, Opt::EXPORT_NAME] {
        for length in [(16 << 20) + 1, u32::MAX] {
            let mut client = negotiate(&server);
            client.send_option_header(magic::IHAVEOPT, option, length);
            client.wire().expect_eof();
        }
    }
    assert_serves(&server);
}

/// S-OPT-03, S-OPT-04: not executed, and nothing to resynchronise on.
fn a_wrong_option_magic_closes_the_connection(setup: Setup) {
    let server = serve_two(setup);
    for wrong in [0, magic::IHAVEOPT + 1, magic::INIT, magic::OPTION_REPLY, u64::MAX] {
        for option in [Opt::LIST, Opt::ABORT, Opt(77)] {
            let mut client = negotiate(&server);
            client.send_option_header(wrong, option, 0);
            client.wire().expect_eof();
        }
    }
    assert_serves(&server);
}

/// S-OPT-LS-01, S-OPT-LS-02, B-BASE-01.
fn list_names_every_export(setup: Setup) {
    let server = setup.serve().args(["a=memory:1k", "b c=memory:2k", "memory:4k"]).start();
    let mut client = negotiate(&server);
    let mut names: Vec<_> = client.list().unwrap().into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(names, ["", "a", "b c"]);
    client.finish();
}

/// S-OPT-LS-03.
fn list_with_data_is_invalid(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for data in [&b"x"[..], &[0; 4], &[0; 1000]] {
        assert_eq!(client.option_error(Opt::LIST, data), Rep::ERR_INVALID);
    }
    client.list().unwrap();
    client.finish();
}

/// S-OPT-LS-05.
fn every_listed_export_can_be_used(setup: Setup) {
    let server = setup.serve().args(["a=memory:1k", "b c=memory:2k", "memory:4k"]).start();
    let mut client = negotiate(&server);
    let sizes = client.list().unwrap().into_iter().map(|(name, _)| {
        let size = client.info(&name, &[]).unwrap().size;
        let mut user = negotiate(&server);
        assert_eq!(user.go(&name, &[]).unwrap().size, size);
        user.read(size - 1, 1);
        user.finish();
        size
    });
    assert_eq!(sizes.sum::<u64>(), 7 << 10);
}

/// S-TLS-N-01, S-TLS-N-02, S-TLS-02: no TLS here; the connection goes on in plain text. Least of all for a client that
/// did not agree on fixed newstyle, which is refused or cut off.
fn starttls_without_tls_is_refused(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for data in [&b""[..], &[0; 4]] {
        let code = client.option_error(Opt::STARTTLS, data);
        let proper = [Rep::ERR_UNSUP, Rep::ERR_POLICY];
        assert!(
            proper.contains(&code) || (code == Rep::ERR_INVALID && !data.is_empty()),
            "{code:?}"
        );
    }
    client.go("", &[]).unwrap();
    client.finish();

    let mut plain = RawClient::connect(server.endpoint());
    plain.read_greeting();
    plain.send_client_flags(0);
    plain.send_option(Opt::STARTTLS, &[]);
    if let Some(reply) = plain.read_option_reply_or_end(Opt::STARTTLS) {
        assert!(reply.kind.is_error(), "{reply:?}");
    }
}

/// S-OPT-SR-02, S-OPT-SR-03: refused, so replies stay simple (the client insists on it).
fn structured_reply_with_data_is_invalid_and_void(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.option_error(Opt::STRUCTURED_REPLY, &[0; 4]), Rep::ERR_INVALID);
    client.go("", &[]).unwrap();
    assert_eq!(client.mode(), Mode::Simple);
    client.read(0, 512);
    client.call(&Request::read(MIB, 1)).expect_error(Errno::EINVAL);
    client.finish();
}

/// S-OPT-09, S-OPT-SR-01: structured replies are in force whatever the second answer is.
fn repeated_structured_reply_is_acknowledged_or_invalid(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.structured_reply().unwrap();
    if let Err(error) = client.structured_reply() {
        assert_eq!(error.code, Rep::ERR_INVALID);
    }
    client.go("", &[]).unwrap();
    client.read(0, 512);
    client.finish();
}

/// S-OPT-EH-01: refused, so requests stay compact.
fn extended_headers_with_data_are_invalid_and_void(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.option_error(Opt::EXTENDED_HEADERS, &[0; 4]), Rep::ERR_INVALID);
    client.go("", &[]).unwrap();
    assert_eq!(client.mode(), Mode::Simple);
    client.read(0, 512);
    client.finish();
}

/// S-OPT-09.
fn repeated_extended_headers_are_acknowledged_or_invalid(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.extended_headers().unwrap();
    if let Err(error) = client.extended_headers() {
        assert_eq!(error.code, Rep::ERR_INVALID);
    }
    client.go("", &[]).unwrap();
    client.read(0, 512);
    client.finish();
}

/// S-OPT-EH-02: including what depends on reply payloads, such as contexts and DF.
fn extended_headers_need_no_structured_replies(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.extended_headers().unwrap();
    assert_eq!(client.set_meta_context("", &["base:allocation"]).unwrap().len(), 1);
    client.go("", &[]).unwrap();
    client.call(&Request::read(0, 512).flags(cmd_flag::DF)).ok();
    client.call(&Request::block_status(0, 512)).ok();
    client.finish();
}

/// S-OPT-EH-03: SR first, then EH: every reply is extended.
fn extended_headers_win_over_structured_replies(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.structured_reply().unwrap();
    client.extended_headers().unwrap();
    client.go("", &[]).unwrap();
    client.read(0, 512);
    client.call(&Request::flush()).ok();
    client.finish();
}

/// S-OPT-EH-04: refused, and extended headers stay in force.
fn structured_reply_after_extended_headers_is_refused(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.extended_headers().unwrap();
    let refusal = client.structured_reply().unwrap_err();
    assert_eq!(refusal.code, Rep::ERR_EXT_HEADER_REQD);
    client.go("", &[]).unwrap();
    client.read(0, 512);
    client.finish();
}

/// S-OPT-EH-05: GO works, and its failures are not `UNSUP`.
fn go_with_extended_headers_is_supported(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.extended_headers().unwrap();
    assert_eq!(client.go("nosuch", &[]).unwrap_err().code, Rep::ERR_UNKNOWN);
    client.go("", &[]).unwrap();
    client.finish();
}

/// S-OPT-EH-07, S-OPT-EH-08: extended headers are never a condition here.
fn go_and_contexts_without_extended_headers_are_not_refused(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.structured_reply().unwrap();
    client.set_meta_context("", &["base:allocation"]).unwrap();
    client.go("", &[]).unwrap();
    client.finish();
}

/// S-OPT-EH-06: the reply would have no form that fits.
fn export_name_after_extended_headers_closes(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.extended_headers().unwrap();
    client.send_option(Opt::EXPORT_NAME, b"other");
    client.wire().expect_eof();
    assert_serves(&server);
}

/// S-OPT-07, S-OPT-08, S-OPT-11, B-TRM-01, S-TRM-02: one connection, one refusal of each kind, and it still works.
fn refusals_keep_the_connection(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.option_error(Opt(77), b"x");
    client.option_error(Opt::LIST, b"x");
    client.option_error(Opt::STRUCTURED_REPLY, b"x");
    client.option_error(Opt::EXTENDED_HEADERS, b"x");
    client.option_error(Opt::STARTTLS, b"");
    client.option_error(Opt::INFO, b"x");
    client.option_error(Opt::GO, &info_data("nosuch", &[]));
    client.option_error(Opt::LIST_META_CONTEXT, b"x");
    client.option_error(Opt::SET_META_CONTEXT, &meta_data("", &["base:allocation"]));
    client.option_error(Opt::PEEK_EXPORT, &[0; 65_536]);
    assert_eq!(client.go("other", &[]).unwrap().size, 2 * MIB);
    client.call(&Request::new(Cmd::FLUSH, 0, 0)).ok();
    client.finish();
}
