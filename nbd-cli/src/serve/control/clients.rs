//! The clients of a control socket: each has a thread and little time, and only so many are connected.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbd_engine::Throttle;
use nbd_engine::net::{DEFAULT_BACKLOG, SocketPath, bind_unix};
use rustix::fs::Mode;
use rustix::process::umask;

use super::Verbs;
use super::protocol::{self, Answer, MAX_REQUEST, Request};
use crate::exit::Failure;
use crate::serve::places::cannot_listen_on_unix;
use crate::serve::timed::Timed;

/// How long a client may take, whatever it does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients at a time. One more has the longest connected one closed, which is most likely silent, so that a new client
/// always gets its turn.
const MAX_CLIENTS: usize = 64;

/// Bytes of stack of a client's thread.
const STACK: usize = 256 << 10;

/// Begins to answer, as long as the process lives. The socket is this user's alone; its path goes when what is given
/// back is dropped.
pub(in crate::serve) fn listen(path: &Path, verbs: Verbs) -> Result<SocketPath, Failure> {
    let failed = |error: io::Error| cannot_listen_on_unix(&error, path);
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = bind_unix(path, DEFAULT_BACKLOG);
    umask(before);
    let (listener, path) = bound.map_err(failed)?;
    listener.set_nonblocking(false).map_err(failed)?;
    let clients = Arc::new(Clients::new(verbs));
    let thread = std::thread::Builder::new().name("nbd-control".into());
    thread.spawn(move || answer_all(&listener, &clients)).map_err(failed)?;
    Ok(path)
}

fn answer_all(listener: &UnixListener, clients: &Arc<Clients>) {
    let failures = Throttle::new();
    let failed = |error: io::Error| {
        if let Some(times) = failures.count() {
            tracing::warn!(%error, times, "cannot serve a client of the control socket");
        }
        // Without descriptors it fails at once, again and again.
        std::thread::sleep(Duration::from_millis(50));
    };
    for stream in listener.incoming() {
        if let Err(error) =
            stream.and_then(|stream| clients.begin(stream, Instant::now() + PATIENCE))
        {
            failed(error);
        }
    }
}

/// Those that are connected, and what they can ask for.
struct Clients {
    verbs: Verbs,
    connected: Mutex<VecDeque<Arc<UnixStream>>>,
}

impl Clients {
    fn new(verbs: Verbs) -> Self {
        Self { verbs, connected: Mutex::default() }
    }

    fn connected(&self) -> MutexGuard<'_, VecDeque<Arc<UnixStream>>> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a client on a thread of its own, until `end`.
    fn begin(self: &Arc<Self>, stream: UnixStream, end: Instant) -> io::Result<()> {
        let stream = Arc::new(stream);
        let surplus = {
            let mut connected = self.connected();
            connected.push_back(Arc::clone(&stream));
            if connected.len() > MAX_CLIENTS { connected.pop_front() } else { None }
        };
        if let Some(oldest) = surplus {
            // Its thread then finds the end of the stream. It may have closed it itself.
            let _closed = oldest.shutdown(Shutdown::Both);
        }
        let this = Arc::clone(self);
        let client = Arc::clone(&stream);
        let thread = std::thread::Builder::new().name("nbd-control-client".into());
        let spawned = thread.stack_size(STACK).spawn(move || {
            // Clients that don't keep to the rules harm nobody but themselves.
            if let Err(error) = this.serve(&client, end) {
                tracing::debug!(%error, "a client of the control socket got no answer");
            }
            this.forget(&client);
        });
        spawned.inspect_err(|_| self.forget(&stream)).map(drop)
    }

    fn forget(&self, stream: &Arc<UnixStream>) {
        self.connected().retain(|other| !Arc::ptr_eq(other, stream));
    }

    /// Fails when `end` comes before the client has its answer. A request that is not complete by then, or when its
    /// client is closed in favour of another one, is not carried out.
    fn serve(&self, stream: &Arc<UnixStream>, end: Instant) -> io::Result<()> {
        let received = protocol::receive(Timed::new(stream, end), MAX_REQUEST);
        if !self.connected().iter().any(|other| Arc::ptr_eq(other, stream)) {
            // What looks like the end of the request is our own doing.
            return Err(io::Error::other("too many clients"));
        }
        let request = match received {
            Ok(line) if line.is_empty() => {
                tracing::debug!("a client of the control socket sent no request");
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                Err(format!("a request has at most {MAX_REQUEST} bytes"))
            }
            received => Request::parse(&received?),
        };
        let answer = request.and_then(|request| self.verbs.carry_out(request));
        send(stream, &answer.into(), end)
    }
}

