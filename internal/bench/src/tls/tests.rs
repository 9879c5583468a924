//! What needs neither a peer nor time.

use std::path::Path;

use clap::Parser;

use super::{Lane, Round, Standing, TlsPlan, json, text};
use crate::args::{Cli, Command};
use crate::compare::{Sample, State};
use crate::servers::{NBDKIT_FILE, QEMU_NBD_FILE};

fn plan(arguments: &[&str]) -> Result<TlsPlan, String> {
    let arguments = ["nbd-bench", "tls"].iter().chain(arguments);
    let cli = Cli::try_parse_from(arguments).expect("a command line");
    let Command::Tls(args) = cli.command else { panic!("it is tls") };
    args.plan(Path::new("/nowhere/nbd-bench"))
}

#[test]
fn every_server_with_tls_is_told_its_certificates() {
    let plan = plan(&[]).expect("a plan");
    assert!(plan.servers.iter().any(|server| server.name == NBDKIT_FILE));
    assert!(plan.servers.iter().any(|server| server.name == QEMU_NBD_FILE));
    assert!(plan.servers.iter().any(|server| server.name == "nbd-blocking-file"));
    for server in plan.servers {
        let before = server.args.clone();
        let args = server.with_tls(Path::new("/pki")).expect("it has TLS").args;
        assert!(args.iter().any(|arg| arg.contains("/pki")), "{args:?}");
        assert!(before.iter().all(|arg| args.contains(arg)), "{args:?}");
    }
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let error = plan(&["--only", "yardstick"]).expect_err("it has no TLS");
    assert!(error.contains("nbdkit-file"), "{error}");
    let error = plan(&["--workload", "none"]).expect_err("there is no such workload");
    assert!(error.contains("read-1m-qd4"), "{error}");
}

/// The last server is twice as fast as the others, and takes three times as much as the cipher.
fn standing(plan: &TlsPlan) -> Standing {
    let sample = |rate| Sample { rate, mib_rate: rate, server_cpu: 300.0, client_cpu: 1.0 };
    let samples = [10.0, 10.0, 20.0].map(|rate| Some(sample(rate))).to_vec();
    let round = Round { samples, in_memory: 100.0, by_socket: 200.0, by_socket_and_file: 150.0 };
    let lanes =
        plan.servers.iter().map(|server| Lane { server: server.clone(), state: State::Ran });
    Standing { lanes: lanes.collect(), rounds: vec![vec![round; 3]] }
}

#[test]
fn ratios_are_those_of_the_rounds() {
    let only = "nbdkit-file,qemu-nbd-file,nbd-tokio-file";
    let plan = plan(&["--only", only, "--workload", "read-1m-qd4"]).expect("a plan");
    let mut standing = standing(&plan);
    assert_eq!(standing.ratio(0, 2, NBDKIT_FILE), Some(2.0));
    assert_eq!(standing.ratio(0, 2, "absent"), None);
    assert_eq!(standing.floor_ratio(0, 2, 1 << 20, |round| round.in_memory), Some(3.0));
    assert_eq!(standing.floor_ratio(0, 2, 1 << 19, |round| round.by_socket), Some(3.0));
    assert_eq!(standing.floor_ratio(0, 2, 1 << 20, |round| round.by_socket_and_file), Some(2.0));
    let report = text(&plan, &standing);
    assert!(report.contains("nbd-tokio-file") && report.contains("3.00"), "{report}");
    assert_eq!(json(&plan, &standing)["workloads"][0]["servers"][2]["ratio_to_qemu_nbd"], 2.0);
    assert!(standing.is_complete());
    standing.lanes[0].state = State::Failed("why".into());
    assert!(!standing.is_complete());
    assert!(text(&plan, &standing).contains("FAILED: why"));
}
