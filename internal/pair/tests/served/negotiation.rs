//! Client flags, options, and what is advertised.

use nbd_proto::server::{Config, Event, TlsMode};
use nbd_proto::wire::{
    InfoType, OptionCode as Opt, OptionHeader, OptionReplyType as Rep, TransmissionFlags as Flags,
};
use nbd_proto::{
    BlockSize, Error, LimitExceeded, Misuse, NoSession, NotServed, OPTIONS_PER_EXPORT, OrderlyEnd,
    PauseReason, PeerMisbehaved, Wants,
};

use crate::peer::*;

/// Every option but EXPORT_NAME and ABORT, with data that would be fine.
fn options() -> Vec<(Opt, Vec<u8>)> {
    vec![
        (Opt::LIST, vec![]),
        (Opt::INFO, go("disk", &[])),
        (Opt::GO, go("disk", &[])),
        (Opt::STRUCTURED_REPLY, vec![]),
        (Opt::EXTENDED_HEADERS, vec![]),
        (Opt::LIST_META_CONTEXT, meta("disk", &[])),
        (Opt::SET_META_CONTEXT, meta("disk", &[])),
        (Opt::PEEK_EXPORT, vec![]),
        (Opt(0x7777), b"whatever".to_vec()),
        (Opt(0x7777), vec![0; 70_000]),
    ]
}

fn refused_by_closing(mut served: Served, name: &[u8], reason: NotServed) {
    let error = served.try_option(Opt::EXPORT_NAME, name).unwrap_err();
    assert_eq!(error, NoSession::NotServed(reason).into());
    assert!(served.said().is_empty());
    assert_eq!(served.close(), Err(error));
}

/// S-HS-04, S-HS-05.
#[test]
fn client_flags_that_were_not_offered_end_the_session() {
    for bit in 2..32 {
        let error = greeted(Config::default(), 1 << bit | 3).err();
        assert_eq!(error, Some(PeerMisbehaved::UnknownClientFlags(1 << bit | 3).into()));
    }
    let config = config(|config| config.no_zeroes = false);
    assert!(greeted(config.clone(), 1).is_ok());
    assert_eq!(greeted(config, 3).err(), Some(PeerMisbehaved::UnknownClientFlags(3).into()));
}

#[test]
fn clients_of_other_protocols_are_known_by_how_they_begin() {
    for (first, known) in [
        (*b"\x16\x03\x01\x02", PeerMisbehaved::TlsAtOnce),
        (*b"\x16\x03\x03\x00", PeerMisbehaved::TlsAtOnce),
        (*b"GET ", PeerMisbehaved::Http),
        (*b"PRI ", PeerMisbehaved::Http),
        (*b"\x16\x04\x03\x00", PeerMisbehaved::UnknownClientFlags(0x1604_0300)),
        (*b"SSH-", PeerMisbehaved::UnknownClientFlags(u32::from_be_bytes(*b"SSH-"))),
    ] {
        let flags = u32::from_be_bytes(first);
        assert_eq!(greeted(Config::default(), flags).err(), Some(known.into()), "{flags:#x}");
    }
}

/// S-HS-06, S-HS-07, S-OPT-EN-03.
#[test]
fn export_name_is_padded_unless_both_sides_do_without() {
    for (offered, flags, length) in [(true, 3, 10), (true, 1, 134), (true, 0, 134), (false, 1, 134)]
    {
        let config = config(|config| config.no_zeroes = offered);
        let mut served = greeted(config, flags).unwrap();
        let told = served.flags(Opt::INFO, "disk");
        served.hear(&option(Opt::EXPORT_NAME, b"disk")).unwrap();
        let said = served.said();
        assert_eq!(said.len(), length);
        assert_eq!(said[..10], [&SIZE.to_be_bytes()[..], &told.bits().to_be_bytes()].concat());
        assert!(said[10..].iter().all(|byte| *byte == 0));
        assert!(served.connection.is_transmitting());
    }
}

