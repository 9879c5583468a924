//! INFO and GO, and what they tell (section 2.4 and the advertised sizes of section 5).

use nbd_interop::{MIB, serve_two};
use nbd_testkit::matrix;
use nbd_testkit::raw::{Info, Mode, Opt, RawClient, Rep, flag, info_data};
use nbd_testkit::server::{NbdServe, Setup};

matrix! {
    tcp_and_unix: [
        info_stays_in_the_option_phase_and_go_enters_transmission,
        unknown_export_is_err_unknown,
    ],
    unix: [
        go_without_requests_is_enough,
        go_repeats_the_facts_of_info,
        unknown_requests_are_ignored,
        duplicate_requests_do_no_harm,
        requested_information_is_given_once,
        reported_name_selects_the_same_export,
        advertised_sizes_are_sane,
        the_empty_name_is_the_default_export,
        go_after_a_failed_go_succeeds,
        no_padding_follows_go,
        malformed_data_is_err_invalid,
        names_of_legal_length_are_looked_up,
        impossible_names_match_nothing,
        flags_follow_the_negotiation,
        the_description_is_reported,
        a_single_export_can_be_named_by_option,
    ],
}

fn negotiate(server: &NbdServe) -> RawClient {
    RawClient::negotiate(server.endpoint())
}

/// S-OPT-GO-01, S-OPT-GO-02, B-BASE-01: same replies, but only GO changes the phase.
fn info_stays_in_the_option_phase_and_go_enters_transmission(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.info("other", &[]).unwrap().size, 2 * MIB);
    assert_eq!(client.info("", &[]).unwrap().size, MIB);
    assert_eq!(client.list().unwrap().len(), 2);
    assert_eq!(client.go("other", &[]).unwrap().size, 2 * MIB);
    client.read(2 * MIB - 1, 1);
    client.finish();
}

/// S-SZ-13, S-OPT-GO-11: nothing needs to be asked for.
fn go_without_requests_is_enough(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    client.go("", &[]).unwrap();
    client.finish();
}

/// S-OPT-GO-06: directly after INFO, GO with the same parameters tells the same, in each mode.
fn go_repeats_the_facts_of_info(setup: Setup) {
    let server = serve_two(setup);
    let asked: [&[Info]; 3] =
        [&[], &[Info::BLOCK_SIZE], &[Info::NAME, Info::DESCRIPTION, Info::BLOCK_SIZE]];
    for requests in asked {
        for mode in nbd_interop::MODES {
            let mut client = negotiate(&server);
            match mode {
                Mode::Simple => {}
                Mode::Structured => client.structured_reply().unwrap(),
                Mode::Extended => client.extended_headers().unwrap(),
            }
            let info = client.info("other", requests).unwrap();
            assert_eq!(client.go("other", requests).unwrap(), info, "{mode:?} {requests:?}");
            client.finish();
        }
    }
}

/// S-OPT-GO-03.
fn unknown_requests_are_ignored(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    let plain = client.info("", &[Info::NAME]).unwrap();
    let unknown = [Info(4), Info::NAME, Info(0x7fff), Info(0xffff)];
    assert_eq!(client.info("", &unknown).unwrap(), plain);
    client.go("", &unknown).unwrap();
    client.finish();
}

/// S-OPT-GO-15: the client's fault; refused, or answered once.
fn duplicate_requests_do_no_harm(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    if let Err(error) = client.info("", &[Info::BLOCK_SIZE, Info::BLOCK_SIZE]) {
        assert_eq!(error.code, Rep::ERR_INVALID);
    }
    client.go("", &[Info::BLOCK_SIZE]).unwrap();
    client.finish();
}

/// S-OPT-GO-13, B-CONV-02 to B-CONV-04: no type twice, valid strings (the client checks both).
fn requested_information_is_given_once(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    let all = [Info::EXPORT, Info::NAME, Info::DESCRIPTION, Info::BLOCK_SIZE];
    let info = client.info("other", &all).unwrap();
    assert_eq!(info.unknown, []);
    assert_eq!(info.name.as_deref(), Some("other"));
    client.finish();
}

/// S-OPT-GO-16.
fn reported_name_selects_the_same_export(setup: Setup) {
    let server = serve_two(setup);
    for asked in ["", "other"] {
        let mut client = negotiate(&server);
        let info = client.info(asked, &[Info::NAME]).unwrap();
        let name = info.name.clone().unwrap_or(asked.to_owned());
        assert_eq!(client.go(&name, &[Info::NAME]).unwrap().size, info.size);
        client.finish();
    }
}

/// S-SZ-01 to S-SZ-07, S-OPT-GO-10, S-OPT-GO-12, S-OPT-GO-14: the client checks the values; memory needs no
/// alignment, so a minimum above 1 would be a limit without a reason.
fn advertised_sizes_are_sane(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    let info = client.go("other", &[Info::BLOCK_SIZE]).unwrap();
    if let Some(sizes) = info.block_size {
        assert_eq!(sizes.minimum, 1);
        assert!(sizes.maximum >= 32 << 20, "{sizes:?}");
    }
    client.finish();
}

/// S-OPT-EN-04.
fn the_empty_name_is_the_default_export(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    assert_eq!(client.go("", &[]).unwrap().size, MIB);
    client.finish();
}

/// S-OPT-GO-04, S-OPT-GO-05, S-TLS-N-02: an error, nothing before it, the connection goes on.
fn unknown_export_is_err_unknown(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for option in [Opt::INFO, Opt::GO] {
        for name in ["nosuch", "othe", "other1", "OTHER", " "] {
            let asked = [Info::BLOCK_SIZE, Info::NAME];
            let error = client.option(option, &info_data(name, &asked)).unwrap_err();
            assert_eq!((error.code, error.before), (Rep::ERR_UNKNOWN, vec![]), "{name:?}");
        }
    }
    client.go("other", &[]).unwrap();
    client.finish();
}

