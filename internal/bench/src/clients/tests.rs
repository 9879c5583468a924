//! The clients at work on a small scale, and what is said of them.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use nbd_blocking::Server;
use nbd_blocking::export::{ExportMap, Memory};
use tempfile::TempDir;

use super::run::Standing;
use super::{Cell, Client, ClientPlan, DriveArgs, Figures, LIBNBD, Measured, Ours};
use super::{catalogue, drive, json, libnbd, run, text};
use crate::args::{Cli, Command};
use crate::compare::State;
use crate::process;

/// A server of 1 MiB in a private folder, for as long as `client` works.
fn with_server<T>(client: impl FnOnce(&Path) -> T) -> T {
    let folder = TempDir::new().expect("a folder");
    let socket = folder.path().join("socket");
    let server =
        Server::new(ExportMap::new().with("", Memory::new(1 << 20).expect("a disk")).unwrap());
    let listening = server.listen_unix(&socket).expect("a socket");
    let result = client(&socket);
    server.shut_down();
    drop(listening);
    result
}

fn parse(args: &[&str]) -> Option<Command> {
    let line = ["nbd-bench"].iter().chain(args);
    Cli::try_parse_from(line).ok().map(|cli| cli.command)
}

fn plan(args: &[&str]) -> Result<ClientPlan, String> {
    match parse(&[&["client"], args].concat()) {
        Some(Command::Client(args)) => args.plan(Path::new("/bin/nbd-bench")),
        other => Err(format!("{other:?}")),
    }
}

fn drive_args(args: &[&str]) -> Option<DriveArgs> {
    match parse(&[&["drive"], args].concat()) {
        Some(Command::Drive(args)) => Some(args),
        _ => None,
    }
}

#[test]
fn each_of_our_clients_does_what_the_plan_says() {
    with_server(|socket| {
        let socket = socket.to_str().expect("a path of text");
        for client in Ours::value_variants() {
            for (op, block, depth) in [("write", "4k", "32"), ("read", "256k", "4")] {
                let args = [client.name(), "--socket", socket, "--op", op, "--block", block];
                let more = ["--depth", depth, "--requests", "100"];
                let args = drive_args(&[&args[..], &more].concat()).expect("arguments");
                let measured = drive(&args).expect("a run");
                assert_eq!(measured.requests, 100, "{client:?}");
            }
        }
    });
}

#[test]
fn a_client_without_a_server_or_with_a_small_one_fails() {
    let args = drive_args(&["nbd-tokio", "--socket", "/nonexistent"]).expect("arguments");
    drive(&args).expect_err("nobody there");
    with_server(|socket| {
        let socket = socket.to_str().expect("a path of text");
        let args = ["nbd-blocking", "--socket", socket, "--block", "2M"];
        drive(&drive_args(&args).expect("arguments")).expect_err("a block of twice the export");
    });
}

#[test]
fn the_loop_on_libnbd_is_built_and_tells_what_it_did() {
    let folder = TempDir::new().expect("a folder");
    let program = match libnbd::build(folder.path()) {
        Ok(program) => program,
        Err(why) => {
            assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{why}");
            eprintln!("skipped: {why}");
            return;
        }
    };
    with_server(|socket| {
        let socket_text = socket.to_str().expect("a path of text");
        for op in ["write", "read"] {
            let args = ["nbd-tokio", "--socket", socket_text, "--op", op, "--requests", "100"];
            let load = drive_args(&args).expect("arguments").load();
            let mut command = libnbd::command(&program, socket, "", &load);
            let finished = process::run(&mut command, Duration::from_secs(30)).expect("a run");
            assert!(finished.status.success(), "{}", finished.complaint());
            let measured = Measured::parse(&finished.output).expect("a report");
            assert_eq!(measured.requests, 100);
        }
    });
}

#[test]
fn reports_of_clients_are_read_as_they_are_written() {
    let measured = Measured {
        requests: 7,
        elapsed: Duration::from_millis(1500),
        cpu: Duration::from_micros(250),
    };
    assert_eq!(Measured::parse(&measured.to_json().to_string()), Some(measured));
    for wrong in ["", "{}", r#"{"requests": 1, "seconds": -1, "cpu_seconds": 0}"#] {
        assert_eq!(Measured::parse(wrong), None, "{wrong:?}");
    }
}

