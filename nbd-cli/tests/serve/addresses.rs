//! Where it listens, and what it says of that.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nbd_testkit::Endpoint;
use nbd_testkit::process::{Background, run};
use nbd_testkit::raw::RawClient;

use super::exports::without_privileges;
use super::{LIMIT, RUNTIMES, Serving, refuses, serve};

fn socket_argument(path: &Path) -> [&str; 2] {
    ["--unix", path.to_str().expect("folders for tests have plain names")]
}

#[test]
fn without_arguments_the_loopback_address_and_the_registered_port_are_announced() {
    // The port is the machine's, not the test's.
    if let Err(error) = TcpListener::bind("127.0.0.1:10809") {
        eprintln!("skipped: port 10809 is not free ({error})");
        return;
    }
    let process = Background::spawn(&mut serve::<&str>([])).unwrap();
    let Some(uri) = process.next_line(LIMIT) else {
        assert!(process.stderr().contains("in use"), "{}", process.stderr());
        eprintln!("skipped: port 10809 was taken meanwhile");
        return;
    };
    assert_eq!(uri, "nbd://127.0.0.1:10809/");
    let client = RawClient::go_simple(&Endpoint::parse(&uri).unwrap());
    assert_eq!(client.export().size, 1 << 30);
    client.finish();
    Serving { process, uri }.stop();
}

#[test]
fn port_0_takes_a_free_port_and_says_which() {
    for runtime in RUNTIMES {
        let server = Serving::start(["--runtime", runtime, "--port", "0", "memory:1M"]);
        let Endpoint::Tcp(address) = server.endpoint() else { panic!("{:?}", server.uri) };
        assert!(address.ip().is_loopback() && address.port() != 0, "{address}");
        assert_eq!(server.uri, format!("nbd://127.0.0.1:{}/", address.port()));
        RawClient::go_simple(&server.endpoint()).finish();
        server.stop();
    }
}

#[test]
fn an_ipv6_address_is_announced_in_brackets() {
    if let Err(error) = TcpListener::bind("[::1]:0") {
        eprintln!("skipped: there is no IPv6 here ({error})");
        return;
    }
    for runtime in RUNTIMES {
        let arguments = ["--runtime", runtime, "--ip-addr", "::1", "--port", "0", "memory:1M"];
        let server = Serving::start(arguments);
        assert!(server.uri.starts_with("nbd://[::1]:"), "{}", server.uri);
        RawClient::go_simple(&server.endpoint()).finish();
        server.stop();
    }
}

#[test]
fn the_path_of_a_unix_socket_is_escaped_in_its_uri() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a disk#1?&50%.sock");
    for runtime in RUNTIMES {
        let server = Serving::start(
            ["--runtime", runtime, "memory:1M"].into_iter().chain(socket_argument(&path)),
        );
        let folder = folder.path().display();
        let escaped = format!("nbd+unix:///?socket={folder}/a%20disk%231%3F%2650%25.sock");
        assert_eq!(server.uri, escaped);
        assert_eq!(server.endpoint(), Endpoint::Unix(path.clone()));
        RawClient::go_simple(&server.endpoint()).finish();
        server.stop();
    }
}

#[test]
fn every_address_is_announced_on_a_line_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    for runtime in RUNTIMES {
        let addresses = ["--port", "0", "--ip-addr", "127.0.0.1", "--ip-addr", "127.0.0.2"];
        let server = Serving::start(
            ["--runtime", runtime, "memory:1M"]
                .into_iter()
                .chain(addresses)
                .chain(socket_argument(&path)),
        );
        let mut uris = vec![server.uri.clone()];
        uris.extend((0..2).map_while(|_| server.process.next_line(LIMIT)));
        assert!(uris[0].starts_with("nbd://127.0.0.1:"), "{uris:?}");
        assert!(uris[1].starts_with("nbd://127.0.0.2:"), "{uris:?}");
        assert!(uris[2].starts_with("nbd+unix:///?socket=/"), "{uris:?}");
        for uri in &uris {
            RawClient::go_simple(&Endpoint::parse(uri).unwrap()).finish();
        }
        server.stop();
    }
}

