//! What a confined process can do and what not. It is this test's own program, started once more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

/// Where the files of the test are.
const FOLDER: &str = "NBD_SANDBOX_TEST_FOLDER";

/// The number of system calls that there are, and some more.
const CALLS: i64 = 520;

/// `uretprobe` and `uprobe`, which the kernel exempts from filters. A program that calls them is ended by SIGILL.
const PROBES: [i64; 2] = [335, 336];

/// Runs the confined process on what `prepare` makes, and gives what it says of each attempt.
fn attempts() -> Option<(tempfile::TempDir, BTreeMap<String, String>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["config", "sockets", "elsewhere"] {
        fs::create_dir(path(name)).unwrap();
    }
    for name in ["disk.img", "config/nbd.toml", "elsewhere/secret"] {
        fs::write(path(name), "0123456789").unwrap();
    }
    let _tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    fs::write(path("config/port"), _tcp.local_addr().unwrap().port().to_string()).unwrap();
    let _unix = UnixListener::bind(path("elsewhere/socket")).unwrap();
    let test = "serve::sandbox::tests::a_confined_process_tries_all_that_it_could";
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads", "1"]);
    let output = command.env(FOLDER, folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().filter_map(|line| line.strip_prefix("attempt ")?.split_once(": "));
    let results: BTreeMap<_, _> =
        lines.map(|(name, result)| (name.to_owned(), result.to_owned())).collect();
    if results.contains_key("nothing") {
        nbd_testkit::peers::missing("landlock", "linux-image-amd64, with lsm=landlock");
        return None;
    }
    assert!(text.contains("attempt end: done"), "{}\n{text}\n{told}", output.status);
    Some((folder, results))
}

fn report(name: &str, result: io::Result<impl Sized>) {
    match result {
        Ok(_) => println!("attempt {name}: done"),
        Err(error) => println!("attempt {name}: {:?}", error.kind()),
    }
}

/// Not a test by itself: what the tests start.
#[test]
#[ignore = "the tests below start it"]
fn a_confined_process_tries_all_that_it_could() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    // Behind what the test's own frame writes.
    println!();
    let path = |name: &str| folder.join(name);
    let port: u16 = fs::read_to_string(path("config/port")).unwrap().parse().unwrap();
    let parent = rustix::process::getppid().unwrap();
    let disk = File::options().read(true).write(true).open(path("disk.img")).unwrap();
    let mut needs = Needs::default();
    needs.read_replaceable(&path("config/nbd.toml"));
    needs.socket(&path("sockets/server"));
    let confined = match files::confine(&needs) {
        Err(reason) if reason.contains("no landlock") => {
            return println!("attempt nothing: {reason}");
        }
        confined => confined.unwrap(),
    };
    let listener = UnixListener::bind(path("sockets/server"));
    report("bind in the first step", listener.as_ref().map(drop).map_err(|e| e.kind().into()));
    let _other = UnixListener::bind(path("elsewhere/other"));
    report("bind elsewhere in the first step", _other.map(drop));
    calls::seal().unwrap();
    // What serving takes.
    report("write the disk", disk.write_all_at(b"abc", 3));
    report("sync the disk", disk.sync_all());
    report("resize the disk", disk.set_len(1 << 20));
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    report("punch a hole", rustix::fs::fallocate(&disk, hole, 4096, 4096).map_err(Into::into));
    report(
        "find a hole",
        rustix::fs::seek(&disk, rustix::fs::SeekFrom::Hole(0)).map_err(Into::into),
    );
    report("read the configuration", fs::read(path("config/nbd.toml")));
    report("list the configuration", fs::read_dir(path("config")));
    for one in ["meminfo", "self/status", "self/cgroup", "self/mountinfo"] {
        report(&format!("read {one}"), fs::read(Path::new("/proc").join(one)));
    }
    let thread = std::thread::Builder::new().name("confined".into());
    let thread = thread.spawn(move || fs::read("/etc/passwd").map(drop));
    report("start a thread", thread.as_ref().map(drop).map_err(|error| error.kind().into()));
    report("read elsewhere by a new thread", thread.unwrap().join().unwrap());
    let pair = UnixStream::pair();
    report(
        "pass bytes",
        pair.and_then(|(mut a, mut b)| {
            a.write_all(b"x")?;
            b.read_exact(&mut [0])
        }),
    );
    report("stop listening", fs::remove_file(path("sockets/server")));
    // What it doesn't.
    report("read elsewhere", fs::read(path("elsewhere/secret")));
    report("read the password file", fs::read("/etc/passwd"));
    report("read its own environment", fs::read("/proc/self/environ"));
    report("open the disk again", File::open(path("disk.img")));
    report("write the configuration", fs::write(path("config/nbd.toml"), ""));
    report("make a file", fs::write(path("config/new"), ""));
    report("make a file beside sockets", fs::write(path("sockets/new"), ""));
    report("remove elsewhere", fs::remove_file(path("elsewhere/secret")));
    report("rename elsewhere", fs::rename(path("elsewhere/secret"), path("sockets/secret")));
    report("link", fs::hard_link(path("elsewhere/secret"), path("sockets/secret")));
    report("link by name", std::os::unix::fs::symlink("/", path("sockets/root")));
    report(
        "change permissions",
        fs::set_permissions(path("elsewhere/secret"), fs::Permissions::from_mode(0o777)),
    );
    report("run a program", Command::new("/bin/true").status());
    report("run itself", Command::new("/proc/self/exe").status());
    report("connect by TCP", TcpStream::connect(("127.0.0.1", port)));
    report("connect by a Unix socket", UnixStream::connect(path("elsewhere/socket")));
    report("listen by TCP", TcpListener::bind("127.0.0.1:0"));
    report("listen by a Unix socket", UnixListener::bind(path("sockets/more")));
    let signal = rustix::process::kill_process(parent, rustix::process::Signal::CONT);
    report("signal another process", signal.map_err(Into::into));
    // Whatever there is besides.
    let ours: BTreeSet<i64> = calls::answered();
    for number in (0..CALLS).filter(|number| !ours.contains(number) && !PROBES.contains(number)) {
        // SAFETY: the filter refuses the call; if it did not, null pointers and zeroes are what it would be given.
        let result = unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) };
        let error = io::Error::last_os_error();
        if result != -1 || error.raw_os_error() != Some(libc::EPERM) {
            println!("attempt system call {number}: {result} {error}");
        }
    }
    report("end", Ok(()));
    drop((confined, listener));
}

