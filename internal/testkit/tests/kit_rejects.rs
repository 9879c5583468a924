//! The kit against a server that breaks the rules: each broken rule must be noticed.
//!
//! A strict client that lets something pass makes every test that relies on it worthless, so what it claims
//! to check is shown to fail here, by the rule's id.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nbd_testkit::raw::{
    ChunkType, Cmd, Mode, Opt, RawClient, Rep, Request, Wire, cmd_flag, flag, magic,
};

const COOKIE: u64 = 0x1122_3344_5566_7788;
const SIZE: u64 = 1 << 20;
const DONE: u16 = 1;

fn be(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn option_reply(option: Opt, kind: Rep, data: &[u8]) -> Vec<u8> {
    be(&[
        &magic::OPTION_REPLY.to_be_bytes(),
        &option.0.to_be_bytes(),
        &kind.0.to_be_bytes(),
        &(data.len() as u32).to_be_bytes(),
        data,
    ])
}

fn info_export(flags: u16) -> Vec<u8> {
    be(&[&[0, 0], &SIZE.to_be_bytes(), &flags.to_be_bytes()])
}

fn info_block_size(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    be(&[&[0, 3], &minimum.to_be_bytes(), &preferred.to_be_bytes(), &maximum.to_be_bytes()])
}

/// A client past the greeting, and the server's end.
fn pair() -> (RawClient, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&magic::INIT.to_be_bytes()).unwrap();
    theirs.write_all(&magic::IHAVEOPT.to_be_bytes()).unwrap();
    theirs.write_all(&[0, 3]).unwrap();
    let mut client = RawClient::over(Wire::from_unix(ours));
    client.read_greeting();
    client.send_client_flags(3);
    (client, theirs)
}

/// A client in transmission, with context 7 selected unless replies are simple.
fn transmission(mode: Mode) -> (RawClient, UnixStream) {
    let (mut client, mut theirs) = pair();
    let option = match mode {
        Mode::Simple => None,
        Mode::Structured => Some(Opt::STRUCTURED_REPLY),
        Mode::Extended => Some(Opt::EXTENDED_HEADERS),
    };
    if let Some(option) = option {
        theirs.write_all(&option_reply(option, Rep::ACK, &[])).unwrap();
        client.option(option, &[]).unwrap();
        client.set_mode(mode);
        let context = be(&[&7_u32.to_be_bytes(), b"base:allocation"]);
        let set = Opt::SET_META_CONTEXT;
        theirs.write_all(&option_reply(set, Rep::META_CONTEXT, &context)).unwrap();
        theirs.write_all(&option_reply(set, Rep::ACK, &[])).unwrap();
        client.set_meta_context("", &["base:allocation"]).unwrap();
    }
    let sizes = info_block_size(1, 4096, 1 << 25);
    for info in [info_export(flag::HAS_FLAGS), sizes] {
        theirs.write_all(&option_reply(Opt::GO, Rep::INFO, &info)).unwrap();
    }
    theirs.write_all(&option_reply(Opt::GO, Rep::ACK, &[])).unwrap();
    client.go("", &[]).unwrap();
    (client, theirs)
}

/// Runs a client that must panic, and checks that the message names the rule.
fn panics_with(rule: &str, act: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(act)).expect_err(rule);
    let message = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default();
    assert!(message.contains(rule), "{rule} was expected in: {message}");
}

/// The answer to a request must be refused by the rule.
fn rejects(mode: Mode, request: Request, answer: &[u8], rule: &str) {
    let (mut client, mut theirs) = transmission(mode);
    theirs.write_all(answer).unwrap();
    panics_with(rule, || {
        client.call(&request.cookie(COOKIE));
    });
}

/// The answer must be taken, with this remark (or none).
fn remarks(mode: Mode, request: Request, answer: &[u8], remark: Option<&str>) {
    let (mut client, mut theirs) = transmission(mode);
    theirs.write_all(answer).unwrap();
    client.call(&request.cookie(COOKIE));
    match remark {
        None => assert_eq!(client.remarks(), [""; 0]),
        Some(rule) => assert!(client.remarks()[0].starts_with(rule), "{:?}", client.remarks()),
    }
}

