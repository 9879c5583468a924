//! A server of our own, started for a moment.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use crate::exit::Failure;

/// How long a server may take to end when it is asked to; then it is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for the end of a server that has closed its socket.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Puts the listening socket, which arrives as standard input, where socket activation wants it, and becomes the command.
/// The process stays the same, and so does its number. What the command prints must not get into what we print.
const ACTIVATE: &str = r#"exec 3<&0 </dev/null >&2; LISTEN_PID=$$; export LISTEN_PID; exec "$@""#;

/// The servers that run, so that none outlives us when a signal ends us. `None` before the first.
static RUNNING: Mutex<Option<Vec<Running>>> = Mutex::new(None);

struct Running {
    number: u32,
    child: Child,
    _dir: TempDir,
}

/// A running server; stopped when dropped.
#[derive(Debug)]
pub(super) struct Subprocess {
    number: u32,
    command: String,
    socket: Vec<u8>,
}

impl Subprocess {
    /// Starts a command by socket activation.
    pub(super) fn start(words: &[OsString], shown: &str) -> Result<Self, Failure> {
        let failed = |what: &str, error: io::Error| {
            Failure::failed(format!("cannot {what} for {shown}: {error}"))
        };
        check(words).map_err(|why| Failure::failed(format!("{shown} can't be started: {why}")))?;
        watch_signals().map_err(|error| failed("watch for signals", error))?;
        // A signal waits for this, so that nothing is left over.
        let mut servers = servers();
        let dir = tempfile::Builder::new().prefix("nbd-").tempdir();
        let dir = dir.map_err(|error| failed("make a folder for a socket", error))?;
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).map_err(|error| failed("make a socket", error))?;
        let child = Command::new("/bin/sh")
            .args(["-c", ACTIVATE, "sh"])
            .args(words)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "nbd")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .spawn()
            .map_err(|error| failed("run /bin/sh", error))?;
        let number = child.id();
        let running = Running { number, child, _dir: dir };
        servers.get_or_insert_default().push(running);
        let socket = path.as_os_str().as_bytes().to_vec();
        Ok(Self { number, command: shown.to_owned(), socket })
    }

    /// The path of its socket.
    pub(super) fn socket(&self) -> Vec<u8> {
        self.socket.clone()
    }

    /// The command as it was given.
    pub(super) fn command(&self) -> &str {
        &self.command
    }

    /// How the server has ended, if it has, or is about to.
    pub(super) fn end(&self) -> Option<String> {
        let mut servers = servers();
        let running = servers.as_mut()?.iter_mut().find(|one| one.number == self.number)?;
        let status = wait(&mut running.child, LAST_WORDS)?;
        let command = &self.command;
        // One that fails says why, as a rule; one that ends well has taken no notice of the socket.
        Some(match status.success() {
            true => format!(
                "the server {command} ended ({status}): it has to support systemd's socket activation, as nbdkit and \
                 qemu-nbd do"
            ),
            false => format!("the server {command} ended ({status})"),
        })
    }
}

/// Whether there is such a command: the shell's own words would be hard to understand, as nobody asked for a shell.
fn check(words: &[OsString]) -> Result<(), &'static str> {
    let Some(name) = words.first() else { return Ok(()) };
    let is_file = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if name.as_bytes().contains(&b'/') {
        let path = Path::new(name);
        return match (is_file(path), path.exists()) {
            (true, _) => Ok(()),
            (false, true) => Err("permission denied"),
            (false, false) => Err("there is no such command"),
        };
    }
    // Without the variable it is for the shell to know where commands are.
    let Some(folders) = std::env::var_os("PATH") else { return Ok(()) };
    match std::env::split_paths(&folders).any(|folder| is_file(&folder.join(name))) {
        true => Ok(()),
        false => Err("there is no such command"),
    }
}

impl Drop for Subprocess {
    fn drop(&mut self) {
        let mut servers = servers();
        let Some(running) = servers.as_mut() else { return };
        if let Some(place) = running.iter().position(|one| one.number == self.number) {
            stop(vec![running.swap_remove(place)]);
        }
    }
}

fn servers() -> MutexGuard<'static, Option<Vec<Running>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks servers to end, and sees to it. Their sockets go, too.
fn stop(mut servers: Vec<Running>) {
    for running in &mut servers {
        // A child that was not waited for keeps its number, even if it has ended.
        if let Ok(None) = running.child.try_wait() {
            let _ended_already = kill_process(Pid::from_child(&running.child), Signal::TERM);
        }
    }
    for running in &mut servers {
        if wait(&mut running.child, PATIENCE).is_none() {
            let _ended_already = running.child.kill();
            let _reaped = running.child.wait();
        }
    }
}

/// The status of a process that ends within `limit`.
fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if start.elapsed() >= limit {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Stops the servers before a signal ends this process.
fn watch_signals() -> io::Result<()> {
    let mut servers = servers();
    if servers.is_some() {
        return Ok(());
    }
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let run = move || {
        if let Some(signal) = signals.forever().next() {
            // Held to the end: whoever wants to start or stop a server now waits for the end of all.
            let mut servers = self::servers();
            stop(servers.take().unwrap_or_default());
            std::process::exit(128 + signal);
        }
    };
    thread::Builder::new().name("nbd-signals".into()).spawn(run)?;
    *servers = Some(Vec::new());
    Ok(())
}
