//! `--config`, `--check`, `--print-config`, and the configuration file that is read again.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_testkit::Endpoint;
use nbd_testkit::process::{run, wait_until};
use nbd_testkit::raw::{Errno, RawClient, Rep, Request, Wire};

use super::{LIMIT, RUNTIMES, Serving, refuses, serve};

/// A folder with a configuration file.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(text: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write(text);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, text: &str) {
        // As editors and careful programs do, so that no half of it is ever read.
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("nbd.toml")).unwrap();
    }

    fn file(&self) -> String {
        self.path("nbd.toml").display().to_string()
    }

    /// Starts a server without a controlling terminal, as services run.
    #[track_caller]
    fn detached(&self) -> Serving {
        let mut command = Command::new("setsid");
        command.arg(env!("CARGO_BIN_EXE_nbd")).args(["serve", "--config", &self.file(), "-v"]);
        Serving::spawn(&mut command)
    }
}

/// The exports that a new client sees.
#[track_caller]
fn listed(endpoint: &Endpoint) -> Vec<(String, String)> {
    let mut client = RawClient::negotiate(endpoint);
    let listed = client.list().unwrap();
    client.finish();
    listed
}

fn names(endpoint: &Endpoint) -> Vec<String> {
    listed(endpoint).into_iter().map(|(name, _)| name).collect()
}

#[track_caller]
fn entered(endpoint: &Endpoint, name: &str) -> RawClient {
    let mut client = RawClient::negotiate(endpoint);
    client.go(name, &[]).unwrap();
    client
}

/// Has the file read again, and waits until the server says that.
#[track_caller]
fn reload(server: &Serving, says: &str) {
    let before = server.process.stderr().matches(says).count();
    server.process.hang_up();
    wait_until(says, LIMIT, || server.process.stderr().matches(says).count() > before);
}

