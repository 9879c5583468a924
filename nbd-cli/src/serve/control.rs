//! `--control`: a socket on which `nbd bitmap` starts, clears and stops dirty bitmaps while the server runs.
//!
//! A client sends a verb, a line feed and a name, and shuts its side down; it gets `ok` or `error`, a line feed and a
//! text, and the end of the stream. The answer comes after the deed. Clients are answered one after the other.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd_engine::export::Tracker;
use nbd_engine::net::{SocketPath, bind_unix};
use rustix::fs::Mode;
use rustix::process::umask;

use super::places::cannot_listen_on_unix;
use super::timed::Timed;
use crate::exit::Failure;

/// Bytes of a request: more than the longest name of a bitmap.
const LONGEST: usize = 8192;

/// How long a client may keep the others waiting, whatever it does.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first line of an answer.
pub(crate) const OK: &str = "ok\n";
/// The same, when it is none.
pub(crate) const ERROR: &str = "error\n";

/// Begins to answer, as long as the process lives. The socket is this user's alone; its path goes when what is given back
/// is dropped.
pub(super) fn listen(path: &Path, bitmaps: Bitmaps) -> Result<SocketPath, Failure> {
    let failed = |error: io::Error| cannot_listen_on_unix(&error, path);
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = bind_unix(path);
    umask(before);
    let (listener, path) = bound.map_err(failed)?;
    listener.set_nonblocking(false).map_err(failed)?;
    let thread = std::thread::Builder::new().name("nbd-control".into());
    thread.spawn(move || answer_all(&listener, &bitmaps)).map_err(failed)?;
    Ok(path)
}

fn answer_all(listener: &UnixListener, bitmaps: &Bitmaps) {
    for stream in listener.incoming() {
        match stream {
            // Clients that don't keep to the rules harm nobody but themselves.
            Ok(stream) => {
                if let Err(error) = answer_one(&stream, bitmaps, Instant::now() + PATIENCE) {
                    tracing::debug!(%error, "a client of the control socket got no answer");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client of the control socket");
                // Without descriptors it fails at once, again and again.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Fails when `end` comes before the client has its answer; nothing is done for who has not asked by then.
fn answer_one(stream: &UnixStream, bitmaps: &Bitmaps, end: Instant) -> io::Result<()> {
    let mut timed = Timed::new(stream, end);
    let mut request = Vec::new();
    (&mut timed).take(LONGEST as u64 + 1).read_to_end(&mut request)?;
    if request.is_empty() {
        tracing::debug!("a client of the control socket sent no request");
        return Ok(());
    }
    let answer = match answer(&request, bitmaps) {
        Ok(text) => format!("{OK}{text}"),
        Err(text) => format!("{ERROR}{text}"),
    };
    timed.write_all(answer.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    // What is unread when a socket is closed takes the answer away from who has not read it yet.
    io::copy(&mut timed, &mut io::sink())?;
    Ok(())
}

fn answer(request: &[u8], bitmaps: &Bitmaps) -> Result<String, String> {
    if request.len() > LONGEST {
        return Err(format!("that: a request has at most {LONGEST} bytes"));
    }
    let Ok(request) = str::from_utf8(request) else {
        return Err("that: a request is UTF-8".into());
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
            _ => Err(format!("'{verb}' is unknown to this server; is it of another version?")),
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

    /// What is answered to these bytes, by a client that sends all of them first; how answering ended.
    fn told(bitmaps: &Bitmaps, request: &[u8], end: Instant) -> (String, io::Result<()>) {
        let (mut client, server) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let answering = scope.spawn(move || answer_one(&server, bitmaps, end));
            // The longest is more than a socket holds: all of it has to be taken.
            client.write_all(request).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            (answer, answering.join().unwrap())
        })
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn requests_that_can_not_be_are_answered() {
        let bitmaps = Bitmaps::new(trackers(), &[]).unwrap();
        let long = [b"start\n", &[b'x'; 1 << 20][..]].concat();
        let longest = [b"start\n", &[b'x'; LONGEST - 6][..]].concat();
        for (request, says) in [
            (&b"start\n\xff"[..], "UTF-8"),
            (&long, "8192 bytes"),
            (&[longest.as_slice(), b"x"].concat(), "8192 bytes"),
            (&longest, "4078 bytes"),
        ] {
            let (answer, ended) = told(&bitmaps, request, far());
            assert!(answer.starts_with(ERROR) && answer.contains(says), "{says}: {answer}");
            ended.unwrap();
        }
        assert_eq!(told(&bitmaps, b"list", far()).0, OK);
    }

    #[test]
    fn who_does_not_come_to_an_end_is_left_when_time_is_over() {
        let bitmaps = Bitmaps::new(trackers(), &[]).unwrap();
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"start\na").unwrap();
        let end = Instant::now() + Duration::from_millis(20);
        let far = far();
        std::thread::scope(|scope| {
            scope.spawn(move || while Instant::now() < far && client.write_all(b"x").is_ok() {});
            assert_eq!(
                answer_one(&server, &bitmaps, end).unwrap_err().kind(),
                io::ErrorKind::TimedOut
            );
            drop(server);
        });
        assert_eq!(bitmaps.carry_out("list", "").as_deref(), Ok(""));
    }

    #[test]
    fn there_are_only_so_many_bitmaps() {
        let names: Vec<String> = (0..=Tracker::MOST).map(|at| at.to_string()).collect();
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