fn send(stream: &UnixStream, answer: &Answer, end: Instant) -> io::Result<()> {
    let mut timed = Timed::new(stream, end);
    protocol::send(&mut timed, answer)?;
    stream.shutdown(Shutdown::Write)?;
    // Unread bytes of a socket that is closed would take the answer away from a client that has not read it yet.
    io::copy(&mut timed, &mut io::sink())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nbd_engine::export::Tracker;
    use serde_json::{Value, json};

    use super::super::bitmaps::{Bitmaps, LIST, START, tests::trackers};
    use super::*;

    /// What is answered to these bytes, by a client that sends all of them first.
    fn answer(clients: &Arc<Clients>, request: &[u8], end: Instant) -> Answer {
        let (mut client, server) = UnixStream::pair().unwrap();
        clients.begin(server, end).unwrap();
        // The longest is more than a socket holds: all of it has to be taken.
        client.write_all(request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    fn clients() -> Arc<Clients> {
        let bitmaps = Bitmaps::new(trackers());
        Arc::new(Clients::new(bitmaps.verbs(Verbs::new())))
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn request(verb: &str, arguments: &Value) -> Vec<u8> {
        serde_json::to_vec(&Request::new(verb, arguments)).unwrap()
    }

    fn list(clients: &Arc<Clients>) -> Answer {
        answer(clients, &request(LIST, &json!({})), far())
    }

    fn start(name: &str) -> Vec<u8> {
        request(START, &json!({"name": name}))
    }

    #[test]
    fn malformed_requests_are_answered() {
        let clients = clients();
        let long = start(&"x".repeat(1 << 20));
        let longest = start(&"x".repeat(MAX_REQUEST - start("").len()));
        let longer = [&longest[..], b" "].concat();
        for (request, says) in [
            (&b"list\n"[..], "not a JSON object"),
            (&long, "65536 bytes"),
            (&longer, "65536 bytes"),
            (&longest, "4078 bytes"),
        ] {
            let Answer::Error(text) = answer(&clients, request, far()) else { panic!("{says}") };
            assert!(text.contains(says), "{says}: {text}");
        }
        assert_eq!(list(&clients), Answer::Ok(json!([])));
    }

    #[test]
    fn the_longest_name_of_a_bitmap_fits_into_a_request_and_all_names_into_an_answer() {
        let clients = clients();
        let name =
            |index: usize| format!("{index:x>3}{}", "\u{1}".repeat(Tracker::LONGEST_NAME - 3));
        for index in 0..Tracker::MAX_BITMAPS {
            assert_eq!(answer(&clients, &start(&name(index)), far()), Answer::Ok(Value::Null));
        }
        let names = list(&clients);
        assert_eq!(names, Answer::Ok((0..Tracker::MAX_BITMAPS).map(name).collect()));
        assert!(serde_json::to_vec(&names).unwrap().len() < protocol::MAX_ANSWER);
    }

    #[test]
    fn a_request_ends_with_its_line() {
        let clients = clients();
        let (mut client, server) = UnixStream::pair().unwrap();
        clients.begin(server, far()).unwrap();
        client.write_all(&[&start("a")[..], b"\n"].concat()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "{\"ok\":null}\n");
        assert_eq!(list(&clients), Answer::Ok(json!(["a"])));
    }

    #[test]
    fn a_client_that_goes_on_and_on_is_closed_when_its_time_is_over() {
        let clients = clients();
        let (mut client, server) = UnixStream::pair().unwrap();
        // No more than a request may have.
        client.write_all(br#"{"version"#).unwrap();
        let server = Arc::new(server);
        clients.connected().push_back(Arc::clone(&server));
        let error = clients.serve(&server, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        clients.forget(&server);
        assert_eq!(list(&clients), Answer::Ok(json!([])));
    }

    #[test]
    fn a_client_that_goes_on_after_its_answer_is_closed_when_its_time_is_over() {
        let clients = clients();
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(&[&start("a")[..], b"\n"].concat()).unwrap();
        let server = Arc::new(server);
        clients.connected().push_back(Arc::clone(&server));
        let (end, far) = (Instant::now() + Duration::from_millis(20), far());
        std::thread::scope(|scope| {
            scope.spawn(move || while Instant::now() < far && client.write_all(b"x").is_ok() {});
            let error = clients.serve(&server, end).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            clients.forget(&server);
            drop(server);
        });
        assert_eq!(list(&clients), Answer::Ok(json!(["a"])));
    }

    #[test]
    fn silent_clients_delay_no_other_and_half_a_request_is_not_carried_out() {
        let clients = clients();
        let mut silent: Vec<UnixStream> = (0..3 * MAX_CLIENTS)
            .map(|_| {
                let (mut client, server) = UnixStream::pair().unwrap();
                // Whole, but for its end.
                client.write_all(&start("half")).unwrap();
                clients.begin(server, far()).unwrap();
                client
            })
            .collect();
        assert_eq!(answer(&clients, &start("a"), far()), Answer::Ok(Value::Null));
        assert_eq!(list(&clients), Answer::Ok(json!(["a"])));
        assert!(clients.connected().len() <= MAX_CLIENTS);
        // The first ones were closed without an answer.
        for client in silent.iter_mut().take(2 * MAX_CLIENTS) {
            assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
        }
        assert_eq!(list(&clients), Answer::Ok(json!(["a"])));
    }
}
