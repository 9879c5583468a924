//! `--control`: a socket on which `nbd bitmap` starts, clears and stops dirty bitmaps while the server runs.
//!
//! A client sends a verb, a line feed and a name, and shuts its side down; it gets `ok` or `error`, a line feed and a
//! text, and the end of the stream. The answer comes after the deed.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbd_engine::export::Tracker;
use nbd_engine::net::{SocketPath, bind_unix};
use rustix::fs::Mode;
use rustix::process::umask;

use super::places::cannot_listen_on_unix;
use crate::exit::Failure;

/// More than the longest name of a bitmap.
const LONGEST: u64 = 8192;

/// How long a client may keep the others waiting.
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
                if let Err(error) = answer_one(stream, bitmaps) {
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

fn answer_one(mut stream: UnixStream, bitmaps: &Bitmaps) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    let read = (&stream).take(LONGEST).read_to_string(&mut request);
    if request.is_empty() {
        let error = read.err().map(tracing::field::display);
        tracing::debug!(error, "a client of the control socket sent no request");
        return Ok(());
    }
    read?;
    let (verb, name) = request.split_once('\n').unwrap_or((&request, ""));
    let answer = match bitmaps.carry_out(verb, name) {
        Ok(text) => format!("{OK}{text}"),
        Err(text) => format!("{ERROR}{text}"),
    };
    tracing::info!(verb, name, answer = answer.trim_end(), "control");
    stream.write_all(answer.as_bytes())
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

    #[test]
    fn names_that_can_not_be_are_usage_errors_of_track() {
        for names in [&["a", "a"][..], &[""], &["a", "\0"]] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let failure = Bitmaps::new(trackers(), &names).unwrap_err();
            assert!(matches!(failure, Failure::Usage(text) if text.starts_with("--track '")));
        }
    }
}
