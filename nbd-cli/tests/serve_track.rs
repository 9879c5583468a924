//! `nbd serve --track`: incremental backup with stock tools.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers::{self, Peer};
use nbd_testkit::process::run;
use nbd_testkit::raw::{RawClient, Request};
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport};

const K64: u64 = 64 << 10;
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
const SETUP: Setup = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };

/// qemu's way of naming an export whose bitmap it is to look at.
fn with_bitmap(server: &NbdServe, bitmap: &str) -> String {
    let path = server.endpoint().socket_path().unwrap().display().to_string();
    format!(
        "driver=nbd,server.type=unix,server.path={path},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
    )
}

/// The ranges that qemu-img takes for data, or for none.
fn map(peer: &Peer, arguments: &[&str], data: bool) -> Vec<(u64, u64)> {
    let mut command = peer.command();
    let text = run(command.args(["map", "--output=json"]).args(arguments), SOON).success();
    let wanted = format!("\"data\": {data}");
    let number = |line: &str, field: &str| -> u64 {
        let rest = line.split_once(&format!("\"{field}\": ")).unwrap().1;
        rest[..rest.find(',').unwrap()].parse().unwrap()
    };
    let ranges = text.lines().filter(|line| line.contains(&wanted));
    ranges.map(|line| (number(line, "start"), number(line, "length"))).collect()
}

/// A file of 8 MiB with something everywhere.
fn image(path: &Path) {
    let bytes: Vec<u8> = (0..8 * MIB).map(|at| (at / 4096) as u8 | 1).collect();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn qemu_img_sees_dirty_blocks_as_no_data() {
    let Some(peer) = peers::require("qemu-img") else { return };
    let server = SETUP.serve().args(["--track", "b0", "memory:8M"]).start();
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(MIB - 1, b"ab");
    client.call(&Request::trim(4 * MIB, K64)).ok();
    client.finish();
    let dirty = map(&peer, &["--image-opts", &with_bitmap(&server, "b0")], false);
    assert_eq!(dirty, [(MIB - K64, 2 * K64), (4 * MIB, K64)]);
}

#[test]
fn nbdinfo_maps_every_bitmap() {
    let Some(peer) = peers::require("nbdinfo") else { return };
    let args = ["--track", "b0", "--track", "other", "memory:8M"];
    let server = SETUP.serve().args(args).start();
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(5 * K64, b"x");
    client.finish();
    for bitmap in ["b0", "other"] {
        let mut command = peer.command();
        command.arg(format!("--map=qemu:dirty-bitmap:{bitmap}")).arg(server.uri(""));
        let map = run(&mut command, SOON).success();
        let words: Vec<Vec<&str>> =
            map.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            words,
            [
                ["0", "327680", "0", "clean"],
                ["327680", "65536", "1", "dirty"],
                ["393216", "7995392", "0", "clean"]
            ]
        );
    }
}

#[test]
fn a_name_that_is_taken_or_empty_is_a_usage_error() {
    for (args, said) in [(["--track=a", "--track=a"], "'a'"), (["--track=", "--track=b"], "''")] {
        let mut command = SETUP.serve().args(args).command();
        let finished = run(command.arg("memory:1M"), SOON);
        assert_eq!(finished.status.code(), Some(64));
        assert!(finished.stderr.contains(said), "{}", finished.stderr);
    }
}

/// Copies the dirty blocks alone into an overlay (reading through it, with copy-on-read), and then puts the overlay on
/// top of the full backup instead: the procedure that qemu's documentation knows as pull mode.
#[test]
fn an_incremental_backup_copies_the_dirty_blocks_alone() {
    let (Some(img), Some(io)) = (peers::require("qemu-img"), peers::require("qemu-io")) else {
        return;
    };
    let serve = SETUP.serve();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    image(&disk);
    let server = serve.args(["--track", "inc", &disk.to_string_lossy()]).start();
    let qemu_img = |args: &[&str]| run(img.command().args(args), SOON).success();

    // The full backup, while nobody writes.
    let full = dir.path().join("full.img").display().to_string();
    qemu_img(&["convert", "-f", "raw", "-O", "raw", &server.uri(""), &full]);

    let mut client = RawClient::go_simple(server.endpoint());
    client.write(3 * MIB + 5, &[0xaa; 100_000]);
    client.call(&Request::write_zeroes(6 * MIB, K64)).ok();
    client.call(&Request::flush()).ok();
    client.finish();

    let dirty = map(&img, &["--image-opts", &with_bitmap(&server, "inc")], false);
    assert_eq!(dirty, [(3 * MIB, 2 * K64), (6 * MIB, K64)]);
    let overlay = dir.path().join("inc.qcow2").display().to_string();
    qemu_img(&["create", "-f", "qcow2", "-F", "raw", "-b", &server.uri(""), &overlay]);
    let reads = dirty.iter().flat_map(|(at, length)| ["-c".into(), format!("r {at} {length}")]);
    let mut copy = io.command();
    copy.args(["-C", "-f", "qcow2"]).args(reads.collect::<Vec<String>>()).arg(&overlay);
    run(&mut copy, SOON).success();
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", &full, &overlay]);

    // The overlay holds what was dirty and no more, and together with the full backup it is the disk.
    let own =
        run(Command::new(&img.path).args(["map", "--output=json", "-f", "qcow2", &overlay]), SOON);
    let own: u64 = own
        .success()
        .lines()
        .filter(|line| line.contains("\"depth\": 0"))
        .map(|line| {
            let rest = line.split_once("\"length\": ").unwrap().1;
            rest[..rest.find(',').unwrap()].parse::<u64>().unwrap()
        })
        .sum();
    assert_eq!(own, 3 * K64);
    let same = qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &overlay, &server.uri("")]);
    assert!(same.contains("identical"), "{same}");
}
