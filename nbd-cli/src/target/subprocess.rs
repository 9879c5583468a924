//! A server of our own, started for a moment.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nbd_blocking::Client;
use rustix::fs::{Access, access};
use tempfile::TempDir;

use super::ending::{self, Running};
use super::sockets;
use crate::exit::Failure;
use crate::private_folder::private_folder;

/// How long to wait for the end of a server that has closed its socket.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The longest path that a Unix socket can be bound to.
const LONGEST_PATH: usize = 107;

/// Puts the listening socket, which arrives as standard input, where socket activation wants it, and becomes the command.
/// The process stays the same, and so does its number. What the command prints must not get into what we print.
const ACTIVATE: &str = r#"exec 3<&0 </dev/null >&2; LISTEN_PID=$$; export LISTEN_PID; exec "$@""#;

/// A running server; stopped when dropped, after all that were connected to it have disconnected.
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
        ending::watch_signals().map_err(|error| failed("watch for signals", error))?;
        // A signal waits for this, so that nothing is left over.
        let mut servers = ending::servers();
        let dir = private_folder()?;
        let bound = listen(&dir).map_err(|error| {
            let folder = std::env::temp_dir();
            failed(&format!("make a socket in {}", folder.display()), error)
        })?;
        let Listening { listener, path, folder } = bound;
        let child = Command::new("/bin/sh")
            .args(["-c", ACTIVATE, "sh"])
            .args(words)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "nbd")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            // What a terminal sends to end us is not for it: it ends when we have done with it.
            .process_group(0)
            .spawn()
            .map_err(|error| failed("run /bin/sh", error))?;
        let (number, command) = (child.id(), shown.to_owned());
        let socket = path.into_os_string().into_vec();
        let (clients, sockets) = (Vec::new(), Vec::new());
        let running = Running {
            child,
            command: command.clone(),
            socket: socket.clone(),
            clients,
            sockets,
            dir,
            folder,
        };
        servers.get_or_insert_default().push(running);
        Ok(Self { number, command, socket })
    }

    /// The name of its socket.
    pub(super) fn socket(&self) -> &[u8] {
        &self.socket
    }

    /// The command as it was given.
    pub(super) fn command(&self) -> &str {
        &self.command
    }

    /// Its process.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Takes note of a client, which is to disconnect before the server is asked to end.
    pub(super) fn connected(&self, client: &Client) {
        ending::with(self.number, |running| {
            running.clients.retain(|one| one.is_connected());
            running.clients.push(client.clone());
            sockets::add(&mut running.sockets, sockets::connected_to(&running.socket));
        });
    }

    /// How the server has ended, if it has, or is about to.
    pub(super) fn end(&self) -> Option<String> {
        let wait = |running: &mut Running| {
            ending::wait(&mut running.child, LAST_WORDS, ending::is_signalled)
        };
        let status = ending::with(self.number, wait)??;
        let command = &self.command;
        // One that fails says why, as a rule; one that ends well has taken no notice of the socket.
        Some(match status.success() {
            true => format!(
                "the server {command} ended ({status}): it has to support systemd's socket activation, as nbdkit and \
                 qemu-nbd do, and not to be told to serve elsewhere, such as by --stdio"
            ),
            false => format!("the server {command} ended ({status})"),
        })
    }
}

impl Drop for Subprocess {
    fn drop(&mut self) {
        ending::end(self.number);
    }
}

/// A socket in a folder that only this user can reach.
struct Listening {
    listener: UnixListener,
    path: PathBuf,
    /// The folder, if the path leads through its descriptor.
    folder: Option<OwnedFd>,
}

/// Listens in a folder, however long its path is.
fn listen(dir: &TempDir) -> io::Result<Listening> {
    const NAME: &str = "socket";
    let path = dir.path().join(NAME);
    if path.as_os_str().len() <= LONGEST_PATH {
        return Ok(Listening { listener: UnixListener::bind(&path)?, path, folder: None });
    }
    let folder = File::open(dir.path())?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(NAME);
    let listener = UnixListener::bind(&path).map_err(|error| {
        let text = format!(
            "{error}; a socket's path has {LONGEST_PATH} bytes at most: set TMPDIR to a shorter one"
        );
        io::Error::new(error.kind(), text)
    })?;
    Ok(Listening { listener, path, folder: Some(folder.into()) })
}

/// Whether there is such a command: the shell's own words would be hard to understand, as the user asked for no shell.
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
