//! `--stdio`: one client on standard input and output.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use super::{LIMIT, refuses, serve};

/// A server on these, waited for when dropped.
struct OnStdio(Child);

impl OnStdio {
    fn start(arguments: &[&str], input: impl Into<Stdio>, output: impl Into<Stdio>) -> Self {
        let mut command = serve(["--stdio"]);
        command.args(arguments).stdin(input).stdout(output).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.0.wait().unwrap();
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

impl Drop for OnStdio {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Enters the default export, reads 512 bytes and disconnects: the bytes of a client, all at once.
fn session() -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    // (S-OPT-GO) No name, and no information requests.
    bytes.extend(b"IHAVEOPT");
    bytes.extend(7_u32.to_be_bytes());
    bytes.extend(6_u32.to_be_bytes());
    bytes.extend([0; 6]);
    for (command, length) in [(0_u16, 512_u32), (2, 0)] {
        bytes.extend(0x2560_9513_u32.to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(command.to_be_bytes());
        bytes.extend(9_u64.to_be_bytes());
        bytes.extend(0_u64.to_be_bytes());
        bytes.extend(length.to_be_bytes());
    }
    bytes
}

/// A greeting, and a simple reply with data at the end.
#[track_caller]
fn assert_answered(answer: &[u8]) {
    assert!(answer.starts_with(b"NBDMAGICIHAVEOPT"), "{answer:?}");
    let reply = [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &9_u64.to_be_bytes(), &[0; 512]];
    assert!(answer.ends_with(&reply.concat()), "{answer:?}");
}

#[test]
fn a_client_on_two_pipes_is_served() {
    let (input, mut to_server) = std::io::pipe().unwrap();
    let (mut from_server, output) = std::io::pipe().unwrap();
    let server = OnStdio::start(&["memory:1M"], OwnedFd::from(input), OwnedFd::from(output));
    to_server.write_all(&session()).unwrap();
    let mut answer = Vec::new();
    from_server.read_to_end(&mut answer).unwrap();
    assert_answered(&answer);
    assert_eq!(server.end(), (Some(0), String::new()));
}

#[test]
fn a_client_on_one_socket_is_served_and_known_by_its_address() {
    let (client, server) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp_client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (tcp_server, address) = listener.accept().unwrap();
    for (mut client, server, peer) in [
        (OwnedFd::from(client), OwnedFd::from(server), "unix socket".to_owned()),
        (tcp_client.into(), tcp_server.into(), address.to_string()),
    ]
    .map(|(client, server, peer)| (std::fs::File::from(client), server, peer))
    {
        let again = server.try_clone().unwrap();
        let server = OnStdio::start(&["-vv", "memory:1M"], server, again);
        client.write_all(&session()).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_answered(&answer);
        let (code, said) = server.end();
        assert_eq!(code, Some(0));
        assert!(said.contains(&peer), "{peer}: {said}");
    }
}

#[test]
fn a_client_that_breaks_the_protocol_is_a_failure() {
    let (client, server) = UnixStream::pair().unwrap();
    let again = server.try_clone().unwrap();
    let server = OnStdio::start(&["memory:1M"], OwnedFd::from(server), OwnedFd::from(again));
    (&client).write_all(&[0xff; 100]).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = Vec::new();
    // It may be reset, with bytes that were not read.
    let _end = (&client).read_to_end(&mut answer);
    let (code, said) = server.end();
    assert_eq!(code, Some(1));
    assert!(said.contains("the connection failed"), "{said}");
}

#[test]
fn what_makes_no_sense_for_one_client_is_refused() {
    for arguments in [
        &["--port", "0"][..],
        &["-U", "socket"],
        &["--ip-addr", "::1"],
        &["--control", "control"],
        &["--take-over", "control"],
        &["--run", "true"],
        &["--allow", "10.0.0.0/8"],
        &["--allow-user", "0"],
        &["--allow-group", "0"],
    ] {
        let mut command = serve(["--stdio", "memory:1M"]);
        refuses(command.args(arguments), 64, &["--stdio"]);
    }
    // A file that has rules does not have them ignored.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nbd.toml");
    std::fs::write(&file, "[access]\ndeny = ['10.0.0.0/8']\n[[export]]\nmemory = '1M'\n").unwrap();
    let mut command = serve(["--stdio", "--config"]);
    refuses(command.arg(file), 64, &["--stdio", "leave out [access]"]);
}
