//! The generator against the yardstick, and all that needs neither a peer nor time.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use crate::args::{Cli, Command, LoadArgs, parse_size};
use crate::compare::{Plan, Record, Sample, State, compare};
use crate::load::{Connection, Direction, Load, Order};
use crate::pattern::{Pattern, Random};
use crate::servers::{Server, Storage, YARDSTICK, catalogue};
use crate::wire::{OPT_GO, OPTION_MAGIC, REP_ERR_UNSUP, SimpleReply};
use crate::workload::WORKLOADS;
use crate::yardstick::{Tuning, Yardstick};
use crate::{handshake, report, stats};

const SIZE: usize = 1024 * 1024;

/// Runs `client` on a new connection to `yardstick`.
fn with_connection<T>(yardstick: &Yardstick, client: impl FnOnce(&mut Connection) -> T) -> T {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    thread::scope(|scope| {
        let server = scope.spawn(move || yardstick.serve_connection(&theirs));
        let mut connection = Connection::negotiate(ours, "any").expect("a handshake");
        let result = client(&mut connection);
        connection.disconnect().expect("a soft disconnect");
        server.join().expect("no panic").expect("no error of the server");
        result
    })
}

fn load(direction: Direction, order: Order, block: u32, depth: usize) -> Load {
    let verify = Some(Pattern::new(7));
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
        let mut connection = Connection::negotiate(ours, "").expect("a handshake");
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
        for option in [8, OPT_GO] {
            ours.write_all(&OPTION_MAGIC.to_be_bytes()).expect("magic");
            ours.write_all(&u32::to_be_bytes(option)).expect("option");
            ours.write_all(&0u32.to_be_bytes()).expect("length");
        }
        let mut reply = [0; 20];
        ours.read_exact(&mut reply).expect("an option reply");
        assert_eq!(reply[12..16], REP_ERR_UNSUP.to_be_bytes());
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
    let extra = |text| Server::parse_extra(text).expect("an extra server");
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
}
