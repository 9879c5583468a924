//! Servers that say nothing, or next to nothing. The deadlines are there to be reached.

use core::time::Duration;
use std::os::unix::net::UnixStream;

use nbd_engine::client::{ClientConfig, Error, Flags, Reconnect};
use nbd_testkit::raw::{Cmd, Mode, Opt, Rep, magic, some_attempt};
use nbd_testkit::scripted::{Answer, Export, OptionAnswer, Script};

use super::table::{
    AT, Ask, CHUNKED, MODES, SHORT, config, connect, entered, expect_alive, expect_given_up, hasty,
};
use crate::ClientSetup;

/// Between two drops: a deadline passes before many of them have fallen.
const PAUSE: Duration = Duration::from_millis(1);

fn new() -> Script {
    Script::new(Export::new(Mode::Extended))
}

fn impatient() -> ClientConfig {
    config().with_connect_timeout(SHORT)
}

/// Whether by an address or over a stream, the client gives up and hangs up.
fn is_given_up(setup: ClientSetup, script: &Script) {
    let server = setup.play([script.clone(), script.clone()]);
    let connected = setup.connect(server.endpoint(), &impatient());
    let error = connected.err().unwrap_or_else(|| panic!("{script:?}: a client"));
    assert!(matches!(error, Error::TimedOut { sent: false, .. }), "{script:?}: {error:?}");
    if let Some(path) = server.endpoint().socket_path() {
        let stream = UnixStream::connect(path).expect("it listens");
        let connected = setup.adapter().over(stream, "", &impatient());
        let error = connected.err().unwrap_or_else(|| panic!("{script:?}: a client"));
        assert!(matches!(error, Error::TimedOut { .. }), "{script:?}: {error:?}");
    }
    for report in server.finish() {
        assert!(report.left, "{script:?}: {report:?}");
    }
}

/// Whatever comes before the export is entered is bounded by the deadline for connecting.
pub fn silence_in_the_option_phase_is_given_up(setup: ClientSetup) {
    let greeting = magic::INIT.to_be_bytes();
    for script in [
        new().silence(),
        new().send(&greeting[..7]).silence(),
        new().send(&greeting).silence(),
        new().greet().silence(),
        new().until(Opt::EXTENDED_HEADERS).silence(),
        new().until(Opt::SET_META_CONTEXT).silence(),
        new().until(Opt::GO).silence(),
        new().until(Opt::GO).answer_option(OptionAnswer::ack().length(100)).silence(),
    ] {
        is_given_up(setup, &script);
    }
    let server = setup.play([new().until(Opt::LIST).silence(), new().until(Opt::INFO).silence()]);
    // On a busy machine the deadline may pass before the question is asked.
    let negotiate = || setup.negotiate(server.endpoint(), &impatient());
    let listed = negotiate().and_then(|mut negotiation| negotiation.list());
    assert!(matches!(listed, Err(Error::TimedOut { .. })), "{listed:?}");
    let told = negotiate().and_then(|mut negotiation| negotiation.info(""));
    assert!(matches!(told, Err(Error::TimedOut { .. })), "{told:?}");
    assert!(server.finish().iter().all(|report| report.left));
}

/// Progress by the byte is no progress.
pub fn drops_in_the_option_phase_are_given_up(setup: ClientSetup) {
    let info = || OptionAnswer::new(Rep::INFO, &[&[0, 2][..], &[b'x'; 4000]].concat());
    for script in [
        new().until(Opt::GO).answer_option(info()).dripping(PAUSE),
        new().until(Opt::GO).answer_option(info().length(60_000)).send(b"x").dripping(PAUSE),
        new().until(Opt::GO).answer_option(OptionAnswer::new(Rep::INFO, &[0, 99])).dripping(PAUSE),
    ] {
        is_given_up(setup, &script);
    }
}

/// Each command, on each kind of connection: it fails when its time has come, and the next one succeeds.
pub fn a_request_that_is_not_answered_is_given_up_and_others_go_on(setup: ClientSetup) {
    for mode in MODES {
        for ask in [Ask::Read, Ask::Write, Ask::Flush, Ask::Trim, Ask::Status] {
            if ask == Ask::Status && mode == Mode::Simple {
                continue;
            }
            let what = format!("{mode:?}, {ask:?}");
            some_attempt(|| {
                let server = setup.play([entered(mode).request(ask.command()).serve()]);
                let client = connect(setup, &server, &hasty(), &what);
                expect_given_up(&ask.of(&*client).expect_err(&what), &what)?;
                expect_alive(&*client, &what);
                drop(client);
                server.finish();
                Some(())
            });
        }
    }
}