/// S-OPT-GO-18, S-OPT-11, S-TRM-02.
fn go_after_a_failed_go_succeeds(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for _ in 0..5 {
        assert_eq!(client.go("nosuch", &[]).unwrap_err().code, Rep::ERR_UNKNOWN);
    }
    client.list().unwrap();
    client.go("", &[]).unwrap();
    client.read(0, 1);
    client.finish();
}

/// S-OPT-GO-07: what follows the ACK is silence, then a reply.
fn no_padding_follows_go(setup: Setup) {
    let server = serve_two(setup);
    for flags in [1, 3] {
        let mut client = RawClient::connect(server.endpoint());
        client.read_greeting();
        client.send_client_flags(flags);
        client.go("", &[]).unwrap();
        client.wire().expect_silence();
        client.read(0, 512);
        client.finish();
    }
}

/// S-OPT-GO-08, S-OPT-GO-09, S-OPT-10: each kind of malformed data, for both options, in sync.
fn malformed_data_is_err_invalid(setup: Setup) {
    let server = serve_two(setup);
    let good = info_data("other", &[Info::BLOCK_SIZE]);
    let mut name_too_long = good.clone();
    name_too_long[..4].copy_from_slice(&8_u32.to_be_bytes());
    let mut name_huge = good.clone();
    name_huge[..4].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut name_too_short = good.clone();
    name_too_short[..4].copy_from_slice(&4_u32.to_be_bytes());
    let mut count_too_high = good.clone();
    count_too_high[9..11].copy_from_slice(&2_u16.to_be_bytes());
    let mut count_too_low = good.clone();
    count_too_low[9..11].copy_from_slice(&0_u16.to_be_bytes());
    let odd_byte = [&good[..], &[0]].concat();
    let cases: [(&str, &[u8]); 10] = [
        ("no data", &[]),
        ("5 bytes", &[0; 5]),
        ("half a name length", &good[..2]),
        ("name reaches into the count", &name_too_long),
        ("name of 4 GiB", &name_huge),
        ("name ends early", &name_too_short),
        ("more requests announced than sent", &count_too_high),
        ("fewer requests announced than sent", &count_too_low),
        ("odd trailing byte", &odd_byte),
        ("half a request", &good[..good.len() - 1]),
    ];
    let mut client = negotiate(&server);
    for option in [Opt::INFO, Opt::GO] {
        for (what, data) in cases {
            assert_eq!(client.option_error(option, data), Rep::ERR_INVALID, "{option:?}: {what}");
        }
    }
    client.go("other", &[]).unwrap();
    client.finish();
}

/// S-CONV-06, B-CONV-03: 4096 bytes are a legal name, unknown like any other.
fn names_of_legal_length_are_looked_up(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    for length in [255, 256, 257, 4095, 4096] {
        let error = client.info("n".repeat(length), &[]).unwrap_err();
        assert_eq!(error.code, Rep::ERR_UNKNOWN, "{length}");
    }
    client.go("", &[]).unwrap();
    client.finish();
}

/// S-CONV-07: over-long, not UTF-8, or with NUL: never an export, whatever the error is.
fn impossible_names_match_nothing(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    let too_long = [b'n'; 4097];
    let names: [&[u8]; 6] = [b"\0", b"other\0", b"other\0x", b"\xff\xfe", b"other\xc3", &too_long];
    for name in names {
        for option in [Opt::INFO, Opt::GO] {
            let code = client.option_error(option, &info_data(name, &[]));
            let proper = [Rep::ERR_UNKNOWN, Rep::ERR_INVALID, Rep::ERR_TOO_BIG];
            assert!(proper.contains(&code), "{code:?} for {:?}", name.get(..8));
        }
    }
    client.go("other", &[]).unwrap();
    client.finish();
}

/// S-XF-03, S-XF-07, S-OPT-SR-04: what needs reply payloads is offered once they are agreed, not before.
fn flags_follow_the_negotiation(setup: Setup) {
    let server = serve_two(setup);
    let mut client = negotiate(&server);
    let mut df = || client.info("", &[]).unwrap().flags & flag::SEND_DF != 0;
    assert!(!df(), "before structured replies");
    client.structured_reply().unwrap();
    let mut df = || client.info("", &[]).unwrap().flags & flag::SEND_DF != 0;
    assert!(df(), "with structured replies");
    client.extended_headers().unwrap();
    let flags = client.info("", &[]).unwrap().flags;
    assert_ne!(flags & flag::SEND_DF, 0, "with extended headers");
    client.finish();
}

/// S-OPT-GO-12, S-OPT-LS-02: the description reaches INFO and LIST.
fn the_description_is_reported(setup: Setup) {
    let server = setup.serve().args(["--description", "a few words", "memory:1M"]).start();
    let mut client = negotiate(&server);
    let info = client.info("", &[Info::DESCRIPTION]).unwrap();
    assert_eq!(info.description.as_deref(), Some("a few words"));
    assert_eq!(client.list().unwrap()[0].1, "a few words");
    client.finish();
}

/// S-OPT-LS-05: `--export-name` gives the unnamed export a name.
fn a_single_export_can_be_named_by_option(setup: Setup) {
    let server = setup.serve().args(["--export-name", "disk", "memory:1M"]).start();
    let mut client = negotiate(&server);
    assert_eq!(client.list().unwrap()[0].0, "disk");
    assert_eq!(client.go("disk", &[]).unwrap().size, MIB);
    client.finish();
}
