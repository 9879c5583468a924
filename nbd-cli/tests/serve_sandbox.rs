//! `nbd serve --sandbox`: what serves without it serves with it. What a confined process can't do is tried where the sandbox
//! is, in `src/serve/sandbox/tests.rs`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::peers;
use nbd_testkit::process::{Background, run, wait_until};
use nbd_testkit::server::{Runtime, Setup, Transport, nbd_binary};

const LIMIT: Duration = Duration::from_secs(60);

fn nbd<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    run(Command::new(nbd_binary()).args(words), LIMIT).success()
}

/// Whether this kernel can do it at all.
#[track_caller]
fn landlock() -> bool {
    let mut command = Command::new(nbd_binary());
    command.args(["serve", "--sandbox", "--unix", "/dev/null/socket", "memory:1M"]);
    let there = !run(&mut command, LIMIT).stderr.contains("no landlock");
    if !there {
        peers::missing("landlock", "linux-image-amd64, with lsm=landlock");
    }
    there
}

/// The line of a thread's status.
fn status(thread: &Path, name: &str) -> String {
    let text = fs::read_to_string(thread.join("status")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("gone").trim().to_owned()
}

/// All threads are under a filter, and none can get further rights.
#[track_caller]
fn is_confined(process: u32) {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let threads: Vec<_> = threads.map(|thread| thread.unwrap().path()).collect();
    assert!(threads.len() > 1, "{threads:?}");
    for thread in threads {
        for (name, value) in [("Seccomp:", "2"), ("NoNewPrivs:", "1")] {
            let found = status(&thread, name);
            assert!(found == value || found == "gone", "{}: {name} {found}", thread.display());
        }
    }
}

fn serves_confined(setup: Setup) {
    if !landlock() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    fs::write(path("source"), &content).unwrap();
    fs::File::create(path("disk.img")).unwrap().set_len(3_000_000).unwrap();
    let control = path("control");
    let disk = format!("disk={}", path("disk.img"));
    let serve = setup.serve().args(["--sandbox", "--resize", "--control", &control]);
    let mut server = serve.args([disk.as_str(), "memory=memory:4M"]).start();
    let process = server.id();
    is_confined(process);
    nbd(["copy", "--flush", &path("source"), &server.uri("disk")]);
    nbd(["copy", &server.uri("disk"), &server.uri("memory")]);
    nbd(["copy", &server.uri("memory"), &path("back")]);
    assert_eq!(fs::read(path("back")).unwrap()[..3_000_000], content[..]);
    assert_eq!(fs::read(path("disk.img")).unwrap(), content);
    // Holes are found and made, sizes change, changes are recorded, all clients are seen to.
    assert!(nbd(["map", &server.uri("disk")]).contains("data"));
    assert_eq!(nbd(["resize", &server.uri("disk"), "8M"]), "8388608\n");
    nbd(["bitmap", &control, "start", "since"]);
    assert_eq!(nbd(["bitmap", &control, "list"]), "since\n");
    assert!(nbd(["list", "--json", &server.uri("")]).contains("dirty-bitmap:since"));
    is_confined(process);
    server.terminate();
    let status = server.wait_exit(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", server.stderr());
    assert!(!Path::new(&control).exists(), "the control socket is left behind");
    assert_eq!(fs::read_dir(server.dir()).unwrap().count(), 0, "the socket is left behind");
}

#[test]
fn tokio_serves_confined() {
    serves_confined(Setup { runtime: Runtime::Tokio, transport: Transport::Unix });
    serves_confined(Setup { runtime: Runtime::Tokio, transport: Transport::Tcp });
}

#[test]
fn threads_serve_confined() {
    serves_confined(Setup { runtime: Runtime::Blocking, transport: Transport::Unix });
    serves_confined(Setup { runtime: Runtime::Blocking, transport: Transport::Tcp });
}

#[cfg(feature = "async-std")]
#[test]
fn async_std_serves_confined() {
    serves_confined(Setup { runtime: Runtime::AsyncStd, transport: Transport::Unix });
    serves_confined(Setup { runtime: Runtime::AsyncStd, transport: Transport::Tcp });
}

#[test]
fn sockets_that_a_killed_server_left_behind_are_replaced_by_a_confined_one() {
    if !landlock() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, control) = (folder.path().join("socket"), folder.path().join("control"));
    for _ in 0..2 {
        let mut command = Command::new(nbd_binary());
        command.args(["serve", "--sandbox", "memory:1M", "--unix"]).arg(&socket);
        let mut server = Background::spawn(command.arg("--control").arg(&control)).unwrap();
        let uri = server.next_line(LIMIT).unwrap_or_else(|| panic!("{}", server.stderr()));
        assert_eq!(nbd(["info", "--size", &uri]), "1048576\n");
        server.kill();
        server.wait_exit(LIMIT).expect("it is killed");
        assert!(socket.exists() && control.exists());
    }
}

/// A server on a configuration of its own, with TLS; gives its URI.
#[cfg(feature = "tls")]
#[test]
fn a_confined_server_reads_its_certificates_and_its_configuration_again() {
    if !landlock() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    nbd(["cert", &path("pki"), "--name", "localhost"]);
    fs::create_dir(path("etc")).unwrap();
    let configuration = format!(
        "[server]\nsandbox = \"require\"\nlog = \"info\"\n[[listen]]\nunix = \"{}\"\n\
         [tls]\nmode = \"require\"\ncertificates = \"{}\"\n[[export]]\nname = \"a\"\nmemory = \"1M\"\n",
        path("socket"),
        path("pki")
    );
    fs::write(path("etc/nbd.toml"), configuration).unwrap();
    // Without a terminal, as a service.
    let mut command = Command::new("setsid");
    command.arg(nbd_binary()).args(["serve", "--config", &path("etc/nbd.toml")]);
    let mut server = Background::spawn(&mut command).unwrap();
    assert!(server.next_line(LIMIT).is_some(), "{}", server.stderr());
    let uri = format!(
        "nbds+unix:///a?socket={}&tls-certificates={}&tls-hostname=localhost",
        path("socket"),
        path("pki")
    );
    assert_eq!(nbd(["info", "--size", &uri]), "1048576\n");
    nbd(["cert", &path("pki"), "--renew"]);
    server.hang_up();
    wait_until("the files are read again", LIMIT, || server.stderr().contains("again"));
    assert!(!server.stderr().contains("denied"), "{}", server.stderr());
    assert_eq!(nbd(["info", "--size", &uri]), "1048576\n");
    server.terminate();
    assert!(server.wait_exit(LIMIT).is_some_and(|status| status.success()), "{}", server.stderr());
}

#[test]
fn the_sandbox_is_required_unless_it_is_to_be_tried() {
    let config = |words: &[&str]| {
        let words = ["serve", "--print-config"].iter().chain(words).copied();
        nbd(words.chain(["memory:1M"]))
    };
    assert!(config(&["--sandbox"]).contains("sandbox = \"require\""));
    assert!(config(&["--sandbox=try"]).contains("sandbox = \"try\""));
    assert!(!config(&[]).contains("sandbox"));
}

/// The files of a directory are opened as clients ask for them, and nothing else is; metrics are served, and overlays kept.
#[test]
fn a_confined_server_opens_files_of_its_directories_and_no_others() {
    if !landlock() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["read", "write", "run", "metrics", "overlay"] {
        fs::create_dir(path(name)).unwrap();
    }
    for name in ["read/a", "write/b"] {
        fs::write(path(name), vec![1; 1 << 20]).unwrap();
    }
    std::os::unix::fs::symlink(path("secret"), path("read/link")).unwrap();
    fs::write(path("secret"), vec![13; 1 << 20]).unwrap();
    fs::write(path("plain"), vec![0; 1 << 20]).unwrap();
    let export = |name: &str, keys: &str| format!("[[export]]\nname = \"{name}\"\n{keys}\n");
    let configuration = |head: &str| {
        [
            format!("[server]\nsandbox = \"require\"\nlog = \"info\"\n{head}"),
            format!(
                "control = \"{}\"\nmetrics = \"unix:{}\"\n",
                path("run/control"),
                path("metrics/socket")
            ),
            format!("[[listen]]\nunix = \"{}\"\n", path("run/socket")),
            export("r", &format!("directory = \"{}\"\nread-only = true", path("read"))),
            export("w", &format!("directory = \"{}\"", path("write"))),
            export(
                "plain",
                &format!("file = \"{}\"\nlayers = [{{ rate = \"10M\" }}]", path("plain")),
            ),
            export(
                "over",
                &format!(
                    "file = \"{}\"\nlayers = [\"overlay:{}\"]",
                    path("secret"),
                    path("overlay/file")
                ),
            ),
        ]
        .concat()
    };
    fs::create_dir(path("etc")).unwrap();
    let write = |head: &str, tail: &str| {
        fs::write(path("etc/nbd.toml"), configuration(head) + tail).unwrap();
    };
    write("", "");
    let start = |more: &[&str]| {
        let mut command = Command::new("setsid");
        command.arg(nbd_binary()).args(["serve", "--config", &path("etc/nbd.toml")]).args(more);
        let server = Background::spawn(&mut command).unwrap();
        assert!(server.next_line(LIMIT).is_some(), "{}", server.stderr());
        server
    };
    let mut server = start(&[]);
    let uri = |name: &str| format!("nbd+unix:///{name}?socket={}", path("run/socket"));
    let tries = || {
        assert_eq!(nbd(["info", "--size", &uri("r/a")]), "1048576\n");
        // One that comes after the start, as well.
        fs::write(path("write/late"), vec![2; 4096]).unwrap();
        assert_eq!(nbd(["info", "--size", &uri("w/late")]), "4096\n");
        nbd(["copy", "--flush", &uri("r/a"), &uri("w/b")]);
        nbd(["copy", "--flush", &uri("r/a"), &uri("over")]);
        for name in ["r/link", "w/../secret", "r/none"] {
            let refused = run(Command::new(nbd_binary()).args(["info", &uri(name)]), LIMIT);
            assert!(!refused.status.success(), "{name}");
        }
    };
    tries();
    assert_eq!(fs::read(path("secret")).unwrap(), vec![13; 1 << 20]);
    // A file is opened anew.
    for (number, rate) in ["50M", "20M", "30M"].iter().enumerate() {
        let text =
            configuration("").replace("{ rate = \"10M\" }", &format!("{{ rate = \"{rate}\" }}"));
        fs::write(path("etc/nbd.toml"), text).unwrap();
        server.hang_up();
        wait_until("the file is read", LIMIT, || {
            server.stderr().matches("configuration again").count() == number + 1
        });
        nbd(["copy", "--flush", &uri("r/a"), &uri("plain")]);
        assert_eq!(fs::read(path("plain")).unwrap(), vec![1; 1 << 20]);
        fs::write(path("plain"), vec![number as u8; 1 << 20]).unwrap();
    }
    // Limits are read again; another directory is not opened.
    write("max-connections = 7\n", "");
    server.hang_up();
    wait_until("the file is read", LIMIT, || {
        server.stderr().matches("configuration again").count() == 4
    });
    write("", &export("more", "directory = \"/etc\""));
    server.hang_up();
    wait_until("it is refused", LIMIT, || server.stderr().contains("stay in force"));
    assert!(server.stderr().contains("'/etc': Permission denied"), "{}", server.stderr());
    write("", "");
    let text = scraped(&path("metrics/socket"));
    assert!(text.contains("export=\"w/b\""), "{text}");
    is_confined(server.id());
    server.terminate();
    assert!(server.wait_exit(LIMIT).is_some_and(|status| status.success()), "{}", server.stderr());
    // The overlay kept what was written.
    let mut server = start(&[]);
    nbd(["copy", &uri("over"), &path("back")]);
    assert_eq!(fs::read(path("back")).unwrap(), vec![1; 1 << 20]);
    tries();
    server.terminate();
    assert!(server.wait_exit(LIMIT).is_some_and(|status| status.success()), "{}", server.stderr());
}

/// The metrics that are served at a Unix socket.
#[track_caller]
fn scraped(path: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_confined_server_is_replaced_by_a_confined_one() {
    if !landlock() {
        return;
    }
    for runtime in ["tokio", "blocking"] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["disks", "control", "sockets", "metrics"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("disks/a"), vec![1; 1 << 20]).unwrap();
        let (control, socket) = (path("control/socket"), path("sockets/socket"));
        let metrics = path("metrics/socket");
        let start = |more: &[&str]| {
            let mut command = Command::new(nbd_binary());
            command.args(["serve", "--sandbox", "--runtime", runtime, "--unix", &socket]);
            command.args(["--metrics", &format!("unix:{metrics}")]).args(more);
            let server = Background::spawn(command.arg(format!("dir:{}", path("disks")))).unwrap();
            assert!(server.next_line(LIMIT).is_some(), "{}", server.stderr());
            server
        };
        let uri = format!("nbd+unix:///a?socket={socket}");
        let mut server = start(&["--control", &control]);
        wait_until("it is controlled", LIMIT, || UnixStream::connect(&control).is_ok());
        for _ in 0..2 {
            let successor = start(&["--take-over", &control, "--control", &control]);
            let status = server.wait_exit(LIMIT).expect("the first one ends");
            assert!(status.success(), "{}", server.stderr());
            server = successor;
            is_confined(server.id());
            assert_eq!(nbd(["info", "--size", &uri]), "1048576\n");
            assert!(scraped(&metrics).contains("nbd_connections_max"));
            assert!(nbd(["status", "--json", "--interval", "0", &control]).contains("\"pid\""));
        }
        server.terminate();
        assert!(
            server.wait_exit(LIMIT).is_some_and(|status| status.success()),
            "{}",
            server.stderr()
        );
        for left in [control, socket, metrics] {
            assert!(!Path::new(&left).exists(), "{left} is left behind");
        }
    }
}
