//! `nbd serve --take-over`: what a successor takes, and what becomes of the server that it replaces. That no client is
//! refused meanwhile is shown in `internal/interop/tests/replace.rs`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_testkit::process::{Background, Finished, run, wait_until};
use nbd_testkit::raw::RawClient;
use nbd_testkit::{Endpoint, cases};
use tempfile::TempDir;

use super::{LIMIT, RUNTIMES, Serving, refuses, serve};

/// A folder with a disk, and where servers of it have their sockets.
struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("disk"), vec![7; 1 << 20]).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A server with a control socket that listens on a Unix socket and a free port.
    fn first(&self, runtime: &str, more: &[&str]) -> Serving {
        let (control, socket, disk) =
            (self.text("control"), self.text("nbd.sock"), self.text("disk"));
        let mut arguments =
            vec!["--runtime", runtime, "--control", &control, "-U", &socket, "--port", "0"];
        arguments.extend(more);
        arguments.push(&disk);
        let server = Serving::start(arguments);
        // Only then it answers.
        assert_eq!(self.bitmaps("control").status.code(), Some(0));
        server
    }

    fn successor(&self, more: &[&str]) -> Command {
        let mut command = serve(["--take-over", &self.text("control")]);
        command.args(more).arg(self.path("disk"));
        command
    }

    /// Starts a successor, and waits for the end of the first one.
    #[track_caller]
    fn replaced(&self, first: Serving, more: &[&str]) -> Serving {
        let successor = Background::spawn(&mut self.successor(more)).unwrap();
        let Some(uri) = successor.next_line(LIMIT) else { panic!("{}", successor.stderr()) };
        let (code, said) = first.end();
        assert_eq!(code, Some(0), "{said}");
        Serving { process: successor, uri }
    }

    /// A successor that has taken over, while the other one may still have clients.
    #[track_caller]
    fn taken_over(&self, more: &[&str]) -> Background {
        let pid = self.text("pid");
        let mut command = self.successor(more);
        let successor = Background::spawn(command.args(["--pid-file", &pid])).unwrap();
        let own = format!("{}\n", successor.id());
        wait_until("it has taken over", LIMIT, || {
            std::fs::read_to_string(&pid).is_ok_and(|found| found == own)
        });
        successor
    }

    fn bitmaps(&self, control: &str) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
        run(command.arg("bitmap").arg(self.path(control)).arg("list"), LIMIT)
    }

    #[track_caller]
    fn serves(&self, socket: &str) {
        reads(&Endpoint::Unix(self.path(socket)));
    }
}

#[track_caller]
fn reads(endpoint: &Endpoint) {
    let mut client = RawClient::go_simple(endpoint);
    assert_eq!(client.read(0, 512), [7; 512]);
    client.finish();
}

/// Asks it to end and expects that it does.
#[track_caller]
fn stop(server: Serving) {
    server.process.terminate();
    let (code, said) = server.end();
    assert_eq!(code, Some(0), "{said}");
}

