//! How options of `nbd copy` become connections, requests in flight and the longest request, as `-v` reports them.

#[path = "copy/disk_server.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod disk_server;
#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use disk_server::{Disk, DiskServer};
use nbd_testkit::raw::{Cmd, Mode, flag};
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::{Runtime, Setup, Transport, nbd_binary};
use support::{Folder, MIB, copy, noise, try_copy};

/// Connections, requests on each of them, and bytes of the longest request.
#[track_caller]
fn of(options: &str, from: &str) -> (usize, usize, usize) {
    let options = options.split_whitespace();
    let from = from.split_whitespace();
    let words: Vec<&str> = ["-v"].into_iter().chain(options).chain(from).chain(["null:"]).collect();
    let finished = try_copy(&words);
    assert_eq!(finished.status.code(), Some(0), "{words:?}: {}", finished.stderr);
    let number = |name: &str| -> usize {
        let (_, rest) = finished.stderr.split_once(name).expect("it is reported");
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].parse().expect("a number")
    };
    (number("connections="), number(" requests="), number("request_size="))
}

#[test]
fn a_thread_has_a_connection_and_no_more_than_the_disk_has_pieces() {
    let folder = Folder::new();
    let (from, empty) = (folder.file("from", &noise(MIB)), folder.file("empty", b""));
    for (options, connections) in [
        ("-T 9", 4),
        ("-T 3", 3),
        ("-T 1", 1),
        ("-C 3", 3),
        ("-C 2 -T 5", 2),
        ("-C 3 -T 2", 2),
        ("-C 8 -T 8", 4),
        ("-C 8 -T 8 --request-size 300k", 4),
        ("-C 8 -T 8 --request-size 512k", 2),
        ("-C 8 -T 8 --request-size 1M", 1),
        ("-C 8 -T 8 --request-size 128k", 8),
        ("-C 8 -T 8 --synchronous", 1),
    ] {
        assert_eq!(of(options, &from).0, connections, "{options}");
    }
    assert_eq!(of("-C 8 -T 8", &empty).0, 1);
}

#[test]
fn the_queue_has_room_for_whole_requests_and_for_one_at_least() {
    let folder = Folder::new();
    let from = folder.file("from", &noise(MIB));
    for (options, requests, request_size) in [
        ("", 64, 262_144),
        ("-R 7", 7, 262_144),
        ("-R 7 --queue-size 1M", 4, 262_144),
        ("-R 3 --queue-size 1M", 3, 262_144),
        ("--request-size 100k --queue-size 350k", 3, 102_400),
        ("--queue-size 1", 1, 262_144),
        ("-R 7 --synchronous", 1, 262_144),
    ] {
        let (_, found, size) = of(options, &from);
        assert_eq!((found, size), (requests, request_size), "{options:?}");
    }
}

#[test]
fn zeroes_are_written_by_one_request_or_sent_in_those_of_the_usual_size() {
    let from = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };
    let from = from.serving("memory:4M");
    let mut export = Export::new(Mode::Extended);
    export.size = 4 << 20;
    let written = Script::new(export.clone()).enter().request(Cmd::WRITE_ZEROES).obey();
    export.flags &= !(flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO);
    let sent = Script::new(export).enter();
    let sent = (0..4).fold(sent, |script, _| script.request(Cmd::WRITE).obey());
    for script in [written, sent] {
        let to = ScriptedServer::unix([script.header(Cmd::DISC)]);
        copy(&["-C", "1", "--request-size", "1M", &from.uri(""), &to.endpoint().uri("")]);
        assert!(to.finish().iter().all(|report| !report.left), "that was all of it");
    }
}

/// A server that says nothing of several connections may show each of them something else, and a command is ours alone.
#[test]
fn several_connections_are_for_servers_that_say_so_and_are_no_commands() {
    let server = |multi_conn| {
        DiskServer::start(Disk {
            bytes: noise(MIB),
            runs: Vec::new(),
            minimum: 1,
            write_zeroes: true,
            multi_conn,
            status: None,
        })
    };
    for (multi_conn, connections) in [(true, 3), (false, 1)] {
        let server = server(multi_conn);
        assert_eq!(of("-C 3 -T 3", &server.uri()).0, connections);
        server.finish();
    }
    let command = format!("[ {} serve memory:1M ]", nbd_binary().display());
    assert_eq!(of("-C 3 -T 3", &command).0, 1);
}

/// Zeroes among the data are cut out of a request only where something is gained by it: not where they would be sent as
/// data as well, and not where they are to take up space.
#[test]
fn zeroes_among_data_are_sent_with_it_where_they_have_to_be_data() {
    let folder = Folder::new();
    let mut bytes = noise(MIB);
    bytes[400_000..600_000].fill(0);
    let from = folder.file("from", &bytes);
    let mut export = Export::new(Mode::Extended);
    let able = export.clone();
    export.flags &= !(flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO);
    let all = ["-C", "1", "--no-extents", "--request-size", "1M"];
    for (export, more) in [(export, &[][..]), (able, &["--allocated", "--destination-is-zero"])] {
        let script = Script::new(export).enter().request(Cmd::WRITE).obey().header(Cmd::DISC);
        let to = ScriptedServer::unix([script]);
        copy(&[&all[..], more, &[&from, &to.endpoint().uri("")]].concat());
        assert!(to.finish().iter().all(|report| !report.left), "that was all of it");
    }
}
