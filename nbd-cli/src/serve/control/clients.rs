//! The clients of a control socket: each has a thread and little time, and only so many are connected.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nbd_engine::Throttle;
use nbd_engine::net::{DEFAULT_BACKLOG, bind_unix};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::umask;

use super::end::{End, Unanswered};
use super::protocol::{self, Answer, MAX_REQUEST, Request};
use super::verbs::{Conversation, Verbs};
use crate::exit::Failure;
use crate::serve::activation::Socket;
use crate::serve::places::cannot_listen_on_unix;
use crate::serve::sockets::{Accepting, Bound, REPLACED, SocketFile};
use crate::serve::timed::Timed;

/// How long a client may take, whatever it does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients at a time. One more has the longest connected one closed, which is most likely silent, so that a new client
/// always gets its turn.
const MAX_CLIENTS: usize = 64;

/// Bytes of stack of a client's thread, which opens exports: of volumes, too, whose futures are large without optimisation.
const STACK: usize = 4 << 20;

/// Binds the socket, which is this user's alone.
pub(in crate::serve) fn bind(path: &Path) -> Result<Bound, Failure> {
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = bind_unix(path, DEFAULT_BACKLOG);
    umask(before);
    let (listener, path) = bound.map_err(|error| cannot_listen_on_unix(&error, path))?;
    Ok(Bound { socket: Socket::Unix(listener), file: SocketFile::Own(path) })
}

/// Answers clients, until what is given back is told to stop.
pub(in crate::serve) fn answer(socket: Socket, verbs: Verbs) -> io::Result<Answering> {
    let Socket::Unix(listener) = socket else {
        return Err(io::Error::other("a control socket is a Unix socket"));
    };
    listener.set_nonblocking(true)?;
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
    let (stopped, clients) = (Arc::clone(&stop), Arc::new(Clients::new(verbs)));
    let thread = std::thread::Builder::new().name("nbd-control".into());
    let thread = thread.spawn(move || answer_all(&listener, &stopped, &clients))?;
    Ok(Answering { stop, thread: Mutex::new(Some(thread)) })
}

/// The thread that accepts clients. When this is dropped, it goes on.
#[derive(Debug)]
pub(in crate::serve) struct Answering {
    stop: Arc<OwnedFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Accepting for Answering {
    fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let woken = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let (Some(thread), Ok(_)) = (thread, woken) {
            // A panic of it was reported, and it accepts nothing either.
            let _ended = thread.join();
        }
    }
}

fn answer_all(listener: &UnixListener, stop: &OwnedFd, clients: &Arc<Clients>) {
    let failures = Throttle::new();
    let failed = |error: io::Error| {
        if let Some(times) = failures.count() {
            tracing::warn!(%error, times, "cannot serve a client of the control socket");
        }
        // Without descriptors it fails at once, again and again.
        std::thread::sleep(Duration::from_millis(50));
    };
    loop {
        let mut sockets = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut sockets, None) {
            Ok(_) if !sockets[1].revents().is_empty() => return,
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => failed(error.into()),
        }
        let accepted = listener.accept().and_then(|(stream, _)| {
            // Elsewhere than on Linux a stream has this from its listener.
            stream.set_nonblocking(false)?;
            clients.begin(stream, Instant::now() + PATIENCE)
        });
        match accepted {
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => failed(error),
            Ok(()) => {}
        }
    }
}

/// Those that are connected, and what they can ask for.
struct Clients {
    verbs: Verbs,
    /// Those that can be closed in favour of others.
    connected: Mutex<VecDeque<Arc<UnixStream>>>,
    end: Arc<End>,
}

impl Clients {
    fn new(verbs: Verbs) -> Self {
        Self { verbs, connected: Mutex::default(), end: Arc::default() }
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
        let unanswered = Unanswered::new(&self.end);
        let client = Arc::clone(&stream);
        let thread = std::thread::Builder::new().name("nbd-control-client".into());
        let spawned = thread.stack_size(STACK).spawn(move || {
            // Clients that don't keep to the rules harm nobody but themselves.
            if let Err(error) = this.serve(&client, unanswered, end) {
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
    fn serve(
        &self,
        stream: &Arc<UnixStream>,
        unanswered: Unanswered,
        end: Instant,
    ) -> io::Result<()> {
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
        let keep = || self.forget(stream);
        let conversation = Conversation::new(stream, &keep, unanswered, end);
        if self.end.is_replaced() {
            return conversation.refuse(REPLACED);
        }
        match request.and_then(|request| self.verbs.carry_out(request, &conversation)) {
            Ok(None) => Ok(()),
            Ok(Some(answer)) => conversation.answer(&Answer::Ok(answer)),
            Err(text) => conversation.refuse(&text),
        }
    }
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
        let error = clients
            .serve(
                &server,
                Unanswered::new(&clients.end),
                Instant::now() + Duration::from_millis(20),
            )
            .unwrap_err();
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
            let error = clients.serve(&server, Unanswered::new(&clients.end), end).unwrap_err();
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
