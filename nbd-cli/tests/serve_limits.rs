//! `nbd serve --block-size` and `--resize`: what is announced to clients and enforced.

use std::time::Duration;

use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::raw::{BlockSize, Cmd, Errno, Info, RawClient, Rep, Request, cmd_flag, flag};
use nbd_testkit::server::{Runtime, Setup, Transport};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
const SETUP: Setup = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };

#[test]
fn size_constraints_are_reported() {
    let server = SETUP.serve().args(["--block-size", "4k:64k:1M", "memory:8M"]).start();
    let mut client = RawClient::negotiate(server.endpoint());
    let sizes = client.info("", &[Info::BLOCK_SIZE]).unwrap().block_size;
    assert_eq!(sizes, Some(BlockSize { minimum: 4096, preferred: 65536, maximum: 1 << 20 }));
    client.finish();
}

#[test]
fn misaligned_requests_are_refused_and_change_nothing() {
    let server = SETUP.serve().args(["--block-size", "4k", "memory:8M"]).start();
    let mut client = RawClient::go_structured(server.endpoint());
    let before = vec![5; 16384];
    client.write(0, &before);
    for (offset, length) in [(1, 4096), (4096, 100), (2048, 2048), (100, 3996)] {
        for request in [
            Request::read(offset, length),
            Request::write(offset, &vec![9; length as usize]),
            Request::trim(offset, length),
            Request::write_zeroes(offset, length),
            Request::cache(offset, length),
            Request::block_status(offset, length),
        ] {
            client.call(&request).expect_error(Errno::EINVAL);
        }
    }
    assert_eq!(client.read(0, 16384), before);
    client.finish();
}

#[test]
fn a_payload_above_the_maximum_is_refused_and_the_stream_goes_on() {
    let server = SETUP.serve().args(["--block-size", "512:4k:1M", "memory:8M"]).start();
    let mut client = RawClient::negotiate(server.endpoint());
    client.go("", &[Info::BLOCK_SIZE]).unwrap();
    client.call(&Request::write(0, &vec![1; 2 << 20])).expect_error(Errno::EINVAL);
    client.call(&Request::read(0, 2 << 20)).expect_error(Errno::EOVERFLOW);
    client.call(&Request::write_zeroes(0, 4 * MIB)).ok();
    assert_eq!(client.read(0, MIB), vec![0; 1 << 20]);
    client.finish();
}

#[test]
fn clients_that_do_not_ask_for_required_sizes_are_refused() {
    let args = ["--block-size", "4k", "--block-size-required", "memory:8M"];
    let server = SETUP.serve().args(args).start();
    let mut client = RawClient::negotiate(server.endpoint());
    assert_eq!(client.go("", &[]).unwrap_err().code, Rep::ERR_BLOCK_SIZE_REQD);
    client.go("", &[Info::BLOCK_SIZE]).unwrap();
    assert_eq!(client.read(4096, 4096), [0; 4096]);
    client.finish();

    let Some(peer) = peers::require("qemu-io") else { return };
    let mut command = peer.command();
    // Unaligned on purpose: qemu reads and writes whole blocks for it.
    command.args(["-f", "raw", "-c", "write -P 3 700 9000", "-c", "read -P 3 700 9000"]);
    let said = run(command.arg(server.uri("")), SOON).success();
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn required_sizes_need_sizes() {
    let mut command = SETUP.serve().args(["--block-size-required", "memory:1M"]).command();
    assert_eq!(run(&mut command, SOON).status.code(), Some(64));
}

#[test]
fn resizing_needs_permission() {
    let resize = Request::new(Cmd::RESIZE, 2 * MIB, 0);
    let server = SETUP.serving("memory:1M");
    let mut client = RawClient::go_simple(server.endpoint());
    assert!(!client.has_flag(flag::SEND_RESIZE));
    client.call(&resize).expect_error(Errno::EINVAL);
    client.finish();

    let server = SETUP.serve().args(["--resize", "memory:1M"]).start();
    let mut client = RawClient::go_simple(server.endpoint());
    assert!(client.has_flag(flag::SEND_RESIZE));
    client.call(&resize).ok();
    assert_eq!(client.read(2 * MIB - 1, 1), [0]);
    client.finish();
}

#[test]
fn allocation_depth_is_offered_on_demand_and_nbdinfo_maps_it() {
    let server = SETUP.serve().args(["-A", "memory:1M"]).start();
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(128 << 10, &[1; 64 << 10]);
    client.finish();
    let Some(peer) = peers::require("nbdinfo") else { return };
    let mut command = peer.command();
    let map = run(command.arg("--map=qemu:allocation-depth").arg(server.uri("")), SOON).success();
    let words: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        words,
        [
            ["0", "131072", "0", "absent"],
            ["131072", "65536", "1", "local"],
            ["196608", "851968", "0", "absent"]
        ]
    );
}

#[test]
fn a_fast_zero_is_fast_or_changes_nothing() {
    let server = SETUP.serving("memory:1T");
    let mut client = RawClient::go_extended(server.endpoint());
    client.write(MIB, b"data");
    let no_hole = cmd_flag::FAST_ZERO | cmd_flag::NO_HOLE;
    client.call(&Request::write_zeroes(0, 1 << 40).flags(no_hole)).expect_error(Errno::ENOTSUP);
    assert_eq!(client.read(MIB, 4), b"data");
    client.call(&Request::write_zeroes(0, 1 << 40).flags(cmd_flag::FAST_ZERO)).ok();
    assert_eq!(client.read(MIB, 4), [0; 4]);
    client.finish();
}
