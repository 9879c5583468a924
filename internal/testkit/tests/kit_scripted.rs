//! The scripted server against the kit's own client: proper scripts are a proper server, and each kind of fault is
//! noticed by the client that checks everything.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nbd_testkit::raw::{ChunkType, Cmd, Errno, Mode, Opt, RawClient, Rep, Request, Wire, flag};
use nbd_testkit::scripted::{Answer, Export, OptionAnswer, Script, ScriptedServer, payload};
use nbd_testkit::{SOON, assert_same_bytes, process::wait_until};

const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

fn in_transmission(mode: Mode) -> Script {
    Script::new(Export::new(mode)).enter()
}

/// Runs what must panic, and checks what it says.
fn panics_with(expected: &str, act: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(act)).expect_err(expected);
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    let text = text.unwrap_or_default();
    assert!(text.contains(expected), "{expected:?} was expected in: {text}");
}

#[test]
fn a_script_without_faults_is_a_proper_server() {
    for server in [ScriptedServer::tcp, ScriptedServer::unix] {
        for mode in MODES {
            let server = server(vec![in_transmission(mode).serve()]);
            let mut client = RawClient::go_in(mode, server.endpoint());
            assert_eq!(client.export().size, 1 << 20);
            assert!(client.has_flag(flag::SEND_TRIM));
            assert_same_bytes(&client.read(5, 999), &Export::CONTENT.bytes(5, 999), "content");
            client.write(0, &[1; 70_000]);
            client.call(&Request::flush()).ok();
            client.call(&Request::write_zeroes(0, 512)).ok();
            client.finish();
            let [report] = server.finish()[..] else { panic!("there was one connection") };
            assert!(report.left && report.sent > 999, "{report:?}");
        }
    }
}

#[test]
fn contexts_are_selected_and_reported() {
    for mode in [Mode::Structured, Mode::Extended] {
        let server = ScriptedServer::unix([in_transmission(mode).serve()]);
        let mut client = RawClient::negotiate(server.endpoint());
        match mode {
            Mode::Extended => client.extended_headers().unwrap(),
            _ => client.structured_reply().unwrap(),
        }
        client.set_meta_context("", &["base:allocation"]).unwrap();
        client.go("", &[]).unwrap();
        let status = client.call(&Request::block_status(512, 4096)).only_status();
        assert_eq!((status.context, status.extents.len()), (1, 1));
        client.finish();
        server.finish();
    }
}

#[test]
fn faults_are_played_as_they_are_written() {
    let chunk = ChunkType::ERROR;
    let long_text = Answer::chunk(chunk, payload::error(Errno::EIO, 9, b"short")).done();
    for (rule, modes, answer) in [
        ("S-REP-01", &MODES[..2], Answer::simple(Errno(0), &[0; 512]).to_nobody()),
        ("S-REP-01", &MODES[1..], Answer::data(0, &[0; 512]).done().to_nobody()),
        ("S-REP-SIMPLE-01", &MODES[..], Answer::simple(Errno(0), &[]).magic(5)),
        ("S-REP-SIMPLE-01", &MODES[1..], Answer::none().magic(5)),
        ("S-REP-SIMPLE-02", &MODES[1..2], Answer::simple(Errno(0), &[])),
        ("S-EH-02", &MODES[2..], Answer::data(0, &[0; 512]).offset(1)),
        ("S-REP-STRUCT-02", &MODES[1..], Answer::none().flags(2)),
        ("S-REP-STRUCT-05", &MODES[1..], Answer::data(1 << 20, &[0; 512])),
        ("S-REP-STRUCT-05", &MODES[1..], Answer::hole(400, 512)),
        ("S-REP-STRUCT-06", &MODES[1..], Answer::data(0, &[0; 511]).done()),
        ("S-REP-STRUCT-06", &MODES[1..], Answer::none().done()),
        ("S-REP-STRUCT-08", &MODES[1..], long_text),
        ("S-REP-STRUCT-09", &MODES[1..], Answer::error_at(Errno::EIO, 512).done()),
        ("S-REP-STRUCT-11", &MODES[1..], Answer::status(1, &[(512, 0)]).done()),
        ("S-ERR-01", &MODES[1..], Answer::error(Errno(2), "").done()),
    ] {
        for &mode in modes {
            let script = in_transmission(mode).request(Cmd::READ).answer(answer.clone());
            let server = ScriptedServer::unix([script]);
            let mut client = RawClient::go_in(mode, server.endpoint());
            panics_with(rule, || drop(client.call(&Request::read(0, 512))));
            drop(client);
            assert_eq!(server.finish().len(), 1);
        }
    }
}

