//! `dir:PATH`: each file of a directory as an export, and nothing else, whatever clients ask for and others do meanwhile.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use nbd_testkit::cases;
use nbd_testkit::process::{run, wait_until};
use nbd_testkit::raw::{Errno, RawClient, Rep, Request, flag};
use rustix::fs::{FileType, Mode};

use super::{LIMIT, RUNTIMES, Serving, refuses, serve};

/// A directory `disks`, beside what nobody may see.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::create_dir(folder.path("disks")).unwrap();
        fs::write(folder.path("secret"), [13; 8192]).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn disk(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path("disks").join(name)
    }

    /// Writes a file of the directory, a page of these bytes.
    fn write(&self, name: impl AsRef<Path>, byte: u8) {
        fs::write(self.disk(name), [byte; 4096]).unwrap();
    }

    /// The word of the command line, with a prefix.
    fn word(&self, prefix: &str) -> String {
        format!("{prefix}dir:{}", self.path("disks").display())
    }
}

#[track_caller]
fn listed(server: &Serving) -> Vec<String> {
    let mut client = RawClient::negotiate(&server.endpoint());
    let listed = client.list().unwrap();
    client.finish();
    listed.into_iter().map(|(name, _)| name).collect()
}

/// The first bytes of an export, or why there is none.
fn entered(server: &Serving, name: impl AsRef<[u8]>) -> Result<RawClient, Rep> {
    let mut client = RawClient::negotiate(&server.endpoint());
    match client.go(name, &[]) {
        Ok(_) => Ok(client),
        Err(error) => {
            client.finish();
            Err(error.code)
        }
    }
}

#[track_caller]
fn first_byte(server: &Serving, name: &str) -> u8 {
    let mut client = entered(server, name).unwrap_or_else(|code| panic!("{name}: {code:?}"));
    let byte = client.read(0, 512)[0];
    client.finish();
    byte
}

#[test]
fn each_file_is_an_export_as_files_come_and_go() {
    for runtime in RUNTIMES {
        let folder = Folder::new();
        folder.write("a", 1);
        let words = ["--runtime", runtime, "--port", "0", "--description", "a file"];
        let server = Serving::start(words.into_iter().chain([&*folder.word("")]));
        let mut client = RawClient::negotiate(&server.endpoint());
        assert_eq!(client.list().unwrap(), [("a".to_owned(), "a file".to_owned())]);
        assert_eq!(client.go("a", &[]).unwrap().size, 4096);
        client.write(512, &[9; 512]);
        client.call(&Request::flush()).ok();
        assert_eq!(fs::read(folder.disk("a")).unwrap()[512..1024], [9; 512]);
        folder.write("b", 2);
        assert_eq!(listed(&server), ["a", "b"]);
        assert_eq!(first_byte(&server, "b"), 2);
        fs::remove_file(folder.disk("a")).unwrap();
        assert_eq!(listed(&server), ["b"]);
        assert_eq!(entered(&server, "a").err(), Some(Rep::ERR_UNKNOWN));
        // Its client still has it.
        assert_eq!(client.read(512, 512), [9; 512]);
        // No file is that of clients which name none.
        assert_eq!(entered(&server, "").err(), Some(Rep::ERR_UNKNOWN));
        client.finish();
        server.stop();
    }
}

#[test]
fn names_in_front_keep_directories_apart_and_named_exports_go_first() {
    let folder = Folder::new();
    for name in ["a", "b", "own"] {
        folder.write(name, name.as_bytes()[0]);
    }
    let other = folder.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a"), [7; 4096]).unwrap();
    let server = Serving::start([
        "--port",
        "0",
        "--read-only",
        &folder.word(""),
        &format!("x=dir:{}", other.display()),
        "b=memory:1M",
        &format!("mine={}", folder.disk("own").display()),
    ]);
    // The file of an export of its own has no second name.
    assert_eq!(listed(&server), ["b", "mine", "a", "x/a"]);
    assert_eq!(["b", "mine", "a", "x/a"].map(|name| first_byte(&server, name)), [0, b'o', b'a', 7]);
    for name in ["own", "x/b", "x/", "x", "/a", "x/x/a", "x//a"] {
        assert_eq!(entered(&server, name).err(), Some(Rep::ERR_UNKNOWN), "{name}");
    }
    let mut default = entered(&server, "").unwrap();
    assert_eq!(default.export().size, 1 << 20);
    assert!(default.has_flag(flag::READ_ONLY));
    default.call(&Request::write(0, &[6; 512])).expect_error(Errno::EPERM);
    default.finish();
    server.stop();
}