#[test]
fn a_file_says_all_that_the_server_is() {
    for runtime in RUNTIMES {
        let folder = Folder::new(&format!(
            "[server]\nruntime = '{runtime}'\nmax-connections = 7\n\
             [[listen]]\ntcp = 'localhost:0'\n[[listen]]\nunix = 'socket'\n\
             [[export]]\nname = 'disk'\nfile = 'disk.img'\ndescription = 'a disk'\n\
             [[export]]\nname = 'scratch'\nmemory = '1M'\nread-only = true\nblock-size = 512\n"
        ));
        fs::write(folder.path("disk.img"), [5; 4096]).unwrap();
        let server = Serving::start(["--config", &folder.file()]);
        let socket = Endpoint::Unix(folder.path("socket"));
        assert!(server.process.next_line(LIMIT).is_some_and(|uri| uri.ends_with("/socket")));
        for endpoint in [&server.endpoint(), &socket] {
            let expected = [("disk", "a disk"), ("scratch", "")];
            assert_eq!(listed(endpoint), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
            let mut client = entered(endpoint, "");
            assert_eq!(client.read(0, 4096), [5; 4096]);
            client.finish();
            let mut client = entered(endpoint, "scratch");
            client.call(&Request::write(0, &[6; 512])).expect_error(Errno::EPERM);
            client.finish();
        }
        server.stop();
        assert!(!folder.path("socket").exists());
    }
}

#[test]
fn a_check_ends_well_or_says_what_is_wrong_and_where_and_touches_nothing() {
    let good = "[[listen]]\nunix = 'socket'\n[[export]]\nfile = 'disk.img'\n";
    let folder = Folder::new(good);
    fs::write(folder.path("disk.img"), [5; 4096]).unwrap();
    let check = || serve(["--check", "--config", &folder.file()]);
    assert_eq!(run(&mut check(), LIMIT).success(), "");
    assert!(!folder.path("socket").exists());

    let at = |position: &str| format!("nbd: {}:{position}: ", folder.file());
    folder.write(&good.replace("file", "flie"));
    let says = ["unknown key 'flie' in [[export]]; did you mean 'file'?", "4 | flie = 'disk.img'"];
    let finished = refuses(&mut check(), 78, &says);
    assert!(finished.stderr.starts_with(&at("4:1")), "{}", finished.stderr);
    assert!(finished.stderr.contains("\n  | ^^^^\n"), "{}", finished.stderr);

    folder.write(&good.replace("disk.img", "missing.img"));
    let finished = refuses(&mut check(), 1, &["missing.img", "truncate -s 1G"]);
    assert!(finished.stderr.starts_with(&at("3:1")), "{}", finished.stderr);

    folder.write(&format!("{good}[[export]]\nname = 'b'\nfile = './disk.img'\nresize = true\n"));
    refuses(
        &mut check(),
        78,
        &[":5:1: the default export and export 'b' are the same file", "resize changes"],
    );

    folder.write(&format!("{good}[[export]]\nname = 'b'\nfile = './disk.img'\n"));
    let finished = run(&mut check(), LIMIT);
    let warning = format!(
        "nbd: warning: {}:5:1: the default export and export 'b' are the same",
        folder.file()
    );
    assert!(finished.stderr.starts_with(&warning), "{}", finished.stderr);
    assert_eq!((finished.status.code(), finished.stderr.lines().count()), (Some(0), 1));

    folder.write(&format!("{good}[[export]]\nfile = 'disk.img'\n[server]\nlog = 'loud'\n"));
    refuses(&mut check(), 78, &[":8:7: 'loud' is none of warn, info, debug, trace"]);

    folder.write(&format!("{good}[tls]\ncertificates = 'pki'\n"));
    refuses(&mut check(), 1, &["pki", "server-cert.pem"]);
    folder.write(&format!("{good}tls-only = true\n"));
    refuses(&mut check(), 78, &["tls-only need TLS, which is off: add mode = \"require\""]);

    fs::remove_file(folder.path("nbd.toml")).unwrap();
    refuses(&mut check(), 1, &["cannot read the configuration", "nbd.toml'", "No such file"]);
    refuses(&mut serve(["--check", "memory:1X"]), 64, &["'1X' is not a size"]);
    refuses(&mut serve(["--check", "no-such-disk.img"]), 1, &["truncate -s 1G no-such-disk.img"]);
    let two = ["--config", &folder.file(), "--read-only"];
    refuses(&mut serve(two), 64, &["--config <FILE>", "--read-only", "cannot be used with"]);
}

/// Each export is held against all others, whatever stands between them.
#[test]
fn exports_of_one_file_that_miss_changes_are_refused_in_any_order() {
    let folder = Folder::new("");
    fs::write(folder.path("disk.img"), [5; 4096]).unwrap();
    let tables = ["", "read-only = true\n", "layers = ['overlay']\n"];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let export = |index: usize| {
            format!("[[export]]\nname = '{index}'\nfile = 'disk.img'\n{}", tables[index])
        };
        folder.write(&order.map(export).concat());
        let mut check = serve(["--check", "--config", &folder.file()]);
        refuses(
            &mut check,
            78,
            &["are the same file", "an overlay needs a disk that does not change"],
        );
        folder.write(&order.into_iter().filter(|index| *index > 0).map(export).collect::<String>());
        run(&mut serve(["--check", "--config", &folder.file()]), LIMIT).success();
    }
}

