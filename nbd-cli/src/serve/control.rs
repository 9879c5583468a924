//! `--control`: a socket on which `nbd bitmap` starts, clears and stops dirty bitmaps while the server runs.
//!
//! A client sends a verb, a line feed and a name, and shuts its side down; it gets `ok` or `error`, a line feed and a
//! text, and the end of the stream. The answer comes once it is done. Each client has a thread, so that none delays
//! another one.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nbd_engine::Throttle;
use nbd_engine::export::Tracker;
use nbd_engine::net::{DEFAULT_BACKLOG, SocketPath, bind_unix};
use rustix::fs::Mode;
use rustix::process::umask;

use super::places::cannot_listen_on_unix;
use super::timed::Timed;
use crate::exit::Failure;

/// Bytes of a request: more than the longest name of a bitmap.
const LONGEST: usize = 8192;

/// How long a client may take, whatever it does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Clients at a time. One more has the longest connected one closed, which is most likely silent, so that a new client
/// always gets its turn.
const MAX_CLIENTS: usize = 64;

/// Bytes of stack of a client's thread.
const STACK: usize = 256 << 10;

/// The first line of an answer.
pub(crate) const OK: &str = "ok\n";
/// The same, when it is none.
pub(crate) const ERROR: &str = "error\n";

/// Begins to answer, as long as the process lives. The socket is this user's alone; its path goes when what is given
/// back is dropped.
pub(super) fn listen(path: &Path, bitmaps: Bitmaps) -> Result<SocketPath, Failure> {
    let failed = |error: io::Error| cannot_listen_on_unix(&error, path);
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = bind_unix(path, DEFAULT_BACKLOG);
    umask(before);
    let (listener, path) = bound.map_err(failed)?;
    listener.set_nonblocking(false).map_err(failed)?;
    let clients = Arc::new(Clients::new(bitmaps));
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

/// Those of the control socket, and what they act on.
struct Clients {
    bitmaps: Mutex<Bitmaps>,
    connected: Mutex<VecDeque<Arc<UnixStream>>>,
}

impl Clients {
    fn new(bitmaps: Bitmaps) -> Self {
        Self { bitmaps: Mutex::new(bitmaps), connected: Mutex::default() }
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
        let request = receive(stream, end)?;
        if !self.connected().iter().any(|other| Arc::ptr_eq(other, stream)) {
            // What looks like the end of the request is our own doing.
            return Err(io::Error::other("too many clients"));
        }
        if request.is_empty() {
            tracing::debug!("a client of the control socket sent no request");
            return Ok(());
        }
        let answer = answer(&request, &self.bitmaps.lock().unwrap_or_else(PoisonError::into_inner));
        send(stream, &answer, end)
    }
}

/// The request, and one byte more than it may have if it has more.
fn receive(stream: &UnixStream, end: Instant) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    Timed::new(stream, end).take(LONGEST as u64 + 1).read_to_end(&mut request)?;
    Ok(request)
}