/// All that may lie in a directory and is no regular file of its own.
fn mine(folder: &Folder) -> UnixListener {
    let secret = folder.path("secret");
    fs::create_dir(folder.disk("inner")).unwrap();
    fs::write(folder.disk("inner/file"), [13; 4096]).unwrap();
    for (name, target) in [
        ("absolute", secret.to_str().unwrap()),
        ("relative", "../secret"),
        ("here", "."),
        ("above", ".."),
        ("alias", "disk"),
        ("zero", "/dev/zero"),
        ("self", "/proc/self/fd/0"),
        ("dangling", "missing"),
        ("loop", "loop"),
    ] {
        symlink(target, folder.disk(name)).unwrap();
    }
    let mode = Mode::from_raw_mode(0o600);
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, folder.disk(name), kind, mode, device)
    };
    node("pipe", FileType::Fifo, 0).unwrap();
    // Root alone can make these.
    let _not_permitted = node("null", FileType::CharacterDevice, 0x103);
    let _not_permitted = node("loop0", FileType::BlockDevice, 0x700);
    fs::write(folder.disk(".hidden"), [13; 4096]).unwrap();
    fs::write(folder.disk(OsStr::from_bytes(b"caf\xe9")), [13; 4096]).unwrap();
    UnixListener::bind(folder.disk("socket")).unwrap()
}

#[test]
fn no_name_leads_to_anything_but_a_regular_file_of_the_directory() {
    let folder = Folder::new();
    folder.write("disk", 1);
    let longest = "x".repeat(255);
    folder.write(&longest, 2);
    let _socket = mine(&folder);
    for (runtime, access) in [("tokio", "--read-only"), ("blocking", "--allocation-depth")] {
        let server =
            Serving::start(["--runtime", runtime, "--port", "0", access, &folder.word("")]);
        assert_eq!(listed(&server), ["disk", &longest]);
        assert_eq!((first_byte(&server, "disk"), first_byte(&server, &longest)), (1, 2));
        let secret = folder.path("secret");
        let disk = folder.disk("disk");
        let long = ["x".repeat(256), "x".repeat(4096), "../".repeat(1365)];
        let names = [
            ".",
            "..",
            "/",
            "../secret",
            "../disks/disk",
            "./disk",
            "disk/",
            "disk/.",
            "//disk",
            "inner",
            "inner/file",
            "inner/../disk",
            "absolute",
            "relative",
            "here",
            "here/disk",
            "above",
            "above/secret",
            "alias",
            "zero",
            "self",
            "dangling",
            "loop",
            "pipe",
            "null",
            "loop0",
            "socket",
            ".hidden",
            "caf\u{fffd}",
            "/etc/passwd",
            "/proc/self/environ",
            "DISK",
            "disk ",
            secret.to_str().unwrap(),
            disk.to_str().unwrap(),
        ];
        for name in names.into_iter().chain(long.iter().map(String::as_str)) {
            assert_eq!(entered(&server, name).err(), Some(Rep::ERR_UNKNOWN), "{name}");
        }
        // Names that are none at all.
        for name in [&b"caf\xe9"[..], b"disk\0", b"\0", b"\xff\xfe"] {
            assert!(entered(&server, name).is_err(), "{name:?}");
        }
        cases(60, |random| {
            let parts = ["..", "/", ".", "secret", "disk", "relative", "inner", "é", " ", "self"];
            let name: String = (0..=random.below(6)).map(|_| random.of(&parts)).collect();
            if let Ok(mut client) = entered(&server, &name) {
                assert_eq!((&*name, client.read(0, 4096)), ("disk", vec![1; 4096]));
                client.finish();
            }
        });
        server.process.terminate();
        let (code, said) = server.end();
        assert_eq!(code, Some(0), "{said}");
        // One line says that a file has no name that clients could ask for.
        assert_eq!(said.matches("not UTF-8").count(), 1, "{said}");
    }
}

