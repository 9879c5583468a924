//! What it serves, and what it can't.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nbd_testkit::LoopDevice;
use nbd_testkit::raw::{Errno, Info, RawClient, Request, flag};

use super::{RUNTIMES, Serving, refuses, serve};

fn text(path: &Path) -> &str {
    path.to_str().expect("folders for tests have plain names")
}

#[test]
fn a_file_is_served_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    for runtime in RUNTIMES {
        fs::write(&path, vec![5; 1 << 20]).unwrap();
        let server = Serving::start(["--runtime", runtime, "--port", "0", text(&path)]);
        let mut client = RawClient::go_simple(&server.endpoint());
        assert_eq!(client.export().size, 1 << 20);
        assert_eq!(client.read(1000, 8), [5; 8]);
        client.write(100, runtime.as_bytes());
        client.call(&Request::flush()).ok();
        assert!(fs::read(&path).unwrap()[100..].starts_with(runtime.as_bytes()));
        client.finish();
        server.stop();
    }
}

#[test]
fn a_file_whose_name_is_not_utf8_is_served_and_an_export_name_has_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(OsStr::from_bytes(b"caf\xe9.img"));
    fs::write(&path, vec![5; 1 << 20]).unwrap();
    let named =
        |name: &[u8]| OsString::from_vec([name, b"=", path.as_os_str().as_bytes()].concat());
    for word in [path.clone().into_os_string(), named(b""), named("é".as_bytes())] {
        for runtime in RUNTIMES {
            let options = ["--runtime", runtime, "--port", "0"].map(OsString::from);
            let server = Serving::start(options.into_iter().chain([word.clone()]));
            let mut client = RawClient::go_simple(&server.endpoint());
            assert_eq!(client.read(1000, 8), [5; 8]);
            client.finish();
            server.stop();
        }
    }
    let options = ["--port", "0"].map(OsString::from);
    let mut command = serve(options.into_iter().chain([named(b"caf\xe9")]));
    refuses(&mut command, 64, &["'caf\\xe9' is not UTF-8; only paths may"]);
    let name = OsString::from_vec(b"caf\xe9".to_vec());
    let mut command = serve([OsString::from("--export-name"), name]);
    refuses(&mut command, 64, &["'caf\\xe9' is not UTF-8; only paths may"]);
}

#[test]
fn read_only_files_and_disks_refuse_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    fs::write(&path, vec![5; 1 << 20]).unwrap();
    // Nobody may write it, so that it can only be opened for reading.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    for runtime in RUNTIMES {
        for backend in [text(&path), "memory:1M"] {
            let server =
                Serving::start(["--runtime", runtime, "--port", "0", "--read-only", backend]);
            let mut client = RawClient::go_simple(&server.endpoint());
            assert!(client.has_flag(flag::READ_ONLY));
            client.call(&Request::write(0, &[6; 512])).expect_error(Errno::EPERM);
            assert_eq!(client.read(0, 512).len(), 512);
            client.finish();
            server.stop();
        }
    }
    assert!(fs::read(&path).unwrap() == [5; 1 << 20]);
}

#[test]
fn exports_are_listed_by_name_and_the_first_is_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a=b.img");
    fs::write(&path, vec![5; 1 << 20]).unwrap();
    let server = Serving::start([
        "--port",
        "0",
        "--description",
        "for a test",
        "small=memory:1M",
        "large=memory:2M",
        &format!("file={}", text(&path)),
    ]);
    let mut client = RawClient::negotiate(&server.endpoint());
    let listed = client.list().unwrap();
    let expected = ["small", "large", "file"].map(|name| (name.into(), "for a test".into()));
    assert_eq!(listed, expected);
    let default = client.info("", &[Info::NAME, Info::DESCRIPTION]).unwrap();
    assert_eq!((default.size, default.name.as_deref()), (1 << 20, Some("small")));
    assert_eq!(default.description.as_deref(), Some("for a test"));
    assert_eq!(client.go("large", &[]).unwrap().size, 2 << 20);
    client.finish();
    server.stop();
}

#[test]
fn a_name_can_be_given_by_an_option() {
    let server = Serving::start(["--port", "0", "--export-name", "disk", "memory:1M"]);
    let mut client = RawClient::negotiate(&server.endpoint());
    assert_eq!(client.list().unwrap(), [("disk".into(), String::new())]);
    client.go("disk", &[]).unwrap();
    client.finish();
    server.stop();
}

