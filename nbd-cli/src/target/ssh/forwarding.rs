//! An `ssh` that forwards a private socket here to a socket on another machine, started again when it has ended.

use std::ffi::OsString;
use std::io::{self, Read, Write};
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

/// Such an `ssh`, from the first connection on.
#[derive(Debug)]
pub(super) struct Forwarding {
    /// Where `ssh` listens.
    path: PathBuf,
    arguments: Vec<OsString>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    ended: bool,
}

/// An `ssh`, which ends with its standard input, as this process does, or when this is dropped.
#[derive(Debug)]
struct Running {
    child: Child,
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

    /// `ssh` of these arguments listens at that path.
    pub(super) fn new(path: PathBuf, arguments: Vec<OsString>) -> Self {
        Self { path, arguments, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends `ssh`, and with it all connections. None is made any more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        drop(state.running.take());
    }

    /// A connection through `ssh`, which is started unless it runs.
    fn connect(&self) -> io::Result<UnixStream> {
        loop {
            if let Some(stream) = self.try_connect()? {
                return Ok(stream);
            }
            thread::sleep(Self::POLL);
        }
    }

    /// The same without waiting for `ssh`, which may ask its user for a password; so nobody waits for this either.
    fn try_connect(&self) -> io::Result<Option<UnixStream>> {
        let mut state = self.state();
        if state.ended {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let Some(one) = &mut state.running else {
            state.running = Some(self.start()?);
            return Ok(None);
        };
        let status = one.child.try_wait()?;
        if status.is_none()
            && let Ok(stream) = UnixStream::connect(&self.path)
        {
            one.has_listened = true;
            return Ok(Some(stream));
        }
        let has_listened = one.has_listened;
        if status.is_some() || has_listened {
            drop(state.running.take());
        }
        match status {
            // One that was of use until now is started again.
            Some(status) if !has_listened => Err(io::Error::other(format!("it ended ({status})"))),
            _ => Ok(None),
        }
    }

    fn start(&self) -> io::Result<Running> {
        // That of an earlier one.
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut command = ssh(&self.arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Running { child, has_listened: false })
    }

    /// Carries the bytes of a connection to the other machine and back, until both directions have ended. A connection that
    /// can't be made ends at once.
    ///
    /// # Errors
    /// When there is no way to the other machine, or no thread.
    pub(super) fn carry(&self, here: &UnixStream) -> io::Result<()> {
        let there = self.connect()?;
        thread::scope(|scope| {
            let back = || carry_one_way(&there, here);
            thread::Builder::new().name("nbd-ssh-back".into()).spawn_scoped(scope, back)?;
            carry_one_way(here, &there);
            Ok(())
        })
    }
}

/// One that can't go on ends both, so that no side waits for the other.
fn carry_one_way(mut from: &UnixStream, mut to: &UnixStream) {
    let mut buffer = vec![0; BUFFER];
    let ended = loop {
        match from.read(&mut buffer) {
            Ok(0) => break Shutdown::Write,
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    break Shutdown::Both;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break Shutdown::Both,
        }
    };
    let _ended_already = to.shutdown(ended);
    if ended == Shutdown::Both {
        let _ended_already = from.shutdown(ended);
    }
}
