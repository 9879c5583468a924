//! The servers that are compared, and how each is started.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where a server keeps the disk. Only servers of the same kind can be held against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In its own memory.
    Memory,
    /// In a file of a memory file system.
    File,
}

impl Storage {
    /// The server that people would use otherwise.
    pub fn baseline(self) -> &'static str {
        match self {
            Self::Memory => NBDKIT,
            Self::File => NBDKIT_FILE,
        }
    }

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
        }
    }
}

/// Name of the yardstick.
pub const YARDSTICK: &str = "yardstick";
/// Name of nbdkit with a disk in memory.
pub const NBDKIT: &str = "nbdkit";
/// Name of the event loop that is written by hand on the core alone, an example of `nbd-proto`.
pub const POLL_LOOP: &str = "poll-loop";
/// Name of nbdkit with a file.
pub const NBDKIT_FILE: &str = "nbdkit-file";
/// Name of qemu-nbd, which has files alone.
pub const QEMU_NBD_FILE: &str = "qemu-nbd-file";

/// In the arguments: the path of the socket to listen on.
const SOCKET: &str = "{socket}";
/// In the arguments: the path of the disk's file.
const FILE: &str = "{file}";

/// The runtimes of `nbd serve`: another one is another entry here.
const RUNTIMES: [&str; 3] = ["blocking", "tokio", "async-std"];

/// A server that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// What it is called on the command line and in tables.
    pub name: String,
    /// Where it keeps the disk.
    pub storage: Storage,
    /// The program to run.
    pub program: PathBuf,
    /// Its arguments, with placeholders.
    pub args: Vec<String>,
    /// The export to ask for.
    pub export: String,
    /// Whether `--version` is known to be harmless: of an extra server it is not.
    pub tells_version: bool,
}

impl Server {
    fn new(name: &str, storage: Storage, program: impl Into<PathBuf>, args: &[&str]) -> Self {
        Self {
            name: name.into(),
            storage,
            program: program.into(),
            args: args.iter().map(|&arg| arg.into()).collect(),
            export: String::new(),
            tells_version: true,
        }
    }

    /// A server from the command line: `NAME=PROGRAM ARGUMENT...`, split at white space. It serves
    /// a file if it asks for one.
    pub fn parse_extra(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("no NAME= before the command")?;
        let mut words = command.split_whitespace().map(String::from);
        let program = words.next().ok_or("no command behind NAME=")?;
        let args: Vec<String> = words.collect();
        if name.is_empty() || name.contains(',') {
            return Err("a name is not empty and has no comma".into());
        }
        if !args.iter().any(|arg| arg.contains(SOCKET)) {
            return Err(format!("the command has no {SOCKET}, so it can't be found"));
        }
        let file = args.iter().any(|arg| arg.contains(FILE));
        Ok(Self {
            name: name.into(),
            storage: if file { Storage::File } else { Storage::Memory },
            program: program.into(),
            args,
            export: String::new(),
            tells_version: false,
        })
    }

    /// The same server with TLS required, by the certificates of a folder; `None` if it has no TLS.
    pub fn with_tls(mut self, certificates: &Path) -> Option<Self> {
        let folder = certificates.display();
        let (index, args) = if self.name.starts_with("nbdkit") {
            (0, vec!["--tls=require".into(), format!("--tls-certificates={folder}")])
        } else if self.name.starts_with("qemu-nbd") {
            let object = "tls-creds-x509,id=tls,endpoint=server,verify-peer=off";
            let object = format!("{object},dir={folder}");
            (0, vec!["--object".into(), object, "--tls-creds".into(), "tls".into()])
        } else if self.args.first().is_some_and(|arg| arg == "serve") {
            let folder = folder.to_string();
            (1, vec!["--tls".into(), "require".into(), "--tls-certificates".into(), folder])
        } else {
            return None;
        };
        self.args.splice(index..index, args);
        Some(self)
    }

    /// The command that listens on `socket`; `file` is the disk of those that serve a file.
    pub fn command(&self, socket: &Path, file: Option<&Path>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.args.iter().map(|arg| fill_in(arg, socket, file)));
        command
    }

    /// The first line of what the program says of its version; `None` if there is no such program.
    pub fn version(&self) -> Option<String> {
        const UNKNOWN: &str = "version unknown";
        if !self.tells_version {
            return Some(UNKNOWN.into());
        }
        let mut command = Command::new(&self.program);
        let output = command.arg("--version").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let first = text.lines().next().filter(|_| output.status.success());
        Some(first.unwrap_or(UNKNOWN).trim().into())
    }
}

/// All servers that this crate knows. `own` is this program, which is the yardstick too, and `nbd`
/// the project's program.
pub fn catalogue(own: &Path, nbd: &Path) -> Vec<Server> {
    let mut servers = vec![
        Server::new(YARDSTICK, Storage::Memory, own, &["yardstick", "--socket", SOCKET]),
        Server::new(NBDKIT, Storage::Memory, "nbdkit", &["-f", "-U", SOCKET, "memory", "256M"]),
    ];
    servers.extend(RUNTIMES.iter().map(|runtime| {
        let args = ["serve", "--runtime", runtime, "-U", SOCKET, "memory:256M"];
        Server::new(&format!("nbd-{runtime}"), Storage::Memory, nbd, &args)
    }));
    let poll_loop = own.with_file_name("examples").join("poll_loop");
    servers.push(Server {
        tells_version: false,
        ..Server::new(POLL_LOOP, Storage::Memory, poll_loop, &[SOCKET, "256"])
    });
    servers.extend([
        Server::new(NBDKIT_FILE, Storage::File, "nbdkit", &["-f", "-U", SOCKET, "file", FILE]),
        Server::new(
            QEMU_NBD_FILE,
            Storage::File,
            "qemu-nbd",
            &["-k", SOCKET, "-f", "raw", "-t", "--shared=0", "-x", "", FILE],
        ),
    ]);
    servers.extend(RUNTIMES.iter().map(|runtime| {
        let args = ["serve", "--runtime", runtime, "-U", SOCKET, "file:{file}"];
        Server::new(&format!("nbd-{runtime}-file"), Storage::File, nbd, &args)
    }));
    servers
}

fn fill_in(arg: &str, socket: &Path, file: Option<&Path>) -> OsString {
    let mut filled = OsString::new();
    let mut rest = arg;
    loop {
        let places = [(SOCKET, Some(socket)), (FILE, file)];
        let next = places
            .into_iter()
            .filter_map(|(name, path)| Some((rest.find(name)?, name, path?)))
            .min_by_key(|(at, ..)| *at);
        let Some((at, name, path)) = next else {
            filled.push(rest);
            return filled;
        };
        filled.push(&rest[..at]);
        filled.push(path);
        rest = &rest[at + name.len()..];
    }
}