/// S-OPT-EN-02, S-OPT-EH-06.
#[test]
fn a_refused_export_name_ends_the_session_without_a_byte() {
    for name in [&b"disk\0"[..], b"\xff", &[b'x'; 4097], &[b'x'; 70_000]] {
        refused_by_closing(negotiating(Config::default()), name, NotServed::BadName);
    }
    refused_by_closing(negotiating(Config::default()), b"nowhere", NotServed::Unknown);
    let mut served = negotiating(Config::default());
    served.embedder.exports[1].1.block_size = BlockSize::new(512, 4096, 1 << 20).unwrap();
    served.embedder.exports[1].1.block_size_required = true;
    refused_by_closing(served, b"disk", NotServed::BlockSizeRequired);
    let mut served = negotiating(with_tls(TlsMode::Available));
    served.embedder.exports[1].1.tls_required = true;
    refused_by_closing(served, b"disk", NotServed::TlsRequired);
    let mut served = negotiating(Config::default());
    served.connection.shut_down();
    refused_by_closing(served, b"disk", NotServed::ShuttingDown);
    // S-TLS-F-02.
    refused_by_closing(negotiating(with_tls(TlsMode::Required)), b"disk", NotServed::TlsRequired);

    let mut served = negotiating(Config::default());
    served.agree(Opt::EXTENDED_HEADERS);
    let error = served.try_option(Opt::EXPORT_NAME, b"disk").unwrap_err();
    assert_eq!(error, PeerMisbehaved::ExportNameAfterExtendedHeaders.into());
    assert!(served.said().is_empty());
}

/// S-OPT-AB-01, S-OPT-AB-02, S-TLS-F-03, S-TRM-03: whatever goes on, and whatever comes with it.
#[test]
fn abort_is_acknowledged_always() {
    for length in [0, 5, 70_000] {
        for tls in [TlsMode::Off, TlsMode::Required] {
            for shut_down in [false, true] {
                let mut served = negotiating(with_tls(tls));
                if shut_down {
                    served.connection.shut_down();
                }
                assert_eq!(served.kinds(Opt::ABORT, &vec![b'x'; length]), [Rep::ACK]);
                assert!(served.embedder.seen.is_empty() && served.connection.is_closing());
                assert_eq!(served.close(), Ok(OrderlyEnd::Aborted));
            }
        }
    }
}

/// S-TRM-03.
#[test]
fn options_are_refused_during_a_shutdown() {
    let mut served = negotiating(with_tls(TlsMode::Available));
    served.connection.shut_down();
    for (code, data) in options().into_iter().chain([(Opt::STARTTLS, vec![])]) {
        assert_eq!(served.kinds(code, &data), [Rep::ERR_SHUTDOWN], "{code}");
    }
}

/// S-TLS-F-01, S-TLS-F-04.
#[test]
fn forced_tls_comes_first() {
    let mut served = negotiating(with_tls(TlsMode::Required));
    for (code, data) in options() {
        assert_eq!(served.kinds(code, &data), [Rep::ERR_TLS_REQD], "{code}");
    }
    served.agree(Opt::STARTTLS);
    served.connection.tls_established().unwrap();
    // S-TLS-07.
    for (code, data) in options() {
        assert!(!served.kinds(code, &data).contains(&Rep::ERR_TLS_REQD), "{code}");
        if code == Opt::GO {
            return;
        }
    }
}

/// S-TLS-02, S-TLS-04, S-TLS-08, S-TLS-N-01.
#[test]
fn tls_starts_once_and_only_where_both_sides_can() {
    let mut served = negotiating(with_tls(TlsMode::Available));
    assert_eq!(served.kinds(Opt::STARTTLS, b"x"), [Rep::ERR_INVALID]);
    served.agree(Opt::STARTTLS);
    served.connection.tls_established().unwrap();
    assert_eq!(served.kinds(Opt::STARTTLS, &[]), [Rep::ERR_INVALID]);
    assert_eq!(served.embedder.seen, [Event::StartTls]);

    assert_eq!(negotiating(Config::default()).kinds(Opt::STARTTLS, &[]), [Rep::ERR_UNSUP]);
    for tls in [TlsMode::Available, TlsMode::Required] {
        let mut served = greeted(with_tls(tls), 0).unwrap();
        assert_eq!(served.kinds(Opt::STARTTLS, &[]), [Rep::ERR_POLICY]);
        assert_eq!(served.embedder.seen, []);
    }
}

/// S-TLS-02, S-TLS-N-02: and nothing is offered that needs it.
#[test]
fn nothing_is_said_of_tls_to_clients_without_fixed_newstyle() {
    let mut served = greeted(with_tls(TlsMode::Required), 0).unwrap();
    for (code, data) in options() {
        assert_eq!(served.kinds(code, &data), [Rep::ERR_POLICY], "{code}");
    }
    refused_by_closing(served, b"disk", NotServed::TlsRequired);

    let mut served = greeted(with_tls(TlsMode::Available), 2).unwrap();
    served.embedder.exports[1].1.tls_required = true;
    for code in [Opt::INFO, Opt::GO] {
        assert_eq!(served.kinds(code, &go("disk", &[])), [Rep::ERR_POLICY]);
    }
    served.enter("");
}

