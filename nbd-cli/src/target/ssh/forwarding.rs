//! An `ssh` that forwards a private socket here to a socket on another machine, started again when it has ended.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::ssh;

/// Bytes that are carried at a time.
const BUFFER: usize = 256 << 10;

/// The arguments of an `ssh` that listens at a path.
type Arguments = dyn Fn(&OsStr) -> Vec<OsString> + Send + Sync;

/// Such an `ssh`.
pub(super) struct Forwarding {
    /// Where the sockets are that `ssh` makes.
    folder: PathBuf,
    arguments: Box<Arguments>,
    state: Mutex<State>,
    /// What the first connection gets, which waits for no `ssh`.
    first: Mutex<Option<io::Result<UnixStream>>>,
}

#[derive(Default)]
struct State {
    latest: Option<Running>,
    /// Those whose sockets are gone, and which may have connections still.
    earlier: Vec<Running>,
    /// Of all that were started.
    number: u64,
    /// The latest one that ended before it listened, and how.
    failed: Option<(u64, String)>,
    ended: bool,
}

/// An `ssh`, which ends with its standard input, as this process does, or when this is dropped.
struct Running {
    child: Child,
    path: PathBuf,
    has_listened: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _reaped = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Forwarding {
    /// How often it is looked whether `ssh` listens.
    const POLL: Duration = Duration::from_millis(10);

    /// `ssh` gets these arguments, given the socket, which is in that folder.
    pub(super) fn new(
        folder: PathBuf,
        arguments: impl Fn(&OsStr) -> Vec<OsString> + Send + Sync + 'static,
    ) -> Self {
        let (state, first) = (Mutex::default(), Mutex::default());
        Self { folder, arguments: Box::new(arguments), state, first }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the first connection, for which `ssh` may take its time: it may ask its user for a password.
    pub(super) fn prepare(&self) {
        let first = self.connect();
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(first);
    }

    /// Ends `ssh`, and with it all connections. None is made any more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.earlier.clear();
        state.latest = None;
    }

    /// Whether it was [ended](Self::end).
    pub(super) fn has_ended(&self) -> bool {
        self.state().ended
    }

    /// A connection through `ssh`, which is started unless it runs.
    fn connect(&self) -> io::Result<UnixStream> {
        let mut awaited = 0;
        loop {
            let (number, path) = self.listening(awaited)?;
            awaited = number;
            // Nobody waits for this: it takes a while if `ssh` is stopped.
            match UnixStream::connect(&path) {
                Ok(stream) => {
                    self.found(number, true);
                    return Ok(stream);
                }
                Err(error) if is_absent(&error) => self.found(number, false),
                Err(error) => return Err(error),
            }
            thread::sleep(Self::POLL);
        }
    }

    /// The `ssh` that listens, or is about to, by its number, and where. `awaited` is what the caller has waited for, or zero.
    fn listening(&self, awaited: u64) -> io::Result<(u64, PathBuf)> {
        let mut state = self.state();
        if state.ended {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        state.earlier.retain_mut(|one| matches!(one.child.try_wait(), Ok(None)));
        if let Some(latest) = &mut state.latest
            && let Some(status) = latest.child.try_wait()?
        {
            // One that was of use until now is started again.
            if !latest.has_listened {
                state.failed = Some((state.number, format!("it ended ({status})")));
            }
            state.latest = None;
        }
        if let Some((number, text)) = &state.failed
            && *number == awaited
        {
            return Err(io::Error::other(text.clone()));
        }
        let number = state.number + u64::from(state.latest.is_none());
        let latest = match state.latest.take() {
            Some(latest) => latest,
            None => self.start(number)?,
        };
        let path = state.latest.insert(latest).path.clone();
        state.number = number;
        Ok((number, path))
    }

    fn start(&self, number: u64) -> io::Result<Running> {
        // A name of its own: one that `ssh` was asked for before, it may believe to be there.
        let path = self.folder.join(format!("forwarded-{number}"));
        let mut command = ssh(&(self.arguments)(path.as_os_str()));
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Running { child, path, has_listened: false })
    }

    /// What was found at the socket of an `ssh`.
    fn found(&self, number: u64, listens: bool) {
        let mut state = self.state();
        if state.number != number {
            return;
        }
        match &mut state.latest {
            Some(latest) if listens => latest.has_listened = true,
            Some(latest) if latest.has_listened => {
                let latest = state.latest.take();
                state.earlier.extend(latest);
            }
            _ => {}
        }
    }

    /// Carries the bytes of a connection to the other machine and back, until both directions have ended. A connection that
    /// can't be made ends at once.
    ///
    /// # Errors
    /// When there is no way to the other machine, or no thread.
    pub(super) fn carry(&self, here: &UnixStream) -> io::Result<()> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let there = first.unwrap_or_else(|| self.connect())?;
        thread::scope(|scope| {
            let back = || carry_one_way(&there, here);
            thread::Builder::new().name("nbd-ssh-back".into()).spawn_scoped(scope, back)?;
            carry_one_way(here, &there);
            Ok(())
        })
    }
}

/// Nobody listens there, or not yet.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// What can't go on in this direction ends in this direction alone: replies to what was sent may be under way.
fn carry_one_way(from: &UnixStream, mut to: &UnixStream) {
    let _length_or_why_it_ends = io::copy(&mut BufReader::with_capacity(BUFFER, from), &mut to);
    let _ended_already = to.shutdown(Shutdown::Write);
    let _ended_already = from.shutdown(Shutdown::Read);
}
