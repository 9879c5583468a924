//! The generator against the yardstick, and all that needs neither a peer nor time.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use nbd_blocking::Server;
use nbd_blocking::export::{ExportMap, Memory};
use nbd_testkit::{Pattern, Random};

use crate::args::{Cli, Command, LoadArgs, parse_size};
use crate::chart;
use crate::compare::{Plan, Record, Sample, State, compare};
use crate::load::{Connection, Direction, Load, Order};
use crate::mode::Mode;
use crate::modes::{self, ModesPlan, ModesRecord};
use crate::servers::{self, Storage, YARDSTICK, catalogue};
use crate::wire::{Opt, Rep, SimpleReply, magic};
use crate::workload::WORKLOADS;
use crate::yardstick::{Tuning, Yardstick};
use crate::{handshake, report, stats};

const SIZE: usize = 1024 * 1024;

/// Runs `client` on a new connection to `yardstick`.
fn with_connection<T>(yardstick: &Yardstick, client: impl FnOnce(&mut Connection) -> T) -> T {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    thread::scope(|scope| {
        let server = scope.spawn(move || yardstick.serve_connection(&theirs));
        let mut connection = Connection::negotiate(ours, "any", Mode::Simple).expect("a handshake");
        let result = client(&mut connection);
        connection.disconnect().expect("a soft disconnect");
        server.join().expect("no panic").expect("no error of the server");
        result
    })
}

fn load(direction: Direction, order: Order, block: u32, depth: usize) -> Load {
    let verify = Some(Pattern(7));
    let requests = Some((SIZE / block as usize) as u64);
    Load { direction, order, block, depth, duration: None, requests, seed: 1, verify }
}

#[test]
fn what_was_written_is_read_back_whatever_the_sizes() {
    let odd = Tuning { staging: 100, staging_after_large: 50, large: 1000, send_buffer: None };
    for tuning in [Tuning::default(), odd] {
        for (block, depth) in [(4096, 32), (SIZE as u32 / 4, 4), (1000, 1)] {
            let yardstick = Yardstick::new(SIZE, tuning);
            with_connection(&yardstick, |connection| {
                assert_eq!(connection.export().size, SIZE as u64);
                let write = load(Direction::Write, Order::Sequential, block, depth);
                let outcome = connection.run(&write).expect("written");
                assert_eq!(Some(outcome.requests), write.requests);
                let read = load(Direction::Read, Order::Random, block, depth);
                let outcome = connection.run(&read).expect("read back");
                assert_eq!(outcome.bytes, outcome.requests * u64::from(block));
            });
        }
    }
}

#[test]
fn random_writes_land_where_they_belong() {
    let yardstick = Yardstick::new(SIZE, Tuning::default());
    with_connection(&yardstick, |connection| {
        connection.run(&load(Direction::Write, Order::Random, 512, 8)).expect("written");
        // The same seed asks for the same blocks.
        connection.run(&load(Direction::Read, Order::Random, 512, 3)).expect("read back");
    });
}

#[test]
fn wrong_data_is_noticed() {
    let yardstick = Yardstick::new(SIZE, Tuning::default());
    let error = with_connection(&yardstick, |connection| {
        connection.run(&load(Direction::Read, Order::Random, 4096, 1)).expect_err("all zero")
    });
    assert!(error.to_string().contains("wrong data at offset"), "{error}");
}

#[test]
fn a_load_ends_after_its_time() {
    let yardstick = Yardstick::new(SIZE, Tuning::default());
    with_connection(&yardstick, |connection| {
        let mut load = load(Direction::Read, Order::Random, 4096, 32);
        load.verify = None;
        load.requests = None;
        load.duration = Some(Duration::from_millis(5));
        assert!(connection.run(&load).expect("a run").requests >= 32);
        load.duration = None;
        connection.run(&load).expect_err("it would never end");
    });
}

