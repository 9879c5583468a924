//! `nbd copy`, between files, pipes, other people's servers and our own.

#[path = "copy/support.rs"]
mod support;

use std::process::Command;

use nbd_testkit::peers;
use nbd_testkit::process::run;
use nbd_testkit::raw::{Cmd, Mode};
use nbd_testkit::scripted::{Export, Script, ScriptedServer};
use nbd_testkit::server::{Runtime, Setup, Transport, nbd_binary};
use support::{
    Folder, MIB, SOON, allocated, assert_same, copy, holey, nbdkit, noise, read, refused, try_copy,
};

const SETUP: Setup = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };

#[test]
fn a_file_to_nbdkit_and_back() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    for size in [1, 1000, 4096, 256 << 10, 5 * MIB + 4321] {
        let bytes = noise(size);
        let source = folder.file("source", &bytes);
        let (_server, uri) = nbdkit(&peer, &["memory", &size.to_string()]);
        copy(&["--verify", "--flush", &source, &uri]);
        copy(&[&uri, &folder.text("back")]);
        assert_same(&read(folder.path("back")), &bytes);
    }
}

#[test]
fn every_way_of_cutting_gives_the_same() {
    let folder = Folder::new();
    let bytes = holey(6 * MIB + 777);
    let source = folder.sparse("source", &bytes);
    let server = SETUP.serve().arg(&source).start();
    let ways: &[&[&str]] = &[
        &["-C", "1", "-R", "1"],
        &["-C", "4", "-R", "3", "--request-size", "64k"],
        &["-R", "200", "--request-size", "4k"],
        &["--request-size", "32M", "--no-extents"],
        &["--synchronous", "--sparse", "0"],
        &["--queue-size", "1M", "-T", "2", "--allocated"],
        &["--request-size", "5000", "--sparse", "100"],
    ];
    for way in ways {
        let to = folder.text("to");
        let uri = server.uri("");
        copy(&[*way, &["--verify", &uri, &to]].concat());
        assert_same(&read(&to), &bytes);
        std::fs::remove_file(&to).unwrap();
    }
}

#[test]
fn sparse_files_stay_sparse() {
    let folder = Folder::new();
    let bytes = holey(32 * MIB);
    let source = folder.sparse("source", &bytes);
    let to = folder.path("to");
    copy(&[&source, &folder.text("to")]);
    assert_same(&read(&to), &bytes);
    assert!(allocated(&to) < 8 * MIB as u64, "{} bytes", allocated(&to));
    copy(&["--sparse=0", &source, &folder.text("to")]);
    assert!(allocated(&to) < 8 * MIB as u64, "{} bytes", allocated(&to));
    copy(&["--allocated", &source, &folder.text("to")]);
    assert_same(&read(&to), &bytes);
    assert!(allocated(&to) >= 32 * MIB as u64, "{} bytes", allocated(&to));
    let Some(peer) = peers::require("nbdkit") else { return };
    let (_server, uri) = nbdkit(&peer, &["file", &source]);
    for way in ["--sparse=0", "--no-extents"] {
        std::fs::remove_file(&to).unwrap();
        copy(&[way, &uri, &folder.text("to")]);
        assert_same(&read(&to), &bytes);
        assert!(allocated(&to) < 8 * MIB as u64, "{way}: {} bytes", allocated(&to));
    }
}

#[test]
fn from_one_server_to_another() {
    let (Some(peer), Some(img)) = (peers::require("nbdkit"), peers::require("qemu-img")) else {
        return;
    };
    let folder = Folder::new();
    let source = folder.sparse("source", &holey(9 * MIB));
    let (_from, from) = nbdkit(&peer, &["file", &source]);
    let to = SETUP.serving("memory:10M");
    let to = to.uri("");
    copy(&["-C", "3", "--verify", &from, &to]);
    let (_other, other) = nbdkit(&peer, &["memory", "10M"]);
    copy(&["--no-extents", "--sparse", "0", &to, &other]);
    for uri in [&to, &other] {
        let mut compare = img.command();
        compare.args(["compare", "-f", "raw", "-F", "raw", &source, uri]);
        let said = run(&mut compare, SOON).success();
        assert!(said.contains("identical"), "{said}");
    }
}

#[test]
fn a_qcow2_image_out_of_a_command() {
    let (Some(_), Some(img)) = (peers::require("qemu-nbd"), peers::require("qemu-img")) else {
        return;
    };
    let folder = Folder::new();
    let source = folder.sparse("source", &holey(4 * MIB));
    let image = folder.text("image.qcow2");
    let mut convert = img.command();
    run(convert.args(["convert", "-f", "raw", "-O", "qcow2", &source, &image]), SOON).success();
    copy(&["--verify", "[", "qemu-nbd", "-f", "qcow2", &image, "]", &folder.text("to")]);
    assert_same(&read(folder.path("to")), &read(&source));
}

