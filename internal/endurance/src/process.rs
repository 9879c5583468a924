//! `nbd serve`, started and waited for.

use core::time::Duration;
use std::path::{Path, PathBuf};
use std::process::Command;

use nbd_testkit::Endpoint;
use nbd_testkit::process::Background;

/// How long a server may take to listen.
const SOON: Duration = Duration::from_secs(60);

/// What runs the server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// Threads.
    Blocking,
    /// tokio.
    Tokio,
    /// async-std.
    AsyncStd,
}

impl Runtime {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tokio, Self::AsyncStd, Self::Blocking];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Tokio => "tokio",
            Self::AsyncStd => "async-std",
        }
    }
}

/// Starts a server on a Unix socket, and waits until it listens.
///
/// # Panics
/// When it does not start.
#[track_caller]
pub fn serve(
    program: &Path,
    runtime: Runtime,
    socket: &Path,
    arguments: &[&str],
) -> (Background, Endpoint) {
    let mut command = Command::new(program);
    command.args(["serve", "--runtime", runtime.name(), "--unix"]).arg(socket).args(arguments);
    let process = Background::spawn(&mut command)
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let line = process.next_line(SOON);
    let endpoint = line.as_deref().and_then(Endpoint::parse);
    let endpoint =
        endpoint.unwrap_or_else(|| panic!("{command:?}: {line:?}: {}", process.stderr()));
    (process, endpoint)
}

/// The program `nbd`: `NBD_BIN` from the environment, or the one beside this program.
///
/// # Errors
/// When it is not there, with what to do.
pub fn beside_this_program() -> Result<PathBuf, String> {
    let named = std::env::var_os("NBD_BIN").filter(|name| !name.is_empty()).map(PathBuf::from);
    let this = || std::env::current_exe().ok().map(|this| this.with_file_name("nbd"));
    match named.or_else(this) {
        Some(program) if program.is_file() => Ok(program),
        program => Err(format!(
            "{program:?} is not there: build it first (cargo build -p nbd-cli, with the same profile), or name another \
             one in NBD_BIN"
        )),
    }
}
