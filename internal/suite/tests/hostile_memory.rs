//! What a server can make a client hold: the lengths that it names cost nothing, and what it sends is bounded (C-ROB-07).
//!
//! Measured over the whole process, the scripted server included. One test at a time, since all share the figures.

use std::sync::{Mutex, PoisonError};

use nbd_engine::client::{ClientConfig, Error, Flags};
use nbd_suite::{ClientSetup, Transport, clients, run_client};
use nbd_testkit::raw::{ChunkType, Cmd, Errno, MAX_STRING, Mode, Opt, Rep};
use nbd_testkit::scripted::{Answer, Export, OptionAnswer, Script, ScriptedServer, payload};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const MIB: usize = 1 << 20;

/// What a connection and its server may hold for reasons of their own.
const USUAL: usize = MIB;

/// Runs `act` with a server of `script`, and checks what was held meanwhile.
#[track_caller]
fn holds_at_most(bound: usize, what: &str, script: Script, act: impl FnOnce(&ScriptedServer)) {
    let server = ScriptedServer::unix([script]);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    act(&server);
    let held = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(held <= bound, "{what}: {held} bytes were held, {bound} are allowed");
    server.finish();
}

fn config() -> ClientConfig {
    ClientConfig::new().with_contexts(["base:allocation"])
}

fn new() -> Script {
    Script::new(Export::new(Mode::Extended))
}

fn is_protocol(error: &Error) -> bool {
    matches!(error, Error::Protocol { .. } | Error::Lost { .. })
}

fn lengths_cost_nothing(setup: ClientSetup) {
    for option in [Opt::EXTENDED_HEADERS, Opt::SET_META_CONTEXT, Opt::GO] {
        for kind in [Rep::ACK, Rep::INFO, Rep::META_CONTEXT, Rep::ERR_UNKNOWN] {
            let what = format!("{option:?} answered by {kind:?} of 4 GiB");
            let answer = OptionAnswer::new(kind, &[]).length(u32::MAX);
            let script = new().until(option).answer_option(answer).silence();
            holds_at_most(USUAL, &what, script, |server| {
                let error = setup.connect(server.endpoint(), &config()).err().expect(&what);
                assert!(is_protocol(&error), "{what}: {error:?}");
            });
        }
    }
    for mode in [Mode::Structured, Mode::Extended] {
        let status = match mode {
            Mode::Extended => Answer::status_ext(1, &[(512, 0)]).length(8 + 16 * (1 << 27)),
            _ => Answer::status(1, &[(512, 0)]).length(4 + 8 * ((1 << 29) - 1)),
        };
        let most = if mode == Mode::Extended { u64::MAX } else { u32::MAX.into() };
        let long_text = payload::error(Errno::EIO, u16::MAX, b"short");
        for answer in [
            Answer::data(0, &[]).length(most),
            Answer::hole(0, u32::MAX),
            Answer::none().length(most),
            Answer::error(Errno::EIO, "").length(most),
            Answer::chunk(ChunkType::ERROR, long_text),
            Answer::chunk(ChunkType(0xffff), []).length(most),
            Answer::chunk(ChunkType(0x7fff), []).length(most),
            status,
        ] {
            for command in [Cmd::READ, Cmd::BLOCK_STATUS] {
                let what = format!("{mode:?}, {command:?} answered by {answer:?}");
                let script = Script::new(Export::new(mode)).enter().request(command);
                holds_at_most(USUAL, &what, script.answer(answer.clone()).silence(), |server| {
                    let client = setup.connect(server.endpoint(), &config()).expect(&what);
                    // Who means it, sends extents: then they are what is silent.
                    let result = match command {
                        Cmd::READ => client.read(0, 512, Flags::empty()).map(drop),
                        _ => client.block_status(0, 512, Flags::empty()).map(drop),
                    };
                    let error = result.expect_err(&what);
                    assert!(is_protocol(&error), "{what}: {error:?}");
                });
            }
        }
    }
}