#[test]
fn pipes_on_both_sides() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    let bytes = holey(3 * MIB + 11);
    let source = folder.file("source", &bytes);
    let (_server, uri) = nbdkit(&peer, &["memory", "4M"]);
    let nbd = nbd_binary();
    let shell = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-ec", script, "sh", &source, &uri, &folder.text("to")]).env("NBD", &nbd);
        run(&mut command, SOON).success();
        let to = read(folder.path("to"));
        std::fs::remove_file(folder.path("to")).unwrap();
        to
    };
    let through = shell("cat \"$1\" | $NBD copy - \"$2\"; $NBD copy \"$2\" - | cat > \"$3\"");
    assert_eq!(through.len(), 4 * MIB);
    assert_same(&through[..bytes.len()], &bytes);
    assert!(through[bytes.len()..].iter().all(|byte| *byte == 0));
    assert_same(&shell("cat \"$1\" | $NBD copy - - | cat > \"$3\""), &bytes);
    // The end of this stream is zero, and the file has it all the same.
    let mut zeroes = noise(5000);
    zeroes.resize(MIB, 0);
    folder.file("source", &zeroes);
    assert_same(&shell("cat \"$1\" | $NBD copy - \"$3\""), &zeroes);
}

#[test]
fn a_stream_that_does_not_fit_fails_where_the_room_ends() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let (_server, uri) = nbdkit(&peer, &["memory", "1M"]);
    let mut command = Command::new("sh");
    command.args(["-c", "head -c 2000000 /dev/zero | $NBD copy - \"$1\"", "sh", &uri]);
    let finished = run(command.env("NBD", nbd_binary()), SOON);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("offset 1048576"), "{}", finished.stderr);
}

#[test]
fn nothing_is_kept_of_what_goes_nowhere() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let (_server, uri) = nbdkit(&peer, &["pattern", "10M"]);
    copy(&[&uri, "null:"]);
    let finished = try_copy(&["-p", &uri, "null:"]);
    assert_eq!(finished.stderr, "", "there is no terminal for a bar");
    assert_eq!(try_copy(&["null:", &uri]).status.code(), Some(64));
}

#[test]
fn a_destination_that_is_too_small_is_left_alone() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    let source = folder.file("source", &noise(MIB + 1));
    let (_server, uri) = nbdkit(&peer, &["memory", "1M"]);
    let said = refused(&[&source, &uri]);
    assert!(said.contains("1048576 bytes") && said.contains("1048577"), "{said}");
    copy(&[&uri, &folder.text("to")]);
    assert_same(&read(folder.path("to")), &vec![0; MIB]);
}

#[test]
fn a_source_that_is_not_there_costs_nothing() {
    let folder = Folder::new();
    let to = folder.file("to", b"precious");
    for source in
        [folder.text("missing"), format!("nbd+unix:///?socket={}", folder.text("missing"))]
    {
        refused(&[&source, &to]);
        assert_eq!(read(&to), b"precious");
    }
    let said = refused(&[&to, &to]);
    assert!(said.contains("same file"), "{said}");
    assert_eq!(read(&to), b"precious");
}

#[test]
fn what_can_not_be_opened_is_named_with_what_to_do_about_it() {
    let folder = Folder::new();
    let from = folder.file("from", b"x");
    let (missing, nowhere) = (folder.text("missing"), folder.text("no/such/to"));
    for (words, says) in [
        ([&*missing, "null:"], "check the path"),
        (["no-such-file", "null:"], "check the path"),
        (["/dev/no-such-device", "null:"], "no such device; attach it or set it up first"),
        ([&*from, &*nowhere], "make the folder first: mkdir -p "),
        ([&*from, &*folder.text("")], " is a folder: name a file in it"),
    ] {
        let said = refused(&words);
        assert!(said.contains(says), "{says:?} is not in {said}");
    }
}

#[test]
fn files_take_the_size_of_the_source() {
    let folder = Folder::new();
    let source = folder.file("source", &noise(1000));
    let to = folder.file("to", &noise(MIB));
    copy(&[&source, &to]);
    assert_same(&read(&to), &noise(1000));
    folder.file("source", b"");
    copy(&[&source, &to]);
    assert_eq!(read(&to), b"");
    // A file that was not there stays, even if nothing is in it.
    let made = folder.text("made");
    copy(&[&source, &made]);
    assert_eq!(read(&made), b"");
}

