//! Sockets that are handed over when it starts.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nbd_testkit::Endpoint;
use nbd_testkit::peers;
use nbd_testkit::process::{run, wait_until};
use nbd_testkit::raw::{Opt, RawClient, Rep, Wire, info_data, option_bytes};
use rustix::process::{Pid, Signal, kill_process};

use super::{LIMIT, RUNTIMES, refuses};

const NBD: &str = env!("CARGO_BIN_EXE_nbd");

/// Puts standard input and output where socket activation wants them, and becomes the server.
const HAND_OVER: &str = r#"exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec "$@""#;

/// A server with two sockets that a test made; killed when dropped.
struct Activated(Child);

impl Activated {
    fn start(arguments: &[&str], first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> Self {
        Self::spawn(&mut Self::command(arguments, first, second))
    }

    fn command(
        arguments: &[&str],
        first: impl Into<OwnedFd>,
        second: impl Into<OwnedFd>,
    ) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", HAND_OVER, "sh", NBD, "serve"]).args(arguments).env("LISTEN_FDS", "2");
        shell.stdin(Stdio::from(first.into())).stdout(Stdio::from(second.into()));
        shell.stderr(Stdio::piped());
        shell
    }

    fn spawn(shell: &mut Command) -> Self {
        Self(shell.spawn().expect("there is a shell"))
    }

    /// Asks it to end; gives the exit code, and what it wrote.
    #[track_caller]
    fn terminate(self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("it is not reaped yet");
        self.terminated()
    }