fn simple(error: u32, cookie: u64, data: &[u8]) -> Vec<u8> {
    let magic = magic::SIMPLE_REPLY.to_be_bytes();
    be(&[&magic, &error.to_be_bytes(), &cookie.to_be_bytes(), data])
}

fn structured(flags: u16, kind: ChunkType, payload: &[u8]) -> Vec<u8> {
    be(&[
        &magic::STRUCTURED_REPLY.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.0.to_be_bytes(),
        &COOKIE.to_be_bytes(),
        &(payload.len() as u32).to_be_bytes(),
        payload,
    ])
}

fn extended(flags: u16, kind: ChunkType, offset: u64, payload: &[u8]) -> Vec<u8> {
    be(&[
        &magic::EXTENDED_REPLY.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.0.to_be_bytes(),
        &COOKIE.to_be_bytes(),
        &offset.to_be_bytes(),
        &(payload.len() as u64).to_be_bytes(),
        payload,
    ])
}

fn data(offset: u64, len: usize) -> Vec<u8> {
    be(&[&offset.to_be_bytes(), &vec![5; len]])
}

fn hole(offset: u64, len: u32) -> Vec<u8> {
    be(&[&offset.to_be_bytes(), &len.to_be_bytes()])
}

fn error(error: u32, len: u16, text: &[u8]) -> Vec<u8> {
    be(&[&error.to_be_bytes(), &len.to_be_bytes(), text])
}

fn error_at(code: u32, offset: u64) -> Vec<u8> {
    be(&[&error(code, 0, b""), &offset.to_be_bytes()])
}

fn extents(id: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    for (length, flags) in extents {
        payload.extend_from_slice(&length.to_be_bytes());
        payload.extend_from_slice(&flags.to_be_bytes());
    }
    payload
}

fn wide_extents(id: u32, count: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let mut payload = be(&[&id.to_be_bytes(), &count.to_be_bytes()]);
    for (length, flags) in extents {
        payload.extend_from_slice(&length.to_be_bytes());
        payload.extend_from_slice(&flags.to_be_bytes());
    }
    payload
}

#[test]
fn faults_of_option_replies_are_noticed() {
    let cases: [(&str, Vec<u8>); 8] = [
        ("S-OPT-01", vec![0; 20]),
        ("S-OPT-01", option_reply(Opt::GO, Rep::ACK, &[])),
        ("S-OPT-01", option_reply(Opt::LIST, Rep(9), &[])),
        ("S-OPT-07", option_reply(Opt::LIST, Rep::ACK, b"x")),
        ("S-OPT-08", option_reply(Opt::LIST, Rep::ERR_POLICY, b"\xff")),
        ("B-CONV-02", option_reply(Opt::LIST, Rep::ERR_POLICY, b"a\0")),
        ("B-CONV-03", option_reply(Opt::LIST, Rep::ERR_POLICY, &[b'a'; 4097])),
        ("S-OPT-LS-02", {
            let mut replies = option_reply(Opt::LIST, Rep::SERVER, &[0, 0, 0, 2, b'a']);
            replies.extend(option_reply(Opt::LIST, Rep::ACK, &[]));
            replies
        }),
    ];
    for (rule, answer) in cases {
        let (mut client, mut theirs) = pair();
        theirs.write_all(&answer).unwrap();
        panics_with(rule, || drop(client.list()));
    }
}