#[test]
fn a_failure_is_named_with_its_offset() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    let read_from = "if [ $4 -eq 2097152 ]; then echo EIO bad sector >&2; exit 1; fi; \
                     head -c $3 /dev/zero";
    let pread = format!("pread={read_from}");
    let (_server, uri) = nbdkit(&peer, &["eval", "get_size=echo 4194304", &pread]);
    for connections in ["1", "4"] {
        let said = refused(&["-C", connections, &uri, &folder.text("to")]);
        assert!(said.contains("cannot read") && said.contains("offset 2097152"), "{said}");
    }
    let args = ["--filter=error", "memory", "4M", "error-pwrite=EIO", "error-pwrite-rate=100%"];
    let (_server, uri) = nbdkit(&peer, &args);
    let source = folder.file("source", &noise(1000));
    let said = refused(&[&source, &uri]);
    assert!(said.contains("cannot write") && said.contains("offset 0"), "{said}");
}

#[test]
fn a_server_that_dies_is_named_with_the_first_offset_that_is_missing() {
    let folder = Folder::new();
    let mut export = Export::new(Mode::Simple);
    export.size = 16 << 20;
    let mut script = Script::new(export).enter();
    for _ in 0..4 {
        script = script.request(Cmd::READ).obey();
    }
    let server = ScriptedServer::unix([script.header(Cmd::READ)]);
    let uri = server.endpoint().uri("");
    let args = ["-C", "1", "--request-size", "256k", "-S", "0", &uri, &folder.text("to")];
    let said = refused(&args);
    assert!(said.contains("cannot read") && said.contains("at offset 1048576:"), "{said}");
}

#[test]
fn a_disk_that_is_larger_than_any_file_leaves_the_old_one() {
    let folder = Folder::new();
    let to = folder.file("to", b"precious");
    let probe = std::fs::File::create(folder.path("probe")).unwrap();
    for size in [1 << 63, (1 << 63) - 1] {
        if probe.set_len(size).is_ok() {
            // This file system takes such files.
            continue;
        }
        let mut export = Export::new(Mode::Simple);
        export.size = size;
        let server = ScriptedServer::unix([Script::new(export.clone()).enter().serve()]);
        let said = refused(&[&server.endpoint().uri(""), &to]);
        assert!(said.contains("make room") || said.contains("than a file can have"), "{said}");
        assert_eq!(read(&to), b"precious");
        // One that was not there isn't left behind.
        let server = ScriptedServer::unix([Script::new(export).enter().serve()]);
        refused(&[&server.endpoint().uri(""), &folder.text("new")]);
        assert!(!folder.path("new").exists());
    }
}

#[test]
fn a_file_that_is_standard_input_or_output_is_not_copied_onto_itself() {
    let folder = Folder::new();
    let path = folder.file("file", b"precious");
    for line in [
        r#"exec "$0" copy - "$1" <"$1""#,
        r#"exec "$0" copy "$1" - >>"$1""#,
        r#"exec "$0" copy - - <"$1" >>"$1""#,
    ] {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).arg(nbd_binary()).arg(&path);
        let finished = run(&mut shell, SOON);
        assert_eq!(finished.status.code(), Some(1), "{line}");
        assert!(finished.stderr.contains("are the same file"), "{}", finished.stderr);
        assert_eq!(read(&path), b"precious", "{line}");
    }
}

#[test]
fn requests_of_a_size_that_no_memory_holds_are_usage_errors() {
    let folder = Folder::new();
    for size in ["1T", "67108865"] {
        let finished = try_copy(&["--request-size", size, "-", &folder.text("to")]);
        assert_eq!(finished.status.code(), Some(64), "{}", finished.stderr);
        assert!(finished.stderr.contains("at most 64M"), "{}", finished.stderr);
    }
}

#[test]
fn whole_blocks_are_written_and_the_rest_of_the_last_one_stays() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    let policy = ["blocksize-minimum=4096", "blocksize-error-policy=error"];
    let memory = ["--filter=blocksize-policy", "memory", "1M"];
    let (_server, uri) = nbdkit(&peer, &[&memory[..], &policy].concat());
    let old = folder.file("old", &[7; MIB]);
    copy(&[&old, &uri]);
    let bytes = holey(300_001);
    let source = folder.sparse("source", &bytes);
    copy(&["--request-size", "10000", "--verify", &source, &uri]);
    copy(&[&uri, &folder.text("to")]);
    let found = read(folder.path("to"));
    assert_same(&found[..bytes.len()], &bytes);
    assert!(found[bytes.len()..].iter().all(|byte| *byte == 7));
}