    /// The exit code of a server that was asked to end, and what it wrote.
    #[track_caller]
    fn terminated(mut self) -> (Option<i32>, String) {
        let mut status = None;
        wait_until("the server ends", LIMIT, || {
            status = self.0.try_wait().expect("a child of ours");
            status.is_some()
        });
        let mut text = String::new();
        let stderr = self.0.stderr.as_mut().expect("it is piped");
        stderr.read_to_string(&mut text).expect("it ends with the process");
        (status.and_then(|status| status.code()), text)
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A server that gets sockets by its environment, with a script that says what they are.
fn told(variables: &str, redirections: &str, arguments: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{variables} exec '{NBD}' serve {arguments} {redirections}"));
    shell
}

#[test]
fn every_socket_that_is_handed_over_is_served_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    for runtime in RUNTIMES {
        let path = folder.path().join(runtime);
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let server = Activated::start(&["--runtime", runtime, "memory:1M"], unix, tcp);
        for endpoint in [Endpoint::Unix(path.clone()), Endpoint::Tcp(address)] {
            // Two, one after the other: it serves on when the last client has left.
            for _ in 0..2 {
                let mut client = RawClient::go_simple(&endpoint);
                assert_eq!(client.read(0, 512), [0; 512]);
                client.finish();
            }
        }
        assert_eq!(server.terminate(), (Some(0), String::new()), "{runtime}");
        assert!(path.exists(), "who made the socket removes it");
        assert!(Wire::try_connect(&Endpoint::Unix(path)).is_err(), "nobody listens any more");
    }
}

/// Whether a client that had begun to negotiate when systemd restarted the server got its export all the same.
fn is_served_while_the_server_ends(runtime: &str, folder: &Path) -> bool {
    let path = folder.join("nbd.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let notify = folder.join("notify");
    let supervisor = UnixDatagram::bind(&notify).unwrap();
    supervisor.set_read_timeout(Some(LIMIT)).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Activated::command(&["--runtime", runtime, "memory:1M"], unix, tcp);
    let server = Activated::spawn(command.env("NOTIFY_SOCKET", &notify));
    drop(command);
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    client.read_exact(&mut [0; 18]).unwrap();
    kill_process(Pid::from_child(&server.0), Signal::TERM).unwrap();
    let mut text = [0; 1024];
    while !text.starts_with(b"STOPPING=1") {
        assert_ne!(supervisor.recv(&mut text).unwrap(), 0);
    }
    let go = option_bytes(Opt::GO, &info_data("", &[]));
    let mut asked = [&3_u32.to_be_bytes()[..], &go].concat();
    // It disconnects without another word.
    asked.extend(option_bytes(Opt::ABORT, &[]));
    let mut reply = [0; 20];
    let answered = client.write_all(&asked).and_then(|()| client.read_exact(&mut reply));
    drop(client);
    let (unix, notify) = (std::fs::remove_file(&path), std::fs::remove_file(&notify));
    unix.and(notify).unwrap();
    assert_eq!(server.terminated().0, Some(0), "{runtime}");
    answered.is_ok() && reply[12..16] == Rep::INFO.0.to_be_bytes()
}

#[test]
fn a_restart_lets_clients_finish_that_have_begun_to_negotiate() {
    let folder = tempfile::tempdir().unwrap();
    for runtime in RUNTIMES {
        // The time that such clients have may pass on a machine that is busy.
        let is_served = |_| is_served_while_the_server_ends(runtime, folder.path());
        assert!((0..20).any(is_served), "{runtime}");
    }
}

#[test]
fn a_restart_refuses_nobody_as_the_sockets_stay() {
    use nbd_engine::client::{ClientConfig, Flags, Reconnect, Uri};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![7; 1 << 20]).unwrap();
    let start = || {
        let arguments = [disk.to_str().unwrap()];
        Activated::start(&arguments, unix.try_clone().unwrap(), tcp.try_clone().unwrap())
    };
    let mut server = Some(start());
    let (over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let uri: Uri = format!("nbd://{address}/").parse().unwrap();
    thread::scope(|scope| {
        let _over = SetOnDrop(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                drop(UnixStream::connect(&path).expect("it is not refused"));
                thread::sleep(Duration::from_millis(1));
            }
        });
        scope.spawn(|| {
            let config = ClientConfig::new().with_reconnect(Reconnect::new());
            let client = nbd_blocking::Client::connect_with(&uri, &config).unwrap();
            while !over.load(Ordering::Relaxed) {
                let read = client.read(0, 512, Flags::empty()).expect("no request is lost");
                assert_eq!(&read[..], [7; 512]);
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..3 {
            let before = rounds.load(Ordering::Relaxed);
            wait_until("it serves", LIMIT, || rounds.load(Ordering::Relaxed) > before + 1);
            assert_eq!(server.take().unwrap().terminate().0, Some(0));
            server = Some(start());
        }
        let before = rounds.load(Ordering::Relaxed);
        wait_until("it serves again", LIMIT, || rounds.load(Ordering::Relaxed) > before + 1);
    });
}

/// Tells other threads that this one is done, also by a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn oldstyle_is_spoken_on_sockets_that_are_handed_over() {
    let folder = tempfile::tempdir().unwrap();
    for runtime in RUNTIMES {
        let path = folder.path().join(runtime);
        let unix = UnixListener::bind(&path).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let arguments = ["--runtime", runtime, "--oldstyle", "memory:1M"];
        let server = Activated::start(&arguments, unix, tcp);
        let mut wire = Wire::connect(&Endpoint::Unix(path));
        assert_eq!(wire.recv(8, "the first magic"), b"NBDMAGIC");
        assert_eq!(wire.u64("the second magic"), 0x0000_4202_8186_1253);
        drop(wire);
        assert_eq!(server.terminate().0, Some(0), "{runtime}");
    }
}

#[test]
fn it_ends_when_the_client_that_started_it_fails() {
    let Some(peer) = peers::require("nbdcopy") else { return };
    let folder = tempfile::tempdir().unwrap();
    let big = folder.path().join("big.img");
    std::fs::File::create(&big).unwrap().set_len(16 << 20).unwrap();
    for runtime in RUNTIMES {
        let mut nbdcopy = peer.command();
        nbdcopy.arg("--").arg(&big);
        nbdcopy.args(["[", NBD, "serve", "--runtime", runtime, "memory:1M", "]"]);
        let mut nbdcopy = nbdcopy.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = nbdcopy.stderr.take().unwrap();
        assert_eq!(nbdcopy.wait().unwrap().code(), Some(1), "the disk is too small");
        // The server has standard error, too: that ends when both have ended.
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || sender.send(stderr.read_to_end(&mut Vec::new()).is_ok()));
        assert_eq!(ended.recv_timeout(LIMIT), Ok(true), "{runtime}");
    }
}

#[test]
fn nothing_is_printed_where_a_client_prints() {
    let Some(peer) = peers::require("nbdinfo") else { return };
    for runtime in RUNTIMES {
        let mut nbdinfo = peer.command();
        nbdinfo.args(["--size", "--", "[", NBD, "serve", "--runtime", runtime, "memory:1M", "]"]);
        let finished = run(&mut nbdinfo, LIMIT);
        assert_eq!(finished.stderr, "");
        assert_eq!(finished.success(), "1048576\n");
    }
}

#[test]
fn nbd_info_starts_a_server_and_cleans_up_after_it() {
    let folder = tempfile::tempdir().unwrap();
    for runtime in RUNTIMES {
        let number = folder.path().join(runtime);
        // The shell's number stays the server's.
        let script = format!("echo $$ >'{}'; exec \"$@\"", number.display());
        let mut info = Command::new(NBD);
        info.args(["info", "--size", "[", "sh", "-c", &script, "sh", NBD, "serve"]);
        info.args(["--runtime", runtime, "memory:1M", "]"]);
        assert_eq!(run(&mut info, LIMIT).success(), "1048576\n");
        let number = std::fs::read_to_string(number).unwrap();
        // No zombie either: that would have a folder, too.
        assert!(!Path::new("/proc").join(number.trim()).exists(), "{runtime}");
    }
}

#[test]
fn nbdinfo_starts_a_server_and_cleans_up_after_it() {
    let Some(peer) = peers::require("nbdinfo") else { return };
    let folder = tempfile::tempdir().unwrap();
    for runtime in RUNTIMES {
        let number = folder.path().join(runtime);
        let script = format!("echo $$ >'{}'; exec \"$@\"", number.display());
        let mut nbdinfo = peer.command();
        nbdinfo.args(["--json", "--", "[", "sh", "-c", &script, "sh", NBD, "serve"]);
        nbdinfo.args(["--runtime", runtime, "memory:1M", "]"]);
        let told = run(&mut nbdinfo, LIMIT).success();
        assert!(told.contains("\"export-size\": 1048576"), "{told}");
        let number = std::fs::read_to_string(number).unwrap();
        assert!(!Path::new("/proc").join(number.trim()).exists(), "{runtime}");
    }
}

#[test]
fn nbdcopy_copies_into_a_server_and_out_of_another() {
    let Some(peer) = peers::require("nbdcopy") else { return };
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name).display().to_string());
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 511) as u8).collect();
    for runtime in RUNTIMES {
        std::fs::write(&from, &bytes).unwrap();
        std::fs::write(&to, vec![7; 1 << 20]).unwrap();
        let server = |path| ["[", NBD, "serve", "--runtime", runtime, path, "]"];
        let mut nbdcopy = peer.command();
        nbdcopy.args(["--flush", "--"]).args(server(&from)).args(server(&to));
        run(&mut nbdcopy, LIMIT).success();
        assert!(std::fs::read(&to).unwrap() == bytes, "{runtime}");
    }
}