/// S-TLS-09.
#[test]
fn plain_text_behind_starttls_is_an_attack() {
    let mut served = negotiating(with_tls(TlsMode::Available));
    let both = [option(Opt::STARTTLS, &[]), option(Opt::STRUCTURED_REPLY, &[])].concat();
    served.hear(&both).unwrap();
    assert_eq!(served.connection.tls_established(), Err(Misuse::WrongPhase));
    assert_eq!(served.close(), Err(PeerMisbehaved::PlaintextAfterStartTls.into()));
}

/// S-TLS-S-01, S-TLS-S-02, S-TLS-S-04.
#[test]
fn an_export_for_tls_alone_reveals_nothing_before_tls() {
    let mut served = negotiating(with_tls(TlsMode::Available));
    served.embedder.exports[1].1.tls_required = true;
    served.agree(Opt::STRUCTURED_REPLY);
    for code in [Opt::INFO, Opt::GO] {
        assert_eq!(served.kinds(code, &go("disk", &[])), [Rep::ERR_TLS_REQD]);
        assert_eq!(served.kinds(code, &go("nowhere", &[])), [Rep::ERR_UNKNOWN]);
    }
    for code in [Opt::LIST_META_CONTEXT, Opt::SET_META_CONTEXT] {
        assert_eq!(served.kinds(code, &meta("disk", &[])), [Rep::ERR_UNKNOWN]);
    }
    assert_eq!(served.kinds(Opt(77), &[]), [Rep::ERR_UNSUP]);
    assert_eq!(served.kinds(Opt::LIST, &[]).last(), Some(&Rep::ACK));
}

/// S-OPT-SR-02, S-OPT-EH-01, S-OPT-EH-03, S-OPT-EH-04.
#[test]
fn extended_headers_win_and_what_was_refused_is_not_in_force() {
    let modes = |served: &mut Served| {
        served.enter("disk");
        let view = served.connection.export().unwrap();
        (view.structured, view.extended)
    };
    let mut served = negotiating(Config::default());
    for code in [Opt::STRUCTURED_REPLY, Opt::EXTENDED_HEADERS] {
        assert_eq!(served.kinds(code, b"x"), [Rep::ERR_INVALID]);
    }
    assert_eq!(modes(&mut served), (false, false));

    let mut served = negotiating(Config::default());
    served.agree(Opt::STRUCTURED_REPLY);
    served.agree(Opt::EXTENDED_HEADERS);
    assert_eq!(served.kinds(Opt::STRUCTURED_REPLY, &[]), [Rep::ERR_EXT_HEADER_REQD]);
    assert_eq!(modes(&mut served), (true, true));

    let mut served = negotiating(config(|config| config.extended_headers = false));
    assert_eq!(served.kinds(Opt::EXTENDED_HEADERS, &[]), [Rep::ERR_UNSUP]);
    assert_eq!(modes(&mut served), (false, false));
}

/// S-XF-03, S-XF-07: flags follow what was negotiated.
#[test]
fn flags_that_need_something_negotiated_are_there_with_it_alone() {
    let both = Flags::SEND_DF | Flags::BLOCK_STATUS_PAYLOAD;
    for (headers, selected, expected) in [
        (None, None, Flags::empty()),
        (Some(Opt::STRUCTURED_REPLY), None, Flags::SEND_DF),
        (Some(Opt::STRUCTURED_REPLY), Some("disk"), Flags::SEND_DF),
        (Some(Opt::EXTENDED_HEADERS), None, Flags::SEND_DF),
        (Some(Opt::EXTENDED_HEADERS), Some(""), Flags::SEND_DF),
        (Some(Opt::EXTENDED_HEADERS), Some("disk"), both),
    ] {
        let mut served = negotiating(Config::default());
        headers.into_iter().for_each(|code| served.agree(code));
        if let Some(name) = selected {
            served.contexts(Opt::SET_META_CONTEXT, name, &["base:allocation"]);
        }
        for code in [Opt::INFO, Opt::GO] {
            let flags = served.flags(code, "disk");
            assert_eq!(flags & both, expected, "{headers:?} {selected:?}");
            assert!(flags.contains(Flags::HAS_FLAGS));
        }
        assert_eq!(served.connection.export().unwrap().flags & both, expected);
    }
}

