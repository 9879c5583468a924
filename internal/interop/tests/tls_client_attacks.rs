//! Attacks on the upgrade of our clients to TLS, by whoever is between them and the server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nbd_engine::client::{ClientConfig, Error, Flags, Uri};
use nbd_interop::certificates::Certificates;
use nbd_testkit::process::run;
use nbd_testkit::raw::{Opt, magic, option_bytes};
use nbd_testkit::server::{NbdServe, Runtime, Setup, Transport, nbd_binary};
use nbd_testkit::{Pattern, Random};

const PATIENCE: Duration = Duration::from_secs(30);

/// Plays a server for one client: the greeting, then for each option what `answer` says, until it says nothing. Gives the
/// port, and in the end all options that came.
fn scripted(
    answer: impl Fn(u32) -> Option<Vec<u8>> + Send + 'static,
) -> (u16, thread::JoinHandle<Vec<u32>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let options = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        let greeting = [magic::INIT.to_be_bytes(), magic::IHAVEOPT.to_be_bytes()].concat();
        stream.write_all(&[&greeting[..], &[0, 3]].concat()).expect("it is read");
        let mut flags = [0; 4];
        stream.read_exact(&mut flags).expect("the client's flags");
        let mut options = Vec::new();
        let mut header = [0; 16];
        while stream.read_exact(&mut header).is_ok() {
            let [code, length] = [8, 12]
                .map(|at| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes")));
            options.push(code);
            let mut data = vec![0; length as usize];
            stream.read_exact(&mut data).expect("the option's data");
            let Some(reply) = answer(code) else { break };
            stream.write_all(&reply).expect("it is read");
        }
        // Whatever comes now is no option.
        let mut rest = Vec::new();
        let _until_closed = stream.read_to_end(&mut rest);
        options
    });
    (port, options)
}

fn reply(option: Opt, kind: u32, data: &[u8]) -> Vec<u8> {
    let head = magic::OPTION_REPLY.to_be_bytes();
    let numbers = [option.0, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    [&head[..], &numbers, data].concat()
}

const ACK: u32 = 1;

/// Runs `nbd info` on a server that is named `secret`; gives what it complains of.
#[track_caller]
fn info_fails(port: u16, certificates: &Certificates) -> String {
    let uri = format!("nbds://localhost:{port}/secret?tls-certificates={}", certificates.path());
    run(Command::new(nbd_binary()).args(["info", &uri]), PATIENCE).failure()
}

/// C-TLS-22, C-TLS-25: who takes STARTTLS out gets neither a session nor a name.
#[test]
fn a_proxy_that_strips_starttls_is_noticed_and_learns_nothing() {
    let certificates = Certificates::new();
    for error in [1, 2, 3, 4, 5, 6, 7, 8, 9].map(|number| 0x8000_0000_u32 + number) {
        let (port, options) = scripted(move |code| match Opt(code) {
            Opt::STARTTLS => Some(reply(Opt::STARTTLS, error, &[])),
            // It would play along with anything else.
            other => Some(reply(other, ACK, &[])),
        });
        let told = info_fails(port, &certificates);
        assert!(told.contains("TLS"), "{told}");
        let options = options.join().expect("the server plays on");
        assert_eq!(options[0], Opt::STARTTLS.0);
        assert!(options[1..].iter().all(|code| *code == Opt::ABORT.0), "{options:?}");
    }
}

/// C-TLS-27: a reply that came in the clear behind the acknowledgement is never taken for one out of TLS.
#[test]
fn what_follows_the_acknowledgement_in_the_clear_ends_the_connection() {
    let certificates = Certificates::new();
    for behind in [
        reply(Opt::STRUCTURED_REPLY, ACK, &[]),
        reply(Opt::GO, ACK, &[]),
        reply(Opt::STARTTLS, ACK, &[]),
        option_bytes(Opt::LIST, &[]),
        vec![0],
    ] {
        let (port, options) =
            scripted(move |_| Some([&reply(Opt::STARTTLS, ACK, &[])[..], &behind].concat()));
        let told = info_fails(port, &certificates);
        assert!(told.contains("STARTTLS") || told.contains("TLS"), "{told}");
        assert_eq!(options.join().expect("the server plays on"), [Opt::STARTTLS.0]);
    }
}

/// C-TLS-23: what is no handshake ends the connection; nothing is said in the clear any more.
#[test]
fn an_acknowledgement_without_a_handshake_ends_the_connection() {
    let certificates = Certificates::new();
    let garbage: [&[u8]; 3] = [&[0; 64], &[21, 3, 3, 0, 2, 2, 40], &[22, 3, 3, 0xff, 0xff, 0]];
    for garbage in garbage {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
            let greeting = [magic::INIT.to_be_bytes(), magic::IHAVEOPT.to_be_bytes()].concat();
            stream.write_all(&[&greeting[..], &[0, 3]].concat()).expect("it is read");
            stream.read_exact(&mut [0; 4 + 16]).expect("flags and STARTTLS");
            stream.write_all(&reply(Opt::STARTTLS, ACK, &[])).expect("it is read");
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).expect("a greeting of TLS");
            assert_eq!(hello[..2], [22, 3]);
            let _refused = stream.write_all(garbage);
            let mut rest = Vec::new();
            let _reset = stream.read_to_end(&mut rest);
            rest
        });
        info_fails(port, &certificates);
        let rest = server.join().expect("the server plays on");
        let option = magic::IHAVEOPT.to_be_bytes();
        assert!(!rest.windows(8).any(|run| run == option), "an option in the clear");
    }
}