/// A tenant that may write to the directory replaces a file by links to what the server alone may read.
#[test]
fn a_name_that_is_swapped_while_it_is_opened_never_leads_outside() {
    let folder = Folder::new();
    folder.write("disk", 1);
    let server = Serving::start(["--port", "0", "--read-only", &folder.word("")]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (link, copy) = (folder.disk(".link"), folder.disk(".copy"));
            while !stop.load(Ordering::Relaxed) {
                symlink(folder.path("secret"), &link).unwrap();
                fs::rename(&link, folder.disk("disk")).unwrap();
                fs::write(&copy, [1; 4096]).unwrap();
                fs::rename(&copy, folder.disk("disk")).unwrap();
            }
        });
        let (mut found, mut missed) = (0, 0);
        let end = Instant::now() + LIMIT;
        while (found < 8 || missed < 8) && Instant::now() < end {
            match entered(&server, "disk") {
                Ok(mut client) => {
                    assert_eq!(client.read(0, 512), [1; 512]);
                    client.finish();
                    found += 1;
                }
                Err(code) => {
                    assert_eq!(code, Rep::ERR_UNKNOWN);
                    missed += 1;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(found > 0 && missed > 0, "{found} {missed}");
    });
    server.stop();
}

#[test]
fn a_file_that_grows_or_shrinks_meanwhile_ends_no_connection() {
    let folder = Folder::new();
    folder.write("disk", 1);
    for runtime in RUNTIMES {
        folder.write("disk", 1);
        let server = Serving::start(["--runtime", runtime, "--port", "0", &folder.word("")]);
        let mut client = entered(&server, "disk").unwrap();
        let file = fs::File::options().write(true).open(folder.disk("disk")).unwrap();
        file.set_len(8192).unwrap();
        file.write_all_at(&[3; 512], 4096).unwrap();
        // Those who come now get all of it.
        let mut second = entered(&server, "disk").unwrap();
        assert_eq!(second.export().size, 8192);
        assert_eq!(second.read(4096, 512), [3; 512]);
        assert_eq!(client.read(0, 512), [1; 512]);
        file.set_len(512).unwrap();
        for client in [&mut client, &mut second] {
            assert!(client.call(&Request::read(0, 4096)).error().is_some());
            assert_eq!(client.read(0, 512), [1; 512]);
        }
        client.finish();
        second.finish();
        // What the file lacks by now is a failure of the disk, which is logged.
        let said = server.stopped();
        assert!(said.lines().all(|line| line.contains("the disk failed")), "{said}");
        assert!(said.contains("it was cut off while in use"), "{said}");
    }
}

#[test]
fn what_can_not_be_said_of_a_directory_is_refused_with_words() {
    let folder = Folder::new();
    folder.write("disk", 1);
    let disks = folder.word("");
    // Not in a folder that is served: that would be a disk.
    let volume = Folder::new();
    volume.write("nbd-volume.json", 1);
    for (words, code, says) in [
        (&["--track", "a", &*disks][..], 64, "leave out --track, or export the file by itself"),
        (&["--layer", "overlay:/x", &disks], 64, "leave out its file"),
        (&["--layer", "log:/x", &disks], 64, "the layer log:/x would write"),
        (&["--oldstyle", &disks], 64, "oldstyle clients name no export"),
        (&[&disks, &disks], 64, "two directories have no name in front of their files"),
        (&[&disks, &folder.word("x=")], 1, ""),
        (&["dir:"], 64, "names nothing to serve"),
        (&["dir:/no/such"], 1, "cannot open the directory '/no/such': No such file"),
        (&["dir:/etc/passwd"], 1, "Not a directory"),
        (&[folder.path("disks").to_str().unwrap()], 1, "to serve each file in it: dir:"),
        (&[volume.path("disks").to_str().unwrap()], 1, "for the volume in it: volume:file:///"),
    ] {
        if says.is_empty() {
            continue;
        }
        let words = ["--port", "0"].iter().chain(words);
        refuses(&mut serve(words.clone()), code, &[says]);
        refuses(serve(words).arg("--check"), code, &[says]);
    }
    // The same directory twice can be read, and not written over two overlays.
    let both = [&disks, &folder.word("x=")];
    let check = |words: &[&str]| {
        let mut command = serve(["--check"]);
        run(command.args(words).args(both), LIMIT)
    };
    assert_eq!(check(&["--read-only"]).stderr, "");
    assert!(check(&[]).stderr.contains("'/' and 'x/' are the same directory"));
    assert_eq!(check(&["--layer", "overlay"]).stderr, "");
}

