//! What a supervisor learns: `READY=1` and its like, the file of the process id, and the line of `--ready-fd`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Command, Stdio};

use nbd_testkit::process::{Background, wait_until};
use nbd_testkit::raw::RawClient;

use super::{LIMIT, RUNTIMES, Serving, refuses, serve};

/// The socket of a supervisor.
struct Supervisor(UnixDatagram);

impl Supervisor {
    fn at(path: &Path) -> Self {
        Self::of(UnixDatagram::bind(path).unwrap())
    }

    fn of(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self(socket)
    }

    #[track_caller]
    fn message(&self) -> String {
        let mut text = [0; 1024];
        let count = self.0.recv(&mut text).expect("a message");
        String::from_utf8_lossy(&text[..count]).into_owned()
    }

    #[track_caller]
    fn expect(&self, server: &Background, text: &str) {
        assert_eq!(self.message(), text.replace("{}", &server.id().to_string()));
    }
}

#[test]
fn it_is_ready_when_it_listens_and_stopping_when_its_end_begins() {
    let folder = tempfile::tempdir().unwrap();
    for runtime in RUNTIMES {
        let path = folder.path().join(runtime);
        let supervisor = Supervisor::at(&path);
        let mut command = serve(["--runtime", runtime, "--port", "0", "memory:1M"]);
        let mut server = Background::spawn(command.env("NOTIFY_SOCKET", &path)).unwrap();
        supervisor.expect(&server, "READY=1\nMAINPID={}");
        let uri = server.next_line(LIMIT).expect("it was printed before");
        RawClient::go_simple(&nbd_testkit::Endpoint::parse(&uri).unwrap()).finish();
        server.terminate();
        supervisor.expect(&server, "STOPPING=1");
        assert_eq!(server.wait_exit(LIMIT).and_then(|status| status.code()), Some(0));
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_supervisors_socket_can_be_abstract() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("nbd supervisor {}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let supervisor = Supervisor::of(UnixDatagram::bind_addr(&address).unwrap());
    let mut command = serve(["--port", "0", "memory:1M"]);
    let server = Background::spawn(command.env("NOTIFY_SOCKET", format!("@{name}"))).unwrap();
    supervisor.expect(&server, "READY=1\nMAINPID={}");
}

#[test]
#[cfg(feature = "tls")]
fn a_reload_has_a_beginning_with_the_time_and_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let (path, certificates) = (folder.path().join("notify"), folder.path().join("pki"));
    let mut cert = Command::new(env!("CARGO_BIN_EXE_nbd"));
    nbd_testkit::process::run(cert.arg("cert").arg(&certificates), LIMIT).success();
    let supervisor = Supervisor::at(&path);
    // Without a terminal, so that SIGHUP is a reload.
    let mut command = Command::new("setsid");
    command.arg(env!("CARGO_BIN_EXE_nbd")).args(["serve", "--port", "0", "memory:1M"]);
    command.arg("--tls-certificates").arg(&certificates).env("NOTIFY_SOCKET", &path);
    let server = Background::spawn(&mut command).unwrap();
    supervisor.expect(&server, "READY=1\nMAINPID={}");
    let mut earlier = 0;
    for _ in 0..2 {
        server.hang_up();
        let text = supervisor.message();
        let time = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&text);
        let time: u64 = time.parse().unwrap();
        assert!(time > earlier);
        earlier = time;
        supervisor.expect(&server, "READY=1\nMAINPID={}");
    }
}

/// It would be taken for one that goes on.
#[test]
fn a_hang_up_that_ends_the_server_is_no_reload() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let supervisor = Supervisor::at(&path);
    let mut command = Command::new("setsid");
    command.arg(env!("CARGO_BIN_EXE_nbd")).args(["serve", "--port", "0", "memory:1M"]);
    let mut server = Background::spawn(command.env("NOTIFY_SOCKET", &path)).unwrap();
    supervisor.expect(&server, "READY=1\nMAINPID={}");
    server.hang_up();
    assert_eq!(supervisor.message(), "STOPPING=1");
    assert_eq!(server.wait_exit(LIMIT).and_then(|status| status.code()), Some(0));
}

#[test]
fn a_supervisor_that_can_not_be_reached_is_logged_and_the_server_serves() {
    for name in ["relative", "vsock:2:1", "/no/such/socket"] {
        let mut command = serve(["-v", "--port", "0", "memory:1M"]);
        let mut server = Background::spawn(command.env("NOTIFY_SOCKET", name)).unwrap();
        assert!(server.next_line(LIMIT).is_some());
        wait_until("it is logged", LIMIT, || server.stderr().contains("cannot notify"));
        server.terminate();
        assert_eq!(server.wait_exit(LIMIT).and_then(|status| status.code()), Some(0));
    }
}

