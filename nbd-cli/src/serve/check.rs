//! `nbd serve --check`: finds out whether the server could start, and changes nothing.
//!
//! What is in use is a fault, unless the server that uses the same configuration file is there: it has to be what uses it.

use std::io::ErrorKind;
use std::path::Path;

use nbd_engine::net;
use nbd_engine::proto::wire::DEFAULT_PORT;

use super::backend;
use super::claims;
use super::config::{self, Address, Config, Listen, Source};
use super::metrics::check as check_metrics;
use super::places::{
    addresses, cannot_listen_on_tcp, cannot_listen_on_unix, cannot_listen_on_vsock,
};
use super::process::ProcessArguments;
use super::run::server_config;
use super::supervisor::PidFile;
use crate::exit::Failure;
use crate::{control, stderr};

/// What a check found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    failures: Vec<Failure>,
    /// What would be none if nothing else used the same.
    in_use: Vec<Failure>,
    /// The same of overlay files, which no server hands over to another.
    overlays_in_use: Vec<Failure>,
    /// What would be none if a folder were there that a service manager makes.
    made_later: Vec<Failure>,
    /// What is no fault, but to be considered.
    warnings: Vec<Failure>,
}

/// What is wrong with an address: an error of the system, and the words for it.
type Wrong = (ErrorKind, Failure);

impl Findings {
    pub(super) fn add(&mut self, failure: Failure) {
        self.failures.push(failure);
    }

    pub(super) fn add_overlay_in_use(&mut self, failure: Failure) {
        self.overlays_in_use.push(failure);
    }

    /// Adds a failure, if there is one.
    pub(super) fn take(&mut self, result: Result<(), Failure>) {
        self.failures.extend(result.err());
    }

    /// Adds a failure, or a warning if there is one.
    pub(super) fn take_warned(&mut self, result: Result<Option<Failure>, Failure>) {
        match result {
            Ok(warning) => self.warnings.extend(warning),
            Err(failure) => self.add(failure),
        }
    }

    /// Adds what is wrong with an address, which is that path if it is one.
    fn take_of(&mut self, path: Option<&Path>, result: Result<(), Wrong>) {
        match result {
            Ok(()) => {}
            Err((ErrorKind::AddrInUse, failure)) => self.in_use.push(failure),
            Err((ErrorKind::NotFound, failure)) if path.is_some_and(is_made_later) => {
                self.made_later.push(failure);
            }
            Err((_, failure)) => self.add(failure),
        }
    }

    /// Adds what was found of the value of a key.
    pub(super) fn blame(&mut self, found: Self, source: &Source, key: &str) {
        let blame = |failure| source.blame(key, failure);
        self.failures.extend(found.failures.into_iter().map(blame));
        self.in_use.extend(found.in_use.into_iter().map(blame));
        self.overlays_in_use.extend(found.overlays_in_use.into_iter().map(blame));
        self.made_later.extend(found.made_later.into_iter().map(blame));
        self.warnings.extend(found.warnings.into_iter().map(blame));
    }
}

/// Whether the folder of a path is one that is there only while the service is, as with `RuntimeDirectory=`.
fn is_made_later(path: &Path) -> bool {
    net::folder_of(path).parent() == Some(Path::new("/run"))
}

/// Reports all that would keep the server from starting, as far as that can be found out. `given` says whether sockets
/// were handed over, and `file` is the configuration file.
pub(super) fn check(
    config: &Config,
    process: &ProcessArguments,
    given: bool,
    file: Option<&Path>,
) -> Result<(), Failure> {
    let mut findings = Findings::default();
    let run = claims::Run::of(process, given, file);
    claims::faults(config, &run).into_iter().for_each(|fault| findings.add(fault));
    backend::inspect(config, &mut findings);
    findings.take(server_config(config).map(drop));
    check_listeners(config, process, given, &mut findings);
    let mut of_key = |key: &str, check: &dyn Fn(&mut Findings)| {
        let mut found = Findings::default();
        check(&mut found);
        findings.blame(found, &config.source, key);
    };
    of_key("server.metrics", &|found| {
        if let Some(address) = &config.server.metrics {
            found.take_of(address.path(), check_metrics(address));
        }
    });
    of_key("server.control", &|found| {
        if let Some(path) = &config.server.control {
            found.take_of(Some(path), check_unix(path));
        }
    });
    if let Some(path) = &process.pid_file {
        findings.take_of(Some(path), PidFile::check(path));
    }
    if let Some(path) = &process.take_over {
        findings.take(control::connect(path).map(drop));
        findings.take(backend::refuse_overlays_in_use(config));
        findings.overlays_in_use.clear();
    }
    let Findings { mut failures, mut in_use, overlays_in_use, made_later, warnings } = findings;
    in_use.extend(overlays_in_use);
    warnings.iter().for_each(|warning| stderr::say(&format!("warning: {}", warning.text())));
    for failure in &made_later {
        warn(failure, "no fault if the service makes the folder when it starts");
    }
    match running(process, file) {
        Some(server) => {
            in_use.iter().for_each(|failure| warn(failure, &format!("no fault if by {server}")));
        }
        None => failures.extend(in_use),
    }
    failures.truncate(config::MAX_FAULTS);
    Failure::all(failures)
}