#[test]
fn a_server_that_keeps_nothing_is_found_out() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    let mut bytes = vec![0; 3 * MIB];
    bytes[1_234_567] = 1;
    bytes[2_345_678] = 1;
    let source = folder.file("source", &bytes);
    let (_server, uri) = nbdkit(&peer, &["null", "3M"]);
    for connections in ["1", "4"] {
        let said = refused(&["--verify", "-C", connections, &source, &uri]);
        assert!(said.contains("first difference is at offset 1234567"), "{said}");
    }
    for (from, to) in [(&*source, "-"), (&*source, "null:"), ("-", &*uri)] {
        assert_eq!(try_copy(&["--verify", from, to]).status.code(), Some(64), "{from} {to}");
    }
}

#[test]
fn zeroes_that_are_there_are_not_written() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    let source = folder.sparse("source", &holey(4 * MIB));
    for (way, asked) in [
        (&["--destination-is-zero"][..], None),
        (&["--target-is-zero", "--no-extents"], None),
        (&[], Some("trim=1")),
        (&["--no-extents"], Some("trim=1")),
        (&["--allocated"], Some("trim=0")),
    ] {
        let log = folder.text("log");
        let logfile = format!("logfile={log}");
        let (server, uri) = nbdkit(&peer, &["--filter=log", "memory", "4M", &logfile]);
        copy(&[way, &["--verify", &source, &uri]].concat());
        drop(server);
        let text = String::from_utf8(read(&log)).unwrap();
        let zeroes: Vec<&str> = text.lines().filter(|line| line.contains(" Zero id=")).collect();
        assert_eq!(!zeroes.is_empty(), asked.is_some(), "{way:?}: {text}");
        assert!(
            zeroes.iter().all(|line| line.contains(asked.unwrap_or_default())),
            "{way:?}: {text}"
        );
        std::fs::remove_file(&log).unwrap();
    }
}

/// C-META-08: only what reads as zeroes is taken for zeroes.
#[test]
fn a_hole_that_may_hold_anything_is_read() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    for (kind, expected) in [("hole", b'x'), ("zero", 0), ("hole,zero", 0)] {
        let extents = format!("extents=echo 0 1048576 {kind}");
        let (_server, uri) = nbdkit(
            &peer,
            &[
                "eval",
                "get_size=echo 1048576",
                "pread=head -c $3 /dev/zero | tr '\\0' x",
                "can_extents=exit 0",
                &extents,
            ],
        );
        let to = folder.text("to");
        copy(&[&uri, &to]);
        assert_same(&read(&to), &[expected; MIB]);
        std::fs::remove_file(&to).unwrap();
    }
}

#[test]
fn servers_without_write_zeroes_are_sent_data() {
    let Some(peer) = peers::require("nbdkit") else { return };
    let folder = Folder::new();
    let bytes = holey(2 * MIB);
    let source = folder.sparse("source", &bytes);
    let (_server, uri) = nbdkit(&peer, &["--filter=nozero", "memory", "2M"]);
    let full = folder.file("full", &noise(2 * MIB));
    copy(&[&full, &uri]);
    copy(&["--verify", &source, &uri]);
}

#[test]
fn a_source_and_a_destination_are_needed() {
    for args in [&[][..], &["a"], &["a", "b", "c"], &["-R", "0", "a", "b"], &["[", "a", "b"]] {
        assert_eq!(try_copy(args).status.code(), Some(64), "{args:?}");
    }
}

/// Holes within a block of the destination belong to the data around them.
#[test]
fn holes_shorter_than_a_block_of_the_destination_shift_nothing() {
    let folder = Folder::new();
    let some = noise(192 << 10);
    let mut bytes = vec![0; 192 << 10];
    for (at, length) in [(0, 4 << 10), (16 << 10, 16 << 10), (160 << 10, 32 << 10)] {
        bytes[at..at + length].copy_from_slice(&some[at..at + length]);
    }
    let source = folder.sparse("source", &bytes);
    let ours = SETUP.serve().args(["--block-size", "64k", "memory:192k"]).start();
    let mut uris = vec![ours.uri("")];
    let sizes = ["blocksize-minimum=64k", "blocksize-preferred=64k", "blocksize-maximum=1M"];
    let policy = [&["--filter=blocksize-policy", "memory", "192k"][..], &sizes].concat();
    let theirs = peers::require("nbdkit").map(|peer| nbdkit(&peer, &policy));
    uris.extend(theirs.as_ref().map(|(_, uri)| uri.clone()));
    for uri in uris {
        copy(&[&source, &uri]);
        copy(&[&uri, &folder.text("back")]);
        assert_same(&read(folder.path("back")), &bytes);
    }
}
