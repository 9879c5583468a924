//! `--allow`, `--deny`, `--allow-user` and `--allow-group`: who may connect.

use std::process::Command;

use nbd_testkit::Endpoint;
use nbd_testkit::process::{run, wait_until};
use nbd_testkit::raw::{RawClient, Wire};

use super::{LIMIT, RUNTIMES, Serving, refuses, serve};

/// Whether a client gets an answer rather than the end of the stream.
#[track_caller]
fn is_served(endpoint: &Endpoint) -> bool {
    let mut wire = Wire::connect(endpoint);
    // The one that is refused may have its connection reset.
    wire.recv_or_gone(8, "the greeting").is_some()
}

#[test]
fn clients_of_other_networks_are_refused_before_the_first_byte() {
    for runtime in RUNTIMES {
        for (rules, served) in [
            (&[][..], true),
            (&["--allow", "127.0.0.0/8"], true),
            (&["--allow", "::1", "--allow", "127.0.0.1"], true),
            (&["--deny", "10.0.0.0/8"], true),
            (&["--allow", "10.0.0.0/8"], false),
            (&["--deny", "127.0.0.1"], false),
            (&["--allow", "127.0.0.0/8", "--deny", "127.0.0.0/31"], false),
        ] {
            let arguments = ["-v", "--runtime", runtime, "--port", "0"];
            let server = Serving::start(arguments.iter().chain(rules).chain(&["memory:1M"]));
            assert_eq!(is_served(&server.endpoint()), served, "{runtime} {rules:?}");
            if served {
                RawClient::go_simple(&server.endpoint()).finish();
            } else {
                let says = "its peer may not connect";
                wait_until("it is logged", LIMIT, || server.process.stderr().contains(says));
            }
        }
    }
}

#[test]
fn refused_clients_are_logged_as_a_count_and_take_no_connection() {
    let arguments = ["--port", "0", "--max-connections", "1", "--deny", "127.0.0.1", "memory:1M"];
    let server = Serving::start(arguments);
    for _ in 0..200 {
        assert!(!is_served(&server.endpoint()));
    }
    server.process.terminate();
    let (code, said) = server.end();
    assert_eq!(code, Some(0));
    assert!(said.lines().count() < 20, "{said}");
    assert!(said.contains("their peers may not connect"), "{said}");
}

#[test]
fn clients_of_a_unix_socket_are_known_by_user_and_group() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nbd.sock");
    let path = socket.display().to_string();
    let id = |option: &str| {
        let text = run(Command::new("id").arg(option), LIMIT).success();
        text.trim().to_owned()
    };
    let (uid, gid, user) = (id("-u"), id("-g"), id("-un"));
    for runtime in RUNTIMES {
        for (rules, served) in [
            (&["--allow-user", &*uid][..], true),
            (&["--allow-user", &user], true),
            (&["--allow-group", &gid], true),
            (&["--allow-user", "4000000000", "--allow-group", &gid], true),
            (&["--allow-user", "4000000000"], false),
            (&["--allow-group", "4000000000"], false),
            (&["--deny", "0.0.0.0/0"], true),
        ] {
            let arguments = ["--runtime", runtime, "-U", &path];
            let server = Serving::start(arguments.iter().chain(rules).chain(&["memory:1M"]));
            assert_eq!(is_served(&server.endpoint()), served, "{runtime} {rules:?}");
            server.process.terminate();
            assert_eq!(server.end().0, Some(0));
        }
    }
}

#[test]
fn rules_that_make_no_sense_are_usage_errors() {
    for (rule, says) in [
        (["--allow", "10.1.2.3/8"], "give 10.0.0.0/8 for the network"),
        (["--deny", "10.0.0.0/33"], "from 0 to 32"),
        (["--allow", "localhost"], "give an IP address"),
        (["--allow-user", "no such user"], "there is no such name in /etc/passwd"),
        (["--allow-group", ""], "there is no such name in /etc/group"),
    ] {
        let mut command = serve(rule);
        refuses(command.args(["--port", "0", "memory:1M"]), 64, &[says]);
    }
}