/// Runs `client` on a new connection in some mode to a server that has them all.
fn with_server<T>(mode: Mode, client: impl FnOnce(&mut Connection) -> T) -> T {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let memory = Memory::new(SIZE as u64).expect("a disk in memory");
    let server = Server::new(ExportMap::new().with("", memory).unwrap());
    thread::scope(|scope| {
        let served = scope.spawn(move || server.serve_unix(theirs));
        let mut connection = Connection::negotiate(ours, "", mode).expect("a handshake");
        let result = client(&mut connection);
        connection.disconnect().expect("a soft disconnect");
        served.join().expect("no panic").expect("no error of the server");
        result
    })
}

#[test]
fn what_was_written_is_read_back_in_each_mode() {
    for mode in Mode::ALL {
        with_server(mode, |connection| {
            for (block, depth) in [(4096, 32), (SIZE as u32 / 4, 4), (1000, 1)] {
                let write = load(Direction::Write, Order::Sequential, block, depth);
                connection.run(&write).expect("written");
                let read = load(Direction::Read, Order::Random, block, depth);
                let outcome = connection.run(&read).expect("read back");
                assert_eq!(outcome.bytes, outcome.requests * u64::from(block));
            }
        });
    }
}

#[test]
fn holes_are_read_and_are_wrong_data_where_some_is_expected() {
    with_server(Mode::Structured, |connection| {
        let mut read = load(Direction::Read, Order::Random, 4096, 8);
        read.verify = None;
        assert_eq!(connection.run(&read).expect("holes").requests, (SIZE / 4096) as u64);
    });
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let server =
        Server::new(ExportMap::new().with("", Memory::new(SIZE as u64).expect("a disk")).unwrap());
    thread::scope(|scope| {
        scope.spawn(move || server.serve_unix(theirs));
        let mut connection = Connection::negotiate(ours, "", Mode::Extended).expect("a handshake");
        let read = load(Direction::Read, Order::Random, 4096, 1);
        let error = connection.run(&read).expect_err("nothing was written");
        assert!(error.to_string().contains("wrong data"), "{error}");
    });
}

#[test]
fn a_mode_that_the_server_does_not_have_is_unsupported() {
    let yardstick = Yardstick::new(SIZE, Tuning::default());
    for mode in [Mode::Structured, Mode::Extended] {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        thread::scope(|scope| {
            scope.spawn(|| yardstick.serve_connection(&theirs));
            let error = Connection::negotiate(ours, "", mode).expect_err("simple replies only");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        });
    }
}

/// What the generator says of a server with structured replies that answers its first request, a
/// READ of 4 KiB, with `chunks` of flags, type and payload.
fn error_of_chunks(chunks: &[(u16, u16, &[u8])]) -> String {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    thread::scope(|scope| {
        scope.spawn(move || {
            theirs.write_all(&[0x4e, 0x42, 0x44, 0x4d, 0x41, 0x47, 0x49, 0x43])?;
            theirs.write_all(&magic::IHAVEOPT.to_be_bytes())?;
            theirs.write_all(&1u16.to_be_bytes())?;
            theirs.read_exact(&mut [0; 4 + 16])?;
            let mut answer = magic::OPTION_REPLY.to_be_bytes().to_vec();
            answer.extend([0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0]);
            theirs.write_all(&answer)?;
            // The export: 1 MiB.
            theirs.read_exact(&mut [0; 16 + 6])?;
            for (kind, data) in [(3u32, &[0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 1][..]), (1, &[])] {
                let mut answer = magic::OPTION_REPLY.to_be_bytes().to_vec();
                answer.extend(Opt::GO.0.to_be_bytes());
                answer.extend(kind.to_be_bytes());
                answer.extend((data.len() as u32).to_be_bytes());
                answer.extend(data);
                theirs.write_all(&answer)?;
            }
            let mut request = [0; 28];
            theirs.read_exact(&mut request)?;
            for (flags, kind, payload) in chunks {
                let mut chunk = magic::STRUCTURED_REPLY.to_be_bytes().to_vec();
                chunk.extend(flags.to_be_bytes());
                chunk.extend(kind.to_be_bytes());
                chunk.extend(&request[8..16]);
                chunk.extend((payload.len() as u32).to_be_bytes());
                chunk.extend(*payload);
                theirs.write_all(&chunk)?;
            }
            io::Result::Ok(())
        });
        let mut connection =
            Connection::negotiate(ours, "", Mode::Structured).expect("a handshake");
        let mut load = load(Direction::Read, Order::Sequential, 4096, 1);
        load.verify = None;
        connection.run(&load).expect_err("a bad reply").to_string()
    })
}

