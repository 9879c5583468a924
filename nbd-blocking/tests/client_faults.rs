//! What becomes of requests when a server is slow, leaves, or is not there.

use std::net::{Shutdown, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use nbd_blocking::client::{ClientConfig, Error, Flags, LostReason, Uri};
use nbd_blocking::export::{Export, ExportMap, Memory};
use nbd_blocking::{Client, Server};
use nbd_support::bounded;
use nbd_support::exports::{GATED, Gate};
use nbd_testkit::raw::some_attempt;

/// A client, and the server's end of its connection.
fn connected(export: impl Export, config: &ClientConfig) -> (Server, Client, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let end = ours.try_clone().unwrap();
    let server = Server::new(ExportMap::new().with("", export).unwrap());
    let serving = server.clone();
    thread::spawn(move || serving.serve_unix(ours));
    let client = Client::over_unix(theirs, "", config).unwrap();
    (server, client, end)
}

/// What an attempt gives that doesn't time out: on a busy machine a request may that would be answered at once.
fn in_time<T>(mut attempt: impl FnMut() -> Result<T, Error>) -> T {
    some_attempt(|| match attempt() {
        Err(Error::TimedOut { .. }) => None,
        result => Some(result.unwrap()),
    })
}

fn sent(error: &Error) -> Option<bool> {
    match error {
        Error::Lost { sent, .. } => Some(*sent),
        _ => None,
    }
}

#[test]
fn a_lost_connection_tells_which_requests_were_sent() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let config = ClientConfig::new().with_max_in_flight(2);
        let (_server, client, end) = connected(gate, &config);
        let first = client.submit_read_into(GATED, vec![0; 512], Flags::empty());
        let second = client.submit_write(GATED, vec![0; 512], Flags::empty());
        let third = client.submit_read_into(0, vec![0; 512], Flags::empty());
        client.send_submitted();
        key.await_waiting(2);
        end.shutdown(Shutdown::Both).unwrap();
        key.open();
        assert_eq!(third.wait().1.map_err(|error| sent(&error)), Err(Some(false)));
        let (buffer, result) = first.wait();
        assert_eq!(buffer.len(), 512, "the buffer comes back");
        assert_eq!(result.map_err(|error| sent(&error)), Err(Some(true)));
        assert_eq!(second.wait().map_err(|error| sent(&error)), Err(Some(true)));
        let later = client.flush().unwrap_err();
        assert_eq!(sent(&later), Some(false));
        assert!(later.to_string().contains("not sent"), "{later}");
        assert!(!client.is_connected());
    });
}

#[test]
fn requests_that_take_too_long_fail_and_the_client_goes_on() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let config = ClientConfig::new().with_request_timeout(Some(Duration::from_secs(1)));
        let (_server, client, _end) = connected(gate, &config);
        in_time(|| client.write_all_at(&[5; 512], 0));
        some_attempt(|| {
            let read = client.submit_read_into(GATED, vec![1; 65536], Flags::empty());
            let write = client.submit_write_from(GATED, vec![7; 65536], Flags::empty());
            client.send_submitted();
            let errors = [read.wait().1.unwrap_err(), write.wait().1.unwrap_err()];
            for error in &errors {
                assert!(matches!(error, Error::TimedOut { .. }), "{error}");
                assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
            }
            // On a busy machine the time may be over before they are sent.
            let sent = |error: &Error| matches!(error, Error::TimedOut { sent: true, .. });
            errors.iter().all(sent).then_some(())
        });
        key.await_waiting(2);
        key.open();
        // The late answers are for nobody, and disturb nobody.
        for _ in 0..100 {
            assert_eq!(in_time(|| client.read(0, 512, Flags::empty())), vec![5; 512]);
        }
        assert_eq!(in_time(|| client.read(GATED, 512, Flags::empty())).len(), 512);
    });
}

#[test]
fn a_request_that_waits_for_a_place_in_flight_times_out_too() {
    bounded(|| {
        // On a busy machine the time may be over before the first one is sent: then another client tries.
        some_attempt(|| {
            let (gate, key) = Gate::new();
            let config = ClientConfig::new()
                .with_request_timeout(Some(Duration::from_millis(100)))
                .with_max_in_flight(1);
            let (_server, client, _end) = connected(gate, &config);
            let first = client.submit_read_into(GATED, vec![1; 512], Flags::empty());
            let second = client.submit_read_into(0, vec![1; 512], Flags::empty());
            let (first, second) = (first.wait().1, second.wait().1);
            key.open();
            let Err(Error::TimedOut { sent: first_was_sent, .. }) = first else {
                panic!("{first:?}")
            };
            first_was_sent.then(|| {
                assert!(matches!(second, Err(Error::TimedOut { sent: false, .. })), "{second:?}");
            })
        });
    });
}