#[test]
fn a_port_in_use_is_named_with_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for runtime in RUNTIMES {
        let mut command =
            serve(["--runtime", runtime, "--port", &address.port().to_string(), "memory:1M"]);
        refuses(&mut command, 1, &[&address.to_string(), "in use", "--port 0"]);
    }
}

#[test]
fn an_address_of_another_machine_is_named_with_a_remedy() {
    for runtime in RUNTIMES {
        let mut command =
            serve(["--runtime", runtime, "--port", "0", "--ip-addr", "192.0.2.1", "memory:1M"]);
        refuses(&mut command, 1, &["192.0.2.1:0", "address of this machine"]);
    }
}

#[test]
fn a_live_servers_socket_is_left_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    for runtime in RUNTIMES {
        let arguments = || ["--runtime", runtime, "memory:1M"].into_iter();
        let live = Serving::start(arguments().chain(socket_argument(&path)));
        let mut second = serve(arguments().chain(socket_argument(&path)));
        let named = path.display().to_string();
        refuses(&mut second, 1, &[&named, "another server", "choose another path"]);
        RawClient::go_simple(&live.endpoint()).finish();
        live.stop();
    }
}

#[test]
fn a_dead_servers_socket_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    for runtime in RUNTIMES {
        let mut dead = Serving::start(
            ["--runtime", runtime, "memory:1M"].into_iter().chain(socket_argument(&path)),
        );
        dead.process.kill();
        dead.process.wait_exit(LIMIT).expect("nothing outlives SIGKILL");
        assert!(path.symlink_metadata().unwrap().file_type().is_socket());
        let server = Serving::start(
            ["--runtime", runtime, "memory:1M"].into_iter().chain(socket_argument(&path)),
        );
        RawClient::go_simple(&server.endpoint()).finish();
        server.stop();
        assert!(!path.exists(), "the socket is removed at the end");
    }
}

/// Several servers on a stale socket at once.
#[test]
fn of_servers_that_start_on_one_stale_socket_one_wins() {
    const SERVERS: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    for round in 0..30 {
        drop(UnixListener::bind(&path).unwrap());
        let runtime = RUNTIMES[round % RUNTIMES.len()];
        let mut started: Vec<Background> = (0..SERVERS)
            .map(|_| {
                let arguments = ["--runtime", runtime, "memory:1M"].into_iter();
                Background::spawn(&mut serve(arguments.chain(socket_argument(&path)))).unwrap()
            })
            .collect();
        let lines: Vec<_> = started.iter().map(|process| process.next_line(LIMIT)).collect();
        assert_eq!(lines.iter().flatten().count(), 1, "{round}: {lines:?}");
        for (process, line) in started.iter_mut().zip(&lines) {
            match line {
                Some(uri) => RawClient::go_simple(&Endpoint::parse(uri).unwrap()).finish(),
                None => {
                    let status = process.wait_exit(LIMIT).expect("it could not start");
                    assert_eq!(status.code(), Some(1));
                    let said = process.stderr();
                    assert!(said.contains("another server listens there"), "{said}");
                }
            }
        }
        for (mut process, _) in started.into_iter().zip(lines).filter(|(_, line)| line.is_some()) {
            process.terminate();
            assert!(process.wait_exit(LIMIT).is_some_and(|status| status.success()));
            assert!(!path.exists(), "the winner removes its socket");
        }
    }
}

#[test]
fn a_control_socket_whose_path_is_too_long_is_refused() {
    let path = format!("/tmp/{}", "x".repeat(150));
    for words in
        [&["bitmap", &path, "list"][..], &["serve", "--port", "0", "--control", &path, "memory:1M"]]
    {
        let finished =
            run(std::process::Command::new(env!("CARGO_BIN_EXE_nbd")).args(words), LIMIT);
        assert_eq!(finished.status.code(), Some(1), "{words:?}");
        let says = "at most 107 bytes, and this one has 155; choose a shorter one";
        assert!(finished.stderr.contains(says), "{words:?}: {}", finished.stderr);
    }
}