/// Passes bytes on in both directions, and cuts the connection when so many have come from the server.
fn cutting_proxy(server: &NbdServe, limit: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let nbd_testkit::Endpoint::Tcp(address) = *server.endpoint() else { panic!("a TCP server") };
    thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client");
        let server = TcpStream::connect(address).expect("it listens");
        let (mut from, mut to) =
            (client.try_clone().expect("a copy"), server.try_clone().expect("a copy"));
        thread::spawn(move || {
            let _ended = std::io::copy(&mut from, &mut to);
            let _closed = to.shutdown(Shutdown::Write);
        });
        let _ended = std::io::copy(&mut (&server).take(limit as u64), &mut &client);
        // In order, as far as TCP can see.
        let _closed = client.shutdown(Shutdown::Both);
        let _closed = server.shutdown(Shutdown::Both);
    });
    port
}

/// Wherever the stream ends, the data that was asked for is not there, and the client says so.
#[test]
fn a_truncated_stream_is_an_error_and_never_an_end() {
    const LENGTH: usize = 200_000;
    let certificates = Certificates::new();
    let setup = Setup { runtime: Runtime::Tokio, transport: Transport::Tcp };
    // Holes would not travel.
    let image = certificates.file("image");
    std::fs::write(&image, Pattern(3).bytes(0, LENGTH)).expect("the folder is ours");
    let args = ["--tls", "require", "--tls-certificates", certificates.path()];
    let server = setup.serve().args(args).arg(image.to_str().expect("plain")).start();
    let mut random = Random::new(11);
    for round in 0..48 {
        let limit = random.below(if round % 2 == 0 { 4096 } else { LENGTH as u64 });
        let port = cutting_proxy(&server, limit as usize);
        let uri: Uri = format!("nbds://localhost:{port}/?tls-certificates={}", certificates.path())
            .parse()
            .expect("a URI");
        let client = match nbd_blocking::Client::connect_with(&uri, &ClientConfig::new()) {
            Ok(client) => client,
            Err(Error::Tls { .. } | Error::Connect { .. } | Error::Lost { .. }) => continue,
            Err(error) => panic!("{limit}: {error:?}"),
        };
        let error = client.read(0, LENGTH, Flags::empty()).expect_err("it was cut");
        assert!(matches!(error, Error::Lost { .. }), "{limit}: {error:?}");
    }
}