/// What is written to the overlay of a file ends with the file's last client, and touches no file.
#[test]
fn layers_are_put_around_each_file_by_itself() {
    let folder = Folder::new();
    for name in ["a", "b"] {
        folder.write(name, 1);
    }
    let words = ["--port", "0", "--layer", "offset:512", "--layer", "overlay"];
    let server = Serving::start(words.into_iter().chain([&*folder.word("")]));
    let mut client = entered(&server, "a").unwrap();
    assert_eq!(client.export().size, 4096 - 512);
    client.write(0, &[5; 512]);
    assert_eq!((first_byte(&server, "a"), first_byte(&server, "b")), (5, 1));
    client.finish();
    wait_until("the last client is gone", LIMIT, || first_byte(&server, "a") == 1);
    for name in ["a", "b"] {
        assert_eq!(fs::read(folder.disk(name)).unwrap(), [1; 4096]);
    }
    // A file that is too short for a layer is refused, and not the others.
    fs::write(folder.disk("short"), [1; 100]).unwrap();
    assert_eq!(entered(&server, "short").err(), Some(Rep::ERR_POLICY));
    assert_eq!(first_byte(&server, "b"), 1);
    server.process.terminate();
    let (code, said) = server.end();
    assert_eq!((code, said.matches("cannot export a file").count()), (Some(0), 1), "{said}");
}

fn nbd(words: &[&str]) -> String {
    run(Command::new(env!("CARGO_BIN_EXE_nbd")).args(words), LIMIT).success()
}

/// A file gets an export of its own, and loses it again: it never has two.
#[test]
fn a_file_that_gets_an_export_of_its_own_is_taken_from_the_clients_of_its_directory() {
    let folder = Folder::new();
    for name in ["a", "b"] {
        folder.write(name, name.as_bytes()[0]);
    }
    let control = folder.path("control").display().to_string();
    let disks = folder.word("x=");
    let server = Serving::start(["--port", "0", "--control", &control, "first=memory:1M", &disks]);
    let [mut a, mut b] = ["x/a", "x/b"].map(|name| entered(&server, name).unwrap());
    let sizes = || {
        let status: serde_json::Value =
            serde_json::from_str(&nbd(&["status", "--json", &control])).unwrap();
        let exports = status["exports"].as_array().unwrap().iter();
        let sizes = exports.map(|one| {
            (
                one["name"].as_str().unwrap().to_owned(),
                one["size"].as_u64(),
                one["clients"].as_u64(),
            )
        });
        sizes.collect::<Vec<_>>()
    };
    let of = |name: &str, size, clients| (name.to_owned(), size, Some(clients));
    let files = [of("x/a", Some(4096), 1), of("x/b", Some(4096), 1)];
    assert_eq!(sizes()[1..], files);
    nbd(&["export", &control, "add", &format!("own={}", folder.disk("a").display())]);
    assert!(a.next_reply().is_none(), "its client has it still");
    assert_eq!(b.read(0, 512), [b'b'; 512]);
    assert_eq!(listed(&server), ["first", "own", "x/b"]);
    assert_eq!(first_byte(&server, "own"), b'a');
    nbd(&["bitmap", &control, "start", "since"]);
    // What is gone keeps what was counted, and has no size.
    wait_until("the client is gone", LIMIT, || sizes().contains(&of("x/a", None, 0)));
    nbd(&["export", &control, "remove", "own"]);
    assert_eq!(listed(&server), ["first", "x/a", "x/b"]);
    assert_eq!(first_byte(&server, "x/a"), b'a');
    nbd(&["export", &control, "remove", "x/"]);
    assert!(b.next_reply().is_none());
    assert_eq!(listed(&server), ["first"]);
    nbd(&["export", &control, "add", "--read-only", &disks]);
    assert_eq!(first_byte(&server, "x/a"), b'a');
    server.stop();
}

/// Names that clients make up are counted nowhere.
#[test]
fn metrics_know_files_that_were_used_and_no_other_names() {
    let folder = Folder::new();
    folder.write("disk", 1);
    folder.write("idle", 1);
    let socket = folder.path("metrics");
    let server = Serving::start([
        "--port",
        "0",
        "--metrics",
        &format!("unix:{}", socket.display()),
        &folder.word(""),
    ]);
    for number in 0..50 {
        assert!(entered(&server, format!("no-{number}")).is_err());
    }
    assert_eq!(first_byte(&server, "disk"), 1);
    let metrics = || {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    wait_until("it is counted", LIMIT, || metrics().contains("export=\"disk\""));
    let text = metrics();
    assert!(!text.contains("no-") && !text.contains("idle"), "{text}");
    server.stop();
}