#[test]
fn the_file_of_the_process_id_is_there_once_it_serves_and_goes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.pid");
    // Of a server that crashed.
    fs::write(&path, "99999999\n").unwrap();
    let text = path.display().to_string();
    for runtime in RUNTIMES {
        let arguments = ["--runtime", runtime, "--port", "0", "--pid-file", &text, "memory:1M"];
        let server = Serving::start(arguments);
        let own = format!("{}\n", server.process.id());
        wait_until("it is ready", LIMIT, || {
            fs::read_to_string(&path).is_ok_and(|found| found == own)
        });
        server.stop();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{runtime}");
    }
}

#[test]
fn a_server_that_does_not_start_leaves_the_file_of_the_process_id_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd.pid");
    fs::write(&path, "99999999").unwrap();
    let text = path.display().to_string();
    // (RFC 5737) No machine has the address.
    let mut command = serve(["--pid-file", &text, "--ip-addr", "192.0.2.1", "memory:1M"]);
    refuses(&mut command, 1, &["192.0.2.1"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "99999999");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let missing = folder.path().join("missing/nbd.pid").display().to_string();
    let mut command = serve(["--pid-file", &missing, "--port", "0", "memory:1M"]);
    refuses(&mut command, 1, &["cannot write the process id to", &missing]);
}

/// It would be lost, and its path removed at the end: a disk, or a device.
#[test]
fn what_is_no_file_of_a_process_id_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("disk"), [0; 4096]).unwrap();
    fs::write(path("notes"), "12 34 and more").unwrap();
    fs::write(path("digits"), "1".repeat(4096)).unwrap();
    std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), kind, mode, 0).unwrap();
    for (name, says) in [
        ("disk", "something else than a process id"),
        ("notes", "something else than a process id"),
        ("digits", "something else than a process id"),
        ("link", "it is a symbolic link"),
        ("pipe", "it is no regular file"),
    ] {
        let pid = path(name).display().to_string();
        let before = fs::symlink_metadata(&pid).unwrap();
        for more in [&["--run", "true"][..], &["--check"]] {
            let mut command = serve(["--pid-file", &pid, "memory:1M"]);
            refuses(command.args(more), 1, &["cannot write the process id", says]);
        }
        let after = fs::symlink_metadata(&pid).unwrap();
        assert_eq!((before.ino(), before.len()), (after.ino(), after.len()), "{name}");
    }
}

#[test]
fn a_descriptor_gets_a_line_once_it_serves_and_is_closed() {
    let (read, write) = std::io::pipe().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 7>&1 >/dev/null; exec \"$0\" serve --ready-fd 7 --port 0 memory:1M"]);
    shell.arg(env!("CARGO_BIN_EXE_nbd")).stdin(Stdio::null());
    let mut child = shell.stdout(OwnedFd::from(write)).spawn().unwrap();
    // It would wait for ever if the server kept its end.
    drop(shell);
    let lines: Vec<_> = BufReader::new(read).lines().map(Result::unwrap).collect();
    assert_eq!(lines, ["READY"]);
    assert!(matches!(child.try_wait(), Ok(None)), "it serves");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn standard_error_can_be_the_descriptor_and_stays_open() {
    let server = Serving::start(["--ready-fd", "2", "-vv", "--port", "0", "memory:1M"]);
    wait_until("it is ready", LIMIT, || server.process.stderr().contains("READY\n"));
    RawClient::go_simple(&server.endpoint()).finish();
    wait_until("it logs", LIMIT, || server.process.stderr().contains("a client connected"));
}

#[test]
fn a_descriptor_that_is_not_open_is_a_usage_error() {
    for number in ["1000000", "4000000000"] {
        let mut command = serve(["--ready-fd", number, "--port", "0", "memory:1M"]);
        refuses(&mut command, 64, &["names no descriptor that is open", number]);
    }
    let mut shell = Command::new("sh");
    let script = "exec 3<&0; export LISTEN_PID=$$; exec \"$0\" serve --ready-fd 3 memory:1M";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_nbd")]).env("LISTEN_FDS", "1");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = shell.stdin(OwnedFd::from(listener)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("--ready-fd 3 is one of the sockets"), "{said}");
}
