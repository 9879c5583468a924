//! `nbd resize`, on `nbd serve --resize`.

use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers::{self, PeerServer};
use nbd_testkit::process::{Finished, run};
use nbd_testkit::raw::{Cmd, Errno, RawClient, Request};
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport, nbd_binary};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const SETUP: Setup = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };

nbd_testkit::matrix! {
    tcp_and_unix: [disks_grow_and_shrink],
    unix: [
        other_connections_see_the_new_size,
        sizes_out_of_range_change_nothing,
        blocks_stay_whole,
        files_are_resized_too,
    ],
}

#[track_caller]
fn nbd(args: &[&str]) -> Finished {
    run(Command::new(nbd_binary()).args(args), LIMIT)
}

/// What a successful resize prints.
#[track_caller]
fn resize(server: &NbdServe, size: &str) -> String {
    nbd(&["resize", "--yes", &server.uri(""), size]).success()
}

/// A resize that fails with that exit code; gives what it says.
#[track_caller]
fn refused(args: &[&str], code: i32) -> String {
    let finished = nbd(&[&["resize"], args].concat());
    assert_eq!(finished.status.code(), Some(code), "{args:?}: {}", finished.stderr);
    assert_eq!(finished.stdout, "");
    finished.stderr
}

/// The size that another client sees.
#[track_caller]
fn size(uri: &str) -> String {
    nbd(&["info", "--size", uri]).success()
}

#[track_caller]
fn serving(setup: Setup, args: &[&str]) -> NbdServe {
    setup.serve().arg("--resize").args(args.iter().copied()).start()
}

fn disks_grow_and_shrink(setup: Setup) {
    let server = serving(setup, &["memory:1M"]);
    for (asked, bytes) in [
        ("4M", 4 * MIB),
        ("+1M", 5 * MIB),
        ("-4608k", MIB / 2),
        ("1", 1),
        ("0", 0),
        ("+1T", 1 << 40),
        ("9223372036854775807", i64::MAX as u64),
    ] {
        let line = format!("{bytes}\n");
        assert_eq!(resize(&server, asked), line, "{asked}");
        assert_eq!(size(&server.uri("")), line, "{asked}");
    }
}

fn other_connections_see_the_new_size(setup: Setup) {
    let server = serving(setup, &["memory:1M"]);
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(0, &[7; 4096]);
    resize(&server, "2M");
    client.write(2 * MIB - 1, b"x");
    assert_eq!(client.read(2 * MIB - 2, 2), b"\0x");
    resize(&server, "4k");
    client.call(&Request::read(4096, 1)).expect_error(Errno::EINVAL);
    assert_eq!(client.read(0, 4096), [7; 4096]);
    client.finish();
}

fn sizes_out_of_range_change_nothing(setup: Setup) {
    let server = serving(setup, &["memory:1M"]);
    let uri = server.uri("");
    for size in ["-1048577", "-1T", "+9223372036854775807"] {
        let said = refused(&[&uri, size], 1);
        assert!(said.contains("it has 1048576 bytes") && said.contains("2^63 - 1"), "{said}");
    }
    for (size, says) in [
        ("9223372036854775808", "too large"),
        ("99999999999999999999", "too large"),
        ("big", "is not a size"),
    ] {
        let said = refused(&[&uri, size], 64);
        assert!(said.contains(size) && said.contains(says), "{said}");
    }
    assert_eq!(size(&uri), "1048576\n");
}

fn blocks_stay_whole(setup: Setup) {
    let server = serving(setup, &["--block-size", "4k", "memory:1M"]);
    let said = refused(&[&server.uri(""), "+512"], 1);
    assert!(said.contains("1049088 bytes is no multiple of its block size, 4096"), "{said}");
    assert_eq!(resize(&server, "+4k"), "1052672\n");
}

fn files_are_resized_too(setup: Setup) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB).unwrap();
    let server = serving(setup, &[&file.path().to_string_lossy()]);
    resize(&server, "+5");
    assert_eq!(file.as_file().metadata().unwrap().len(), MIB + 5);
    resize(&server, "100");
    assert_eq!(file.as_file().metadata().unwrap().len(), 100);
    // More than the file system has for a file.
    let said = refused(&[&server.uri(""), "9223372036854775807"], 1);
    assert!(said.contains("RESIZE failed"), "{said}");
    assert_eq!(size(&server.uri("")), "100\n");
}

/// As volumes do: without a terminal nobody can be asked.
#[test]
fn what_would_lose_the_end_is_asked_first() {
    let server = serving(SETUP, &["memory:1M"]);
    let uri = server.uri("");
    for size in ["0", "-1", "1k"] {
        let said = refused(&[&uri, size], 64);
        assert!(said.contains("from 1048576 to ") && said.contains("give --yes"), "{said}");
    }
    assert_eq!(size(&uri), "1048576\n");
    nbd(&["resize", &uri, "1M"]).success();
    nbd(&["resize", &uri, "2M"]).success();
}

#[test]
fn the_export_is_the_one_that_the_uri_names() {
    let server = serving(SETUP, &["a=memory:1M", "b=memory:2M"]);
    nbd(&["resize", &server.uri("b"), "3M"]).success();
    assert_eq!(size(&server.uri("a")), "1048576\n");
    assert_eq!(size(&server.uri("b")), "3145728\n");
}

#[test]
fn a_command_between_brackets_is_started_for_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB).unwrap();
    let (binary, path) = (nbd_binary(), file.path());
    let server = [binary.as_os_str(), "serve".as_ref(), "--resize".as_ref(), path.as_os_str()];
    let mut command = Command::new(nbd_binary());
    command.args(["resize", "--yes", "["]).args(server).args(["]", "-1k"]);
    assert_eq!(run(&mut command, LIMIT).success(), "1047552\n");
    assert_eq!(file.as_file().metadata().unwrap().len(), MIB - 1024);
}

#[test]
fn a_server_that_does_not_offer_resize_is_distinguished_from_one_that_refuses() {
    let server = SETUP.serving("memory:1M");
    let said = refused(&[&server.uri(""), "2M"], 1);
    assert!(said.contains(&server.uri("")) && said.contains("--resize"), "{said}");
    let mut client = RawClient::go_simple(server.endpoint());
    client.call(&Request::new(Cmd::RESIZE, 2 * MIB, 0)).expect_error(Errno::EINVAL);
    client.finish();
    let server = SETUP.serve().args(["--resize", "--read-only", "memory:1M"]).start();
    let said = refused(&[&server.uri(""), "2M"], 1);
    assert!(said.contains("it is read-only"), "{said}");
    if let Some(peer) = peers::require("nbdkit") {
        let server = PeerServer::nbdkit(&peer, &["memory", "1M"]);
        let said = refused(&[&server.endpoint().uri(""), "2M"], 1);
        assert!(said.contains("does not offer it"), "{said}");
    }
}

#[test]
fn words_that_are_missing_or_too_many_are_usage_errors() {
    for words in [&[][..], &["nbd://127.0.0.1"], &["nbd://127.0.0.1", "1", "2"], &["1", "nbd://a"]]
    {
        refused(words, 64);
    }
    for words in [&["2G", "nbd://a"][..], &["+1M", "nbd://a"], &["-1G", "[", "nbdkit", "]"]] {
        let said = refused(words, 64);
        assert!(said.contains("the URI comes first, and then the size"), "{said}");
        assert!(said.ends_with(&format!(" {}\n", words[0])), "{said}");
    }
    let said = refused(&["nbd://127.0.0.1", "-x"], 64);
    assert!(said.contains("-x"), "{said}");
}