#[test]
fn faults_of_information_are_noticed() {
    let good = info_export(flag::HAS_FLAGS);
    let zero_fast = info_export(flag::HAS_FLAGS | flag::SEND_FAST_ZERO);
    let payload_form = info_export(flag::HAS_FLAGS | flag::BLOCK_STATUS_PAYLOAD);
    let cases: [(&str, &[&[u8]]); 11] = [
        ("S-OPT-GO-02", &[]),
        ("S-OPT-GO-02", &[&good[..11]]),
        ("S-XF-01", &[&info_export(0)]),
        ("S-XF-02", &[&info_export(flag::HAS_FLAGS | 1 << 13)]),
        ("S-XF-03", &[&info_export(flag::HAS_FLAGS | flag::SEND_DF)]),
        ("S-XF-04", &[&zero_fast]),
        ("S-XF-07", &[&payload_form]),
        ("S-OPT-GO-12", &[&good, &info_block_size(1, 512, 512)[..13]]),
        ("S-SZ-01", &[&good, &info_block_size(3, 512, 512)]),
        ("S-SZ-02", &[&good, &info_block_size(1, 256, 512)]),
        ("S-SZ-03", &[&good, &info_block_size(1, 4096, 512)]),
    ];
    for (rule, infos) in cases {
        let (mut client, mut theirs) = pair();
        for info in infos {
            theirs.write_all(&option_reply(Opt::GO, Rep::INFO, info)).unwrap();
        }
        theirs.write_all(&option_reply(Opt::GO, Rep::ACK, &[])).unwrap();
        panics_with(rule, || drop(client.go("", &[])));
    }
}

#[test]
fn faults_of_contexts_are_noticed() {
    let context = |id: u32, name: &str| be(&[&id.to_be_bytes(), name.as_bytes()]);
    let cases: [(&str, &[Vec<u8>]); 5] = [
        ("S-META-01", &[context(1, "nocolon")]),
        ("S-META-01", &[context(1, ":leaf")]),
        ("S-META-02", &[context(1, "private:leaf")]),
        ("S-OPT-SM-04", &[context(1, "base:allocation"), context(1, "x-a:b")]),
        ("S-OPT-SM-09", &[context(1, "x-a:b"), context(2, "x-a:b")]),
    ];
    for (rule, contexts) in cases {
        let (mut client, mut theirs) = pair();
        let set = Opt::SET_META_CONTEXT;
        for context in contexts {
            theirs.write_all(&option_reply(set, Rep::META_CONTEXT, context)).unwrap();
        }
        theirs.write_all(&option_reply(set, Rep::ACK, &[])).unwrap();
        panics_with(rule, || drop(client.set_meta_context("", &["base:allocation"])));
    }
}

#[test]
fn faults_of_simple_replies_are_noticed() {
    let read = || Request::read(0, 4);
    rejects(Mode::Simple, read(), &simple(0, COOKIE + 1, b"data"), "S-REP-01");
    rejects(Mode::Simple, read(), &simple(61, COOKIE, b""), "S-ERR-01");
    rejects(Mode::Simple, read(), &structured(DONE, ChunkType::NONE, b""), "S-OPT-SR-03");
    rejects(Mode::Structured, read(), &simple(0, COOKIE, b"data"), "S-REP-SIMPLE-02");
    rejects(Mode::Structured, read(), &simple(22, COOKIE, b""), "S-REP-SIMPLE-02");
    rejects(Mode::Extended, Request::flush(), &simple(0, COOKIE, b""), "S-EH-01");
    let status = Request::block_status(0, 4096);
    rejects(Mode::Structured, status, &simple(0, COOKIE, b""), "S-CMD-BS-10");
}