/// A reply that stops in the middle holds up the connection, but nobody beyond the deadline, and not who leaves.
pub fn half_a_reply_is_given_up(setup: ClientSetup) {
    let half = || Answer::data(AT, &[1; 512]);
    for mode in CHUNKED {
        for script in [
            entered(mode).request(Cmd::READ).send(&[0x66]),
            entered(mode).request(Cmd::READ).answer(half()),
            entered(mode).request(Cmd::READ).answer(half().length(8 + 1024)),
            entered(mode).request(Cmd::READ).answer(half().length(8 + 600)),
        ] {
            let what = format!("{mode:?}, {script:?}");
            some_attempt(|| {
                let server = setup.play([script.clone().silence()]);
                let client = connect(setup, &server, &hasty(), &what);
                expect_given_up(&Ask::Read.of(&*client).expect_err(&what), &what)?;
                expect_given_up(&client.flush().expect_err(&what), &what)?;
                drop(client);
                assert!(server.finish()[0].left, "{what}");
                Some(())
            });
        }
    }
}

/// The deadline is for the whole reply, not for each byte of it.
pub fn drops_of_a_reply_are_given_up(setup: ClientSetup) {
    const LONG: usize = 512 << 10;
    for mode in CHUNKED {
        let what = format!("{mode:?}");
        let beginning = Answer::data(0, &[]).length(8 + LONG as u64);
        let script = entered(mode).request(Cmd::READ).answer(beginning).send(b"x").dripping(PAUSE);
        some_attempt(|| {
            let server = setup.play([script.clone()]);
            let client = connect(setup, &server, &hasty(), &what);
            let (_, result) = client.read_into(0, vec![0; LONG], Flags::empty());
            expect_given_up(&result.expect_err(&what), &what)?;
            drop(client);
            assert!(server.finish()[0].left, "{what}");
            Some(())
        });
    }
}

/// Who leaves waits for what is in flight, but not for what it has given up already. It says goodbye.
pub fn leaving_does_not_wait_for_what_was_given_up(setup: ClientSetup) {
    for mode in MODES {
        let what = format!("{mode:?}");
        let script = entered(mode).request(Cmd::READ).request(Cmd::WRITE).request(Cmd::DISC);
        some_attempt(|| {
            let server = setup.play([script.clone().silence()]);
            let client = connect(setup, &server, &hasty(), &what);
            let read = client.start_read(0, vec![0; 512], Flags::empty());
            let write = client.start_write(0, vec![0; 512], Flags::empty());
            for error in [read.wait().1.expect_err(&what), write.wait().1.expect_err(&what)] {
                expect_given_up(&error, &what)?;
            }
            client.disconnect();
            let error = client.flush().expect_err(&what);
            assert!(matches!(error, Error::Disconnected { .. }), "{what}: {error:?}");
            let report = server.finish()[0];
            assert!(report.left && report.steps == 9, "{what}: {report:?}");
            Some(())
        });
    }
}

/// Without a deadline for requests: nothing but the silence ends the wait.
pub fn a_server_that_owes_replies_and_is_silent_is_replaced(setup: ClientSetup) {
    let half = || Answer::data(AT, &[1; 512]).length(8 + 1024);
    for mode in CHUNKED {
        for silent in [
            entered(mode).request(Cmd::READ).silence(),
            entered(mode).request(Cmd::READ).send(&[0x66]).silence(),
            entered(mode).request(Cmd::READ).answer(half()).silence(),
        ] {
            let what = format!("{mode:?}, {silent:?}");
            // On a busy machine some that answer may take too long, too.
            let answering = core::iter::repeat_n(entered(mode).serve(), 50);
            let server = setup.play(core::iter::once(silent).chain(answering));
            let reconnect = Reconnect::new()
                .with_delays(Duration::from_millis(1), Duration::from_millis(20))
                .with_max_resends(1000)
                .with_max_silence(Some(SHORT));
            let config = config().with_reconnect(reconnect);
            let client = connect(setup, &server, &config, &what);
            Ask::Read.of(&*client).expect(&what);
            expect_alive(&*client, &what);
            drop(client);
            assert!(server.finish()[0].left, "{what}");
        }
    }
}
