//! `nbd serve --track`: incremental backup with stock tools.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers::{self, Peer};
use nbd_testkit::process::{Finished, run};
use nbd_testkit::raw::{RawClient, Request};
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport, nbd_binary};

const K64: u64 = 64 << 10;
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(30);
const SETUP: Setup = Setup { runtime: Runtime::Blocking, transport: Transport::Unix };

nbd_testkit::matrix! {
    tcp_and_unix: [],
    unix: [bitmaps_are_started_cleared_and_stopped_while_clients_write],
}

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

/// The bytes that an image has itself, by what `qemu-img map` says.
fn allocated(map: &str) -> u64 {
    let own = map.lines().filter(|line| line.contains("\"depth\": 0"));
    let length = |line: &str| -> u64 {
        let rest = line.split_once("\"length\": ").unwrap().1;
        rest[..rest.find(',').unwrap()].parse().unwrap()
    };
    own.map(length).sum()
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

/// `nbd bitmap` on a server's control socket.
fn bitmap(control: &Path, arguments: &[&str]) -> Finished {
    run(Command::new(nbd_binary()).arg("bitmap").arg(control).args(arguments), SOON)
}

/// The dirty ranges of a bitmap of an export, by `nbd map`.
#[track_caller]
fn dirty(server: &NbdServe, export: &str, name: &str) -> Vec<(u64, u64)> {
    let context = format!("qemu:dirty-bitmap:{name}");
    let mut command = Command::new(nbd_binary());
    command.args(["map", "-c", &context, &server.uri(export)]);
    let map = run(&mut command, SOON).success();
    let lines = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let lines = lines.filter(|words| words[2] == "1");
    lines.map(|words| (words[0].parse().unwrap(), words[1].parse().unwrap())).collect()
}

/// A server with a control socket, and that.
#[track_caller]
fn controlled(setup: Setup, args: &[&str]) -> (NbdServe, PathBuf) {
    let serve = setup.serve();
    let control = serve.dir().join("control");
    let path = control.display().to_string();
    (serve.args(["--control", &path]).args(args.iter().copied()).start(), control)
}

fn bitmaps_are_started_cleared_and_stopped_while_clients_write(setup: Setup) {
    let (server, control) = controlled(setup, &["--track", "one", "memory:8M", "b=memory:8M"]);
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(MIB, b"x");
    assert_eq!(bitmap(&control, &["start", "two"]).success(), "");
    client.write(2 * MIB, b"x");
    assert_eq!(bitmap(&control, &["list"]).success(), "one\ntwo\n");
    assert_eq!(dirty(&server, "", "one"), [(MIB, K64), (2 * MIB, K64)]);
    assert_eq!(dirty(&server, "", "two"), [(2 * MIB, K64)]);
    assert_eq!(dirty(&server, "b", "two"), []);
    bitmap(&control, &["clear", "one"]).success();
    client.write(3 * MIB, b"x");
    assert_eq!(dirty(&server, "", "one"), [(3 * MIB, K64)]);
    assert_eq!(dirty(&server, "", "two"), [(2 * MIB, K64), (3 * MIB, K64)]);
    bitmap(&control, &["stop", "one"]).success();
    assert_eq!(bitmap(&control, &["list"]).success(), "two\n");
    client.write(4 * MIB, b"x");
    client.finish();
}

#[test]
fn files_of_a_directory_have_no_bitmap_and_it_is_said_why() {
    let folder = tempfile::tempdir().unwrap();
    let (server, control) = controlled(SETUP, &[&format!("dir:{}", folder.path().display())]);
    let refused = bitmap(&control, &["start", "one"]).failure();
    assert!(refused.contains("a directory, changes to whose files are not recorded"), "{refused}");
    drop(server);
}

#[test]
fn the_control_socket_is_this_users_alone_and_goes_with_the_server() {
    let (mut server, control) = controlled(SETUP, &["memory:1M"]);
    let mode = std::fs::metadata(&control).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    server.terminate();
    assert_eq!(server.wait_exit(SOON).and_then(|status| status.code()), Some(0));
    assert!(!control.exists());
}

#[test]
fn what_nbd_bitmap_can_not_do_is_named() {
    let (server, control) = controlled(SETUP, &["--track", "one", "memory:1M"]);
    let long = "x".repeat(100_000);
    for (arguments, says) in [
        (["start", "one"], "cannot start 'one': there is a bitmap of that name"),
        (["start", ""], "cannot start '': a bitmap's name has"),
        (["start", &long], "cannot start the bitmap: a bitmap's name has 1 to 4078 bytes"),
        (["stop", "two"], "cannot stop 'two': there is no such bitmap"),
        (["clear", "two"], "cannot clear 'two'"),
    ] {
        let finished = bitmap(&control, &arguments);
        assert_eq!(finished.status.code(), Some(1));
        assert!(finished.stderr.contains(says), "{says:?} is not in {}", finished.stderr);
    }
    let missing = bitmap(&server.dir().join("missing"), &["list"]).failure();
    assert!(missing.contains("missing: No such file") && missing.contains("--control"));
    assert_eq!(bitmap(&control, &["dance"]).status.code(), Some(64));
    // A server of something else.
    let nbd = server.endpoint().socket_path().unwrap();
    assert!(bitmap(nbd, &["list"]).failure().contains("is not the control socket of nbd serve"));
}

#[test]
fn clients_of_the_control_socket_that_make_no_sense_are_survived() {
    let (_server, control) = controlled(SETUP, &["memory:1M"]);
    for bytes in [&b""[..], b"\xff\xfe", b"dance\nx", &[b'x'; 100_000]] {
        let mut stream = UnixStream::connect(&control).unwrap();
        // It may have heard enough before the end.
        let _heard = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.starts_with(b"{\"error\":"), !bytes.is_empty(), "{answer:?}");
    }
    drop(UnixStream::connect(&control).unwrap());
    bitmap(&control, &["start", "with a space\nand a line"]).success();
    assert_eq!(bitmap(&control, &["list"]).success(), "with a space\\nand a line\n");
}