#[test]
fn faults_of_reads_are_noticed() {
    use ChunkType as T;
    let mode = Mode::Structured;
    let read = || Request::read(1024, 2048);
    let last = |kind, payload: &[u8]| structured(DONE, kind, payload);
    let first = |kind, payload: &[u8]| structured(0, kind, payload);
    let half = || first(T::OFFSET_DATA, &data(1024, 1024));
    let two = |second: Vec<u8>| be(&[&half(), &second]);

    rejects(mode, read(), &structured(3, T::NONE, b""), "S-REP-STRUCT-02");
    rejects(mode, read(), &last(T::NONE, b"x"), "S-REP-STRUCT-03");
    rejects(mode, read(), &first(T::NONE, b""), "S-REP-STRUCT-03");
    rejects(mode, read(), &last(T::OFFSET_DATA, &data(1024, 0)), "S-REP-STRUCT-04");
    rejects(mode, read(), &last(T::OFFSET_HOLE, &hole(1024, 0)), "S-REP-STRUCT-04");
    rejects(mode, read(), &last(T::OFFSET_HOLE, &data(1024, 5)), "S-REP-STRUCT-04");
    rejects(mode, read(), &last(T::OFFSET_DATA, &data(1023, 2048)), "S-REP-STRUCT-05");
    rejects(mode, read(), &last(T::OFFSET_DATA, &data(1024, 2049)), "S-REP-STRUCT-05");
    rejects(mode, read(), &two(last(T::OFFSET_HOLE, &hole(2047, 1025))), "S-REP-STRUCT-05");
    rejects(mode, read(), &last(T::NONE, b""), "S-REP-STRUCT-06");
    rejects(mode, read(), &two(last(T::OFFSET_HOLE, &hole(2049, 1023))), "S-REP-STRUCT-06");
    let unfragmented = read().flags(cmd_flag::DF);
    let rest = last(T::OFFSET_HOLE, &hole(2048, 1024));
    rejects(mode, unfragmented.clone(), &two(rest), "S-REP-STRUCT-07");
    let overflow = two(last(T::ERROR, &error(75, 0, b"")));
    rejects(mode, unfragmented, &overflow, "S-REP-STRUCT-07");
    rejects(mode, read(), &last(ChunkType(3), b""), "S-REP-STRUCT-11");
    rejects(mode, read(), &last(T::BLOCK_STATUS, &extents(7, &[(1, 1)])), "S-REP-STRUCT-11");
    rejects(mode, Request::flush(), &last(T::OFFSET_DATA, &data(0, 1)), "S-REP-STRUCT-11");
    let long = (1 << 25) + 1;
    let too_long = last(T::OFFSET_DATA, &data(0, long));
    let (mut client, mut theirs) = transmission(mode);
    let writer = std::thread::spawn(move || drop(theirs.write_all(&too_long)));
    panics_with("S-REP-STRUCT-13", || {
        drop(client.call(&Request::read(0, long as u64).cookie(COOKIE)))
    });
    drop(client);
    writer.join().unwrap();
}

#[test]
fn faults_of_error_chunks_are_noticed() {
    use ChunkType as T;
    let mode = Mode::Structured;
    let read = || Request::read(1024, 2048);
    let last = |kind, payload: &[u8]| structured(DONE, kind, payload);

    rejects(mode, read(), &last(T::ERROR, &error(0, 0, b"")), "S-REP-STRUCT-08");
    rejects(mode, read(), &last(T::ERROR, &error(5, 2, b"a")), "S-REP-STRUCT-08");
    rejects(mode, read(), &last(T::ERROR, &error(5, 1, b"\xff")), "S-REP-STRUCT-08");
    rejects(mode, read(), &last(T::ERROR, &[0; 5]), "S-REP-STRUCT-08");
    rejects(mode, read(), &last(T::ERROR_OFFSET, &error(5, 0, b"1234567")), "S-REP-STRUCT-08");
    rejects(mode, read(), &last(T::ERROR_OFFSET, &error_at(5, 1023)), "S-REP-STRUCT-09");
    rejects(mode, read(), &last(T::ERROR_OFFSET, &error_at(5, 3072)), "S-REP-STRUCT-09");
    let mut late = structured(0, T::ERROR_OFFSET, &error_at(5, 2000));
    late.extend(last(T::OFFSET_DATA, &data(1024, 1000)));
    rejects(mode, read(), &late, "S-REP-STRUCT-05, -09");
    rejects(mode, read(), &last(T::ERROR, &error(4, 0, b"")), "S-ERR-01");
    let unknown = Request::new(Cmd(99), 0, 4096);
    rejects(mode, unknown, &last(T::ERROR_OFFSET, &error_at(22, 0)), "S-REP-STRUCT-11");

    let mut twice = structured(0, T::ERROR_OFFSET, &error_at(5, 2000));
    twice.extend(last(T::ERROR, &error(5, 0, b"")));
    remarks(mode, read(), &last(T::ERROR, &error(5, 2, b"no")), None);
    remarks(mode, read(), &last(T::ERROR, &error(75, 0, b"")), Some("S-ERR-03"));
    remarks(mode, read(), &last(T::ERROR, &error(95, 0, b"")), Some("S-ERR-04"));
    remarks(mode, read(), &last(T::ERROR, &error(12, 0, b"")), Some("S-ERR-05"));
    remarks(mode, read(), &last(T::ERROR, &error(5, 0, b"x")), Some("S-REP-STRUCT-08"));
    remarks(mode, Request::flush(), &simple(22, COOKIE, b""), Some("S-REP-STRUCT-12"));
}

