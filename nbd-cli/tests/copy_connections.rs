//! `nbd copy` over several connections: further ones are welcome, and no byte waits for them.

#[path = "copy/disk_server.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod disk_server;
#[path = "copy/support.rs"]
#[allow(dead_code, reason = "it is shared with the other tests of copies")]
mod support;

use core::time::Duration;
use std::thread;

use disk_server::{Disk, DiskServer};
use nbd_testkit::raw::{BlockSize, Cmd, Mode};
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::{Runtime, Setup, Transport};
use support::{Folder, MIB, assert_same, copy, noise, read, refused, try_copy};

/// How long a server waits for connections that have to come.
const LIMIT: Duration = Duration::from_secs(60);

/// As little as four connections are made for: a connection that is not let in is given up, and reported, after 30 s, and
/// the copy has to be done before, on a busy machine, too.
const FOUR_PIECES: usize = MIB;

/// A server that never lets the second client in.
fn full(script: Script) -> ScriptedServer {
    let parked = Script::new(Export::new(Mode::Extended)).deaf();
    ScriptedServer::unix([script, parked.clone(), parked.clone(), parked])
}

/// A copy that may have four connections, and does not wait for one in vain: it would say so.
#[track_caller]
fn copy_at_once(words: &[&str]) {
    let finished = try_copy(&[&["-v", "-C", "4", "-T", "4"], words].concat());
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert!(finished.stderr.contains("connections=4"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("no more connections"), "{}", finished.stderr);
}

#[test]
fn a_server_without_room_for_a_second_connection_delays_no_byte() {
    let folder = Folder::new();
    let to = folder.text("to");
    let mut export = Export::new(Mode::Extended);
    export.size = FOUR_PIECES as u64;
    let server = full(Script::new(export.clone()).enter().serve());
    copy_at_once(&[&server.endpoint().uri(""), &to]);
    assert_same(&read(&to), &Export::CONTENT.bytes(0, FOUR_PIECES));
    assert!(server.accepted() <= 2, "one at a time");
    // A failure is reported, too.
    let server = full(Script::new(export).enter());
    let said = refused(&["-v", "-C", "4", "-T", "4", &server.endpoint().uri(""), &to]);
    assert!(!said.contains("no more connections"), "{said}");
}

#[test]
fn our_own_server_at_its_limit_is_copied_from_and_to() {
    let folder = Folder::new();
    let bytes = noise(FOUR_PIECES);
    let source = folder.file("source", &bytes);
    for runtime in [
        Runtime::Tokio,
        #[cfg(feature = "async-std")]
        Runtime::AsyncStd,
        Runtime::Blocking,
    ] {
        let setup = Setup { runtime, transport: Transport::Unix };
        let server = setup.serve().args(["--max-connections", "1", "memory:1M"]).start();
        let uri = server.uri("");
        for words in [&["--verify", &source, &uri][..], &[&uri, &folder.text("to")]] {
            let words = [&["-v", "-C", "4", "-T", "4"], words].concat();
            let finished = try_copy(&words);
            assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
            assert!(!finished.stderr.contains("longer than 30s"), "{}", finished.stderr);
        }
        assert_same(&read(folder.path("to")), &bytes);
    }
}

#[test]
fn a_further_connection_to_something_else_is_not_used() {
    let folder = Folder::new();
    let mut export = Export::new(Mode::Extended);
    export.size = 2 << 20;
    // Nothing is copied before the second one was looked at.
    let first = Script::new(export.clone()).enter().hold().serve();
    let (mut smaller, mut other) = (export.clone(), export);
    smaller.size = 1 << 20;
    other.block_size = Some(BlockSize { minimum: 65536, preferred: 65536, maximum: 1 << 20 });
    for export in [smaller, other] {
        let second = Script::new(export).enter().request(Cmd::DISC);
        let server = ScriptedServer::unix([first.clone(), second]);
        let (uri, to) = (server.endpoint().uri(""), folder.text("to"));
        thread::scope(|scope| {
            let copying = scope.spawn(|| copy(&["-C", "2", "-T", "2", &uri, &to]));
            server.wait_for_requests(1);
            server.release();
            copying.join().expect("it is copied");
        });
        server.finish();
        assert_same(&read(folder.path("to")), &Export::CONTENT.bytes(0, 2 * MIB));
    }
}

#[test]
fn several_connections_are_used_where_there_are_some() {
    let folder = Folder::new();
    let bytes = noise(2 * MIB);
    let source = folder.file("source", &bytes);
    let disk = |bytes| Disk {
        bytes,
        runs: Vec::new(),
        minimum: 1,
        write_zeroes: true,
        multi_conn: true,
        status: None,
    };
    let server = DiskServer::start(disk(vec![0; bytes.len()]));
    server.gather(3, LIMIT);
    copy(&["-C", "3", "-T", "3", "-R", "1", "--request-size", "16k", &source, &server.uri()]);
    let (connections, found) = server.finish();
    assert_eq!(connections, 3);
    assert_same(&found, &bytes);
    let servers = [disk(bytes.clone()), disk(vec![0; bytes.len()])].map(DiskServer::start);
    servers[1].gather(3, LIMIT);
    let [from, to] = [&servers[0], &servers[1]].map(DiskServer::uri);
    copy(&["-C", "3", "-T", "3", "-R", "1", "--request-size", "16k", "--verify", &from, &to]);
    let [(from, _), (to, found)] = servers.map(DiskServer::finish);
    assert_eq!([from, to], [3, 3]);
    assert_same(&found, &bytes);
}

/// The first connection has no answer to its first request before all the rest is done by another one.
#[test]
fn a_further_thread_works_whatever_the_other_side_is() {
    let folder = Folder::new();
    let (file, to) = (folder.file("from", &noise(FOUR_PIECES)), folder.text("to"));
    let words = ["-C", "2", "-T", "2", "-R", "1", "--no-extents"];
    for (command, [from, to]) in [
        (Cmd::READ, [None, Some(&to)]),
        (Cmd::READ, [None, Some(&"null:".to_owned())]),
        (Cmd::WRITE, [Some(&file), None]),
    ] {
        let export = Export::new(Mode::Extended);
        let script = Script::new(export).enter();
        let first = script.clone().request(command).hold().obey().serve();
        let server = ScriptedServer::unix([first, script.serve()]);
        let uri = server.endpoint().uri("");
        let sides = [from.unwrap_or(&uri), to.unwrap_or(&uri)].map(String::as_str);
        thread::scope(|scope| {
            let copying = scope.spawn(|| copy(&[&words[..], &sides].concat()));
            server.wait_for_requests(4);
            server.release();
            copying.join().expect("it is copied");
        });
        server.finish();
    }
}