#[test]
fn faults_of_options_are_played_as_they_are_written() {
    for (rule, answer) in [
        ("S-OPT-01", OptionAnswer::ack().magic(1)),
        ("S-OPT-01", OptionAnswer::ack().to(Opt::GO)),
        ("S-OPT-07", OptionAnswer::new(Rep::ACK, b"x")),
    ] {
        let script = Script::new(Export::new(Mode::Simple)).until(Opt::LIST).answer_option(answer);
        let server = ScriptedServer::unix([script]);
        let mut client = RawClient::negotiate(server.endpoint());
        panics_with(rule, || drop(client.list()));
        drop(client);
        server.finish();
    }
}

#[test]
fn answers_name_the_request_that_they_are_told_to() {
    let script = in_transmission(Mode::Structured)
        .request(Cmd::READ)
        .request(Cmd::READ)
        .answer(Answer::data(512, &[2; 512]).done().to(1))
        .answer(Answer::data(0, &[1; 512]).done().to(0))
        .serve();
    let server = ScriptedServer::unix([script]);
    let mut client = RawClient::go_structured(server.endpoint());
    let cookies = client.send_all(&[Request::read(0, 512), Request::read(512, 512)]);
    let replies = client.drain();
    assert_eq!([replies[0].cookie, replies[1].cookie], [cookies[1], cookies[0]]);
    client.finish();
    server.finish();
}

#[test]
fn a_session_can_be_cut_at_any_byte() {
    let script = || in_transmission(Mode::Extended).request(Cmd::READ).obey();
    for cut in [0, 1, 17, 18, 200] {
        let server = ScriptedServer::tcp([script().cut_after(cut)]);
        let mut wire = Wire::connect(server.endpoint());
        let greeting = wire.try_recv(18);
        assert_eq!(greeting.is_some(), cut >= 18);
        if cut > 18 {
            let mut client = RawClient::over(wire);
            client.send_client_flags(3);
            client.extended_headers().unwrap();
            client.go("", &[]).unwrap();
            client.send(&Request::read(0, 4096));
            client.wire().drain_to_eof();
        } else {
            wire.drain_to_eof();
        }
        let [report] = server.finish()[..] else { panic!("there was one connection") };
        assert_eq!((report.sent, report.left), (cut, false));
    }
}

#[test]
fn what_has_no_end_ends_with_the_client() {
    let endless = || {
        let server = OptionAnswer::new(Rep::SERVER, &[0; 4]);
        Script::new(Export::new(Mode::Simple)).until(Opt::LIST).answer_option(server)
    };
    for script in [endless().endlessly(), endless().dripping(Duration::from_micros(10))] {
        let server = ScriptedServer::unix([script]);
        let mut client = RawClient::negotiate(server.endpoint());
        client.send_option(Opt::LIST, &[]);
        client.wire().recv(1000, "fifty replies");
        drop(client);
        assert!(server.finish()[0].left);
    }
}

#[test]
fn a_script_holds_until_it_is_released() {
    let script = in_transmission(Mode::Simple).header(Cmd::WRITE).hold().payload().obey().serve();
    let server = ScriptedServer::unix([script]);
    let mut client = RawClient::go_in(Mode::Simple, server.endpoint());
    client.send(&Request::write(0, &[1; 512]));
    server.wait_for_requests(1);
    client.wire().expect_silence();
    server.release();
    client.drain().remove(0).ok();
    client.finish();
    server.finish();
}

#[test]
fn silence_is_silence() {
    let server = ScriptedServer::tcp([in_transmission(Mode::Simple).silence()]);
    let mut client = RawClient::go_in(Mode::Simple, server.endpoint());
    client.send(&Request::read(0, 512));
    client.wire().expect_silence();
    drop(client);
    assert!(server.finish()[0].left);
}

#[test]
fn a_client_that_leaves_the_script_fails_the_test() {
    let server = ScriptedServer::unix([in_transmission(Mode::Simple).request(Cmd::WRITE)]);
    let mut client = RawClient::go_in(Mode::Simple, server.endpoint());
    client.send(&Request::read(0, 512));
    client.wire().expect_eof();
    panics_with("the client's request", || drop(server.finish()));
}

#[test]
fn connections_play_their_scripts_in_turn_and_there_are_no_more() {
    let scripts = [0, 1, 2].map(|mark| Script::new(Export::new(Mode::Simple)).send(&[mark; 8]));
    let server = ScriptedServer::tcp(scripts);
    for mark in 0..2 {
        let mut wire = Wire::connect(server.endpoint());
        assert_eq!(wire.recv(8, "the mark"), [mark; 8]);
        wire.expect_eof();
    }
    wait_until("both were accepted", SOON, || server.accepted() == 2);
    let endpoint = server.endpoint().clone();
    assert_eq!(server.finish().len(), 2);
    assert!(Wire::try_connect(&endpoint).is_err());
}
