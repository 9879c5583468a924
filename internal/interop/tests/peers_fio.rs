//! fio against `nbd serve`: random writes with many in flight, every block checked when it is read back.

use std::time::Duration;

use nbd_interop::MIB;
use nbd_testkit::matrix;
use nbd_testkit::peers::require;
use nbd_testkit::process::run;
use nbd_testkit::server::{NbdServe, Setup};

matrix! {
    tcp_and_unix: [
        random_writes_to_memory_verify,
        random_writes_to_a_file_verify,
    ],
    unix: [
        mixed_block_sizes_with_trims_verify,
    ],
}

/// Runs a job on the whole export, verified by checksums in every block.
#[track_caller]
fn verify(server: &NbdServe, options: &[&str]) {
    let Some(fio) = require("fio") else { return };
    let mut command = fio.command();
    command.current_dir(server.dir());
    command.args(["--name=verify", "--ioengine=nbd", "--iodepth=32", "--randrepeat=1"]);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
    command.arg(format!("--uri={}", server.uri(""))).args(options);
    let report = run(&mut command, Duration::from_secs(60)).success();
    assert!(report.contains("err= 0"), "{report}");
}

/// S-ORD-04, S-CMD-WRITE-01, S-CMD-READ-01.
fn random_writes_to_memory_verify(setup: Setup) {
    let server = setup.serving("memory:64M");
    verify(&server, &["--rw=randwrite", "--bs=16k", "--size=64M"]);
}

/// S-ORD-04, with flushes between the writes.
fn random_writes_to_a_file_verify(setup: Setup) {
    let serve = setup.serve();
    let path = serve.dir().join("image");
    std::fs::File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    let server = serve.arg(path.to_str().unwrap()).start();
    verify(&server, &["--rw=randwrite", "--bs=16k", "--size=64M", "--fsync=512"]);
}

/// S-CMD-TRIM-01: from 512 bytes to 256 KiB, reads among the writes.
fn mixed_block_sizes_with_trims_verify(setup: Setup) {
    let server = setup.serving("memory:32M");
    verify(&server, &["--rw=randrw", "--bsrange=512-256k", "--size=32M"]);
    verify(&server, &["--rw=randtrimwrite", "--bs=4k", "--size=8M", "--do_verify=0"]);
}
