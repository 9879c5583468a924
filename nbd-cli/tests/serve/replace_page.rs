//! The commands and units of `docs/replace.md`.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};

use nbd_testkit::Endpoint;
use nbd_testkit::process::{Background, run, wait_until};
use nbd_testkit::raw::RawClient;

use super::LIMIT;

const PAGE: &str = include_str!("../../../docs/replace.md");

/// The blocks of a language, in order.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let blocks = PAGE.split(&*fence).skip(1);
    blocks.map(|block| block.split_once("```").expect("the block ends").0).collect()
}

/// A script that finds `nbd` as people do, in a folder with a disk.
fn shell(script: &str, folder: &Path) -> Command {
    let bin = Path::new(env!("CARGO_BIN_EXE_nbd")).parent().expect("it is in a folder").to_owned();
    let mut path = vec![bin];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new("sh");
    command.env("PATH", std::env::join_paths(path).expect("plain names"));
    command.current_dir(folder).args(["-euc", script]);
    command
}

fn folder_with_disk() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("disk.img"), vec![7; 1 << 20]).unwrap();
    folder
}

#[track_caller]
fn reads(endpoint: &Endpoint) {
    let mut client = RawClient::go_simple(endpoint);
    assert_eq!(client.read(0, 512), [7; 512]);
    client.finish();
}

#[test]
fn the_commands_replace_a_server_and_wait_for_one() {
    let [first, successor, ready] = blocks("sh")[..] else { panic!("three blocks") };
    let folder = folder_with_disk();
    let exec = |script: &str| {
        let mut command = shell(&format!("exec {script}"), folder.path());
        let server = Background::spawn(&mut command).unwrap();
        assert!(server.next_line(LIMIT).is_some(), "{}", server.stderr());
        server
    };
    let mut first = exec(first);
    let endpoint = Endpoint::Unix(folder.path().join("nbd.sock"));
    reads(&endpoint);
    let mut second = exec(successor);
    wait_until("it is ready", LIMIT, || folder.path().join("nbd.pid").exists());
    assert_eq!(first.wait_exit(LIMIT).and_then(|status| status.code()), Some(0));
    reads(&endpoint);
    second.terminate();
    assert_eq!(second.wait_exit(LIMIT).and_then(|status| status.code()), Some(0));

    let script = format!("{ready}\nkill $!; wait $!");
    let said = run(&mut shell(&script, folder.path()), LIMIT).success();
    assert!(said.starts_with("READY: nbd+unix:///?socket=/"), "{said}");
}

#[test]
fn the_service_serves_the_sockets_of_the_unit_and_notifies() {
    let [socket, service] = blocks("ini")[..] else { panic!("two units") };
    let listens: Vec<_> =
        socket.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    assert_eq!(listens, ["10809", "/run/nbd.sock"]);
    let command = service.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/"));
    let command = command.expect("a command");
    assert!(service.contains("Type=notify\n"));

    let folder = folder_with_disk();
    let [unix, notify] = ["nbd.sock", "notify"].map(|name| folder.path().join(name));
    let supervisor = UnixDatagram::bind(&notify).unwrap();
    supervisor.set_read_timeout(Some(LIMIT)).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let listener = UnixListener::bind(&unix).unwrap();
    // As systemd starts it, but for the numbers of the process and of the ports.
    let script =
        format!("exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec {command}");
    let mut activated = shell(&script, folder.path());
    activated.env("LISTEN_FDS", "2").env("NOTIFY_SOCKET", &notify);
    activated.stdin(Stdio::from(OwnedFd::from(tcp))).stdout(Stdio::from(OwnedFd::from(listener)));
    let mut server = activated.spawn().unwrap();
    let mut text = [0; 100];
    let count = supervisor.recv(&mut text).unwrap();
    assert!(text[..count].starts_with(b"READY=1\n"));
    reads(&Endpoint::Tcp(address));
    reads(&Endpoint::Unix(unix));
    server.kill().unwrap();
    server.wait().unwrap();
}
