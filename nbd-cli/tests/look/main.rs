//! `nbd info`, `nbd list` and `nbd map`, mostly by comparison with nbdinfo on the same server.

mod alias;
mod command;
mod dump;
mod info;
mod list;
mod map;

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers::{self, Peer, PeerServer};
use nbd_testkit::process::{Finished, run};
use nbd_testkit::server::{NbdServe, Runtime, Serve, Setup, Transport};
use serde_json::Value;

/// The longest that anything may take that should happen by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// `nbd` with arguments, not run yet.
fn command<T: AsRef<OsStr>>(arguments: impl IntoIterator<Item = T>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
    command.args(arguments);
    command
}

/// `nbd` with arguments, run to its end.
#[track_caller]
fn nbd<T: AsRef<OsStr>>(arguments: impl IntoIterator<Item = T>) -> Finished {
    run(&mut command(arguments), LIMIT)
}

/// What `nbd` prints.
#[track_caller]
fn told<'a>(arguments: impl IntoIterator<Item = &'a str>) -> String {
    nbd(arguments).success()
}

/// What nbdinfo prints.
#[track_caller]
fn nbdinfo<'a>(peer: &Peer, arguments: impl IntoIterator<Item = &'a str>) -> String {
    run(peer.command().args(arguments), LIMIT).success()
}

#[track_caller]
fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The server of this project, not started yet.
fn ours() -> Serve {
    Setup { runtime: Runtime::Blocking, transport: Transport::Unix }.serve()
}

/// A server of this project with a bitmap and something in it.
#[track_caller]
fn ours_with_data() -> NbdServe {
    use nbd_testkit::raw::RawClient;
    let args = ["--track", "b0", "--allocation-depth", "memory:8M", "other=memory:1M"];
    let server = ours().args(args).start();
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(3 << 20, &[7; 100_000]);
    client.finish();
    server
}

/// An overlay with holes, zeroes, a bitmap and a backing file, in a folder; none if qemu's tools are missing.
#[track_caller]
fn overlay() -> Option<(Peer, tempfile::TempDir)> {
    let tools = ["qemu-nbd", "qemu-img", "qemu-io"].map(peers::require);
    let [Some(server), Some(img), Some(io)] = tools else { return None };
    let dir = tempfile::tempdir().expect("a folder for images");
    let run_in = |tool: &Peer, arguments: &[&str]| {
        run(tool.command().args(arguments).current_dir(dir.path()), LIMIT).success();
    };
    let create = ["create", "-q", "-f", "qcow2"];
    run_in(&img, &[&create[..], &["base.qcow2", "64M"]].concat());
    run_in(&io, &["-f", "qcow2", "-c", "write 0 1M", "-c", "write 20M 1M", "base.qcow2"]);
    run_in(&img, &[&create[..], &["-b", "base.qcow2", "-F", "qcow2", "disk.qcow2"]].concat());
    run_in(&img, &["bitmap", "--add", "disk.qcow2", "b0"]);
    run_in(&io, &["-f", "qcow2", "-c", "write 30M 1M", "-c", "write -z 4M 1M", "disk.qcow2"]);
    Some((server, dir))
}

/// The overlay served by qemu-nbd as the export `disk`.
#[track_caller]
fn qemu_nbd() -> Option<(PeerServer, tempfile::TempDir)> {
    let (peer, dir) = overlay()?;
    let image = dir.path().join("disk.qcow2").display().to_string();
    let args = ["-f", "qcow2", "-A", "-B", "b0", "-x", "disk", "-D", "a text", &image];
    Some((PeerServer::qemu_nbd(&peer, &args), dir))
}

/// nbdkit with a plugin and its parameters.
#[track_caller]
fn nbdkit(args: &[&str]) -> Option<PeerServer> {
    peers::require("nbdkit").map(|peer| PeerServer::nbdkit(&peer, args))
}
