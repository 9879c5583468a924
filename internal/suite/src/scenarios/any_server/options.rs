//! Haggling.

use nbd_testkit::raw::{
    Info, Mode, Opt, RawClient, Rep, handshake, info_data, magic, meta_data, option_bytes,
};

use crate::Setup;

/// Simple replies, structured replies and extended headers can be agreed on, and a session in each ends properly.
pub fn every_form_is_negotiated(setup: Setup) {
    let server = setup.serve_disk();
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut client = server.client(mode);
        assert!(client.export().size >= Setup::DISK);
        client.read(0, 512);
        client.finish();
    }
    server.stop();
}

/// GO, INFO and `EXPORT_NAME`, with and without the padding, tell the same of the default export; ABORT leaves.
pub fn an_export_is_found_by_any_option(setup: Setup) {
    let server = setup.serve_disk();
    let mut client = RawClient::negotiate(server.endpoint());
    let info = client.info("", &[Info::BLOCK_SIZE]).expect("the default export is there");
    client.finish();

    let mut client = RawClient::negotiate(server.endpoint());
    assert_eq!(client.option_error(Opt(0x1234), b"???"), Rep::ERR_UNSUP);
    assert_eq!(client.option_error(Opt::GO, b"\0\0\0\x09shor"), Rep::ERR_INVALID);
    let gone = client.go("", &[Info::BLOCK_SIZE]).expect("the default export is there");
    assert_eq!(gone, info);
    client.finish();

    for flags in [handshake::FIXED_NEWSTYLE, handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES] {
        let mut client = RawClient::connect(server.endpoint());
        client.read_greeting();
        client.send_client_flags(flags);
        let named = client.export_name("");
        assert_eq!((named.size, named.flags), (info.size, info.flags));
        client.read(0, 512);
        client.finish();
    }
    server.stop();
}

/// A client need not wait for one reply before it sends the next option.
pub fn options_in_one_write_are_answered_in_order(setup: Setup) {
    let server = setup.serve_disk();
    let mut client = RawClient::negotiate(server.endpoint());
    let mut bytes = Vec::new();
    for _ in 0..100 {
        bytes.extend(option_bytes(Opt::INFO, &info_data("", &[])));
        bytes.extend(option_bytes(Opt(0x1234), b"unknown"));
    }
    bytes.extend(option_bytes(Opt::STRUCTURED_REPLY, &[]));
    let contexts = meta_data("", &["base:allocation"]);
    bytes.extend(option_bytes(Opt::LIST_META_CONTEXT, &contexts));
    bytes.extend(option_bytes(Opt::GO, &info_data("", &[])));
    client.wire().send(&bytes);
    for _ in 0..100 {
        client.read_option_replies(Opt::INFO).expect("the default export is there");
        let unknown = client.read_option_replies(Opt(0x1234)).expect_err("no such option");
        assert_eq!(unknown.code, Rep::ERR_UNSUP);
    }
    client.read_option_replies(Opt::STRUCTURED_REPLY).expect("structured replies are supported");
    client.set_mode(Mode::Structured);
    client.read_option_replies(Opt::LIST_META_CONTEXT).expect("contexts are supported");
    client.read_go_replies("").expect("the default export is there");
    client.read(0, 512);
    client.finish();

    // What is no option ends the connection, and that one alone.
    let mut client = RawClient::negotiate(server.endpoint());
    client.send_option_header(!magic::IHAVEOPT, Opt::GO, 0);
    client.wire().drain_to_eof();
    server.client(Mode::Simple).finish();
    server.stop();
}
