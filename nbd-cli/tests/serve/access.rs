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

/// The rules of a file are those of the command line, and the clients that come after a reload meet the new ones.
#[test]
fn a_file_says_who_may_connect_and_says_it_again() {
    for runtime in RUNTIMES {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("nbd.toml");
        let write = |rules: &str| {
            let text = format!(
                "[server]\nruntime = '{runtime}'\n[[listen]]\ntcp = '127.0.0.1:0'\n{rules}[[export]]\nmemory = '1M'\n"
            );
            // In one step, as the server may read at any time.
            std::fs::write(folder.path().join("new"), text).unwrap();
            std::fs::rename(folder.path().join("new"), &file).unwrap();
        };
        write("[access]\nallow = ['127.0.0.0/8']\n");
        let mut command = Command::new("setsid");
        command.arg(env!("CARGO_BIN_EXE_nbd")).args(["serve", "-v", "--config"]).arg(&file);
        let server = Serving::spawn(&mut command);
        let endpoint = server.endpoint();
        let reload = |says: &str| {
            let before = server.process.stderr().matches(says).count();
            server.process.hang_up();
            wait_until(says, LIMIT, || server.process.stderr().matches(says).count() > before);
        };
        let mut stays = RawClient::go_simple(&endpoint);
        write("[access]\nallow = ['127.0.0.0/8']\ndeny = ['127.0.0.1']\n");
        reload("read the configuration again");
        assert!(!is_served(&endpoint), "{runtime}");
        assert_eq!(stays.read(0, 512), [0; 512]);
        // A rule that can't be leaves those that are in force.
        write("[access]\nallow-user = ['no such user']\n");
        reload("stay in force");
        let says = "nbd.toml:6:15: allow-user 'no such user': there is no such name in /etc/passwd";
        assert!(server.process.stderr().contains(says), "{}", server.process.stderr());
        assert!(!is_served(&endpoint));
        write("[access]\nallow-user = ['root', '4000000000']\nallow-group = ['0']\n");
        reload("read the configuration again");
        assert!(is_served(&endpoint));
        stays.finish();
        server.process.terminate();
        assert_eq!(server.end().0, Some(0));
    }
}

#[test]
fn what_the_options_say_is_printed_as_a_file_that_says_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nbd.toml");
    let options = ["--allow", "10.0.0.0/8", "--allow", "::1", "--deny", "10.9.0.0/16"];
    let users = ["--allow-user", "root", "--allow-group", "0", "memory:1M", "--print-config"];
    let printed = run(&mut serve(options.iter().chain(&users)), LIMIT).success();
    let table = "[access]\nallow = [\"10.0.0.0/8\", \"::1/128\"]\ndeny = [\"10.9.0.0/16\"]\n\
                 allow-user = [\"root\"]\nallow-group = [\"0\"]\n";
    let squeezed = |text: &str| text.replace(['\n', ' ', ','], "");
    assert!(squeezed(&printed).contains(&squeezed(table)), "{printed}");
    std::fs::write(&file, &printed).unwrap();
    let words = ["--print-config", "--config", file.to_str().unwrap()];
    assert_eq!(run(&mut serve(words), LIMIT).success(), printed);
    let words = ["--config", file.to_str().unwrap(), "--deny", "10.0.0.1"];
    refuses(&mut serve(words), 64, &["cannot be used with"]);
}