#[test]
fn as_many_bitmaps_as_there_can_be_are_listed_whole() {
    let (_server, control) = controlled(SETUP, &["memory:1M"]);
    let start = |name: &str| {
        let mut stream = UnixStream::connect(&control).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let arguments = format!("{{\"name\":\"{name}\"}}");
        let request = r#"{"version":1,"verb":"bitmap-start","arguments":"#;
        writeln!(stream, "{request}{arguments}}}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let names: Vec<String> = (0..256).map(|at| format!("{at:x>4078}")).collect();
    for name in &names {
        assert_eq!(start(name), "{\"ok\":null}\n");
    }
    assert_eq!(bitmap(&control, &["list"]).success(), names.join("\n") + "\n");
    let more = bitmap(&control, &["start", "more"]).failure();
    assert!(more.contains("cannot start 'more': there are 256 bitmaps"), "{more}");
}

#[test]
fn a_control_socket_that_can_not_be_bound_is_named_with_a_remedy() {
    let serve = SETUP.serve();
    let control = serve.dir().join("missing/control").display().to_string();
    let finished = run(&mut serve.args(["--control", &control, "memory:1M"]).command(), SOON);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains(&control) && finished.stderr.contains("mkdir -p"));
    let (_server, control) = controlled(SETUP, &["memory:1M"]);
    let control = control.display().to_string();
    let second = SETUP.serve().args(["--control", &control, "memory:1M"]);
    let finished = run(&mut second.command(), SOON);
    assert_eq!(finished.status.code(), Some(1));
    assert!(finished.stderr.contains("another server"), "{}", finished.stderr);
    assert_eq!(bitmap(Path::new(&control), &["list"]).success(), "", "the first is left alone");
}

/// The commands of the page, in order.
fn example() -> Vec<&'static str> {
    let page = include_str!("../../docs/incremental-backup.md");
    let blocks = page.split("```sh\n").skip(1);
    blocks.map(|block| block.split_once("```").expect("the block ends").0).collect()
}

/// A script of the page, run where the server's sockets are.
fn shell(script: &str, arguments: &[&str], dir: &Path) -> Command {
    let mut command = Command::new("sh");
    let folder = nbd_binary().parent().expect("it is in a folder").to_owned();
    let mut path = vec![folder];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    command.env("PATH", std::env::join_paths(path).expect("plain names")).current_dir(dir);
    command.args(["-euc", script, "sh"]).args(arguments);
    command
}

