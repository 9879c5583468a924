//! qemu's NBD client against `nbd serve`: qemu-img and qemu-io.
//!
//! qemu 10 asks for extended headers and `base:allocation`, merges, splits and aligns requests in its own way, and
//! sends what a virtual machine's disk would send.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_interop::{MIB, sparse_image};
use nbd_testkit::peers::{Peer, require};
use nbd_testkit::process::{Finished, run, wait_until};
use nbd_testkit::server::{NbdServe, Setup};
use nbd_testkit::{assert_same_bytes, matrix};

matrix! {
    tcp_and_unix: [
        info_reports_the_size,
        images_are_converted_in_and_out,
        patterns_are_written_and_read,
        a_file_export_holds_what_was_converted_into_it,
    ],
    unix: [
        unaligned_patterns_are_written_and_read,
        zeroes_and_discards_read_as_zero,
        the_end_of_a_tebibyte_is_written_and_read,
        a_read_only_export_refuses_writes,
        named_exports_are_distinguished,
        the_map_shows_data_and_holes,
        extended_headers_are_agreed_with_clients_that_know_them,
        an_odd_size_is_read_to_its_end,
    ],
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs qemu-io with these commands on an export. What qemu-io prints names the command that failed.
#[track_caller]
fn io_on(qemu_io: &Peer, options: &[&str], uri: &str, commands: &[&str]) -> Finished {
    let mut command = qemu_io.command();
    command.args(options).args(["-f", "raw"]);
    for line in commands {
        command.args(["-c", line]);
    }
    run(command.arg(uri), PATIENCE)
}

/// The same for commands that must succeed.
#[track_caller]
fn io(qemu_io: &Peer, server: &NbdServe, commands: &[&str]) {
    let output = io_on(qemu_io, &[], &server.uri(""), commands).success();
    // Not every version reports a mismatch by its exit status.
    assert!(!output.contains("failed"), "{output}");
}

fn img(qemu_img: &Peer, args: &[&str]) -> String {
    run(qemu_img.command().args(args), PATIENCE).success()
}

/// `qemu-img convert` without creating the target: for exports, which are there already.
fn convert_into(qemu_img: &Peer, source: &Path, uri: &str) {
    let source = source.to_str().unwrap();
    img(qemu_img, &["convert", "-n", "-f", "raw", "-O", "raw", source, uri]);
}

fn convert_out(qemu_img: &Peer, uri: &str, target: &Path) {
    img(qemu_img, &["convert", "-f", "raw", "-O", "raw", uri, target.to_str().unwrap()]);
}

fn compare(qemu_img: &Peer, image: &Path, uri: &str) {
    let image = image.to_str().unwrap();
    let verdict = img(qemu_img, &["compare", "-f", "raw", "-F", "raw", image, uri]);
    assert!(verdict.contains("identical"), "{verdict}");
}

/// B-BASE-01: what qemu-img thinks of the export.
fn info_reports_the_size(setup: Setup) {
    let Some(qemu_img) = require("qemu-img") else { return };
    let server = setup.serving("memory:64M");
    let info = img(&qemu_img, &["info", "--output=json", "-f", "raw", &server.uri("")]);
    assert!(info.contains("\"virtual-size\": 67108864"), "{info}");
}

/// S-CMD-READ-01, S-CMD-WRITE-01, S-CMD-WZ-01: a sparse image goes in and comes out the same.
fn images_are_converted_in_and_out(setup: Setup) {
    let Some(qemu_img) = require("qemu-img") else { return };
    let server = setup.serving("memory:32M");
    let source = server.dir().join("source");
    sparse_image(&source, 32 * MIB);
    let uri = server.uri("");
    convert_into(&qemu_img, &source, &uri);
    compare(&qemu_img, &source, &uri);
    let target = server.dir().join("target");
    convert_out(&qemu_img, &uri, &target);
    assert_same_file(&target, &source);
}

#[track_caller]
fn assert_same_file(found: &Path, expected: &Path) {
    let [found, expected] = [found, expected].map(|path| std::fs::read(path).unwrap());
    assert_same_bytes(&found, &expected, "image");
}

/// S-ORD-05: the file that was served is the image, once the server has ended.
fn a_file_export_holds_what_was_converted_into_it(setup: Setup) {
    let Some(qemu_img) = require("qemu-img") else { return };
    let serve = setup.serve();
    let file: PathBuf = serve.dir().join("export");
    let source = serve.dir().join("source");
    sparse_image(&source, 16 * MIB);
    std::fs::write(&file, vec![0xaa; 16 * MIB as usize]).unwrap();
    let mut server = serve.arg(format!("file:{}", file.display())).start();
    convert_into(&qemu_img, &source, &server.uri(""));
    compare(&qemu_img, &source, &server.uri(""));
    server.terminate();
    assert!(server.wait_exit(PATIENCE).is_some_and(|status| status.success()));
    assert_same_file(&file, &source);
}

/// S-CMD-READ-01, S-CMD-WRITE-01, S-CMD-FLUSH-01, S-REQ-06: with FUA (`-f`), many at once (`aio_*`).
fn patterns_are_written_and_read(setup: Setup) {
    let Some(qemu_io) = require("qemu-io") else { return };
    let server = setup.serving("memory:64M");
    let commands = [
        "write -P 0xa5 0 64k",
        "write -f -P 0x5a 1M 3M",
        "flush",
        "read -P 0xa5 0 64k",
        "read -P 0 64k 960k",
        "read -P 0x5a 1M 3M",
        "aio_write -P 0x11 8M 1M",
        "aio_write -P 0x22 9M 1M",
        "aio_write -P 0x33 10M 1M",
        "aio_flush",
        "aio_read -P 0x11 8M 1M",
        "aio_read -P 0x22 9M 1M",
        "aio_read -P 0x33 10M 1M",
        "aio_flush",
        "write -P 0x77 32M 32M",
        "read -P 0x77 32M 32M",
    ];
    io(&qemu_io, &server, &commands);
    // Another connection sees the same (S-XF-06).
    io(&qemu_io, &server, &["read -P 0xa5 0 64k", "read -P 0x22 9M 1M"]);
}

/// S-SZ-06: byte granularity; qemu sends what is asked for as it is.
fn unaligned_patterns_are_written_and_read(setup: Setup) {
    let Some(qemu_io) = require("qemu-io") else { return };
    let server = setup.serving("memory:8M");
    let commands = [
        "write -P 0x11 0 1M",
        "write -P 0x22 513 1023",
        "write -P 0x33 65535 2",
        "write -z 70001 4099",
        "read -P 0x11 0 513",
        "read -P 0x22 513 1023",
        "read -P 0x11 1536 63999",
        "read -P 0x33 65535 2",
        "read -P 0x11 65537 4464",
        "read -P 0 70001 4099",
        "read -P 0x11 74100 1",
    ];
    io(&qemu_io, &server, &commands);
}

/// S-CMD-WZ-01, S-CMD-WZ-02, S-CMD-TRIM-01: with unmap (`-u`) and without.
fn zeroes_and_discards_read_as_zero(setup: Setup) {
    let Some(qemu_io) = require("qemu-io") else { return };
    let server = setup.serving("memory:16M");
    let commands = [
        "write -P 0xff 0 16M",
        "write -z 1M 1M",
        "write -z -u 3M 1M",
        "discard 5M 1M",
        "flush",
        "read -P 0xff 0 1M",
        "read -P 0 1M 1M",
        "read -P 0xff 2M 1M",
        "read -P 0 3M 1M",
        "read -P 0xff 4M 1M",
        "read 5M 1M",
        "read -P 0xff 6M 10M",
    ];
    io(&qemu_io, &server, &commands);
}

/// B-CONV-01: 64-bit offsets.
fn the_end_of_a_tebibyte_is_written_and_read(setup: Setup) {
    let Some(qemu_io) = require("qemu-io") else { return };
    let server = setup.serving("memory:1T");
    let commands = [
        "write -P 0x42 1099511562240 64k",
        "write -P 0x43 549755813888 64k",
        "read -P 0x42 1099511562240 64k",
        "read -P 0x43 549755813888 64k",
        "read -P 0 1099511496704 64k",
        "read -P 0 4294967296 64k",
    ];
    io(&qemu_io, &server, &commands);
    let beyond = io_on(&qemu_io, &[], &server.uri(""), &["write 1099511627776 512"]);
    assert!(!beyond.status.success(), "{beyond:?}");
}

/// S-XF-05, S-REQ-12: qemu does not even open it for writing, since the flag says so.
fn a_read_only_export_refuses_writes(setup: Setup) {
    let Some(qemu_io) = require("qemu-io") else { return };
    let serve = setup.serve();
    let path = serve.dir().join("image");
    sparse_image(&path, 8 * MIB);
    let before = std::fs::read(&path).unwrap();
    let server = serve.arg("-r").arg(path.to_str().unwrap()).start();
    let refusal = io_on(&qemu_io, &[], &server.uri(""), &["write -P 1 0 4k"]).failure();
    assert!(refusal.contains("can't open device"), "{refusal}");
    io_on(&qemu_io, &["-r"], &server.uri(""), &["read 0 8M"]).success();
    assert_same_bytes(&std::fs::read(&path).unwrap(), &before, "file");
}

/// S-OPT-GO-01, S-OPT-GO-04, S-OPT-EN-04: three exports of one server.
fn named_exports_are_distinguished(setup: Setup) {
    let Some(qemu_io) = require("qemu-io") else { return };
    let server = setup.serve().args(["memory:1M", "a=memory:2M", "b c=memory:4M"]).start();
    let fills = [("", "write -P 1 0 1M"), ("a", "write -P 2 0 2M"), ("b c", "write -P 3 0 4M")];
    for (name, fill) in fills {
        io_on(&qemu_io, &[], &server.uri(name), &[fill]).success();
    }
    let checks = [("", "read -P 1 0 1M"), ("a", "read -P 2 0 2M"), ("b c", "read -P 3 0 4M")];
    for (name, check) in checks {
        let output = io_on(&qemu_io, &[], &server.uri(name), &[check]).success();
        assert!(!output.contains("failed"), "{output}");
    }
    let unknown = io_on(&qemu_io, &[], &server.uri("nosuch"), &["read 0 512"]);
    assert_ne!(unknown.failure(), "");
}

/// S-CMD-BS-01, S-META-03: `qemu-img map` is made of `BLOCK_STATUS`.
fn the_map_shows_data_and_holes(setup: Setup) {
    let Some(qemu_img) = require("qemu-img") else { return };
    let Some(qemu_io) = require("qemu-io") else { return };
    let server = setup.serving("memory:8M");
    io(&qemu_io, &server, &["write -P 7 2M 1M"]);
    let map = img(&qemu_img, &["map", "--output=json", "-f", "raw", &server.uri("")]);
    let rows: Vec<_> = map.lines().filter(|row| row.contains("\"start\"")).collect();
    assert_eq!(rows.len(), 3, "{map}");
    for (row, (start, length, zero)) in
        rows.iter().zip([(0, 2 * MIB, true), (2 * MIB, MIB, false), (3 * MIB, 5 * MIB, true)])
    {
        let expected = [
            format!("\"start\": {start},"),
            format!("\"length\": {length},"),
            format!("\"zero\": {zero},"),
        ];
        assert!(expected.iter().all(|field| row.contains(field)), "{row}: {expected:?}");
    }
}

/// S-OPT-EH-02: qemu knows them since 8.2.
fn extended_headers_are_agreed_with_clients_that_know_them(setup: Setup) {
    let Some(qemu_img) = require("qemu-img") else { return };
    let replies = match qemu_img.major() {
        Some(8) => return,
        Some(9..) => "replies=\"extended\"",
        _ => "replies=\"structured\"",
    };
    let server = setup.serve().args(["-vv", "memory:1M"]).start();
    img(&qemu_img, &["info", "-f", "raw", &server.uri("")]);
    let told = || server.stderr();
    wait_until("the server tells of its client", PATIENCE, || told().contains("transmission"));
    assert!(told().contains(replies), "{replies} of {}: {}", qemu_img.version, told());
}

/// S-SZ-05, S-REQ-09: qemu counts in sectors of its own and rounds up; the bytes that are there must come.
fn an_odd_size_is_read_to_its_end(setup: Setup) {
    let Some(qemu_img) = require("qemu-img") else { return };
    let serve = setup.serve();
    let path = serve.dir().join("image");
    let content = nbd_testkit::Pattern(1).bytes(0, 1_000_003);
    std::fs::write(&path, &content).unwrap();
    let server = serve.arg(path.to_str().unwrap()).start();
    let target = server.dir().join("target");
    convert_out(&qemu_img, &server.uri(""), &target);
    let copy = std::fs::read(&target).unwrap();
    assert!((1_000_003..=1_000_448).contains(&copy.len()), "{}", copy.len());
    assert_same_bytes(&copy[..1_000_003], &content, "content");
}