fn check_listeners(
    config: &Config,
    process: &ProcessArguments,
    given: bool,
    findings: &mut Findings,
) {
    for (index, listen) in config.listeners.iter().enumerate() {
        let mut found = Findings::default();
        let path = match listen.address() {
            Ok(Address::Unix(path)) => Some(path),
            _ => None,
        };
        found.take_of(path, check_listener(listen));
        findings.blame(found, &config.source, &format!("listen.{index}"));
    }
    if config.listeners.is_empty() && process.listens_by_default(given) {
        findings.take_of(None, check_tcp("127.0.0.1", DEFAULT_PORT));
    }
}

fn check_listener(listen: &Listen) -> Result<(), Wrong> {
    // What is no address was reported with the text of the file.
    let Ok(address) = listen.address() else { return Ok(()) };
    match address {
        Address::Tcp(tcp) => check_tcp(&tcp.host, tcp.port),
        // It is in a folder of its own.
        Address::Unix(path) if path == Path::new("-") => Ok(()),
        Address::Unix(path) => check_unix(path),
        #[cfg(target_os = "linux")]
        Address::Vsock(vsock) => net::check_vsock(vsock.cid, vsock.port)
            .map_err(|error| (error.kind(), cannot_listen_on_vsock(&error))),
        // What starts the server hands its sockets over, which may be somewhere else than here.
        Address::Activation => Ok(()),
    }
}

fn check_tcp(host: &str, port: u16) -> Result<(), Wrong> {
    let found = addresses(host, port).map_err(|failure| (ErrorKind::NotFound, failure))?;
    net::check_tcp(&[found]).map_err(|error| (error.kind(), cannot_listen_on_tcp(&error)))
}

fn check_unix(path: &Path) -> Result<(), Wrong> {
    net::check_unix(path).map_err(|error| (error.kind(), cannot_listen_on_unix(&error, path)))
}

/// The server that has what this one is to have: that which is replaced, or one with the same configuration file.
fn running(process: &ProcessArguments, file: Option<&Path>) -> Option<String> {
    if let Some(control) = &process.take_over {
        return Some(format!("the server of {}, which is to be replaced", control.display()));
    }
    let number = of_file(file?)?;
    Some(format!("the server of that file, process {number}"))
}

/// Reports what is a fault only if `unless` is not the case.
fn warn(failure: &Failure, unless: &str) {
    // What to do about it helps nobody for whom it is none.
    let text = failure.text();
    let what = text.split("; ").next().unwrap_or(text);
    stderr::say(&format!("warning: {what}; {unless}"));
}

/// A server of that configuration file that runs.
#[cfg(target_os = "linux")]
fn of_file(file: &Path) -> Option<u32> {
    let wanted = identity(file)?;
    let own = std::process::id();
    let numbers = std::fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|number| *number != own && serves(*number, wanted))
}

/// Whether a process is `nbd serve` with the file of that identity.
#[cfg(target_os = "linux")]
fn serves(number: u32, wanted: (u64, u64)) -> bool {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = Path::new("/proc").join(number.to_string());
    let Ok(line) = std::fs::read(folder.join("cmdline")) else { return false };
    let words = Vec::from_iter(line.split(|byte| *byte == 0).skip(1).map(OsStr::from_bytes));
    if words.first() != Some(&OsStr::new("serve"))
        || ["--check", "--print-config"].iter().any(|word| words.contains(&OsStr::new(word)))
    {
        return false;
    }
    let config = words.iter().enumerate().find_map(|(index, word)| match word.as_bytes() {
        b"--config" => words.get(index + 1).copied(),
        word => word.strip_prefix(b"--config=").map(OsStr::from_bytes),
    });
    // What begins with a slash replaces the folder.
    config.is_some_and(|file| identity(&folder.join("cwd").join(file)) == Some(wanted))
}

#[cfg(target_os = "linux")]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Other systems do not show what processes there are in that way.
#[cfg(not(target_os = "linux"))]
fn of_file(_file: &Path) -> Option<u32> {
    None
}