fn tcp(server: &Serving) -> SocketAddr {
    match server.endpoint() {
        Endpoint::Tcp(address) => address,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_successor_takes_all_sockets_with_the_control_socket() {
    for runtime in RUNTIMES {
        let site = Site::new();
        let first = site.first(runtime, &[]);
        let address = tcp(&first);
        let second = site.replaced(first, &["--runtime", runtime]);
        reads(&Endpoint::Tcp(address));
        site.serves("nbd.sock");
        assert_eq!(site.bitmaps("control").success(), "");
        // And so on, of whatever runtime.
        let third = site.replaced(second, &["--runtime", "blocking"]);
        reads(&Endpoint::Tcp(address));
        site.serves("nbd.sock");
        stop(third);
        assert!(!site.path("nbd.sock").exists() && !site.path("control").exists());
        assert!(TcpStream::connect(address).is_err());
    }
}

#[test]
fn addresses_choose_the_sockets_and_what_is_left_over_is_closed() {
    let site = Site::new();
    let first = site.first("tokio", &[]);
    let address = tcp(&first);
    let (new, control) = (site.text("new.sock"), site.text("new control"));
    let port = address.port().to_string();
    let more = ["--port", &port, "-U", &new, "--control", &control];
    let second = site.replaced(first, &more);
    assert_eq!(tcp(&second), address);
    reads(&Endpoint::Tcp(address));
    site.serves("new.sock");
    for gone in ["nbd.sock", "control"] {
        wait_until("the files are removed", LIMIT, || !site.path(gone).exists());
    }
    assert_eq!(site.bitmaps("new control").success(), "");
    stop(second);
    assert!(!site.path("new.sock").exists() && !site.path("new control").exists());
}

#[test]
fn a_successor_that_fails_changes_nothing() {
    let site = Site::new();
    let first = site.first("tokio", &[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let missing = site.text("missing");
    for (more, says) in [
        (&[&*missing][..], "missing"),
        (&["--port", &port], "cannot listen on 127.0.0.1"),
        (&["--pid-file", "/no/such/folder/pid"], "cannot write the process id"),
        (&["--tls", "require", "--tls-certificates", &missing], "missing"),
    ] {
        let mut command = serve(["--take-over", &site.text("control")]);
        refuses(command.args(more).arg(format!("b={}", site.text("disk"))), 1, &[says]);
        site.serves("nbd.sock");
        reads(&first.endpoint());
        assert_eq!(site.bitmaps("control").success(), "");
    }
    stop(first);
}

/// An overlay file is of one server at a time. A check says so, too.
#[test]
fn an_overlay_file_is_not_handed_over() {
    let site = Site::new();
    let layer = format!("overlay:{}", site.text("changes"));
    let first = site.first("tokio", &["--layer", &layer]);
    for more in [&[][..], &["--check"], &["--discard-state"]] {
        let says = ["is in use, and a server does not hand over its overlay files: end it"];
        refuses(site.successor(&["--layer", &layer]).args(more), 1, &says);
        site.serves("nbd.sock");
    }
    stop(first);
}

#[test]
fn what_lives_in_memory_is_not_lost_by_accident() {
    let site = Site::new();
    let first = site.first("tokio", &["--track", "monday", "a=memory:1M"]);
    let says = [
        "what exports hold in memory (export 'a') and the dirty bitmaps ('monday') would be lost",
        "--discard-state",
        "which goes on",
    ];
    refuses(&mut site.successor(&[]), 1, &says);
    site.serves("nbd.sock");
    // A bitmap that continued under its name would lack what was changed by way of the other server.
    refuses(&mut site.successor(&["--discard-state", "--track", "monday"]), 64, &["--track"]);
    stop(site.replaced(first, &["--discard-state"]));
}

/// Whatever was there at the start, and has come and gone since.
#[test]
fn what_is_in_memory_at_the_moment_counts() {
    cases(6, |random| {
        let site = Site::new();
        let mut words = Vec::new();
        for (name, word) in [("m", "m=memory:1M"), ("n", "n=memory:2M")] {
            if random.below(2) == 0 {
                words.push((name, word));
            }
        }
        let at_start: Vec<_> = words.iter().map(|(_, word)| *word).collect();
        let first = site.first("tokio", &at_start);
        let mut in_memory: BTreeSet<_> = words.iter().map(|(name, _)| *name).collect();
        let mut others = BTreeSet::new();
        let control = site.text("control");
        let export = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_nbd"));
            run(command.args(["export", &control]).args(arguments), LIMIT).success();
        };
        for _ in 0..random.below(8) {
            let name = ["m", "n", "o", "p"][random.below(4) as usize];
            if in_memory.remove(name) || others.remove(name) {
                export(&["remove", name]);
                continue;
            }
            let file = site.path(&format!("{name}.img"));
            // An overlay in a file is for a disk that does not change.
            if !file.exists() {
                std::fs::write(&file, [0; 4096]).unwrap();
            }
            let file = format!("{name}={}", file.display());
            match random.below(4) {
                0 => export(&["add", &format!("{name}=memory:1M")]),
                1 => export(&["add", "--layer", "overlay", &file]),
                2 => {
                    export(&["add", "--layer", &format!("overlay:{}", site.text(name)), &file]);
                    others.insert(name);
                    continue;
                }
                _ => {
                    export(&["add", "--read-only", &format!("{name}=memory:1M")]);
                    others.insert(name);
                    continue;
                }
            }
            in_memory.insert(name);
        }
        if in_memory.is_empty() {
            return stop(site.replaced(first, &[]));
        }
        for name in &in_memory {
            refuses(&mut site.successor(&[]), 1, &["hold in memory (", &format!("'{name}'")]);
        }
        site.serves("nbd.sock");
        stop(site.replaced(first, &["--discard-state"]));
    });
}

#[test]
fn where_no_server_is_nothing_can_be_replaced() {
    let site = Site::new();
    let says = ["no answer on the control socket", "control"];
    refuses(&mut site.successor(&[]), 1, &says);
    let first = site.first("tokio", &[]);
    let mut command = serve(["--take-over", &site.text("nbd.sock"), &site.text("disk")]);
    refuses(&mut command, 1, &["cannot replace the server of", "unexpected answer"]);
    let mut command = serve(["--linger", "1s", &site.text("disk")]);
    refuses(&mut command, 64, &["--take-over"]);
    stop(first);
}

/// Somebody who asks for the sockets by hand.
struct ByHand(BufReader<UnixStream>);

impl ByHand {
    fn new(control: &Path) -> Self {
        let stream = UnixStream::connect(control).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self(BufReader::new(stream))
    }

    #[track_caller]
    fn ask(&mut self, verb: &str, arguments: &str) -> String {
        let request = format!(r#"{{"version":1,"verb":"{verb}","arguments":{arguments}}}"#);
        writeln!(self.0.get_mut(), "{request}").unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        answer
    }
}

const ALL: &str = r#"{"discard_state":true}"#;

#[test]
fn a_successor_that_dies_with_the_sockets_is_survived() {
    for runtime in RUNTIMES {
        let site = Site::new();
        let first = site.first(runtime, &[]);
        for _ in 0..3 {
            let mut dies = ByHand::new(&site.path("control"));
            let answer = dies.ask("take-over", ALL);
            assert!(answer.starts_with(r#"{"ok":["#), "{answer}");
        }
        site.serves("nbd.sock");
        reads(&first.endpoint());
        stop(site.replaced(first, &[]));
    }
}

#[test]
fn one_successor_at_a_time_and_only_one() {
    let site = Site::new();
    let first = site.first("tokio", &[]);
    let mut waits = ByHand::new(&site.path("control"));
    assert!(waits.ask("take-over", ALL).contains("clients"));
    refuses(&mut site.successor(&[]), 1, &["another server is about to take over"]);
    // Others that ask for something do not have it closed, however many they are.
    let mut others: Vec<_> = (0..200).map(|_| UnixStream::connect(site.path("control"))).collect();
    others.clear();
    assert_eq!(site.bitmaps("control").success(), "");
    let answer = waits.ask("dance", "{}");
    assert!(answer.contains("'dance' was received where serving is due"), "{answer}");
    drop(waits);
    let mut malformed = ByHand::new(&site.path("control"));
    let answer = malformed.ask("take-over", r#"{"discard_state":7}"#);
    assert!(answer.contains("the arguments of take-over are malformed"), "{answer}");
    drop(malformed);
    stop(site.replaced(first, &[]));
}

/// It waits for its turn while the first one serves already, and is told so before that server is gone.
#[test]
fn a_successor_that_comes_too_late_is_told_that_another_one_has_taken_over() {
    let site = Site::new();
    for runtime in RUNTIMES {
        let mut first = site.first(runtime, &["-v"]);
        let mut other = ByHand::new(&site.path("control"));
        assert!(other.ask("take-over", ALL).contains("clients"));
        // This one is connected, and has not asked for anything yet.
        let mut later = ByHand::new(&site.path("control"));
        assert_eq!(site.bitmaps("control").success(), "", "who came before it is accepted");
        let late = Background::spawn(&mut site.successor(&[])).unwrap();
        let asked = || first.process.stderr().matches("verb=\"take-over\"").count() == 2;
        wait_until("it waits for its turn", LIMIT, asked);
        assert_eq!(other.ask("serving", r#"{"linger_ms":0}"#), "{\"ok\":null}\n");
        drop(other);
        let (code, said) = Serving { process: late, uri: String::new() }.end();
        let control = site.text("control");
        let says = format!(
            "nbd: cannot replace the server of {control}: another server has taken over already\n"
        );
        assert_eq!((code, said), (Some(1), says));
        let answer = later.ask("take-over", ALL);
        assert!(answer.contains("another server has taken over already"), "{answer}");
        drop(later);
        assert_eq!(first.process.wait_exit(LIMIT).and_then(|status| status.code()), Some(0));
        // Nobody has adopted them.
        std::fs::remove_file(site.path("control")).unwrap();
        std::fs::remove_file(site.path("nbd.sock")).unwrap();
    }
}

/// As a server that ends just then, or a program that is none.
#[test]
fn a_control_socket_that_is_closed_without_an_answer_is_said_to_be() {
    let site = Site::new();
    let listener = std::os::unix::net::UnixListener::bind(site.path("control")).unwrap();
    let says =
        ["cannot replace the server of", "closed the connection without an answer: it has ended"];
    for read in [true, false] {
        let finished = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().unwrap();
                if read {
                    BufReader::new(stream).read_line(&mut String::new()).unwrap();
                }
            });
            refuses(&mut site.successor(&[]), 1, &says)
        });
        assert!(!finished.stderr.contains("goes on"), "{}", finished.stderr);
    }
}

/// The first server goes on, and the file stays.
#[test]
fn what_comes_to_the_path_of_the_process_id_during_a_take_over_is_not_replaced() {
    let site = Site::new();
    let first = site.first("tokio", &[]);
    let pid = site.text("pid");
    let mut waits = ByHand::new(&site.path("control"));
    assert!(waits.ask("take-over", ALL).contains("clients"));
    let successor = Background::spawn(&mut site.successor(&["--pid-file", &pid])).unwrap();
    let names = || std::fs::read_dir(site.folder.path()).unwrap().count();
    // Its own is written beside its path.
    let before = ["disk", "control", "nbd.sock"].len();
    wait_until("its file is prepared", LIMIT, || names() > before);
    let _other = std::os::unix::net::UnixListener::bind(&pid).unwrap();
    drop(waits);
    let (code, said) = Serving { process: successor, uri: String::new() }.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("cannot write the process id to") && said.contains(&pid), "{said}");
    UnixStream::connect(&pid).unwrap();
    site.serves("nbd.sock");
    stop(first);
    assert_eq!(names(), ["disk", "pid"].len());
}

#[test]
fn clients_stay_until_they_disconnect_or_have_lingered() {
    let site = Site::new();
    let first = site.first("tokio", &[]);
    let mut client = RawClient::go_simple(&first.endpoint());
    assert_eq!(client.read(0, 512), [7; 512]);
    let mut second = site.taken_over(&["--linger", "1h"]);
    assert_eq!(client.read(0, 512), [7; 512], "by the first one");
    client.finish();
    assert_eq!(first.end(), (Some(0), String::new()));
    let endpoint = Endpoint::Unix(site.path("nbd.sock"));
    let mut client = RawClient::go_simple(&endpoint);
    let _third = site.taken_over(&["--linger", "0s"]);
    assert_eq!(second.wait_exit(LIMIT).and_then(|status| status.code()), Some(0));
    // Its connection is closed in order.
    client.wire().drain_to_eof();
}

#[test]
fn a_signal_ends_a_server_that_was_replaced_before_its_clients_have_lingered() {
    let site = Site::new();
    let first = site.first("tokio", &[]);
    let client = RawClient::go_simple(&first.endpoint());
    let _second = site.taken_over(&["--linger", "1h"]);
    first.process.terminate();
    assert_eq!(first.end(), (Some(0), String::new()));
    drop(client);
    site.serves("nbd.sock");
}

#[test]
fn the_file_of_the_process_id_is_the_successors() {
    let site = Site::new();
    let pid = site.text("nbd.pid");
    let first = site.first("tokio", &["--pid-file", &pid]);
    let second = site.replaced(first, &["--pid-file", &pid]);
    let own = format!("{}\n", second.process.id());
    wait_until("it is ready", LIMIT, || {
        std::fs::read_to_string(&pid).is_ok_and(|found| found == own)
    });
    stop(second);
    assert!(!Path::new(&pid).exists());
}

#[test]
fn a_read_only_and_an_oldstyle_server_can_be_replaced() {
    let site = Site::new();
    let first = site.first("tokio", &["--read-only"]);
    let mut start = Command::new(env!("CARGO_BIN_EXE_nbd"));
    start.arg("bitmap").arg(site.path("control")).args(["start", "a"]);
    let said = run(&mut start, LIMIT).failure();
    assert!(said.contains("each is read-only or a directory"), "{said}");
    let second = site.replaced(first, &["--oldstyle"]);
    stop(site.replaced(second, &["--read-only"]));
}

/// What a scraper gets: a count of connections, or nothing.
fn scraped(mut stream: impl std::io::Read + Write) -> Option<String> {
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.contains("nbd_connections_max").then_some(text)
}

#[test]
fn scrapers_find_the_successor_at_the_same_address() {
    for runtime in RUNTIMES {
        let site = Site::new();
        let unix = site.path("metrics");
        let at_unix = format!("unix:{}", unix.display());
        let scrape = || scraped(UnixStream::connect(&unix).unwrap());
        let first = site.first(runtime, &["--metrics", &at_unix]);
        assert!(scrape().is_some());
        let second = site.replaced(first, &["--runtime", runtime, "--metrics", &at_unix]);
        assert!(scrape().is_some());
        // Another address, at which nobody listens yet, with its own port.
        let third = site.replaced(second, &["--metrics", "0", "-v"]);
        assert!(!unix.exists(), "the socket that nobody wanted is left behind");
        wait_until("it says where", LIMIT, || third.process.stderr().contains("/metrics"));
        let said = third.process.stderr();
        let url = said.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let address: SocketAddr = url.and_then(|url| url.parse().ok()).expect(&said);
        let scrape = || scraped(TcpStream::connect(address).unwrap());
        assert!(scrape().is_some());
        let fourth = site.replaced(third, &["--metrics", &address.to_string()]);
        assert!(scrape().is_some());
        site.serves("nbd.sock");
        // A successor that fails leaves them where they are.
        let mut command = site.successor(&["--metrics", &address.to_string(), "x=./missing"]);
        refuses(&mut command, 1, &["missing"]);
        assert!(scrape().is_some());
        stop(fourth);
        TcpStream::connect(address).unwrap_err();
    }
}