#[test]
fn clients_and_servers_are_chosen_by_name() {
    let all = plan(&[]).expect("a plan");
    assert_eq!(all.clients, catalogue());
    let names: Vec<&str> = all.servers.iter().map(|server| server.name.as_str()).collect();
    assert_eq!(names, ["nbdkit", "nbd-blocking"]);
    let chosen = plan(&["--only", "libnbd,nbd-tokio", "--server", "yardstick"]).expect("a plan");
    assert_eq!(chosen.clients, [Client::Libnbd, Client::Ours(Ours::NbdTokio)]);
    assert_eq!(chosen.servers.len(), 1);
    plan(&["--only", "nbd"]).expect_err("no such client");
    plan(&["--server", "nbdkit-file"]).expect_err("files are not measured");
}

fn standing(plan: &ClientPlan, states: &[State]) -> Standing {
    let figures = |rate: f64| Figures { rate, client_cpu: 100.0 / rate, server_cpu: 1.0 };
    let cell = |at: usize| {
        // A neighbour took half of the machine in the second round.
        let rate = 10.0 * (at + 1) as f64;
        Cell { rounds: vec![Some(figures(rate)), Some(figures(rate / 2.0)), None] }
    };
    let cells = (0..plan.clients.len()).map(|at| match states[at] {
        State::Ran => cell(at),
        State::Missing | State::Failed(_) => Cell::default(),
    });
    let row = vec![cells.collect(); plan.workloads.len()];
    Standing {
        clients: states.iter().map(|state| (state.clone(), "1.0".into())).collect(),
        servers: vec![State::Ran; plan.servers.len()],
        remedies: Vec::new(),
        cells: vec![row; plan.servers.len()],
    }
}

#[test]
fn ratios_are_to_libnbd_round_by_round() {
    let args = ["--only", "libnbd,fio-libnbd,nbd-blocking", "--workload", "read-4k-qd32"];
    let plan = plan(&args).expect("a plan");
    let standing = standing(&plan, &[State::Ran, State::Ran, State::Ran]);
    assert!(standing.is_complete());
    let json = json(&plan, &standing);
    assert_eq!(json["baseline"], LIBNBD);
    let ours = &json["measured"][0]["clients"][2];
    assert_eq!(ours["rate_to_baseline"], 3.0);
    assert!(ours["client_cpu_to_baseline"].as_f64().is_some_and(|ratio| ratio < 0.34));
    let text = text(&plan, &standing);
    let line = text.lines().rfind(|line| line.starts_with("nbd-blocking")).expect("a line");
    assert!(line.contains("3.00"), "{text}");
}

#[test]
fn without_our_loop_the_baseline_is_fio_and_not_all_was_measured() {
    let args = ["--only", "libnbd,fio-libnbd,nbd-blocking", "--workload", "read-4k-qd32"];
    let plan = plan(&args).expect("a plan");
    let standing = standing(&plan, &[State::Missing, State::Ran, State::Ran]);
    assert!(!standing.is_complete());
    assert_eq!(json(&plan, &standing)["baseline"], "fio-libnbd");
    let text = text(&plan, &standing);
    assert!(text.contains("Ratios are to fio-libnbd") && text.contains("MISSING"), "{text}");
}

#[test]
fn a_server_that_is_not_there_is_said_to_be_missing() {
    let args = ["--only", "nbd-blocking", "--server", "nbd-tokio", "--rounds", "2"];
    let mut plan = plan(&args).expect("a plan");
    plan.servers[0].program = "/nonexistent/nbd".into();
    let standing = run(&plan, &AtomicBool::new(false)).expect("a run");
    assert!(!standing.is_complete());
    assert_eq!(standing.servers, [State::Missing]);
    assert!(text(&plan, &standing).contains("server nbd-tokio is MISSING"));
}