#[test]
fn a_missing_file_is_named_with_the_command_that_makes_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my missing.img");
    let named = text(&path);
    for word in [named.to_owned(), format!("file:{named}"), format!("disk={named}")] {
        let remedy = format!("truncate -s 1G '{named}'");
        refuses(&mut serve(["--port", "0", &word]), 1, &[named, "no such file", &remedy]);
    }
    assert!(!path.exists(), "nothing is created");
}

#[test]
fn a_missing_folder_is_named_with_the_command_that_makes_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my missing/disk.img");
    let remedy = format!("mkdir -p '{}/my missing'", folder.path().display());
    refuses(&mut serve(["--port", "0", text(&path)]), 1, &[text(&path), &remedy]);
}

#[test]
fn files_that_are_no_disks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    refuses(
        &mut serve(["--port", "0", text(folder.path())]),
        1,
        &[text(folder.path()), "is a directory", "regular file or a block device"],
    );
    refuses(&mut serve(["--port", "0", "/dev/null"]), 1, &["/dev/null", "a character device"]);

    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    refuses(&mut serve(["--port", "0", text(&socket)]), 1, &[text(&socket), "a socket"]);

    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is everywhere");
    assert!(made.success());
    refuses(&mut serve(["--port", "0", text(&pipe)]), 1, &[text(&pipe), "a pipe"]);
}

/// A request log can go to a pipe, if somebody reads it; the server waits for nobody who may.
#[test]
fn a_request_log_waits_for_no_reader_of_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
    let layer = format!("log:{}", text(&pipe));
    let words = ["--port", "0", "--layer", &layer, "memory:1M"];
    refuses(&mut serve(words), 1, &["cannot write the request log", "a pipe that nobody reads"]);

    let mut read = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let server = Serving::start(words);
    let mut client = RawClient::go_simple(&server.endpoint());
    client.read(0, 512);
    client.finish();
    server.stop();
    let mut line = [0; 4096];
    let length = read.read(&mut line).unwrap();
    assert!(String::from_utf8_lossy(&line[..length]).contains(" read offset=0 length=512 "));
}

/// The command, run by nobody if the test is run by the superuser, whom no permission stops. `None` if nobody can't
/// get at the binary.
pub(super) fn without_privileges(mut command: Command) -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        return Some(command);
    }
    command.uid(65534).gid(65534);
    let mut probe = Command::new(env!("CARGO_BIN_EXE_nbd"));
    probe.arg("--version").uid(65534).gid(65534);
    let reachable = probe.output().is_ok_and(|output| output.status.success());
    if !reachable {
        eprintln!("skipped: run by the superuser, and nobody else can get at the binary");
    }
    reachable.then_some(command)
}

#[test]
fn a_file_without_permission_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("disk.img");
    fs::write(&path, vec![5; 1 << 20]).unwrap();

    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let Some(mut command) = without_privileges(serve(["--port", "0", text(&path)])) else { return };
    refuses(&mut command, 1, &[text(&path), "permission denied", "allow this user"]);

    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let Some(mut command) = without_privileges(serve(["--port", "0", text(&path)])) else { return };
    refuses(&mut command, 1, &[text(&path), "permission to write", "read-only"]);
}

/// An image of odd size is not cut off in silence.
#[test]
fn a_tail_that_no_block_covers_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.img");
    for (length, block, size, cut) in
        [(1_200_007, "4k", 1_196_032, "3975 bytes"), (1025, "512", 1024, "1 byte")]
    {
        fs::write(&path, vec![5; length]).unwrap();
        let arguments = ["--port", "0", "--block-size", block, text(&path)];
        let server = Serving::start(arguments);
        let client = RawClient::go_simple(&server.endpoint());
        assert_eq!(client.export().size, size);
        client.finish();
        server.process.terminate();
        let (_, said) = server.end();
        assert!(said.contains(&format!("the end of '{}', {cut}, is", text(&path))), "{said}");
    }
    for (length, block) in [(4096, "4k"), (1 << 20, "64k"), (1_200_007, "1")] {
        fs::write(&path, vec![5; length]).unwrap();
        let server = Serving::start(["--port", "0", "--block-size", block, text(&path)]);
        server.process.terminate();
        let (_, said) = server.end();
        assert_eq!(said, "", "nothing is cut off");
    }
}