/// Starts a server on addresses, which share a free port, and gives what it prints.
fn on_a_free_port(addresses: &[&str]) -> (Serving, Vec<String>) {
    let mut arguments = vec!["--port", "0", "memory:1M"];
    arguments.extend(addresses.iter().flat_map(|address| ["--ip-addr", address]));
    let server = Serving::start(arguments);
    let mut uris = vec![server.uri.clone()];
    uris.extend((1..addresses.len()).map_while(|_| server.process.next_line(LIMIT)));
    (server, uris)
}

#[test]
fn both_wildcard_addresses_are_served() {
    if let Err(error) = TcpListener::bind("[::1]:0") {
        eprintln!("skipped: there is no IPv6 here ({error})");
        return;
    }
    for addresses in [["0.0.0.0", "::"], ["::", "0.0.0.0"], ["::", "127.0.0.1"]] {
        let (server, uris) = on_a_free_port(&addresses);
        assert_eq!(uris.len(), 2, "{uris:?}");
        for uri in &uris {
            RawClient::go_simple(&Endpoint::parse(uri).unwrap()).finish();
            let mut info = std::process::Command::new(env!("CARGO_BIN_EXE_nbd"));
            assert_eq!(run(info.args(["info", "--size", uri]), LIMIT).success(), "1048576\n");
        }
        let port = |uri: &String| uri.rsplit_once(':').map(|(_, port)| port.to_owned());
        assert_eq!(port(&uris[0]), port(&uris[1]), "{uris:?}");
        server.stop_after_warning();
    }
}

#[test]
fn an_address_that_is_given_twice_is_served_once() {
    let (server, uris) = on_a_free_port(&["127.0.0.1", "127.0.0.2"]);
    assert_eq!(uris.len(), 2);
    server.stop();
    for addresses in [&["127.0.0.1", "127.0.0.1"][..], &["127.0.0.1", "0.0.0.0", "127.0.0.2"]] {
        let mut arguments = vec!["--port", "0", "memory:1M"];
        arguments.extend(addresses.iter().flat_map(|address| ["--ip-addr", address]));
        let server = Serving::start(arguments);
        // Both expect that nothing more is printed.
        if addresses.contains(&"0.0.0.0") { server.stop_after_warning() } else { server.stop() }
    }
}

#[test]
fn a_socket_path_that_is_not_utf8_is_served_and_its_uri_is_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(OsStr::from_bytes(b"caf\xe9.sock"));
    let server = Serving::start([OsStr::new("-U"), path.as_os_str(), OsStr::new("memory:1M")]);
    assert!(server.uri.ends_with("/caf%E9.sock"), "{}", server.uri);
    let mut info = std::process::Command::new(env!("CARGO_BIN_EXE_nbd"));
    assert_eq!(run(info.args(["info", "--size", &server.uri]), LIMIT).success(), "1048576\n");
    server.stop();
}

#[test]
fn a_socket_that_took_the_place_of_the_servers_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    for runtime in RUNTIMES {
        let server = Serving::start(
            ["--runtime", runtime, "memory:1M"].into_iter().chain(socket_argument(&path)),
        );
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        server.stop();
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_file_in_the_way_of_a_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "content").unwrap();
    for runtime in RUNTIMES {
        let mut command =
            serve(["--runtime", runtime, "memory:1M"].into_iter().chain(socket_argument(&path)));
        let named = path.display().to_string();
        refuses(&mut command, 1, &[&named, "not a socket", "choose another path"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
    }
}

#[test]
fn a_socket_in_a_folder_that_is_missing_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing/nbd.sock");
    for runtime in RUNTIMES {
        let mut command =
            serve(["--runtime", runtime, "memory:1M"].into_iter().chain(socket_argument(&path)));
        let remedy = format!("mkdir -p {}/missing", folder.path().display());
        refuses(&mut command, 1, &[&path.display().to_string(), &remedy]);
    }
}