#[test]
fn bad_chunks_are_errors() {
    let hole =
        |offset: u64, length: u32| [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
    let (first, all, beside) = (hole(0, 1024), hole(0, 4096), hole(4096, 512));
    let error = error_of_chunks(&[(0, 2, &first), (1, 0, &[])]);
    assert!(error.contains("ended before all data"), "{error}");
    for wrong in [&[(1, 2, &beside[..])][..], &[(0, 2, &first), (1, 2, &all)]] {
        let error = error_of_chunks(wrong);
        assert!(error.contains("something else than was asked for"), "{error}");
    }
    let error = error_of_chunks(&[(1, 0x8001, &[0, 0, 0, 5, 0, 0])]);
    assert!(error.contains("error 5"), "{error}");
}

/// What the generator says of a server that answers its first request with `reply`.
fn error_of_reply(reply: SimpleReply) -> String {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    thread::scope(|scope| {
        scope.spawn(move || {
            assert!(handshake::serve(&theirs, SIZE as u64).expect("a handshake"));
            theirs.read_exact(&mut [0; 28]).expect("a request");
            let mut bytes = Vec::new();
            reply.encode(&mut bytes);
            theirs.write_all(&bytes).expect("the reply leaves");
        });
        let mut connection = Connection::negotiate(ours, "", Mode::Simple).expect("a handshake");
        let load = load(Direction::Read, Order::Random, 4096, 1);
        connection.run(&load).expect_err("a bad reply").to_string()
    })
}

#[test]
fn bad_replies_are_errors() {
    let error = error_of_reply(SimpleReply { error: 5, cookie: 0 });
    assert!(error.contains("error 5"), "{error}");
    let error = error_of_reply(SimpleReply { error: 0, cookie: 99 });
    assert!(error.contains("a reply to nothing"), "{error}");
}

#[test]
fn the_yardstick_refuses_other_options_and_goes_on() {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    thread::scope(|scope| {
        let server = scope.spawn(move || handshake::serve(&theirs, 1));
        ours.read_exact(&mut [0; 18]).expect("a greeting");
        ours.write_all(&3u32.to_be_bytes()).expect("client flags");
        for option in [Opt::STRUCTURED_REPLY, Opt::GO] {
            ours.write_all(&magic::IHAVEOPT.to_be_bytes()).expect("magic");
            ours.write_all(&option.0.to_be_bytes()).expect("option");
            ours.write_all(&0u32.to_be_bytes()).expect("length");
        }
        let mut reply = [0; 20];
        ours.read_exact(&mut reply).expect("an option reply");
        assert_eq!(reply[12..16], Rep::ERR_UNSUP.0.to_be_bytes());
        assert!(server.join().expect("no panic").expect("a handshake"));
    });
}

#[test]
fn offsets_are_the_same_each_time_and_within_bounds() {
    let draw = |seed| {
        let mut random = Random::new(seed);
        std::iter::repeat_with(|| random.below(1000)).take(100).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert!(draw(3).iter().all(|number| *number < 1000));
}

#[test]
fn medians_and_spreads() {
    assert_eq!(stats::median([]), None);
    assert_eq!(stats::median([3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(stats::median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
    assert_eq!(stats::spread(&[90.0, 100.0, 110.0]), Some(0.1));
}

#[test]
fn sizes_have_binary_suffixes() {
    assert_eq!(parse_size("512"), Ok(512));
    assert_eq!(parse_size("4k"), Ok(4096));
    assert_eq!(parse_size("256M"), Ok(256 << 20));
    for wrong in ["", "k", "4x", "-1", "99999999999G"] {
        assert!(parse_size(wrong).is_err(), "{wrong:?}");
    }
}

fn plan(args: &[&str]) -> Result<Plan, String> {
    let line = ["nbd-bench", "compare"].iter().chain(args);
    match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
        Command::Compare(args) => args.plan(Path::new("/bin/nbd-bench")),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn without_options_everything_is_compared() {
    Cli::command().debug_assert();
    let plan = plan(&[]).expect("a plan");
    let all = catalogue(Path::new("/bin/nbd-bench"), Path::new("/bin/nbd"));
    assert_eq!(plan.servers, all);
    assert_eq!(plan.workloads.len(), WORKLOADS.len());
    assert_eq!((plan.duration, plan.rounds), (Duration::from_secs(2), 3));
}

#[test]
fn servers_and_workloads_are_chosen_by_name() {
    let chosen = plan(&["--only", "nbdkit,extra", "--workload", "read-4k-qd1", "--extra"]);
    chosen.expect_err("--extra has no value");
    let args = ["--only", "nbdkit,extra", "--workload", "read-4k-qd1", "--rounds", "1"];
    let extra = ["--extra", "extra=serve --at={socket} {file}", "--extra-export", "disk"];
    let chosen = plan(&[&args[..], &extra].concat()).expect("a plan");
    let names: Vec<&str> = chosen.servers.iter().map(|server| server.name.as_str()).collect();
    assert_eq!(names, ["nbdkit", "extra"]);
    assert_eq!(chosen.workloads.len(), 1);
    let server = &chosen.servers[1];
    assert_eq!((server.storage, server.export.as_str()), (Storage::File, "disk"));
    let command = server.command(Path::new("/s"), Some(Path::new("/f")));
    assert!(command.get_args().eq(["--at=/s", "/f"]));

    let error = plan(&["--only", "nbdkid"]).expect_err("no such server");
    assert!(error.contains("nbdkit"), "{error}");
    plan(&["--workload", "read"]).expect_err("no such workload");
    plan(&["--extra", "nbdkit=serve {socket}"]).expect_err("a name that is taken");
    plan(&["--extra", "mine=serve"]).expect_err("a command without a socket");
    plan(&["--seconds", "0"]).expect_err("no time at all");
}

#[test]
fn load_options() {
    let parse = |args: &[&str]| -> Option<LoadArgs> {
        let line = ["nbd-bench", "load", "--socket", "s"].iter().chain(args);
        match Cli::try_parse_from(line).ok()?.command {
            Command::Load(args) => Some(args),
            _ => None,
        }
    };
    let load = parse(&[]).expect("defaults").load();
    assert_eq!((load.block, load.depth, load.direction), (4096, 32, Direction::Read));
    assert_eq!((load.duration, load.requests), (Some(Duration::from_secs(2)), None));
    let args = ["--op", "write", "--block", "1M", "--depth", "4", "--requests", "9"];
    let load = parse(&args).expect("options").load();
    assert_eq!((load.block, load.depth, load.direction), (1 << 20, 4, Direction::Write));
    assert_eq!((load.duration, load.requests), (None, Some(9)));
    assert!(parse(&["--depth", "0"]).is_none());
    assert!(parse(&["--depth", "1000"]).is_none());
    assert!(parse(&["--block", "1G"]).is_none());
}

#[test]
fn a_server_that_can_not_run_is_said_to_be_missing_or_failed() -> io::Result<()> {
    let extra = |text| servers::Server::parse_extra(text).expect("an extra server");
    let plan = Plan {
        servers: vec![extra("gone=/nonexistent/program {socket}"), extra("bad=false {socket}")],
        workloads: WORKLOADS.to_vec(),
        duration: Duration::from_millis(10),
        rounds: 2,
    };
    let records = compare(&plan, &AtomicBool::new(false))?;
    assert_eq!(records[0].state, State::Missing);
    assert!(matches!(records[1].state, State::Failed(_)), "{:?}", records[1].state);
    let text = report::text(&plan, &records);
    assert!(text.contains("MISSING") && text.contains("FAILED"), "{text}");
    assert!(text.contains("missing") && text.contains("failed"), "{text}");
    Ok(())
}

#[test]
fn ratios_are_to_nbdkit_with_the_same_storage() {
    let plan = plan(&["--workload", "read-4k-qd1", "--only", "yardstick,nbdkit,nbdkit-file"])
        .expect("a plan");
    let records: Vec<Record> = plan
        .servers
        .iter()
        .zip([400.0, 200.0, 100.0])
        .map(|(server, rate)| Record {
            server: server.clone(),
            version: "1".into(),
            state: State::Ran,
            samples: vec![vec![Sample { rate, mib_rate: 1.0, server_cpu: 2.5, client_cpu: 1.0 }]],
        })
        .collect();
    let json = report::json(&plan, &records);
    let ratios = |key: &str| -> Vec<Option<f64>> {
        let servers = json["workloads"][0]["servers"].as_array().expect("servers");
        servers.iter().map(|server| server[key].as_f64()).collect()
    };
    assert_eq!(ratios("ratio_to_nbdkit"), [Some(2.0), Some(1.0), Some(1.0)]);
    assert_eq!(ratios("ratio_to_yardstick"), [Some(1.0), Some(0.5), Some(0.25)]);
    let text = report::text(&plan, &records);
    assert!(
        text.lines().any(|line| line.starts_with(YARDSTICK) && line.contains("2.50")),
        "{text}"
    );
    let svg = chart::svg(&plan, &records);
    let bars =
        |rate: &str| svg.lines().filter(|line| line.ends_with(&format!(">{rate}</text>"))).count();
    assert_eq!([bars("400"), bars("200"), bars("100"), bars("2.50")], [1, 1, 1, 3], "{svg}");
    // The longest one has the whole width, and the next a half of it.
    assert!(svg.contains("width=\"230.0\"") && svg.contains("width=\"115.0\""), "{svg}");
}

fn modes_plan(args: &[&str]) -> Result<ModesPlan, String> {
    let line = ["nbd-bench", "modes"].iter().chain(args);
    match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
        Command::Modes(args) => args.plan(Path::new("/bin/nbd-bench")),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn modes_are_compared_on_servers_with_memory() {
    let plan = modes_plan(&[]).expect("a plan");
    assert!(plan.servers.iter().all(|server| server.storage == Storage::Memory));
    assert!(plan.servers.iter().any(|server| server.name == "nbd-blocking"));
    assert_eq!(plan.workload.name, "read-4k-qd32");
    modes_plan(&["--only", YARDSTICK]).expect_err("it has simple replies only");
    modes_plan(&["--workload", "read"]).expect_err("no such workload");
}

#[test]
fn ratios_of_modes_are_those_within_the_rounds() {
    let plan = modes_plan(&["--only", "nbd-blocking,nbdkit"]).expect("a plan");
    let sample = |server_cpu| Sample { rate: 1e5, mib_rate: 1.0, server_cpu, client_cpu: 1.0 };
    let round = |simple, other| [Some(sample(simple)), Some(sample(other)), None];
    let ran = ModesRecord {
        server: "nbd-blocking".into(),
        state: State::Ran,
        // The machine was slower in the second round, which is no matter.
        rounds: vec![round(2.0, 2.1), round(20.0, 21.0), round(2.0, 2.2)],
    };
    assert_eq!((ran.ratio(0), ran.ratio(1), ran.ratio(2)), (Some(1.0), Some(1.05), None));
    let missing = ModesRecord { server: "gone".into(), state: State::Missing, rounds: Vec::new() };
    let records = [ran, missing];
    let text = modes::text(&plan, &records);
    assert!(text.contains("1.050") && text.contains("missing"), "{text}");
    let json = modes::json(&plan, &records);
    assert_eq!(json["servers"][0]["modes"][1]["ratio_to_simple"], 1.05);
    assert_eq!(json["servers"][1]["missing"], true);
}

#[test]
fn modes_of_a_server_that_is_not_there_are_missing() -> io::Result<()> {
    let mut plan = modes_plan(&["--only", "nbd-blocking"]).expect("a plan");
    plan.servers[0].program = "/nonexistent/nbd".into();
    let records = modes::run(&plan, &AtomicBool::new(false))?;
    assert_eq!(records[0].state, State::Missing);
    Ok(())
}