fn what_is_endless_is_bounded(setup: ClientSetup) {
    let (name, text) = ([b'n'; MAX_STRING], [b't'; MAX_STRING]);
    let length = (MAX_STRING as u32).to_be_bytes();
    let server = [&length[..], &name, &text].concat();
    let context = [&[0, 0, 0, 1][..], &name].concat();
    let unknown = [&[0, 99][..], &[0; 1000]].concat();
    let descriptions = [&[0, 2][..], &text].concat();
    // As `Limits::max_option_replies` says.
    for (option, kind, data, bound) in [
        (Opt::LIST, Rep::SERVER, &server, 160 * MIB),
        (Opt::LIST_META_CONTEXT, Rep::META_CONTEXT, &context, 160 * MIB),
        (Opt::GO, Rep::INFO, &unknown, USUAL),
        (Opt::INFO, Rep::INFO, &descriptions, USUAL),
    ] {
        let what = format!("{option:?} answered by {kind:?} on and on");
        let answer = OptionAnswer::new(kind, data);
        let script = new().until(option).answer_option(answer).endlessly();
        holds_at_most(bound, &what, script, |server| {
            let negotiate = || setup.negotiate(server.endpoint(), &config()).expect(&what);
            let error = match option {
                Opt::LIST => negotiate().list().expect_err(&what),
                Opt::INFO => negotiate().info("").expect_err(&what),
                Opt::LIST_META_CONTEXT => negotiate().list_meta_contexts("", &[]).expect_err(&what),
                _ => setup.connect(server.endpoint(), &config()).err().expect(&what),
            };
            assert!(is_protocol(&error), "{what}: {error:?}");
        });
    }
    let text = "t".repeat(MAX_STRING);
    for answer in [Answer::error(Errno::EIO, &text), Answer::error_at(Errno::EIO, 0)] {
        let what = "errors on and on";
        let script = new().enter().request(Cmd::READ).answer(answer).endlessly();
        holds_at_most(USUAL, what, script, |server| {
            let client = setup.connect(server.endpoint(), &config()).expect(what);
            let error = client.read(0, 512, Flags::empty()).expect_err(what);
            assert!(is_protocol(&error), "{what}: {error:?}");
        });
    }
}

/// As many extents as a server may send are taken; memory is for those, and for no more.
fn extents_are_held_once(setup: ClientSetup) {
    const MOST: usize = 1 << 20;
    let wire = 8 * MOST;
    let script = Script::new(Export::new(Mode::Structured)).enter().request(Cmd::BLOCK_STATUS);
    let script = script.answer(Answer::status(1, &vec![(512, 0); MOST]).done()).serve();
    // The server has it twice on its way; the client as extents of 16 bytes, in a vector that grows.
    let bound = 2 * wire + 3 * 16 * MOST + USUAL;
    holds_at_most(bound, "a million extents", script, |server| {
        let client = setup.connect(server.endpoint(), &config()).expect("it is a server");
        let status = client.block_status(0, 1 << 20, Flags::empty()).expect("a block status");
        assert_eq!(status[0].extents.len(), MOST);
    });
}

macro_rules! measured {
    ($($module:ident $client:ident)*) => {
        $(mod $module {
            use super::{ONE_AT_A_TIME, PoisonError, Transport, clients, run_client};

            fn run(scenario: fn(super::ClientSetup)) {
                let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
                run_client(&clients::$client, Transport::Unix, scenario);
            }

            #[test]
            fn lengths_cost_nothing() {
                run(super::lengths_cost_nothing);
            }

            #[test]
            fn what_is_endless_is_bounded() {
                run(super::what_is_endless_is_bounded);
            }

            #[test]
            fn extents_are_held_once() {
                run(super::extents_are_held_once);
            }
        })*
    };
}

measured! {
    async_std AsyncStdClient
    blocking BlockingClient
    smol SmolClient
    tokio_current_thread TokioClientCurrentThread
    tokio_multi_thread TokioClientMultiThread
}