#[test]
fn what_is_printed_for_a_command_line_is_the_same_server() {
    let folder = Folder::new("");
    let words = [
        "--port",
        "0",
        "--unix",
        "a socket",
        "--drain-timeout",
        "500ms",
        "--description",
        "x \"y\"",
        "--block-size",
        "4k",
        "--max-connections",
        "3",
        "a=memory:1M",
        "b=./disk.img",
        "-vv",
    ];
    fs::write(folder.path("disk.img"), [5; 4096]).unwrap();
    let print = |words: &[&str]| {
        let mut command = serve(words);
        run(command.arg("--print-config").current_dir(folder.0.path()), LIMIT).success()
    };
    let printed = print(&words);
    folder.write(&printed);
    assert_eq!(print(&["--config", "nbd.toml"]), printed);
    assert!(printed.contains("log = \"debug\"") && printed.contains("drain-timeout = \"500ms\""));
    let server = Serving::start(["--config", &folder.file()]);
    let expected = [("a", "x \"y\""), ("b", "x \"y\"")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(listed(&server.endpoint()), expected);
    server.process.terminate();
    assert_eq!(server.end().0, Some(0));
}

#[test]
#[cfg(feature = "tls")]
fn the_example_can_be_served() {
    // Another test may have that port.
    let folder = Folder::new(&include_str!("../../../docs/nbd.toml").replace(":10809", ":0"));
    for name in ["install.iso", "database.img"] {
        fs::write(folder.path(name), [0; 8192]).unwrap();
    }
    fs::create_dir(folder.path("images")).unwrap();
    let mut cert = Command::new(env!("CARGO_BIN_EXE_nbd"));
    run(cert.args(["cert", "pki"]).current_dir(folder.0.path()), LIMIT).success();
    let mut check = serve(["--check", "--config", &folder.file()]);
    let finished = run(&mut check, LIMIT);
    assert_eq!(finished.stderr, "");
    assert_eq!(finished.success(), "");
}

/// What stays keeps its clients; what is new is there; what is gone or opened anew is taken from its clients.
#[test]
fn a_file_that_is_read_again_changes_what_it_says_and_nothing_else() {
    for runtime in RUNTIMES {
        let head = format!("[server]\nruntime = '{runtime}'\n[[listen]]\ntcp = '127.0.0.1:0'\n");
        let export =
            |name: &str, size: &str| format!("[[export]]\nname = '{name}'\nmemory = '{size}'\n");
        let file = |name: &str| format!("[[export]]\nname = 'changed'\nfile = '{name}'\n");
        let before = [&head, &*export("stays", "1M"), &*export("gone", "2M"), &*file("three.img")];
        let folder = Folder::new("");
        for (name, size) in [("three.img", 3 << 20), ("four.img", 4 << 20)] {
            fs::File::create(folder.path(name)).unwrap().set_len(size).unwrap();
        }
        folder.write(&before.map(String::from).concat());
        let server = folder.detached();
        let endpoint = server.endpoint();
        let [mut stays, mut gone, mut changed] =
            ["stays", "gone", "changed"].map(|name| entered(&endpoint, name));
        stays.write(0, &[7; 512]);

        let after = [
            &head,
            &*export("stays", "1M"),
            "description = 'still here'\n",
            &*file("four.img"),
            &*export("new", "5M"),
        ]
        .concat();
        folder.write(&after);
        reload(&server, "read the configuration again");
        let text = |name: &str| (name.to_owned(), String::new());
        let expected = [("stays".into(), "still here".into()), text("changed"), text("new")];
        assert_eq!(listed(&endpoint), expected);
        assert_eq!(stays.read(0, 512), [7; 512]);
        for client in [&mut gone, &mut changed] {
            assert!(client.next_reply().is_none(), "its connection is closed");
        }
        let mut client = RawClient::negotiate(&endpoint);
        assert_eq!(client.go("changed", &[]).unwrap().size, 4 << 20);
        client.finish();
        assert_eq!(entered(&endpoint, "stays").read(0, 512), [7; 512]);

        // Nothing of a file that is no good comes into force, and all of it is named.
        folder
            .write(&format!("{after}[[export]]\nname = 'more'\nmemory = '1M'\ncolour = 'blue'\n"));
        reload(&server, "stay in force");
        let says = format!("{}:18:1: unknown key 'colour' in [[export]]", folder.file());
        assert!(server.process.stderr().contains(&says), "{}", server.process.stderr());
        folder.write(&format!(
            "{after}{}[[export]]\nname = 'b'\nfile = 'missing'\n",
            export("more", "1M")
        ));
        reload(&server, "stay in force");
        assert!(server.process.stderr().contains("missing"), "{}", server.process.stderr());
        folder.write("");
        reload(&server, "stay in force");
        assert_eq!(names(&endpoint), ["stays", "changed", "new"]);

        // What takes a restart is said, and the rest is done.
        folder.write(
            &after
                .replace("[server]", "[server]\nlog = 'debug'\noldstyle = true")
                .replace("new", "newer"),
        );
        reload(&server, "stay in force");
        let says = "oldstyle clients get the one export";
        assert!(server.process.stderr().contains(says), "{}", server.process.stderr());
        folder.write(
            &after
                .replace("[server]", "[server]\ncontrol = 'c'\nmetrics = 1")
                .replace("new", "newer"),
        );
        let says = "control, metrics, which differ from what is in force, take a restart of the server; all else in the \
                    file is in force";
        reload(&server, says);
        assert_eq!(names(&endpoint), ["stays", "changed", "newer"]);
        assert_eq!(stays.read(0, 512), [7; 512]);
        stays.finish();
        server.process.terminate();
        assert_eq!(server.end().0, Some(0));
    }
}

/// Listeners come and go, and connections stay, those of a listener that is gone included.
#[test]
fn listeners_are_opened_and_closed_when_the_file_is_read_again() {
    for runtime in RUNTIMES {
        let export = "[[export]]\nname = 'disk'\nmemory = '1M'\n";
        let text = |listeners: &[&str]| {
            let listen: String =
                listeners.iter().map(|one| format!("[[listen]]\n{one}\n")).collect();
            format!("[server]\nruntime = '{runtime}'\n{listen}{export}")
        };
        let (first, second) = ("unix = 'first'", "unix = 'second'");
        let folder = Folder::new(&text(&[first]));
        let server = folder.detached();
        let [on_first, on_second] =
            ["first", "second"].map(|name| Endpoint::Unix(folder.path(name)));
        let mut stays = entered(&on_first, "disk");
        stays.write(0, &[7; 512]);
        // A port that is free on another address of the loopback interface, as long as this one is held.
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("127.77.0.1:{}", held.local_addr().unwrap().port());
        let on_tcp = Endpoint::Tcp(address.parse().unwrap());
        let tcp = format!("tcp = '{address}'");

        folder.write(&text(&[&tcp, second]));
        reload(&server, "read the configuration again");
        // The old one is closed before that is logged.
        assert!(!folder.path("first").exists());
        for endpoint in [&on_tcp, &on_second] {
            assert_eq!(entered(endpoint, "disk").read(0, 512), [7; 512]);
        }
        assert_eq!(stays.read(0, 512), [7; 512]);

        // Where one of them can't be opened, nothing changes.
        let missing = "unix = 'no/folder/socket'";
        folder.write(&text(&[second, first, missing]));
        reload(&server, "stay in force");
        assert!(server.process.stderr().contains("no/folder"), "{}", server.process.stderr());
        assert!(!folder.path("first").exists());
        assert_eq!(names(&on_tcp), ["disk"]);
        folder.write(&text(&[second, "tcp = '127.0.0.1:0'"]));
        reload(&server, "[[listen]], which differs from what is in force, takes a restart");
        assert_eq!(names(&on_tcp), ["disk"]);

        folder.write(&text(&[second, first]));
        reload(&server, "read the configuration again");
        assert!(TcpStream::connect(&address).is_err());
        assert_eq!(names(&on_first), ["disk"]);
        assert_eq!(names(&on_second), ["disk"]);
        stays.finish();
        server.process.terminate();
        assert_eq!(server.end().0, Some(0));
        assert!(!folder.path("first").exists() && !folder.path("second").exists());
    }
}

#[test]
fn a_confined_server_closes_listeners_and_opens_none() {
    let text = |names: &[&str]| {
        let listen: String =
            names.iter().map(|name| format!("[[listen]]\nunix = 'sockets/{name}'\n")).collect();
        format!("[server]\nsandbox = 'require'\n{listen}[[export]]\nmemory = '1M'\n")
    };
    let folder = Folder::new(&text(&["a", "b"]));
    fs::create_dir(folder.path("sockets")).unwrap();
    let server = folder.detached();
    let endpoint = |name: &str| Endpoint::Unix(folder.path("sockets").join(name));
    let mut stays = entered(&endpoint("b"), "");
    folder.write(&text(&["a", "c"]));
    reload(&server, "[[listen]], which differs from what is in force, takes a restart");
    folder.write(&text(&["a"]));
    reload(&server, "listens no longer");
    reload(&server, "read the configuration again");
    assert!(!folder.path("sockets/b").exists());
    assert_eq!(stays.read(0, 512), [0; 512]);
    stays.finish();
    drop(entered(&endpoint("a"), ""));
    server.process.terminate();
    assert_eq!(server.end().0, Some(0));
}

/// A request on the control socket, and its answer.
fn ask(control: &Path, verb: &str, arguments: &str) -> String {
    let mut stream = UnixStream::connect(control).unwrap();
    let request = format!("{{\"version\":1,\"verb\":\"{verb}\",\"arguments\":{arguments}}}\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn bitmaps_live_through_a_change_or_the_change_is_refused() {
    let head = "[server]\ncontrol = 'control'\n[[listen]]\ntcp = '127.0.0.1:0'\n";
    let folder = Folder::new(&format!("{head}[[export]]\nmemory = '1M'\ntrack = ['a', 'b']\n"));
    let server = folder.detached();
    let control = folder.path("control");
    let names = || ask(&control, "bitmap-list", "{}");
    assert_eq!(names(), "{\"ok\":[\"a\",\"b\"]}\n");
    folder.write(&format!("{head}[[export]]\nmemory = '1M'\ntrack = ['b', 'c']\n"));
    reload(&server, "read the configuration again");
    assert_eq!(names(), "{\"ok\":[\"b\",\"c\"]}\n");
    folder.write(&format!("{head}[[export]]\nmemory = '2M'\ntrack = ['b', 'c']\n"));
    reload(&server, "stay in force");
    let says = "nbd.toml:5:1: to change the default export is to open it anew, by which its bitmaps would be lost (b, c)";
    assert!(server.process.stderr().contains(says), "{}", server.process.stderr());
    assert_eq!(names(), "{\"ok\":[\"b\",\"c\"]}\n");
    server.process.terminate();
    assert_eq!(server.end().0, Some(0));
}

/// What clients wrote to a disk or an overlay in memory outlives each change of a file, unless its export is gone from it.
#[test]
fn what_an_export_holds_in_memory_lives_through_a_change_or_the_change_is_refused() {
    let head = "[server]\ncontrol = 'control'\n[[listen]]\nunix = 's'\n";
    let folder = Folder::new("");
    fs::write(folder.path("disk"), [1; 8192]).unwrap();
    for (export, changed) in [
        ("memory = '1M'", &["memory = '2M'", "memory = '1M'\nblock-size = '512'"][..]),
        (
            "file = 'disk'\nlayers = ['overlay', { rate = '50M' }]",
            &["file = 'disk'\nlayers = ['overlay', { rate = '20M' }]", "memory = '1M'"],
        ),
    ] {
        let text = |export: &str| format!("{head}[[export]]\n{export}\n");
        folder.write(&text(export));
        let server = folder.detached();
        let mut client = entered(&Endpoint::Unix(folder.path("s")), "");
        client.write(0, &[7; 512]);
        for changed in changed {
            folder.write(&text(changed));
            reload(&server, "stay in force");
            let says = "nbd.toml:5:1: to change the default export is to open it anew, by which what it holds in memory would be lost";
            assert!(server.process.stderr().contains(says), "{}", server.process.stderr());
        }
        folder.write(&text(&format!("description = 'x'\n{export}")));
        reload(&server, "altered");
        assert_eq!(client.read(0, 512), [7; 512]);
        // Another disk is what was asked for.
        folder.write(&text("file = 'disk'"));
        reload(&server, "replaced");
        drop(client);
        let mut client = entered(&Endpoint::Unix(folder.path("s")), "");
        assert_eq!(client.read(0, 512), [1; 512]);
        client.finish();
        server.process.terminate();
        assert_eq!(server.end().0, Some(0));
    }
}

#[test]
fn exports_are_added_and_removed_by_the_control_socket() {
    let folder = Folder::new("");
    let control = folder.path("control");
    let path = control.display().to_string();
    let server = Serving::start(["--port", "0", "--control", &path, "first=memory:1M"]);
    let endpoint = server.endpoint();
    let answer = ask(&control, "export-add", r#"{"name":"more","memory":"2M","read-only":true}"#);
    assert!(answer.contains("\"added\":[\"more\"]"), "{answer}");
    assert_eq!(names(&endpoint), ["first", "more"]);
    let mut client = entered(&endpoint, "more");
    for (verb, arguments, says) in [
        ("export-add", r#"{"name":"more","memory":"2M"}"#, "two exports are called 'more'"),
        ("export-add", r#"{"name":"x","memory":"2M","colour":1}"#, "unknown field `colour`"),
        ("export-add", r#"{"name":"x","file":"/no/such/file"}"#, "/no/such"),
        ("export-remove", r#"{"name":"x"}"#, "export 'x' is not served"),
        ("reload", "{}", "no configuration file"),
    ] {
        let answer = ask(&control, verb, arguments);
        assert!(answer.starts_with("{\"error\"") && answer.contains(says), "{answer}");
    }
    assert_eq!(client.read(0, 512), [0; 512]);
    let answer = ask(&control, "export-remove", r#"{"name":"more"}"#);
    assert!(answer.contains("\"removed\":[\"more\"]"), "{answer}");
    assert!(client.next_reply().is_none());
    assert_eq!(names(&endpoint), ["first"]);
    let answer = ask(&control, "export-remove", r#"{"name":"first"}"#);
    assert!(answer.contains("the only export"), "{answer}");
    server.stop();
}

/// The bounds on connections are those of the file that was read last.
#[test]
fn limits_that_are_read_again_are_in_force_for_clients_that_come_then() {
    // To be refused takes a second each time.
    for runtime in ["tokio", "blocking"] {
        let text = |keys: &str| {
            format!(
                "[server]\nruntime = '{runtime}'\n{keys}[[listen]]\ntcp = '127.0.0.1:0'\n[[export]]\nmemory = '1M'\n"
            )
        };
        let folder = Folder::new(&text("max-connections = 1\n"));
        let server = folder.detached();
        let endpoint = server.endpoint();
        let mut first = entered(&endpoint, "");
        let is_full = || Wire::connect(&endpoint).recv_or_gone(8, "the greeting").is_none();
        assert!(is_full());
        folder.write(&text("max-connections = 2\n"));
        reload(&server, "read the configuration again");
        let mut second = entered(&endpoint, "");
        // Fewer than there are: nobody loses the connection, and nobody gets one.
        folder
            .write(&text("max-connections = 1\nstall-timeout = 'never'\nidle-timeout = 'never'\n"));
        reload(&server, "read the configuration again");
        assert_eq!((first.read(0, 512), second.read(0, 512)), (vec![0; 512], vec![0; 512]));
        first.finish();
        assert!(is_full());
        second.finish();
        wait_until("there is room", LIMIT, || !is_full());
        server.process.terminate();
        assert_eq!(server.end().0, Some(0));
    }
}

/// TLS that is required by now is required of a client that began before, and of no client once it is off.
#[test]
#[cfg(feature = "tls")]
fn tls_that_is_read_again_is_in_force_for_clients_that_have_no_export_yet() {
    let head = "[[listen]]\nunix = 'socket'\n[[export]]\nname = 'disk'\nmemory = '1M'\n";
    let folder = Folder::new(head);
    let mut cert = Command::new(env!("CARGO_BIN_EXE_nbd"));
    run(cert.args(["cert", "pki", "--name", "localhost"]).current_dir(folder.0.path()), LIMIT)
        .success();
    let server = folder.detached();
    let endpoint = Endpoint::Unix(folder.path("socket"));
    let mut inside = entered(&endpoint, "disk");
    let mut choosing = RawClient::negotiate(&endpoint);
    folder.write(&format!("{head}[tls]\nmode = 'require'\ncertificates = 'pki'\n"));
    reload(&server, "read the configuration again");
    // It keeps the protocol that it began with, in which there is no TLS: it has to connect again.
    assert!(choosing.go("disk", &[]).is_err());
    choosing.finish();
    let mut late = RawClient::negotiate(&endpoint);
    assert_eq!(late.go("disk", &[]).unwrap_err().code, Rep::ERR_TLS_REQD);
    late.finish();
    assert_eq!(inside.read(0, 512), [0; 512]);
    inside.finish();
    let uri = format!(
        "nbds+unix:///disk?socket={}&tls-certificates={}&tls-hostname=localhost",
        folder.path("socket").display(),
        folder.path("pki").display()
    );
    let size = || {
        let mut info = Command::new(env!("CARGO_BIN_EXE_nbd"));
        run(info.args(["info", "--size", &uri]), LIMIT)
    };
    assert_eq!(size().success(), "1048576\n");
    // Another list of clients, none of which this one is; and certificates that are not there.
    folder.write(&format!(
        "{head}[tls]\nmode = 'require'\ncertificates = 'pki'\nallow = ['other.example.org']\n"
    ));
    reload(&server, "read the configuration again");
    size().failure();
    folder.write(&format!("{head}[tls]\nmode = 'require'\ncertificates = 'none'\n"));
    reload(&server, "stay in force");
    size().failure();
    folder.write(head);
    reload(&server, "read the configuration again");
    assert_eq!(entered(&endpoint, "disk").read(0, 512), [0; 512]);
    server.process.terminate();
    assert_eq!(server.end().0, Some(0));
}