#[test]
fn the_worked_example_backs_up_what_has_changed_and_no_more() {
    let (Some(img), Some(_)) = (peers::require("qemu-img"), peers::require("qemu-io")) else {
        return;
    };
    let [serve, full, backup, map, restore] = example()[..] else { panic!("five blocks") };
    assert_eq!(serve, "nbd serve -U nbd.sock --control nbd.control disk.img\n");
    let server = SETUP.serve();
    let (dir, control) = (server.dir().to_owned(), server.dir().join("nbd.control"));
    let disk = dir.join("disk.img");
    image(&disk);
    let [disk, control] = [&disk, &control].map(|path| path.display().to_string());
    let server = server.args(["--control", &control, &disk]).start();
    assert_eq!(server.endpoint().socket_path(), Some(dir.join("nbd.sock").as_path()));

    run(&mut shell(full, &[], &dir), SOON).success();
    let mut client = RawClient::go_simple(server.endpoint());
    client.write(3 * MIB + 5, &[0xaa; 100_000]);
    client.call(&Request::write_zeroes(6 * MIB, K64)).ok();
    run(&mut shell(backup, &["monday", "tuesday"], &dir), SOON).success();

    // Tuesday's file has what was dirty, and all of the disk by way of Monday's.
    let own =
        run(img.command().args(["map", "--output=json", "tuesday.qcow2"]).current_dir(&dir), SOON);
    assert_eq!(allocated(&own.success()), 3 * K64);
    let restored = || {
        run(&mut shell(restore, &[], &dir), SOON).success();
        std::fs::read(dir.join("restored.img")).unwrap()
    };
    assert!(restored() == std::fs::read(&disk).unwrap(), "the backup is the disk");
    assert_eq!(bitmap(Path::new(&control), &["list"]).success(), "tuesday\n");

    // The day after: what was changed since, and a failure that loses nothing.
    client.write(MIB, b"x");
    let ranges = run(&mut shell(map, &[], &dir), SOON).success();
    assert!(ranges.contains(r#""start": 1048576, "length": 65536"#), "{ranges}");
    run(&mut shell(backup, &["no-such-bitmap", "wednesday"], &dir), SOON).failure();
    assert_eq!(bitmap(Path::new(&control), &["list"]).success(), "tuesday\n");
    assert!(!dir.join("wednesday.qcow2").exists());
    // Nor does a name that was used before, the one of the full backup even.
    let monday = std::fs::read(dir.join("monday.qcow2")).unwrap();
    let said = run(&mut shell(backup, &["tuesday", "monday"], &dir), SOON).failure();
    assert!(said.contains("monday.qcow2 is there already"), "{said}");
    assert!(std::fs::read(dir.join("monday.qcow2")).unwrap() == monday);
    assert_eq!(bitmap(Path::new(&control), &["list"]).success(), "tuesday\n");
    client.write(2 * MIB, b"y");
    client.finish();
    run(&mut shell(backup, &["tuesday", "wednesday"], &dir), SOON).success();
    std::fs::rename(dir.join("wednesday.qcow2"), dir.join("latest.qcow2")).unwrap();
    let restore = restore.replace("tuesday", "latest");
    run(&mut shell(&restore, &[], &dir), SOON).success();
    assert!(std::fs::read(dir.join("restored.img")).unwrap() == std::fs::read(&disk).unwrap());
}

/// The server dies when the script runs a program for the first time. What is there under the backup's name is complete.
#[test]
fn a_server_that_dies_leaves_no_part_of_a_backup_under_its_name() {
    let (Some(img), Some(io)) = (peers::require("qemu-img"), peers::require("qemu-io")) else {
        return;
    };
    let [_, full, backup, _, restore] = example()[..] else { panic!("five blocks") };
    let [img, io] = [img, io].map(|peer| peer.command().get_program().to_owned());
    for (program, when, is_complete) in [
        ("qemu-img", "create", false),
        ("qemu-io", "", false),
        ("qemu-img", "rebase", true),
        ("mv", "", true),
    ] {
        let server = SETUP.serve();
        let dir = server.dir().to_owned();
        let [disk, control, pid] =
            ["disk.img", "nbd.control", "pid"].map(|name| dir.join(name).display().to_string());
        image(Path::new(&disk));
        let server = server.args(["--control", &control, "--pid-file", &pid, &disk]).start();
        run(&mut shell(full, &[], &dir), SOON).success();
        let mut client = RawClient::go_simple(server.endpoint());
        client.write(3 * MIB + 5, &[0xaa; 100_000]);
        client.finish();

        let real = match program {
            "qemu-img" => img.to_string_lossy(),
            "qemu-io" => io.to_string_lossy(),
            other => format!("/bin/{other}").into(),
        };
        let stub = dir.join("stub");
        std::fs::create_dir(&stub).unwrap();
        let text = format!(
            "#!/bin/sh\ncase $* in *{when}*) kill -9 \"$(cat pid)\" || true;; esac\nPATH=${{PATH#*:}}\nexec {real} \"$@\"\n"
        );
        std::fs::write(stub.join(program), text).unwrap();
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(stub.join(program), executable).unwrap();
        let stubbed = format!("PATH=$PWD/stub:$PATH\n{backup}");
        let said = run(&mut shell(&stubbed, &["monday", "tuesday"], &dir), SOON).failure();
        let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> =
            names.filter(|name| name.to_string_lossy().contains("tues")).collect();
        left.sort();
        if is_complete {
            assert_eq!(left, ["tuesday.qcow2"], "{said}");
            run(&mut shell(restore, &[], &dir), SOON).success();
            let restored = std::fs::read(dir.join("restored.img")).unwrap();
            assert!(restored == std::fs::read(&disk).unwrap(), "{program} {when}");
        } else {
            assert_eq!(left, [""; 0], "{program} {when}: {said}");
            // The next try is not refused for what is there.
            let said = run(&mut shell(backup, &["monday", "tuesday"], &dir), SOON).failure();
            assert!(said.contains("no answer on the control socket"), "{said}");
        }
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

    // The full backup, while no client writes.
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
    let own = allocated(&own.success());
    assert_eq!(own, 3 * K64);
    let same = qemu_img(&["compare", "-f", "qcow2", "-F", "raw", &overlay, &server.uri("")]);
    assert!(same.contains("identical"), "{same}");
}