#[test]
fn a_disk_smaller_than_a_block_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.img");
    fs::write(&path, [5; 100]).unwrap();
    for word in [text(&path), "memory:100"] {
        let says = ["has 100 bytes", "a block of 4096", "smaller --block-size"];
        refuses(&mut serve(["--port", "0", "--block-size", "4k", word]), 64, &says);
    }
}

/// As nbdkit does it: a client that enters sees the size that the file has by then.
#[test]
fn a_file_that_grew_is_larger_for_new_clients() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    for runtime in RUNTIMES {
        fs::write(&path, vec![5; 1 << 20]).unwrap();
        let server = Serving::start(["--runtime", runtime, "--port", "0", text(&path)]);
        let mut early = RawClient::go_simple(&server.endpoint());
        fs::File::options().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
        let mut late = RawClient::go_simple(&server.endpoint());
        assert_eq!((early.export().size, late.export().size), (1 << 20, 2 << 20));
        late.write((2 << 20) - 1, &[6]);
        early.call(&Request::read(1 << 20, 1)).expect_error(Errno::EINVAL);
        early.finish();
        late.finish();
        server.stop();
    }
}

/// Each export has its own record of changes and its own size, so that a file behind two of them is refused where that
/// would go wrong, by whatever paths it is named.
#[test]
fn a_file_behind_two_exports_is_refused_where_one_would_miss_the_changes_of_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let [file, linked, hard, other] =
        ["disk.img", "soft.img", "hard.img", "other.img"].map(|name| folder.path().join(name));
    fs::write(&file, [0; 4096]).unwrap();
    fs::write(&other, [0; 4096]).unwrap();
    std::os::unix::fs::symlink(&file, &linked).unwrap();
    fs::hard_link(&file, &hard).unwrap();
    let control = folder.path().join("control");
    let x = format!("x={}", text(&file));
    for again in [&file, &linked, &hard] {
        let y = format!("y={}", text(again));
        for option in [&["--track", "b"][..], &["--resize"], &["--control", text(&control)]] {
            let words = [&["--port", "0"], option, &[&x, &y]].concat();
            let says = ["'x' and 'y' are the same file", option[0], "export the file once"];
            refuses(&mut serve(words), 64, &says);
        }
        let server = Serving::start(["--port", "0", &x, &y]);
        server.process.terminate();
        let (code, log) = server.end();
        let warnings = log.matches("'x' and 'y' are the same file").count();
        assert_eq!((code, warnings), (Some(0), 1), "{log}");
        Serving::start(["--port", "0", "--read-only", &x, &y]).stop();
    }
    let y = format!("y={}", text(&other));
    Serving::start(["--port", "0", "--track", "b", "--resize", &x, &y]).stop();
}

/// A loop device is its file, whichever comes first.
#[test]
fn a_device_and_what_it_lies_on_are_refused_behind_two_exports_like_one_file() {
    if !LoopDevice::are_possible() {
        return;
    }
    let device = LoopDevice::new(&[0; 4096]);
    let (file, path) = (device.file(), device.path.as_str());
    for [x, y] in [[path, &file], [&file, path]] {
        let [x, y] = [format!("x={x}"), format!("y={y}")];
        let says = [
            "'x' and 'y' share their bytes",
            "lies on the other, or is what that lies on",
            "export the file once",
        ];
        refuses(&mut serve(["--port", "0", "--track", "b", &x, &y]), 64, &says);
        let server = Serving::start(["--port", "0", &x, &y]);
        server.process.terminate();
        let (code, log) = server.end();
        let warnings = log.matches("'x' and 'y' share their bytes").count();
        assert_eq!((code, warnings), (Some(0), 1), "{log}");
        Serving::start(["--port", "0", "--read-only", &x, &y]).stop();
        // Which parts are shown of either is not looked at.
        let part = ["--port", "0", "--track", "b", "--layer", "offset:512", &x, &y];
        let server = Serving::start(part);
        server.process.terminate();
        let (code, log) = server.end();
        assert!(code == Some(0) && log.contains("unless their parts are apart"), "{log}");
    }
}