fn send(stream: &UnixStream, answer: &Result<String, String>, end: Instant) -> io::Result<()> {
    let answer = match answer {
        Ok(text) => format!("{OK}{text}"),
        Err(text) => format!("{ERROR}{text}"),
    };
    let mut timed = Timed::new(stream, end);
    timed.write_all(answer.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    // Unread bytes of a socket that is closed would take the answer away from a client that has not read it yet.
    io::copy(&mut timed, &mut io::sink())?;
    Ok(())
}

fn answer(request: &[u8], bitmaps: &Bitmaps) -> Result<String, String> {
    if request.len() > LONGEST {
        return Err(format!("the bitmap: a request has at most {LONGEST} bytes"));
    }
    let Ok(request) = str::from_utf8(request) else {
        return Err("the bitmap: a request is UTF-8".into());
    };
    let (verb, name) = request.split_once('\n').unwrap_or((request, ""));
    let result = bitmaps.carry_out(verb, name);
    let answer = result.as_ref().map_or_else(String::as_str, String::as_str);
    tracing::info!(verb, name, answer, "control");
    result
}

/// The bitmaps of all exports: each has those of the same names.
#[derive(Debug)]
pub(super) struct Bitmaps(Vec<Arc<Tracker>>);

impl Bitmaps {
    /// Starts the bitmaps of these names.
    pub(super) fn new(trackers: Vec<Arc<Tracker>>, names: &[String]) -> Result<Self, Failure> {
        let bitmaps = Self(trackers);
        for name in names {
            bitmaps.start(name).map_err(|error| Failure::usage(format!("--track {error}")))?;
        }
        Ok(bitmaps)
    }

    fn carry_out(&self, verb: &str, name: &str) -> Result<String, String> {
        let each = |act: &dyn Fn(&Tracker) -> bool| {
            let known = self.0.iter().filter(|tracker| act(tracker)).count();
            if known > 0 {
                Ok(String::new())
            } else {
                Err(format!("'{name}': there is no such bitmap"))
            }
        };
        match verb {
            "list" => {
                Ok(self.0.first().map(|tracker| tracker.names()).unwrap_or_default().join("\0"))
            }
            "start" => self.start(name).map(|()| String::new()),
            "clear" => each(&|tracker| tracker.clear(name)),
            "stop" => each(&|tracker| tracker.stop(name)),
            _ => Err(format!("'{verb}' is unknown to this server; it may be of another version")),
        }
    }

    /// All or none.
    fn start(&self, name: &str) -> Result<(), String> {
        for (at, tracker) in self.0.iter().enumerate() {
            if let Err(error) = tracker.start(name) {
                for started in &self.0[..at] {
                    started.stop(name);
                }
                return Err(format!("'{name}': {error}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nbd_engine::export::{Memory, Tracked};

    use super::*;

    fn trackers() -> Vec<Arc<Tracker>> {
        let tracked = || Tracked::new(Memory::new(1 << 20).unwrap());
        [tracked(), tracked()].iter().map(|one| Arc::clone(one.tracker())).collect()
    }

    #[test]
    fn bitmaps_are_started_for_all_exports_or_none() {
        let trackers = trackers();
        let bitmaps = Bitmaps::new(trackers.clone(), &["a".into()]).unwrap();
        assert_eq!(bitmaps.carry_out("list", "").as_deref(), Ok("a"));
        trackers[1].start("b").unwrap();
        assert!(bitmaps.carry_out("start", "b").unwrap_err().contains("'b'"));
        assert_eq!(trackers[0].names(), ["a"]);
        assert_eq!(bitmaps.carry_out("start", "c").as_deref(), Ok(""));
        assert_eq!(trackers[1].names(), ["a", "b", "c"]);
        assert_eq!(bitmaps.carry_out("stop", "a").as_deref(), Ok(""));
        assert!(bitmaps.carry_out("stop", "a").unwrap_err().contains("no such bitmap"));
        assert!(
            bitmaps.carry_out("clear", "a").is_err() && bitmaps.carry_out("clear", "c").is_ok()
        );
        assert!(bitmaps.carry_out("dance", "").unwrap_err().contains("'dance'"));
    }

    /// What is answered to these bytes, by a client that sends all of them first.
    fn told(clients: &Arc<Clients>, request: &[u8], end: Instant) -> String {
        let (mut client, server) = UnixStream::pair().unwrap();
        clients.begin(server, end).unwrap();
        // The longest is more than a socket holds: all of it has to be taken.
        client.write_all(request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    fn clients() -> Arc<Clients> {
        Arc::new(Clients::new(Bitmaps::new(trackers(), &[]).unwrap()))
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn malformed_requests_are_answered() {
        let clients = clients();
        let long = [b"start\n", &[b'x'; 1 << 20][..]].concat();
        let longest = [b"start\n", &[b'x'; LONGEST - 6][..]].concat();
        for (request, says) in [
            (&b"start\n\xff"[..], "UTF-8"),
            (&long, "8192 bytes"),
            (&[longest.as_slice(), b"x"].concat(), "8192 bytes"),
            (&longest, "4078 bytes"),
        ] {
            let answer = told(&clients, request, far());
            assert!(answer.starts_with(ERROR) && answer.contains(says), "{says}: {answer}");
        }
        assert_eq!(told(&clients, b"list", far()), OK);
    }

    #[test]
    fn a_client_that_goes_on_and_on_is_closed_when_its_time_is_over() {
        let clients = clients();
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"start\na").unwrap();
        let server = Arc::new(server);
        clients.connected().push_back(Arc::clone(&server));
        let (end, far) = (Instant::now() + Duration::from_millis(20), far());
        std::thread::scope(|scope| {
            scope.spawn(move || while Instant::now() < far && client.write_all(b"x").is_ok() {});
            let error = clients.serve(&server, end).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            clients.forget(&server);
            drop(server);
        });
        assert_eq!(told(&clients, b"list", far), OK);
    }

    #[test]
    fn silent_clients_delay_no_other_and_half_a_request_is_not_carried_out() {
        let clients = clients();
        let mut silent: Vec<UnixStream> = (0..3 * MAX_CLIENTS)
            .map(|_| {
                let (mut client, server) = UnixStream::pair().unwrap();
                client.write_all(b"start\nhalf a na").unwrap();
                clients.begin(server, far()).unwrap();
                client
            })
            .collect();
        assert_eq!(told(&clients, b"start\na", far()), OK);
        assert_eq!(told(&clients, b"list", far()), format!("{OK}a"));
        assert!(clients.connected().len() <= MAX_CLIENTS);
        // The first ones were closed without an answer.
        for client in silent.iter_mut().take(2 * MAX_CLIENTS) {
            assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
        }
        assert_eq!(told(&clients, b"list", far()), format!("{OK}a"));
    }

    #[test]
    fn there_are_only_so_many_bitmaps() {
        let names: Vec<String> = (0..=Tracker::MAX_BITMAPS).map(|at| at.to_string()).collect();
        let bitmaps = Bitmaps::new(trackers(), &names[1..]).unwrap();
        assert!(bitmaps.carry_out("start", "0").unwrap_err().contains("256 bitmaps"));
        let failure = Bitmaps::new(trackers(), &names).unwrap_err();
        assert!(
            matches!(failure, Failure::Usage(text) if text.contains("--track '256': there are 256"))
        );
    }

    #[test]
    fn names_that_can_not_be_are_usage_errors_of_track() {
        for names in [&["a", "a"][..], &[""], &["a", "\0"]] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let failure = Bitmaps::new(trackers(), &names).unwrap_err();
            assert!(matches!(failure, Failure::Usage(text) if text.starts_with("--track '")));
        }
    }
}