#[test]
fn a_server_that_shuts_down_is_left_once_all_is_answered() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let (server, client, _end) = connected(gate, &ClientConfig::default());
        let slow = client.submit_read_into(GATED, vec![1; 512], Flags::empty());
        client.send_submitted();
        key.await_waiting(1);
        server.shut_down();
        // The server may take a moment to notice.
        let error = loop {
            if let Err(error) = client.flush() {
                break error;
            }
        };
        assert!(matches!(error, Error::Command { .. }), "{error}");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
        let later = client.flush().unwrap_err();
        assert!(
            matches!(later, Error::Lost { sent: false, reason: LostReason::ShuttingDown, .. }),
            "{later}"
        );
        key.open();
        let (data, result) = slow.wait();
        result.unwrap();
        assert_eq!(data, [0; 512]);
        client.disconnect();
        server.wait();
    });
}

#[test]
fn leaving_waits_for_requests_in_flight() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let (server, client, _end) = connected(gate, &ClientConfig::default());
        let slow = client.submit_write(GATED, vec![3; 512], Flags::empty());
        client.send_submitted();
        key.await_waiting(1);
        let leaving = client.clone();
        let left = thread::spawn(move || leaving.disconnect());
        let error = loop {
            if let Err(error) = client.read(0, 512, Flags::empty()) {
                break error;
            }
        };
        assert!(matches!(error, Error::Disconnected { .. }), "{error}");
        key.open();
        left.join().unwrap();
        slow.wait().unwrap();
        server.shut_down();
        server.wait();
    });
}

#[test]
fn dropping_the_last_client_leaves_the_server() {
    bounded(|| {
        let (server, client, _end) =
            connected(Memory::new(4096).unwrap(), &ClientConfig::default());
        client.write_all_at(&[1; 512], 0).unwrap();
        assert_eq!(server.connections(), 1);
        drop(client);
        server.shut_down();
        server.wait();
    });
}

#[test]
fn errors_of_connecting_name_the_address_and_the_remedy() {
    bounded(|| {
        // A port that the system gives nobody, and nobody asks for.
        let free = "127.0.0.1:1";
        let error = Client::connect(&format!("nbd://{free}")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(free) && text.contains("start it"), "{text}");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);

        let error = Client::connect("nbd://localhost:1").unwrap_err();
        assert!(error.to_string().contains("tried"), "{error}");

        let error = Client::connect("nbd+unix:///?socket=/nowhere/socket").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/nowhere/socket") && text.contains("check the path"), "{text}");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);

        let tls = [
            ("nbds://localhost", "this build has no TLS: use nbd://"),
            ("nbds+unix:///?socket=/nowhere", "this build has no TLS: use nbd+unix://"),
        ];
        let tls = if cfg!(feature = "tls") { &[][..] } else { &tls };
        for &(uri, expected) in tls {
            let error = Client::connect(uri).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
        }
        assert!(matches!(Client::connect("http://localhost"), Err(Error::Uri(_))));
    });
}

#[test]
fn a_silent_server_is_given_up() {
    bounded(|| {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("nbd://{}", silent.local_addr().unwrap()).parse::<Uri>().unwrap();
        let config = ClientConfig::new().with_connect_timeout(Duration::from_millis(100));
        let error = Client::connect_with(&uri, &config).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    });
}

#[test]
fn something_else_than_a_server_is_told_apart() {
    bounded(|| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::io::Write::write_all(&mut &ours, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let error = Client::over_unix(theirs, "", &ClientConfig::default()).unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    });
}

#[test]
fn an_abstract_socket_is_reached() {
    bounded(|| {
        let name = format!("nbd-client-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let server = Server::new(ExportMap::new().with("", Memory::new(4096).unwrap()).unwrap());
        let _listening = server.accept_unix(listener).unwrap();
        let client = Client::connect(&format!("nbd+unix:///?socket=%00{name}")).unwrap();
        assert_eq!(client.size(), 4096);
    });
}

#[test]
fn any_pair_of_streams_will_do() {
    bounded(|| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = Server::new(ExportMap::new().with("", Memory::new(4096).unwrap()).unwrap());
        thread::spawn(move || server.serve_unix(ours));
        let writer = theirs.try_clone().unwrap();
        let client = Client::over_stream(theirs, writer, "", &ClientConfig::default()).unwrap();
        client.write_all_at(b"hello", 5).unwrap();
        assert_eq!(client.read(5, 5, Flags::empty()).unwrap(), &b"hello"[..]);
    });
}
