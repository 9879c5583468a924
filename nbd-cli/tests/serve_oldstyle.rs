//! `nbd serve --oldstyle`.

use std::time::Duration;

use nbd_testkit::peers::{self, PeerServer};
use nbd_testkit::process::run;
use nbd_testkit::raw::Wire;
use nbd_testkit::server::{Runtime, Setup, Transport};

const SOON: Duration = Duration::from_secs(30);

nbd_testkit::matrix! {
    tcp_and_unix: [the_greeting_is_the_same_as_nbdkits],
    unix: [nbdinfo_reads_the_size, qemu_io_writes_and_reads],
}

fn the_greeting_is_the_same_as_nbdkits(setup: Setup) {
    let server = setup.serve().args(["--oldstyle", "memory:8M"]).start();
    let ours = Wire::connect(server.endpoint()).recv(152, "our greeting");
    let Some(peer) = peers::require("nbdkit") else { return };
    let other = PeerServer::nbdkit(&peer, &["-o", "memory", "8M"]);
    let theirs = Wire::connect(other.endpoint()).recv(152, "nbdkit's greeting");
    // All but the transmission flags, which are what each can do.
    assert_eq!((&ours[..26], &ours[28..]), (&theirs[..26], &theirs[28..]));
}

fn nbdinfo_reads_the_size(setup: Setup) {
    let Some(peer) = peers::require("nbdinfo") else { return };
    let server = setup.serve().args(["--oldstyle", "memory:8M"]).start();
    let told = run(peer.command().arg(server.uri("")), SOON).success();
    assert!(told.contains("protocol: oldstyle without TLS, using simple packets"), "{told}");
    assert!(told.contains("export-size: 8388608"), "{told}");
}

fn qemu_io_writes_and_reads(setup: Setup) {
    let Some(peer) = peers::require("qemu-io") else { return };
    let server = setup.serve().args(["--oldstyle", "memory:8M"]).start();
    let mut command = peer.command();
    command.args(["-f", "raw", "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k"]);
    let said = run(command.arg(server.uri("")), SOON).success();
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn oldstyle_has_one_export_and_no_more_than_oldstyle_can_do() {
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Unix };
    for args in [
        &["memory:1M", "other=memory:1M"][..],
        &["--track", "b0", "memory:1M"],
        &["--allocation-depth", "memory:1M"],
        &["--block-size", "4k", "--block-size-required", "memory:1M"],
    ] {
        let mut command = setup.serve().arg("--oldstyle").args(args.iter().copied()).command();
        assert_eq!(run(&mut command, SOON).status.code(), Some(64), "{args:?}");
    }
}