#[test]
fn addresses_make_no_sense_with_sockets_that_are_handed_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own");
    for arguments in ["--port 0", "--ip-addr 127.0.0.1", &format!("--unix '{}'", path.display())] {
        let mut info = Command::new("sh");
        info.args(["-c", &format!("exec '{NBD}' info [ '{NBD}' serve {arguments} memory:1M ]")]);
        let said = run(&mut info, LIMIT).failure();
        assert!(said.contains("make no sense here"), "{said}");
        assert!(said.contains("exit status: 64"), "{said}");
    }
    assert!(!path.exists());
}

#[test]
fn variables_that_say_nothing_sensible_are_named() {
    for (variables, says) in [
        ("LISTEN_PID=x LISTEN_FDS=1", "LISTEN_PID is 'x'"),
        ("LISTEN_PID=0 LISTEN_FDS=1", "LISTEN_PID is '0'"),
        ("LISTEN_PID=$$ LISTEN_FDS=", "LISTEN_FDS is ''"),
        ("LISTEN_PID=$$ LISTEN_FDS=-1", "LISTEN_FDS is '-1'"),
        ("LISTEN_PID=$$ LISTEN_FDS=0", "LISTEN_FDS is '0'"),
    ] {
        refuses(&mut told(variables, "", "--port 0"), 64, &[says, "unset LISTEN_PID"]);
    }
}

#[test]
fn descriptors_that_can_not_be_served_are_named() {
    for (count, redirections, says) in [
        (1, "3<&-", "descriptor 3 is not open"),
        (4_000_000_000_u32, "3<&-", "descriptor 3 is not open"),
        (1, "3</dev/null", "descriptor 3 is not a socket"),
    ] {
        let variables = format!("LISTEN_PID=$$ LISTEN_FDS={count}");
        refuses(&mut told(&variables, redirections, "memory:1M"), 1, &[says]);
    }
    // A socket that is connected, and does not listen.
    let mut shell = Command::new("sh");
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$@\"";
    shell.args(["-c", script, "sh", NBD, "serve", "memory:1M"]).env("LISTEN_FDS", "1");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = shell.stdin(Stdio::from(OwnedFd::from(theirs))).output().unwrap();
    drop(ours);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("descriptor 3 is not a stream socket that listens"), "{said}");
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    for variables in ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1", "LISTEN_PID=$$"] {
        let mut server =
            nbd_testkit::process::Background::spawn(&mut told(variables, "", "-p 0 memory:1M"))
                .unwrap();
        let uri = server.next_line(LIMIT).expect("it listens where it is told to");
        RawClient::go_simple(&Endpoint::parse(&uri).unwrap()).finish();
        server.terminate();
        assert_eq!(server.wait_exit(LIMIT).and_then(|status| status.code()), Some(0));
    }
}