/// S-XF-02, S-XF-04, S-XF-05: what contradicts is left out.
#[test]
fn flags_do_not_contradict_each_other() {
    let told = |flags| {
        let mut served = negotiating(Config::default());
        served.embedder.exports[1].1.flags = flags;
        served.flags(Opt::GO, "disk")
    };
    assert_eq!(told(Flags::empty()), Flags::HAS_FLAGS);
    assert_eq!(told(Flags::SEND_FAST_ZERO), Flags::HAS_FLAGS);
    assert_eq!(told(Flags::from_bits_retain(0xf000)), Flags::HAS_FLAGS, "unknown to us");
    let negotiated = Flags::SEND_DF | Flags::BLOCK_STATUS_PAYLOAD;
    let writing =
        Flags::SEND_TRIM | Flags::SEND_WRITE_ZEROES | Flags::SEND_FAST_ZERO | Flags::SEND_RESIZE;
    let known = Flags::from_bits_retain(0x1fff);
    assert_eq!(told(known), known - negotiated - writing);
    let writable = known - Flags::READ_ONLY;
    assert_eq!(told(writable), writable - negotiated);
}

/// S-OPT-GO-10, S-OPT-GO-11.
#[test]
fn required_block_sizes_are_reported_before_a_client_that_does_not_ask_is_refused() {
    for code in [Opt::INFO, Opt::GO] {
        let mut served = negotiating(Config::default());
        served.embedder.exports[1].1.block_size = BlockSize::new(512, 4096, 1 << 20).unwrap();
        served.embedder.exports[1].1.block_size_required = true;
        let told = served.option(code, &go("disk", &[InfoType::NAME]));
        let sizes = [&[0, 3][..], &[0, 0, 2, 0], &[0, 0, 16, 0], &[0, 16, 0, 0]].concat();
        assert_eq!(told[0], (Rep::INFO, sizes.clone()));
        assert_eq!(told[1].0, Rep::ERR_BLOCK_SIZE_REQD);
        assert_eq!(told.len(), 2);
        assert!(!served.connection.is_transmitting());
        let told = served.option(code, &go("disk", &[InfoType::BLOCK_SIZE]));
        assert_eq!(told.len(), 3);
        assert_eq!(told[1], (Rep::INFO, sizes));
        // What every client does by itself need not be insisted on.
        let mut served = negotiating(Config::default());
        served.embedder.exports[1].1.block_size_required = true;
        assert_eq!(served.kinds(code, &go("disk", &[])), [Rep::INFO, Rep::ACK]);
    }
}

/// S-CONV-06, S-CONV-07.
#[test]
fn names_of_legal_length_are_looked_up_and_others_are_those_of_no_export() {
    let mut served = negotiating(Config::default());
    served.agree(Opt::STRUCTURED_REPLY);
    for (name, looked_up) in [
        (vec![b'x'; 4096], true),
        (vec![b'x'; 4097], false),
        (b"disk\0".to_vec(), false),
        (b"\xff".to_vec(), false),
    ] {
        let length = (name.len() as u32).to_be_bytes();
        for (code, tail) in
            [(Opt::INFO, &[0; 2][..]), (Opt::GO, &[0; 2]), (Opt::SET_META_CONTEXT, &[0; 4])]
        {
            let data = [&length[..], &name, tail].concat();
            assert_eq!(served.kinds(code, &data), [Rep::ERR_UNKNOWN]);
            assert_eq!(served.embedder.seen.pop().is_some(), looked_up, "{code}");
        }
    }
}

/// S-OPT-LS-02, S-OPT-LS-03.
#[test]
fn exports_that_cannot_be_named_are_not_listed() {
    let mut served = negotiating(Config::default());
    served.embedder.exports.push(("a\0b".into(), export()));
    served.embedder.exports[1].1.description = Some("a\0text".into());
    let told = served.option(Opt::LIST, &[]);
    let expected = [
        (Rep::SERVER, b"\0\0\0\0a disk".to_vec()),
        (Rep::SERVER, b"\0\0\0\x04disk".to_vec()),
        (Rep::ACK, vec![]),
    ];
    assert_eq!(told, expected);
    assert_eq!(served.kinds(Opt::LIST, b"?"), [Rep::ERR_INVALID]);
}