#[test]
fn a_confined_process_can_serve_and_nothing_else() {
    const CAN: &[&str] = &[
        "bind in the first step",
        "write the disk",
        "sync the disk",
        "resize the disk",
        "punch a hole",
        "find a hole",
        "read the configuration",
        "list the configuration",
        "read meminfo",
        "read self/status",
        "read self/cgroup",
        "read self/mountinfo",
        "start a thread",
        "pass bytes",
        "stop listening",
        "end",
    ];
    let Some((folder, attempts)) = attempts() else { return };
    let denied = attempts.iter().filter(|(_, result)| *result == "PermissionDenied").count();
    for (name, result) in &attempts {
        let wanted = if CAN.contains(&name.as_str()) { "done" } else { "PermissionDenied" };
        assert_eq!(result, wanted, "{name}: {attempts:#?}");
    }
    assert_eq!(attempts.len(), CAN.len() + denied);
    assert!(denied > 20, "{attempts:#?}");
    let path = |name: &str| folder.path().join(name);
    assert_eq!(fs::read(path("elsewhere/secret")).unwrap(), b"0123456789");
    assert_eq!(fs::read(path("config/nbd.toml")).unwrap(), b"0123456789");
    assert_eq!(fs::metadata(path("disk.img")).unwrap().len(), 1 << 20);
}

#[test]
fn what_was_asked_for_and_is_not_there_is_an_error_unless_it_was_to_be_tried() {
    assert!(excuse(Mode::Try, "x").is_ok());
    let Err(Failure::Failed(text)) = excuse(Mode::Require, "x") else { panic!("it is excused") };
    assert!(text.contains("(--sandbox): x; --sandbox=try"), "{text}");
    let mut needs = Needs::default();
    needs.read.push("/no/such/folder".into());
    let missing = files::confine(&needs).unwrap_err();
    assert!(missing.contains("/no/such/folder"), "{missing}");
    // The test's own threads are more than one.
    let ask = || Sandbox::confine(Mode::Require, &Needs::default()).map(drop);
    let Err(Failure::Failed(text)) = std::thread::spawn(ask).join().unwrap() else {
        panic!("other threads went free");
    };
    assert!(text.contains("threads run already"), "{text}");
}