#[test]
fn faults_of_extents_are_noticed() {
    let mode = Mode::Structured;
    let ask = || Request::block_status(4096, 8192);
    let status =
        |id, list: &[(u32, u32)]| structured(DONE, ChunkType::BLOCK_STATUS, &extents(id, list));

    rejects(mode, ask(), &structured(DONE, ChunkType::NONE, b""), "S-CMD-BS-08");
    rejects(mode, ask(), &status(8, &[(512, 0)]), "S-CMD-BS-11");
    rejects(mode, ask(), &status(7, &[]), "S-CMD-BS-02");
    rejects(mode, ask(), &status(7, &[(512, 0), (0, 1)]), "S-CMD-BS-02");
    let mut twice = structured(0, ChunkType::BLOCK_STATUS, &extents(7, &[(512, 0)]));
    twice.extend(status(7, &[(512, 0)]));
    rejects(mode, ask(), &twice, "S-CMD-BS-01");
    let one = || ask().flags(cmd_flag::REQ_ONE);
    rejects(mode, one(), &status(7, &[(512, 0), (512, 1)]), "S-CMD-BS-03");
    rejects(mode, one(), &status(7, &[(8193, 0)]), "S-CMD-BS-03");
    rejects(mode, ask(), &status(7, &[(8192, 0), (512, 1)]), "S-CMD-BS-04");
    rejects(mode, ask(), &status(7, &[(SIZE as u32, 0)]), "S-CMD-BS-05");

    remarks(mode, ask(), &status(7, &[(512, 0), (512, 1)]), None);
    remarks(mode, ask(), &status(7, &[(512, 0), (512, 0)]), Some("S-CMD-BS-06"));
    remarks(mode, ask(), &status(7, &[(100, 0), (512, 1)]), Some("S-CMD-BS-06"));
    remarks(mode, ask(), &status(7, &[(512, 4)]), Some("S-META-04"));
}

#[test]
fn faults_of_extended_chunks_are_noticed() {
    use ChunkType as T;
    let mode = Mode::Extended;
    let read = || Request::read(1024, 512);
    let ask = || Request::block_status(4096, 8192);
    let status = |count, list: &[(u64, u64)]| {
        extended(DONE, T::BLOCK_STATUS_EXT, 4096, &wide_extents(7, count, list))
    };

    let content = data(1024, 512);
    rejects(mode, read(), &extended(DONE, T::OFFSET_DATA, 0, &content), "S-EH-02");
    rejects(mode, read(), &structured(DONE, T::OFFSET_DATA, &content), "S-EH-01");
    let short = extended(DONE, T::BLOCK_STATUS, 4096, &extents(7, &[(512, 0)]));
    rejects(mode, ask(), &short, "S-EH-07");
    let wide = structured(DONE, T::BLOCK_STATUS_EXT, &wide_extents(7, 1, &[(512, 0)]));
    rejects(Mode::Structured, ask(), &wide, "S-EH-07");
    rejects(mode, ask(), &status(2, &[(512, 0)]), "S-EH-08");
    rejects(mode, ask(), &status(0, &[]), "S-EH-08");
    rejects(mode, ask(), &status(1, &[(512, 1 << 32)]), "S-EH-09");

    remarks(mode, read(), &extended(DONE, T::OFFSET_DATA, 1024, &content), None);
    remarks(mode, ask(), &status(2, &[(512, 0), (1024, 3)]), None);
}

#[test]
fn whatever_is_left_on_the_stream_is_noticed() {
    let (mut client, mut theirs) = transmission(Mode::Simple);
    theirs.write_all(&simple(0, COOKIE, b"")).unwrap();
    theirs.write_all(&simple(0, COOKIE, b"")).unwrap();
    client.call(&Request::flush().cookie(COOKIE)).ok();
    panics_with("the peer sent bytes where it had to close", || client.finish());

    let (mut client, theirs) = transmission(Mode::Simple);
    panics_with("the peer closed where it had to wait", || {
        drop(theirs);
        client.wire().expect_silence();
    });
}