/// S-OPT-05, S-OPT-06, S-OPT-10.
#[test]
fn long_options_are_skipped_refused_or_too_much() {
    let limits = Config::default().limits;
    let mut served = negotiating(Config::default());
    for (code, reply) in [(Opt::INFO, Rep::ERR_TOO_BIG), (Opt(77), Rep::ERR_UNSUP)] {
        let data = vec![0; limits.max_option_data as usize + 1];
        assert_eq!(served.kinds(code, &data), [reply]);
    }
    for (length, fits) in [(limits.max_option_skip, true), (limits.max_option_skip + 1, false)] {
        let mut served = negotiating(Config::default());
        let code = Opt(77);
        let result = served.hear(&OptionHeader { code, length }.encode());
        let error = LimitExceeded::OptionData { code, length };
        assert_eq!(result.err(), (!fits).then_some(error.into()));
    }
}

/// S-OPT-13.
#[test]
fn as_many_options_as_the_limit_allows_are_answered() {
    let mut config = Config::default();
    config.limits.max_options = 30;
    let mut served = negotiating(config);
    for _ in 0..30 {
        assert_eq!(served.kinds(Opt(77), b"?"), [Rep::ERR_UNSUP]);
    }
    let error = served.try_option(Opt(77), b"?").unwrap_err();
    assert_eq!(error, Error::LimitExceeded(LimitExceeded::Options(30)));
}

/// S-OPT-13: a client that got a list of many exports may ask about each, in every way that there is.
#[test]
fn a_client_may_ask_about_each_listed_export() {
    let mut config = Config::default();
    config.limits.max_options = 30;
    let mut served = negotiating(config);
    served.agree(Opt::EXTENDED_HEADERS);
    let names: Vec<&'static str> =
        (0..500).map(|at| &*Box::leak(format!("disk {at}").into_boxed_str())).collect();
    served.embedder.exports = names.iter().map(|name| (name.to_string(), export())).collect();
    assert_eq!(served.kinds(Opt::LIST, &[]).len(), 501);
    for name in names {
        assert_eq!(served.kinds(Opt::INFO, &go(name, &[])).last(), Some(&Rep::ACK));
        for code in [Opt::LIST_META_CONTEXT, Opt::SET_META_CONTEXT] {
            assert_eq!(served.kinds(code, &meta(name, &[])).last(), Some(&Rep::ACK));
        }
    }
    // But no list adds to what an earlier one allows.
    let allowed = 30 + OPTIONS_PER_EXPORT * 500;
    served.kinds(Opt::LIST, &[]);
    let error = (0..allowed).find_map(|_| served.try_option(Opt(77), b"?").err());
    assert_eq!(error, Some(Error::LimitExceeded(LimitExceeded::Options(allowed))));
}

/// What was asked before is answered before a refusal that has no answer closes the connection.
#[test]
fn replies_that_are_queued_are_sent_before_an_export_name_is_refused() {
    let mut served = negotiating(Config::default());
    let both = [option(Opt(77), &[]), option(Opt::EXPORT_NAME, b"nowhere")].concat();
    served.hear(&both).unwrap();
    assert!(served.connection.is_closing() && served.closed.is_none());
    let wants = Wants::Nothing(PauseReason::Closing);
    assert_eq!(served.connection.wants(), wants, "the reply is still to be sent");
    assert!(!served.said().is_empty());
    assert_eq!(served.close(), Err(NoSession::NotServed(NotServed::Unknown).into()));
}

/// S-ROB-05: during the negotiation, too.
#[test]
fn a_client_that_reads_no_replies_is_not_listened_to() {
    let mut config = Config::default();
    config.limits.max_options = u32::MAX;
    let mut served = negotiating(config);
    let unknown = option(Opt(77), &[]);
    let mut sent = 0;
    while matches!(served.connection.wants(), Wants::Bytes { .. }) {
        served.hear(&unknown).unwrap();
        sent += 1;
        assert!(sent < 1_000_000, "it never stops");
    }
    assert!(served.leaves_alone(&unknown));
    let queued: usize = served.connection.segments().map(|segment| segment.len()).sum();
    assert!(queued < 512 << 10, "{queued}");
    // And it is listened to again once it does.
    assert_eq!(served.said().len(), queued);
    assert_eq!(served.kinds(Opt(77), &[]), [Rep::ERR_UNSUP]);
}