#[test]
fn a_socket_path_that_is_too_long_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x".repeat(150));
    for runtime in RUNTIMES {
        let mut command =
            serve(["--runtime", runtime, "memory:1M"].into_iter().chain(socket_argument(&path)));
        let length = path.as_os_str().len();
        let length = format!("at most 107 bytes, and this one has {length}; choose a shorter one");
        refuses(&mut command, 1, &[&path.display().to_string(), "cannot listen", &length]);
    }
}

#[test]
fn the_longest_path_of_a_socket_that_there_can_be_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let room = 107 - folder.path().as_os_str().len() - 1;
    let path = folder.path().join("x".repeat(room));
    let server = Serving::start(["memory:1M"].into_iter().chain(socket_argument(&path)));
    RawClient::go_simple(&server.endpoint()).finish();
    server.stop();
}

#[test]
fn a_socket_in_a_file_or_in_a_folder_of_others_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let path = folder.path().join("file/nbd.sock");
    let mut command = serve(["memory:1M"].into_iter().chain(socket_argument(&path)));
    let named = path.display().to_string();
    refuses(&mut command, 1, &[&named, "file is no folder: choose a path in one"]);

    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o555)).unwrap();
    let path = folder.path().join("nbd.sock");
    let command = serve(["memory:1M"].into_iter().chain(socket_argument(&path)));
    let Some(mut command) = without_privileges(command) else { return };
    let remedy = format!("may write to, other than {}", folder.path().display());
    refuses(&mut command, 1, &[&path.display().to_string(), &remedy]);
}

#[test]
fn a_name_stands_for_its_addresses() {
    for runtime in RUNTIMES {
        let arguments = ["--runtime", runtime, "--ip-addr", "localhost", "--port", "0"];
        let server = Serving::start(arguments.into_iter().chain(["memory:1M"]));
        let Endpoint::Tcp(address) = server.endpoint() else { panic!("{:?}", server.uri) };
        assert!(address.ip().is_loopback(), "{address}");
        RawClient::go_simple(&server.endpoint()).finish();
        server.process.terminate();
        assert_eq!(server.end(), (Some(0), String::new()));
    }
}

#[test]
fn a_name_of_nothing_is_named_with_a_remedy() {
    for name in ["", "no name"] {
        let says = [&format!("the address of '{name}'"), "IPv4 or IPv6 address"];
        refuses(&mut serve(["--port", "0", "--ip-addr", name, "memory:1M"]), 1, &says);
    }
}

#[test]
fn several_exports_share_the_line_of_an_address() {
    for runtime in RUNTIMES {
        let arguments = ["--runtime", runtime, "--port", "0", "a=memory:1M", "b=memory:2M"];
        let server = Serving::start(arguments);
        assert!(server.uri.ends_with('/'), "{}", server.uri);
        server.stop();
    }
}

#[test]
fn nothing_is_left_of_a_start_that_fails_half_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for runtime in RUNTIMES {
        let mut command = serve(
            ["--runtime", runtime, "--port", &port, "memory:1M"]
                .into_iter()
                .chain(socket_argument(&path)),
        );
        refuses(&mut command, 1, &["in use"]);
        assert!(!path.exists());
    }
}

#[test]
fn standard_output_that_takes_nothing_is_an_error() {
    if !Path::new("/dev/full").exists() {
        eprintln!("skipped: there is no /dev/full");
        return;
    }
    for runtime in RUNTIMES {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "exec \"$@\" > /dev/full", "sh", env!("CARGO_BIN_EXE_nbd"), "serve"]);
        shell.args(["--runtime", runtime, "--port", "0", "memory:1M"]);
        let finished = run(&mut shell, LIMIT);
        assert_eq!(finished.status.code(), Some(1));
        assert!(finished.stderr.contains("standard output"), "{}", finished.stderr);
    }
}
